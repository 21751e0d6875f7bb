"""Checkpoints: train state and data position through Orbax, and what a finished run keeps.

Weights are written as whole host arrays, so a checkpoint restores on any number of devices and
processes.
"""

import concurrent.futures
import functools
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from dpr_jax import artifacts, console, parallel
from dpr_jax.errors import InputError
from dpr_jax.remote import Remote
from dpr_jax.training.progress import Progress
from dpr_jax.training.step import TrainState

KEEP_LATEST = 2
FINISHED = "finished.json"


class _LatestAndBest(PreservationPolicy):
    """The last steps and one more. Orbax deletes what is not kept once the next step is on disk."""

    best_step = 0

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        latest = {one.step for one in checkpoints[-KEEP_LATEST:]}
        return [one.step in latest | {self.best_step} for one in checkpoints]


class Checkpoints:
    """The steps in one folder: the last two are kept, and the best by validation."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder, which the first `save` makes where there is none."""
        self._keep = _LatestAndBest()
        self._folder = folder

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._folder / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._keep, enable_async_checkpointing=True
            ),
        )

    def save(self, state: TrainState, progress: Progress) -> None:
        """Starts writing `state` (host arrays); returns before it is on disk."""
        step = int(state.step)
        self._keep.best_step = progress.best_step
        position = {
            "next_step": step,  # the position in the data
            "progress": progress._asdict(),
            "checksum": _checksum(state),
            "versions": artifacts.versions(),
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()),
                position=ocp.args.JsonSave(position),
            ),
            force=True,
        )

    def latest(self, template: TrainState) -> tuple[TrainState, Progress] | None:
        """Reads the newest step that is sound; None where there is no step at all.

        Newer ones that are damaged are set aside, and that is said.

        Args:
          template: a state of the shapes and dtypes to be read.

        Raises:
          InputError: there are steps, and none can be read.
        """
        if not (self._folder / "steps").exists():
            return None
        refused: dict[int, InputError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self.read(step, template)
            except InputError as error:
                refused[step] = error
                continue
            for damaged, error in refused.items():
                console.say(
                    f"train: {error}; it is now {self._set_aside(damaged)}, going on from step"
                    f" {step}"
                )
            return found
        for error in refused.values():
            raise InputError(
                f"{error}, and no earlier one can be read; delete {self._folder} to train anew"
            )
        return None

    def read(self, step: int, template: TrainState) -> tuple[TrainState, Progress]:
        """Reads one step.

        Args:
          step: updates done.
          template: a state of the shapes and dtypes to be read.

        Raises:
          InputError: it is missing, damaged, or of another model.
        """
        path = self._path(step)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(template._asdict()),
                    position=ocp.args.JsonRestore(),
                ),
            )
            state, position = TrainState(**restored["state"]), restored["position"]
            progress = Progress(**position["progress"])
            # Orbax finds missing and cut files, but not a changed byte among the weights
            sound = position["next_step"] == int(state.step) == step and position[
                "checksum"
            ] == _checksum(state)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"checkpoint {path} cannot be read ({reason[:200]})") from error
        _check_dtypes(state, template, path)
        if not sound:
            raise InputError(f"checkpoint {path} is damaged: its content is not what was written")
        return state, progress

    def wait(self) -> None:
        """Waits until all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved, and closes the folder."""
        if "_manager" in vars(self):
            self._manager.close()

    def _path(self, step: int) -> Path:
        return self._folder / "steps" / str(step)

    def _set_aside(self, step: int) -> Path:
        """Moves a step out of the way of the one that will be written in its place."""
        target = self._folder / f"damaged-{step}"
        parallel.barrier(f"checkpoint {step} refused")
        if parallel.is_main():
            shutil.rmtree(target, ignore_errors=True)
            self._path(step).rename(target)
        parallel.barrier(f"checkpoint {step} set aside")
        self._manager.reload()
        return target


def share(folder: Path, remote: Remote | None) -> None:
    """Gives all processes the checkpoints that there are, where they have no disk in common."""
    if remote is None:
        return
    if parallel.is_main():
        remote.pull_parts(folder)
        remote.push_parts(folder)
    parallel.barrier(f"checkpoints of {folder.name} sent")
    if not parallel.is_main():
        shutil.rmtree(folder / "steps", ignore_errors=True)  # which may be of another run
        remote.pull_parts(folder)


def hollow(state: TrainState) -> TrainState:
    """Makes arrays of the same shapes and dtypes without memory: a template to restore into."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), state)


def _checksum(state: TrainState) -> int:
    """Computes CRC-32 over all arrays, each in its own thread: about 0.3 s per GB and core."""
    leaves = [np.ascontiguousarray(leaf).reshape(-1) for leaf in jax.tree.leaves(state)]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        sums = list(threads.map(zlib.crc32, leaves))
    return zlib.crc32(np.array(sums, np.uint32))


def _check_dtypes(state: TrainState, template: TrainState, path: Path) -> None:
    """Refuses arrays of another dtype than asked for; Orbax casts silently."""

    def check(found: Any, wanted: Any) -> None:
        found, wanted = np.asarray(found), np.asarray(wanted)
        if found.dtype != wanted.dtype or found.shape != wanted.shape:
            raise InputError(
                f"checkpoint {path} holds {found.dtype}{found.shape} where the model has"
                f" {wanted.dtype}{wanted.shape}: it is of another model"
            )

    jax.tree.map(check, state, template)


def finished(folder: Path) -> dict[str, Any] | None:
    """Returns what a finished run says: `last` and `best` step, and `validation` by step.

    None where the run has not finished.
    """
    file = folder / FINISHED
    return artifacts.read_json(file) if file.exists() else None


def drop_steps(folder: Path) -> None:
    """Deletes the states of a finished run, whose weights are kept beside them."""
    shutil.rmtree(folder / "steps", ignore_errors=True)
