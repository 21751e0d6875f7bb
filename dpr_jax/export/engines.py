"""The engines that an export may be for, by name."""

from dpr_jax.errors import InputError
from dpr_jax.export.contract import Engine

NAMES = ("numpy", "faiss", "scann", "pgvector", "milvus", "vertex")


def engine(name: str) -> Engine:
    """Returns an engine by its name, and imports no other.

    Raises:
      InputError: there is no such engine.
    """
    if name == "numpy":
        from dpr_jax.export import numpy_files as found
    elif name == "faiss":
        from dpr_jax.export import faiss_file as found
    elif name == "scann":
        from dpr_jax.export import scann_folder as found
    elif name == "pgvector":
        from dpr_jax.export import pgvector_table as found
    elif name == "milvus":
        from dpr_jax.export import milvus_collection as found
    elif name == "vertex":
        from dpr_jax.export import vertex_batch as found
    else:
        raise InputError(f"dpr export knows no engine {name!r}; there is {', '.join(NAMES)}")
    return found.ENGINE
