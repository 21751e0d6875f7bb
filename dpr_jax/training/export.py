"""The last checkpoint as an encoder folder that any later stage, and any other library, can
open.
"""

from pathlib import Path

from dpr_jax import artifacts, console
from dpr_jax.model import hf
from dpr_jax.model.bert import BertShape
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Params, Side, tower

SIDES: tuple[Side, Side] = ("question", "passage")


def export(
    model: Path,
    params: Params,
    *,
    origin: dict[str, object],
    shape: BertShape,
    init: str,
    settings: dict[Side, EncoderSettings],
    facts: dict[str, object],
) -> None:
    """Writes question_encoder/ and passage_encoder/, whole or not at all.

    Args:
      model: the folder to make.
      params: host arrays of both towers.
      origin: what the weights were made from.
      shape: architecture.
      init: where the weights started, whose tokenizer files go along.
      settings: pooling, normalization and length of each side.
      facts: put into the manifest, such as the validation of these weights.
    """
    with artifacts.atomic_dir(model) as folder:
        for side in SIDES:
            target = folder / f"{side}_encoder"
            target.mkdir()
            hf.write_encoder(
                target,
                template=hf.resolve(init, side),
                shape=shape,
                params=tower(params, side),
                settings=settings[side],
            )
        files = [path for path in folder.rglob("*") if path.is_file()]
        artifacts.write_manifest(folder / "manifest.json", origin, files, **facts)
    console.say(f"train: wrote {model}")
