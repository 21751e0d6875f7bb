"""BM25 against its formula in NumPy."""

import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from dpr_jax import artifacts
from dpr_jax.config import Config
from dpr_jax.data import store
from dpr_jax.errors import InputError
from dpr_jax.index import bm25, bm25_build, bm25_words
from dpr_jax.workdir import WorkDir, open_workdir

TEXTS = [
    "Cats The cat sat on the mat; another cat looked on.",
    "Dogs Dogs and cats: a dog is no cat.",
    "Birds A bird in the hand is worth two in the bush",
    "",
    "Cats The cat sat on the mat; another cat looked on.",
    "Trains Trains stop where the railway ends",
]


def build_folder(root: Path, texts: Iterable[str], k1: float = 0.9, b: float = 0.4) -> Path:
    return bm25.build_if_missing(
        open_workdir(root / "work"), texts, count=0, corpus="a corpus", k1=k1, b=b
    )


def build(root: Path, texts: Iterable[str], k1: float = 0.9, b: float = 0.4) -> bm25.Bm25:
    return bm25.load(build_folder(root, texts, k1, b))


def words(text: str) -> list[str]:
    stem = Stemmer.Stemmer("english").stemWord
    found = re.findall(r"\b\w\w+\b", text.lower())
    return [stem(word) for word in found if word not in STOPWORDS_EN]


def formula(texts: list[str], question: str, k1: float, b: float) -> np.ndarray:
    """The score of every text, in float64."""
    bags = [Counter(words(text)) for text in texts]
    lengths_N = np.array([bag.total() for bag in bags])
    scores_N = np.zeros(len(texts))
    for word in words(question):
        counts_N = np.array([bag[word] for bag in bags])
        holding = (counts_N > 0).sum()
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        saturation_N = counts_N + k1 * (1 - b + b * lengths_N / lengths_N.mean())
        scores_N += idf * counts_N / saturation_N
    return scores_N


def expected_hits(scores_N: np.ndarray, k: int) -> list[int]:
    """By score, then by row; only what shares a word with the question."""
    order = sorted(range(len(scores_N)), key=lambda row: (-scores_N[row], row))
    rows = [row for row in order if scores_N[row] > 0][:k]
    return rows + [-1] * (k - len(rows))


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75), (2.0, 0.0)])
def test_scores_are_the_formula(k1: float, b: float, tmp_path: Path) -> None:
    questions = [
        "which cat sat?",
        "cats cats dog",
        "the railway",
        "the of",
        "zebra",
        "",
    ]
    index = build(tmp_path, TEXTS, k1, b)
    scores_QK, rows_QK = index.search(questions, 4)
    assert scores_QK.dtype == np.float32 and rows_QK.dtype == np.int64
    for question, scores_K, rows_K in zip(questions, scores_QK, rows_QK, strict=True):
        scores_N = formula(TEXTS, question, k1, b)
        assert rows_K.tolist() == expected_hits(scores_N, 4)
        wanted_K = np.where(rows_K >= 0, scores_N[rows_K], -np.inf)
        np.testing.assert_allclose(scores_K, wanted_K, rtol=1e-5)


def test_equal_scores_go_by_row_also_at_the_cut(tmp_path: Path) -> None:
    index = build(tmp_path, ["cat"] * 50 + ["cat cat dog"] + ["bird"] * 50)
    for k in (1, 5, 49):
        _, rows_QK = index.search(["cat"], k)
        tied = [row for row in rows_QK[0].tolist() if row != 50]
        assert tied == sorted(tied) == list(range(len(tied)))


@pytest.mark.parametrize("count", [0, 3, 511, 5_000, 5_120])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_the_best_of_many_scores(count: int, share: float) -> None:
    """Also where blocks are looked at first, and many scores are equal."""
    chance = np.random.default_rng(count)
    scores_N = chance.integers(1, 40, count).astype(np.float32)
    scores_N[chance.random(count) >= share] = 0
    order = np.argsort(-scores_N, kind="stable")
    for k in (1, 5, 10, 700):
        wanted = [row for row in order[:k] if scores_N[row] > 0]
        assert bm25._best(scores_N, k).tolist() == wanted


def test_real_rows_are_the_formula(
    nq_small_workdir: tuple[Config, WorkDir],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bm25_build, "BLOCK_PASSAGES", 100)  # several, the last short
    _, workdir = nq_small_workdir
    texts = [one.title_and_text for one in store.open_corpus(workdir)]
    questions = [one.question for one in store.open_questions(workdir, "dev")]
    index = build(tmp_path, iter(texts))
    scores_QK, _ = index.search(questions, 20)
    for question, scores_K in zip(questions, scores_QK, strict=True):
        best_N = np.sort(formula(texts, question, 0.9, 0.4))[::-1]
        # float32 sums of a dozen terms
        np.testing.assert_allclose(scores_K, best_N[:20], rtol=1e-5)


def test_bm25s_opens_the_index_and_would_have_built_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bm25s

    monkeypatch.setattr(bm25_build, "BLOCK_PASSAGES", 4)
    folder = build_folder(tmp_path, TEXTS, 1.2, 0.75)
    ours = bm25s.BM25.load(folder, show_progress=False)
    theirs = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    theirs.index(bm25_words.english(TEXTS, return_ids=True), show_progress=False)
    for word, number in ours.vocab_dict.items():
        np.testing.assert_allclose(
            ours.get_scores_from_ids([number]),
            theirs.get_scores_from_ids([theirs.vocab_dict[word]]),
            rtol=1e-6,
        )
    assert ours.vocab_dict.keys() | {""} == theirs.vocab_dict.keys()


def test_the_same_texts_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from dpr_jax.index import bm25_build\n"
        f"bm25_build.build(Path(sys.argv[1]), {TEXTS!r}, k1=0.9, b=0.4)"
    )
    (tmp_path / "there").mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # sets have another order
    command = [sys.executable, "-c", program, str(tmp_path / "there")]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], check=True)
    (tmp_path / "here").mkdir()
    bm25_build.build(tmp_path / "here", TEXTS, k1=0.9, b=0.4)
    here, there = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("here", "there")
    )
    assert here == there and len(here) == 5
    for path in (tmp_path / "here").glob("*.npy"):
        np.load(path, allow_pickle=False)


class _Killed(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


def test_an_index_is_built_once_for_a_corpus_and_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    workdir = open_workdir(tmp_path / "work")

    def folder(k1: float = 0.9, corpus: str = "one") -> Path:
        texts = (read.append(text) or text for text in TEXTS)
        return bm25.build_if_missing(workdir, texts, count=len(TEXTS), corpus=corpus, k1=k1, b=0.4)

    def ask(folder: Path) -> np.ndarray:
        return bm25.load(folder).search(["cat on a mat"], 9)[0]

    one = folder()
    first = ask(one)
    read.clear()
    assert folder() == one == bm25.find(workdir, "one", k1=0.9, b=0.4) and not read
    assert not np.array_equal(ask(folder(k1=2.0)), first) and read == TEXTS
    read.clear()
    assert folder(k1=2.0, corpus="two") != folder(k1=2.0) and read == TEXTS
    np.testing.assert_array_equal(ask(one), first)

    # killed while it is built: there is no index
    def killed(*_: object, **__: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_manifest", killed)
        with pytest.raises(_Killed):
            folder(k1=3.0)
    with pytest.raises(InputError, match="does not exist"):
        bm25.load(bm25.find(workdir, "one", k1=3.0, b=0.4))
    assert ask(folder(k1=3.0)).shape == (1, 9)

    scores = one / bm25_build.SCORES
    scores.write_bytes(scores.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="data.csc.index.npy is damaged"):
        bm25.load(one)


def test_no_questions(tmp_path: Path) -> None:
    index = build(tmp_path, TEXTS)
    scores_QK, rows_QK = index.search([], 3)
    assert scores_QK.shape == rows_QK.shape == (0, 3)


def test_nothing_to_index_and_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no passage holds a word"):
        build(tmp_path / "a", ["the of", ""])
    with pytest.raises(InputError, match="no passage holds a word"):
        build(tmp_path / "b", [])
    with pytest.raises(InputError, match="manifest.json does not exist"):
        bm25.load(tmp_path)


# --- languages

SENTENCES = {
    "english": "The river flows through the city, and it is the longest of the country.",
    "german": "Der Fluss fließt durch die Stadt und ist der längste des Landes.",
    "french": "Le fleuve traverse la ville et il est le plus long du pays.",
    "spanish": "El río pasa por la ciudad y es el más largo del país.",
    "italian": "Il fiume attraversa la città ed è il più lungo del paese.",
    "dutch": "De rivier stroomt door de stad en is het langste van het land.",
    "turkish": "Bu nehir ülke için çok önemli bir su kaynağı ve şehir olarak bilinir.",
    "russian": "Река течёт через город и это самая длинная река в стране.",
    "arabic": "يمر النهر عبر المدينة وهو أطول نهر في البلاد من الشمال إلى الجنوب",
    "hindi": "नदी शहर के बीच में बहती है और यह देश की सबसे लंबी नदी है।",
    "greek": "Ο ποταμός διασχίζει την πόλη και είναι ο μακρύτερος της χώρας.",
    "chinese": "这条河流经城市，是全国最长的河流。",
    "japanese": "この川は都市を流れ、国で一番長い川です。",
    "korean": "이 강은 도시를 지나 흐르며 나라에서 가장 길다.",
    "thai": "แม่น้ำสายนี้ไหลผ่านเมืองและยาวที่สุดในประเทศ",
    "lao": "ແມ່ນ້ຳນີ້ໄຫຼຜ່ານເມືອງ",
    "khmer": "ទន្លេនេះហូរកាត់ទីក្រុង",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_are_found(language: str) -> None:
    assert bm25_words.find_language([SENTENCES[language]] * 3) == language


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        ([], "english"),
        (["Weaver syndrome", "aspirin 81 mg"], "english"),  # names alone speak for nothing
        (["The city of 北京 is large.", "It is on the river."], "english"),
        (["Ріка тече через місто і це найдовша з рік, що є у країні та на півночі."], "none"),
        (["Con sông chảy qua thành phố và là con sông dài nhất của các nước"], "none"),
        (["DNA 是一种分子，RNA 也是。", "BM25 是排序函数"], "chinese"),
    ],
)
def test_languages_that_are_hard_to_tell(texts: list[str], language: str) -> None:
    assert bm25_words.find_language(texts) == language


def test_words_of_languages() -> None:
    def cut(text: str, language: str) -> list[str]:
        return bm25_words.tokenize([text], language)[0]

    assert cut("Die Häuser und das Haus", "german") == ["haus", "haus"]
    assert cut("Mu\u0308nchen", "german") == cut("München", "german")
    assert cut("Die Häuser", "none") == ["die", "häuser"]
    assert cut("塞纳河流经Paris，法", "chinese") == ["塞纳", "纳河", "河流", "流经", "paris", "法"]
    assert cut("ＢＭ２５ ｶﾅ", "japanese") == ["bm25", "カナ"]  # width is no difference
    assert all("\u0e48" not in word[0] for word in cut("แม่น้ำ", "thai"))  # marks stay with letters
    assert cut("किताबें", "hindi") == cut("किताब", "hindi")


@pytest.mark.parametrize("language", ["german", "chinese", "thai"])
def test_an_index_of_another_language_finds(
    tmp_path: Path, language: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [SENTENCES[language], SENTENCES["english"]]
    for settings in ({}, {"language": language}):
        folder = bm25.build_if_missing(
            open_workdir(tmp_path / f"work-{len(settings)}"),
            texts,
            count=2,
            corpus="a corpus",
            sample=texts[:1],
            k1=0.9,
            b=0.4,
            **settings,
        )
        question = texts[0][4:12]
        rows = bm25.load(folder).search([question], 2)[1]
        assert rows[0, 0] == 0
        how = "as bm25.language says" if settings else "found from the corpus"
        assert f"bm25: {language} ({how})" in capsys.readouterr().err
