"""Reads what a model folder says of itself, in sentence-transformers' files and in ours.

`modules.json` says how the last layer becomes a vector (modules.py), `sentence_bert_config.json`
where texts are cut, `config_sentence_transformers.json` which prompts and similarity belong to it.
`dpr_jax.json` says what those cannot: how a passage's title and text are joined, and the
temperature of training. A folder that says nothing is BERT's [CLS], as in DPR.
"""

import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dpr_jax.config import ModelConfig
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.model import families, modules, prompts
from dpr_jax.model.dual_encoder import Side
from dpr_jax.model.folder_json import load_json, whole
from dpr_jax.model.modules import MODULES, DenseShape

OURS = "dpr_jax.json"
LENGTHS = "sentence_bert_config.json"
SENTENCE_CONFIG = "config_sentence_transformers.json"
FILES = (OURS, MODULES, modules.ROUTER, LENGTHS, SENTENCE_CONFIG)
# folders of modules, in old and new folders of sentence-transformers and in ours
FOLDERS = ("[0-9]_*/*", "query_*/*", "document_*/*", "question_encoder/*", "passage_encoder/*")
QUESTION_TOKENS, PASSAGE_TOKENS = 64, 256  # where neither folder nor settings say less
UNIT_TEMPERATURE = 0.05  # scores of unit vectors lie in [-1, 1]: too narrow for a softmax at 1


class EncoderSettings(NamedTuple):
    """The way a tower's texts become vectors.

    Attributes:
      pooling: "cls", or another of modules.POOLINGS.
      normalize: whether vectors have unit length.
      max_tokens: where texts are cut, special tokens included.
      title_and_text: "pair" for [CLS] title [SEP] text [SEP], "space" for one text.
      lowercase: whether texts are lower-cased before the tokenizer's own rules.
      prompt: what stands before every text.
      dense: linear layers after pooling.
      width: vectors are cut to so many numbers before they are normalized; None keeps all.
      trained_temperature: the temperature that the folder says it was trained with.
      dense_folders: of the layers' weights, which lie among the encoder's where there are none.
    """

    pooling: str
    normalize: bool
    max_tokens: int
    title_and_text: Literal["pair", "space"] = "pair"
    lowercase: bool = False
    prompt: str = ""
    dense: tuple[DenseShape, ...] = ()
    width: int | None = None
    trained_temperature: float | None = None
    dense_folders: tuple[Path, ...] = ()

    @property
    def temperature(self) -> float:
        """The temperature of training where none is set: the folder's, 0.05 for unit vectors, 1."""
        return self.trained_temperature or (UNIT_TEMPERATURE if self.normalize else 1.0)

    @property
    def of_vectors(self) -> dict[str, Any]:
        """The settings that shape the vectors; those that came later only where they say more."""
        usual, said = self._field_defaults, self._asdict()
        del said["trained_temperature"], said["dense_folders"]
        later = ("prompt", "dense", "width")
        return {name: v for name, v in said.items() if name not in later or v != usual[name]}


def read(folder: Path, side: Side, model: ModelConfig) -> EncoderSettings:
    """Returns the settings of a tower: those of its folder, unless `model` says otherwise.

    A setting that contradicts the folder is used, and that is said once.

    Args:
      folder: of one encoder.
      side: which tower it serves as.
      model: settings; None in a field believes the folder.

    Raises:
      InputError: the folder says what cannot be done here, by name, or more tokens are asked for
        than the model has positions.
    """
    said = _said(folder, side)
    positions = families.positions(folder)
    own_limit = min(said.get("max_tokens") or positions, positions)
    usual = QUESTION_TOKENS if side == "question" else PASSAGE_TOKENS
    by_default = own_limit if "max_tokens" in said else min(own_limit, usual)
    ours = (modules.root_of(folder) / OURS).exists()
    asked = model.max_question_tokens if side == "question" else model.max_passage_tokens
    if (asked or 0) > positions:
        raise InputError(
            f"model.max_{side}_tokens is {asked}, but {folder} has {positions} positions; give"
            f" {positions} or fewer"
        )
    # a limit of others is the most that they take, ours is what the tower was trained with
    if asked and "max_tokens" in said and (asked > own_limit or (ours and asked < own_limit)):
        _say_once(f"model.max_{side}_tokens is {asked}, though {folder} says {own_limit}")
    usuals = {"pooling": "cls", "normalize": False, "prompt": ""}
    keys = {"pooling": "pooling", "normalize": "normalize", "prompt": f"{side}_prompt"}
    found = {name: said.get(name, value) for name, value in usuals.items()}
    for name, key in keys.items():
        wanted = getattr(model, key)
        if wanted not in (None, found[name]):
            if name in said:
                shown = (wanted, found[name])
                shown = [*map(repr, shown)] if name == "prompt" else shown
                _say_once(f"model.{key} is {shown[0]}, though {folder} says {shown[1]}")
            found[name] = wanted
    if found["prompt"] and not said.get("include_prompt", True):
        raise InputError(
            f"{folder} leaves the prompt out of its pooling (include_prompt false), which is not"
            f' supported; without a prompt it can be used: --model.{side}-prompt ""'
        )
    return EncoderSettings(
        **found,
        max_tokens=asked or by_default,
        title_and_text=title_and_text(folder),
        lowercase=is_lowercased(folder),
        dense=said["dense"],
        dense_folders=said["dense_folders"],
        width=said.get("width"),
        trained_temperature=said.get("temperature"),
    )


def title_and_text(folder: Path) -> Literal["pair", "space"]:
    """Returns how the titles and texts of passages are joined for an encoder.

    A pair for DPR, for folders without modules.json, and where our own file says so; one text with
    a space between for other folders of sentence-transformers.

    Raises:
      InputError: our own file says neither.
    """
    root = modules.root_of(folder)
    file = root / OURS
    if not file.exists():
        return "space" if (root / MODULES).exists() else "pair"
    said = load_json(file).get("title_and_text")
    if said not in ("pair", "space"):
        raise InputError(f'{file} has title_and_text {said!r}; write "pair" or "space" there')
    return said


def separator(folder: Path) -> str:
    """Returns the token between the title and the text of a pair, by tokenizer_config.json."""
    said = load_json(folder / "tokenizer_config.json").get("sep_token") or "[SEP]"
    return said["content"] if isinstance(said, dict) else said


def is_lowercased(folder: Path) -> bool:
    """Returns whether texts are lower-cased besides what the tokenizer does."""
    return bool(load_json(folder / LENGTHS).get("do_lower_case"))


def _said(folder: Path, side: Side) -> dict[str, Any]:
    """Returns what a folder states: pooling, normalization, layers, length, prompt."""
    found: dict[str, Any] = {}
    root = modules.root_of(folder)
    is_described = (root / MODULES).exists()
    role = "query" if side == "question" else "document"
    limits = [(root / OURS, f"max_{side}_tokens")]
    limits += [(folder / LENGTHS, f"{role}_length"), (folder / LENGTHS, "max_seq_length")]
    if is_described:  # where its newer versions have it
        limits.append((folder / "tokenizer_config.json", "model_max_length"))
    for file, name in limits:
        if limit := whole(file, name, load_json(file), None):
            found.setdefault("max_tokens", limit)
    ours = root / OURS
    temperature = load_json(ours).get("temperature")
    if temperature is not None:
        if type(temperature) not in (int, float) or not temperature > 0:
            raise InputError(f"{ours} has temperature {temperature!r}; it must be greater than 0")
        found["temperature"] = float(temperature)
    file = root / SENTENCE_CONFIG
    sentence_config = load_json(file)
    prompt = prompts.of(sentence_config, file, side)
    if prompt is None and not ours.exists() and (known := prompts.known(root, side)) is not None:
        prompt = known
        _say_once(
            f"{root} is an encoder that is known to want {prompt!r} before {side}s; model."
            f"{side}_prompt sets another"
        )
    if prompt is not None:
        found["prompt"] = prompt
    default = sentence_config.get("default_prompt_name")
    if default and not prompt:
        _say_once(
            f"{file} has default_prompt_name {default!r}, which encode_{role} of"
            f" sentence-transformers does not put before {side}s, nor do we"
        )
    layers = modules.read(folder, side)
    found |= {"dense": layers.dense, "dense_folders": layers.dense_folders}
    found["include_prompt"] = layers.include_prompt
    if width := whole(file, "truncate_dim", sentence_config, None):
        found["width"] = width
    if is_described:
        # vectors that are compared by cosine rank as unit vectors do; null is cosine there
        similarity = sentence_config.get("similarity_fn_name", "dot") or "cosine"
        if similarity not in ("cosine", "dot"):
            raise InputError(
                f"{file} has similarity_fn_name {similarity!r}; cosine and dot are supported"
            )
        if width and layers.normalize and similarity == "dot":
            raise InputError(
                f"{file} has truncate_dim {width} after Normalize and similarity_fn_name dot,"
                " which leaves vectors of different lengths; this is not supported"
            )
        found["normalize"] = layers.normalize or similarity == "cosine"
        found["pooling"] = layers.pooling
    return found


@functools.cache
def _say_once(message: str) -> None:
    say(f"model: {message}")
