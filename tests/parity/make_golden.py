"""Writes tests/golden/encoders/FAMILY: a tiny encoder of each family as transformers saves it, with
the token ids and vectors that transformers gives for a few texts.

    python tests/parity/make_golden.py
"""

import gzip
import json
import shutil
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
        shutil.rmtree(folder, ignore_errors=True)
        size = families.write_tokenizer(name, folder, [*texts, *hard_texts() * 3])
        encoder = families.model(families.configs(size)[name], seed)
        encoder.half().save_pretrained(folder)
        encoder.float()
        in_other_forms(name, folder)
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


def in_other_forms(name: str, folder: Path) -> None:
    """Saves the weights of some families as others save theirs: PyTorch's, bfloat16."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    if name == "distilbert":
        torch.save(tensors, folder / "pytorch_model.bin")
        file.unlink()
    if name == "mpnet":  # each number's nearest; the reference is of what is stored
        tensors = {key: value.bfloat16() for key, value in tensors.items()}


if __name__ == "__main__":
    main()
