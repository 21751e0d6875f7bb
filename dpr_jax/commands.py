"""The commands of `dpr`: their arguments and their help."""

import ast
import dataclasses
import itertools
import re
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dpr_jax.config import Config
from dpr_jax.config_file import keys


class Command(NamedTuple):
    """A command and its arguments.

    Attributes:
      purpose: one line for people.
      operands: names of the positional arguments.
      flags: flags that are not settings; `workdir` is required if it is among them.
      parts: parts of the config that its help shows.
    """

    purpose: str
    operands: tuple[str, ...] = ()
    flags: tuple[str, ...] = ("workdir",)
    parts: tuple[str, ...] = ()


_ONE = ("workdir", "retriever", "like")
COMMANDS = {
    "pipeline": Command(
        "run all stages in order and write the report",
        flags=("workdir", "from", "until"),
        parts=("", "data", "model", "train"),
    ),
    "prepare": Command(
        "read raw files into the prepared corpus and questions",
        flags=("workdir", "dry-run"),
        parts=("data",),
    ),
    "split": Command(
        "split documents into passages on Apache Beam; Beam's own options follow --",
        flags=("out",),
        parts=("data",),
    ),
    "inspect": Command(
        "show counts, lengths, repeats and overlap of the prepared data", parts=("evaluate",)
    ),
    "mine": Command(
        "find hard negatives in the rankings of retrievers", (), _ONE, ("mine", "bm25")
    ),
    "train": Command("train both towers", (), _ONE, ("", "train", "model")),
    "encode": Command(
        "encode the corpus or questions; --from ENCODER uses an encoder as it comes",
        (),
        (*_ONE, "from"),
        ("encode", "model"),
    ),
    "index": Command("build the search index of the vectors, or BM25", (), _ONE, ("index", "bm25")),
    "index add": Command("add the passages of a file to every index", ("PASSAGES",)),
    "index remove": Command("remove the passages of a file of ids from every index", ("IDS",)),
    "index rebalance": Command("build an index anew of the passages there are now", (), _ONE),
    "retrieve": Command(
        "retrieve passages for questions, and write runs", (), _ONE, ("retrieve", "bm25")
    ),
    "evaluate": Command("write metrics, tables and report.html of all runs", parts=("evaluate",)),
    "compare": Command(
        "compare two retrievers or run files: paired test, wins, losses",
        ("A", "B"),
        parts=("evaluate",),
    ),
    "ask": Command(
        "print the passages that answer a question; --k N, --json for programs",
        ("QUESTION",),
        ("workdir", "url", "retriever", "k", "json"),
    ),
    "serve": Command(
        "serve retrievers over HTTP and MCP, with a page",
        (),
        ("workdir", "retriever", "host", "port", "keys", "verify", "mcp"),
        ("serve",),
    ),
    "export": Command(
        "write files for numpy, faiss, scann, pgvector, milvus, vertex; or `model`",
        ("ENGINE",),
        ("workdir", "retriever", "out", "shards", "url", "table", "as"),
    ),
    "export check": Command(
        "ask a live engine an export's questions: recall, latency, remedies",
        ("ENGINE",),
        ("out", "url", "table", "target"),
    ),
    "push": Command(
        "upload a model and its card to the Hugging Face hub; see --dry-run",
        (),
        ("workdir", "retriever", "repo", "license", "data-license", "dry-run"),
    ),
    "retriever list": Command("list retrievers with kind, size, dev figure and state"),
    "retriever remove": Command("delete a retriever", ("NAME",), ("workdir", "yes")),
    "gc": Command(
        "list artifacts that nothing uses, and delete them if told to", (), ("workdir", "yes")
    ),
    "plan": Command(
        "show memory, cycles and hours of a config on TPUs or GPUs",
        (),
        ("topology", "json", "passages", "questions", "quick"),
        ("", "train", "model", "encode"),
    ),
    "info": Command("show versions, devices, and the index engines that work here", flags=()),
}
USAGE = "usage: dpr COMMAND [CONFIG.py] --workdir DIR [--part.setting VALUE ...]"
OFF_ON = ("json", "yes", "quick", "dry-run", "verify", "mcp")  # flags without a value
# by flag, or by command and flag if the flag means something else there
FLAG_HELP = {
    "workdir": "folder that holds everything a run makes",
    "retriever": "name of the retriever",
    "like": "retriever whose recipe and artifacts a new one starts with",
    "from": "encoder to use as it comes: hub id or folder",
    "pipeline from": "the stage to begin with",
    "until": "the stage to end with",
    "out": "folder to write",
    "split out": "folder for the passages, on a file system that Apache Beam knows",
    "shards": "scann: number of indexes that the corpus is split over [1]",
    "url": "address of the engine; `dpr export pgvector` loads files there",
    "table": "pgvector, milvus: name of the table or collection [passages]",
    "as": "model: dpr (classes of transformers) or onnx (graphs)",
    "repo": "ORG/NAME on the hub",
    "license": "licence of the model, as the hub names it",
    "data-license": "licence of the training data, for the card",
    "push dry-run": "list the files and print the card, and upload nothing",
    "target": "wanted recall@100; default: index.target-recall, else 0.95",
    "k": "passages to show",
    "json": "print JSON",
    "plan json": "file to write, with a page beside it",
    "ask url": "server to ask (DPR_API_KEY is its key), not --workdir",
    "host": "address to bind to [127.0.0.1]",
    "port": "port to bind to; 0 takes a free one [8080]",
    "keys": "file of API keys, a line each: NAME KEY, or NAME KEY admin",
    "verify": "hash every file before being ready",
    "mcp": "speak the Model Context Protocol on stdin and stdout",
    "yes": "do not ask",
    "quick": "compile one and two layers only, and extrapolate",
    "topology": "v5e:2x4, v5p:2x2x2, gpu:h100:8, gpu:a100:2x8 or the like",
    "passages": "passages of the corpus (21,015,324)",
    "questions": "training questions, for epochs (58,880)",
    "dry-run": "print what is recognised in each file, and write nothing",
}


def flag_help(command: str, name: str) -> str:
    """Returns the help of a flag of a command."""
    return FLAG_HELP.get(f"{command} {name}", FLAG_HELP[name])


def overview() -> str:
    lines = [
        f"  {' '.join((name, *command.operands)):<24}{command.purpose}"
        for name, command in COMMANDS.items()
    ]
    return "\n".join(
        [
            "dpr: dense passage retrieval in JAX",
            USAGE,
            "",
            *lines,
            "",
            "example: dpr pipeline configs/quickstart.py --workdir runs/quickstart",
            "settings of a command: dpr train --help; all settings: dpr train --help-all",
        ]
    )


def show_help(command: str, *, whole: bool) -> None:
    """Prints the settings of a command, one line each; all of them with their full text."""
    about = COMMANDS[command]
    words = " ".join(("dpr", command, *about.operands, "[CONFIG.py]"))
    needs = {"topology": "NAME", "workdir": "DIR", "out": "DIR"}
    required = next((f" --{name} {of}" for name, of in needs.items() if name in about.flags), "")
    print(f"{words}{required} [--part.setting VALUE ...]\n{about.purpose}\n")
    for name in about.flags:
        print(_folded(f"--{name}", flag_help(command, name)))
    parts, known = ("", *Config.__annotations__) if whole else about.parts, keys()
    for part in parts:
        settings = getattr(Config(), part) if part else Config()
        if not dataclasses.is_dataclass(settings):
            continue
        texts = _field_texts(type(settings))
        print()
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if dataclasses.is_dataclass(value):
                continue
            flag = f"--{part}.{field.name}" if part else f"--{field.name}"
            text = texts[field.name]
            if not whole:
                text = re.split(r"(?<=[.;:]) ", text)[0].rstrip(".;:")
                text = f"{text}{_choices(known[flag[2:]])}"
            shown = "" if value in (None, (), {}) else f" [{_shown(value)}]"
            print(_folded(flag.replace("_", "-"), f"{text}{shown}"))
    if not whole:
        print(f"\nAll settings of all stages: dpr {command} --help-all")


def _folded(flag: str, text: str) -> str:
    """Returns a flag and its text in a column of its own."""
    return textwrap.fill(
        text,
        100,
        initial_indent=f"  {flag:<34}",
        subsequent_indent=" " * 36,
        break_on_hyphens=False,
    )


def _choices(hint: Any) -> str:
    """Returns the values that a setting can have, where they are few."""
    values = [
        value
        for one in (hint, *typing.get_args(hint))
        if typing.get_origin(one) is Literal
        for value in typing.get_args(one)
    ]
    return f": {', '.join(map(str, values))}" if 0 < len(values) <= 6 else ""


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _field_texts(settings: type) -> dict[str, str]:
    """Returns the text below each field of a dataclass of settings, on one line."""
    source = Path(sys.modules[settings.__module__].__file__).read_text(encoding="utf-8")
    body = next(
        node.body
        for node in ast.parse(source).body
        if getattr(node, "name", "") == settings.__name__
    )
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
