"""The training stage: one linear function, from prepared data to checkpoints/ and model/."""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpr_jax import artifacts, console, parallel
from dpr_jax.config import Config, TrainConfig
from dpr_jax.data import store
from dpr_jax.errors import InputError, Preempted
from dpr_jax.model import description, dual_encoder, hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder
from dpr_jax.training import (
    batches,
    checkpoint,
    chunking,
    divergence,
    optimizer,
    order,
    setup,
    speed,
    validation,
)
from dpr_jax.training.export import SIDES, Towers, export, write_towers
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
        if checkpoint.finished(folder):  # a run killed after its export still has its states
            parallel.on_main(lambda: checkpoint.drop_steps(folder))
        console.say(f"train: up to date ({model})")
        return
    train = config.train
    if finished := checkpoint.finished(folder):
        parallel.on_main(lambda: _export(finished, folder, model, origin.model, retriever, train))
        parallel.on_main(lambda: checkpoint.drop_steps(folder))
        return
    setup.check_division(train.batch_size)

    # --- data ----------------------------------------------------------------
    corpus = store.open_corpus(workdir)
    questions = store.open_questions(workdir, "train", mined=mined)
    total_steps, warmup_steps = setup.schedule(train, len(questions))
    mixed = order.parts(store.train_sets(workdir), train.upsampling, train.batch_size)
    dev = list(store.open_questions(workdir, "dev", mined=mined)) if config.data.dev else []
    question_tokenizer, passage_tokenizer = (
        tokenizer.load(folders[side], side_settings[side].max_tokens) for side in SIDES
    )

    temperature = train.temperature or side_settings["passage"].temperature

    # --- model ---------------------------------------------------------------
    shape = hf.read_shape(folders["question"])
    frozen = setup.frozen_levels(train, shape.num_hidden_layers)
    setup.check_widths(train.matryoshka_widths, shape.hidden_size)
    for side, tokens in zip(SIDES, (question_tokenizer, passage_tokenizer), strict=True):
        hf.check_tokens(folders[side], shape, tokens.vocabulary)
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
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        schedule=train.schedule,
        dpr_parity=train.dpr_parity,
    )
    adamw = optimizer.make(
        learning_rate,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
        dpr_parity=train.dpr_parity,
        layers=shape.num_hidden_layers,
        layer_decay=train.layer_decay,
        frozen=frozen,
        temperature_rate=train.temperature_rate,
    )
    if train.learn_temperature:
        params[LOG_TEMPERATURE] = np.array(math.log(temperature), np.float32)
    state = TrainState(np.zeros((), np.int32), params, jax.device_get(adamw.init(params)))

    # --- where a killed run was ----------------------------------------------
    with contextlib.ExitStack() as stack:
        checkpoints = checkpoint.Checkpoints(folder)
        stack.callback(checkpoints.close)
        progress = START
        saved = checkpoints.latest(state)
        if saved:
            state, progress = saved
            console.say(f"train: resuming after step {int(state.step)}")
        first_step = int(state.step)

        # --- batches ---------------------------------------------------------
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
        candidates = train.batch_size * (1 + train.hard_negatives)
        console.say(
            f"train: {len(questions):,} questions, {total_steps:,} steps of {train.batch_size}"
            f" questions and {candidates} passages on {jax.device_count()} device(s) of"
            f" {jax.process_count()} process(es), {train.spmd}"
        )

        # --- the mapped step -------------------------------------------------
        spmd = parallel.spmd(train.spmd)
        settings = StepSettings.of(train, encoder, adamw, seed=config.seed, temperature=temperature)
        on_devices = spmd.replicate(state)
        template = checkpoint.hollow(state)
        del state, saved, params  # the devices have it: no second copy on the host

        def mapped(chunk_size: int | None) -> Callable[..., Any]:
            step_settings = settings._replace(chunk_size=chunk_size)
            step = functools.partial(train_step, settings=step_settings, axis=parallel.AXIS)
            return spmd.map(step, donate=True)

        update = mapped(train.chunk_size)
        if train.chunk_size is None and train.pack_rows is None and first_step < total_steps:
            first_batch = next(stream)
            stream = itertools.chain([first_batch], stream)
            sharded = spmd.shard(first_batch)
            chosen = chunking.largest_that_fits(
                lambda chunk_size: mapped(chunk_size).lower(on_devices, sharded).compile(),
                texts=candidates // jax.device_count(),
                stored=folder / chunking.FILE,
            )
            del sharded
            # of several processes pmap's compiled program takes no process's own part of a batch
            update = mapped(chosen.chunk_size) if jax.process_count() > 1 else chosen.update

        # --- all input is sound: the folder is this run's --------------------
        if parallel.is_main():
            artifacts.write_json(folder / "settings.json", origin.checkpoints)
            retriever.point("checkpoints", folder)
        parallel.barrier("checkpoints claimed")
        record = Record(folder, first_step=first_step)
        stack.callback(record.close)
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

        # --- updates ---------------------------------------------------------
        meter = speed.Meter()
        trace = speed.Trace(folder / "profile", after=first_step, steps=train.profile_steps)
        stack.callback(trace.close)

        losses = record.losses
        in_doubt = functools.partial(
            divergence.losses_in_doubt,
            losses,
            candidates=candidates,
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
            if step % train.log_every_steps == 0 or step == total_steps:
                values |= meter.read()
                record.write(step, values)
                losses.append(values["loss"])
                if in_doubt() == divergence.IN_A_ROW:
                    shown = ", ".join(f"{x:.3g}" for x in losses[-divergence.IN_A_ROW :])
                    raise lost(step, f"the last logged losses are {shown}")
            return f"loss {values['loss']:.4f} accuracy {values['accuracy']:.3f}"

        def judge(step: int, params: dual_encoder.Params) -> dict[str, float]:
            judged = validate(params, temperature=float(temperature_of(params, temperature)))
            named = judged._asdict()
            record.write(step, {f"validation_{name}": v for name, v in named.items()})
            console.say(
                f"train: step {step}: validation NLL {judged.nll:.4f}, accuracy"
                f" {judged.accuracy:.3f}, average rank {judged.average_rank:.2f} of {judged.pool}"
            )
            return named

        remaining = total_steps - first_step
        waiting: tuple[int, dict[str, jax.Array], speed.Work] | None = None
        step = first_step
        advance = stack.enter_context(console.progress("train", remaining, "steps"))
        asked_to_stop = stack.enter_context(parallel.stop_requests())
        while step < total_steps and not progress.exhausted(train.patience):
            step += 1
            trace.before(step)
            batch, work = speed.next_batch(stream, shape, encoder.pooling)
            began_s = time.monotonic()
            on_devices, metrics = update(on_devices, spmd.shard(batch))
            meter.started(batch, time.monotonic() - began_s)
            if waiting:  # read one step late, so that the devices never wait for us
                advance(1, finish(*waiting))
            waiting = (step, metrics, work)

            last, stop = step == total_steps, asked_to_stop(step)
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

        # --- the result: weights of the last and the best step, without AdamW's state ---
        state = spmd.fetch(on_devices)
        of_steps = {step: (state, progress)}
        if progress.best_step not in (0, step):
            of_steps[progress.best_step] = checkpoints.read(progress.best_step, template)
        towers = Towers(
            shape, folders, side_settings, float(temperature_of(state.params, temperature))
        )
        if parallel.is_main():
            for number, (of_step, known) in of_steps.items():
                facts = {"step": number, "validation": known.validation}
                out = folder / f"weights-{number}"
                write_towers(out, of_step.params, towers, origin.checkpoints, **facts)
            finished = {"last": step, "best": progress.best_step or step}
            artifacts.write_json(folder / checkpoint.FINISHED, finished)
            _export(finished, folder, model, origin.model, retriever, train)
    parallel.barrier("model exported")
    if parallel.is_main():
        checkpoint.drop_steps(folder)


def _export(
    finished: dict[str, int],
    folder: Path,
    model: Path,
    origin: dict[str, Any],
    retriever: RetrieverDir,
    train: TrainConfig,
) -> None:
    """Makes the model of a finished run out of its best or last weights."""
    export(folder / f"weights-{finished[train.export]}", model, origin)
    retriever.point("checkpoints", folder)
    retriever.point("model", model)


def _is_due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps (None: never) happens after this one."""
    return every is not None and step % every == 0
