"""The commands of `dpr`: what each takes, and the help that it prints."""

import ast
import dataclasses
import itertools
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from dpr_jax.config import Config


class Command(NamedTuple):
    """A command with what it takes.

    Attributes:
      purpose: one line for people.
      operands: what stands first, by name.
      flags: those that are no settings; `workdir` is required where it is named.
      parts: the parts of the config that its help shows.
    """

    purpose: str
    operands: tuple[str, ...] = ()
    flags: tuple[str, ...] = ("workdir",)
    parts: tuple[str, ...] = ()


_ONE = ("workdir", "retriever", "like")
COMMANDS = {
    "pipeline": Command(
        "all stages in order, and the report",
        flags=("workdir", "from", "until"),
        parts=("", "data", "mine", "model", "train"),
    ),
    "prepare": Command(
        "raw files -> the prepared corpus and questions",
        flags=("workdir", "dry-run"),
        parts=("data",),
    ),
    "split": Command(
        "documents -> passages on Apache Beam, for `prepare`; Beam's own options stand after --",
        flags=("out",),
        parts=("data",),
    ),
    "inspect": Command(
        "what the prepared data hold: counts, lengths, repeats, overlap", parts=("evaluate",)
    ),
    "mine": Command("hard negatives from what retrievers rank high", (), _ONE, ("mine", "bm25")),
    "train": Command("train both towers", (), _ONE, ("", "train", "model")),
    "encode": Command(
        "corpus or questions -> vectors; --from ENCODER uses one as it comes",
        (),
        (*_ONE, "from"),
        ("encode", "model"),
    ),
    "index": Command("vectors, or words for BM25 -> a search index", (), _ONE, ("index", "bm25")),
    "index add": Command("a file of new passages into every index", ("PASSAGES",)),
    "index remove": Command("a file of passage ids, one per line, out of every index", ("IDS",)),
    "index rebalance": Command("an index built anew of the passages there are now", (), _ONE),
    "retrieve": Command("questions -> runs", (), _ONE, ("retrieve", "bm25")),
    "evaluate": Command("runs -> metrics, tables, report.html", parts=("evaluate",)),
    "compare": Command(
        "two retrievers (or run files) on the same questions: paired test, wins, losses",
        ("A", "B"),
        parts=("evaluate",),
    ),
    "ask": Command(
        "the passages that answer a question; --k N, --json for programs",
        ("QUESTION",),
        ("workdir", "url", "retriever", "k", "json"),
    ),
    "serve": Command(
        "retrievers over HTTP and MCP, with a page; --retriever NAME ... (the best on dev)",
        (),
        ("workdir", "retriever", "host", "port", "keys", "verify", "mcp"),
        ("serve",),
    ),
    "export": Command(
        "a retriever for another engine: numpy, faiss, scann, pgvector, milvus, vertex; or `model`",
        ("ENGINE",),
        ("workdir", "retriever", "out", "shards", "url", "table", "as"),
    ),
    "export check": Command(
        "ask a live engine the questions of an export: recall, latency, what to raise",
        ("ENGINE",),
        ("out", "url", "table", "target"),
    ),
    "push": Command(
        "a trained model and its card to the Hugging Face hub; --dry-run lists what would go",
        (),
        ("workdir", "retriever", "repo", "license", "data-license", "dry-run"),
    ),
    "retriever list": Command("retrievers with kind, size, dev figure and state"),
    "retriever remove": Command("delete a retriever", ("NAME",), ("workdir", "yes")),
    "gc": Command(
        "delete artifacts that nothing uses; shows them and asks", (), ("workdir", "yes")
    ),
    "plan": Command(
        "what a config takes on TPUs or GPUs that are not here: memory, cycles, hours",
        (),
        ("topology", "json", "passages", "questions", "quick"),
        ("", "train", "model", "encode"),
    ),
    "info": Command("versions, devices, and which index backends work here", flags=()),
}
USAGE = "usage: dpr COMMAND [CONFIG.py] --workdir DIR [--part.setting VALUE ...]"
OFF_ON = ("json", "yes", "quick", "dry-run", "verify", "mcp")  # flags without a value
# by flag, or by command and flag where one name means another thing there
FLAG_HELP = {
    "workdir": "folder that holds everything a run makes",
    "retriever": "which retriever, by name",
    "like": "a new retriever starts with the recipe and artifacts of this one",
    "from": "an encoder, by hub id or folder",
    "pipeline from": "the stage to begin with",
    "until": "the stage to end with",
    "out": "folder to write",
    "split out": "folder for the passages, on a file system that Apache Beam knows",
    "shards": "scann: indexes to split the corpus over, for as many hosts; 1 if not given",
    "url": "where the engine answers; `dpr export pgvector` also loads the files there",
    "table": "pgvector, milvus: name of the table or collection; passages if not given",
    "as": "model: dpr for transformers' DPR classes, onnx for graphs",
    "repo": "ORG/NAME on the hub",
    "license": "of the model, as the hub names it",
    "data-license": "of the training data, for the card",
    "push dry-run": "list what would go, and print the card",
    "target": "recall@100 that is wanted; as index.target-recall, else 0.95",
    "k": "passages to show",
    "json": "print JSON",
    "plan json": "file to write, with a page beside it",
    "ask url": "ask a running `dpr serve` there, without --workdir; DPR_API_KEY is its key",
    "host": "address to bind to [127.0.0.1]",
    "port": "port to bind to; 0 takes a free one [8080]",
    "keys": "file of API keys, a line each: NAME KEY, or NAME KEY admin",
    "verify": "be ready only once every file was hashed",
    "mcp": "speak the Model Context Protocol on stdin and stdout, without HTTP",
    "yes": "do not ask",
    "quick": "foretell by towers of one and two layers, and compile nothing whole",
    "topology": "such as v5e:2x4, v6e:4x4, v5p:2x2x2, gpu:h100:8 or gpu:a100:2x8",
    "passages": "of the corpus (21,015,324)",
    "questions": "of training, where the config gives epochs (58,880)",
    "dry-run": "print what is recognised in each file, and write nothing",
}


def flag_help(command: str, name: str) -> str:
    """Returns what a flag of a command means; a few mean another thing for one of them."""
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
        print(f"  --{name:<32}{flag_help(command, name)}")
    parts = ("", *Config.__annotations__) if whole else about.parts
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
            shown = "" if value in (None, (), {}) else f" [{_shown(value)}]"
            text = text if whole else textwrap.shorten(text, 64 - len(shown), placeholder=" ...")
            print(f"  {flag.replace('_', '-'):<34}{text}{shown}")
    if not whole:
        print(f"\nAll settings of all stages: dpr {command} --help-all")


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
