"""The stage that reads the raw files and writes the data sets `corpus` and `questions`."""

import contextlib
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dpr_jax import artifacts, console
from dpr_jax.config import Config
from dpr_jax.data import named, raw, store
from dpr_jax.data.passage_rows import HashedTexts, HashTable
from dpr_jax.data.raw import Passage, RawQuestion, comparable
from dpr_jax.data.readers import formats
from dpr_jax.data.readers.detect import Source
from dpr_jax.data.readers.formats import Qrels
from dpr_jax.data.readers.rows import OnRead
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir

MEGABYTE = 1_000_000
NOT_THERE = "no gold passage in the corpus, and no answers"


class CorpusFacts(NamedTuple):
    """Facts of the corpus that the questions need, and that are reported.

    Attributes:
      table: passage id -> row.
      passages: how many there are.
      repeated_texts: those whose text another one has.
      empty_texts: those without text.
      repeats: rows of the source that repeat an id with its title and text, and were left out.
    """

    table: HashTable
    passages: int
    repeated_texts: int
    empty_texts: int
    repeats: int


def run(config: Config, workdir: WorkDir) -> None:
    """Writes data-HASH of the raw files, whole or not at all, and makes it the current data.

    Raises:
      InputError: a file is missing, of no known layout, or broken (file and line), a passage id
        has two texts, a gold passage is not in the corpus (data.on_missing), or a split has no
        usable question.
    """
    data = named.with_cut(config.data)
    documents: Counter[str] = Counter()
    sources, qrels = named.recognised(data, config.model.init, documents)
    origin = artifacts.made_from(
        "prepare",
        {
            "max_train_questions": data.max_train_questions,
            "layouts": {key: source.layout for key, source in sources.items()},
            "cut": named.cut_settings(data, config.model.init, sources),
        }
        | ({"drawn_by_seed": config.seed} if data.max_train_questions else {})
        | ({"on_missing": data.on_missing} if data.on_missing else {}),
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
        twice = f"; {facts.repeats:,} stood there again and are kept once" if facts.repeats else ""
        console.say(
            f"prepare: corpus: {facts.passages:,} passages ({facts.repeated_texts:,} repeat"
            f" another's text, {facts.empty_texts:,} have none){twice}"
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
    """Writes the data set `corpus` of a source of passages, one that stands there twice once.

    Raises:
      InputError: there is no passage, a row is broken, or an id occurs twice with different texts
        (file and line).
    """
    seen = _Seen()
    with _reading("prepare corpus", source) as on_read:
        files = store.write_corpus(folder, seen.noting(p for _, p in _passages(source, on_read)))
    repeats = seen.ids.table().repeats()
    if repeats:
        repeated = (folder / "corpus").rename(folder / "repeated")
        written = store.Corpus(repeated)
        _refuse_other_texts(source, written, repeats)
        again = {row for _, row in repeats}
        seen = _Seen()
        once = (passage for row, passage in enumerate(written) if row not in again)
        files = store.write_corpus(folder, seen.noting(once))
        shutil.rmtree(repeated)
    facts = CorpusFacts(
        table=seen.ids.table(),
        passages=len(seen.ids),
        repeated_texts=len(seen.ids) - seen.texts.distinct(),
        empty_texts=seen.empty,
        repeats=len(repeats),
    )
    return facts, files


class _Seen:
    """Ids and texts of passages, as hashes, taken as the passages go by."""

    def __init__(self) -> None:
        self.ids, self.texts, self.empty = HashedTexts(), HashedTexts(), 0

    def noting(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        for passage in passages:
            self.ids.add(passage.id)
            self.texts.add(passage.text)
            self.empty += passage.text == ""
            yield passage


def _passages(source: Source, on_read: OnRead) -> Iterator[tuple[str, Passage]]:
    """Yields the passages; raises an error where there is none."""
    passages = source.read(on_read)
    first = next(passages, None)
    if first is None:
        names = ", ".join(str(path) for path in source.files)
        raise InputError(
            f"{names}: no passage in {source.layout}; the corpus is empty, data.passages is not"
            " set to a file that has some"
        )
    yield first
    yield from passages


def _refuse_other_texts(
    source: Source, written: store.Corpus, repeats: list[tuple[int, int]]
) -> None:
    """Raises an error where a repeated id has another title or text than the first time."""
    for start in range(0, len(repeats), store.ROWS_PER_READ):
        pairs = repeats[start : start + store.ROWS_PER_READ]
        firsts, laters = (written.rows(rows) for rows in zip(*pairs, strict=True))
        for pair, first, later in zip(pairs, firsts, laters, strict=True):
            if first != later:
                _refuse_repeat(source, *pair)


def _refuse_repeat(source: Source, first: int, second: int) -> None:
    """Raises the error for an id with two texts; reads the corpus again for the line numbers."""
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
        f"{second_where}: passage id {id_!r} occurs twice, first at {first_line} with another"
        " text; ids must be unique"
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
        judgements = formats.read_qrels(qrels[key]) if key in qrels else None
        if judgements:
            _warn_of_contradictions(judgements)
            rows = _with_qrels(rows, judgements, count)
        on_missing = config.data.on_missing or ("drop" if judgements else "error")
        rows = _in_corpus(rows, table, judgements, count, on_missing=on_missing)
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
    """Yields the questions with the passages of the qrels in place of their own."""
    asked = set()
    for row in rows:
        asked.add(row.id)
        positives = qrels.positives.get(row.id, {})
        negatives = qrels.negatives.get(row.id, row.hard_negatives)
        yield row._replace(
            positives=tuple(positives),
            grades=tuple(one.grade for one in positives.values()),
            hard_negatives=tuple(dict.fromkeys(negatives)),
        )
    count["judged in qrels but not asked"] += len(qrels.positives.keys() - asked)


def _in_corpus(
    rows: Iterable[RawQuestion],
    table: HashTable,
    qrels: Qrels | None,
    count: Counter[str],
    *,
    on_missing: str,
) -> Iterator[RawQuestion]:
    """Yields the questions without the gold passages that the corpus lacks, and says how many."""
    dropped, example = 0, ""
    for row in rows:
        known = [found != -1 for found in table.rows(row.positives)]
        if not all(known):
            missing = row.positives[known.index(False)]
            where = qrels.where(row.id, missing) if qrels else row.where
            if on_missing == "error":
                raise InputError(
                    f"{where}: gold passage {missing!r} is not in the corpus; data.passages must"
                    " hold every gold passage; leave such passages out with --data.on-missing drop"
                )
            example = example or f"{where}: {missing!r}"
            dropped += known.count(False)
            row = row._replace(
                positives=tuple(itertools.compress(row.positives, known)),
                grades=tuple(itertools.compress(row.grades, known)),
                unusable=row.unusable or ("" if any(known) or row.answers else NOT_THERE),
            )
        yield row
    if dropped:
        count["gold passages dropped: not in the corpus"] += dropped
        console.say(
            f"prepare: WARNING: {dropped:,} gold passages are not in the corpus and are left out,"
            f" such as {example}"
        )


def _noted(rows: Iterable[Question], asked: HashedTexts) -> Iterator[Question]:
    for row in rows:
        asked.add(comparable(row.question))
        yield row


def _resolve(row: RawQuestion, table: HashTable, count: Counter[str]) -> Question:
    """Maps ids to rows; negatives that are not in the corpus are left out."""
    positives = table.rows(row.positives)
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
        grades=tuple(one for one in zip(positives, row.grades, strict=False) if one[1] > 1),
    )


# --- what is said


def _report(count: Counter[str]) -> str:
    """All counts but the zeros, as `1,500 kept, 3 dropped: no positive passage`."""
    parts = [f"{n:,} {what}" for what, n in count.items() if n or what == "kept"]
    return ", ".join(parts)


def _warn_of_contradictions(qrels: Qrels) -> None:
    if qrels.contradictions:
        console.say(
            f"prepare: WARNING: {len(qrels.contradictions):,} judgements contradict an earlier one,"
            f" which counts, such as {qrels.contradictions[0]}"
        )


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
