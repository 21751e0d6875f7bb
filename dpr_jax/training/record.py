"""Training metrics on disk: one JSON object a line, and TensorBoard events."""

import json
from pathlib import Path

import numpy as np

from dpr_jax import artifacts, parallel

LOSSES_KEPT = 64  # of the run that goes on


class Record:
    """checkpoints/metrics.jsonl and checkpoints/tensorboard/.

    A resumed run first drops what was written after the step it resumes from, so that every step
    stands once. Only process 0 writes.

    Attributes:
      losses: the last that were logged up to that step, oldest first; the same on every process.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Opens both for the updates after `first_step`."""
        self._writes = parallel.is_main()
        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if line["step"] <= first_step]
        self.losses = _of_main([line["loss"] for line in kept if "loss" in line])
        if not self._writes:
            return
        from tensorboardX import SummaryWriter  # imports PyTorch where there is one

        with artifacts.atomic_file(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=first_step + 1, flush_secs=30
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds the values of one step (updates done) to both."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both to disk."""
        if not self._writes:
            return
        self._file.close()
        self._board.close()


def _of_main(losses: list[float]) -> list[float]:
    """Returns the last logged step of process 0, which alone is sure to see the file."""
    last = np.full(LOSSES_KEPT, np.nan, np.float32)
    last[: len(losses)] = losses[-LOSSES_KEPT:]
    last = parallel.of_main(last)
    return last[np.isfinite(last)].tolist()


def _lines(path: Path) -> list[dict[str, float]]:
    """Returns the lines written so far, without a last one that a kill cut short."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
