"""The question tower of an export."""

import shutil
from pathlib import Path

from dpr_jax import artifacts
from dpr_jax.export import model_onnx
from dpr_jax.export.model_tower import Tower
from dpr_jax.export.source import ExportSource
from dpr_jax.model import description, hf
from dpr_jax.model.tokenizer import Tokenizer
from dpr_jax.model.tokenizer_files import open_backend

FOLDER = "question_encoder"
ONNX = "question_onnx"


def write(source: ExportSource, folder: Path) -> None:
    """Writes the question tower to `folder`/question_encoder, in Hugging Face layout.

    A setting of the retriever that its encoder's folder does not say (`model.pooling`) is written
    there too.
    """
    tower, target = _question_tower(source), _emptied(folder / FOLDER)
    hf.write_encoder(
        target,
        template=tower.folder,
        shape=tower.shape,
        params=tower.params,
        settings=tower.settings,
        temperature=tower.settings.trained_temperature,
    )


def write_onnx(source: ExportSource, folder: Path) -> None:
    """Writes the question tower to `folder`/question_onnx, for onnxruntime and tokenizers alone.

    Its tokenizer.json truncates and pads by itself; a prompt is in encoder.json.
    """
    tower, target = _question_tower(source), _emptied(folder / ONNX)
    model_onnx.write(target, "question", tower)
    backend = open_backend(tower.folder)
    lowercase = description.is_lowercased(tower.folder)
    Tokenizer(backend, tower.settings.max_tokens, lowercase=lowercase)  # which sets it up
    backend.enable_padding()
    with artifacts.atomic_file(target / "tokenizer.json") as partial:
        backend.save(str(partial))


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _question_tower(source: ExportSource) -> Tower:
    found = hf.resolve(source.retriever.encoder, "question")
    settings = description.read(found, "question", source.config.model)
    shape = hf.read_shape(found)
    return Tower(found, settings, shape, hf.read_params(found, shape, settings))
