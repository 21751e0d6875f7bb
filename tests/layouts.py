"""One small, sound file of every layout that is read, as a function that writes it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
from pyarrow import parquet

CURLY = "what’s “it”?"
GOLD = 'The "Grand" répons,\tin\nfull'
OTHER = "Another, text"


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


PAIRS = [
    {"anchor": "who", "positive": "him", "negative": "her", "negative_2": "them"},
    {"anchor": CURLY, "positive": "this", "negative": "that", "negative_2": ""},
]
DPR = {
    "question": CURLY,
    "answers": ["a"],
    "positive_ctxs": [{"passage_id": "P1", "title": "T", "text": GOLD}],
    "hard_negative_ctxs": [{"psg_id": "P2", "title": "", "text": OTHER}],
    "negative_ctxs": [],
}
TEVATRON = {
    "query_id": "q1",
    "query": CURLY,
    "positive_passages": [{"docid": "P1", "title": "T", "text": GOLD}],
    "negative_passages": [{"docid": "P2", "title": "", "text": OTHER}],
}
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Grand_Hotel",
            "paragraphs": [
                {
                    "context": GOLD,
                    "qas": [
                        {
                            "id": "s1",
                            "question": CURLY,
                            "answers": [{"text": "full", "answer_start": 1}] * 2,
                            "is_impossible": False,
                        },
                        {
                            "id": "s2",
                            "question": "why",
                            "answers": [],
                            "is_impossible": True,
                        },
                    ],
                },
                {"context": OTHER, "qas": []},
            ],
        }
    ],
    "end": 1,
}
TOPICS = f"""<top>
<num> Number: q1
<title> {CURLY}
<desc> Description:
A longer one.
</top>
<top><num>q2</num><title>AT&amp;T</title></top>
"""

# name -> (file name, content, layout as it is named to the user)
QUESTIONS: dict[str, tuple[str, str, str]] = {
    "DPR JSON": ("t.json", json.dumps([DPR, DPR]), "DPR JSON"),
    "DPR JSON lines": ("t.jsonl", lines(DPR, DPR), "DPR JSONL"),
    "Tevatron": (
        "t.jsonl",
        lines(TEVATRON, TEVATRON | {"query_id": 2}),
        "Tevatron JSONL",
    ),
    "pairs JSON lines": (
        "t.jsonl",
        lines(*PAIRS),
        "(anchor, positive, negative ...) JSONL",
    ),
    "pairs CSV": (
        "t.csv",
        f'anchor,positive,negative,negative_2\r\nwho,him,her,them\r\n"{CURLY}",this,that,""\r\n',
        "(anchor, positive, negative ...) CSV",
    ),
    "FlagEmbedding": (
        "t.jsonl",
        lines(
            {"query": "who", "pos": ["him"], "neg": ["her", "them"]},
            {"query": CURLY, "pos": ["this"], "neg": ["that"]},
        ),
        "(anchor, positive, negative ...) JSONL",
    ),
    "FlagEmbedding with a teacher's scores": (
        "t.jsonl",
        lines(
            {"query": "who", "pos": ["him"], "neg": ["her", "them"]}
            | {"pos_scores": [2.5], "neg_scores": [-1, 0.5]},
            {"query": CURLY, "pos": ["this"], "neg": ["that"]},
        ),
        "(anchor, positive, negative ...) JSONL",
    ),
    "triples": (
        "t.tsv",
        f'who\thim "now\ther\n{CURLY}\tthis\tthat\n',
        "MS MARCO triples",
    ),
    "SQuAD": ("t.json", json.dumps(SQUAD, indent=1), "SQuAD JSON"),
    "question/answers": (
        "t.csv",
        f"who\t['a', \"b's\"]\n{CURLY}\t['\\d']\n",
        "DPR question/answers",
    ),
    "questions": ("t.tsv", f"q1\twho\nq2\t{CURLY}\n", "questions, id and text"),
    "BEIR queries": (
        "t.jsonl",
        lines({"_id": "q1", "text": "who", "metadata": {}}, {"_id": "2", "text": CURLY}),
        "questions, JSONL (BEIR, Tevatron)",
    ),
    "NQ open": (
        "t.jsonl",
        lines({"question": CURLY, "answer": ["a", "b"]}),
        "questions and answers, JSONL",
    ),
    "topics": ("t.txt", TOPICS, "TREC topics"),
}

PASSAGES: dict[str, tuple[str, str, str]] = {
    "DPR": (
        "p.tsv",
        'id\ttext\ttitle\nP1\t"The ""Grand"" répons,\tin\nfull"\tT\nP2\tAnother, text\t\n',
        "DPR passage TSV",
    ),
    "BEIR": (
        "p.jsonl",
        lines({"_id": "P1", "title": "T", "text": GOLD}, {"_id": "P2", "text": OTHER}),
        "passages, JSONL",
    ),
    "Pyserini": (
        "p.jsonl",
        lines({"id": "P1", "contents": GOLD}, {"id": "P2", "contents": OTHER}),
        "passages, JSONL",
    ),
    "collection": (
        "p.tsv",
        f'0\tsaid "so\n1\t{OTHER}\n',
        "MS MARCO collection",
    ),
    "CSV": (
        "p.csv",
        f'id,title,text\nP1,T,"{GOLD.replace(chr(34), chr(34) * 2)}"\nP2,,"{OTHER}"\n',
        "passages, CSV",
    ),
    "SQuAD": ("p.json", json.dumps(SQUAD), "SQuAD paragraphs"),
}


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def write_text(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return path
