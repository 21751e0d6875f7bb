"""Host memory and disk of the stages that need no accelerator (docs/scaling.md)."""

from typing import Any

WORDS = 45  # of a passage of 100 words that BM25 keeps
CORPUS_BYTES = 500  # of such a passage on disk


def of_host(passages: int, width: int, kind: str) -> dict[str, Any]:
    """Returns bytes of memory and disk.

    Args:
      passages: of the corpus.
      width: of a vector in the index.
      kind: index.kind; auto is scann at this size.
    """
    vectors = passages * width
    build = {"exact": 2 * vectors, "faiss": 8 * vectors}.get(kind, 8 * vectors)
    index = {"exact": 2 * vectors, "faiss": 4 * vectors}.get(kind, 4.5 * vectors)
    return {
        "prepare_memory_bytes": 32 * passages,
        "index_build_memory_bytes": round(build),
        "serving_memory_bytes": round(index),
        "evaluate_memory_bytes": 150 * passages,
        "disk_bytes": {
            "corpus": CORPUS_BYTES * passages,
            "embeddings": 2 * vectors,
            "index": round(index),
            "bm25": 8 * WORDS * passages,
        },
        "source": "by the formulas of docs/scaling.md",
    }
