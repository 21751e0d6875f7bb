"""Milvus: Parquet files for its bulk import, the collection's schema, and its SCANN index."""

import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.data.raw import Passage
from dpr_jax.errors import InputError
from dpr_jax.export.contract import Connection, Engine, EngineHit, Options
from dpr_jax.export.folder import Passages, write_parts
from dpr_jax.export.pgvector_table import index_leaves
from dpr_jax.export.source import ExportSource, parts

VARCHAR_AT_MOST = 65535  # bytes that Milvus takes
ID_AT_MOST = 4096  # bytes of a primary key here
ROWS_PER_GROUP = 4096
LEAVES_AT_MOST = 65536
TOKEN = "MILVUS_TOKEN"
_SCRIPT = Path(__file__).with_name("milvus_load.py")


def _write(source: ExportSource, folder: Path, _: Options) -> dict[str, Any]:
    """Writes part-00000.parquet and so on, milvus.json, and load.py."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        {
            "id": pyarrow.string(),
            "position": pyarrow.int64(),
            "title": pyarrow.string(),
            "text": pyarrow.string(),
            "embedding": pyarrow.list_(pyarrow.float32()),
        }
    )
    passages = Passages(folder)

    def write(path: Path, positions: range) -> None:
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for group in parts(len(positions), ROWS_PER_GROUP):
                rows = positions[group.start : group.stop]
                writer.write_batch(_batch(source, passages, rows, schema))

    files = write_parts(source, folder, "part-{:05d}.parquet", write)
    leaves = index_leaves(source)
    facts = {
        "width": source.width,
        "id_bytes": ID_AT_MOST,
        "text_bytes": VARCHAR_AT_MOST,
        "index": {
            "index_type": "SCANN",
            "metric_type": "IP",
            "params": {"nlist": min(leaves["leaves"], LEAVES_AT_MOST), "with_raw_data": True},
        },
        "search": {"nprobe": leaves["leaves_to_search"], "reorder_k": leaves["reorder"]},
        "files": files,
    }
    artifacts.write_json(folder / "milvus.json", facts)
    with artifacts.atomic_file(folder / "load.py") as partial:
        partial.write_bytes(_SCRIPT.read_bytes())
    return {"milvus": facts}


def _batch(source: ExportSource, exported: Passages, positions: range, schema: Any) -> Any:
    """Returns rows as a pyarrow.RecordBatch."""
    import pyarrow

    passages = [exported[at] for at in positions]
    for passage in passages:
        for name, most in (("id", ID_AT_MOST), ("title", VARCHAR_AT_MOST), ("text", None)):
            size = len(getattr(passage, name).encode())
            if size > (most or VARCHAR_AT_MOST):
                raise InputError(
                    f"passage {passage.id[:80]!r} has {size:,} bytes of {name}, and a field of"
                    f" Milvus holds {most or VARCHAR_AT_MOST:,}; cut the documents shorter"
                    " (data.split_words)"
                )
    emb_BD = source.vectors(positions).astype(np.float32)
    offsets = np.arange(0, emb_BD.size + 1, source.width, dtype=np.int32)
    columns = {
        "id": [one.id for one in passages],
        "position": np.arange(positions.start, positions.stop),
        "title": [one.title for one in passages],
        "text": [one.text for one in passages],
        "embedding": pyarrow.ListArray.from_arrays(offsets, emb_BD.ravel()),
    }
    return pyarrow.record_batch(columns, schema=schema)


class _Collection(Connection):
    """The collection, loaded."""

    def __init__(self, folder: Path, facts: dict[str, Any], options: Options) -> None:
        if not options.url:
            raise InputError("--url is missing: http://HOST:19530, or a file of Milvus Lite")
        super().__init__(folder, f"Milvus at {options.url}")
        if "://" not in options.url:
            self.about = (
                f"Milvus Lite in {options.url}, which has no SCANN and searches exactly: its recall"
                " says nothing of a server's"
            )
        self._name, token = options.table, os.environ.get(TOKEN, "")
        self._client = self._ask(lambda: _pymilvus().MilvusClient(options.url, token=token))
        count = self._ask(self._count)
        if count != facts["count"]:
            raise InputError(
                f"collection {self._name} holds {count:,} passages, the export {facts['count']:,};"
                " load it whole, or export the corpus as it is now"
            )
        self._ask(lambda: self._client.load_collection(self._name))
        if "://" not in options.url:
            return
        self.knobs = dict(facts["milvus"]["search"])
        nlist = facts["milvus"]["index"]["params"]["nlist"]
        self.limits = {"nprobe": nlist, "reorder_k": facts["count"]}

    def _count(self) -> int:
        rows = self._client.query(self._name, filter="", output_fields=["count(*)"])
        return rows[0]["count(*)"]

    def search(self, queries_QD: np.ndarray, k: int) -> list[list[EngineHit]]:
        knobs = dict(self.knobs)
        if knobs:
            knobs["reorder_k"] = max(knobs["reorder_k"], k)
        params = {"metric_type": "IP", "params": knobs}
        found = self._ask(
            lambda: self._client.search(
                self._name,
                list(queries_QD),
                limit=k,
                anns_field="embedding",
                search_params=params,
            )
        )
        return [[EngineHit(hit["id"], float(hit["distance"])) for hit in hits] for hits in found]

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def passages(self, ids: list[str]) -> dict[str, Passage]:
        """Returns passages by id, from the collection."""
        fields = ["id", "title", "text"]
        rows = self._ask(lambda: self._client.get(self._name, ids, output_fields=fields))
        return {row["id"]: Passage(*(row[name] for name in fields)) for row in rows}

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except _pymilvus().MilvusException as error:
            said = " ".join(str(error).split())[:300]
            raise InputError(f"Milvus refuses: {said}; load the export first") from None


def _require(_: Options) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError('dpr export milvus needs pyarrow; pip install "dpr_jax[milvus]"')


def _pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError:
        raise InputError('asking Milvus needs pymilvus; pip install "dpr_jax[milvus]"') from None
    for name in ("pymilvus", "milvus_lite"):  # an error becomes one line of ours
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


def _then(out: Path, facts: dict[str, Any]) -> list[str]:
    return [
        f"copy {out}/part-*.parquet to FOLDER in the bucket of Milvus",
        f"python {out / 'load.py'} --uri URI --table {facts['table']} --bucket-folder FOLDER",
        f"or, without a bucket: python {out / 'load.py'} --uri URI --table {facts['table']}",
        f"dpr export check milvus --out {out} --url URI",
    ]


ENGINE = Engine(_write, _Collection, _then, require=_require)
