"""AdamW with warm-up and linear decay (Loshchilov and Hutter, 2019, arXiv 1711.05101), and layers
that stay as they are.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dpr_jax import parallel
from dpr_jax.config import TrainConfig
from dpr_jax.model.dual_encoder import Params
from dpr_jax.training import shards
from dpr_jax.training.setup import Schedule
from dpr_jax.training.step import LOG_TEMPERATURE

# The paper trained on 8 GPUs, and its code's gradient is that of the global mean loss over their
# number.
DPR_DEVICES = 8
# AdamW moves a number by about the learning rate per update. At the towers' rate the logarithm of
# the temperature would move by 1 % in 1,000 updates at 2e-5.
TEMPERATURE_RATE = 100
TEMPERATURE_RATE_WITH_ADAPTERS = 5  # whose rate is some twenty times that of weights


def learning_rate(
    step: int | jax.Array,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    dpr_parity: bool = False,
) -> jax.Array:
    """Returns the rate of update `step`: up in a line over the warm-up, then down in a line to 0.

    After the warm-up it is peak * (total - step) / (total - warmup). The first update already moves
    (peak / warmup_steps), and so does the last one.

    Args:
      step: 0-based number of the update.
      peak: highest rate.
      warmup_steps: updates until the peak.
      total_steps: updates in all.
      dpr_parity: rise from 0 as the original does, whose first update is wasted.

    Returns:
      float32 scalar.
    """
    step = jnp.asarray(step, jnp.float32)
    first = 0 if dpr_parity else 1
    rising = (step + first) / warmup_steps if warmup_steps else 1.0
    left = (total_steps - step) / max(total_steps - warmup_steps, 1)
    return peak * jnp.minimum(rising, jnp.clip(left, 0.0, 1.0))


def make(
    rate: optax.Schedule,
    *,
    weight_decay: float,
    clip_norm: float | None,
    eps: float = 1e-8,
    dpr_parity: bool = False,
    layers: int = 0,
    frozen: int = 0,
    learn_temperature: bool = False,
    adapters: bool = False,
    axis: str | None = None,
) -> optax.GradientTransformation:
    """Returns AdamW with betas 0.9 and 0.999, clipped to a global norm.

    Args:
      rate: learning rate of update n (0-based).
      weight_decay: not applied to biases and LayerNorm.
      eps: of Adam's denominator.
      clip_norm: largest global gradient norm; None does not clip. Weights that stay have no part in
        it.
      dpr_parity: clip_norm and eps act on an eighth of the gradient, as on the paper's 8 GPUs.
      layers: of a tower; read where some stay as they came.
      frozen: levels from below that stay as they came, and need no moments: 1 is the embeddings, 1
        + n the first n layers too.
      learn_temperature: a temperature is among the parameters, at 100 times the towers' rate.
      adapters: the others are low-rank adapters; then it is 5 times.
      axis: mapped axis over whose devices the weights are split; None where each has them whole.
    """
    parts = [optax.adamw(rate, eps=eps, weight_decay=weight_decay, mask=_decayed)]
    if clip_norm and axis:
        parts.insert(0, shards.clip_by_global_norm(clip_norm, axis))
    elif clip_norm:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if dpr_parity:
        parts.insert(0, optax.scale(1 / DPR_DEVICES))
    if learn_temperature:
        factor = TEMPERATURE_RATE_WITH_ADAPTERS if adapters else TEMPERATURE_RATE
        parts.append(_scale_temperature(factor))
    if not frozen:
        return optax.chain(*parts)

    def moves(params: Params) -> Params:
        return jax.tree.map_with_path(lambda path, _: _level(path, layers) >= frozen, params)

    return optax.partition({True: optax.chain(*parts), False: optax.set_to_zero()}, moves)


def of(
    train: TrainConfig, schedule: Schedule, *, layers: int, frozen: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns the learning rate and AdamW as `train` has them.

    Args:
      train: settings of the run.
      schedule: its updates.
      layers: of a tower.
      frozen: levels that stay, as in `make`.
    """
    rate = functools.partial(
        learning_rate,
        peak=train.learning_rate,
        warmup_steps=schedule.warmup_steps,
        total_steps=schedule.total_steps,
        dpr_parity=train.dpr_parity,
    )
    return rate, make(
        rate,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
        dpr_parity=train.dpr_parity,
        layers=layers,
        frozen=frozen,
        learn_temperature=train.learn_temperature,
        adapters=train.lora_rank is not None,
        axis=parallel.AXIS if train.shard_optimizer else None,
    )


def _level(path: tuple[Any, ...], layers: int) -> int:
    """Returns where in its tower a parameter stands: 0 the embeddings, n the n-th layer from below;
    what is in no tower is on top."""
    key = jax.tree_util.keystr(path)
    found = re.search(r"\['layer_(\d+)'\]", key)
    if found:
        return int(found[1]) + 1
    return 0 if "['embeddings']" in key or "['relative_attention_bias']" in key else layers


def _scale_temperature(factor: float) -> optax.GradientTransformation:
    """Multiplies the update of the learned temperature by `factor`."""
    return optax.stateless(
        lambda updates, _: {
            name: leaf * factor if name == LOG_TEMPERATURE else leaf
            for name, leaf in updates.items()
        }
    )


def _decayed(params: Params) -> Params:
    """Marks matrices and embedding tables, which are all and only the arrays of two axes."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
