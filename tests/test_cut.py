"""Documents to passages: nothing is lost, nothing is too long, and every layout of documents is
read.
"""

import bz2
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from layouts import write_text

from dpr_jax.config import Config, DataConfig
from dpr_jax.config_rules import validate
from dpr_jax.data import cut, prepare, store
from dpr_jax.data.raw import Passage
from dpr_jax.data.readers import documents
from dpr_jax.errors import InputError
from dpr_jax.workdir import open_workdir

PICTURE = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
WIKI = """<doc id="12" url="https://en.wikipedia.org/wiki?curid=12" title="Rock &amp; Roll">
Rock & Roll

one two three
four five
</doc>
<doc id="25" url="x" title="Empty">
Empty
</doc>
"""


def test_blocks_of_words_are_disjoint_and_complete() -> None:
    words = [str(number) for number in range(250)]
    blocks = cut.by_words(words, length=100)
    assert [len(block) for block in blocks] == [100, 100, 50]
    assert [*blocks[0], *blocks[1], *blocks[2]] == words
    assert cut.by_words(words[:100], length=100) == [words[:100]]


@pytest.mark.parametrize("seed", range(30))
def test_windows_of_tokens(seed: int) -> None:
    """Against the definition: whole words, at most `length` tokens, `stride` apart, and no word
    left out.
    """
    chance = random.Random(seed)
    words = [f"w{number}" for number in range(chance.randint(1, 60))]
    sizes = {word: chance.choice([1, 1, 2, 3, 9, 0]) for word in words}
    length = chance.randint(1, 12)
    stride = chance.randint(1, length)
    windows = cut.by_tokens(
        words,
        sizes_of=lambda asked: [sizes[word] for word in asked],
        length=length,
        stride=stride,
    )
    begins = [words.index(window[0]) for window in windows]
    tokens_before = [sum(sizes[word] for word in words[:b]) for b in begins]
    assert begins == sorted(set(begins)) and windows[-1][-1] == words[-1]
    for begin, window, before in zip(begins, windows, tokens_before, strict=True):
        assert window == words[begin : begin + len(window)]
        assert sum(sizes[word] for word in window) <= length or len(window) == 1
        following = [b for b in begins if b > begin][:1]
        for other in following:
            assert other <= begin + len(window)  # no gap
            if other < begin + len(window):
                assert tokens_before[begins.index(other)] - before >= min(stride, 1)


def test_sizes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def sizes_of(words: Sequence[str]) -> list[int]:
        asked.extend(words)
        return [len(word) for word in words]

    sizes = cut.remembering(sizes_of)
    assert sizes(["a", "bb", "a"]) == [1, 2, 1] and sizes(["bb", "ccc"]) == [2, 3]
    assert asked == ["a", "bb", "ccc"]
    monkeypatch.setattr(cut, "WORDS_REMEMBERED", 2)
    assert sizes(["a"]) == [1] and asked == ["a", "bb", "ccc", "a"]


def test_passages_of_documents() -> None:
    count: Counter[str] = Counter()
    given = [
        ("f:1", Passage("d1", "T", "a b\n c\td")),
        ("f:2", Passage("d2", "", " \n")),
        ("f:3", Passage("d3", "U", "e")),
    ]
    found = cut.into_passages(given, lambda words: [words[:3], words[3:]][:2], count)
    assert [tuple(passage) for _, passage in found][:2] == [
        ("d1:0", "T", "a b c"),
        ("d1:1", "T", "d"),
    ]
    assert count == {"documents": 3, "documents dropped: no text": 1}


def test_layouts_of_documents(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    (folder / "AA").mkdir(parents=True)
    write_text(folder / "AA", "wiki_00", WIKI)
    (folder / "AA" / "wiki_01.bz2").write_bytes(bz2.compress(WIKI.encode()))
    write_text(folder, "my notes.txt", "some\nplain text")
    write_text(folder, "more.jsonl", json.dumps({"id": "j", "title": "J", "text": "x"}))
    write_text(folder, ".hidden", "not read")
    (folder / "AA" / "picture.png").write_bytes(PICTURE)
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7 and no more")
    count: Counter[str] = Counter()
    source = documents.recognised(folder, count)
    assert count == {"documents": 0, documents.NOT_TEXT: 2}
    assert [path.name for path in source.files] == [
        "wiki_00",
        "wiki_01.bz2",
        "more.jsonl",
        "my notes.txt",
    ]
    assert source.layout == "WikiExtractor documents and passages, JSONL and plain text documents"
    found = [document for _, document in source.read(None)]
    assert found[0] == ("12", "Rock & Roll", "\none two three\nfour five\n")
    assert found[1] == ("25", "Empty", "") and found[2:4] == found[:2]
    assert found[4:] == [
        ("j", "J", "x"),
        ("my_notes.txt", "my notes", "some\nplain text"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("wiki_00", WIKI.replace("</doc>", "", 1), ":1: this document is not closed"),
        ("wiki_00", WIKI[:-8], ":7: this document is not closed"),
        ("wiki_00", WIKI + "words\n", ":10: text outside"),
        ("wiki_00", '<doc id="a b" url="" title="x">\n</doc>\n', ":1: document id"),
        ("wiki_00", "<doc url=>\n</doc>\n", ":1: <doc> needs"),
        ("data.bin", "words", ": not a known layout"),
    ],
)
def test_documents_that_are_wrong(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = write_text(tmp_path, name, content)
    with pytest.raises(InputError, match=re.escape(f"{path}{says}"[-40:])):
        list(documents.recognised(path, Counter()).read(None))


def test_a_damaged_bz2_file(tmp_path: Path) -> None:
    path = tmp_path / "wiki_00.bz2"
    for content in (bz2.compress(WIKI.encode())[:-10], b"BZh9 no more of it"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"wiki_00\.bz2: truncated or damaged"):
            list(documents.recognised(path, Counter()).read(None))


def test_prepare_cuts_documents(tmp_path: Path) -> None:
    wiki = write_text(tmp_path, "wiki_00", WIKI.replace("Empty\n<", "six\n<"))
    data = DataConfig(passages=str(wiki), split_words=2)
    workdir = open_workdir(tmp_path / "work")
    prepare.run(Config(data=data), workdir)
    assert [tuple(one) for one in store.open_corpus(workdir)] == [
        ("12:0", "Rock & Roll", "one two"),
        ("12:1", "Rock & Roll", "three four"),
        ("12:2", "Rock & Roll", "five"),
        ("25:0", "Empty", "six"),
    ]
    # the packaged tokenizer: "antidisestablishmentarianism" is one word of several tokens
    write_text(tmp_path, "a.txt", "yes antidisestablishmentarianism yes no yes")
    data = DataConfig(str(tmp_path / "a.txt"), split_tokens=4, split_stride_tokens=2)
    prepare.run(Config(data=data), workdir)
    assert [one.text for one in store.open_corpus(workdir)] == [
        "yes",
        "antidisestablishmentarianism",
        "yes no yes",
    ]


def test_settings_that_contradict(tmp_path: Path) -> None:
    for data, says in (
        (DataConfig(split_words=100, split_tokens=5), "data.split_tokens is 5"),
        (DataConfig(split_tokens=5, split_stride_tokens=6), "data.split_stride_tokens"),
        (DataConfig(split_words=-1), "data.split_words is -1"),
    ):
        with pytest.raises(InputError, match=says):
            validate(Config(data=data))
    data = DataConfig(passages=str(tmp_path / "none"), split_words=100)
    with pytest.raises(InputError, match="must be a file or folder of documents"):
        prepare.run(Config(data=data), open_workdir(tmp_path / "w"))
