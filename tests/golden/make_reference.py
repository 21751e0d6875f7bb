"""Writes reference.npz: vectors of the packaged encoder by PyTorch and transformers, for
tests/test_bert.py.

Needs the bench extra:  python tests/golden/make_reference.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from dpr_jax.model import hf

FOLDER = Path(__file__).parent
MAX_TOKENS = 64


def main() -> None:
    """One text at a time, so that no padding can matter: last layer's [CLS], and the mean scaled to
    unit length.
    """
    source = hf.resolve("packaged:all-MiniLM-L6-v2", "question")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    texts = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
    cls, mean, ids = [], [], []
    for title, text in texts:
        pair = (title, text) if title else (text,)
        encoded = tokenizer(*pair, truncation="longest_first", max_length=MAX_TOKENS)
        row = torch.tensor([encoded["input_ids"]])
        with torch.no_grad():
            out = model(row, token_type_ids=torch.zeros_like(row))
        hidden_LD = out.last_hidden_state[0]
        average_D = hidden_LD.mean(dim=0)
        cls.append(hidden_LD[0].numpy())
        mean.append((average_D / average_D.norm()).numpy())
        ids.append(encoded["input_ids"] + [-1] * (MAX_TOKENS - row.shape[1]))
    np.savez(
        FOLDER / "reference.npz",
        cls=np.stack(cls),
        mean=np.stack(mean),
        ids=np.array(ids, np.int32),
    )


if __name__ == "__main__":
    main()
