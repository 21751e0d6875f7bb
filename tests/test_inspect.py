"""What inspection counts, by hand on a small set; that it warns; that its page is whole."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dpr_jax import artifacts
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import prepare
from dpr_jax.errors import InputError
from dpr_jax.inspection import overview, show, survey
from dpr_jax.workdir import WorkDir, open_workdir

EVIL = "<script>alert('1')</script>"
PASSAGES = "id\ttext\ttitle\nP1\tthe cat sat\tA\nP2\tthe cat sat\t\nP3\ta dog\tB\nP4\t\tC\n"


def row(question: str, answer: str, *gold: str) -> dict[str, object]:
    contexts = [{"passage_id": id_} for id_ in gold]
    return {"question": question, "answers": [answer], "positive_ctxs": contexts}


@pytest.fixture
def workdir(tmp_path: Path) -> WorkDir:
    """Train and test share one question (but for case) and one gold passage."""
    contents = {
        "passages": PASSAGES,
        "train": json.dumps(
            [
                row(f"Who {EVIL}?", "cat", "P1"),
                row("who!", "dog", "P1", "P3"),
                row("WHO", "cow", "P3"),
            ]
        ),
        "test": json.dumps([row("Who?", "cat", "P2"), row("new", "x", "P3", "P1")]),
    }
    files = {}
    for key, text in contents.items():
        files[key] = str(tmp_path / f"{key}.{'tsv' if key == 'passages' else 'json'}")
        Path(files[key]).write_text(text, encoding="utf-8")
    config = Config(data=DataConfig(**files))
    workdir = open_workdir(tmp_path / "work")
    prepare.run(config, workdir)
    return workdir


def test_what_is_counted(workdir: WorkDir, capsys: pytest.CaptureFixture[str]) -> None:
    overview.run(Config(), workdir)
    facts = artifacts.read_json(workdir.root / "inspection" / "inspection.json")
    corpus, train, test = facts["corpus"], *facts["splits"].values()
    assert (corpus["passages"], corpus["repeated_texts"]) == (4, 1)
    assert (corpus["without_text"], corpus["without_title"]) == (1, 1)
    # [CLS] a [SEP] the cat sat [SEP] is the longest
    assert corpus["tokens"]["max"] == 6
    assert (train["questions"], train["repeated"], train["with_gold"]) == (3, 1, 3)
    assert (train["checked_for_answers"], train["answer_in_gold"]) == (3, 2)
    assert (test["with_answers"], test["answer_in_gold"]) == (2, 1)
    assert facts["overlap"] == [
        {
            "split": "test",
            "seen": "train",
            "of": 2,
            "questions": 1,
            "with_seen_gold": 1,
            "examples": ["Who?"],
        }
    ]
    printed = capsys.readouterr().out
    assert "WARNING: 1 of 2 test questions (50.0 %) are also in train" in printed
    assert "1 of 2 test questions (50.0 %) have a gold passage of train" in printed


def test_a_second_run_measures_nothing(
    workdir: WorkDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    overview.run(Config(), workdir)
    first = capsys.readouterr().out
    monkeypatch.setattr(survey, "corpus", lambda *_: pytest.fail("measured again"))
    overview.run(Config(), workdir)
    assert capsys.readouterr().out == first


def test_without_prepared_data(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path / "work")
    with pytest.raises(InputError, match="has no data yet; run `dpr prepare"):
        overview.run(Config(), workdir)


class Whole(HTMLParser):
    """Counts tags that are opened and not closed, and what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_escapes_what_it_shows(
    nq_small_workdir: tuple[Config, WorkDir], tmp_path: Path
) -> None:
    config, source = nq_small_workdir
    shutil.copytree(source.root, tmp_path / "work", symlinks=True)
    workdir = open_workdir(tmp_path / "work")
    overview.run(config, workdir)
    facts = artifacts.read_json(workdir.root / "inspection" / "inspection.json")
    assert facts["splits"]["train"]["answer_in_gold"] > 0
    facts["overlap"][0] |= {"questions": 1, "examples": [EVIL]}
    for page in (
        (workdir.root / "inspection" / "inspection.html").read_text("utf-8"),
        show.page(facts),
    ):
        checked = Whole()
        checked.feed(page)
        assert not checked.open and checked.loads == ["data:,"]
        assert EVIL not in page and "passages" in page
    assert "&lt;script&gt;" in page


def test_histograms() -> None:
    found = survey.lengths([1, 2, 3, 100] * 25, limit=50)
    assert (found["width"], found["max"], found["median"]) == (8, 100, 2)
    assert found["over_limit"] == 0.25 and sum(found["bars"]) == pytest.approx(1)
    labels = dict(show.bars(found))
    assert labels["0–7"] == 0.75 and labels["96–103"] == 0.25
    # a few very long ones do not squeeze the rest into one bar
    found = survey.lengths([*range(16)] * 100 + [5000], limit=50)
    assert found["width"] == 1 and len(found["bars"]) == 16
    assert show.bars(found)[-1][0] == "15 or more"
    assert re.fullmatch(r"6\.\d", show.percent(found["bars"][0]))


def test_samples_are_spread_evenly() -> None:
    assert survey.evenly(3, 10) == [0, 1, 2] and survey.evenly(1, 10) == [0]
    assert survey.evenly(101, 3) == [0, 50, 100]


def test_each_training_file_is_counted(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text(PASSAGES, encoding="utf-8")
    names = (str(tmp_path / "one.json"), str(tmp_path / "two.json"))
    Path(names[0]).write_text(json.dumps([row("a", "cat", "P1")] * 3))
    Path(names[1]).write_text(json.dumps([row("b", "dog", "P3")] * 2))
    data = DataConfig(passages=str(tmp_path / "p.tsv"), train=names)
    config = Config(data=data)
    workdir = open_workdir(tmp_path / "work")
    prepare.run(config, workdir)
    overview.run(config, workdir)
    facts = artifacts.read_json(workdir.root / "inspection" / "inspection.json")
    counted = {name: one["questions"] for name, one in facts["splits"].items()}
    assert counted == {"train": 5, "train/1 one.json": 3, "train/2 two.json": 2}
