"""Counts what a tower costs, and what a device can do, in floating-point operations."""

import jax
import numpy as np

from dpr_jax.model.stack import EncoderShape

# dense bfloat16 operations a second of one device, by the start of its name in JAX; the longest
# that fits counts (makers' data sheets)
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def forward_flops(shape: EncoderShape, lengths: np.ndarray, pooling: str) -> float:
    """Operations of the forward pass for texts of these lengths, as the field counts them: matrix
    products alone.

    A layer has 8 D^2 + 4 D F a token for its matrices (6 D F where it is gated) and 4 L D a token
    for attention over L tokens (D width, F feed-forward width). With "cls" or "lasttoken" pooling
    the last one computes keys and values of all tokens, 4 D^2 each, and everything else for one
    token of a text.
    """
    width, lengths = shape.hidden_size, lengths.astype(np.float64)
    matrices = 8 * width**2 + 2 * width * shape.intermediate_size * shape.feed_forward_products
    layer = matrices * lengths.sum() + 4 * width * np.square(lengths).sum()
    last = layer
    if pooling in ("cls", "lasttoken"):
        keys_and_values = 4 * width**2
        last = (keys_and_values + 4 * width) * lengths.sum()
        last += (matrices - keys_and_values) * len(lengths)
    return float((shape.num_hidden_layers - 1) * layer + last)


def peak_flops() -> float | None:
    """Returns the bfloat16 operations per second of this process's devices; None where the maker's
    figure is not known, as on CPUs.
    """
    devices = jax.local_devices()
    kind = devices[0].device_kind
    known = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] * len(devices) if known else None
