"""Writes tests/golden/encoders/FAMILY: a tiny encoder of each family as transformers saves it, with
the token ids and vectors that transformers gives for a few texts.

    python tests/parity/make_golden.py [FAMILY ...]
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

import families
import numpy as np
import safetensors.torch
import torch
import transformers

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
PASSAGES = HERE.parents[1] / "data/quickstart/passages.tsv.gz"
MAX_TOKENS = 24


def real_texts(count: int) -> list[str]:
    """Returns texts of the quickstart's passages."""
    with gzip.open(PASSAGES, "rt", encoding="utf-8") as lines:
        return [line.split("\t")[1] for line, _ in zip(lines, range(count + 1), strict=False)][1:]


def hard_texts() -> list[str]:
    """Returns texts that tokenizers are known to differ in."""
    return json.loads((GOLDEN / "hard_texts.json").read_text(encoding="utf-8"))


def main() -> None:
    """Makes the folders anew."""
    texts = real_texts(800)
    some = [*texts[:4], *hard_texts()]
    for seed, name in enumerate(families.configs(families.WORDS)):
        folder = GOLDEN / "encoders" / name
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        size = families.write_tokenizer(name, folder, [*texts, *hard_texts() * 3])
        encoder = families.model(families.configs(size)[name], seed)
        save_half(encoder, name, folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids, cls, mean = [], [], []
        for text in some:
            row = tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
            ids.append(row + [-1] * (MAX_TOKENS - len(row)))
            with torch.no_grad():
                out = encoder(torch.tensor([row]))
            if name == "dpr":
                cls.append(out.pooler_output[0].numpy())
            else:
                hidden_LD = out.last_hidden_state[0]
                cls.append(hidden_LD[0].numpy())
                mean.append(hidden_LD.mean(dim=0).numpy())
        arrays = {"cls": cls} | ({"mean": mean} if mean else {})
        np.savez(folder / "reference.npz", ids=np.array(ids, np.int32), **arrays)
    (GOLDEN / "encoders/texts.json").write_text(
        json.dumps(some, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


def save_half(encoder: torch.nn.Module, name: str, folder: Path) -> None:
    """Saves the weights as float16, those of one family as PyTorch does."""
    encoder.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = {key: value.half() for key, value in safetensors.torch.load_file(file).items()}
    if name == "distilbert":
        torch.save(tensors, folder / "pytorch_model.bin")
        file.unlink()
    else:
        safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    if name == "xlm-roberta":  # half a megabyte, and the other file says the same
        (folder / "tokenizer.json").unlink()


if __name__ == "__main__":
    main()
