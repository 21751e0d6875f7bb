"""The stage that finds hard negatives: what BM25 ranks high for a question and is no answer to it.

A top passage that is gold, holds an answer, or repeats a gold passage's text is passed over: trained on as a negative, it would teach
the opposite of the truth.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from dpr_jax import artifacts, logging
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.data import store
from dpr_jax.data.answers import has_answer
from dpr_jax.data.store import Corpus, Question
from dpr_jax.index import bm25

QUESTIONS_AT_ONCE = 256


def run(config: Config, workdir: WorkDir) -> None:
    """workdir.data -> workdir.data / "mined": the train and dev questions with their hard negatives replaced by mined ones.

    Raises:
      InputError: the prepared data are missing or damaged.
    """
    folder, match = workdir.data / "mined", config.evaluate.answer_match
    data = workdir.data / "manifest.json"
    origin = artifacts.made_from(
        "mine",
        {
            "depth": config.mine.depth,
            "window": config.mine.window,
            "k1": config.bm25.k1,
            "b": config.bm25.b,
            "answer_match": match,
        },
        {"data": artifacts.fingerprint(data)},
    )
    artifacts.restore_dir(folder)
    if artifacts.is_fresh(folder / "manifest.json", origin):
        logging.say("mine: up to date")
        return

    corpus = store.open_corpus(workdir)
    index = bm25.of_corpus(
        workdir.bm25,
        (passage.title_and_text for passage in corpus),
        count=len(corpus),
        corpus=artifacts.fingerprint(data, "corpus/"),
        k1=config.bm25.k1,
        b=config.bm25.b,
    )
    counts: dict[str, Counter[str]] = {}

    def mined(split: str) -> Iterator[Question]:
        questions = store.open_questions(workdir, split)
        counts[split] = count = Counter()
        with logging.progress(f"mine {split}", len(questions), "questions") as advance:
            rows = iter(questions)
            while batch := list(itertools.islice(rows, QUESTIONS_AT_ONCE)):
                _, rows_QK = index.search(
                    [one.question for one in batch], config.mine.window
                )
                ranked = [
                    [row for row in rows if row >= 0] for rows in rows_QK.tolist()
                ]
                text_of = _texts(corpus, batch, ranked, 2 * config.mine.depth)
                for question, best_first in zip(batch, ranked, strict=True):
                    negatives = hard_negatives(
                        question,
                        best_first,
                        text_of,
                        depth=config.mine.depth,
                        match=match,
                        count=count,
                    )
                    yield question._replace(hard_negatives=negatives)
                advance(len(batch))

    splits = [
        split
        for split in ("train", "dev")
        if split in artifacts.read_json(data)["questions"]
    ]
    with artifacts.atomic_dir(folder) as partial:
        files = store.write_questions(partial, {name: mined(name) for name in splits})
        kept = {name: counts[name]["questions"] for name in splits}
        artifacts.write_manifest(
            partial / "manifest.json", origin, files, questions=kept
        )
    for split in splits:
        _report(split, counts[split])


def hard_negatives(
    question: Question,
    ranked: Sequence[int],
    text_of: Callable[[int], str],
    *,
    depth: int,
    match: Literal["string", "regex"],
    count: Counter[str],
) -> tuple[int, ...]:
    """The first `depth` rows of a ranking that are not answers to the question.

    Args:
      question: with its gold rows and answers.
      ranked: corpus rows, best first.
      text_of: the text of a row.
      depth: how many to keep.
      match: how an answer is looked for in a text.
      count: gets what was kept, and what was passed over by which rule.
    """
    gold_texts = {_plain(text_of(row)) for row in question.positives}
    kept: list[int] = []
    for row in ranked:
        if len(kept) == depth:
            break
        if row in question.positives:
            count["gold"] += 1
        elif _plain(text_of(row)) in gold_texts:
            count["the text of a gold passage"] += 1
        elif has_answer(question.answers, text_of(row), match=match):
            count["with an answer"] += 1
        else:
            kept.append(row)
    count["questions"] += 1
    count["kept"] += len(kept)
    count["without any"] += not kept
    return tuple(kept)


def _texts(
    corpus: Corpus, batch: list[Question], ranked: list[list[int]], ahead: int
) -> Callable[[int], str]:
    """Texts by row: those of gold passages and of the first `ahead` of each ranking read at once, others when asked for."""
    likely = {row for question in batch for row in question.positives}
    likely |= {row for rows in ranked for row in rows[:ahead]}
    rows = sorted(likely)
    texts = {
        row: passage.text for row, passage in zip(rows, corpus.rows(rows), strict=True)
    }

    def text_of(row: int) -> str:
        if row not in texts:
            texts[row] = corpus[row].text
        return texts[row]

    return text_of


def _plain(text: str) -> str:
    """A text without what differs between copies: case and white space."""
    return " ".join(text.casefold().split())


def _report(split: str, count: Counter[str]) -> None:
    passed_over = ", ".join(
        f"{count[rule]:,} {rule}"
        for rule in ("gold", "the text of a gold passage", "with an answer")
    )
    logging.say(
        f"mine: {split}: {count['questions']:,} questions, {count['kept'] / count['questions']:.1f} hard negatives each; passed over: {passed_over}"
    )
    if count["without any"]:
        logging.say(
            f"mine: {split}: warning: {count['without any']:,} questions have no hard negative; a larger mine.window may find some"
        )
