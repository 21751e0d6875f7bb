"""The update of a run as a program: what is mapped over devices, whether they are here or not.

The loop maps it over the devices of the run; `dpr plan` over those of a machine that is not here.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpr_jax import parallel
from dpr_jax.config import Config
from dpr_jax.model import dual_encoder, hf, lora
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import EncoderPair, Params, Side, Tokens
from dpr_jax.model.stack import EncoderShape
from dpr_jax.training import optimizer, setup
from dpr_jax.training.step import LOG_TEMPERATURE, StepSettings, TrainState, train_step


class Program(NamedTuple):
    """The update of a run.

    Attributes:
      settings: of the per-device step.
      learning_rate: of update n (0-based).
      spmd: the mapping over devices.
      start: weights of the towers -> all params before the first update.
    """

    settings: StepSettings
    learning_rate: optax.Schedule
    spmd: parallel.Spmd
    start: Callable[[Params], Params]

    @property
    def encoder(self) -> EncoderPair:
        """The architecture of both towers, with dropout."""
        return self.settings.encoder

    def initial_state(self, params: Params) -> TrainState:
        """Returns the state before the first update; `params` are those of both towers.

        Traces: `jax.eval_shape` gives the shapes alone.
        """
        params = self.start(params)
        opt_state = self.settings.optimizer.init(lora.trained(params))
        return TrainState(np.zeros((), np.int32), params, opt_state)

    def place(self, state: TrainState) -> Any:
        """Puts a whole state of host arrays on all devices."""
        split = self.settings.whole is not None
        return (self.spmd.scatter if split else self.spmd.replicate)(state)

    def fetch(self, on_devices: Any) -> TrainState:
        """Returns the whole state as host arrays; all processes call it."""
        if self.settings.whole is None:
            return self.spmd.fetch(on_devices)
        params = self.settings.whole
        opt_state = jax.eval_shape(self.settings.optimizer.init, lora.trained(params))
        step = jax.ShapeDtypeStruct((), np.int32)
        return self.spmd.collect(on_devices, TrainState(step, params, opt_state))

    def shapes(self, state: TrainState, batch: Any) -> tuple[Any, Any]:
        """Returns what `update` is lowered with, from the shapes of the whole state and batch."""
        return self.spmd.shapes(state, batch, scattered=self.settings.whole is not None)

    def update(self, chunk_size: int | None) -> Callable[[Any, Any], Any]:
        """Returns (state, batch) -> (state, metrics) on all devices; the state's memory is
        reused.
        """
        settings = self.settings._replace(chunk_size=chunk_size)
        step = functools.partial(train_step, settings=settings, axis=parallel.AXIS)
        return self.spmd.map(step, donate=True, scattered=settings.whole is not None)


def build(
    config: Config,
    shapes: dict[Side, EncoderShape],
    own: dict[Side, EncoderSettings],
    schedule: setup.Schedule,
    spmd: parallel.Spmd,
) -> Program:
    """Builds the update that `config` asks for.

    Args:
      config: of the retriever.
      shapes: architecture of each tower.
      own: all else that makes a vector in each.
      schedule: updates of the run.
      spmd: the mapping, over devices of one platform, whose forms are computed.

    Raises:
      InputError: no layer is left to train, a Matryoshka width is too large, or the towers do not
        fit each other.
    """
    train = config.train
    layers = min(shape.num_hidden_layers for shape in shapes.values())
    frozen = setup.frozen_levels(train, layers)
    question, passage = (
        hf.encoder_of_shape(
            shapes[side],
            own[side],
            dropout=train.dropout,
            dtype=jnp.dtype(train.dtype),
            frozen=frozen,
            remat=train.remat,
            attention_dropout=train.attention_dropout,
            platform=spmd.platform,
        )
        for side in ("question", "passage")
    )
    encoder = EncoderPair(question, passage)
    setup.check_alike(config.model.init, encoder, shared=config.model.shared_towers)
    setup.check_widths(train.matryoshka_widths, passage.width)
    if train.lora_rank:
        setup.check_rank(train.lora_rank, shapes.values())
    # adapters stand above all that is frozen
    below = 0 if train.lora_rank else frozen
    rate, adamw = optimizer.of(train, schedule, layers=layers, frozen=below)
    temperature = train.temperature or own["passage"].temperature
    settings = StepSettings.of(train, encoder, adamw, seed=config.seed, temperature=temperature)
    start = functools.partial(_start, config=config, temperature=temperature)
    if train.shard_optimizer:
        shared = config.model.shared_towers
        whole = jax.eval_shape(start, _shapes(encoder, shared=shared))
        settings = settings._replace(whole=whole)
    return Program(settings, rate, spmd, start)


def _start(params: Params, *, config: Config, temperature: float) -> Params:
    """Adds to the weights of the towers what else is trained."""
    train = config.train
    if train.lora_rank:
        params = lora.with_adapters(
            params, rank=train.lora_rank, seed=config.seed, first_layer=train.freeze_layers or 0
        )
    if train.learn_temperature:
        params = {**params, LOG_TEMPERATURE: np.array(math.log(temperature), np.float32)}
    return params


def _shapes(towers: EncoderPair, *, shared: bool) -> Params:
    """Returns the shapes of the weights of both towers."""
    one = Tokens(np.ones((1, 1), np.int32), np.ones(1, np.int32))
    key = jax.random.key(0)
    trees = [
        jax.eval_shape(functools.partial(tower.init, train=False), key, one)["params"]
        for tower in towers
    ]
    return dual_encoder.dual_params(*trees, shared=shared)
