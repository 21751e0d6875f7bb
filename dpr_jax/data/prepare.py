"""The stage that reads the raw files and writes the data sets `corpus` and `questions`."""

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts, console, parallel
from dpr_jax.config import Config
from dpr_jax.data import named, raw, store, together
from dpr_jax.data.answers import is_unspaced
from dpr_jax.data.corpus import reading, write_corpus
from dpr_jax.data.passage_rows import HashedTexts, HashTable
from dpr_jax.data.raw import RawQuestion, comparable
from dpr_jax.data.readers import detect, judgements
from dpr_jax.data.readers.detect import Source
from dpr_jax.data.readers.judgements import Qrels
from dpr_jax.data.readers.urls import located
from dpr_jax.data.store import Question
from dpr_jax.data.tally import Tally
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir

NOT_THERE = "no gold passage in the corpus, and no answers"


class _Inputs(NamedTuple):
    """The raw files of a run of this stage.

    Attributes:
      sources, qrels: by key, as of `named.recognised`.
      documents: what becomes of documents that are cut as they are read.
      origin: what the data are made from.
      urls: as of `named.Checksums`.
      out: the folder of the data.
    """

    sources: dict[str, Source]
    qrels: dict[str, Path]
    documents: Counter[str]
    origin: dict[str, Any]
    urls: dict[str, list[str]]
    out: Path


def run(config: Config, workdir: WorkDir) -> None:
    """Writes data-HASH of the raw files, whole or not at all, and makes it the current data.

    All processes of a run call it: those that see the corpus read it together, process 0 does the
    rest. The bytes are the same with any number of them.

    Raises:
      InputError: a file is missing, of no known layout, or broken (file and line), a passage id
        has two texts, a gold passage is not in the corpus (data.on_missing), or a split has no
        usable question.
    """
    found: list[_Inputs] = []
    parallel.on_main(lambda: found.append(_inputs(config, workdir)))
    inputs = found[0] if found else None
    name, fresh = 0, False
    if inputs:
        name = int(inputs.out.name.rpartition("-")[2], 16)
        fresh = artifacts.is_fresh(inputs.out / "manifest.json", inputs.origin)
    name, fresh = parallel.of_main(np.array([name, fresh], np.uint32)).tolist()
    pieces = None
    if not fresh:
        source = inputs.sources.get("passages") if inputs else together.source_here(config)
        building = workdir.home / f"data-{name:08x}.building"
        pieces = together.write_pieces(source, building, workdir.remote)
    parallel.on_main(lambda: _finish(config, workdir, inputs, pieces, fresh=bool(fresh)))


def _inputs(config: Config, workdir: WorkDir) -> _Inputs:
    named.refuse_holding(config.data, workdir.root)
    data = named.with_cut(config.data)
    for name, path in named.own_corpora(data).items():
        console.say(
            f"prepare: test set {name} has a corpus of its own in {path}; `dpr pipeline` prepares"
            f" and answers it in {workdir.root / 'sets' / name}"
        )
    documents: Counter[str] = Counter()
    sources, qrels = named.recognised(data, config.model.init, documents)
    checksums = named.Checksums(workdir)
    origin = artifacts.made_from(
        "prepare",
        {
            "max_train_questions": data.max_train_questions,
            "layouts": {key: source.layout for key, source in sources.items()},
            "cut": named.cut_settings(data, config.model.init, sources),
        }
        | ({"drawn_by_seed": config.seed} if data.max_train_questions else {})
        | {
            name: getattr(data, name)
            for name in ("on_missing", "columns", "positive_from")
            if getattr(data, name) not in (None, {})
        },
        {key: source.fingerprint(checksums.of) for key, source in sources.items()}
        | {f"{key}_qrels": checksums.of(qrels[key]) for key in qrels},
        form=store.FORM,
    )
    out = workdir.place("data", origin)
    return _Inputs(sources, qrels, documents, origin, checksums.urls, out)


def _finish(
    config: Config, workdir: WorkDir, inputs: _Inputs, pieces: Path | None, *, fresh: bool
) -> None:
    """Writes what is not written yet, and makes it the current data."""
    sources, qrels, documents, origin, urls, out = inputs
    data = config.data
    if fresh:
        workdir.point("data", out)
        console.say(f"prepare: up to date ({out})")
        return
    names = {"passages": data.passages} | named.questions(data)
    _say_recognised(names, sources, qrels)

    # --- the corpus, which tells where each passage id stands
    with artifacts.atomic_dir(out) as folder:
        passages = sources.pop("passages", None) or named.carried(sources)
        facts, corpus_files = write_corpus(passages, folder, pieces)
        if documents:
            told = ", ".join(f"{n:,} {what}" for what, n in documents.items() if n)
            console.say(f"prepare: corpus: cut {told}")
        twice = f"; {facts.repeats:,} stood there again and are kept once" if facts.repeats else ""
        console.say(
            f"prepare: corpus: {facts.passages:,} passages ({facts.repeated_texts:,} repeat"
            f" another's text, {facts.empty_texts:,} have none){twice}"
        )
        _say_literal("corpus", passages)

        # --- the questions, which name passages by row
        counts = {key: Tally() for key in sources}
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
            console.say(f"prepare: {key}: {count.report()}")
            _say_literal(key, sources[key])
            for line in count.notable():
                console.say(f"prepare: WARNING: {key}: {line}")
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
            **({"urls": urls} if urls else {}),
        )
    shutil.rmtree(out.with_name(out.name + ".building"), ignore_errors=True)
    workdir.point("data", out)


def dry_run(config: Config) -> None:
    """Prints what is recognised in each file, and writes nothing.

    Raises:
      InputError: a file is missing, of no known layout, or broken in its first rows.
    """
    data = named.with_cut(config.data)
    sources, qrels = named.recognised(data, config.model.init, Counter())
    _say_recognised({"passages": data.passages} | named.questions(data), sources, qrels)


def _say_recognised(
    names: dict[str, str], sources: dict[str, Source], qrels: dict[str, Path]
) -> None:
    """Prints one line per file: its layout, its columns, its first row as understood."""
    for key, source in sources.items():
        console.say(f"prepare: {key}: {located(names[key])} is {detect.described(source)}")
        if key in qrels:
            console.say(f"prepare: {key}_qrels: {qrels[key]} is {judgements.described(qrels[key])}")


# --- the questions


def _questions(
    config: Config,
    key: str,
    source: Source,
    *,
    qrels: dict[str, Path],
    table: HashTable,
    count: Tally,
) -> Iterator[Question]:
    """Yields the questions to keep of one file; fills in `count` as it goes."""
    split = named.split_of(key)
    with reading(f"prepare {key}", source) as on_read:
        rows: Iterable[RawQuestion] = source.read(on_read)
        if split != "train":
            rows = raw.unique(rows)
        judged = judgements.read_qrels(qrels[key]) if key in qrels else None
        if judged:
            _warn_of_contradictions(judged)
            rows = _with_qrels(rows, judged, count)
        on_missing = config.data.on_missing or ("drop" if judged else "error")
        rows = _in_corpus(rows, table, judged, count, on_missing=on_missing)
        rows = _usable(rows, split, count, judged=key in qrels)
        if split == "train" and config.data.max_train_questions:
            most = config.data.max_train_questions
            rows = _drawn(rows, count, most=most, seed=config.seed)
        for row in rows:
            question = _resolve(row, table, count)
            count["kept"] += 1
            count["without gold passage"] += not question.positives
            count["without answers"] += not question.answers
            count["with answers in scripts without spaces"] += is_unspaced(question.answers)
            count["hard negatives"] += len(question.hard_negatives)
            count["with a teacher's scores"] += bool(question.teacher_scores)
            yield question
    if not count["kept"]:
        name = named.questions(config.data)[key]
        raise InputError(f"{name} has no question to use as data.{split} ({count.report()})")


def _usable(
    rows: Iterable[RawQuestion], split: str, count: Tally, *, judged: bool
) -> Iterator[RawQuestion]:
    for row in rows:
        count.of["questions"] += 1
        if reason := _unusable(row, split, judged=judged):
            count.drop(f"dropped: {reason}", row.where)
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
    """Returns the reason to leave a question out; empty for one to keep."""
    if row.unusable:
        return row.unusable
    if split != "test" and not row.positives:
        return "no positive passage"
    if judged and not row.positives and not row.answers:
        return "no positive passage in the qrels and no answers"
    return ""


def _with_qrels(rows: Iterable[RawQuestion], qrels: Qrels, count: Tally) -> Iterator[RawQuestion]:
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
    unasked = [id_ for id_ in qrels.positives if id_ not in asked]
    if unasked:
        example = qrels.where(unasked[0], next(iter(qrels.positives[unasked[0]])))
        count.drop(
            "judged in qrels but not asked", example, count=len(unasked), of="judged questions"
        )
        count.of["judged questions"] = len(qrels.positives)


def _in_corpus(
    rows: Iterable[RawQuestion],
    table: HashTable,
    qrels: Qrels | None,
    count: Tally,
    *,
    on_missing: str,
) -> Iterator[RawQuestion]:
    """Yields the questions without the gold passages that the corpus lacks, which are counted."""
    for row in rows:
        known = [found != -1 for found in table.rows(row.positives)]
        count.of["gold passages"] += len(known)
        if not all(known):
            missing = row.positives[known.index(False)]
            where = qrels.where(row.id, missing) if qrels else row.where
            if on_missing == "error":
                raise InputError(
                    f"{where}: gold passage {missing!r} is not in the corpus; data.passages must"
                    " hold every gold passage; leave such passages out with --data.on-missing drop"
                )
            lost, reason = known.count(False), "gold passages dropped: not in the corpus"
            count.drop(reason, f"{where}: {missing!r}", count=lost, of="gold passages")
            row = row._replace(
                positives=tuple(itertools.compress(row.positives, known)),
                grades=tuple(itertools.compress(row.grades, known)),
                unusable=row.unusable or ("" if any(known) or row.answers else NOT_THERE),
            )
        yield row


def _noted(rows: Iterable[Question], asked: HashedTexts) -> Iterator[Question]:
    for row in rows:
        asked.add(comparable(row.question))
        yield row


def _resolve(row: RawQuestion, table: HashTable, count: Tally) -> Question:
    """Maps ids to rows; negatives that are not in the corpus are left out."""
    positives = table.rows(row.positives)
    gold = set(positives)
    negatives = []
    for ids in (row.hard_negatives, row.negatives):
        rows = table.rows(ids)
        found = [other for other in rows if other != -1]
        kept = [other for other in found if other not in gold]
        count.of["negatives"] += len(ids)
        for reason, lost in (
            ("not in the corpus", len(ids) - len(found)),
            ("also gold", len(found) - len(kept)),
        ):
            count.drop(f"negatives dropped: {reason}", row.where, count=lost, of="negatives")
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


def _say_literal(key: str, source: Source) -> None:
    """Warns of rows whose quotes are letters, where CSV would have them close."""
    if source.literal is not None and source.literal.count:
        console.say(
            f"prepare: WARNING: {key}: {source.literal.count:,} rows have quotes that do not fit"
            f" CSV and were taken as letters, such as {source.literal.example}"
        )


def _warn_of_contradictions(qrels: Qrels) -> None:
    if qrels.contradictions:
        console.say(
            f"prepare: WARNING: {len(qrels.contradictions):,} judgements contradict an earlier one,"
            f" which counts, such as {qrels.contradictions[0]}"
        )


def _warn_of_overlap(asked: dict[str, HashedTexts]) -> None:
    """Warns of questions that are in two splits: a model could have learned them by heart."""
    pairs = [(test, other) for test in asked for other in ("train", "dev") if "test" in test]
    for split, other in [*pairs, ("dev", "train")]:
        if split in asked and other in asked:
            repeated = len(asked[split].rows_also_in(asked[other]))
            if repeated:
                console.say(
                    f"prepare: WARNING: {repeated:,} of {len(asked[split]):,} {split} questions are"
                    f" also in {other}; `dpr inspect` lists them"
                )
