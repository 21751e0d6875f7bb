"""The names of an encoder's weights in Hugging Face's files, one table per family."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dpr_jax.model.bert import BertShape
from dpr_jax.model.modernbert import ModernBertShape
from dpr_jax.model.stack import EncoderShape


class Weight(NamedTuple):
    """One array.

    Attributes:
      name: in files, without the prefix that some writers put before all names.
      path: in our tree of parameters.
      sizes: its shape in our tree; a kernel is the transpose of the matrix in files.
    """

    name: str
    path: tuple[str, ...]
    sizes: tuple[int, ...]


class WeightNames(NamedTuple):
    """Their name and ours for each part of an encoder; None where the family has no such part.

    Attributes:
      words, positions, kinds: the embedding tables.
      norm: LayerNorm of the embeddings.
      relative: table of biases by distance.
      layer: prefix of layer i.
      parts: of a layer, ours to theirs.
      last: LayerNorm after the last layer.
    """

    words: str
    norm: str
    layer: str
    parts: dict[str, str]
    positions: str | None = None
    kinds: str | None = None
    relative: str | None = None
    last: str | None = None


_EMBEDDINGS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
}
_AFTER = {
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_LayerNorm": "output.LayerNorm",
}
BERT = WeightNames(  # and RoBERTa, XLM-RoBERTa
    **_EMBEDDINGS,
    kinds="embeddings.token_type_embeddings",
    layer="encoder.layer",
    parts={
        "attention_query": "attention.self.query",
        "attention_key": "attention.self.key",
        "attention_value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_LayerNorm": "attention.output.LayerNorm",
        **_AFTER,
    },
)
MPNET = WeightNames(
    **_EMBEDDINGS,
    relative="encoder.relative_attention_bias",
    layer="encoder.layer",
    parts={
        "attention_query": "attention.attn.q",
        "attention_key": "attention.attn.k",
        "attention_value": "attention.attn.v",
        "attention_output": "attention.attn.o",
        "attention_LayerNorm": "attention.LayerNorm",
        **_AFTER,
    },
)
DISTILBERT = WeightNames(
    **_EMBEDDINGS,
    layer="transformer.layer",
    parts={
        "attention_query": "attention.q_lin",
        "attention_key": "attention.k_lin",
        "attention_value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "attention_LayerNorm": "sa_layer_norm",
        "intermediate": "ffn.lin1",
        "output": "ffn.lin2",
        "output_LayerNorm": "output_layer_norm",
    },
)
MODERNBERT = WeightNames(
    words="embeddings.tok_embeddings",
    norm="embeddings.norm",
    layer="layers",
    parts={
        "attention_norm": "attn_norm",
        "attention_qkv": "attn.Wqkv",
        "attention_output": "attn.Wo",
        "mlp_norm": "mlp_norm",
        "intermediate": "mlp.Wi",
        "output": "mlp.Wo",
    },
    last="final_norm",
)


def weights(shape: EncoderShape) -> list[Weight]:
    """Returns every weight of an encoder of this architecture."""
    is_modern = isinstance(shape, ModernBertShape)
    table = MODERNBERT if is_modern else _of_bert(shape)
    sizes, biased = (_modern_sizes if is_modern else _bert_sizes)(shape)
    found: list[Weight] = []

    def embedding(theirs: str | None, path: tuple[str, ...], rows: int, width: int) -> None:
        if theirs:
            found.append(Weight(f"{theirs}.weight", ("bert", *path, "embedding"), (rows, width)))

    def part(theirs: str, path: tuple[str, ...], size: tuple[int, ...], has_bias: bool) -> None:
        """Adds a product, or a LayerNorm where there is one size."""
        weight = "kernel" if len(size) > 1 else "scale"
        found.append(Weight(f"{theirs}.weight", ("bert", *path, weight), size))
        if has_bias:
            found.append(Weight(f"{theirs}.bias", ("bert", *path, "bias"), size[-1:]))

    width, where = shape.hidden_size, "embeddings"
    embedding(table.words, (where, "word_embeddings"), shape.vocab_size, width)
    if isinstance(shape, BertShape):
        rows = shape.max_position_embeddings
        embedding(table.positions, (where, "position_embeddings"), rows, width)
        embedding(table.kinds, (where, "token_type_embeddings"), shape.type_vocab_size, width)
    part(table.norm, (where, "LayerNorm"), (width,), biased("norm"))
    if table.relative:
        embedding(table.relative, ("relative_attention_bias",), 32, shape.num_attention_heads)
    for i in range(shape.num_hidden_layers):
        for ours, theirs in table.parts.items():
            if not (is_modern and i == 0 and ours == "attention_norm"):
                path = (f"layer_{i}", ours)
                part(f"{table.layer}.{i}.{theirs}", path, sizes[ours], biased(ours))
    if table.last:
        part(table.last, (table.last,), (width,), biased("norm"))
    return found


def _of_bert(shape: BertShape) -> WeightNames:
    if shape.relative_bias:
        return MPNET
    return BERT if shape.type_vocab_size else DISTILBERT


Sizes = tuple[dict[str, tuple[int, ...]], Callable[[str], bool]]


def _bert_sizes(shape: BertShape) -> Sizes:
    width, inner = shape.hidden_size, shape.intermediate_size
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(BERT.parts, (width, width))
    sizes |= {"intermediate": (width, inner), "output": (inner, width)}
    sizes |= {name: (width,) for name in sizes if name.endswith("LayerNorm")}
    return sizes, lambda _: True


def _modern_sizes(shape: ModernBertShape) -> Sizes:
    width, inner = shape.hidden_size, shape.intermediate_size
    sizes = {
        "attention_norm": (width,),
        "attention_qkv": (width, 3 * width),
        "attention_output": (width, width),
        "mlp_norm": (width,),
        "intermediate": (width, 2 * inner),
        "output": (inner, width),
    }

    def biased(name: str) -> bool:
        if name.endswith("norm"):
            return shape.norm_bias
        return shape.attention_bias if name.startswith("attention") else shape.mlp_bias

    return sizes, biased


def older(name: str) -> Iterator[str]:
    """Yields the other names that a weight has had: LayerNorm's gamma and beta."""
    if "LayerNorm." in name:
        gamma = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        yield gamma.replace("LayerNorm.bias", "LayerNorm.beta")
