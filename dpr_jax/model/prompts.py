"""Finds the text that an encoder wants before each question and each passage.

A folder of sentence-transformers says it in config_sentence_transformers.json. Two families were
trained with prompts before that file had them, and are known by name:

- E5: "query: " and "passage: " for every model that e5/model_config.py of microsoft/unilm marks
  `query_or_passage`; the model cards (intfloat/e5-base-v2) name them for passage retrieval.
- BGE: the column "query instruction for retrieval" of the model list in
  examples/inference/embedder/README.md of FlagOpen/FlagEmbedding; passages get none. The list has
  none for bge-m3.
"""

import re
from pathlib import Path
from typing import Any

from dpr_jax.errors import InputError

# as sentence-transformers' encode_query and encode_document look for them
NAMES = {"question": ("query",), "passage": ("document", "passage", "corpus")}
BGE = "Represent this sentence for searching relevant passages: "
BGE_CHINESE = "为这个句子生成表示以用于检索相关文章："
KNOWN = (  # a name, what is before questions, before passages
    (r"e5-(small|base|large)(-v2)?|multilingual-e5-(small|base|large)", "query: ", "passage: "),
    (r"bge-(small|base|large)-en(-v1\.5)?", BGE, ""),
    (r"bge-(small|base|large)-zh(-v1\.5)?", BGE_CHINESE, ""),
)


def of(said: dict[str, Any], file: Path, side: str) -> str | None:
    """Returns the prompt of a side; None where the file has no prompts at all.

    Args:
      said: what config_sentence_transformers.json holds.
      file: its path.
      side: "question" or "passage".

    Raises:
      InputError: the prompts are no object of texts.
    """
    prompts = said.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(
        isinstance(text, str | None) for text in prompts.values()
    ):
        raise InputError(f"{file} has prompts {prompts!r}; they must be an object of texts by name")
    for name in NAMES[side]:
        if prompts.get(name):
            return prompts[name]
    return "" if any(prompts.values()) else None


def known(folder: Path, side: str) -> str | None:
    """Returns the prompt of an encoder that is known by the name of its folder or repository."""
    hub = next((part for part in folder.parts if part.startswith("models--")), "")
    names = {hub.rpartition("--")[2].lower(), folder.name.lower()}
    for pattern, question, passage in KNOWN:
        if any(re.fullmatch(pattern, name) for name in names):
            return question if side == "question" else passage
    return None
