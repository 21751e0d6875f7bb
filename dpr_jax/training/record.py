"""Training metrics on disk: one JSON object a line, and TensorBoard events."""

import json
from pathlib import Path

from dpr_jax import artifacts, parallel


class Record:
    """checkpoints/metrics.jsonl and checkpoints/tensorboard/.

    A resumed run first drops what was written after the step it resumes from, so that every step stands once. Only process 0 writes.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """Opens both for the updates after `first_step`."""
        self._writes = parallel.is_main()
        if not self._writes:
            return
        from tensorboardX import SummaryWriter  # imports PyTorch where there is one

        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if line["step"] <= first_step]
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


def _lines(path: Path) -> list[dict[str, float]]:
    """What was written so far; a last line cut short by a kill is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
