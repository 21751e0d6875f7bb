"""What the step is held against: batches with every unevenness, and their loss and gradient from
loops in float64 NumPy.
"""

import functools
import itertools

import jax
import numpy as np

from dpr_jax import parallel
from dpr_jax.model import dual_encoder
from dpr_jax.model.bert import BertShape
from dpr_jax.model.dual_encoder import Encoder, Params, Tokens
from dpr_jax.training import optimizer
from dpr_jax.training.step import LOG_TEMPERATURE, Batch, StepSettings, global_gradient

SHAPE = BertShape(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
)
QUESTIONS, PASSAGES = 8, 3  # B, G
TEMPERATURE = 0.7

# float32 carries 1.2e-7 a rounding; a gradient through a layer and a softmax sums some hundred of
# them
TOLERANCE = 1e-5


def make_tokens(rng: np.random.Generator, rows: int, length: int) -> Tokens:
    ids_BL = rng.integers(1, SHAPE.vocab_size, (rows, length)).astype(np.int32)
    return Tokens(ids_BL, rng.integers(2, length + 1, rows).astype(np.int32))


def make_batch(rng: np.random.Generator) -> Batch:
    """Uneven lengths, dummies, duplicate passages, and a question that only fills up."""
    texts_P = rng.permutation(100)[: QUESTIONS * PASSAGES].astype(np.int32)
    texts_P[2] = -1  # a dummy
    texts_P[7] = texts_P[8] = -1  # question 2 has no hard negative
    texts_P[4] = texts_P[0]  # question 1's hard negative is question 0's positive
    texts_P[18] = texts_P[9]  # questions 3 and 6 have one positive
    positives_BM = np.full((QUESTIONS, 2), -2, np.int32)
    positives_BM[:, 0] = texts_P[::PASSAGES]
    positives_BM[3, 1] = texts_P[13]  # a second positive, in the batch
    weight_B = np.ones(QUESTIONS, np.float32)
    weight_B[5] = 0
    return Batch(
        make_tokens(rng, QUESTIONS, 6),
        make_tokens(rng, QUESTIONS * PASSAGES, 9),
        texts_P,
        positives_BM,
        weight_B,
    )


def with_teacher(rng: np.random.Generator, batch: Batch) -> Batch:
    """A teacher that left out whole questions, a positive, a hard negative, and all dummies."""
    scores_BG = rng.normal(0, 3, (QUESTIONS, PASSAGES)).astype(np.float32)
    scores_BG[:2] = np.nan  # the first of four devices learns nothing from it
    scores_BG[3, 0] = scores_BG[6, 2] = np.nan
    scores_BG[batch.passage_texts_P.reshape(QUESTIONS, PASSAGES) < 0] = np.nan
    return batch._replace(teacher_scores_BG=scores_BG)


@functools.cache
def make_params() -> Params:
    encoder = Encoder(SHAPE)
    tokens = Tokens(np.ones((1, 4), np.int32), np.array([4], np.int32))
    init = jax.jit(lambda key: encoder.init(key, tokens, train=False)["params"])
    # weights of 0.02 give near-uniform scores, and with them gradients of pure noise
    towers = [
        jax.tree.map(lambda leaf: np.asarray(leaf) * (5 if leaf.ndim > 1 else 1), init(key))
        for key in jax.random.split(jax.random.key(1))
    ]
    return dual_encoder.dual_params(*towers, shared=False)


def make_settings(**changes: object) -> StepSettings:
    rate = functools.partial(optimizer.learning_rate, peak=1e-3, warmup_steps=2, total_steps=10)
    adamw = optimizer.make(rate, weight_decay=0.01, eps=1e-8, clip_norm=1.0)
    settings = StepSettings(Encoder(SHAPE), adamw, TEMPERATURE, mask_duplicates=True, seed=3)
    return settings._replace(**changes)


# --- the reference -----------------------------------------------------------


@jax.jit
def pull_back(
    params: Params, batch: Batch, wanted: tuple[jax.Array, jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], Params]:
    """The vectors of a whole batch, and what gradients of them say of the weights."""

    def vectors(params: Params) -> tuple[jax.Array, jax.Array]:
        return (
            dual_encoder.encode(Encoder(SHAPE), params, "question", batch.question),
            dual_encoder.encode(Encoder(SHAPE), params, "passage", batch.passages),
        )

    found, pull = jax.vjp(vectors, params)
    return found, pull(wanted)[0]


class Reference:
    """Loss and gradients of vectors, question by question and candidate by candidate, float64."""

    def __init__(
        self, q_BD: np.ndarray, p_PD: np.ndarray, batch: Batch, settings: StepSettings
    ) -> None:
        self.loss = self.log_temperature_gradient = 0.0
        q_BD, p_PD = q_BD.astype(np.float64), p_PD.astype(np.float64)
        self.question_gradient = np.zeros_like(q_BD)
        self.passage_gradient = np.zeros_like(p_PD)
        texts, known = batch.passage_texts_P, batch.positive_texts_BM

        def excluded(i: int, j: int) -> bool:
            """Whether passage j is no negative of question i."""
            holds = batch.holds_answer_BP
            return (settings.mask_duplicates and texts[j] in known[i]) or (
                holds is not None and holds[i, batch.passage_columns_P[j]]
            )

        widths = (*settings.matryoshka_widths, q_BD.shape[1])
        terms = len(widths) * (2 if settings.symmetric else 1)
        for width, i in itertools.product(widths, range(QUESTIONS)):
            share = batch.weight_B[i] / batch.weight_B.sum() / terms
            share *= 1 - settings.distillation_weight
            own = i * PASSAGES
            passages = [
                j for j in range(len(texts)) if j == own or (texts[j] >= 0 and not excluded(i, j))
            ]
            self._add(
                share,
                (q_BD[i, :width], self.question_gradient[i, :width]),
                (p_PD[:, :width], self.passage_gradient[:, :width]),
                passages,
                own,
            )
            if settings.symmetric:
                questions = [
                    j
                    for j in range(QUESTIONS)
                    if j == i or (texts[j * PASSAGES] >= 0 and not excluded(j, own))
                ]
                self._add(
                    share,
                    (p_PD[own, :width], self.passage_gradient[own, :width]),
                    (q_BD[:, :width], self.question_gradient[:, :width]),
                    questions,
                    i,
                )
        if settings.distillation != "off":
            self._learn_from_teacher(q_BD, p_PD, batch, settings, widths)

    def _learn_from_teacher(
        self,
        q_BD: np.ndarray,
        p_PD: np.ndarray,
        batch: Batch,
        settings: StepSettings,
        widths: tuple[int, ...],
    ) -> None:
        known = np.isfinite(batch.teacher_scores_BG)
        taught = [
            i for i in range(QUESTIONS) if batch.weight_B[i] and known[i, 0] and known[i, 1:].any()
        ]
        for width, i in itertools.product(widths, taught):
            scored = np.flatnonzero(known[i])
            teacher = batch.teacher_scores_BG[i, scored].astype(np.float64)
            self._imitate(
                settings.distillation_weight / len(taught) / len(widths),
                (q_BD[i, :width], self.question_gradient[i, :width]),
                (p_PD[:, :width], self.passage_gradient[:, :width]),
                i * PASSAGES + scored,
                teacher,
                settings.distillation,
            )

    def _imitate(
        self,
        share: float,
        one: tuple[np.ndarray, np.ndarray],
        candidates: tuple[np.ndarray, np.ndarray],
        stands: np.ndarray,
        teacher: np.ndarray,
        how: str,
    ) -> None:
        scores = candidates[0][stands] @ one[0] / TEMPERATURE
        if how == "kl":
            wanted, found = (np.exp(x) / np.exp(x).sum() for x in (teacher, scores))
            self.loss += share * wanted @ np.log(wanted / found)
            slope = found - wanted
        else:
            error = (scores[0] - scores[1:]) - (teacher[0] - teacher[1:])
            self.loss += share * np.mean(error**2)
            slope = np.append(2 * error.sum(), -2 * error) / len(error)
        self._push(share, one, candidates, stands, slope, scores)

    def _add(
        self,
        share: float,
        one: tuple[np.ndarray, np.ndarray],
        candidates: tuple[np.ndarray, np.ndarray],
        stands: list[int],
        own: int,
    ) -> None:
        scores = candidates[0][stands] @ one[0] / TEMPERATURE
        exponents = np.exp(scores - scores.max())
        softmax = exponents / exponents.sum()
        at = stands.index(own)
        self.loss -= share * np.log(softmax[at])
        softmax[at] -= 1
        self._push(share, one, candidates, stands, softmax, scores)

    def _push(
        self,
        share: float,
        one: tuple[np.ndarray, np.ndarray],
        candidates: tuple[np.ndarray, np.ndarray],
        stands: list[int] | np.ndarray,
        slope: np.ndarray,
        scores: np.ndarray,
    ) -> None:
        """What the slope of a loss in some scores says of the vectors behind them, and of the
        temperature.
        """
        self.log_temperature_gradient -= share * slope @ scores
        one[1][...] += share * slope @ candidates[0][stands] / TEMPERATURE
        candidates[1][stands] += share * np.outer(slope, one[0]) / TEMPERATURE


def reference(params: Params, batch: Batch, settings: StepSettings) -> tuple[float, Params]:
    """Loss and gradient on one device."""
    zeros = (
        np.zeros((QUESTIONS, 16), np.float32),
        np.zeros((QUESTIONS * PASSAGES, 16), np.float32),
    )
    towers = {side: params[side] for side in ("question", "passage")}
    vectors, _ = pull_back(towers, batch, zeros)
    plain = Reference(*map(np.asarray, vectors), batch, settings)
    wanted = plain.question_gradient, plain.passage_gradient
    _, grads = pull_back(towers, batch, tuple(x.astype(np.float32) for x in wanted))
    if LOG_TEMPERATURE in params:
        grads[LOG_TEMPERATURE] = plain.log_temperature_gradient
    return plain.loss, grads


def assert_close(found: object, wanted: object, tolerance: float = TOLERANCE) -> None:
    """Every leaf, relative to its largest entry or a tenth of the tree's.

    The tenth is for leaves whose gradient is zero but for rounding: a shift of all passages alike,
      which is what the passage tower's last
    bias does, changes no softmax.
    """
    overall = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        scale = max(np.abs(b).max(), overall * 0.1)
        error = np.abs(np.asarray(a) - np.asarray(b)).max() / scale
        assert error < tolerance, (jax.tree_util.keystr(path), error)


# --- the mapped step ---------------------------------------------------------


KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")


def collectives(program: str) -> dict[str, int]:
    """How many of each kind there are in a compiled program; none may be inside a loop."""
    outside = program[program.index("\nENTRY ") :]
    counted = {kind: program.count(f" {kind}(") for kind in KINDS}
    assert counted == {kind: outside.count(f" {kind}(") for kind in KINDS}
    return counted


def mapped_gradient(
    kind: str, count: int, params: Params, batch: Batch, settings: StepSettings
) -> tuple[float, Params, dict[str, int]]:
    """Loss, gradient and number of collectives of the compiled program on `count` devices."""
    spmd = parallel.spmd(kind, jax.devices()[:count])
    gradient = spmd.map(
        functools.partial(global_gradient, settings=settings, dropout_key=None, axis=parallel.AXIS)
    )
    inputs = spmd.replicate(params), spmd.shard(batch)
    program = gradient.lower(*inputs).compile()
    grads, sums = spmd.fetch(program(*inputs))
    return sums["loss"], grads, collectives(program.as_text())
