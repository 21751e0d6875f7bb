"""Texts to vectors, quickly: sorted by length, in a few fixed shapes, on all local devices."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpr_jax import artifacts, host, parallel
from dpr_jax import config as settings_of
from dpr_jax.errors import InputError
from dpr_jax.model import description, hf, tokenizer
from dpr_jax.model.dual_encoder import Encoder, Params, Side, Tokens

FEW_TEXTS = 1024  # up to so many, a new shape costs more to compile than its padding
FEW_TEXTS_STEP = 32  # then lengths are rounded up to a multiple of so many tokens
BATCH_TOKENS = {"cpu": 1024}  # tokens on a device at once, measured (docs/log.md)
BATCH_TOKENS_ACCELERATOR = 32768


# rows of some texts, and the shape that they are padded to: rows, tokens
Part = tuple[np.ndarray, int, int]


class Vectors(NamedTuple):
    """The vectors of one batch.

    Attributes:
      rows_B: int64, which of the texts.
      emb_BD: float32.
      slots: tokens computed, padding included.
    """

    rows_B: np.ndarray
    emb_BD: np.ndarray
    slots: int


class Embedder:
    """One tower with its tokenizer, ready to encode.

    Attributes:
      shape: architecture of the tower.
      pooling: how the last layer becomes a vector.
      width: size of a vector.
      fingerprint: hash of the tower's weights, tokenizer and settings.
      passage_fingerprint: that of the model's passage tower, the same from either side: questions
        that this encodes find passages which that one encoded, and no others.
    """

    def __init__(
        self,
        encoder: Encoder,
        params: Params,
        tokens: tokenizer.Tokenizer,
        *,
        batch_tokens: int | None = None,
        fingerprint: str = "",
        passage_fingerprint: str = "",
    ) -> None:
        """Takes one tower's parameters; `batch_tokens` None chooses by platform."""
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("rows",))
        self._rows = NamedSharding(mesh, PartitionSpec("rows"))
        params = _in_compute_dtype(params, encoder.dtype)
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._apply = functools.partial(_apply, encoder, mesh)
        self.tokenize = tokens.rows
        default = default_batch_tokens(encoder.platform)
        self._batch_tokens = (batch_tokens or default) * len(devices)
        self._device_count = len(devices)
        self.shape, self.pooling = encoder.shape, encoder.pooling
        self.width = encoder.width
        self.fingerprint = fingerprint
        self.passage_fingerprint = passage_fingerprint

    def encode(self, texts: Sequence[tokenizer.Text], *, prompt: str | None = None) -> np.ndarray:
        """Returns the vectors of texts, in their order.

        Args:
          texts: questions, or (title, text) pairs.
          prompt: put before every text; None: the encoder's own.

        Returns:
          float32 [len(texts), width].
        """
        emb_ND = np.empty((len(texts), self.width), np.float32)
        for batch in self.vectors(self.tokenize(texts, prompt)):
            emb_ND[batch.rows_B] = batch.emb_BD
        return emb_ND

    def vectors(
        self, texts: tokenizer.TokenRows, parts: Iterable[Part] | None = None
    ) -> Iterator[Vectors]:
        """Yields the vectors of tokenized texts, a batch at a time, the longest first.

        Args:
          texts: what `tokenize` made; that is safe to call in another thread, ahead of this.
          parts: the batches, where the caller knows better shapes; None chooses.
        """
        waiting: list[tuple[np.ndarray, int, jax.Array]] = []

        def taken() -> Vectors:
            rows_B, slots, out_BD = waiting.pop(0)
            return Vectors(rows_B, np.asarray(out_BD)[: len(rows_B)], slots)

        for rows_B, count, length in self._parts(texts) if parts is None else parts:
            tokens = texts.padded(rows_B, count, length)
            batch = jax.device_put(tokens, self._rows)
            slots = tokens.ids_BL.size
            waiting.append((rows_B, slots, self._apply(self._params, batch)))
            if len(waiting) > 1:  # the next batch is padded while this one computes
                yield taken()
        while waiting:
            yield taken()

    def _parts(self, texts: tokenizer.TokenRows) -> Iterator[Part]:
        """Yields batches, sorted by length over all texts."""
        # of one shape per length; few texts, as when one question is asked, are padded to a power
        # of 4 rows: four more shapes up to 256 rows
        count = len(texts.lengths_N)
        few = 4 ** (((count - 1).bit_length() + 1) // 2)
        order_N = np.argsort(-texts.lengths_N, kind="stable")
        done = 0
        while done < count:
            length = padded_length(int(texts.lengths_N[order_N[done]]), count)
            length = min(length, self.shape.positions)
            rows = min(few, max(1, self._batch_tokens // length))
            rows = _round_up(rows, self._device_count)
            rows_B = order_N[done : done + rows]
            # short batches too have the full shape, so that each length compiles once
            yield rows_B, rows, length
            done += rows


def default_batch_tokens(platform: str) -> int:
    """Returns the tokens that a device computes at once, padding included."""
    return BATCH_TOKENS.get(platform, BATCH_TOKENS_ACCELERATOR)


def lower(
    encoder: Encoder,
    params: Params,
    devices: Sequence[jax.Device],
    length: int,
    *,
    batch_tokens: int | None = None,
) -> tuple[jax.stages.Lowered, int]:
    """Lowers the program of a full batch as `Embedder` maps it over the devices of a process, also
    over devices that are not here.

    Args:
      encoder: the tower, with the platform of the devices.
      params: its weights, or their shapes.
      devices: of one process.
      length: tokens of each row.
      batch_tokens: tokens on a device at once; None chooses by platform.

    Returns:
      The program, and the rows of its batch.
    """
    mesh = Mesh(np.array(devices), ("rows",))

    def placed(tree: Any, spec: PartitionSpec) -> Any:
        at = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree)

    per_device = batch_tokens or default_batch_tokens(encoder.platform)
    rows = _round_up(max(1, per_device * len(devices) // length), len(devices))
    tokens = Tokens(*(jax.ShapeDtypeStruct(s, np.int32) for s in ((rows, length), (rows,))))
    params = jax.eval_shape(lambda tree: _in_compute_dtype(tree, encoder.dtype), params)
    whole, split = PartitionSpec(), PartitionSpec("rows")
    return _apply.lower(encoder, mesh, placed(params, whole), placed(tokens, split)), rows


def padded_length(tokens: int, texts: int) -> int:
    """Returns the length in tokens that the longest of a batch is padded to.

    Steps of an eighth of the length or less (8 up to 128 tokens, 16 up to 256, 32 up to 512), so
    that about 97 of 100 tokens are real and no more than 32 shapes are compiled for lengths up to
    512; few texts take coarser steps.
    """
    if texts <= FEW_TEXTS:
        return _round_up(tokens, FEW_TEXTS_STEP)
    return _round_up(tokens, max(8, 1 << max((tokens - 1).bit_length() - 4, 0)))


def load_embedder(
    source: str,
    side: Side,
    *,
    model: settings_of.ModelConfig,
    batch_tokens: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> Embedder:
    """Opens one tower for encoding.

    The folder that holds two towers says that they belong together: each may be newer than the
    other, as long as they give vectors of one width and, where training wrote the folder, are the
    two that its manifest lists.

    Args:
      source: a folder, or anything else that `model.init` takes.
      side: which tower of a model folder.
      model: settings that are not as the folder says.
      batch_tokens: tokens on a device at once, padding included; None chooses by platform.
      dtype: compute precision; auto is what `compute_dtype` says.

    Raises:
      InputError: the model cannot be found or read, or its two towers do not belong together.
    """
    folders = {one: hf.resolve(source, one) for one in ("question", "passage")}
    own = {one: description.read(folder, one, model) for one, folder in folders.items()}
    _check_pair(source, folders, own)
    prints = {one: hf.fingerprint(folders[one], own[one]) for one in folders}
    encoder = hf.read_encoder(
        folders[side],
        own[side],
        dtype=jnp.dtype(compute_dtype(dtype)),
        platform=parallel.platform_of(jax.local_devices()),
    )
    tokens = tokenizer.load(folders[side], own[side].max_tokens, own[side].prompt)
    hf.check_tokens(folders[side], encoder.shape, tokens.vocabulary)
    return Embedder(
        encoder,
        hf.read_params(folders[side], encoder.shape, own[side]),
        tokens,
        batch_tokens=batch_tokens,
        fingerprint=prints[side],
        passage_fingerprint=prints["passage"],
    )


def _check_pair(
    source: str, folders: dict[Side, Path], own: dict[Side, description.EncoderSettings]
) -> None:
    """Refuses two towers that cannot have been meant to work together."""
    question, passage = folders["question"], folders["passage"]
    manifest = (passage if question == passage else passage.parent) / "manifest.json"
    if manifest.exists():
        artifacts.verify(
            manifest,
            "the encoders there must be those of one training: run `dpr train` again, which"
            f" writes them, or remove {manifest} if you put them together yourself",
        )
    widths = [hf.read_encoder(folders[one], own[one]).width for one in ("question", "passage")]
    if widths[0] != widths[1]:
        raise InputError(
            f"{source}: its question encoder gives vectors of width {widths[0]}, its passage"
            f" encoder of width {widths[1]}; they must be equal for questions to find passages"
        )


def compute_dtype(dtype: str) -> str:
    """Returns what `auto` is here: bfloat16, or float32 on a CPU that cannot multiply that."""
    if dtype != "auto":
        return dtype
    slow = parallel.platform_of(jax.local_devices()) == "cpu" and not _cpu_multiplies_bfloat16()
    return "float32" if slow else "bfloat16"


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    """Returns whether the processor says so, which it does on Linux."""
    return bool(host.processor_features() & {"avx512_bf16", "amx_bf16"})


def _in_compute_dtype(params: Params, dtype: jnp.dtype) -> Params:
    """Rounds the matrices once, not in every batch; LayerNorm and embeddings stay float32."""

    def cast(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


@functools.partial(jax.jit, static_argnums=(0, 1))  # one cache for all of a shape
def _apply(encoder: Encoder, mesh: Mesh, params: Params, tokens: Tokens) -> jax.Array:
    # by shard_map: left to XLA's partitioner, every device would compute all rows' attention where
    # one row follows another
    return jax.shard_map(
        lambda params, tokens: encoder.apply({"params": params}, tokens, train=False),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("rows")),
        out_specs=PartitionSpec("rows"),
        check_vma=False,
    )(params, tokens)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
