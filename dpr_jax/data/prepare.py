"""The stage that reads the raw files and writes the data sets `corpus` and `questions`."""

import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dpr_jax import artifacts, console
from dpr_jax.config import Config
from dpr_jax.data import formats, named, raw, store
from dpr_jax.data.formats import Qrels
from dpr_jax.data.passage_rows import HashedTexts, HashTable
from dpr_jax.data.raw import Passage, RawQuestion, comparable
from dpr_jax.data.recognise import Source
from dpr_jax.data.rows import OnRead
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir

MEGABYTE = 1_000_000


class CorpusFacts(NamedTuple):
    """What the questions need of the corpus, and what is reported of it."""

    table: HashTable
    passages: int
    repeated_texts: int
    empty_texts: int


def run(config: Config, workdir: WorkDir) -> None:
    """Writes data-HASH of the raw files, whole or not at all, and makes it the current data.

    Raises:
      InputError: a file is missing, of no known layout, or broken (file and line), a passage id
        occurs twice, a gold passage is not in the corpus, or a split has no usable question.
    """
    data = config.data
    documents: Counter[str] = Counter()
    sources, qrels = named.recognised(data, config.model.init, documents)
    origin = artifacts.made_from(
        "prepare",
        {
            "max_train_questions": data.max_train_questions,
            "layouts": {key: source.layout for key, source in sources.items()},
            "cut": named.cut_settings(data, config.model.init, sources),
        }
        | ({"drawn_by_seed": config.seed} if data.max_train_questions else {}),
        {key: source.fingerprint() for key, source in sources.items()}
        | {f"{key}_qrels": artifacts.checksum(qrels[key]) for key in qrels},
        form=store.FORM,
    )
    out = workdir.place("data", origin)
    if artifacts.is_fresh(out / "manifest.json", origin):
        workdir.point("data", out)
        console.say(f"prepare: up to date ({out})")
        return
    names = {"passages": data.passages} | named.questions(data)
    for key, source in sources.items():
        console.say(f"prepare: {key}: {names[key]} is {source.layout}")

    # --- the corpus, which tells where each passage id stands
    with artifacts.atomic_dir(out) as folder:
        corpus = sources.pop("passages", None) or named.carried(sources)
        facts, corpus_files = write_corpus(corpus, folder)
        if documents:
            console.say(f"prepare: corpus: cut {_report(documents)}")
        console.say(
            f"prepare: corpus: {facts.passages:,} passages ({facts.repeated_texts:,} repeat"
            f" another's text, {facts.empty_texts:,} have none)"
        )

        # --- the questions, which name passages by row
        counts: dict[str, Counter[str]] = {key: Counter(kept=0) for key in sources}
        asked: dict[str, HashedTexts] = {}
        splits: dict[str, Iterable[Question]] = {}
        for key, source in sources.items():
            split = named.stored_as(key)
            seen = asked.setdefault(split, HashedTexts())
            rows = _noted(
                _questions(
                    config,
                    key,
                    source,
                    qrels=qrels,
                    table=facts.table,
                    count=counts[key],
                ),
                seen,
            )
            splits[split] = itertools.chain(splits.get(split, ()), rows)
        question_files = store.write_questions(folder, splits) if splits else []
        kept: Counter[str] = Counter()
        for key, count in counts.items():
            console.say(f"prepare: {key}: {_report(count)}")
            kept[named.stored_as(key)] += count["kept"]
        _warn_of_overlap(asked)
        several = [key for key in sources if key.startswith("train/")]
        tests = [key for key in sources if named.split_of(key) == "test"]

        artifacts.write_manifest(
            folder / "manifest.json",
            origin,
            [*corpus_files, *question_files],
            passages=facts.passages,
            questions=kept,
            hard_negatives=sum(counts[key]["hard negatives"] for key in counts if "train" in key),
            train_sets=[[names[key], counts[key]["kept"]] for key in several],
            test_sets=dict(zip(named.test_sets(data), map(named.stored_as, tests), strict=True)),
        )
    workdir.point("data", out)


# --- the corpus


def write_corpus(source: Source, folder: Path) -> tuple[CorpusFacts, list[Path]]:
    """Writes the data set `corpus` of a source of passages.

    Raises:
      InputError: there is no passage, a row is broken, or an id occurs twice (file and line).
    """
    ids, texts, empty = HashedTexts(), HashedTexts(), 0

    def passages(on_read: OnRead) -> Iterator[Passage]:
        nonlocal empty
        for _, passage in source.read(on_read):
            ids.add(passage.id)
            texts.add(passage.text)
            empty += passage.text == ""
            yield passage
        if not len(ids):
            names = ", ".join(str(path) for path in source.files)
            raise InputError(
                f"{names}: no passage in {source.layout}; the corpus is empty, data.passages is not"
                " set to a file that has some"
            )

    with _reading("prepare corpus", source) as on_read:
        files = store.write_corpus(folder, passages(on_read))
    table = ids.table()
    if (repeat := table.first_repeat()) is not None:
        _refuse_repeat(source, *repeat)
    return CorpusFacts(table, len(ids), len(ids) - texts.distinct(), empty), files


def _refuse_repeat(source: Source, first: int, second: int) -> None:
    """Reads the corpus once more up to the repeated id, for the line numbers."""
    found = []
    for row, (where, passage) in enumerate(source.read(None)):
        if row in (first, second):
            found.append((where, passage.id))
        if row == second:
            break
    (first_where, id_), (second_where, other) = found
    assert id_ == other, f"{id_!r} and {other!r} have the same 64-bit hash; run again"
    first_line = first_where.replace(f"{source.files[0]}:", "line ")
    raise InputError(
        f"{second_where}: passage id {id_!r} occurs twice, first at {first_line}; ids must be"
        " unique"
    )


# --- the questions


def _questions(
    config: Config,
    key: str,
    source: Source,
    *,
    qrels: dict[str, Path],
    table: HashTable,
    count: Counter[str],
) -> Iterator[Question]:
    """The questions to keep of one file; fills in `count` as it goes."""
    split = named.split_of(key)
    with _reading(f"prepare {key}", source) as on_read:
        rows: Iterable[RawQuestion] = source.read(on_read)
        if split != "train":
            rows = raw.unique(rows)
        if key in qrels:
            rows = _with_qrels(rows, formats.read_qrels(qrels[key]), count)
        rows = _usable(rows, split, count, judged=key in qrels)
        if split == "train" and config.data.max_train_questions:
            most = config.data.max_train_questions
            rows = _drawn(rows, count, most=most, seed=config.seed)
        for row in rows:
            question = _resolve(row, table, count)
            count["kept"] += 1
            count["without gold passage"] += not question.positives
            count["without answers"] += not question.answers
            count["hard negatives"] += len(question.hard_negatives)
            count["with a teacher's scores"] += bool(question.teacher_scores)
            yield question
    if not count["kept"]:
        name = named.questions(config.data)[key]
        raise InputError(f"{name} has no question to use as data.{split} ({_report(count)})")


def _usable(
    rows: Iterable[RawQuestion], split: str, count: Counter[str], *, judged: bool
) -> Iterator[RawQuestion]:
    for row in rows:
        if reason := _unusable(row, split, judged=judged):
            count[f"dropped: {reason}"] += 1
        else:
            yield row


def _drawn(
    rows: Iterable[RawQuestion], count: Counter[str], *, most: int, seed: int
) -> list[RawQuestion]:
    """So many of the rows from all over their file, in its order; holds no more than these
    (reservoir sampling, Vitter, 1985).
    """
    rng = random.Random(seed)
    held: list[tuple[int, RawQuestion]] = []
    for number, row in enumerate(rows):
        if number < most:
            held.append((number, row))
        else:
            count["left out by data.max_train_questions"] += 1
            place = rng.randrange(number + 1)
            if place < most:
                held[place] = (number, row)
    return [row for _, row in sorted(held, key=lambda one: one[0])]


def _unusable(row: RawQuestion, split: str, *, judged: bool) -> str:
    """Why a question is left out; empty for one to keep."""
    if row.unusable:
        return row.unusable
    if split != "test" and not row.positives:
        return "no positive passage"
    if judged and not row.positives and not row.answers:
        return "no positive passage in the qrels and no answers"
    return ""


def _with_qrels(
    rows: Iterable[RawQuestion], qrels: Qrels, count: Counter[str]
) -> Iterator[RawQuestion]:
    """The questions with the passages of the qrels in place of their own."""
    for row in rows:
        negatives = qrels.negatives.get(row.id, row.hard_negatives)
        yield row._replace(
            positives=tuple(qrels.positives.pop(row.id, ())),
            hard_negatives=tuple(dict.fromkeys(negatives)),
            where=qrels.where.get(row.id, row.where),
        )
    count["judged in qrels but not asked"] += len(qrels.positives)


def _noted(rows: Iterable[Question], asked: HashedTexts) -> Iterator[Question]:
    for row in rows:
        asked.add(comparable(row.question))
        yield row


def _resolve(row: RawQuestion, table: HashTable, count: Counter[str]) -> Question:
    """Ids -> rows. Every gold passage must be in the corpus; negatives that are not (it may be a
    part of a larger one) are left out.
    """
    positives = table.rows(row.positives)
    if -1 in positives:
        missing = row.positives[positives.index(-1)]
        raise InputError(
            f"{row.where}: gold passage {missing!r} is not in the corpus; data.passages must hold"
            " every gold passage, or be empty where the questions carry their passages"
        )
    gold = set(positives)
    negatives = []
    for ids in (row.hard_negatives, row.negatives):
        found = [other for other in table.rows(ids) if other != -1]
        count["negatives dropped: not in the corpus"] += len(ids) - len(found)
        kept = [other for other in found if other not in gold]
        count["negatives dropped: also gold"] += len(found) - len(kept)
        negatives.append(tuple(dict.fromkeys(kept)))
    scored = table.rows([id_ for id_, _ in row.teacher_scores])
    scores: dict[int, float] = {}
    for known, (_, score) in zip(scored, row.teacher_scores, strict=True):
        scores.setdefault(known, score)
    scores.pop(-1, None)
    return Question(
        id=row.id,
        question=row.question,
        answers=row.answers,
        positives=tuple(dict.fromkeys(positives)),
        hard_negatives=negatives[0],
        negatives=negatives[1],
        teacher_scores=tuple(scores.items()),
    )


# --- what is said


def _report(count: Counter[str]) -> str:
    """All counts but the zeros, as `1,500 kept, 3 dropped: no positive passage`."""
    parts = [f"{n:,} {what}" for what, n in count.items() if n or what == "kept"]
    return ", ".join(parts)


def _warn_of_overlap(asked: dict[str, HashedTexts]) -> None:
    """Questions that are asked again elsewhere: what is learned by heart would be taken for
    skill.
    """
    pairs = [(test, other) for test in asked for other in ("train", "dev") if "test" in test]
    for split, other in [*pairs, ("dev", "train")]:
        if split in asked and other in asked:
            repeated = len(asked[split].rows_also_in(asked[other]))
            if repeated:
                console.say(
                    f"prepare: WARNING: {repeated:,} of {len(asked[split]):,} {split} questions are"
                    f" also in {other}; `dpr inspect` lists them"
                )


@contextlib.contextmanager
def _reading(title: str, source: Source) -> Iterator[OnRead]:
    """Progress in megabytes of the files; yields what is to be told the bytes read."""
    done_bytes = 0
    total_bytes = sum(path.stat().st_size for path in source.files)
    with console.progress(title, total_bytes // MEGABYTE, "MB") as advance:

        def on_read(count: int) -> None:
            nonlocal done_bytes
            before, done_bytes = done_bytes // MEGABYTE, done_bytes + count
            if done_bytes // MEGABYTE > before:
                advance(done_bytes // MEGABYTE - before)

        yield on_read
