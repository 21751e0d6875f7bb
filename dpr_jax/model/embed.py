"""Texts to vectors, quickly: sorted by length, in a few fixed shapes, on all local devices."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpr_jax import config as settings_of
from dpr_jax.artifacts import WorkDir
from dpr_jax.model import hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder, Params, Side, Tokens

LENGTH_STEP = 32  # batches are padded to a multiple of so many tokens
SORT_WINDOW = 16384  # texts sorted by length at a time
BATCH_TOKENS = {"cpu": 2048}  # tokens on a device at once, measured (docs/log.md)
BATCH_TOKENS_ACCELERATOR = 131072


class Embedder:
    """One tower with its tokenizer, ready to encode.

    Attributes:
      width: size of a vector.
      fingerprint: hash of the tower's weights, tokenizer and settings.
      model_fingerprint: hash of both towers of the model, the same from either side.
    """

    def __init__(
        self,
        encoder: Encoder,
        params: Params,
        tokens: tokenizer.Tokenizer,
        *,
        batch_tokens: int = 0,
        fingerprint: str = "",
        model_fingerprint: str = "",
    ) -> None:
        """Takes one tower's parameters; `batch_tokens` 0 chooses by platform."""
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("rows",))
        self._rows = NamedSharding(mesh, PartitionSpec("rows"))
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._apply = functools.partial(_apply, encoder)
        self._tokenizer = tokens
        default = BATCH_TOKENS.get(devices[0].platform, BATCH_TOKENS_ACCELERATOR)
        self._batch_tokens = (batch_tokens or default) * len(devices)
        self._device_count = len(devices)
        self.width = encoder.shape.hidden_size
        self.fingerprint = fingerprint
        self.model_fingerprint = model_fingerprint

    def encode(
        self,
        texts: Sequence[tokenizer.Text],
        advance: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order.

        Args:
          texts: questions, or (title, text) pairs.
          advance: called with the number of texts done since the last call.

        Returns:
          float32 [len(texts), width].
        """
        emb_ND = np.empty((len(texts), self.width), np.float32)
        waiting: list[tuple[list[int], jax.Array]] = []

        def take() -> None:
            rows, out_BD = waiting.pop(0)
            emb_ND[rows] = np.asarray(out_BD)[: len(rows)]
            if advance is not None:
                advance(len(rows))

        for rows, tokens in self._batches(texts):
            waiting.append((rows, self._apply(self._params, tokens)))
            if len(waiting) > 1:  # the next batch is tokenized while this one computes
                take()
        while waiting:
            take()
        return emb_ND

    def _batches(
        self, texts: Sequence[tokenizer.Text]
    ) -> Iterator[tuple[list[int], Tokens]]:
        """Batches of one padded shape a length step: (positions in `texts`, tokens on the devices).

        Few texts, as when one question is asked, are padded to a power of 4 rows instead: four more shapes up to 256 rows.
        """
        few = 4 ** (((len(texts) - 1).bit_length() + 1) // 2)
        for start in range(0, len(texts), SORT_WINDOW):
            ids = self._tokenizer.ids(texts[start : start + SORT_WINDOW])
            order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
            while order:
                length = _round_up(len(ids[order[0]]), LENGTH_STEP)
                rows = min(few, max(1, self._batch_tokens // length))
                rows = _round_up(rows, self._device_count)
                batch, order = order[:rows], order[rows:]
                # short batches too have the full shape, so that each length compiles once
                padded = [ids[i] for i in batch] + [[0]] * (rows - len(batch))
                tokens = tokenizer.pad(padded, length)
                yield [start + i for i in batch], jax.device_put(tokens, self._rows)


def load_embedder(
    source: str,
    workdir: WorkDir | None,
    side: Side,
    *,
    model: settings_of.ModelConfig,
    batch_tokens: int = 0,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> Embedder:
    """Opens one tower for encoding.

    Args:
      source: a folder (absolute, or inside `workdir`), or anything that `model.init` takes.
      workdir: where a relative folder lies; None for none.
      side: which tower of a model folder.
      model: pooling, normalization and lengths for an encoder that does not bring its own.
      batch_tokens: tokens on a device at once, padding included; 0 chooses by platform.
      dtype: compute precision; auto is bfloat16, but float32 on a CPU, where bfloat16 gains nothing and compiles long.

    Raises:
      InputError: the model cannot be found or read.
    """
    if workdir is not None and workdir.inside(source).is_dir():
        source = str(workdir.inside(source))
    folders = {one: hf.resolve(source, one) for one in ("question", "passage")}
    own = {
        one: hf.read_settings(folder, default_settings(model, one))
        for one, folder in folders.items()
    }
    prints = {one: hf.fingerprint(folders[one], own[one]) for one in folders}
    shape = hf.read_shape(folders[side])
    encoder = Encoder(
        shape,
        pooling=own[side].pooling,
        normalize=own[side].normalize,
        dtype=jnp.dtype(compute_dtype(dtype)),
    )
    return Embedder(
        encoder,
        hf.read_params(folders[side], shape),
        tokenizer.load(folders[side], own[side].max_tokens),
        batch_tokens=batch_tokens,
        fingerprint=prints[side],
        model_fingerprint=hashlib.sha256("".join(prints.values()).encode()).hexdigest(),
    )


def compute_dtype(dtype: str) -> str:
    """What `auto` stands for on this machine: bfloat16, on a CPU float32."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def default_settings(model: settings_of.ModelConfig, side: Side) -> hf.EncoderSettings:
    """What the config says of a tower."""
    lengths = {
        "question": model.max_question_tokens,
        "passage": model.max_passage_tokens,
    }
    return hf.EncoderSettings(model.pooling, model.normalize, lengths[side])


@functools.partial(jax.jit, static_argnums=0)  # one cache for all embedders of a shape
def _apply(encoder: Encoder, params: Params, tokens: Tokens) -> jax.Array:
    return encoder.apply({"params": params}, tokens, train=False)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
