"""dpr_jax: dense passage retrieval in JAX/Flax, data-parallel on TPU, GPU and CPU."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpr_jax.model.sentences import SentenceEncoder
    from dpr_jax.retrieval.retriever import Retriever

__version__ = "0.1.0"
__all__ = ["Retriever", "SentenceEncoder"]


def __getattr__(name: str) -> Any:
    # imported on use: `import dpr_jax` alone must not import JAX, which reads the environment then
    if name == "Retriever":
        from dpr_jax.retrieval.retriever import Retriever

        return Retriever
    if name == "SentenceEncoder":
        from dpr_jax.model.sentences import SentenceEncoder

        return SentenceEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
