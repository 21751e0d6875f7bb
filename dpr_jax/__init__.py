"""dpr_jax: dense passage retrieval in JAX/Flax, data-parallel on TPU, GPU and CPU."""

__version__ = "0.1.0"
