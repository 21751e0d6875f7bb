"""The weight of similarity against BM25 in a hybrid, found on the dev questions alone."""

import itertools

import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import Config
from dpr_jax.console import progress, say
from dpr_jax.data import ranks
from dpr_jax.data.store import Question, open_questions
from dpr_jax.errors import InputError
from dpr_jax.retrieval import fusion
from dpr_jax.retrieval.fusion import Ranking
from dpr_jax.retrieval.searcher import QUESTIONS_AT_ONCE, Opened, weight_origin
from dpr_jax.workdir import RetrieverDir, WorkDir

DEV_QUESTIONS = 2000  # the first so many: one number needs no more
CUTOFF = 100  # passages per question that the mean reciprocal rank looks at


def tune(retriever: RetrieverDir, opened: Opened, config: Config, *, rows: int) -> None:
    """Finds the weight with the best mean reciprocal rank of the dev questions' gold passages.

    It becomes the retriever's current weight-HASH, with all that were tried. Nothing is done where
    the current one belongs to the parts and the dev questions as they are.

    Args:
      retriever: the hybrid.
      opened: the same, from `open_retriever`.
      config: its settings.
      rows: passages in the corpus.

    Raises:
      InputError: there are no dev questions.
    """
    questions = _dev_questions(retriever.workdir)
    dev = artifacts.fingerprint(retriever.workdir.data / "manifest.json", "questions/questions-dev")
    origin = weight_origin(opened, dev)
    folder = retriever.place("weight", origin)
    if artifacts.is_fresh(folder / "manifest.json", origin):
        retriever.point("weight", folder)
        return

    # --- both rankings of the dev questions
    searchers = [part.start() for part in opened.parts]
    depth = min(fusion.DEPTH, rows)
    found: list[tuple[Ranking, ...]] = []
    title = f"retrieve {retriever.name}: weight, on dev"
    with progress(title, len(questions), "questions") as advance:
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            batch = questions[start : start + QUESTIONS_AT_ONCE]
            texts = [question.question for question in batch]
            found.append(tuple(searcher.search(texts, depth) for searcher in searchers))
            advance(len(batch))

    # --- what each weight makes of them
    rankings = [_joined(parts) for parts in zip(*found, strict=True)]
    gold = [question.positives for question in questions]
    tried = {}
    for weight in fusion.weights_to_try(*rankings):
        _, rows_QK = fusion.linear(*rankings, weight=weight, k=CUTOFF)
        tried[weight] = ranks.mean_reciprocal_rank(rows_QK, gold)
    best = max(tried, key=tried.__getitem__)
    alone = {
        name: ranks.mean_reciprocal_rank(rows[:, :CUTOFF], gold)
        for name, (_, rows) in zip(config.retrieve.parts, rankings, strict=True)
    }
    with artifacts.atomic_dir(folder) as partial:
        artifacts.write_manifest(
            partial / "manifest.json",
            origin,
            [],
            weight=best,
            questions=len(questions),
            mrr=alone | {"hybrid": [{"weight": w, "mrr": mrr} for w, mrr in tried.items()]},
        )
    retriever.point("weight", folder)
    shown = ", ".join(f"{name} {mrr:.4f}" for name, mrr in alone.items())
    say(
        f"retrieve: weight {best:g}, MRR@{CUTOFF} {tried[best]:.4f} on {len(questions):,} dev"
        f" questions ({shown})"
    )
    better = max(alone, key=alone.__getitem__)
    if alone[better] > tried[best]:
        say(f"retrieve: on the dev questions {better} alone is better than {retriever.name}")


def _dev_questions(workdir: WorkDir) -> list[Question]:
    try:
        dev = open_questions(workdir, "dev")
    except InputError as error:
        raise InputError(
            "the weight of a hybrid is found on the dev questions, which are not there"
            f" ({error}); give --retrieve.fusion-weight, or --retrieve.fusion rrf"
        ) from None
    return list(itertools.islice(dev, DEV_QUESTIONS))


def _joined(parts: tuple[Ranking, ...]) -> Ranking:
    scores, rows = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(rows)
