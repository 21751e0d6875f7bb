"""Embedding: order, padding, devices and batch size must not show in the vectors."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from dpr_jax.data.readers import formats
from dpr_jax.model import attention, embed, hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder, Tokens
from dpr_jax.model.embed import FEW_TEXTS, Embedder, padded_length
from dpr_jax.model.tokenizer import Tokenizer

WORDS = [
    "retrieval",
    "of",
    "dense",
    "passages",
    "with",
    "two",
    "towers",
    "learns",
    "what",
    "questions",
    "mean",
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer.load(tiny.packaged_as_bert(tmp_path_factory.mktemp("bert")), 64)


def embedder(tokens: Tokenizer, batch_tokens: int, pooling: str = "mean") -> Embedder:
    encoder = Encoder(tiny.SHAPE, pooling=pooling)
    return Embedder(encoder, tiny.params(), tokens, batch_tokens=batch_tokens)


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 50))) for _ in range(count)]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_batching_does_not_show(tokens: Tokenizer, pooling: str) -> None:
    some = texts(50)
    whole = embedder(tokens, 1024, pooling).encode(some)
    alone = np.concatenate([embedder(tokens, 64, pooling).encode([one]) for one in some])
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, alone, atol=2e-6)


def test_devices_share_the_rows(tokens: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where attention goes row by row, which XLA's partitioner would have every device do for
    all rows.
    """
    monkeypatch.setattr(attention, "CACHED_BYTES", 0)
    one = embedder(tokens, 80)  # a shape that no other test compiles
    batch = Tokens(np.ones((16, 40), np.int32), np.full(16, 40, np.int32))
    batch = jax.device_put(batch, one._rows)
    program = one._apply.func.lower(*one._apply.args, one._params, batch).compile()
    text = program.as_text()
    assert "while(" in text
    assert "all-gather" not in text and "all-reduce" not in text


def test_few_texts_take_few_rows_and_few_shapes(
    tokens: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight devices, so eight rows at least; a full batch has 1024 tokens a device, 256 rows of
    32.
    """
    one = embedder(tokens, 1024)
    shapes: list[tuple[int, ...]] = []

    def apply(params: object, tokens: Tokens) -> np.ndarray:
        shapes.append(tokens.ids_BL.shape)
        return np.zeros((tokens.ids_BL.shape[0], one.width), np.float32)

    monkeypatch.setattr(one, "_apply", apply)
    for count in (1, 5, 16, 17, 64, 65, 256, 300):
        one.encode(["dense retrieval"] * count)
    rows = [8, 16, 16, 64, 64, 256, 256, 256, 256]
    assert shapes == [(count, 32) for count in rows]


def test_no_texts(tokens: Tokenizer) -> None:
    assert embedder(tokens, 64).encode([]).shape == (0, 32)


def test_title_is_a_segment_of_its_own(tokens: Tokenizer) -> None:
    cls, sep = 101, 102
    titled, untitled = tokens.ids([("dense", "passages"), ("", "passages")])
    assert titled[0] == cls and titled.count(sep) == 2 and titled[-1] == sep
    assert untitled == tokens.ids(["passages"])[0]


def test_too_long_is_cut_longest_first_and_still_ends_in_sep(tokens: Tokenizer) -> None:
    (row,) = tokens.ids([("short title", "word " * 500)])
    assert len(row) == 64 and row[-1] == 102
    assert row[:4] == tokens.ids([("short title", "word")])[0][:4]


def test_lengths_have_few_shapes_and_little_padding() -> None:
    shapes = {padded_length(tokens, FEW_TEXTS + 1) for tokens in range(1, 513)}
    assert sorted(shapes)[:3] == [8, 16, 24] and max(shapes) == 512
    assert len(shapes) == 32
    for tokens in range(64, 513):
        assert 0 <= padded_length(tokens, FEW_TEXTS + 1) - tokens < tokens / 8
    assert padded_length(33, FEW_TEXTS) == 64


def test_95_of_100_computed_tokens_are_real(tokens: Tokenizer) -> None:
    """Real passages, sorted over all of them, in batches of 2,048 tokens: the bar is 95 %."""
    folder = Path(__file__).parent / "fixtures" / "nq_small"
    passages = [row for _, row in formats.read_passages(folder / "passages.tsv.gz")]
    wide = tokenizer.load(hf.resolve(tiny.PACKAGED, "passage"), 160)
    rows = wide.rows([(passage.title, passage.text) for passage in passages] * 4)
    shape = dataclasses.replace(tiny.SHAPE, max_position_embeddings=512)
    one = Embedder(Encoder(shape), {}, wide, batch_tokens=2048 // 8)
    one._apply = lambda params, batch: np.zeros((len(batch.ids_BL), 32), np.float32)
    batches = list(one.vectors(rows))
    assert sorted(np.concatenate([batch.rows_B for batch in batches])) == list(
        range(len(rows.lengths_N))
    )
    slots = sum(batch.slots for batch in batches)
    assert rows.lengths_N.sum() / slots > 0.95


def test_token_rows_hold_what_the_tokenizer_says(tokens: Tokenizer) -> None:
    some = texts(9)
    rows = tokens.rows(some)
    assert rows.ids_T.dtype == np.int32
    picked = np.array([4, 0, 8])
    length = int(rows.lengths_N[picked].max())
    batch = rows.padded(picked, 5, length)
    wanted = tokenizer.pad(tokens.ids([some[i] for i in picked]) + [[0]] * 2, length)
    np.testing.assert_array_equal(batch.ids_BL, wanted.ids_BL)
    np.testing.assert_array_equal(batch.lengths_B, wanted.lengths_B)


def test_no_length_beyond_the_position_embeddings(tokens: Tokenizer) -> None:
    """Positions that do not exist would be NaN."""
    shape = dataclasses.replace(tiny.SHAPE, max_position_embeddings=50)
    few = tokenizer.load(hf.resolve(tiny.PACKAGED, "passage"), 50)
    one = Embedder(Encoder(shape), {}, few)
    [(_, _, length)] = one._parts(few.rows(["word " * 99]))
    assert length == 50


def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for can, wanted in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(embed, "_cpu_multiplies_bfloat16", lambda can=can: can)
        assert embed.compute_dtype("auto") == wanted
        assert embed.compute_dtype("float32") == "float32"


def test_shapes_that_a_caller_gives_change_no_vector(tokens: Tokenizer) -> None:
    one, some = embedder(tokens, 1024), texts(3)
    rows = tokens.rows(some)
    found = np.empty((3, one.width), np.float32)
    for batch in one.vectors(rows, [(np.array([2, 0]), 8, 64), (np.array([1]), 16, 64)]):
        found[batch.rows_B] = batch.emb_BD
    np.testing.assert_allclose(found, one.encode(some), atol=2e-6)
