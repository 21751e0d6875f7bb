"""mteb's own code evaluates a retriever's encoder on a task of local data, without a network."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason='needs mteb: pip install "dpr_jax[mteb]"')

from datasets import Dataset
from exported import finished
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol

from dpr_jax import recipes
from dpr_jax.adapters.mteb_model import DprEncoder
from dpr_jax.config import Config, IndexConfig, ModelConfig
from dpr_jax.errors import InputError
from dpr_jax.model.embed import load_embedder
from dpr_jax.workdir import WorkDir

DOCUMENTS = [
    (f"River {n % 9}" if n else "", f"water {n} flows to place {n * n}") for n in range(60)
]
QUERIES = {f"q{n}": f"water {n} flows" for n in range(0, 60, 4)}


class Rivers(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="Rivers",
        description="Which text is about this water?",
        dataset={"path": "none", "revision": "1"},
        type="Retrieval",
        category="t2t",
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, **kwargs: Any) -> None:
        rows = [{"id": f"d{n}", "title": a, "text": b} for n, (a, b) in enumerate(DOCUMENTS)]
        split = {
            "corpus": Dataset.from_list(rows),
            "queries": Dataset.from_list([{"id": q, "text": text} for q, text in QUERIES.items()]),
            "relevant_docs": {q: {f"d{q[1:]}": 1} for q in QUERIES},
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return finished(tmp_path_factory.mktemp("mteb"), IndexConfig(kind="exact"), count=100)


def test_mteb_gives_the_metrics_of_our_vectors(
    workdir: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(_: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = DprEncoder(workdir=workdir.root, dtype="float32")
    assert isinstance(model, EncoderProtocol)
    cache = mteb.ResultCache(tmp_path)
    result = mteb.evaluate(model, Rivers(), cache=cache, co2_tracker=False)
    [scores] = result.task_results[0].scores["test"]

    source = workdir.retriever("trained").encoder
    question, passage = (
        load_embedder(source, side, model=ModelConfig(), dtype="float32")
        for side in ("question", "passage")
    )
    scores_QN = question.encode(list(QUERIES.values())) @ passage.encode(DOCUMENTS).T
    own_Q = np.array([int(q[1:]) for q in QUERIES])
    rank_Q = np.sum(scores_QN > scores_QN[np.arange(len(own_Q)), own_Q, None], axis=1)
    gain_Q = np.where(rank_Q < 10, 1 / np.log2(rank_Q + 2), 0)
    assert 0.05 < gain_Q.mean() < 0.95  # else any order would do
    assert scores["ndcg_at_10"] == pytest.approx(gain_Q.mean(), abs=2e-5)
    assert scores["recall_at_3"] == pytest.approx(np.mean(rank_Q < 3), abs=2e-5)

    meta = model.mteb_model_meta
    assert (meta.name, meta.embed_dim) == ("dpr_jax/trained", 32)
    assert not tried
    assert list(tmp_path.rglob(f"{meta.revision}/Rivers.json"))  # results of just these weights
    assert DprEncoder(source, dtype="float32").mteb_model_meta.revision == meta.revision


def test_what_cannot_be_evaluated_is_refused(workdir: WorkDir) -> None:
    with pytest.raises(InputError, match="give either source"):
        DprEncoder()
    with pytest.raises(InputError, match="no retriever 'other'; there is trained"):
        DprEncoder(workdir=workdir.root, retriever="other")
    recipes.store(workdir.retriever("bm25"), Config())
    with pytest.raises(InputError, match="retriever bm25 is bm25 and has no encoder"):
        DprEncoder(workdir=workdir.root, retriever="bm25")
    model = DprEncoder(workdir=workdir.root)
    with pytest.raises(InputError, match="precision is 'int8'"):
        model.encode([{"text": ["a"]}], precision="int8")
