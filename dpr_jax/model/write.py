"""Writes encoders as folders that transformers and sentence-transformers open, and that we read.

A tower is a plain folder of sentence-transformers. Two towers lie side by side, and the folder that
holds them opens as one object by a Router, which sends questions and passages to their own.
"""

import shutil
from pathlib import Path
from typing import Any

from dpr_jax import artifacts
from dpr_jax.model import description, weights
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Params, Side
from dpr_jax.model.folder_json import load_json
from dpr_jax.model.modules import ACTIVATIONS, MODULES, POOLINGS, ROUTER
from dpr_jax.model.stack import EncoderShape

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
ARCHITECTURES = {  # by model_type
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "mpnet": "MPNetModel",
    "distilbert": "DistilBertModel",
    "modernbert": "ModernBertModel",
}
PACKAGE = "sentence_transformers.models"  # where all its versions find their modules


def write_encoder(
    folder: Path,
    *,
    template: Path,
    shape: EncoderShape,
    params: Params,
    settings: EncoderSettings,
    temperature: float | None = None,
    prompts: dict[Side, str] | None = None,
    max_question_tokens: int | None = None,
) -> None:
    """Writes one tower; tokenizer files and the rest of config.json are the template's.

    Args:
      folder: existing empty folder.
      template: folder of the encoder that the weights started from.
      shape: architecture.
      params: the tower's tree, host arrays.
      settings: all that belongs to the weights besides.
      temperature: that they were trained with.
      prompts: of both sides, for a tower that serves both; None: the settings' own for both.
      max_question_tokens: where questions are cut, if elsewhere than passages.
    """
    config = load_json(template / "config.json")
    kind = "bert" if config["model_type"] == "dpr" else config["model_type"]
    config |= {"architectures": [ARCHITECTURES[kind]], "model_type": kind, "dtype": "float32"}
    for name in ("torch_dtype", "projection_dim"):  # the older name; a module of its own here
        config.pop(name, None)
    for name in TOKENIZER_FILES:
        if (template / name).exists():
            shutil.copyfile(template / name, folder / name)
    tokens = load_json(folder / "tokenizer_config.json")
    for name, said in (("config.json", config), ("tokenizer_config.json", tokens)):
        if said.pop("auto_map", None) or said is config:  # its code does not go along
            artifacts.write_json(folder / name, said)
    weights.write_weights(folder, shape, params)
    paths = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for number, layer in enumerate(settings.dense):
        paths.append((f"{len(paths)}_Dense", "Dense"))
        where = folder / paths[-1][0]
        where.mkdir()
        of_layer = weights.dense_weights(number, layer)
        weights.write_tensors(where, of_layer, params, prefix="linear.")
        torch_names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
        content = {
            "in_features": layer.inputs,
            "out_features": layer.outputs,
            "bias": layer.bias,
            "activation_function": torch_names[layer.activation],
        }
        artifacts.write_json(where / "config.json", content)
    if settings.normalize:
        paths.append((f"{len(paths)}_Normalize", "Normalize"))
    both = prompts or {"question": settings.prompt, "passage": settings.prompt}
    ours = _ours(folder, settings, temperature)
    if max_question_tokens:
        ours["max_question_tokens"] = max_question_tokens
    pooling = {name: settings.pooling == kind for name, kind in POOLINGS.items()}
    for name, content in {
        MODULES: _modules(paths),
        "1_Pooling/config.json": {"word_embedding_dimension": shape.hidden_size, **pooling},
        description.LENGTHS: {
            "max_seq_length": settings.max_tokens,
            "do_lower_case": settings.lowercase,
        },
        description.SENTENCE_CONFIG: _sentence_config(both, settings),
        description.OURS: ours,
    }.items():
        artifacts.write_json(folder / name, content)


def write_router(root: Path, settings: dict[Side, EncoderSettings], temperature: float) -> None:
    """Makes one object of sentence-transformers out of the two towers in a folder.

    Args:
      root: with question_encoder/ and passage_encoder/.
      settings: of each.
      temperature: of training.
    """
    structure, types = {}, {}
    for side, route in (("question", "query"), ("passage", "document")):
        tower = f"{side}_encoder"
        listed = load_json(root / tower / MODULES, list)
        structure[route] = [f"{tower}/{one['path']}".rstrip("/") for one in listed]
        types |= dict(zip(structure[route], [one["type"] for one in listed], strict=True))
    parameters = {"default_route": "document", "allow_empty_key": True}
    router = {"types": types, "structure": structure, "parameters": parameters}
    prompts = {side: one.prompt for side, one in settings.items()}
    for name, content in {
        MODULES: _modules([("", "Router")]),
        ROUTER: router,
        description.SENTENCE_CONFIG: _sentence_config(prompts, settings["passage"]),
        description.OURS: _ours(root / "passage_encoder", settings["passage"], temperature),
    }.items():
        artifacts.write_json(root / name, content)


def _modules(paths: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"{PACKAGE}.{kind}"}
        for i, (path, kind) in enumerate(paths)
    ]


def _sentence_config(prompts: dict[Side, str], settings: EncoderSettings) -> dict[str, Any]:
    content: dict[str, Any] = {
        "prompts": {"query": prompts["question"], "document": prompts["passage"]},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine" if settings.normalize else "dot",
    }
    return content | ({"truncate_dim": settings.width} if settings.width else {})


def _ours(folder: Path, settings: EncoderSettings, temperature: float | None) -> dict[str, Any]:
    """Returns what sentence-transformers has no place for.

    Args:
      folder: with the tokenizer.
      settings: of the tower.
      temperature: of training.
    """
    joined = (
        f"title {description.separator(folder)} text"
        if settings.title_and_text == "pair"
        else "title text"
    )
    return {
        "title_and_text": settings.title_and_text,
        "in_sentence_transformers": f"Give a passage as one string, {joined!r}; without a title,"
        " its text. Vectors differ only where a title longer than its text has to be cut, and where"
        " one tower serves both sides, of questions longer than max_question_tokens.",
        "temperature": temperature,
    }
