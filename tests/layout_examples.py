"""Three lines of every layout that is read, and what they mean.

The table in docs/data.md is made of them: `python tests/layout_examples.py` writes it anew.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpr_jax.data.readers import detect, judgements
from dpr_jax.data.readers.columns import Chosen

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- layouts: made by tests/layout_examples.py -->", "<!-- end of layouts -->"
HEADS = {
    "questions": "Questions (`data.train`, `data.dev`, `data.test`)",
    "passages": "Corpora (`data.passages`)",
    "qrels": "Judgements (`data.train_qrels`, `data.dev_qrels`, `data.test_qrels`)",
}
ETNA, ROME = "Etna is a volcano.", "Rome is a capital."
ASKED = "Which volcano?"


class Example(NamedTuple):
    """A file of a layout.

    Attributes:
      kind: `questions`, `passages` or `qrels`.
      file: its name.
      lines: what stands in it.
      wanted: of questions (id, question, answers, positives, negatives) of the first row, passages
        by text or id; of passages (id, title, text); of qrels question -> passage -> grade.
      columns: data.columns, where it is needed.
    """

    kind: str
    file: str
    lines: tuple[str, ...]
    wanted: Any
    columns: dict[str, str] = {}  # noqa: RUF012

    def write(self, folder: Path) -> Path:
        path = folder / self.file
        path.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
        return path


def row(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


def asked(
    id_: str = "0", answers: tuple[str, ...] = (), gold: Any = (ETNA,), wrong: Any = (ROME,)
) -> tuple[Any, ...]:
    return id_, ASKED, answers, tuple(gold), tuple(wrong)


EXAMPLES = [
    Example(
        "questions",
        "dpr.json",
        (
            '[{"question": "Which volcano?", "answers": ["Etna"],',
            '  "positive_ctxs": [{"passage_id": "p1"}],',
            '  "hard_negative_ctxs": [{"passage_id": "p2"}], "negative_ctxs": []}]',
        ),
        asked(answers=("Etna",), gold=["p1"], wrong=["p2"]),
    ),
    Example(
        "questions",
        "qa.csv",
        (f"{ASKED}\t['Etna', 'Mount Etna']", "Which capital?\t['Rome']"),
        asked(answers=("Etna", "Mount Etna"), gold=(), wrong=()),
    ),
    Example(
        "questions",
        "open.jsonl",
        (row(question=ASKED, answer=["Etna"]), row(question="Which capital?", answer=["Rome"])),
        asked(answers=("Etna",), gold=(), wrong=()),
    ),
    Example(
        "questions",
        "trivia.jsonl",
        (row(question_id="t1", question=ASKED, answer={"value": "Etna", "aliases": ["Mt Etna"]}),),
        asked("t1", answers=("Etna", "Mt Etna"), gold=(), wrong=()),
    ),
    Example(
        "questions",
        "pairs.csv",
        ("anchor,positive,negative", f"{ASKED},{ETNA},{ROME}"),
        asked(),
    ),
    Example(
        "questions",
        "pairs.jsonl",
        (row(query=ASKED, pos=[ETNA], neg=[ROME], pos_scores=[0.9], neg_scores=[0.1]),),
        asked(),
    ),
    Example(
        "questions",
        "lists.jsonl",
        (json.dumps([ASKED, ETNA, ROME]),),
        asked(),
    ),
    Example("questions", "sets.jsonl", (row(set=[ASKED, ETNA]),), asked(wrong=())),
    Example(
        "questions",
        "labelled.csv",
        ("query,passage,label", f"{ASKED},{ETNA},1", f"{ASKED},{ROME},0"),
        asked(),
    ),
    Example(
        "questions",
        "labelled.tsv",
        (f"{ASKED}\t{ETNA}\t1", f"{ASKED}\t{ROME}\t0"),
        asked(),
    ),
    Example(
        "questions",
        "own.tsv",
        ("q1\tp\tother\tu", f"7\t{ETNA}\t{ASKED}\thttp://x"),
        asked("7", wrong=()),
        {"id": "q1", "positive": "p", "question": "other"},
    ),
    Example(
        "questions",
        "tevatron.jsonl",
        (
            row(
                query_id="q1",
                query=ASKED,
                positive_passages=[{"docid": "p1", "title": "", "text": ETNA}],
                negative_passages=[{"docid": "p2", "title": "", "text": ROME}],
            ),
        ),
        asked("q1"),
    ),
    Example(
        "questions",
        "ids.jsonl",
        (
            row(
                query_id="q1",
                query=ASKED,
                positive_document_ids=["p1"],
                negative_document_ids=["p2"],
            ),
        ),
        asked("q1", gold=["p1"], wrong=["p2"]),
    ),
    Example(
        "questions",
        "triples.tsv",
        (f"{ASKED}\t{ETNA}\t{ROME}",),
        asked(),
    ),
    Example(
        "questions",
        "msmarco.jsonl",
        (
            row(
                query_id=5,
                query=ASKED,
                answers=["Etna"],
                passages={"is_selected": [0, 1], "passage_text": [ROME, ETNA]},
            ),
        ),
        asked("5", answers=("Etna",)),
    ),
    Example(
        "questions",
        "squad.json",
        (
            '{"data": [{"title": "Etna", "paragraphs": [{"context": "Etna is a volcano.",',
            '  "qas": [{"id": "s1", "question": "Which volcano?",',
            '    "answers": [{"text": "Etna", "answer_start": 0}]}]}]}]}',
        ),
        asked("s1", answers=("Etna",), wrong=()),
    ),
    Example(
        "questions",
        "squad.jsonl",
        (
            row(
                id="s1",
                title="Etna",
                context=ETNA,
                question=ASKED,
                answers={"text": ["Etna"], "answer_start": [0]},
            ),
        ),
        asked("s1", answers=("Etna",), wrong=()),
    ),
    Example(
        "questions",
        "queries.tsv",
        (f"q1\t{ASKED}", "q2\tWhich capital?"),
        asked("q1", gold=(), wrong=()),
    ),
    Example(
        "questions",
        "header.tsv",
        ("QID\tQuery_Text", f"q1\t{ASKED}"),
        asked("q1", gold=(), wrong=()),
    ),
    Example(
        "questions",
        "queries.jsonl",
        (row(_id="q1", text=ASKED, metadata={}),),
        asked("q1", gold=(), wrong=()),
    ),
    Example(
        "questions",
        "topics.txt",
        ("<top><num> Number: q1", f"<title> {ASKED}", "</top>"),
        asked("q1", gold=(), wrong=()),
    ),
    Example(
        "passages",
        "psgs.tsv",
        ("id\ttext\ttitle", f'p1\t"{ETNA}"\tEtna'),
        ("p1", "Etna", ETNA),
    ),
    Example(
        "passages",
        "corpus.jsonl",
        (row(_id="p1", title="Etna", text=ETNA, metadata={}),),
        ("p1", "Etna", ETNA),
    ),
    Example(
        "passages",
        "v2.jsonl",
        (row(pid="p1", passage=ETNA, spans="(0,17)", docid="d1"),),
        ("p1", "", ETNA),
    ),
    Example("passages", "collection.tsv", (f"p1\t{ETNA}",), ("p1", "", ETNA)),
    Example("passages", "other.csv", ("doc,content", f"p1,{ETNA}"), ("p1", "", ETNA)),
    Example("qrels", "trec.qrels", ("q1 0 p1 2", "q1 0 p2 0"), {"q1": {"p1": 2}}),
    Example(
        "qrels",
        "beir.tsv",
        ("query-id\tcorpus-id\tscore", "q1\tp1\t1"),
        {"q1": {"p1": 1}},
    ),
    Example("qrels", "plain.tsv", ("q1\tp1\t1", "q1\tp2\t0"), {"q1": {"p1": 1}}),
    Example("qrels", "triples.tsv", ("q1\tp1\tp2",), {"q1": {"p1": 1}}),
]


def described(example: Example, folder: Path) -> str:
    """Returns what `dpr prepare` says of a file, without its first row."""
    path = example.write(folder)
    if example.kind == "qrels":
        said = judgements.described(path)
    else:
        chosen = Chosen(example.kind, example.columns)
        said = detect.described(getattr(detect, example.kind)(path, chosen))
    return said.partition("; first row")[0]


def table() -> Iterator[str]:
    """Yields the lines of the tables of docs/data.md."""
    with tempfile.TemporaryDirectory() as folder:
        for kind, head in HEADS.items():
            yield from ("", f"{head}:", "", "| file | example | read as |", "|---|---|---|")
            for example in (one for one in EXAMPLES if one.kind == kind):
                lines = [line.replace("\t", " TAB ").replace("|", "\\|") for line in example.lines]
                text = "<br>".join(f"`{line}`" for line in lines)
                said = described(example, Path(folder))
                if example.columns:
                    given = " ".join(f"{role}={name}" for role, name in example.columns.items())
                    said = f"{said}, with `--data.columns {given}`"
                yield f"| {example.file} | {text} | {said} |"
    yield ""


def page() -> str:
    """Returns docs/data.md with the tables made anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + "\n".join(table()) + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE} is written\n")
