"""Collects what a training run depends on, and refuses what cannot be trained."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dpr_jax import artifacts
from dpr_jax.config import Config, TrainConfig
from dpr_jax.config_file import to_dict
from dpr_jax.data import store
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.model.dual_encoder import EncoderPair
from dpr_jax.model.stack import EncoderShape
from dpr_jax.model.tokenizer import Tokenizer
from dpr_jax.workdir import RetrieverDir, WorkDir

# settings that do not change what is in the checkpoints
INCIDENTAL = ("log_every_steps", "checkpoint_every_steps", "profile_steps")
DEFAULT_EPOCHS, DEFAULT_STEPS = 10, 1000  # the fewer updates of the two
QUESTION_BLOCK = 8192  # questions tokenized at a time
FORM = 3  # since the last layer of a [CLS] tower draws dropout for [CLS] alone


def origin(config: Config, workdir: WorkDir, start: str, mined: Path | None) -> dict[str, Any]:
    """Returns the settings and inputs that decide the weights of every step of a run.

    Args:
      config: of the retriever.
      workdir: with the data.
      start: fingerprints of the encoders that the towers start from.
      mined: folder of the mined hard negatives, if training takes them.
    """
    inputs = {
        "data": artifacts.fingerprint(workdir.data / "manifest.json"),
        "init": hashlib.sha256(start.encode()).hexdigest(),
    }
    if mined is not None:
        inputs["mined"] = artifacts.fingerprint(mined / "manifest.json")
    if files := store.train_sets(workdir):
        inputs["train_sets"] = ", ".join(str(len(rows)) for _, rows in files)
    train = {k: v for k, v in to_dict(config.train).items() if k not in INCIDENTAL}
    if train["lora_rank"] is None:
        del train["lora_rank"]  # runs from before there were adapters are the same runs
    model = to_dict(config.model)
    # known by their content: a folder may have moved, and prompts are part of the encoders
    for name in ("init", "question_prompt", "passage_prompt"):
        del model[name]
    settings = {"train": train, "model": model, "seed": config.seed}
    return artifacts.made_from("train", settings, inputs, form=FORM)


def check_trained_here(retriever: RetrieverDir) -> None:
    """Raises InputError where a retriever is BM25, a hybrid, or an encoder as it comes."""
    what = f"uses {retriever.source} as it comes" if retriever.source else f"is {retriever.kind}"
    if retriever.kind != "dense" or retriever.source:
        raise InputError(
            f"retriever {retriever.name} {what}, so it cannot be trained; name another one with"
            " --retriever NAME"
        )


def mined_folder(config: Config, retriever: RetrieverDir) -> Path | None:
    """Returns the folder of the mined hard negatives; None where the questions' own are used.

    Raises:
      InputError: they are missing, or were mined from other data.
    """
    if "train" not in store.splits(retriever.workdir):
        raise InputError(
            f"{retriever.workdir.data} has no training questions; name some: `dpr prepare"
            f" --data.train FILE {retriever.workdir.flag}`"
        )
    if not store.wants_mining(retriever.workdir, config.mine.enabled):
        return None
    folder = retriever.current("mined")
    data = artifacts.fingerprint(retriever.workdir.data / "manifest.json")
    if artifacts.read_json(folder / "manifest.json")["made_from"]["inputs"]["data"] != data:
        raise InputError(
            f"{folder} was mined from other data than {retriever.workdir.data}; run `dpr mine"
            f" {retriever.flags}`"
        )
    return folder


class Schedule(NamedTuple):
    """The number of updates of a run.

    Attributes:
      total_steps: all of them.
      warmup_steps: in which the learning rate rises; fewer than all.
    """

    total_steps: int
    warmup_steps: int


def schedule(train: TrainConfig, questions: int) -> Schedule:
    """Returns the updates that `train` asks for, with so many training questions."""
    steps_per_epoch = questions / train.batch_size
    total_steps = train.total_steps
    if total_steps is None and train.epochs is not None:
        total_steps = max(1, round(train.epochs * steps_per_epoch))
    if total_steps is None:
        total_steps = max(1, min(DEFAULT_STEPS, round(DEFAULT_EPOCHS * steps_per_epoch)))
    return Schedule(total_steps, min(round(train.warmup * total_steps), total_steps - 1))


def check_alike(init: str, encoder: EncoderPair, *, shared: bool) -> None:
    """Raises InputError where two towers cannot be trained together."""
    question, passage = encoder
    if question.width != passage.width:
        raise InputError(
            f"{init}: its question encoder gives vectors of width {question.width}, its passage"
            f" encoder of width {passage.width}; they must be equal"
        )
    if question.normalize != passage.normalize or (shared and question != passage):
        raise InputError(
            f"{init}: its question encoder has pooling {question.pooling}, normalize"
            f" {question.normalize}, its passage encoder {passage.pooling}, {passage.normalize};"
            " set model.pooling and model.normalize, and model.shared_towers to false where they"
            " are of different architectures"
        )


def longest_question(questions: Sequence[Question], tokens: Tokenizer) -> int:
    """Returns the tokens of the longest training question, rounded up to a multiple of 8, at most
    where the encoder cuts.
    """
    longest = 1
    for start in range(0, len(questions), QUESTION_BLOCK):
        block = range(start, min(start + QUESTION_BLOCK, len(questions)))
        lengths_N = tokens.rows([questions[row].question for row in block]).lengths_N
        longest = max(longest, int(lengths_N.max()))
    return min(tokens.max_tokens, -(-longest // 8) * 8)


def check_division(batch_size: int) -> None:
    """Raises InputError where the devices cannot share a batch evenly."""
    if batch_size % jax.device_count():
        raise InputError(
            f"train.batch_size is {batch_size}, which {jax.device_count()} devices cannot share"
            " evenly; make it a multiple"
        )


def check_widths(widths: tuple[int, ...], whole: int) -> None:
    """Raises InputError where a Matryoshka width is not smaller than the vectors."""
    if widths and max(widths) >= whole:
        raise InputError(
            f"train.matryoshka_widths names {max(widths)}, but whole vectors have {whole} numbers"
            " and always count; name smaller widths"
        )


def check_rank(rank: int, shapes: Iterable[EncoderShape]) -> None:
    """Raises InputError where adapters would be no smaller than the matrices beside them."""
    width = min(shape.hidden_size for shape in shapes)
    if 2 * rank > width:
        raise InputError(
            f"train.lora_rank is {rank}, but the model's width is {width}; it must be at most half"
            f" of that ({width // 2}): 8 to 64 is usual"
        )


def frozen_levels(train: TrainConfig, layers: int) -> int:
    """Returns how many levels of a tower, from below, keep their weights: 1 is the embeddings, 1 +
    n the first n layers too.

    Raises:
      InputError: no layer is left to train.
    """
    if train.freeze_layers is None:
        return 0
    if train.freeze_layers >= layers:
        raise InputError(
            f"train.freeze_layers is {train.freeze_layers}, but the model has {layers} layers;"
            " leave at least one to train"
        )
    return 1 + train.freeze_layers
