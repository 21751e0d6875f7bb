"""An encoder of the lowest layers of another one: small enough for the studies in docs/results.md,
and with something left to learn.

  python benchmarks/cut_encoder.py --layers 2 --out runs/minilm-2-layers

Writes a folder that `model.init` takes. Embeddings and layers are those of the encoder that it is
cut from, unchanged.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

from dpr_jax import artifacts
from dpr_jax.model import hf


def main(source: str, layers: int, out: Path) -> None:
    whole = hf.resolve(source, "passage")
    shape = hf.read_shape(whole)
    if not 1 <= layers <= shape.num_hidden_layers:
        raise SystemExit(
            f"--layers is {layers}; {source} has {shape.num_hidden_layers}: ask for 1 or more of"
            " them"
        )
    if out.exists():
        raise SystemExit(f"{out} exists; delete it or name another folder")
    cut = dataclasses.replace(shape, num_hidden_layers=layers)
    params = hf.read_params(whole, cut)
    out.mkdir(parents=True)
    for name in hf.TOKENIZER_FILES:
        if (whole / name).exists():
            shutil.copyfile(whole / name, out / name)
    hf.write_weights(out, cut, params)
    config = artifacts.read_json(whole / "config.json")
    artifacts.write_json(out / "config.json", {**config, "num_hidden_layers": layers})
    print(f"{out}: {layers} of {shape.num_hidden_layers} layers of {source}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="packaged:all-MiniLM-L6-v2")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    call = parser.parse_args()
    main(call.source, call.layers, call.out)
