"""An index that is there already: what is still to do where nothing has to be built."""

import shutil
from pathlib import Path

from dpr_jax import artifacts
from dpr_jax.console import say
from dpr_jax.index.open import MANIFEST


def up_to_date(out: Path, model: str) -> None:
    """Says so, and names the encoder that its vectors are of.

    Args:
      out: folder of the index.
      model: fingerprint of the encoder of passages; another one may have come to the same vectors.

    Raises:
      InputError: index.json is damaged.
    """
    if artifacts.read_json(out / MANIFEST)["model"] != model:
        artifacts.restate(out / MANIFEST, model=model)
    say(f"index: up to date ({out})")


def delete_others(out: Path, files: list[Path]) -> None:
    """Deletes what is in no index.json: an older index, and what a killed run left.

    Args:
      out: folder of the index.
      files: in it, which stay.
    """
    tops = {file.relative_to(out).parts[0] for file in files} | {MANIFEST}
    for path in out.iterdir():
        if path.name in tops:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
