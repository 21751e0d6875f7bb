"""AdamW with linear warm-up and decay (Loshchilov and Hutter, 2019, arXiv 1711.05101)."""

import jax
import jax.numpy as jnp
import optax

from dpr_jax.model.dual_encoder import Params


def learning_rate(
    step: int | jax.Array, *, peak: float, warmup_steps: int, total_steps: int
) -> jax.Array:
    """Rate of update `step` (0-based): up in a line over the warm-up, then down in a line.

    The first update already moves (peak / warmup_steps, where the original wastes it on a rate of 0), and the last one still does.

    Args:
      step: 0-based number of the update.
      peak: highest rate.
      warmup_steps: updates until the peak.
      total_steps: updates in all.

    Returns:
      float32 scalar.
    """
    step = jnp.asarray(step, jnp.float32)
    rising = (step + 1) / max(warmup_steps, 1)
    falling = (total_steps - step) / max(total_steps - warmup_steps, 1)
    return peak * jnp.clip(jnp.minimum(rising, falling), 0.0, 1.0)


def make(
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    weight_decay: float,
    eps: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """AdamW with betas 0.9 and 0.999, clipped to a global norm.

    Args:
      peak: highest learning rate.
      warmup_steps: updates until the peak.
      total_steps: updates in all.
      weight_decay: not applied to biases and LayerNorm.
      eps: of Adam's denominator.
      clip_norm: largest global gradient norm; 0 does not clip.
    """

    def schedule(step: jax.Array) -> jax.Array:
        return learning_rate(
            step, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps
        )

    adamw = optax.adamw(schedule, eps=eps, weight_decay=weight_decay, mask=_decayed)
    if clip_norm == 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)


def _decayed(params: Params) -> Params:
    """True for matrices and embedding tables, which are all and only the arrays of two axes."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
