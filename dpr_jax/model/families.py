"""Reads the architecture of an encoder from config.json, for each family of encoders.

A family is known by `model_type`. What a config.json asks for and the family's module does not
compute is refused by name; no code that a folder brings is ever run.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpr_jax.errors import InputError
from dpr_jax.model.bert import ACTIVATIONS, Bert, BertShape
from dpr_jax.model.folder_json import load_json, whole
from dpr_jax.model.modernbert import ModernBert, ModernBertShape
from dpr_jax.model.stack import EncoderShape, Stack

MODULES: dict[type, type[Stack]] = {BertShape: Bert, ModernBertShape: ModernBert}
# what transformers takes where config.json does not say
BERT_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
MODERNBERT_DEFAULTS = BERT_DEFAULTS | {
    "vocab_size": 50368,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "max_position_embeddings": 8192,
}
DISTILBERT_NAMES = {  # ours, by the name in config.json
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
}
DECODERS = ("qwen", "llama", "mistral", "gemma", "gpt", "phi", "olmo", "opt", "granite", "falcon")


def read_shape(folder: Path) -> EncoderShape:
    """Returns the architecture in config.json.

    Raises:
      InputError: no family that is known here, or a variant of one that is not computed.
    """
    path = folder / "config.json"
    config = load_json(path)
    kind = config.get("model_type")
    if kind not in READERS:
        if str(kind).startswith(DECODERS) or config.get("is_decoder"):
            raise InputError(
                f"{path} is of a model of type {kind!r}, a decoder, whose tokens see only what"
                f" stands before them; only encoders serve: {', '.join(READERS)}"
            )
        code = ", and its code (auto_map) is never run" if kind and "auto_map" in config else ""
        raise InputError(
            f"{path} is of a model of type {kind!r}{code}; the types that can be used are"
            f" {', '.join(READERS)}"
        )
    if config.get("is_decoder"):
        raise InputError(f"{path} has is_decoder true; only encoders, which see both sides, serve")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{path} has relative positions; not supported")
    shape = READERS[kind](path, config)
    if shape.hidden_size % shape.num_attention_heads:
        raise InputError(
            f"{path} has hidden_size {shape.hidden_size}, which its num_attention_heads"
            f" {shape.num_attention_heads} do not divide; copy the model folder again"
        )
    if shape.hidden_act not in [*ACTIVATIONS]:
        raise InputError(
            f"{path} has hidden_act {shape.hidden_act!r}; known are {', '.join(ACTIVATIONS)}"
        )
    epsilon = shape.layer_norm_eps
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise InputError(f"{path} has layer_norm_eps {epsilon!r}; it must lie between 0 and 1")
    if shape.positions < 1:
        raise InputError(f"{path} leaves no position for a token; copy the model folder again")
    return shape


def positions(folder: Path) -> int:
    """Returns the most tokens that a text may have."""
    return read_shape(folder).positions


def _bert(path: Path, config: dict[str, Any]) -> BertShape:
    counts = {name: whole(path, name, config, usual) for name, usual in BERT_DEFAULTS.items()}
    return BertShape(
        **counts,
        type_vocab_size=whole(path, "type_vocab_size", config, 2),
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        hidden_act=config.get("hidden_act", "gelu"),
    )


def _roberta(path: Path, config: dict[str, Any]) -> BertShape:
    """Positions are counted from the one after that of padding."""
    return dataclasses.replace(_bert(path, config), position_offset=_padding(path, config) + 1)


def _mpnet(path: Path, config: dict[str, Any]) -> BertShape:
    if (buckets := config.get("relative_attention_num_buckets", 32)) != 32:
        raise InputError(f"{path} has relative_attention_num_buckets {buckets!r}; 32 is supported")
    shape = _roberta(path, config)
    return dataclasses.replace(shape, type_vocab_size=0, relative_bias=True)


def _distilbert(path: Path, config: dict[str, Any]) -> BertShape:
    said = {DISTILBERT_NAMES.get(name, name): value for name, value in config.items()}
    said |= {"layer_norm_eps": 1e-12, "hidden_act": config.get("activation", "gelu")}
    said.setdefault("num_hidden_layers", 6)
    return dataclasses.replace(_bert(path, said), type_vocab_size=0)


def _modernbert(path: Path, config: dict[str, Any]) -> ModernBertShape:
    every = whole(path, "global_attn_every_n_layers", config, 3)
    counts = {name: whole(path, name, config, usual) for name, usual in MODERNBERT_DEFAULTS.items()}
    kinds = config.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention"
        for i in range(counts["num_hidden_layers"])
    ]
    known = ("full_attention", "sliding_attention")
    if len(kinds) != counts["num_hidden_layers"] or not {*kinds} <= {*known}:
        raise InputError(f"{path} has layer_types {kinds!r}; each layer must be one of {known}")
    thetas = []
    for name, older, usual in (
        ("full_attention", "global_rope_theta", 160_000.0),
        ("sliding_attention", "local_rope_theta", 10_000.0),
    ):
        rope = (config.get("rope_parameters") or {}).get(name) or {}
        kind = (config.get("rope_scaling") or rope).get("rope_type", "default")
        if kind != "default":
            raise InputError(f"{path} has rotary positions of type {kind!r}; default is supported")
        thetas.append(float(rope.get("rope_theta") or config.get(older) or usual))
    biases = tuple(bool(config.get(f"{part}_bias")) for part in ("norm", "attention", "mlp"))
    return ModernBertShape(
        **counts,
        layer_norm_eps=config.get("norm_eps", 1e-5),
        hidden_act=config.get("hidden_activation", "gelu"),
        is_local=tuple(kind == "sliding_attention" for kind in kinds),
        window=whole(path, "local_attention", config, 128) // 2,
        global_theta=thetas[0],
        local_theta=thetas[1],
        norm_bias=biases[0],
        attention_bias=biases[1],
        mlp_bias=biases[2],
    )


def _padding(path: Path, config: dict[str, Any]) -> int:
    value = config.get("pad_token_id", 1)
    if type(value) is not int or value < 0:
        raise InputError(f"{path} has pad_token_id {value!r}; it must be 0 or more")
    return value


READERS: dict[str, Callable[[Path, dict[str, Any]], EncoderShape]] = {
    "bert": _bert,
    "dpr": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "mpnet": _mpnet,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
}
