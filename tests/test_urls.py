"""Raw files at URLs: on an S3 server (moto's) and on a plain web server, both on this machine."""

import contextlib
import functools
import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from object_storage import BUCKET, dpr, files, server

from dpr_jax import artifacts
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import asked, prepare, store
from dpr_jax.data.readers import rows, urls
from dpr_jax.errors import Busy, InputError
from dpr_jax.workdir import WorkDir, open_workdir

NQ_SMALL = Path(__file__).parent / "fixtures" / "nq_small"
FILES = {
    "passages": "passages.tsv.gz",
    "train": "train.json",
    "dev": "dev.json",
    "test": "test.qa.csv",
    "test_qrels": "test.qrels",
}


class Handler(http.server.SimpleHTTPRequestHandler):
    """A web server that knows no ranges, and counts what it sends."""

    sent: list[str] = []  # noqa: RUF012 - one server at a time
    breaks_after: int | None = None  # bytes of a file

    def do_GET(self) -> None:
        if self.path.startswith("/secret"):
            self.send_error(403)
            return
        if self.breaks_after is None:
            self.sent.append(self.path)
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: self.breaks_after])

    def do_HEAD(self) -> None:
        if self.path.startswith("/secret"):
            self.send_error(403)
            return
        super().do_HEAD()

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path.partition("?")[0]))
        if path.is_file() and "/tagged" in str(path):
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def web(folder: Path) -> Iterator[str]:
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as one:
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{one.server_port}"
        finally:
            one.shutdown()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server over an empty folder."""
    pytest.importorskip("aiohttp", reason="needs aiohttp")
    monkeypatch.setattr(Handler, "sent", [])
    folder = tmp_path / "site"
    folder.mkdir()
    with web(folder) as address:
        yield address, folder


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with server(tmp_path_factory.mktemp("s3")) as environment:
        store_ = files(environment)
        for name in FILES.values():
            store_.put_file(str(NQ_SMALL / name), f"{BUCKET}/nq/{name}")
        yield environment


@pytest.fixture
def bucket(storage: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in storage.items():
        monkeypatch.setenv(name, value)
    return files(storage)


def data_at(address: str) -> DataConfig:
    return DataConfig(**{key: f"{address}/{name}" for key, name in FILES.items()})


def prepared(data: DataConfig, root: Path) -> WorkDir:
    workdir = open_workdir(root)
    prepare.run(Config(data=data), workdir)
    return workdir


def contents(workdir: WorkDir) -> tuple[str, Any]:
    manifest = workdir.data / "manifest.json"
    inputs = artifacts.read_json(manifest)["made_from"]["inputs"]
    return artifacts.fingerprint(manifest), inputs


def test_files_at_urls_give_the_data_of_files_here(
    bucket: Any,
    site: tuple[str, Path],
    tmp_path: Path,
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    wanted = contents(nq_small_workdir[1])
    assert contents(prepared(data_at(f"s3://{BUCKET}/nq"), tmp_path / "s3")) == wanted
    address, folder = site
    for name in FILES.values():
        (folder / name).write_bytes((NQ_SMALL / name).read_bytes())
    of_web = prepared(data_at(address), tmp_path / "web")
    assert contents(of_web) == wanted
    one = asked.open_asked(of_web, f"{address}/test.qa.csv?signature=x=y")
    other = asked.open_asked(of_web, str(NQ_SMALL / "test.qa.csv"))
    assert one.name == other.name and list(one.read()) == list(other.read())


def test_a_file_with_the_etag_and_size_of_before_is_not_read_again(
    site: tuple[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address, folder = site
    (folder / "tagged").mkdir()
    for name in FILES.values():
        (folder / "tagged" / name).write_bytes((NQ_SMALL / name).read_bytes())
    data = data_at(f"{address}/tagged")
    first = contents(prepared(data, tmp_path / "w"))
    Handler.sent.clear()
    prepared(data, tmp_path / "w")
    assert "prepare: up to date" in capfd.readouterr().err
    passages = f"/tagged/{FILES['passages']}"
    heads = Handler.sent.count(passages)

    text = gzip.decompress((NQ_SMALL / FILES["passages"]).read_bytes())
    (folder / "tagged" / FILES["passages"]).write_bytes(gzip.compress(text + b"new\tmore\tNew\n"))
    Handler.sent.clear()
    again = prepared(data, tmp_path / "w")
    assert Handler.sent.count(passages) >= heads + 2  # for its checksum, and for its rows
    assert contents(again)[0] != first[0]
    assert store.open_corpus(again)[-1 + len(store.open_corpus(again))].id == "new"


def test_folders_at_urls_are_listed(bucket: Any, tmp_path: Path) -> None:
    """A BEIR folder, and a folder of documents to cut."""
    beir, here = f"{BUCKET}/beir", tmp_path / "beir"
    texts = {
        "corpus.jsonl": '{"_id": "1", "title": "A", "text": "a b c"}\n',
        "queries.jsonl": '{"_id": "q", "text": "what is a"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq\t1\t1\n",
    }
    for name, text in texts.items():
        bucket.pipe_file(f"{beir}/{name}", text.encode())
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    of_url = prepared(DataConfig(f"s3://{beir}", test=f"s3://{beir}"), tmp_path / "a")
    of_folder = prepared(DataConfig(str(here), test=str(here)), tmp_path / "b")
    assert contents(of_url) == contents(of_folder)

    documents, here = f"{BUCKET}/docs", tmp_path / "docs"
    for name in ("b/two.txt", "a.txt", "b/.hidden"):
        bucket.pipe_file(f"{documents}/{name}", f"one two three {name}".encode())
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(f"one two three {name}")
    words = {"split_words": 2}
    of_url = prepared(DataConfig(f"s3://{documents}", **words), tmp_path / "c")
    of_folder = prepared(DataConfig(str(here), **words), tmp_path / "d")
    assert [*store.open_corpus(of_url)] == [*store.open_corpus(of_folder)]
    assert contents(of_url) == contents(of_folder)


def test_parquet_is_read_where_the_server_gives_parts(
    bucket: Any, site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table({"_id": ["1", "2"], "title": ["A", "B"], "text": ["a", "b"]})
    parquet.write_table(table, tmp_path / "p.parquet")
    bucket.put_file(str(tmp_path / "p.parquet"), f"{BUCKET}/p.parquet")
    corpus = store.open_corpus(prepared(DataConfig(f"s3://{BUCKET}/p.parquet"), tmp_path / "w"))
    assert [one.text for one in corpus] == ["a", "b"]
    address, folder = site
    (folder / "p.parquet").write_bytes((tmp_path / "p.parquet").read_bytes())
    monkeypatch.setattr(urls, "BLOCK_BYTES", 64)  # else the file is one request
    with pytest.raises(InputError, match=r"p\.parquet cannot be read: .* range requests"):
        prepared(DataConfig(f"{address}/p.parquet"), tmp_path / "v")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/nq/none.tsv", "s3://bucket/nq/none.tsv does not exist or is not a file"),
        ("s3://no-such-bucket/p.tsv", "s3://no-such-bucket/p.tsv does not exist or is not a file"),
        ("{site}/none.tsv", "/none.tsv does not exist or is not a file; data.passages must"),
        ("{site}/secret.tsv?key=1", "/secret.tsv cannot be read: access is refused (403"),
        ("http://127.0.0.1:9/p.tsv", "http://127.0.0.1:9/p.tsv cannot be read: "),
        ("nosuch://host/p.tsv", "no storage is known as nosuch://"),
    ],
)
def test_what_is_missing_or_forbidden_is_one_line(
    url: str, message: str, storage: dict[str, str], site: tuple[str, Path], tmp_path: Path
) -> None:
    url = url.format(site=site[0])
    done = dpr(storage, "prepare", "--data.passages", url, "--workdir", str(tmp_path / "w"))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1 and "key=1" not in done.stderr
    assert not (tmp_path / "w" / "config.json").exists()


def test_a_connection_that_breaks_is_to_be_tried_again(
    site: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = site
    (folder / "p.txt").write_text("line\n" * 10_000)
    path = urls.located(f"{address}/p.txt")
    assert sum(1 for _ in rows.lines(path)) == 10_000
    monkeypatch.setattr(Handler, "breaks_after", 30_000)
    with pytest.raises(Busy, match=r"/p.txt: the connection broke .*; run the same command again"):
        list(rows.lines(urls.located(f"{address}/p.txt")))
