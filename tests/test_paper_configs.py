"""`dpr prepare` with the configs of the paper's sets, on ten passages in the layouts of DPR's
downloads.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dpr_jax import config_file
from dpr_jax.config import Config
from dpr_jax.data import prepare, store
from dpr_jax.workdir import open_workdir

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = ("nq", "trivia", "webq", "trec", "squad", "multi")
# DPR names a passage by passage_id in its files for Natural Questions, by psg_id in the others
ID = {"nq": "passage_id"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def passage(row: int) -> tuple[str, str]:
    """Title and text; one text begins with a quote, and one holds quotes, as in Wikipedia."""
    text = f'In 19{row:02d} the "Number {row}" was built for {row + 2} dollars, $ and all.'
    return f"Number {row}", f'"{row}" is a number. {text}' if row == 3 else text


def wikipedia() -> str:
    lines = ["id\ttext\ttitle"]
    for row in range(10):
        title, text = passage(row)
        quoted = text.replace('"', '""')
        lines.append(f'{row + 1}\t"{quoted}"\t{title}')
    return "\n".join(lines) + "\n"


def context(name: str, row: int, **more: Any) -> dict[str, Any]:
    title, text = passage(row)
    return {"title": title, "text": text, ID.get(name, "psg_id"): str(row + 1), **more}


def answers(name: str, row: int) -> list[str]:
    return [rf"(nineteen|19)\s?{row:02d}"] if name == "trec" else [f"19{row:02d}"]


def questions(name: str, rows: range) -> str:
    """Questions as DPR's retriever files have them; one has no positive passage."""
    found = []
    for row in rows:
        positive = [context(name, row, score=1000, title_score=1)] if row else []
        found.append(
            {
                "dataset": f"{name}_train_psgs_w100",
                "question": f"when was number {row} built",
                "answers": answers(name, row),
                "positive_ctxs": positive,
                "negative_ctxs": [context(name, 9, score=0, title_score=0)],
                "hard_negative_ctxs": [context(name, 8, score=14.3, title_score=0)],
            }
        )
    return json.dumps(found, indent=4)


def asked(name: str, rows: range) -> str:
    return "".join(f"when was number {row} built\t{answers(name, row)!r}\n" for row in rows)


def make_files(config: Config, root: Path) -> None:
    """Writes every file that a config names."""
    data = config.data
    write(root / data.passages, wikipedia())
    of_folder = {"nq": "nq", "trivia": "trivia", "webq": "webq", "trec": "trec", "squad1": "squad"}
    for file in (*data.train_files, data.dev):
        write(root / file, questions(of_folder[Path(file).parent.name], range(8)))
    for file in data.test_files:
        path = file.rpartition("=")[2]
        write(root / path, asked(of_folder[Path(path).parent.name], range(8)))


@pytest.mark.parametrize("name", NAMES)
def test_prepare_reads_the_layouts_of_dprs_downloads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file.load(CONFIGS / f"{name}_bert_base.py")
    make_files(config, tmp_path)
    monkeypatch.chdir(tmp_path)
    workdir = open_workdir(tmp_path / "w")
    prepare.run(config, workdir)
    corpus = store.open_corpus(workdir)
    assert len(corpus) == 10
    assert [(one.title, one.text) for one in corpus.rows(range(10))] == [
        (title, text.strip('"')) for title, text in map(passage, range(10))
    ]
    train = list(store.open_questions(workdir, "train"))
    assert len(train) == 7 * len(config.data.train_files)  # without the one without a positive
    tests = store.test_sets(workdir)
    assert len(tests) == len(config.data.test_files)
    for one in tests:
        found = list(store.open_questions(workdir, one))
        assert len(found) == 8
        if name == "trec":
            assert tuple(found[3].answers) == (r"(nineteen|19)\s?03",)


def test_the_regular_expressions_of_trec_are_matched_as_such() -> None:
    assert config_file.load(CONFIGS / "trec_bert_base.py").evaluate.answer_match == "regex"
    assert config_file.load(CONFIGS / "multi_bert_base.py").evaluate.answer_match == "string"
