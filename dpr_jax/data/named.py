"""Opens what the settings of `data` name: files, folders, documents to cut, carried passages."""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dpr_jax import artifacts
from dpr_jax.config import DataConfig
from dpr_jax.console import say
from dpr_jax.data import cut
from dpr_jax.data.cut import Cut
from dpr_jax.data.raw import Passage
from dpr_jax.data.readers import columns, detect, documents, from_tfds, opened
from dpr_jax.data.readers.columns import Chosen
from dpr_jax.data.readers.detect import Source
from dpr_jax.data.readers.opened import OnRead
from dpr_jax.data.readers.urls import UrlPath, located
from dpr_jax.errors import InputError
from dpr_jax.model import hf, tokenizer
from dpr_jax.workdir import WorkDir

SPLITS = ("train", "dev", "test")
WORDS_PER_PASSAGE = 100  # the paper's


def questions(data: DataConfig) -> dict[str, str]:
    """Returns what is named for train, dev and test; of several files by train/1, train/2, ..."""
    names: dict[str, str] = {}
    for role, files in (("train", data.train_files), ("test", tuple(test_sets(data).values()))):
        numbered = {f"{role}/{number}": name for number, name in enumerate(files, 1)}
        names |= {role: files[0]} if len(files) == 1 else numbered
    return names | ({"dev": data.dev} if data.dev else {})


def test_sets(data: DataConfig) -> dict[str, str]:
    """Returns the test questions that are asked of `data.passages`, by the name of their set.

    Raises:
      InputError: two of several sets have one name.
    """
    own = own_corpora(data)
    return {name: path for name, path in all_test_sets(data).items() if name not in own}


def own_corpora(data: DataConfig) -> dict[str, str]:
    """Returns the BEIR folders of `data.test` that are asked of the corpus in them, by name.

    A folder whose corpus is the file that `data.passages` names, or a copy, is not among them.

    Raises:
      InputError: two of several sets have one name.
    """
    found = {}
    for name, path in all_test_sets(data).items():
        with opened.readable(path):
            corpus = _beir_corpus(Path(path))
            common = data.passages and (_beir_corpus(Path(data.passages)) or Path(data.passages))
            if corpus and not (common and common.is_file() and _is_copy(corpus, common)):
                found[name] = path
    return found


def all_test_sets(data: DataConfig) -> dict[str, str]:
    """Returns every path of `data.test` by the name of its set, "test" for a single one.

    Raises:
      InputError: two of several sets have one name.
    """
    if len(data.test_files) == 1:
        return {"test": data.test_files[0]}
    found: dict[str, str] = {}
    for file in data.test_files:
        name, equals, path = file.partition("=")
        if "/" in name or not equals:
            name, path = located(file).name.split(".")[0], file
        if name in found or name in ("train", "dev", "test"):
            raise InputError(
                f"data.test: {file} would be named {name!r}, which is taken; write NAME=PATH"
            )
        found[name] = path
    return found


def _beir_corpus(folder: Path) -> Path | None:
    """Returns the corpus of a BEIR folder; None for anything else."""
    files = (folder / name for name in detect.BEIR_CORPUS)
    return next(filter(Path.is_file, files), None) if (folder / "qrels").is_dir() else None


def _is_copy(one: Path, other: Path) -> bool:
    """Returns whether two files are one, or have the same bytes."""
    if one.samefile(other):
        return True
    same_size = one.stat().st_size == other.stat().st_size
    return same_size and artifacts.checksum(one) == artifacts.checksum(other)


def refuse_holding(data: DataConfig, workdir: Path) -> None:
    """Raises InputError where documents lie around the work directory, which changes as it runs."""
    folder = Path(data.passages or "")
    with opened.readable(data.passages or ""):
        holds = bool(data.passages) and folder.is_dir()
    if holds and workdir.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"data.passages {folder} holds the work directory {workdir}, which changes with every"
            " run; name a folder of documents alone, or give another --workdir"
        )


def split_of(key: str) -> str:
    """Returns train, dev or test for a key of `questions`."""
    return key.partition("/")[0]


def with_cut(data: DataConfig) -> DataConfig:
    """Returns the settings, with the paper's cut for a folder of documents without one."""
    folder = located(data.passages or "")
    with opened.readable(data.passages or ""):
        is_folder = data.passages is not None and folder.is_dir()
    if data.split_words or data.split_tokens or not is_folder:
        return data
    beir = ("corpus.jsonl*", "queries.jsonl*", "qrels")
    if detect.is_split(folder) or any(any(folder.glob(name)) for name in beir):
        return data
    say(
        f"prepare: {folder} is taken for a folder of documents, cut into passages of"
        f" {WORDS_PER_PASSAGE} words (data.split_words)"
    )
    return dataclasses.replace(data, split_words=WORDS_PER_PASSAGE)


def stored_as(key: str) -> str:
    """Returns the split of the prepared questions: training files are one, test sets are not."""
    return key.replace("/", "_") if key.startswith("test") else split_of(key)


def recognised(
    data: DataConfig, model: str, count: Counter[str], *, columns_of_any: bool = False
) -> tuple[dict[str, Source], dict[str, Path]]:
    """Returns the inputs by key (passages, and those of `questions`), and the qrels by those keys.

    Args:
      data: the settings.
      model: whose tokenizer counts the tokens of windows, where documents are to be cut into such.
      count: gets the files that are passed over, and the documents that are cut as they are read.
      columns_of_any: whether data.columns may name columns that no file has.

    Raises:
      InputError: nothing is named, a file is missing or of no known layout, or data.columns names
        what no file has.
    """
    how = how_to_cut(data, model)
    files: dict[str, Path] = {}
    sources: dict[str, Source] = {}
    asked = questions(data)
    passages = {"passages": data.passages} if data.passages and not how else {}
    for key, name in (passages | asked).items():
        if name.startswith(from_tfds.PREFIX) and key in asked:
            continue
        path = located(name)
        with opened.readable(name):
            if key == "passages" and detect.is_split(path):
                sources[key] = detect.split_passages(path)
            elif path.is_dir():
                role = split_of(key)
                found = detect.beir(path, role)
                files |= {what.replace(role, key, 1): found[what] for what in found}
            else:
                files[key] = _existing(split_of(key), name)
    for split in SPLITS:
        if name := getattr(data, f"{split}_qrels"):
            files[f"{split}_qrels"] = _existing(f"{split}_qrels", name)
    chosen = {
        key: Chosen("passages" if key == "passages" else "questions", data.columns, key)
        for key in ("passages", *asked)
    }
    if how:
        sources["passages"] = _documents(data.passages, how, count, chosen["passages"])
    elif "passages" in files:
        sources["passages"] = detect.passages(files["passages"], chosen["passages"])
    for key, name in asked.items():
        if key in files:
            sources[key] = detect.questions(files[key], chosen[key], data.positive_from)
        else:
            sources[key] = from_tfds.questions(name)
    if not columns_of_any:
        columns.refuse_unused(data.columns, chosen)
    if not sources:
        alone = "; `dpr pipeline` runs test sets that have corpora of their own"
        hint = alone if data.test_files else ""
        raise InputError(f"data.passages is not set; it must name the corpus{hint}")
    qrels = {key: files[f"{key}_qrels"] for key in asked if f"{key}_qrels" in files}
    return sources, qrels


def cut_settings(data: DataConfig, model: str, sources: dict[str, Source]) -> dict[str, int | str]:
    """Returns what cut passages depend on besides the files' content; none without a cut."""
    if data.split_words:
        settings: dict[str, int | str] = {"words": data.split_words}
    elif data.split_tokens:
        stride_tokens = data.split_stride_tokens or data.split_tokens
        settings = {"tokens": data.split_tokens, "stride_tokens": stride_tokens}
        settings["tokenizer"] = model
    else:
        return {}
    # a plain file's name is its document's id and title
    names = "\n".join(path.name for path in sources["passages"].files)
    return settings | {"names": hashlib.sha256(names.encode()).hexdigest()}


def how_to_cut(data: DataConfig, model: str) -> Cut | None:
    """Returns the function that cuts documents; None where the corpus has passages already.

    Raises:
      InputError: the tokenizer of `model` cannot be had, whose tokens are to be counted.
    """
    if data.split_words:
        return functools.partial(cut.by_words, length=data.split_words)
    if data.split_tokens:
        words = tokenizer.load(hf.resolve(model, "passage"), data.split_tokens + 1)
        return functools.partial(
            cut.by_tokens,
            sizes_of=cut.remembering(words.sizes),
            length=data.split_tokens,
            stride=data.split_stride_tokens or data.split_tokens,
        )
    return None


def _documents(name: str, how: Cut, count: Counter[str], chosen: Chosen) -> Source:
    """Returns documents as a source of the passages that they are cut into."""
    path = located(name or "")
    with opened.readable(path):
        there = bool(name) and path.exists()
    if not there:
        raise InputError(
            f"data.passages is {name!r}, which does not exist; with data.split_words or"
            " data.split_tokens it must be a file or folder of documents"
        )
    if detect.is_split(path):
        raise InputError(
            f"data.passages {name} holds what dpr split cut; set data.split_words and"
            " data.split_tokens to None"
        )
    found = documents.recognised(path, count, chosen)
    return found._replace(
        layout=f"{found.layout}, to be cut into passages",
        read=lambda on_read: cut.into_passages(found.read(on_read), how, count),
    )


def _existing(key: str, name: str) -> Path:
    path = located(name)
    with opened.readable(path):
        there = path.is_file()
    if not there:
        raise InputError(f"{path} does not exist or is not a file; data.{key} must name one")
    return path


def carried(sources: dict[str, Source]) -> Source:
    """Returns the passages that the questions carry as a corpus, each once, in their order."""

    def read(on_read: OnRead | None) -> Iterator[tuple[str, Passage]]:
        texts: dict[int, int] = {}
        for source in sources.values():
            for row in source.read(on_read):
                for passage in row.passages:
                    id_, text = hash(passage.id), hash(passage.title_and_text)
                    if id_ not in texts:
                        texts[id_] = text
                        yield row.where, passage
                    elif texts[id_] != text:
                        raise InputError(
                            f"{row.where}: passage {passage.id!r} has another text than in an"
                            " earlier row; name the corpus with data.passages"
                        )

    files = tuple(path for source in sources.values() for path in source.files)
    return Source("the passages that the questions carry", files, read)


class Checksums:
    """Checksums of raw files.

    A file at a URL that still has the ETag and the size with which it was read for the current data
    is not read again.

    Attributes:
      urls: of those that have an ETag: (ETag and size, checksum) by URL.
    """

    def __init__(self, workdir: WorkDir) -> None:
        current = workdir.find("data")
        manifest = current and current / "manifest.json"
        there = manifest and manifest.exists()
        self._known = artifacts.read_json(manifest).get("urls", {}) if there else {}
        self.urls: dict[str, list[str]] = {}

    def of(self, path: Path) -> str:
        """Returns the checksum of a file, as `artifacts.checksum` does."""
        if not isinstance(path, UrlPath) or not (tag := path.tag()):
            return artifacts.checksum(path)
        found, sha256 = self._known.get(str(path), ("", ""))
        self.urls[str(path)] = [tag, sha256 if found == tag else artifacts.checksum(path)]
        return self.urls[str(path)][1]
