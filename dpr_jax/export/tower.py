"""The question tower of an export, in Hugging Face layout."""

import shutil
from pathlib import Path

from dpr_jax.export.source import Source
from dpr_jax.model import description, hf

FOLDER = "question_encoder"


def write(source: Source, folder: Path) -> None:
    """Writes the question tower to `folder`/question_encoder, so that it says what it is.

    A setting of the retriever that its encoder's folder does not say (`model.pooling`) is written
    there too.
    """
    found = hf.resolve(source.retriever.encoder, "question")
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    settings = description.read(found, "question", source.config.model)
    shape = hf.read_shape(found)
    hf.write_encoder(
        target,
        template=found,
        shape=shape,
        params=hf.read_params(found, shape, settings),
        settings=settings,
        temperature=settings.trained_temperature,
    )
