"""One side of an encoder, as an export gets it."""

from pathlib import Path
from typing import NamedTuple

from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Params
from dpr_jax.model.stack import EncoderShape


class Tower(NamedTuple):
    """One side of a retriever's encoder.

    Attributes:
      folder: where it comes from.
      settings: how its vectors are made, with the retriever's own settings.
      shape: its architecture.
      params: its weights.
    """

    folder: Path
    settings: EncoderSettings
    shape: EncoderShape
    params: Params
