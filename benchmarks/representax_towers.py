"""Implements the training step with Representax, as its users write it, to compare with.

Needs the package representax. Two of its BERTs, in its own compiled step and precision policy, with
its multiple negatives ranking loss over the batch's passages (cosine with a temperature), and
optax.adamw behind its clipping of gradients. It reads the batches of training/batches and nothing
else of this project.
"""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from representax.config import PrecisionConfig
from representax.core import Route
from representax.models.bert.checkpoint import BertCheckpointAdapter
from representax.models.bert.config import BertConfig
from representax.models.bert.model import BertBatch, BertEncoder
from representax.precision import resolve_precision_policy
from representax.tasks.retrieval import MNRTask, RetrievalBatch, retrieval_batch
from representax.train.step import build_train_step, init_train_state
from safetensors.numpy import load_file

from dpr_jax.model.dual_encoder import Tokens
from dpr_jax.training.step import Batch


class Pair(eqx.Module):
    """A question encoder and a passage encoder, with the methods of one of the package's models."""

    question: Any
    passage: Any

    @property
    def metadata(self) -> Any:
        return self.question.metadata

    def encode(self, inputs: BertBatch, *, route: Route, key: Any = None) -> jax.Array:
        tower = self.question if route is Route.QUERY else self.passage
        return tower.encode(inputs, route=route, key=key)

    def training_filter(self) -> "Pair":
        return Pair(self.question.training_filter(), self.passage.training_filter())


class Trainer:
    """Two towers and their optimizer on one device."""

    def __init__(
        self,
        folder: Path,
        *,
        temperature: float,
        clip_norm: float,
        learning_rate: float,
        dtype: str,
        seed: int,
    ) -> None:
        """Loads both towers from one Hugging Face folder, whose config.json says the dropout."""
        pair = Pair(*(_tower(folder, jnp.dtype(dtype)) for _ in range(2)))
        optimizer = optax.adamw(learning_rate, eps=1e-8, weight_decay=0.0)
        own = PrecisionConfig() if dtype == "float32" else PrecisionConfig.bfloat16_mixed()
        precision = resolve_precision_policy(own)
        trained = pair.training_filter()
        self._state = init_train_state(
            pair, optimizer, precision=precision, trainable_filter=trained
        )
        self._step = build_train_step(
            MNRTask(scale=1 / temperature),
            optimizer,
            max_grad_norm=clip_norm,
            donate_state=True,
            precision=precision,
            trainable_filter=trained,
        )
        self._key = jax.random.key(seed)
        self._count = 0

    def update(self, batch: Batch) -> float:
        """Makes one update; returns the loss before it."""
        self._count += 1
        result = self._step(
            self._state, relations(batch), jax.random.fold_in(self._key, self._count)
        )
        self._state = result.state
        return float(result.metrics.loss)


def _tower(folder: Path, dtype: jnp.dtype) -> BertEncoder:
    config = BertConfig.from_hf_config(json.loads((folder / "config.json").read_text()))
    weights = {
        name.removeprefix("bert."): weight
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    width = config.hidden_size  # the package wants BERT's pooler, which it does not use either
    weights.setdefault("pooler.dense.weight", np.zeros((width, width), np.float32))
    weights.setdefault("pooler.dense.bias", np.zeros(width, np.float32))
    adapter = BertCheckpointAdapter(rematerialization="none")
    return adapter.from_state_dict(config, weights, compute_dtype=dtype)


def relations(batch: Batch) -> RetrievalBatch:
    """Returns a batch in the package's form: every passage but dummies is a negative of all other
    questions.
    """
    passages, questions = len(batch.passage_texts_P), len(batch.weight_B)
    positive_BP = np.zeros((questions, passages), bool)
    at_B = np.arange(questions)
    positive_BP[at_B, at_B * (passages // questions)] = True
    return retrieval_batch(
        query=_texts(batch.question),
        document=_texts(batch.passages),
        positive_mask=positive_BP,
        document_valid=np.asarray(batch.passage_texts_P) >= 0,
    )


def _texts(tokens: Tokens) -> BertBatch:
    mask_BL = np.arange(tokens.ids_BL.shape[1]) < np.asarray(tokens.lengths_B)[:, None]
    return BertBatch(attention_mask=jnp.asarray(mask_BL), input_ids=jnp.asarray(tokens.ids_BL))
