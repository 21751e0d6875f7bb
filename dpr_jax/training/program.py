"""The update of a run as a program: what is mapped over devices, whether they are here or not.

The loop maps it over the devices of the run; `dpr plan` over those of a machine that is not here.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from dpr_jax import parallel
from dpr_jax.config import Config
from dpr_jax.model.bert import BertShape
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Encoder, Params
from dpr_jax.training import optimizer, setup
from dpr_jax.training.step import LOG_TEMPERATURE, StepSettings, TrainState, train_step


class Program(NamedTuple):
    """The update of a run.

    Attributes:
      settings: of the per-device step.
      learning_rate: of update n (0-based).
      spmd: the mapping over devices.
      learn_temperature: the towers' temperature is a parameter.
    """

    settings: StepSettings
    learning_rate: optax.Schedule
    spmd: parallel.Spmd
    learn_temperature: bool

    @property
    def encoder(self) -> Encoder:
        """The architecture of both towers, with dropout."""
        return self.settings.encoder

    def initial_state(self, params: Params) -> TrainState:
        """Returns the state before the first update; `params` are those of both towers.

        Traces: `jax.eval_shape` gives the shapes alone.
        """
        if self.learn_temperature:
            start = np.array(math.log(self.settings.temperature), np.float32)
            params = {**params, LOG_TEMPERATURE: start}
        return TrainState(np.zeros((), np.int32), params, self.settings.optimizer.init(params))

    def update(self, chunk_size: int | None) -> Callable[[Any, Any], Any]:
        """Returns (state, batch) -> (state, metrics) on all devices; the state's memory is
        reused.
        """
        settings = self.settings._replace(chunk_size=chunk_size)
        step = functools.partial(train_step, settings=settings, axis=parallel.AXIS)
        return self.spmd.map(step, donate=True)


def build(
    config: Config,
    shape: BertShape,
    own: EncoderSettings,
    schedule: setup.Schedule,
    spmd: parallel.Spmd,
) -> Program:
    """Builds the update that `config` asks for.

    Args:
      config: of the retriever.
      shape: architecture of both towers.
      own: pooling, normalization and temperature of the towers.
      schedule: updates of the run.
      spmd: the mapping, over devices of one platform, whose forms are computed.

    Raises:
      InputError: no layer is left to train, or a Matryoshka width is too large.
    """
    train = config.train
    frozen = setup.frozen_levels(train, shape.num_hidden_layers)
    setup.check_widths(train.matryoshka_widths, shape.hidden_size)
    encoder = Encoder(
        shape,
        pooling=own.pooling,
        normalize=own.normalize,
        dropout=train.dropout,
        dtype=jnp.dtype(train.dtype),
        frozen=frozen,
        remat=train.remat,
        attention_dropout=train.attention_dropout,
        platform=spmd.platform,
    )
    rate, adamw = optimizer.of(train, schedule, layers=shape.num_hidden_layers, frozen=frozen)
    temperature = train.temperature or own.temperature
    settings = StepSettings.of(train, encoder, adamw, seed=config.seed, temperature=temperature)
    return Program(settings, rate, spmd, train.learn_temperature)
