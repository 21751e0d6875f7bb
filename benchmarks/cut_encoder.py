"""Cuts an encoder to its lowest layers, for the studies in docs/results.md.

  python benchmarks/cut_encoder.py --layers 2 --out runs/minilm-2-layers

Writes a folder that `model.init` takes. It is small enough for those studies and has something left
to learn. Embeddings, layers, pooling and lengths are those of the encoder that it is cut from.
"""

import argparse
import dataclasses
from pathlib import Path

from dpr_jax import artifacts
from dpr_jax.config import ModelConfig
from dpr_jax.model import description, hf


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
    params = hf.read_params(whole, shape)
    for layer in range(layers, shape.num_hidden_layers):
        del params["bert"][f"layer_{layer}"]
    out.mkdir(parents=True)
    settings = description.read(whole, "passage", ModelConfig())
    hf.write_encoder(out, template=whole, shape=cut, params=params, settings=settings)
    config = artifacts.read_json(out / "config.json")
    artifacts.write_json(out / "config.json", {**config, "num_hidden_layers": layers})
    print(f"{out}: {layers} of {shape.num_hidden_layers} layers of {source}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="packaged:all-MiniLM-L6-v2")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    call = parser.parse_args()
    main(call.source, call.layers, call.out)
