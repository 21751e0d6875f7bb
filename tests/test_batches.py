"""The data order: the same for every number of processes, resumable by step number, drawn anew each
epoch.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from dpr_jax.config import Config
from dpr_jax.data import store
from dpr_jax.data.answers import has_answer
from dpr_jax.data.store import Question
from dpr_jax.errors import InputError
from dpr_jax.model import hf, tokenizer
from dpr_jax.training import batches, order
from dpr_jax.training.false_negatives import text_key
from dpr_jax.training.step import Batch
from dpr_jax.workdir import WorkDir


def mined_in(workdir: WorkDir) -> Path:
    return workdir.retriever("trained").current("mined")


def question(hard: tuple[int, ...], other: tuple[int, ...] = ()) -> Question:
    return Question("0", "who?", (), (7, 8), hard, other)


def test_hard_negatives_then_negatives_then_dummies() -> None:
    rng = np.random.default_rng(0)
    drawn = batches.draw(question((1,), (2,)), rng, hard_negatives=4, shuffle_positives=False)
    assert drawn.rows == (7, 1, 2, batches.NO_PASSAGE, batches.NO_PASSAGE)
    assert drawn.positives == (7, 8)


def test_draws_vary_and_cover_all() -> None:
    rng = np.random.default_rng(0)
    drawn = [
        batches.draw(question((1, 2, 3)), rng, hard_negatives=1, shuffle_positives=True)
        for _ in range(60)
    ]
    assert {one.rows[0] for one in drawn} == {7, 8}
    assert {one.rows[1] for one in drawn} == {1, 2, 3}


@pytest.fixture
def make_stream(nq_small_workdir: tuple[Config, WorkDir]):
    _, workdir = nq_small_workdir
    folder = hf.resolve(tiny.PACKAGED, "question")

    def stream(**changes: Any) -> list[Batch]:
        place = ("first_step", "process_index", "process_count")
        own = {name: changes.pop(name) for name in place if name in changes}
        questions = store.open_questions(workdir, "train", mined_in(workdir))
        settings = batches.BatchSettings(**{"batch_size": 8, "seed": 3, **changes})
        batches.check(questions, settings)
        rows = batches.stream(
            questions,
            store.open_corpus(workdir),
            tokenizer.load(folder, 24),
            tokenizer.load(folder, 48),
            settings,
            **own,
        )
        return list(itertools.islice(rows, 12))

    return stream


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    """The passages of each question, as a set-like sorted list."""
    return sorted(map(tuple, batch.passage_texts_P.reshape(-1, 2).tolist()))


def test_global_batch_is_the_same_for_any_process_count(make_stream) -> None:
    whole = make_stream()
    halves = [make_stream(process_index=i, process_count=2) for i in range(2)]
    for step, batch in enumerate(whole):
        joined = sorted(row for half in halves for row in rows_of(half[step]))
        assert joined == rows_of(batch)


def test_position_is_the_step_number(make_stream) -> None:
    whole, later = make_stream(), make_stream(first_step=5)
    for a, b in zip(whole[5:], later[:7], strict=True):
        np.testing.assert_array_equal(a.passage_texts_P, b.passage_texts_P)
        np.testing.assert_array_equal(a.question.ids_BL, b.question.ids_BL)
        np.testing.assert_array_equal(a.passages.ids_BL, b.passages.ids_BL)


def test_mixed_batches_are_the_same_for_any_process_count_and_start(
    make_stream, nq_small_workdir: tuple[Config, WorkDir]
) -> None:
    _, workdir = nq_small_workdir
    corpus = store.open_corpus(workdir)
    questions = list(store.open_questions(workdir, "train", mined_in(workdir)))
    files = [("a", range(20)), ("b", range(20, 60))]
    mixed = order.parts(files, (4.0, 1.0), batch_size=8)
    whole = make_stream(mixed=mixed)
    halves = [
        make_stream(mixed=mixed, process_index=i, process_count=2, first_step=3) for i in range(2)
    ]
    for step, batch in enumerate(whole[3:]):
        joined = sorted(row for half in halves for row in rows_of(half[step]))
        assert joined == rows_of(batch)
    texts_of = [
        {text_key(corpus[one.positives[0]].text) for one in questions[:20]},
        {text_key(corpus[one.positives[0]].text) for one in questions[20:]},
    ]
    of_first = [texts_of[0] >= {*batch.positive_texts_BM[:, 0]} for batch in whole]
    assert sum(of_first) == 8  # of 12, in the proportion of 4 * 20 to 40
    for first, batch in zip(of_first, whole, strict=True):
        assert first or texts_of[1] >= {*batch.positive_texts_BM[:, 0]}


def test_an_epoch_visits_every_question_once(make_stream) -> None:
    # 60 questions, batches of 6: ten batches an epoch
    streamed = make_stream(batch_size=6)
    first = np.concatenate([batch.positive_texts_BM[:, 0] for batch in streamed[:10]])
    again = np.concatenate([batch.positive_texts_BM[:, 0] for batch in streamed[10:]])
    texts = {tuple(row) for b in streamed[:10] for row in b.question.ids_BL.tolist()}
    assert len(texts) == 60
    assert not np.array_equal(first[: len(again)], again)


def test_shapes_are_fixed_and_texts_are_the_rows(
    make_stream,
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    corpus = store.open_corpus(nq_small_workdir[1])
    tokens = tokenizer.load(hf.resolve(tiny.PACKAGED, "passage"), 48)
    by_key = {text_key(passage.text): passage for passage in corpus}
    assert len(by_key) == len(corpus)
    for batch in make_stream():
        assert batch.question.ids_BL.shape == (8, 24)
        assert batch.passages.ids_BL.shape == (16, 48)
        passage = by_key[int(batch.passage_texts_P[0])]
        (ids,) = tokens.ids([(passage.title, passage.text)])
        assert batch.passages.ids_BL[0, : batch.passages.lengths_B[0]].tolist() == ids


def test_too_few_questions_are_refused(make_stream) -> None:
    with pytest.raises(InputError, match="only 60 training questions"):
        make_stream(batch_size=64)


def test_every_questions_positives_are_known_by_their_texts(
    nq_small_workdir: tuple[Config, WorkDir], make_stream
) -> None:
    _, workdir = nq_small_workdir
    corpus = store.open_corpus(workdir)
    wanted = {
        tuple(sorted({text_key(corpus[row].text) for row in one.positives}))
        for one in store.open_questions(workdir, "train", mined_in(workdir))
    }
    for batch in make_stream():
        assert (batch.positive_texts_BM[:, 0] == batch.passage_texts_P[::2]).all()
        for known in batch.positive_texts_BM.tolist():
            assert tuple(sorted(set(known) - {batches.NO_POSITIVE})) in wanted
    batch, *_ = make_stream(mask_duplicates=False)
    assert batch.positive_texts_BM.shape == (8, 0)


def test_a_lonely_question_without_negatives_is_refused() -> None:
    lonely = [question((1,)), question(())]
    with pytest.raises(InputError, match="question '0' has no negative passage"):
        batches.check(lonely, batches.BatchSettings(batch_size=1, seed=0))


def test_every_process_knows_the_answers_in_the_whole_batch(
    nq_small_workdir: tuple[Config, WorkDir], make_stream
) -> None:
    _, workdir = nq_small_workdir
    corpus = store.open_corpus(workdir)
    by_key = {text_key(one.text): one.text for one in corpus}
    questions = store.open_questions(workdir, "train", mined_in(workdir))
    answers = {text_key(corpus[one.positives[0]].text): one.answers for one in questions}
    assert len(answers) == len(questions)
    halves = [
        make_stream(mask_answers="string", process_index=i, process_count=2)[0] for i in range(2)
    ]
    columns_P = np.concatenate([half.passage_columns_P for half in halves])
    assert sorted(columns_P) == list(range(16))
    texts_P = np.concatenate([half.passage_texts_P for half in halves])
    for half in halves:
        assert half.holds_answer_BP.shape == (4, 16)
        # answers of the question whose positive this is, against each passage's own text
        wanted_BP = [
            [has_answer(answers[int(key)], by_key[int(text)]) for text in texts_P]
            for key in half.passage_texts_P[::2]
        ]
        np.testing.assert_array_equal(half.holds_answer_BP[:, columns_P], wanted_BP)
    plain = make_stream(process_index=1, process_count=2)[0]
    assert plain.holds_answer_BP is None
    np.testing.assert_array_equal(plain.passage_texts_P, halves[1].passage_texts_P)


def test_a_teachers_scores_stand_beside_the_passages_drawn() -> None:
    scored = question((1, 2))._replace(teacher_scores=((2, 0.5), (7, 3.0)))
    drawn = [
        batches.draw(one, np.random.default_rng(0), hard_negatives=3, shuffle_positives=False)
        for one in (scored, question((1,)))
    ]
    known = {7: 3.0, 2: 0.5}
    wanted = [[known.get(row, np.nan) for row in drawn[0].rows], [np.nan] * 4]
    assert sorted(drawn[0].rows) == [batches.NO_PASSAGE, 1, 2, 7]
    np.testing.assert_array_equal(batches.teacher_scores(drawn), wanted)


def test_without_distillation_there_are_no_scores(make_stream) -> None:
    assert make_stream()[0].teacher_scores_BG is None
    with pytest.raises(InputError, match="no training question has a teacher's score"):
        make_stream(distillation="kl")


def test_answers_cannot_be_masked_where_there_are_none() -> None:
    with pytest.raises(InputError, match="no training question has an answer"):
        settings = batches.BatchSettings(batch_size=2, seed=0, mask_answers="string")
        batches.check([question((1,)), question((2,))], settings)
