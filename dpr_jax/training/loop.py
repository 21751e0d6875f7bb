"""The training stage: one linear function, from prepared data to checkpoints/ and model/."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax import artifacts, logging, parallel
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, TrainConfig
from dpr_jax.config_file import to_dict
from dpr_jax.data import store
from dpr_jax.errors import InputError
from dpr_jax.model import dual_encoder, embed, hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder
from dpr_jax.training import batches, checkpoint, optimizer, validation
from dpr_jax.training.export import SIDES, export
from dpr_jax.training.record import Record
from dpr_jax.training.step import (
    LOG_TEMPERATURE,
    StepSettings,
    TrainState,
    temperature_of,
    train_step,
)

# settings of the train stage that do not change the weights
INCIDENTAL = ("log_every_steps", "validate_every_steps", "checkpoint_every_steps")


def run(config: Config, workdir: WorkDir) -> None:
    """Trains both towers, resuming where a killed run was, and exports the result.

    Runs on every process. Leaves checkpoints/ (Orbax steps, metrics.jsonl, tensorboard/) and model/.

    Raises:
      InputError: data or model missing, or checkpoints of other settings in the way.
    """
    # --- what the result depends on -------------------------------------------------
    side_settings = {side: embed.default_settings(config.model, side) for side in SIDES}
    folders = {side: hf.resolve(config.model.init, side) for side in SIDES}
    start = "".join(hf.fingerprint(folders[s], side_settings[s]) for s in SIDES)
    mined = config.mine.enabled
    data = {"data": artifacts.fingerprint(workdir.data / "manifest.json")}
    if mined:
        data["mined"] = artifacts.fingerprint(workdir.mined / "manifest.json")
    origin = _origin(config, data, start)
    checkpoint.claim(workdir.checkpoints, origin, write=parallel.is_main())
    if artifacts.is_fresh(workdir.model / "manifest.json", origin):
        logging.say("train: up to date")
        return
    train = config.train
    _check_division(train.batch_size, train.chunk_size)

    # --- data -----------------------------------------------------------------------
    corpus = store.open_corpus(workdir)
    questions = store.open_questions(workdir, "train", mined=mined)
    dev = (
        list(store.open_questions(workdir, "dev", mined=mined))
        if config.data.dev
        else []
    )
    question_tokenizer, passage_tokenizer = (
        tokenizer.load(folders[side], side_settings[side].max_tokens) for side in SIDES
    )

    # --- model ----------------------------------------------------------------------
    shape = hf.read_shape(folders["question"])
    frozen = _frozen(train, shape.num_hidden_layers)
    _check_widths(train.matryoshka_widths, shape.hidden_size)
    encoder = Encoder(
        shape,
        pooling=config.model.pooling,
        normalize=config.model.normalize,
        dropout=train.dropout,
        dtype=jnp.dtype(train.dtype),
        frozen=frozen,
        remat=train.remat,
    )
    params = dual_encoder.dual_params(
        hf.read_params(folders["question"], shape),
        hf.read_params(folders["passage"], shape),
        shared=config.model.shared_towers,
    )
    learning_rate = functools.partial(
        optimizer.learning_rate,
        peak=train.learning_rate,
        warmup_steps=train.warmup_steps,
        total_steps=train.total_steps,
        schedule=train.schedule,
        dpr_parity=train.dpr_parity,
    )
    adamw = optimizer.make(
        learning_rate,
        weight_decay=train.weight_decay,
        eps=train.adam_eps,
        clip_norm=train.clip_norm,
        dpr_parity=train.dpr_parity,
        layers=shape.num_hidden_layers,
        layer_decay=train.layer_decay,
        frozen=frozen,
    )
    if train.learn_temperature:
        params[LOG_TEMPERATURE] = np.float32(math.log(train.temperature))
    state = TrainState(
        np.zeros((), np.int32), params, jax.device_get(adamw.init(params))
    )

    # --- where a killed run was -----------------------------------------------------
    with contextlib.ExitStack() as stack:
        checkpoints = checkpoint.Checkpoints(workdir.checkpoints)
        stack.callback(checkpoints.close)
        if checkpoints.latest() is not None:
            state = checkpoints.restore(state)
            logging.say(f"train: resuming after step {int(state.step)}")
        first_step = int(state.step)
        record = None
        if parallel.is_main():
            record = Record(workdir.checkpoints, first_step=first_step)
            stack.callback(record.close)

        # --- the mapped step ------------------------------------------------------------
        spmd = parallel.spmd(train.spmd)
        settings = StepSettings(
            encoder,
            adamw,
            temperature=train.temperature,
            mask_duplicates=train.mask_duplicates,
            seed=config.seed,
            symmetric=train.symmetric,
            matryoshka_widths=train.matryoshka_widths,
            chunk_size=train.chunk_size,
        )
        update = spmd.map(
            functools.partial(train_step, settings=settings, axis=parallel.AXIS),
            donate=True,
        )
        validate = functools.partial(
            validation.validate,
            dataclasses.replace(encoder, dropout=0.0),
            questions=dev,
            corpus=corpus,
            question_tokenizer=question_tokenizer,
            passage_tokenizer=passage_tokenizer,
            block=train.batch_size,
            block_hard_negatives=train.hard_negatives,
            pool_hard_negatives=train.validation_hard_negatives,
            pool_negatives=train.validation_negatives,
        )
        stream = batches.stream(
            questions,
            corpus,
            question_tokenizer,
            passage_tokenizer,
            batch_size=train.batch_size,
            hard_negatives=train.hard_negatives,
            shuffle_positives=train.shuffle_positives,
            mask_duplicates=train.mask_duplicates,
            seed=config.seed,
            first_step=first_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        logging.say(
            f"train: {len(questions):,} questions, {train.total_steps:,} steps of {train.batch_size} questions and "
            f"{train.batch_size * (1 + train.hard_negatives)} passages on {jax.device_count()} device(s) "
            f"of {jax.process_count()} process(es), {train.spmd}"
        )

        # --- updates --------------------------------------------------------------------
        clock = _Clock(train.batch_size)

        def finish(step: int, metrics: dict[str, jax.Array]) -> str:
            """Reads, checks and records the metrics of update `step` (1-based)."""
            values = {name: float(value) for name, value in spmd.fetch(metrics).items()}
            if not all(map(math.isfinite, values.values())):
                raise InputError(
                    f"training diverged at step {step} ({values}); checkpoints before it are kept in {workdir.checkpoints}; "
                    "try a lower train.learning_rate or train.clip_norm in another --workdir"
                )
            values["learning_rate"] = float(learning_rate(step - 1))
            values["examples_per_s"] = clock.examples_per_s()
            if record and (
                step % train.log_every_steps == 0 or step == train.total_steps
            ):
                record.write(step, values)
            return f"loss {values['loss']:.4f} accuracy {values['accuracy']:.3f} {values['examples_per_s']:.1f} examples/s"

        def judge(step: int, params: dual_encoder.Params) -> validation.Validation:
            temperature = float(temperature_of(params, train.temperature))
            judged = validate(params, temperature=temperature)
            named = {
                f"validation_{name}": value for name, value in judged._asdict().items()
            }
            if record:
                record.write(step, named)
            logging.say(
                f"train: step {step}: validation NLL {judged.nll:.4f}, accuracy {judged.accuracy:.3f}, "
                f"average rank {judged.average_rank:.2f} of {judged.pool}"
            )
            return judged

        on_devices = spmd.replicate(state)
        remaining = train.total_steps - first_step
        with logging.progress("train", remaining, "steps") as advance:
            waiting: tuple[int, dict[str, jax.Array]] | None = None
            for step in range(first_step + 1, train.total_steps + 1):
                on_devices, metrics = update(on_devices, spmd.shard(next(stream)))
                if waiting:  # read one step late, so that the devices never wait for us
                    advance(1, finish(*waiting))
                waiting = (step, metrics)
                due_save = step % train.checkpoint_every_steps == 0
                due_judge = (
                    train.validate_every_steps
                    and step % train.validate_every_steps == 0
                )
                if step == train.total_steps or due_save or due_judge:
                    advance(1, finish(*waiting))
                    waiting = None
                    state = spmd.fetch(on_devices)
                    if due_save or step == train.total_steps:
                        checkpoints.save(state)
                    if due_judge and dev and step != train.total_steps:
                        judge(step, state.params)
                        clock.restart()
        checkpoints.wait()

        # --- the result -----------------------------------------------------------------
        facts = {}
        if dev:
            facts["validation"] = judge(train.total_steps, state.params)._asdict()
        if record:
            export(
                workdir,
                state.params,
                origin=origin,
                shape=shape,
                init=config.model.init,
                settings=side_settings,
                facts=facts,
            )
    parallel.barrier("model exported")


def _origin(config: Config, data: dict[str, str], start: str) -> dict[str, object]:
    """The settings and inputs that decide the weights."""
    train = {k: v for k, v in to_dict(config.train).items() if k not in INCIDENTAL}
    settings = {"train": train, "model": to_dict(config.model), "seed": config.seed}
    inputs = {**data, "init": hashlib.sha256(start.encode()).hexdigest()}
    return artifacts.made_from("train", settings, inputs)


def _check_division(batch_size: int, chunk_size: int) -> None:
    questions, left = divmod(batch_size, jax.device_count())
    if left:
        raise InputError(
            f"train.batch_size is {batch_size}, which {jax.device_count()} devices cannot share evenly; make it a multiple"
        )
    if chunk_size and questions % chunk_size:
        raise InputError(
            f"train.chunk_size is {chunk_size}, which does not divide the {questions} questions of a device; make it one of their divisors"
        )


def _check_widths(widths: tuple[int, ...], whole: int) -> None:
    if widths and max(widths) >= whole:
        raise InputError(
            f"train.matryoshka_widths names {max(widths)}, but whole vectors have {whole} numbers and always count; name smaller widths"
        )


def _frozen(train: TrainConfig, layers: int) -> int:
    """Levels of a tower, from below, that keep their weights."""
    if train.freeze_layers >= layers:
        raise InputError(
            f"train.freeze_layers is {train.freeze_layers}, but the model has {layers} layers; leave at least one to train"
        )
    if train.freeze_layers:
        return 1 + train.freeze_layers
    return int(train.freeze_embeddings)


class _Clock:
    """Examples a second since the first update after (re)start, whose time is compilation."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self._updates, self._start_s = 0, 0.0

    def examples_per_s(self) -> float:
        now_s = time.monotonic()
        if self._updates == 0:
            self._start_s = now_s
        self._updates += 1
        passed_s = now_s - self._start_s
        return (self._updates - 1) * self._batch_size / passed_s if passed_s else 0.0
