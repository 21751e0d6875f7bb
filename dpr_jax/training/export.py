"""Trained weights as encoder folders that any later stage, and any other library, can open."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from dpr_jax import artifacts, console
from dpr_jax.model import hf
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Params, Side, tower
from dpr_jax.model.stack import EncoderShape

SIDES: tuple[Side, Side] = ("question", "passage")


class Towers(NamedTuple):
    """Contents of the folders of two towers besides their weights.

    Attributes:
      shapes: architecture of each side.
      folders: of the encoders that the weights started from, whose tokenizer files go along.
      settings: pooling, normalization and length of each side.
      temperature: of training.
    """

    shapes: dict[Side, EncoderShape]
    folders: dict[Side, Path]
    settings: dict[Side, EncoderSettings]
    temperature: float


def write_towers(
    folder: Path, params: Params, towers: Towers, origin: dict[str, Any], **facts: Any
) -> None:
    """Writes question_encoder/ and passage_encoder/, or one encoder where both sides share it,
    whole or not at all.

    Args:
      folder: to make.
      params: host arrays of both towers.
      towers: what belongs to them.
      origin: what the weights were made from.
      facts: put into the manifest, such as the validation of these weights.
    """
    with artifacts.atomic_dir(folder) as partial:
        settings = towers.settings
        for side in ("passage",) if "shared" in params else SIDES:
            target = partial
            if "shared" not in params:
                target = partial / f"{side}_encoder"
                target.mkdir()
            hf.write_encoder(
                target,
                template=towers.folders[side],
                shape=towers.shapes[side],
                params=tower(params, side),
                settings=settings[side],
                temperature=towers.temperature,
                prompts={one: settings[one].prompt for one in SIDES},
                max_question_tokens=settings["question"].max_tokens,
            )
        if "shared" not in params:
            hf.write_router(partial, settings, towers.temperature)
        _write_manifest(partial, origin, facts)


def export(weights: Path, model: Path, origin: dict[str, Any]) -> None:
    """Makes the model of a run out of the weights of one of its steps; files are hard-linked.

    Args:
      weights: folder from `write_towers`.
      model: folder to make.
      origin: what the model is made from.
    """
    manifest = artifacts.verify(weights / "manifest.json")
    facts = {name: manifest[name] for name in ("step", "validation")}
    with artifacts.atomic_dir(model) as partial:
        for name in manifest["files"]:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(weights / name, partial / name)
            except OSError:  # a disk without hard links
                shutil.copyfile(weights / name, partial / name)
        _write_manifest(partial, origin, facts)
    console.say(f"train: step {facts['step']} becomes the model ({model})")


def _write_manifest(folder: Path, origin: dict[str, Any], facts: dict[str, Any]) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    artifacts.write_manifest(folder / "manifest.json", origin, files, **facts)
