"""The stage that reads the raw files and writes the data sets `corpus` and `questions`."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dpr_jax import artifacts, logging
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import formats, store
from dpr_jax.data.formats import OnRead, Passage, RawQuestion
from dpr_jax.data.passage_rows import HashedTexts, HashTable
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError

MEGABYTE = 1_000_000


class CorpusFacts(NamedTuple):
    """What the questions need of the corpus, and what is reported of it."""

    table: HashTable
    passages: int
    repeated_texts: int
    empty_texts: int


def run(config: Config, workdir: WorkDir) -> None:
    """Raw files -> workdir.data, all of it or nothing.

    Raises:
      InputError: a file is missing or broken (file and line), a passage id occurs twice, a gold passage is not in the corpus, or a
        split has no usable question.
    """
    data = config.data
    files = _raw_files(data)
    artifacts.restore_dir(workdir.data)
    origin = artifacts.made_from(
        "prepare",
        {
            "max_train_questions": data.max_train_questions,
            "formats": {key: formats.ending(path) for key, path in files.items()},
        },
        {key: artifacts.checksum(path) for key, path in files.items()},
    )
    if artifacts.is_fresh(workdir.data / "manifest.json", origin):
        logging.say("prepare: up to date")
        return

    # --- the corpus, which tells where each passage id stands
    with artifacts.atomic_dir(workdir.data) as folder:
        facts, corpus_files = _write_corpus(files["passages"], folder)
        logging.say(
            f"prepare: corpus: {facts.passages:,} passages ({facts.repeated_texts:,} repeat another's text, {facts.empty_texts:,} have none)"
        )

        # --- the questions, which name passages by row
        counts: dict[str, Counter[str]] = {}
        splits = {
            split: _questions(data, split, files, facts.table, counts)
            for split in ("train", "dev", "test")
            if split in files
        }
        question_files = store.write_questions(folder, splits)
        for split, count in counts.items():
            logging.say(f"prepare: {split}: {_report(count)}")

        artifacts.write_manifest(
            folder / "manifest.json",
            origin,
            [*corpus_files, *question_files],
            passages=facts.passages,
            questions={split: count["kept"] for split, count in counts.items()},
        )


def _raw_files(data: DataConfig) -> dict[str, Path]:
    """The files that the config names, by setting; all of them there."""
    files = {}
    for key in ("passages", "train", "dev", "test", "test_qrels"):
        name = getattr(data, key)
        if name and not Path(name).is_file():
            raise InputError(
                f"{name} does not exist or is not a file; data.{key} must name one"
            )
        if name:
            files[key] = Path(name)
    if "passages" not in files:
        raise InputError("data.passages is not set; it must name the corpus file")
    for key in ("train", "dev", "test"):
        if key in files and formats.ending(files[key]) not in _formats_of(key):
            raise InputError(
                f"data.{key} is {files[key]}; its name must end in {' or '.join(_formats_of(key))} (or that and .gz)"
            )
    return files


def _formats_of(split: str) -> list[str]:
    return list(formats.QUESTION_READERS) if split == "test" else [".json"]


# --- the corpus ---------------------------------------------------------------------------------------------------------


def _write_corpus(path: Path, folder: Path) -> tuple[CorpusFacts, list[Path]]:
    ids, texts, empty = HashedTexts(), HashedTexts(), 0

    def passages(on_read: OnRead) -> Iterator[Passage]:
        nonlocal empty
        for _, passage in formats.read_passages(path, on_read):
            ids.add(passage.id)
            texts.add(passage.text)
            empty += passage.text == ""
            yield passage

    with _reading("prepare corpus", path) as on_read:
        files = store.write_corpus(folder, passages(on_read))
    table = ids.table()
    if (repeat := table.first_repeat()) is not None:
        _refuse_repeat(path, *repeat)
    return CorpusFacts(table, len(ids), len(ids) - texts.distinct(), empty), files


def _refuse_repeat(path: Path, first: int, second: int) -> None:
    """Reads the file once more up to the repeated id, for the line numbers."""
    found = [
        (line, passage.id)
        for row, (line, passage) in enumerate(formats.read_passages(path))
        if row in (first, second)
    ]
    (first_line, id_), (second_line, other) = found
    assert id_ == other, f"{id_!r} and {other!r} have the same 64-bit hash; run again"
    raise InputError(
        f"{path}:{second_line}: passage id {id_!r} occurs twice, first at line {first_line}; ids must be unique"
    )


# --- the questions ------------------------------------------------------------------------------------------------------


def _questions(
    data: DataConfig,
    split: str,
    files: dict[str, Path],
    table: HashTable,
    counts: dict[str, Counter[str]],
) -> Iterator[Question]:
    """The questions to keep of one split; fills in counts[split] as it goes."""
    count = counts.setdefault(split, Counter(kept=0))
    path = files[split]
    with _reading(f"prepare {split}", path) as on_read:
        rows: Iterable[RawQuestion] = formats.QUESTION_READERS[formats.ending(path)](
            path, on_read
        )
        if split == "test":
            rows = _with_qrels(formats.unique(rows), files.get("test_qrels"), count)
        for row in rows:
            if split == "train" and 0 < data.max_train_questions == count["kept"]:
                break
            if split != "test" and not row.positives:
                count["dropped: no positive passage"] += 1
                continue
            question = _resolve(row, table, count)
            count["kept"] += 1
            count["without gold passage"] += not question.positives
            count["without answers"] += not question.answers
            count["hard negatives"] += len(question.hard_negatives)
            yield question
    if not count["kept"]:
        raise InputError(
            f"{path} has no question to use as data.{split} ({_report(count)})"
        )


def _with_qrels(
    rows: Iterable[RawQuestion], path: Path | None, count: Counter[str]
) -> Iterator[RawQuestion]:
    """The questions with the gold passages of the qrels file in place of their own, where there is such a file."""
    if path is None:
        yield from rows
        return
    left = formats.read_qrels(path)
    for row in rows:
        positives = tuple(left.positives.pop(row.id, ()))
        yield row._replace(positives=positives, where=left.where.get(row.id, row.where))
    count["judged in qrels but not asked"] += len(left.positives)


def _resolve(row: RawQuestion, table: HashTable, count: Counter[str]) -> Question:
    """Ids -> rows. Every gold passage must be in the corpus; negatives that are not (it may be a part of a larger one) are left out."""
    positives = table.rows(row.positives)
    if -1 in positives:
        missing = row.positives[positives.index(-1)]
        raise InputError(
            f"{row.where}: gold passage {missing!r} is not in the corpus; data.passages must hold every gold passage"
        )
    gold = set(positives)
    negatives = []
    for ids in (row.hard_negatives, row.negatives):
        found = [other for other in table.rows(ids) if other != -1]
        count["negatives dropped: not in the corpus"] += len(ids) - len(found)
        kept = [other for other in found if other not in gold]
        count["negatives dropped: also gold"] += len(found) - len(kept)
        negatives.append(tuple(dict.fromkeys(kept)))
    return Question(
        id=row.id,
        question=row.question,
        answers=row.answers,
        positives=tuple(dict.fromkeys(positives)),
        hard_negatives=negatives[0],
        negatives=negatives[1],
    )


# --- what is said -------------------------------------------------------------------------------------------------------


def _report(count: Counter[str]) -> str:
    """All counts but the zeros, as `1,500 kept, 3 dropped: no positive passage`."""
    parts = [f"{n:,} {what}" for what, n in count.items() if n or what == "kept"]
    return ", ".join(parts)


@contextlib.contextmanager
def _reading(title: str, path: Path) -> Iterator[OnRead]:
    """Progress in megabytes of a file; yields what is to be told the bytes read."""
    done_bytes = 0
    with logging.progress(title, path.stat().st_size // MEGABYTE, "MB") as advance:

        def on_read(count: int) -> None:
            nonlocal done_bytes
            before, done_bytes = done_bytes // MEGABYTE, done_bytes + count
            if done_bytes // MEGABYTE > before:
                advance(done_bytes // MEGABYTE - before)

        yield on_read
