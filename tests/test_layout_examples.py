"""The examples of docs/data.md are read as they say, and the page has them all."""

from pathlib import Path

import pytest
from layout_examples import EXAMPLES, PAGE, Example, page

from dpr_jax.data.readers import detect, judgements
from dpr_jax.data.readers.columns import Chosen


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: f"{one.kind}-{one.file}")
def test_examples_are_read_as_meant(tmp_path: Path, example: Example) -> None:
    path = example.write(tmp_path)
    if example.kind == "qrels":
        found = judgements.read_qrels(path).positives
        grades = {q: {p: one.grade for p, one in judged.items()} for q, judged in found.items()}
        assert grades == example.wanted
        return
    chosen = Chosen(example.kind, example.columns)
    first = next(iter(getattr(detect, example.kind)(path, chosen).read(None)))
    if example.kind == "passages":
        assert tuple(first[1]) == example.wanted
        return
    texts = {passage.id: passage.text for passage in first.passages}
    positives, negatives = (
        tuple(texts.get(id_, id_) for id_ in ids) for ids in (first.positives, first.hard_negatives)
    )
    assert (first.id, first.question, first.answers, positives, negatives) == example.wanted


def test_the_page_has_the_examples() -> None:
    """`python tests/layout_examples.py` writes them into the page."""
    assert page() == PAGE.read_text(encoding="utf-8")
