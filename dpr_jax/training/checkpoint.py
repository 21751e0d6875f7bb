"""Checkpoints: train state and data position through Orbax, and the settings they belong to.

Weights are written as whole host arrays, so a checkpoint restores on any number of devices and processes.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dpr_jax import artifacts
from dpr_jax.errors import InputError
from dpr_jax.training.step import TrainState

KEEP_LATEST = 2


class Checkpoints:
    """The steps in one folder: the last two are kept."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder; makes it where there is none."""
        keep = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(KEEP_LATEST)]
        )
        self._manager = ocp.CheckpointManager(
            folder / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep, enable_async_checkpointing=True
            ),
        )
        self._folder = folder

    def save(self, state: TrainState) -> None:
        """Starts writing `state` (host arrays); returns before it is on disk."""
        step = int(state.step)
        # the data position is the step number; it stands by itself for who reads the checkpoint
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()),
                position=ocp.args.JsonSave({"next_step": step}),
            ),
            force=True,
        )

    def latest(self) -> int | None:
        """The newest complete step, None where there is none."""
        return self._manager.latest_step()

    def restore(self, template: TrainState) -> TrainState:
        """Reads the newest complete step.

        Args:
          template: a state of the shapes and dtypes to be read.

        Raises:
          InputError: the checkpoint is of another model, or damaged.
        """
        step = self.latest()
        path = self._folder / "steps" / str(step)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(template._asdict()),
                    position=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error) else type(error)
            raise InputError(
                f"checkpoint {path} does not load ({reason}); delete that folder to go on from the one before"
            ) from error
        state = TrainState(**restored["state"])
        _check_dtypes(state, template, path)
        if restored["position"]["next_step"] != int(state.step):
            raise InputError(
                f"checkpoint {path} is damaged: its data position is not its step; delete that folder"
            )
        return state

    def wait(self) -> None:
        """Waits until all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self._manager.close()


def _check_dtypes(state: TrainState, template: TrainState, path: Path) -> None:
    """Orbax casts silently where a dtype differs; what it read must be what was asked for."""

    def check(found: Any, wanted: Any) -> None:
        found, wanted = np.asarray(found), np.asarray(wanted)
        if found.dtype != wanted.dtype or found.shape != wanted.shape:
            raise InputError(
                f"checkpoint {path} holds {found.dtype}{found.shape} where the model has {wanted.dtype}{wanted.shape}; "
                "it is of another model"
            )

    jax.tree.map(check, state, template)


def claim(folder: Path, origin: dict[str, Any], *, write: bool) -> None:
    """Ties a checkpoint folder to the settings and inputs that it is trained with.

    Args:
      folder: checkpoints/.
      origin: from artifacts.made_from.
      write: whether this process writes the label of a new folder.

    Raises:
      InputError: the folder was begun with others, with the keys that differ.
    """
    label = folder / "settings.json"
    if not label.exists():
        if write:
            artifacts.write_json(label, origin)
        return
    differing = _differences(artifacts.read_json(label), origin)
    if differing:
        raise InputError(
            f"{folder} was trained with other settings: {'; '.join(differing)}. "
            "Train in another --workdir, or delete that folder to train anew"
        )


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [
            line
            for name in names
            for line in _differences(
                old.get(name), new.get(name), f"{key}.{name}" if key else name
            )
        ]
    shown = key.removeprefix("settings.")
    return [] if old == new else [f"{shown} was {old!r}, is {new!r}"]
