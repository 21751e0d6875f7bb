"""An encoder for mteb; pip install "dpr_jax[mteb]"."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType

from dpr_jax import recipes
from dpr_jax.errors import InputError
from dpr_jax.model.sentences import SentenceEncoder
from dpr_jax.retrieval.retriever import best
from dpr_jax.workdir import open_workdir


class DprEncoder:
    """Encodes what mteb's tasks hold: queries by the question tower, documents by the other.

    >>> import mteb
    >>> from dpr_jax.adapters.mteb_model import DprEncoder
    >>> model = DprEncoder(workdir="runs/mine", retriever="trained")
    >>> mteb.evaluate(model, tasks)

    Prompts are the model's own. A document's title and text are joined as in training. Texts that
    are neither query nor document (clustering, similarity of sentences) get the passage tower and
    no prompt.

    Attributes:
      encoder: both towers.
      mteb_model_meta: what mteb files the results under; the revision is a hash of weights,
        tokenizer and settings, so results of another training are never taken for this one's.
    """

    def __init__(
        self,
        source: str | None = None,
        *,
        workdir: str | Path | None = None,
        retriever: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        """Opens an encoder.

        Args:
          source: a folder, a hub id, or anything else that `model.init` takes; or `workdir`.
          workdir: a work directory.
          retriever: one of its retrievers; None takes the best on the dev questions.
          dtype: compute precision; auto as in encoding.

        Raises:
          InputError: both or neither of source and workdir are given, or the encoder cannot be
            found or read.
        """
        if (source is None) == (workdir is None):
            raise InputError("give either source, an encoder, or workdir, a work directory")
        model = None
        name = source
        if workdir is not None:
            opened = open_workdir(workdir, new=False)
            chosen = opened.retriever(retriever or best(opened)[0])
            if not chosen.file.exists():
                raise recipes.unknown(opened, chosen.name)
            if chosen.kind != "dense":
                raise InputError(
                    f"retriever {chosen.name} is {chosen.kind} and has no encoder; name a dense one"
                )
            source, name, model = str(chosen.encoder), chosen.name, recipes.load(chosen).model
        self.encoder = SentenceEncoder.load(source, model=model, dtype=dtype)
        towers = (self.encoder.question, self.encoder.passage)
        hashed = hashlib.sha256("".join(tower.fingerprint for tower in towers).encode())
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"dpr_jax/{Path(name).name}",
                "revision": hashed.hexdigest()[:16],
                "embed_dim": towers[1].width,
                "framework": ["JAX"],
                "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
            }
        )

    def encode(
        self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any
    ) -> np.ndarray:
        """Returns the vectors of texts: float32 [N, D].

        Args:
          inputs: batches of mteb: {"text": [...]}, of documents {"title": [...], "body": [...]}.
          prompt_type: queries, documents or neither.
          kwargs: what mteb says besides; batches have the size that dpr_jax gives them.

        Raises:
          InputError: another precision than float32 is asked for.
        """
        if kwargs.get("precision") not in (None, "float32"):
            raise InputError(f"precision is {kwargs['precision']!r}; vectors are float32 here")
        if prompt_type == PromptType.document:
            return self.encoder.encode_document([one for batch in inputs for one in pairs(batch)])
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == PromptType.query:
            return self.encoder.encode_query(texts)
        return self.encoder.encode(texts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Returns the dot product of each of the first with each of the second: float32 [Q, N]."""
        return self.encoder.similarity(*map(np.atleast_2d, (embeddings1, embeddings2)))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Returns the dot products of pairs: float32 [N]."""
        one, other = (np.asarray(each, np.float32) for each in (embeddings1, embeddings2))
        return np.sum(one * other, axis=-1)


def pairs(batch: dict[str, list[Any]]) -> list[tuple[str, str]]:
    """Returns title and text of each document of a batch."""
    texts = batch.get("body", batch["text"])
    titles = batch.get("title", [""] * len(texts))
    return [(title or "", text) for title, text in zip(titles, texts, strict=True)]
