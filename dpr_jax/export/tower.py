"""The question tower of an export, in Hugging Face layout."""

import shutil
from pathlib import Path

from dpr_jax.config import ModelConfig
from dpr_jax.export.source import Source
from dpr_jax.model import description, hf

FOLDER = "question_encoder"


def write(source: Source, folder: Path) -> None:
    """Copies the question tower to `folder`/question_encoder, so that it says what it is.

    A setting of the retriever that its encoder's folder does not say (`model.pooling`) is written
    into the copy.
    """
    found = hf.resolve(source.retriever.encoder, "question")
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    names = ["config.json", hf.SHARDS, *hf.TOKENIZER_FILES]
    files = [*hf.weight_files(found), *(found / name for name in names)]
    for pattern in description.FILES:
        files += found.glob(pattern)
    for file in files:
        if file.exists():
            copy = target / file.relative_to(found)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    settings = description.read(found, "question", source.config.model)
    if description.read(target, "question", ModelConfig()) != settings:
        temperature = description.load_json(found / description.OURS).get("temperature")
        description.write(target, settings, width=source.width, temperature=temperature)
