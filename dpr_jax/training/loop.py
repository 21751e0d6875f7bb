"""The training stage: one linear function, from prepared data to checkpoints/ and model/."""

import contextlib
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpr_jax import artifacts, console, parallel
from dpr_jax.config import Config
from dpr_jax.data import store
from dpr_jax.errors import InputError, Preempted
from dpr_jax.model import description, dual_encoder, hf, tokenizer
from dpr_jax.model.pace import Pace, clock, in_words
from dpr_jax.training import (
    batches,
    checkpoint,
    chunking,
    divergence,
    order,
    program,
    setup,
    validation,
)
from dpr_jax.training.export import SIDES, Towers, export, write_towers
from dpr_jax.training.progress import START
from dpr_jax.training.record import Record
from dpr_jax.training.step import Batch, temperature_of
from dpr_jax.training.step_trace import Trace
from dpr_jax.workdir import RetrieverDir

FORECAST_AFTER = 3  # updates, of which the first warms up


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
    start = "".join(hf.fingerprint(folders[s], side_settings[s]) for s in SIDES)
    mined = setup.mined_folder(config, retriever)
    origin = setup.origin(config, workdir, start, mined)
    inputs = origin["inputs"]
    parallel.agree({name: inputs.get(name, "") for name in ("data", "mined", "init")})
    folder = retriever.place("checkpoints", origin)
    model = retriever.place("model", origin)
    checkpoint.share(folder, retriever.remote)
    if artifacts.is_fresh(model / "manifest.json", origin):
        parallel.on_main(lambda: retriever.point("model", model))
        if checkpoint.finished(folder):  # a run killed after its export still has its states
            parallel.on_main(lambda: checkpoint.drop_steps(folder))
        console.say(f"train: up to date ({model})")
        return
    train = config.train
    if finished := checkpoint.finished(folder):
        parallel.on_main(lambda: _export(finished, folder, model, origin, retriever))
        parallel.on_main(lambda: checkpoint.drop_steps(folder))
        return
    setup.check_division(train.batch_size)

    # --- data ----------------------------------------------------------------
    corpus = store.open_corpus(workdir)
    questions = store.open_questions(workdir, "train", mined=mined)
    schedule = setup.schedule(train, len(questions))
    total_steps = schedule.total_steps
    mixed = order.parts(store.train_sets(workdir), train.upsampling, train.batch_size)
    dev = list(store.open_questions(workdir, "dev", mined=mined)) if config.data.dev else []
    question_tokenizer, passage_tokenizer = (
        tokenizer.load(folders[side], side_settings[side].max_tokens, side_settings[side].prompt)
        for side in SIDES
    )
    texts = (corpus, question_tokenizer, passage_tokenizer)
    train_tokenizer = question_tokenizer
    if config.model.max_question_tokens is None:  # batches are padded to the longest question
        longest = setup.longest_question(questions, question_tokenizer)
        train_tokenizer = tokenizer.load(
            folders["question"], longest, side_settings["question"].prompt
        )
    batch_settings = batches.BatchSettings.of(train, seed=config.seed, mixed=mixed)
    batches.check(questions, batch_settings)
    passages = train.batch_size * (1 + train.hard_negatives)  # of a batch

    # --- model ---------------------------------------------------------------
    shapes = {side: hf.read_shape(folders[side]) for side in SIDES}
    spmd = parallel.spmd(train.spmd)
    planned = program.build(config, shapes, side_settings, schedule, spmd)
    encoder, temperature = planned.encoder, planned.settings.temperature
    for side, tokens in zip(SIDES, (question_tokenizer, passage_tokenizer), strict=True):
        hf.check_tokens(folders[side], shapes[side], tokens.vocabulary)
    params = dual_encoder.dual_params(
        hf.read_params(folders["question"], shapes["question"], side_settings["question"]),
        hf.read_params(folders["passage"], shapes["passage"], side_settings["passage"]),
        shared=config.model.shared_towers,
    )
    state = jax.device_get(planned.initial_state(params))

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

        # --- the mapped step, and its batches --------------------------------
        console.say(
            f"train: {len(questions):,} questions, {total_steps:,} updates on"
            f" {jax.device_count()} device(s) of {jax.process_count()} process(es), {spmd.kind}"
        )
        on_devices = planned.place(state)
        template = checkpoint.hollow(state)
        del state, saved, params  # the devices have it: no second copy on the host

        def compiled(chunk_size: int | None) -> chunking.Candidate:
            mapped = planned.update(chunk_size)
            stream = batches.stream(
                questions,
                corpus,
                train_tokenizer,
                passage_tokenizer,
                batch_settings._replace(chunk_size=chunk_size),
                first_step=first_step,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                devices=jax.local_device_count(),
            )
            first = next(stream)
            executable = mapped.lower(on_devices, spmd.shard(first)).compile()
            rows = len(jax.tree.leaves(first.passages)[0]) // jax.local_device_count()
            stream = itertools.chain([first], stream)
            return chunking.Candidate(chunk_size, mapped, executable, stream, rows)

        if first_step < total_steps:
            chosen = chunking.choose(
                compiled,
                asked=train.chunk_size,
                questions=train.batch_size,
                passages=passages,
                stored=folder / chunking.FILE,
            )

        # --- all input is sound: the folder is this run's --------------------
        if parallel.is_main():
            artifacts.write_json(folder / "settings.json", origin)
            retriever.point("checkpoints", folder)
        parallel.barrier("checkpoints claimed")
        if retriever.remote and parallel.is_main():
            stack.enter_context(retriever.remote.kept_up(folder))
        record = Record(folder, first_step=first_step)
        stack.callback(record.close)

        # --- updates ---------------------------------------------------------
        passage_tower = encoder.passage
        pace = Pace(
            passage_tower.shape, passage_tower.pooling, passes=3, processes=jax.process_count()
        )
        trace = Trace(folder / "profile", after=first_step, steps=train.profile_steps)
        stack.callback(trace.close)
        first_read_s = clock()
        losses = record.losses
        in_doubt = functools.partial(divergence.losses_in_doubt, losses, candidates=passages)

        def lost(step: int, why: str) -> InputError:
            ids = order.question_ids(questions, config.seed, step, train.batch_size, mixed)
            return divergence.error(step, why, ids, folder)

        def finish(step: int, metrics: dict[str, jax.Array], batch: Batch) -> str:
            """Reads, checks and records the metrics of update `step` (1-based)."""
            nonlocal first_read_s
            values = {name: float(value) for name, value in spmd.fetch(metrics).items()}
            if not all(map(math.isfinite, values.values())):
                raise lost(step, f"it gave {values}")
            values["learning_rate"] = float(planned.learning_rate(step - 1))
            tokens = (batch.question, batch.passages)
            lengths = np.concatenate([side.lengths_B for side in tokens])
            pace.add(lengths, sum(side.slots for side in tokens), examples=len(batch.weight_B))
            if step == first_step + 1:  # the first warms up
                pace.restart()
                first_read_s = clock()
            if step == first_step + FORECAST_AFTER:
                update_s = (clock() - first_read_s) / (FORECAST_AFTER - 1)
                in_all = in_words(update_s * (total_steps - first_step))
                scope = "from here on" if first_step else "in all"
                console.say(f"train: {in_words(update_s)} per update, about {in_all} {scope}")
            if step % train.log_every_steps == 0 or step == total_steps:
                values |= pace.rates()
                pace.restart()
                record.write(step, values)
                losses.append(values["loss"])
                if in_doubt() == divergence.IN_A_ROW:
                    shown = ", ".join(f"{x:.3g}" for x in losses[-divergence.IN_A_ROW :])
                    raise lost(step, f"the last logged losses are {shown}")
            return f"loss {values['loss']:.4f} accuracy {values['accuracy']:.3f}"

        def judge(step: int, params: dual_encoder.Params) -> dict[str, float]:
            judged = validation.validate(
                encoder.without_dropout(),
                params,
                dev,
                *texts,
                validation.ValidationSettings.of(train),
                temperature=float(temperature_of(params, temperature)),
            )
            named = judged._asdict()
            record.write(step, {f"validation_{name}": v for name, v in named.items()})
            console.say(
                f"train: step {step}: validation NLL {judged.nll:.4f}, accuracy"
                f" {judged.accuracy:.3f}, average rank {judged.average_rank:.2f} of {judged.pool}"
            )
            return named

        waiting: tuple[int, dict[str, jax.Array], Batch] | None = None
        step = first_step
        stream = pace.waiting(chosen.batches) if step < total_steps else iter(())
        advance = stack.enter_context(
            console.progress("train", total_steps - first_step, "steps", clock=clock)
        )
        asked_to_stop = stack.enter_context(parallel.stop_requests())
        while step < total_steps and not progress.exhausted(train.patience):
            step += 1
            trace.before(step)
            batch = next(stream)
            on_devices, metrics = chosen.update(on_devices, spmd.shard(batch))
            if waiting:  # read one step late, so that the devices never wait for us
                advance(1, finish(*waiting))
            waiting = (step, metrics, batch)

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
            state = planned.fetch(on_devices)
            progress = progress._replace(validation={})
            if due_judge:
                found = judge(step, state.params)
                progress = progress.validated(step, found, train.best_metric)
            checkpoints.save(state, progress)
            del state
            if stop and not last:
                checkpoints.wait()
                raise Preempted(f"stopped after step {step}; the same command goes on from here")
            pace.restart()
        checkpoints.wait()

        # --- the result: weights of the last and the best step, without AdamW's state ---
        state = planned.fetch(on_devices)
        of_steps = {step: (state, progress)}
        if progress.best_step not in (0, step):
            of_steps[progress.best_step] = checkpoints.read(progress.best_step, template)
        towers = Towers(
            shapes, folders, side_settings, float(temperature_of(state.params, temperature))
        )
        if parallel.is_main():
            for number, (of_step, known) in of_steps.items():
                facts = {"step": number, "validation": known.validation}
                out = folder / f"weights-{number}"
                write_towers(out, of_step.params, towers, origin, **facts)
            finished = {"last": step, "best": progress.best_step or step}
            artifacts.write_json(folder / checkpoint.FINISHED, finished)
            _export(finished, folder, model, origin, retriever)
    parallel.barrier("model exported")
    if parallel.is_main():
        checkpoint.drop_steps(folder)


def _export(
    finished: dict[str, int],
    folder: Path,
    model: Path,
    origin: dict[str, Any],
    retriever: RetrieverDir,
) -> None:
    """Makes the model of a finished run out of its best weights."""
    export(folder / f"weights-{finished['best']}", model, origin)
    retriever.point("checkpoints", folder)
    retriever.point("model", model)


def _is_due(step: int, every: int | None) -> bool:
    """Returns whether something that happens every so many steps (None: never) happens after this
    one."""
    return every is not None and step % every == 0
