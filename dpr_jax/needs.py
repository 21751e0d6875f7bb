"""Estimates the disk and the memory that a pipeline takes, from counts alone.

The rules are measurements of this code's own files; docs/scaling.md has their commands.
"""

from typing import Any, NamedTuple

BYTES_PER_STATE = 3  # AdamW: weights and two moments, each float32
STATES_KEPT = 3  # the last two checkpoints and the best
BM25_SHARE = 0.75  # bytes of BM25 per byte of the prepared corpus
TREC_BYTES, JSON_BYTES = 45, 700  # per passage of a run; the JSON form holds the texts
# ScaNN's build holds three float32 copies of the vectors, FAISS's one whose arrays double.
BUILD_BASE_BYTES = 350_000_000
BUILD_BYTES_PER_VALUE = {"scann": 14, "faiss": 10, "exact": 0}
INDEX_BYTES_PER_VALUE = {"scann": 4.5, "faiss": 4.5, "exact": 2}
CORPUS_BYTES = 500  # of a prepared passage of 100 words
PREPARE_BYTES, EVALUATE_BYTES = 32, 150  # of memory per passage


class Needs(NamedTuple):
    """Bytes by what they are for.

    Attributes:
      disk: of a finished work directory.
      passing: of disk besides, at most, while the pipeline trains.
      memory: at the peak of building one index.
    """

    disk: dict[str, int]
    passing: int
    memory: int


def build_bytes(engine: str, rows: int, width: int) -> int:
    """Returns the memory of building an index of `rows` vectors, at its peak."""
    if engine == "exact":  # its vectors are copied as they are
        return 0
    return BUILD_BASE_BYTES + rows * width * BUILD_BYTES_PER_VALUE[engine]


def estimate(
    *,
    data_bytes: int,
    passages: int,
    questions: int,
    top_k: int,
    json_runs: bool,
    engine: str,
    width: int,
    dense: int,
    runs: int,
    tower_bytes: int,
    trained: int,
    towers: int,
    weights_kept: int,
) -> Needs:
    """Returns what a pipeline takes once its data are prepared.

    Args:
      data_bytes: the prepared data.
      passages: rows of the corpus.
      questions: dev and test questions, which every retriever answers.
      top_k: passages per question.
      json_runs: runs are written in DPR's JSON form too.
      engine: scann, faiss or exact.
      width: numbers per vector.
      dense: retrievers with vectors.
      runs: retrievers in all.
      tower_bytes: float32 weights of one tower.
      trained: retrievers that are trained.
      towers: 2, or 1 where they are shared.
      weights_kept: 2 for the weights of the best and the last step, 1 where they are the same.
    """
    values = passages * width
    per_passage = TREC_BYTES + JSON_BYTES * json_runs
    disk = {
        "data": data_bytes,
        "BM25": round(2 * BM25_SHARE * data_bytes),  # for mining, and as a retriever
        "models": weights_kept * trained * towers * tower_bytes,
        "embeddings": 2 * values * dense,
        "indexes": round(INDEX_BYTES_PER_VALUE[engine] * values * dense),
        "runs": runs * questions * min(top_k, passages) * per_passage,
    }
    states = STATES_KEPT * BYTES_PER_STATE * towers * tower_bytes if trained else 0
    return Needs(disk, states, build_bytes(engine, passages, width))


def of_corpus(passages: int, width: int, engine: str) -> dict[str, Any]:
    """Returns what one dense retriever takes of a host, before any data are there.

    Args:
      passages: of about 100 words.
      width: numbers per vector of the index.
      engine: index.kind; auto is scann at the sizes that are worth asking about.
    """
    engine = "scann" if engine == "auto" else engine
    vectors = passages * width
    index = round(INDEX_BYTES_PER_VALUE[engine] * vectors)
    return {
        "prepare_memory_bytes": PREPARE_BYTES * passages,
        "index_build_memory_bytes": build_bytes(engine, passages, width),
        "serving_memory_bytes": index,
        "evaluate_memory_bytes": EVALUATE_BYTES * passages,
        "disk_bytes": {
            "corpus": CORPUS_BYTES * passages,
            "embeddings": 2 * vectors,
            "index": index,
            "bm25": round(BM25_SHARE * CORPUS_BYTES * passages),
        },
        "source": "by the formulas of docs/scaling.md",
    }
