"""Both towers of a model as one object, with the names that sentence-transformers uses.

from dpr_jax import SentenceEncoder

encoder = SentenceEncoder.load("intfloat/e5-small-v2")
questions = encoder.encode_query(["what is the capital of France?"])
passages = encoder.encode_document([("Paris", "Paris is the capital of France.")])
encoder.similarity(questions, passages)
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dpr_jax.config import ModelConfig
from dpr_jax.model.embed import Embedder, load_embedder
from dpr_jax.model.tokenizer import Text


class SentenceEncoder:
    """The question tower and the passage tower of a model.

    Attributes:
      question: the tower of questions.
      passage: the tower of passages.
    """

    def __init__(self, question: Embedder, passage: Embedder) -> None:
        """Takes both towers, whose vectors have one width."""
        self.question, self.passage = question, passage

    @classmethod
    def load(
        cls,
        source: str,
        *,
        model: ModelConfig | None = None,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> "SentenceEncoder":
        """Opens a model.

        Args:
          source: a folder, a hub id, or anything else that `model.init` takes.
          model: settings that are not as the folder says.
          dtype: compute precision; auto as in encoding.

        Raises:
          InputError: the model cannot be found or read.
        """
        model = model or ModelConfig()
        sides = ("question", "passage")
        return cls(*(load_embedder(source, side, model=model, dtype=dtype) for side in sides))

    def encode_query(self, texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        """Returns the vectors of questions: float32 [Q, D].

        Args:
          texts: the questions.
          prompt: put before each; None: the model's own.
        """
        return self.question.encode(texts, prompt=prompt)

    def encode_document(self, texts: Sequence[Text], *, prompt: str | None = None) -> np.ndarray:
        """Returns the vectors of passages: float32 [N, D].

        Args:
          texts: (title, text) pairs, or texts alone.
          prompt: put before each; None: the model's own.
        """
        return self.passage.encode(texts, prompt=prompt)

    def encode(self, texts: Sequence[Text], *, prompt: str = "") -> np.ndarray:
        """Returns the vectors of texts that are neither, by the passage tower: float32 [N, D]."""
        return self.passage.encode(texts, prompt=prompt)

    @staticmethod
    def similarity(a_QD: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
        """Returns the score of each of `a_QD` with each of `b_ND`: float32 [Q, N].

        It is the dot product, by which the model was trained: cosine for vectors of unit length.
        """
        return np.asarray(a_QD, np.float32) @ np.asarray(b_ND, np.float32).T
