"""Packed texts: the same loss and gradient as padded ones, the same few shapes on every process,
nothing lost on the way.
"""

import functools
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from step_reference import (
    SHAPE,
    assert_close,
    make_batch,
    make_params,
    make_settings,
)

from dpr_jax import parallel
from dpr_jax.config import Config
from dpr_jax.data import store
from dpr_jax.model import hf, tokenizer
from dpr_jax.model.dual_encoder import TEXTS_PER_ROW, Encoder, Packed
from dpr_jax.training import batches, packing
from dpr_jax.training.packing import Layout
from dpr_jax.training.step import Batch, global_gradient
from dpr_jax.workdir import WorkDir


def mined_in(workdir: WorkDir) -> Path:
    return workdir.retriever("trained").current("mined")


def test_rows_by_hand() -> None:
    # 9 is alone with 1, 6 with 4; 5 finds no room beside them
    assert packing.fill([4, 9, 1, 6, 5], 10) == [[1, 2], [3, 0], [4]]
    assert packing.fill([3, 3, 3], 3) == [[0], [1], [2]]
    # the fullest row that has room, not the first
    assert packing.fill([5, 7, 3], 10) == [[1, 2], [0]]


def test_rows_hold_every_text_once_and_do_not_overflow() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 33, rng.integers(1, 90)).tolist()
        rows = packing.fill(lengths, 32)
        assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
        for texts in rows:
            assert sum(lengths[i] for i in texts) <= 32
            assert len(texts) <= TEXTS_PER_ROW


@pytest.mark.parametrize(("pooling", "multiple", "chunk_size"), [("cls", 1, 0), ("mean", 2, 2)])
def test_loss_and_gradient_are_those_of_padded_texts(
    pooling: str, multiple: int, chunk_size: int
) -> None:
    settings = make_settings(
        encoder=Encoder(SHAPE, pooling=pooling, normalize=pooling == "mean"),
        chunk_size=chunk_size,
    )
    padded = make_batch(np.random.default_rng(0))
    layout = Layout(multiple, devices=2, chunk_size=chunk_size)
    packed = packing.pack(padded, packing.shape_for([padded], layout), layout)
    assert packed.passages.slots < padded.passages.slots
    spmd = parallel.spmd("pmap", jax.devices()[:2])
    gradient = spmd.map(
        functools.partial(global_gradient, settings=settings, dropout_key=None, axis=parallel.AXIS)
    )
    params = spmd.replicate(make_params())
    (found, found_sums), (wanted, wanted_sums) = (
        spmd.fetch(gradient(params, spmd.shard(batch))) for batch in (packed, padded)
    )
    np.testing.assert_allclose(found_sums["loss"], wanted_sums["loss"], rtol=1e-6)
    assert_close(found, wanted)


def test_a_row_is_never_empty_for_the_softmax() -> None:
    """More rows than needed give numbers, and texts their vectors."""
    padded = make_batch(np.random.default_rng(0))
    layout = Layout(1, devices=1)
    small = packing.shape_for([padded], layout)
    large = packing.RowCounts(small.question + 3, small.passage + 3)
    one, other = (packing.pack(padded, shape, layout) for shape in (small, large))
    encode = jax.jit(
        lambda texts: Encoder(SHAPE).apply(
            {"params": make_params()["question"]}, texts.rows, train=False
        )
    )
    for few, many in ((one.question, other.question), (one.passages, other.passages)):
        places = np.asarray(encode(many))
        assert np.isfinite(places).all()
        wanted = np.asarray(encode(few))[few.slot_B]
        np.testing.assert_allclose(places[many.slot_B], wanted, rtol=1e-5, atol=1e-6)


# --- the stream --------------------------------------------------------------


@pytest.fixture
def make_stream(nq_small_workdir: tuple[Config, WorkDir]):
    _, workdir = nq_small_workdir
    folder = hf.resolve(tiny.PACKAGED, "question")

    def stream(count: int = 20, pack_rows: int | None = 1, **place: int) -> list[Batch]:
        rows = batches.stream(
            store.open_questions(workdir, "train", mined_in(workdir)),
            store.open_corpus(workdir),
            tokenizer.load(folder, 24),
            tokenizer.load(folder, 160),
            batches.BatchSettings(batch_size=16, seed=3, pack_rows=pack_rows),
            **{"devices": 2, **place},
        )
        return list(itertools.islice(rows, count))

    return stream


def texts_of(packed: Packed, devices: int) -> list[list[int]]:
    """Token ids of each text, read back from its rows."""
    found, texts = [], len(packed.slot_B)
    rows = len(packed.rows.ids_RL) // devices
    for i, slot in enumerate(packed.slot_B):
        row, number = divmod(int(slot), TEXTS_PER_ROW)
        row += i * devices // texts * rows
        mine = packed.rows.text_RL[row] == number
        assert packed.rows.position_RL[row][mine].tolist() == list(range(mine.sum()))
        found.append(packed.rows.ids_RL[row][mine].tolist())
    return found


def shapes(streamed: list[Batch]) -> list[list[tuple[int, ...]]]:
    return [[leaf.shape for leaf in jax.tree.leaves(batch)] for batch in streamed]


def test_batches_are_the_padded_ones(make_stream) -> None:
    for packed, padded in zip(make_stream(5), make_stream(5, pack_rows=None), strict=True):
        for side in ("question", "passages"):
            whole = getattr(padded, side)
            wanted = [
                ids[:n].tolist() for ids, n in zip(whole.ids_BL, whole.lengths_B, strict=True)
            ]
            assert texts_of(getattr(packed, side), devices=2) == wanted
            assert (getattr(packed, side).lengths_B == whole.lengths_B).all()
        np.testing.assert_array_equal(packed.passage_texts_P, padded.passage_texts_P)


def test_shapes_are_few_and_the_same_on_every_process(make_stream) -> None:
    halves = [shapes(make_stream(process_index=i, process_count=2, devices=1)) for i in range(2)]
    assert halves[0] == halves[1]
    # a process's two devices have the shape of two processes' one
    assert shapes(make_stream())[0][0][0] == 2 * halves[0][0][0][0]
    assert 1 < len({str(one) for one in halves[0]}) <= 6


def test_position_is_the_step_number(make_stream) -> None:
    for a, b in zip(make_stream(8)[5:], make_stream(3, first_step=5), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_numbers_of_rows_are_bounded(make_stream) -> None:
    """Whatever the lengths: a text a row is the most, and there are so many steps up to it."""
    rng, layout = np.random.default_rng(0), Layout(1, devices=2)
    (padded,) = make_stream(1, pack_rows=None)
    found = set()
    for _ in range(300):
        longest = rng.integers(2, 161)
        lengths_P = rng.integers(2, longest + 1, 32).astype(np.int32)
        tokens = padded.passages._replace(lengths_B=lengths_P)
        shape = packing.shape_for([padded._replace(passages=tokens)], layout)
        assert shape.passage <= 16
        found.add(shape.passage)
    assert 8 < len(found) <= packing.PASSAGE_STEPS
