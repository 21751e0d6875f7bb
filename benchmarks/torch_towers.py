"""Implements DPR's training step in plain PyTorch, as its users write it, to compare with.

Needs the extra `bench`.

Two transformers `BertModel` in eager mode, cross entropy over the batch's passages,
`torch.optim.AdamW`. It reads the batches of training/batches and nothing else of this project.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy, normalize

from dpr_jax.model.dual_encoder import Tokens
from dpr_jax.training.step import Batch


class Settings(NamedTuple):
    """Settings of a tower and of its training; as in TrainConfig and ModelConfig."""

    pooling: str
    normalize: bool
    temperature: float
    clip_norm: float
    weight_decay: float
    dtype: torch.dtype = torch.float32


class Trainer:
    """Two towers and their optimizer on one device."""

    def __init__(self, folder: Path, settings: Settings, *, dropout: float) -> None:
        """Loads both towers from one Hugging Face folder, on the GPU where there is one."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._settings = settings
        self.question, self.passage = (
            transformers.BertModel.from_pretrained(
                folder,
                add_pooling_layer=False,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
            .to(self.device)
            .train()
            for _ in range(2)
        )
        named = [*self.question.named_parameters(), *self.passage.named_parameters()]
        self._params = [param for _, param in named]
        plain = [p for name, p in named if "bias" in name or "LayerNorm" in name]
        decayed = [p for name, p in named if not ("bias" in name or "LayerNorm" in name)]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            eps=1e-8,
        )

    def update(self, batch: Batch, learning_rate: float) -> float:
        """Makes one update; returns the loss before it."""
        self._optimizer.zero_grad()
        loss = self._loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._params, self._settings.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        return loss.item()

    def _loss(self, batch: Batch) -> torch.Tensor:
        """Returns the cross entropy of each question's positive among the batch's passages.

        Dummies and other positives of a question are no negatives.
        """
        question_BD = self._encode(self.question, batch.question)
        passage_PD = self._encode(self.passage, batch.passages)
        scores_BP = question_BD @ passage_PD.T / self._settings.temperature
        texts_P = self._tensor(batch.passage_texts_P)
        known_BM = self._tensor(batch.positive_texts_BM)
        out_BP = (known_BM[:, :, None] == texts_P).any(1) | (texts_P < 0)
        stride = len(texts_P) // len(known_BM)
        label_B = torch.arange(len(known_BM), device=self.device)
        out_BP[label_B, label_B * stride] = False
        scores_BP = scores_BP.float().masked_fill(out_BP, -torch.inf)
        return cross_entropy(scores_BP, label_B * stride)

    def _encode(self, tower: transformers.BertModel, tokens: Tokens) -> torch.Tensor:
        """Returns the vectors of texts, padded to the longest of them."""
        longest = int(tokens.lengths_B.max())
        ids_BL = self._tensor(tokens.ids_BL[:, :longest])
        lengths_B1 = self._tensor(tokens.lengths_B)[:, None]
        mask_BL = torch.arange(longest, device=self.device)[None] < lengths_B1
        reduced = self._settings.dtype != torch.float32
        with torch.autocast(self.device.type, self._settings.dtype, enabled=reduced):
            x_BLD = tower(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        if self._settings.pooling == "cls":
            emb_BD = x_BLD[:, 0].float()
        else:
            x_BLD = x_BLD.float() * mask_BL[..., None]
            emb_BD = x_BLD.sum(1) / lengths_B1
        return normalize(emb_BD) if self._settings.normalize else emb_BD

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).long().to(self.device)
