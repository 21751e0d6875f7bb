"""The words of a question that are marked in a passage: those that BM25 counts, by language."""

import itertools
from pathlib import Path

import pytest
from prepared import prepare

from dpr_jax.config import Bm25Config
from dpr_jax.data import changes
from dpr_jax.data.raw import Passage
from dpr_jax.index import bm25, bm25_words
from dpr_jax.serving.live import language_of
from dpr_jax.serving.marks import marks, words

GERMAN = [
    Passage("d1", "Rhein", "Der Rhein ist einer der größten Flüsse und fließt durch Basel."),
    Passage("d2", "Zugspitze", "Die Zugspitze ist der höchste Berg von Deutschland und der Alpen."),
]


@pytest.mark.parametrize(
    ("language", "question", "text", "expected"),
    [
        ("english", "the rivers flow?", "The river flows; it flowed.", "river flows flowed"),
        ("german", "Welcher Fluss ist groß?", "Große Flüsse und der Fluß.", "Große Flüsse Fluß"),
        ("french", "les montagnes hautes", "Une haute montagne, la plus haute.", None),
        ("russian", "реки Европы", "Река течёт по Европе.", "Река Европе"),
        ("japanese", "富士山の高さ", "富士山は日本一高い山。", "富士山"),
        ("thai", "แม่น้ำ", "แม่น้ำโขง Mekong", None),
        ("none", "sông Hồng", "Đồng bằng sông Hồng", "sông Hồng"),
        ("english", "café au lait", "Cafe\u0301 and café.", "café"),
    ],
)
def test_marked_are_the_words_that_are_counted(
    language: str, question: str, text: str, expected: str | None
) -> None:
    wanted = words(question, language)
    found = marks(text, wanted, language)
    counted = [*bm25_words.tokenize([text], language)[0]]
    assert bool(found) == bool(wanted & {*counted})
    assert all(begin < end for begin, end in found)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(found))
    if expected is not None:
        assert " ".join(text[begin:end] for begin, end in found) == expected
    # what is not marked holds none of the words
    rest = "".join("|" if any(b <= at < e for b, e in found) else c for at, c in enumerate(text))
    assert wanted.isdisjoint(bm25_words.tokenize([rest], language)[0])


def test_the_language_is_that_of_the_index_or_of_the_passages(tmp_path: Path) -> None:
    workdir = prepare(tmp_path, GERMAN)
    log = changes.read(workdir)
    corpus = changes.open_corpus(workdir, log)
    assert language_of(workdir, corpus, log.fingerprint) == "german"  # found
    bm25.build_if_missing(
        workdir,
        [passage.title_and_text for passage in GERMAN],
        count=2,
        corpus=log.fingerprint,
        **bm25.settings_of(Bm25Config(language="dutch")),
    )
    assert language_of(workdir, corpus, log.fingerprint) == "dutch"  # as it was built
    assert language_of(workdir, corpus, "of another corpus") == "german"
