"""PostgreSQL with pgvector, and AlloyDB's ScaNN over the same table."""

import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.console import progress, say
from dpr_jax.data.raw import Passage
from dpr_jax.errors import InputError
from dpr_jax.export.contract import Connection, Engine, EngineHit, Options
from dpr_jax.export.folder import Passages, write_parts
from dpr_jax.export.source import ExportSource
from dpr_jax.index import defaults
from dpr_jax.index.recall import RECALL_AT

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)  # of PostgreSQL's binary COPY
TRAILER = struct.pack(">h", -1)
COLUMNS = ("position", "id", "title", "text", "embedding")
VECTOR_AT_MOST = 2000  # pgvector indexes no wider `vector`, but `halfvec` up to twice as wide
HNSW = {"m": 16, "ef_construction": 128}
EF_SEARCH, EF_SEARCH_AT_MOST = 200, 1000
MEMORY_AT_MOST_MB = 8192  # that a build of HNSW is given
CHUNK_BYTES = 1 << 20
NUL = "\0"


def _write(source: ExportSource, folder: Path, options: Options) -> dict[str, Any]:
    """Writes copy-00000.bin and so on, and the SQL that makes, fills and indexes the table."""
    kind = "vector" if source.width <= VECTOR_AT_MOST else "halfvec"
    passages = Passages(folder)

    def write(path: Path, positions: range) -> None:
        with path.open("wb") as file:
            file.writelines(_rows(source, passages, positions, kind))

    names = write_parts(source, folder, "copy-{:05d}.bin", write)
    leaves = index_leaves(source)
    for name, text in _sql(source, options.table, kind, leaves, names).items():
        with artifacts.atomic_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return {"copy_files": names, "vector_type": kind, "ef_search": EF_SEARCH, **leaves}


def index_leaves(source: ExportSource) -> dict[str, int]:
    """Returns leaves, leaves_to_search and reorder: of the index if it has them, else by rule."""
    settings = defaults.fill_in(source.config.index, source.count)
    names = ("leaves", "leaves_to_search", "reorder")
    return {name: source.index["settings"].get(name) or getattr(settings, name) for name in names}


def _rows(source: ExportSource, passages: Passages, positions: range, kind: str) -> Iterator[bytes]:
    """Yields the rows as a binary COPY has them."""
    emb_BD = source.vectors(positions).astype(">f4" if kind == "vector" else ">f2")
    head = struct.pack(">ihh", 4 + emb_BD[0].nbytes, source.width, 0)
    yield SIGNATURE
    for position, emb_D in zip(positions, emb_BD, strict=True):
        passage = passages[position]
        yield struct.pack(">hiq", len(COLUMNS), 8, position)
        for text in passage:
            if NUL in text:
                raise InputError(
                    f"passage {passage.id!r} holds the character NUL, which PostgreSQL stores in no"
                    " text; take the passage out (`dpr index remove`) and add it without"
                )
            encoded = text.encode()
            yield struct.pack(">i", len(encoded)) + encoded
        yield head + emb_D.tobytes()
    yield TRAILER


def _sql(
    source: ExportSource, table: str, kind: str, leaves: dict[str, int], files: list[str]
) -> dict[str, str]:
    memory_mb = min(64 + 2 * source.count * (4 * source.width + 300) // 2**20, MEMORY_AT_MOST_MB)
    hnsw = ", ".join(f"{name} = {value}" for name, value in HNSW.items())
    operators = f"embedding {kind}_ip_ops"
    copies = "".join(
        f"\\copy {table} ({', '.join(COLUMNS)}) FROM '{file}' WITH (FORMAT binary)\n"
        for file in files
    )
    return {
        "schema.sql": f"""CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE {table} (
  position bigint PRIMARY KEY, -- order of the corpus
  id text NOT NULL UNIQUE,
  title text NOT NULL,
  text text NOT NULL,
  embedding {kind}({source.width}) NOT NULL
);
""",
        "load.sql": f"""-- psql -v ON_ERROR_STOP=1 -1 -f load.sql, in this folder
\\i schema.sql
{copies}\\i index_hnsw.sql
""",
        "index_hnsw.sql": f"""SET maintenance_work_mem = '{memory_mb}MB';
CREATE INDEX IF NOT EXISTS {table}_hnsw ON {table} USING hnsw ({operators}) WITH ({hnsw});
ANALYZE {table};
-- before a search: SET hnsw.ef_search = {EF_SEARCH};
""",
        "index_ivfflat.sql": f"""-- instead of HNSW: built sooner, smaller, slower to search
SET maintenance_work_mem = '{memory_mb}MB';
CREATE INDEX IF NOT EXISTS {table}_ivfflat ON {table} USING ivfflat ({operators})
  WITH (lists = {leaves["leaves"]});
ANALYZE {table};
-- before a search: SET ivfflat.probes = {leaves["leaves_to_search"]};
""",
        "index_alloydb_scann.sql": f"""-- instead of HNSW, on AlloyDB: ScaNN
CREATE EXTENSION IF NOT EXISTS alloydb_scann CASCADE;
CREATE INDEX IF NOT EXISTS {table}_scann ON {table} USING scann (embedding dot_product)
  WITH (num_leaves = {leaves["leaves"]});
ANALYZE {table};
-- before a search, in every session:
-- LOAD 'alloydb_scann';
-- SET scann.num_leaves_to_search = {leaves["leaves_to_search"]};
-- SET scann.pre_reordering_num_neighbors = {leaves["reorder"]};
""",
    }


def _load(out: Path, facts: dict[str, Any], options: Options) -> None:
    """Makes, fills and indexes the table; a load that was killed goes on with its next file.

    Raises:
      InputError: the server does not answer or refuses, or holds another table of that name.
    """
    psycopg, table = _psycopg(), options.table
    loaded = f"{table}_loaded"
    with _opened(options) as connection:
        try:
            there, ours = (
                connection.execute("SELECT to_regclass(%s)", [name]).fetchone()[0]
                for name in (table, loaded)
            )
            if there and not ours:
                raise InputError(
                    f"the database has a table {table} already; give --table another name, or drop"
                    " the table"
                )
            if not there:
                with connection.transaction():
                    connection.execute((out / "schema.sql").read_text(encoding="utf-8"))
                    connection.execute(f"CREATE TABLE {loaded} (file text, sha256 text)")
            _copy(connection, out, facts, table)
            say(f"export: building the index {table}_hnsw")
            for statement in (out / "index_hnsw.sql").read_text(encoding="utf-8").split(";\n"):
                connection.execute(statement)
        except psycopg.Error as error:
            raise InputError(f"PostgreSQL refuses: {_line(error)}; run the command again") from None
    say(
        f"export: {facts['count']:,} passages are in table {table}; next: dpr export check pgvector"
        f" --out {out} --url URL"
    )


def _copy(connection: Any, out: Path, facts: dict[str, Any], table: str) -> None:
    """Loads the files that the table does not have, each with a note of it in one transaction."""
    sums = {name: facts["files"][name]["sha256"] for name in facts["copy_files"]}
    rows = connection.execute(f"SELECT file, sha256 FROM {table}_loaded").fetchall()
    if not {*rows} <= {*sums.items()}:
        raise InputError(
            f"table {table} holds another export; give --table another name, or drop {table} and"
            f" {table}_loaded"
        )
    left = [name for name in sums if name not in dict(rows)]
    with progress("export load", len(left), "files") as advance:
        for name in left:
            with connection.transaction():
                columns = ", ".join(COLUMNS)
                command = f"COPY {table} ({columns}) FROM STDIN WITH (FORMAT binary)"
                with connection.cursor().copy(command) as copy, (out / name).open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        copy.write(chunk)
                pair = (name, sums[name])
                connection.execute(f"INSERT INTO {table}_loaded VALUES (%s, %s)", pair)
            advance()


class _Table(Connection):
    """The table, searched as an application would."""

    def __init__(self, folder: Path, facts: dict[str, Any], options: Options) -> None:
        super().__init__(folder, "")
        self._table, self._kind = options.table, facts["vector_type"]
        self._set: dict[str, int] = {}
        self._connection = _opened(options)
        try:
            names = self._indexes(facts["count"])
        except InputError:
            self.close()
            raise
        leaves = (facts["leaves_to_search"], facts["leaves"])
        known = {
            "hnsw": {"hnsw.ef_search": (facts["ef_search"], EF_SEARCH_AT_MOST)},
            "ivfflat": {"ivfflat.probes": leaves},
            "scann": {
                "scann.num_leaves_to_search": leaves,
                "scann.pre_reordering_num_neighbors": (facts["reorder"], facts["count"]),
            },
        }
        for name in names:
            for knob, (value, most) in known[name].items():
                self.knobs[knob], self.limits[knob] = value, most
        with_index = f"indexes: {', '.join(names)}" if names else "no index, so search is exact"
        number = self._connection.info.server_version
        self.about = f"PostgreSQL {number // 10000}.{number % 10000}, {with_index}"

    def _indexes(self, count: int) -> list[str]:
        """Returns the kinds of indexes over the vectors, and checks that all rows are there."""
        rows = self._ask(
            "SELECT am.amname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_am am ON am.oid = c.relam WHERE i.indrelid = %s::regclass"
            " AND am.amname IN ('hnsw', 'ivfflat', 'scann') ORDER BY 1",
            [self._table],
        )
        [(there,)] = self._ask(f"SELECT count(*) FROM {self._table}")
        if there != count:
            raise InputError(
                f"table {self._table} holds {there:,} passages, the export {count:,}; load it"
                " whole, or export the corpus as it is now"
            )
        names = [name for (name,) in rows]
        if "scann" in names:  # its settings hold in a session that has loaded it
            self._connection.execute("LOAD 'alloydb_scann'")
        return names

    def _ask(self, statement: str, values: list[Any] | None = None) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except _psycopg().Error as error:
            raise InputError(
                f"table {self._table} cannot be read: {_line(error)}; load the export first"
            ) from None

    def search(self, queries_QD: np.ndarray, k: int) -> list[list[EngineHit]]:
        self._apply()
        found = []
        for query_D in queries_QD:
            vector = _vector(query_D)
            rows = self._ask(self._select("id"), [vector, vector, k])
            found.append([EngineHit(id_, score) for id_, score in rows])
        return found

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def plan(self) -> str:
        """Returns what the planner takes: an index by name, or a scan of all rows."""
        self._apply()
        [(vector,)] = self._ask(f"SELECT embedding FROM {self._table} LIMIT 1")
        explain = "EXPLAIN (FORMAT JSON) " + self._select("id")
        plan = self._ask(explain, [vector, vector, RECALL_AT])[0][0][0]["Plan"]
        while "Index Name" not in plan and plan.get("Plans"):
            plan = plan["Plans"][0]
        return f"by {plan.get('Index Name', 'a scan of all rows, which is exact')}"

    def passages(self, ids: list[str]) -> dict[str, Passage]:
        """Returns passages by id, from the table."""
        statement = f"SELECT id, title, text FROM {self._table} WHERE id = ANY(%s)"
        return {row[0]: Passage(*row) for row in self._ask(statement, [ids])}

    def _select(self, columns: str) -> str:
        """Returns the statement of a search; `<#>` is the inner product with a minus."""
        distance = f"embedding <#> %s::{self._kind}"
        return f"SELECT {columns}, -({distance}) FROM {self._table} ORDER BY {distance} LIMIT %s"

    def _apply(self) -> None:
        for name, value in self.knobs.items():
            if self._set.get(name) != value:
                self._ask("SELECT set_config(%s, %s, false)", [name, str(value)])
                self._set[name] = value


def _vector(emb_D: np.ndarray) -> str:
    """Returns a vector as pgvector reads it, with all digits of float32."""
    return f"[{','.join(f'{value:.9g}' for value in emb_D.tolist())}]"


def _opened(options: Options) -> Any:
    """Connects; without a URL as PGHOST, PGDATABASE and so on say."""
    psycopg = _psycopg()
    try:
        return psycopg.connect(options.url or "", autocommit=True)
    except psycopg.Error as error:
        raise InputError(
            f"PostgreSQL does not answer: {_line(error)}; --url is"
            " postgresql://USER@HOST:PORT/DATABASE, the password in PGPASSWORD"
        ) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _psycopg() -> ModuleType:
    try:
        import psycopg
    except ImportError:
        raise InputError(
            'loading and asking PostgreSQL needs psycopg; pip install "dpr_jax[pgvector]"'
        ) from None
    return psycopg


def _then(out: Path, _: dict[str, Any]) -> list[str]:
    return [
        f"cd {out} && psql -v ON_ERROR_STOP=1 -1 -f load.sql URL, or this command with --url URL",
        f"dpr export check pgvector --out {out} --url URL",
    ]


ENGINE = Engine(_write, _Table, _then, _load, require=lambda options: options.url and _psycopg())
