"""Writes a run in the two forms that other tools read: TREC's and DPR's."""

import json
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from dpr_jax import artifacts
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError


class Hit(NamedTuple):
    """One retrieved passage."""

    passage: Passage
    score: float
    has_answer: bool


def falling(scores_K: np.ndarray) -> np.ndarray:
    """Returns the scores as float32 that fall strictly, each changed as little as possible.

    trec_eval and its kin read scores as float32, sort by them, and break ties by passage id, not by
      rank: equal scores would come out
    in another order than the one written.

    Args:
      scores_K: float32, best first.
    """
    falling_K = scores_K.astype(np.float32)
    for i in range(1, len(falling_K)):
        below = np.nextafter(falling_K[i - 1], np.float32(-np.inf))
        falling_K[i] = min(falling_K[i], below)
    return falling_K


class RunFiles:
    """NAME.trec and NAME.json of a run while they grow; a context manager.

    They have `.partial` names until the end. NAME.partial says how many questions are safely in
    them, and with how many bytes: what a killed process wrote after that is cut off, and the next
    one with the same `origin` goes on from there.

    Attributes:
      done: questions that are written.
      reciprocal_ranks: the sum over these of 1 / rank of the first gold passage; kept with them.
    """

    def __init__(self, folder: Path, name: str, origin: dict[str, Any], *, with_json: bool) -> None:
        """Continues a run of the same `origin`, or starts a new one."""
        folder.mkdir(parents=True, exist_ok=True)
        self._name, self._origin = name, origin
        self._paths = [folder / f"{name}.trec", *([folder / f"{name}.json"] if with_json else [])]
        self._partial = [path.with_name(path.name + ".partial") for path in self._paths]
        self._plan = folder / f"{name}.partial"
        self.done, self.reciprocal_ranks, sizes = self._begun()
        self._files = [_cut(path, size) for path, size in zip(self._partial, sizes, strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        if not self._plan.exists():  # nothing there to go on from
            for path in self._partial:
                path.unlink(missing_ok=True)

    def add(self, question: Question, hits: Sequence[Hit]) -> None:
        """Appends one question with its passages, best first.

        Raises:
          InputError: an id holds white space, which a TREC run cannot hold.
        """
        trec, *dpr_json = self._files
        trec.write(_trec(question, hits, self._name).encode())
        for file in dpr_json:
            before = ",\n" if self.done else "[\n"
            file.write((before + _json(question, hits)).encode())
        self.done += 1

    def save(self) -> None:
        """Writes the questions so far to disk, so that a killed run can go on after them."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        sizes = [file.tell() for file in self._files]
        plan = {"made_from": self._origin, "questions": self.done, "bytes": sizes}
        artifacts.write_json(self._plan, plan | {"reciprocal_ranks": self.reciprocal_ranks})

    def finish(self) -> list[Path]:
        """Ends both files and gives them their names; returns their paths."""
        for file in self._files[1:]:
            file.write(b"\n]\n")
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        self._plan.unlink(missing_ok=True)
        for partial, path in zip(self._partial, self._paths, strict=True):
            partial.replace(path)
        return self._paths

    def _begun(self) -> tuple[int, float, list[int]]:
        """Returns the questions, their reciprocal ranks and the bytes of each file so far."""
        if artifacts.is_fresh(self._plan, self._origin):
            plan = artifacts.read_json(self._plan)
            there = [path.exists() and path.stat().st_size for path in self._partial]
            if all(map(operator.ge, there, plan["bytes"])):
                return plan["questions"], plan["reciprocal_ranks"], plan["bytes"]
        return 0, 0.0, [0] * len(self._paths)


def _cut(path: Path, size: int) -> BinaryIO:
    """Opens a file to go on after `size` bytes; what stands there is dropped."""
    file = path.open("r+b" if size else "wb")
    file.truncate(size)
    file.seek(size)
    return file


def _trec(question: Question, hits: Sequence[Hit], tag: str) -> str:
    """Returns lines `question Q0 passage rank score tag`; nine digits give each float32 back
    exactly."""
    lines = []
    for rank, hit in enumerate(hits, start=1):
        for owner, value in (("question", question.id), ("passage", hit.passage.id)):
            if len(value.split()) != 1:
                raise InputError(
                    f"{owner} id {value!r} is empty or holds white space, which a TREC run cannot"
                    " hold; rename it in the data"
                )
        lines.append(f"{question.id} Q0 {hit.passage.id} {rank} {hit.score:.9g} {tag}\n")
    return "".join(lines)


def _json(question: Question, hits: Sequence[Hit]) -> str:
    """Returns one entry of DPR's retrieval output, on one line."""
    entry: dict[str, Any] = {
        "question": question.question,
        "answers": list(question.answers),
        "ctxs": [
            {
                "id": hit.passage.id,
                "title": hit.passage.title,
                "text": hit.passage.text,
                "score": hit.score,
                "has_answer": hit.has_answer,
            }
            for hit in hits
        ],
    }
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
