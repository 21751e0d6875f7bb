"""The training stage: one linear function, from prepared data to checkpoints/ and model/."""

import contextlib
import dataclasses
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax import artifacts, console, parallel
from dpr_jax.config import Config
from dpr_jax.data import store
from dpr_jax.errors import InputError, Preempted
from dpr_jax.model import description, dual_encoder, hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder
from dpr_jax.training import (
    batches,
    checkpoint,
    divergence,
    optimizer,
    order,
    setup,
    speed,
    validation,
)
from dpr_jax.training.export import SIDES, export
from dpr_jax.training.progress import START
from dpr_jax.training.record import Record
from dpr_jax.training.step import (
    LOG_TEMPERATURE,
    StepSettings,
    TrainState,
    temperature_of,
    train_step,
)
from dpr_jax.workdir import RetrieverDir


def run(config: Config, retriever: RetrieverDir) -> None:
    """Trains both towers, resuming where a killed run was, and exports the result.

    Runs on every process. Leaves checkpoints-HASH (Orbax steps, metrics.jsonl, TensorBoard events)
    and model-HASH; other settings have other folders.

    Raises:
      InputError: data or model missing, or a retriever that is not trained here.
    """
    # --- what the result depends on ------------------------------------------
    workdir = retriever.workdir
    setup.check_trained_here(retriever)
    init = workdir.model_source(config.model.init)
    folders = {side: hf.resolve(init, side) for side in SIDES}
    side_settings = {side: description.read(folders[side], side, config.model) for side in SIDES}
    setup.check_alike(init, *side_settings.values())
    start = "".join(hf.fingerprint(folders[s], side_settings[s]) for s in SIDES)
    mined = setup.mined_folder(config, retriever)
    origin = setup.origin(config, workdir, start, mined)
    folder = retriever.place("checkpoints", origin.checkpoints)
    model = retriever.place("model", origin.model)
    if artifacts.is_fresh(model / "manifest.json", origin.model):
        parallel.on_main(lambda: retriever.point("model", model))
        console.say(f"train: up to date ({model})")
        return
    train = config.train
    setup.check_division(train.batch_size)

    # --- data ----------------------------------------------------------------
    corpus = store.open_corpus(workdir)
    questions = store.open_questions(workdir, "train", mined=mined)
    mixed = order.parts(store.train_sets(workdir), train.upsampling, train.batch_size)
    dev = list(store.open_questions(workdir, "dev", mined=mined)) if config.data.dev else []
    question_tokenizer, passage_tokenizer = (
        tokenizer.load(folders[side], side_settings[side].max_tokens) for side in SIDES
    )

    # --- model ---------------------------------------------------------------
    shape = hf.read_shape(folders["question"])
    frozen = setup.frozen_levels(train, shape.num_hidden_layers)
    setup.check_widths(train.matryoshka_widths, shape.hidden_size)
    encoder = Encoder(
        shape,
        pooling=side_settings["passage"].pooling,
        normalize=side_settings["passage"].normalize,
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
        temperature_rate=train.temperature_rate,
    )
    if train.learn_temperature:
        params[LOG_TEMPERATURE] = np.array(math.log(train.temperature), np.float32)
    state = TrainState(np.zeros((), np.int32), params, jax.device_get(adamw.init(params)))

    # --- where a killed run was ----------------------------------------------
    with contextlib.ExitStack() as stack:
        if parallel.is_main():
            artifacts.write_json(folder / "settings.json", origin.checkpoints)
            retriever.point("checkpoints", folder)
        parallel.barrier("checkpoints claimed")
        checkpoints = checkpoint.Checkpoints(folder)
        stack.callback(checkpoints.close)
        progress = START
        saved = checkpoints.latest(state)
        if saved:
            state, progress = saved
            console.say(f"train: resuming after step {int(state.step)}")
        first_step = int(state.step)
        record = Record(folder, first_step=first_step)
        stack.callback(record.close)

        # --- the mapped step -------------------------------------------------
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
            gather=train.gather,
            distillation=train.distillation,
            distillation_weight=train.distillation_weight,
            teacher_temperature=train.teacher_temperature,
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
            pool_passages=train.validation_passages,
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
            mask_answers=train.mask_answers,
            teacher=train.distillation != "off",
            seed=config.seed,
            first_step=first_step,
            pack_rows=train.pack_rows,
            chunk_size=train.chunk_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            devices=jax.local_device_count(),
            mixed=mixed,
        )
        console.say(
            f"train: {len(questions):,} questions, {train.total_steps:,} steps of"
            f" {train.batch_size} questions and {train.batch_size * (1 + train.hard_negatives)}"
            f" passages on {jax.device_count()} device(s) of {jax.process_count()} process(es),"
            f" {train.spmd}"
        )

        # --- updates ---------------------------------------------------------
        meter = speed.Meter()
        trace = speed.Trace(folder / "profile", after=first_step, steps=train.profile_steps)
        stack.callback(trace.close)

        losses = record.losses
        in_doubt = functools.partial(
            divergence.losses_in_doubt,
            losses,
            candidates=train.batch_size * (1 + train.hard_negatives),
        )

        def lost(step: int, why: str) -> InputError:
            ids = order.question_ids(questions, config.seed, step, train.batch_size, mixed)
            return InputError(
                f"training diverged at step {step} ({why}) on the questions with ids {ids}; the"
                f" checkpoints before it are kept in {folder}; try a lower"
                " train.learning_rate or train.clip_norm"
            )

        def finish(step: int, metrics: dict[str, jax.Array], work: speed.Work) -> str:
            """Reads, checks and records the metrics of update `step` (1-based)."""
            values = {name: float(value) for name, value in spmd.fetch(metrics).items()}
            if not all(map(math.isfinite, values.values())):
                raise lost(step, f"it gave {values}")
            values["learning_rate"] = float(learning_rate(step - 1))
            meter.add(work)
            if step == first_step + 1:  # which is compilation
                meter.restart()
            if step % train.log_every_steps == 0 or step == train.total_steps:
                values |= meter.read()
                record.write(step, values)
                losses.append(values["loss"])
                if in_doubt() == divergence.IN_A_ROW:
                    shown = ", ".join(f"{x:.3g}" for x in losses[-divergence.IN_A_ROW :])
                    raise lost(step, f"the last logged losses are {shown}")
            return f"loss {values['loss']:.4f} accuracy {values['accuracy']:.3f}"

        def judge(step: int, params: dual_encoder.Params) -> dict[str, float]:
            temperature = float(temperature_of(params, train.temperature))
            judged = validate(params, temperature=temperature)
            named = judged._asdict()
            record.write(step, {f"validation_{name}": v for name, v in named.items()})
            console.say(
                f"train: step {step}: validation NLL {judged.nll:.4f}, accuracy"
                f" {judged.accuracy:.3f}, average rank {judged.average_rank:.2f} of {judged.pool}"
            )
            return named

        on_devices = spmd.replicate(state)
        template = checkpoint.hollow(state)
        del state, saved, params  # the devices have it: no second copy on the host
        remaining = train.total_steps - first_step
        waiting: tuple[int, dict[str, jax.Array], speed.Work] | None = None
        step = first_step
        advance = stack.enter_context(console.progress("train", remaining, "steps"))
        asked_to_stop = stack.enter_context(parallel.stop_requests())
        while step < train.total_steps and not progress.exhausted(train.patience):
            step += 1
            trace.before(step)
            batch, work = speed.next_batch(stream, shape, encoder.pooling)
            began_s = time.monotonic()
            on_devices, metrics = update(on_devices, spmd.shard(batch))
            meter.started(batch, time.monotonic() - began_s)
            if waiting:  # read one step late, so that the devices never wait for us
                advance(1, finish(*waiting))
            waiting = (step, metrics, work)

            last, stop = step == train.total_steps, asked_to_stop(step)
            due_judge = dev and (last or _is_due(step, train.validate_every_steps))
            due_save = last or _is_due(step, train.checkpoint_every_steps)
            if not (due_judge or due_save or stop):
                continue
            advance(1, finish(*waiting))
            waiting = None
            if in_doubt() and not last:  # nothing takes the place of a good checkpoint
                if stop:
                    raise Preempted(
                        f"stopped after step {step} without saving it, as its loss is too high; the"
                        " same command goes on from the checkpoint before"
                    )
                continue
            state = spmd.fetch(on_devices)
            progress = progress._replace(validation={})
            if due_judge:
                found = judge(step, state.params)
                progress = progress.validated(step, found, train.best_metric)
            checkpoints.save(state, progress)
            del state
            if stop and not last:
                checkpoints.wait()
                raise Preempted(f"stopped after step {step}; the same command goes on from here")
            meter.restart()
        checkpoints.wait()

        # --- the result ------------------------------------------------------
        state = spmd.fetch(on_devices)
        if train.export == "best" and progress.best_step not in (0, step):
            state, progress = checkpoints.read(progress.best_step, template)
        console.say(f"train: step {int(state.step)} of {step} becomes the model")
        if parallel.is_main():
            export(
                model,
                state.params,
                origin=origin.model,
                shape=shape,
                init=init,
                settings=side_settings,
                facts={"step": int(state.step), "validation": progress.validation},
            )
            retriever.point("model", model)
    parallel.barrier("model exported")


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0
