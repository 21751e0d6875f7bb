"""The weight of similarity against BM25 in a hybrid, found on the dev questions and on them
alone.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.console import progress, say
from dpr_jax.data.store import Question, open_questions
from dpr_jax.errors import InputError
from dpr_jax.retrieval import fusion
from dpr_jax.retrieval.fusion import Ranking

DEV_QUESTIONS = 2000  # the first so many: one number needs no more
CUTOFF = 100  # passages a question that the mean reciprocal rank looks at


def tuned(
    workdir: WorkDir,
    name: str,
    depends_on: tuple[dict[str, Any], dict[str, str]],
    find_both: Callable[[list[str]], tuple[Ranking, Ranking]],
    *,
    batch_size: int,
) -> float:
    """The weight with the best mean reciprocal rank of the dev questions' gold passages.

    It is written to runs/NAME.weight.json with all that were tried, and read from there as long as
    nothing changed that it depends on.

    Args:
      name: of the run.
      depends_on: settings and inputs of the search.
      find_both: questions -> (BM25's ranking, the dense one).
      batch_size: questions searched at once.

    Raises:
      InputError: there are no dev questions.
    """
    file = workdir.runs / f"{name}.weight.json"
    origin = artifacts.made_from("fusion weight", *depends_on)
    if artifacts.is_fresh(file, origin):
        return artifacts.read_json(file)["weight"]

    # --- both rankings of the dev questions
    questions = _dev_questions(workdir)
    bm25: list[Ranking] = []
    dense: list[Ranking] = []
    with progress("retrieve: weight, on dev", len(questions), "questions") as advance:
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            both = find_both([question.question for question in batch])
            bm25.append(both[0])
            dense.append(both[1])
            advance(len(batch))

    # --- what each weight makes of them
    rankings = _joined(bm25), _joined(dense)
    gold = [question.positives for question in questions]
    tried = {}
    for weight in fusion.weights_to_try(*rankings):
        _, rows_QK = fusion.linear(*rankings, weight=weight, k=CUTOFF)
        tried[weight] = fusion.mean_reciprocal_rank(rows_QK, gold)
    best = max(tried, key=tried.__getitem__)
    alone = [fusion.mean_reciprocal_rank(rows[:, :CUTOFF], gold) for _, rows in rankings]
    artifacts.write_manifest(
        file,
        origin,
        [],
        weight=best,
        questions=len(questions),
        mrr={
            "bm25": alone[0],
            "dense": alone[1],
            "hybrid": [{"weight": weight, "mrr": mrr} for weight, mrr in tried.items()],
        },
    )
    say(
        f"retrieve: weight {best:g}, MRR@{CUTOFF} {tried[best]:.4f} on {len(questions):,} dev"
        f" questions (BM25 {alone[0]:.4f}, dense {alone[1]:.4f})"
    )
    return best


def _dev_questions(workdir: WorkDir) -> list[Question]:
    try:
        dev = open_questions(workdir, "dev")
    except InputError as error:
        raise InputError(
            f"the weight of a hybrid is found on the dev questions, which are not there ({error});"
            " give --retrieve.fusion-weight, or --retrieve.fusion rrf"
        ) from None
    return list(itertools.islice(dev, DEV_QUESTIONS))


def _joined(parts: list[Ranking]) -> Ranking:
    scores, rows = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(rows)
