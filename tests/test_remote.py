"""Work directories on object storage, against a real S3 server on this machine."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick
from object_storage import BUCKET, ROOT, dpr, files, free_port, server
from test_multiprocess import write_config

from dpr_jax import artifacts, lease
from dpr_jax.config import Config, EncodeConfig
from dpr_jax.errors import Busy, InputError
from dpr_jax.workdir import WorkDir, open_workdir

URL = f"s3://{BUCKET}/w"
DPR = "from dpr_jax.cli import main; main()"
# `dpr` that is killed when it sends the n-th file whose name holds a text
KILLED = """
import os, signal, sys
from dpr_jax import remote, stores

remote.UPLOAD_EVERY_S = 0.2
put, text, left = stores.S3.put, sys.argv.pop(1), int(sys.argv.pop(1))

def killing(store, path, name):
    global left
    left -= text in name
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return put(store, path, name)

stores.S3.put = killing
"""
# and takes half a second for an update
SLOWLY = """
import time
from dpr_jax.training import loop

stream = loop.batches.stream

def waiting(*args, **settings):
    for batch in stream(*args, **settings):
        time.sleep(0.7)
        yield batch

loop.batches.stream = waiting
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def here(storage: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The storage as this process sees it, with an empty cache; returns its files."""
    for name, value in storage.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    return files(storage)


def another_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / f"cache-{time.monotonic_ns()}"))


def write_artifact(workdir: WorkDir, text: str) -> Path:
    """An artifact of one file, made and pointed to as a stage does."""
    origin = artifacts.made_from("prepare", {"text": text}, {})
    folder = workdir.place("data", origin)
    with artifacts.atomic_dir(folder) as partial:
        (partial / "rows").write_text(text)
        artifacts.write_manifest(partial / "manifest.json", origin, [partial / "rows"])
    workdir.point("data", folder)
    return folder


def test_another_host_sees_whole_artifacts_and_checks_them(
    here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"{URL}/whole"
    one = open_workdir(url)
    folder = write_artifact(one, "some text")
    (folder.with_name(folder.name + ".building")).mkdir()
    one.remote.push()
    name = f"{BUCKET}/w/whole/{folder.name}"
    assert sorted(here.ls(name, detail=False)) == [f"{name}/manifest.json", f"{name}/rows"]

    another_host(monkeypatch, tmp_path)
    other = open_workdir(url, new=False)
    assert other.root != one.root and not (other.root / folder.name).exists()  # until it is asked
    assert (other.data / "rows").read_text() == "some text"

    here.pipe_file(f"{name}/rows", b"some test")
    another_host(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"/rows is damaged, by the manifest beside it"):
        _ = open_workdir(url).data
    here.rm_file(f"{name}/rows")
    another_host(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"/rows is missing, by the manifest beside it"):
        _ = open_workdir(url).data


def test_a_pointer_that_another_host_moved_is_not_overwritten(
    here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"{URL}/pointer"
    one = open_workdir(url)
    write_artifact(one, "first")
    one.remote.push()
    another_host(monkeypatch, tmp_path)
    other = open_workdir(url)
    write_artifact(other, "second")
    other.remote.push()
    write_artifact(one, "third")
    with pytest.raises(Busy, match=r"config.json was changed by another process; run the same"):
        one.remote.push()
    another_host(monkeypatch, tmp_path)
    assert (open_workdir(url).data / "rows").read_text() == "second"


def test_a_lease_there_keeps_other_hosts_out_until_it_is_stale(
    here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.3)
    monkeypatch.setattr(lease, "_is_gone", lambda holder: False)  # as seen from another host
    url = f"{URL}/lease"
    one = open_workdir(url)
    name = f"{BUCKET}/w/lease/lease.json"
    with lease.held(one.home, one.remote):
        token = json.loads(here.cat_file(name))["token"]
        another_host(monkeypatch, tmp_path)
        other = open_workdir(url)
        refused = pytest.raises(Busy, match="is being written by process")
        with refused, lease.held(other.home, other.remote):
            pass
        assert json.loads(here.cat_file(name))["token"] == token
    assert not here.exists(name)

    monkeypatch.setattr(lease, "STALE_S", 1.0)
    here.pipe_file(name, json.dumps({"process": 1, "host": "gone", "token": "x"}).encode())
    with lease.held(other.home, other.remote):
        assert json.loads(here.cat_file(name))["token"] != "x"


def test_who_lost_the_lease_ends_before_it_writes(here: Any, storage: dict[str, str]) -> None:
    code = """
import sys, time
from dpr_jax import joining, lease
from dpr_jax.workdir import open_workdir

lease.RENEW_S = 0.5
workdir = open_workdir(sys.argv[1])
with lease.held(workdir.home, workdir.remote):
    workdir.remote.write("lease.json", b"{}", instead_of=workdir.remote.read("lease.json")[1])
    time.sleep(30)
print("still here")
"""
    done = dpr(storage, f"{URL}/lost", code=code)
    assert done.returncode == 75 and "still here" not in done.stdout
    assert "another process took the lease" in done.stderr


@pytest.mark.parametrize(("text", "count"), [("data-", 3), ("manifest.json", 1)])
def test_killed_during_an_upload_it_goes_on_elsewhere(
    text: str,
    count: int,
    here: Any,
    storage: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nq_small_workdir: tuple[Config, WorkDir],
) -> None:
    base, prepared = nq_small_workdir
    config = tmp_path / "config.py"
    config.write_text(f"from dpr_jax.config import *\n\nconfig = {base!r}\n")
    url = f"{URL}/killed-{count}"
    storage = storage | {"DPR_CACHE": str(tmp_path / "first")}
    args = ("prepare", str(config), "--workdir", url)
    done = dpr(storage, text, str(count), *args, code=KILLED + DPR)
    assert done.returncode == -9, done.stderr
    left = here.find(f"{BUCKET}/w/killed-{count}")
    assert [name for name in left if "/data-" in name]  # it was in the midst of it
    assert not [name for name in left if name.endswith(("manifest.json", "config.json"))]

    storage = storage | {"DPR_CACHE": str(tmp_path / "second")}
    done = dpr(storage, *args)
    assert done.returncode == 0, done.stderr
    another_host(monkeypatch, tmp_path)
    found = artifacts.fingerprint(open_workdir(url).data / "manifest.json")
    assert found == artifacts.fingerprint(prepared.data / "manifest.json")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/w", "a work directory is a folder, s3:// or gs://"),
        ("s3://no-such-bucket/w", "cannot be read: "),
    ],
)
def test_other_urls_are_refused(url: str, message: str, here: Any) -> None:
    with pytest.raises(InputError, match=message):
        open_workdir(url)


def test_what_is_not_there_is_no_work_directory(here: Any, storage: dict[str, str]) -> None:
    with pytest.raises(InputError, match=rf"{URL}/none is not a work directory"):
        open_workdir(f"{URL}/none", new=False)
    done = dpr(storage, "gc", "--workdir", f"{URL}/none")
    assert done.returncode == 2 and done.stderr.count("\n") == 1


# --- two hosts


class Hosts:
    """Two network namespaces that see each other; the first one runs the storage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        mark = f"{os.getpid() % 10000}"
        self.names = [f"dpr{mark}-{number}" for number in range(2)]
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        self.port = free_port()
        ends = [f"d{mark}v{number}" for number in range(2)]
        for name in self.names:
            self._ip("netns", "add", name)
        self._ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(self.names, ends, self.addresses, strict=True):
            self._ip("link", "set", end, "netns", name)
            self._ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            for device in (end, "lo"):
                self._ip("-n", name, "link", "set", device, "up")
            own = Path("/etc/netns", name)  # which takes the place of /etc/hosts there
            own.mkdir(parents=True)
            host = os.uname().nodename
            (own / "hosts").write_text(f"127.0.0.1 localhost\n{address} {host}\n")

    @staticmethod
    def _ip(*args: str) -> None:
        subprocess.run(["ip", *args], check=True, capture_output=True)

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)

    def start(
        self, number: int, code: str, *args: str, log: Path | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        command = ["ip", "netns", "exec", self.names[number], sys.executable, "-c", code, *args]
        with (log or self.root / f"{number}.log").open("w") as output:
            return subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": path} | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs the rights of root, and ip (Debian's iproute2)")
    hosts = Hosts(tmp_path)
    try:
        yield hosts
    finally:
        hosts.remove()


SERVER = """
import sys
from moto.server import main

main(["-H", sys.argv[1], "-p", sys.argv[2]])
"""
MAKE_BUCKET = """
import time
import s3fs

while True:
    try:
        s3fs.S3FileSystem().call_s3("create_bucket", Bucket="bucket")
        break
    except Exception:
        time.sleep(0.3)
"""


@pytest.mark.slow
def test_two_hosts_without_a_common_disk(
    hosts: Hosts, tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> None:
    """The pipeline in two processes; one is killed while it sends a checkpoint, and both start
    again with nothing: the result is that of one process with a folder.
    """
    pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs")
    base, _ = nq_small_workdir
    shards = EncodeConfig(rows_per_shard=100)  # five, of which each process encodes some
    base = dataclasses.replace(base, compare=(), encode=shards)
    config = write_config(tmp_path, base, "pmap", total_steps=6)
    address = hosts.addresses[0]
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{address}:{hosts.port}",
        "DPR_NUM_PROCESSES": "2",
        "XLA_FLAGS": f"{quick.FLAGS} --xla_force_host_platform_device_count=2",
    }
    storage = hosts.start(0, SERVER, address, str(hosts.port), log=tmp_path / "server.log")
    url = f"{URL}/two"
    args = ("pipeline", str(config), "--workdir", url)

    def together(name: str, codes: tuple[str, str], *kill: str) -> tuple[list[int], list[str]]:
        """Runs both; returns how they ended, and what they said."""
        own = environment | {"DPR_COORDINATOR": f"{address}:{free_port()}"}
        logs = [tmp_path / f"{name}-{number}.log" for number in range(2)]
        processes = [
            hosts.start(
                number,
                code,
                *(kill if code.startswith(KILLED) else ()),
                *args,
                log=logs[number],
                DPR_PROCESS_ID=str(number),
                DPR_CACHE=str(tmp_path / f"{name}-cache-{number}"),
                **own,
            )
            for number, code in enumerate(codes)
        ]
        try:
            statuses = [process.wait(500) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return statuses, [log.read_text() for log in logs]

    try:
        assert hosts.start(0, MAKE_BUCKET, **environment).wait(60) == 0
        slow = SLOWLY + DPR
        statuses, said = together("first", (KILLED + slow, slow), "/steps/4/", "3")
        assert statuses == [-9, 75] or statuses == [137, 75], said
        assert "process 0 (" in said[1] and "Traceback" not in said[1]
        statuses, said = together("second", (DPR, DPR))
        assert statuses == [0, 0], said
        assert "train: resuming after step 2" in said[0]
        cache = next((tmp_path / "second-cache-0").glob("*/0"))
        log = tmp_path / "ask.log"
        elsewhere = environment | {"DPR_CACHE": str(tmp_path / "third-cache")}
        asks = ("ask", "when was silicon discovered", "--workdir", url)
        asked = hosts.start(1, DPR, *asks, log=log, **elsewhere)
        assert asked.wait(120) == 0 and "ask: trained" in log.read_text(), log.read_text()
    finally:
        storage.kill()
        storage.wait()

    one = open_workdir(tmp_path / "one")
    done = dpr({}, "pipeline", str(config), "--workdir", str(one.root))
    assert done.returncode == 0, done.stderr
    two = WorkDir(cache)
    for owner, stage in ((None, "data"), ("trained", "mined")):
        folders = [(w.retriever(owner) if owner else w).current(stage) for w in (one, two)]
        prints = [artifacts.fingerprint(folder / "manifest.json") for folder in folders]
        assert prints[0] == prints[1], stage
    rows = [losses(workdir) for workdir in (one, two)]
    assert rows[0].keys() == rows[1].keys() == {*range(1, 7)}
    for step, loss in rows[0].items():
        np.testing.assert_allclose(rows[1][step], loss, rtol=1e-5)
    runs = [(w.runs("test") / "trained.trec").read_text().splitlines() for w in (one, two)]
    tops = [{tuple(line.split()[:3]) for line in run if line.split()[3] == "1"} for run in runs]
    assert len(tops[0] & tops[1]) >= 0.95 * len(tops[0])  # all but near ties


def losses(workdir: WorkDir) -> dict[int, float]:
    folder = workdir.retriever("trained").current("checkpoints")
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


# --- a finished work directory there


@pytest.fixture(scope="module")
def finished(storage: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    """A folder with three retrievers, also at s3://bucket/finished."""
    from served import make_workdir

    workdir = make_workdir(tmp_path_factory.mktemp("finished"))
    store = files(storage)
    for path in workdir.root.rglob("*"):
        name = path.relative_to(workdir.root)
        links = any((workdir.root / one).is_symlink() for one in (name, *name.parents))
        if path.is_file() and not links:
            store.put_file(str(path), f"{BUCKET}/finished/{name}")
    return workdir


def test_it_is_listed_served_and_exported_from_there(
    finished: WorkDir, here: Any, storage: dict[str, str], tmp_path: Path
) -> None:
    from served import serve

    url = f"s3://{BUCKET}/finished"
    before = {name: one["ETag"] for name, one in here.find(url, detail=True).items()}
    environment = storage | {"DPR_CACHE": str(tmp_path / "first")}
    done = dpr(environment, "retriever", "list", "--workdir", url)
    assert done.returncode == 0 and done.stdout.count("has its index") == 2, done.stderr
    assert not [*(tmp_path / "first").rglob("*.npy")]  # nothing large was fetched for that
    for name, where in (("there", url), ("here", str(finished.root))):
        out = str(tmp_path / name)
        done = dpr(environment, "export", "numpy", "--workdir", where, "--out", out)
        assert done.returncode == 0, done.stderr
    exported = [sorted((tmp_path / name).rglob("*.npy")) for name in ("there", "here")]
    assert exported[0]
    for one, other in zip(*exported, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()
    found = []
    for where in (url, finished.root):
        with serve(where) as running:
            answer = running.search("which river?", k=2)
            assert answer.status == 200
            found.append([hit["id"] for hit in answer.json["results"][0]["passages"]])
    assert found[0] == found[1] and found[0]
    assert {name: one["ETag"] for name, one in here.find(url, detail=True).items()} == before


def test_what_nothing_names_and_a_retriever_are_deleted_there(
    finished: WorkDir, here: Any, storage: dict[str, str]
) -> None:
    url = f"s3://{BUCKET}/finished"
    unused = {"data-00000000/manifest.json", "retrievers/trained/index-00000000.building/rows"}
    for name in unused:
        here.pipe_file(f"{url}/{name}", b"{}")
    used = {name for name in here.find(url) if not any(name.endswith(one) for one in unused)}
    done = dpr(storage, "gc", "--workdir", url)
    assert done.returncode == 2 and "Give --yes" in done.stderr and here.exists(f"{url}/{name}")
    done = dpr(storage, "gc", "--yes", "--workdir", url)
    assert done.returncode == 0 and "data-00000000" in done.stdout, done.stderr
    assert set(here.find(url)) == used  # nor is a lease left
    done = dpr(storage, "retriever", "remove", "trained", "--yes", "--workdir", url)
    assert done.returncode == 2 and "retriever hybrid uses trained" in done.stderr
    for name in ("hybrid", "trained"):
        done = dpr(storage, "retriever", "remove", name, "--yes", "--workdir", url)
        assert done.returncode == 0, done.stderr
        assert not here.find(f"{url}/retrievers/{name}")
    left = {name for name in used if "/retrievers/" not in name or "/bm25/" in name}
    assert set(here.find(url)) == {name for name in left if "/runs/dev/" not in name} | {
        name for name in left if "/runs/dev/bm25" in name
    }
    asked = dpr(storage, "ask", "which river?", "--workdir", url)
    assert asked.returncode == 0 and "ask: bm25" in asked.stderr, asked.stderr
