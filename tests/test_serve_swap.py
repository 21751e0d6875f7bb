"""`dpr serve` while its work directory changes: hot swap, rollback, damage, kill -9."""

import hashlib
import http.client
import json
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
from served import Running, make_workdir, serve

from dpr_jax import recipes
from dpr_jax.data.readers.formats import Passage
from dpr_jax.index import update
from dpr_jax.workdir import WorkDir, open_workdir

for needed in ("fastapi", "uvicorn", "httptools", "mcp", "prometheus_client"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'dpr_jax[serve]'")

ADMIN = "--serve.open-admin"
NEW = Passage("w9", "Thames", "The Thames flows through London.")
ASKED = "what flows through London, the capital?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    return make_workdir(tmp_path_factory.mktemp("swap"))


@pytest.fixture
def workdir(made: WorkDir, tmp_path: Path) -> WorkDir:
    shutil.copytree(made.root, tmp_path / "work", symlinks=True)
    return open_workdir(tmp_path / "work")


def add(workdir: WorkDir, passage: Passage = NEW) -> None:
    file = workdir.root.parent / f"{passage.id}.tsv"
    file.write_text(f"id\ttext\ttitle\n{passage.id}\t{passage.text}\t{passage.title}\n")
    update.add(recipes.load(workdir.retriever("trained")), workdir, str(file))


def remove(workdir: WorkDir, id_: str) -> None:
    file = workdir.root.parent / f"remove-{id_}"
    file.write_text(f"{id_}\n")
    update.remove(recipes.load(workdir.retriever("trained")), workdir, str(file))


def until(check: Callable[[], bool], timeout_s: float = 120) -> None:
    end_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def ids(running: Running, retriever: str, k: int = 10) -> set[str]:
    [result] = running.search(ASKED, k=k, retriever=retriever).json["results"]
    return {hit["id"] for hit in result["passages"]}


class Load:
    """Clients that ask all the time, each over one connection, until the block ends."""

    def __init__(self, running: Running, clients: int, least: int) -> None:
        self._running, self._least = running, least
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self.answers: Counter[tuple[int, str]] = Counter()
        self.lost: list[str] = []

    def _ask(self) -> None:
        wire = self._running.connect()
        body = json.dumps({"question": ASKED, "k": 10, "retriever": "trained"})
        while not self._stop.is_set() or sum(self.answers.values()) < self._least:
            try:
                wire.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
                reply = wire.getresponse()
                answer = json.loads(reply.read())
                if reply.status != 200:
                    raise AssertionError(answer)
                hits = answer["results"][0]["passages"]
            except Exception as error:  # noqa: BLE001 - every loss counts
                self.lost.append(repr(error))
                break
            found = ",".join(sorted(hit["id"] for hit in hits))
            self.answers[answer["table"], found] += 1
        wire.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def swap_under_load(workdir: WorkDir, least: int, changes: int) -> Load:
    """Adds and removes a passage in turn while clients ask."""
    flags = (
        "--retriever",
        "trained",
        "bm25",
        "--serve.watch-s",
        "0.2",
        "--serve.access-log",
        "",
        ADMIN,
    )
    with serve(workdir, *flags) as running:
        with Load(running, clients=4, least=least) as load:
            for number in range(changes):
                if number % 2:
                    remove(workdir, f"n{number - 1}")
                else:
                    add(workdir, NEW._replace(id=f"n{number}"))
                name, there = f"n{number - number % 2}", number % 2 == 0
                until(lambda name=name, there=there: (name in ids(running, "trained")) is there)
            before = ids(running, "trained")
            assert running.ask("POST", "/v1/admin/rollback", {}).status == 200
            assert ids(running, "trained") != before
            assert running.ask("POST", "/v1/admin/rollback", {}).status == 200
            assert ids(running, "trained") == before
        assert running.stop() == 0
    return load


def check_none_lost_or_mixed(load: Load) -> None:
    """Every table gives one answer: the passages of its corpus, all of them."""
    assert load.lost == []
    answers: dict[int, set[str]] = {}
    for table, found in load.answers:
        answers.setdefault(table, set()).add(found)
    assert all(len(found) == 1 for found in answers.values()), answers
    assert len(answers) >= 2


def test_a_swap_loses_and_mixes_nothing(workdir: WorkDir) -> None:
    load = swap_under_load(workdir, least=300, changes=2)
    check_none_lost_or_mixed(load)
    assert sum(load.answers.values()) >= 300


@pytest.mark.slow
def test_twenty_thousand_requests_under_swaps(workdir: WorkDir) -> None:
    load = swap_under_load(workdir, least=20_000, changes=6)
    check_none_lost_or_mixed(load)
    assert sum(load.answers.values()) >= 20_000


def test_only_what_is_certified_goes_live(workdir: WorkDir) -> None:
    with serve(workdir, "--retriever", "hybrid", "--serve.watch-s", "0", ADMIN) as running:
        add(workdir)
        assert NEW.id not in ids(running, "trained")  # nobody has told it
        reply = running.ask("POST", "/v1/admin/reload", {})
        assert reply.status == 200
        # the weight of the hybrid was found for other parts: it answers as it did
        assert "run `dpr retrieve --retriever hybrid" in reply.json["refused"]["hybrid"]
        assert NEW.id in ids(running, "trained") & ids(running, "bm25")
        assert NEW.id not in ids(running, "hybrid")
        assert running.ask("GET", f"/v1/doc/{NEW.id}").json == NEW._asdict()

        manifest = workdir.retriever("trained").current("index") / "index.json"
        said = manifest.read_text()
        manifest.write_text(said.replace('"recall_at_100": 1.0', '"recall_at_100": 0.5'))
        facts = workdir.retriever("trained").read()
        workdir.retriever("trained").update(recipe=facts["recipe"] | {"seed": 5})
        refused = running.ask("POST", "/v1/admin/reload", {"retrievers": ["trained"]})
        assert (
            refused.status == 409 and "its checksum is another" in refused.json["error"]["message"]
        )
        assert NEW.id in ids(running, "trained")  # the table before goes on
        assert running.ask("GET", "/v1/info").json["last_reload_error"]
        assert running.ask("POST", "/v1/admin/reload", {"retrievers": ["bm25"]}).status == 200
        assert running.search("Paris", retriever="trained").status == 404


def test_a_damaged_file_takes_its_retriever_out_and_no_other(workdir: WorkDir) -> None:
    flags = ("--retriever", "trained", "bm25", "--serve.watch-s", "0.2", ADMIN)
    with serve(workdir, *flags) as running:
        until(lambda: running.ask("GET", "/v1/info").json["files_checked"])
        index = workdir.retriever("trained").current("index")
        [vectors] = index.glob("vectors-*.npy")
        good = vectors.read_bytes()
        with vectors.open("r+b") as file:  # in place, as a failing disk does
            file.seek(len(good) - 4)
            file.write(b"\x00\x7c\x00\x7c")
        until(lambda: running.search("Paris", retriever="trained").status == 503)
        error = running.search("Paris", retriever="trained").json["error"]["message"]
        assert f"{vectors} is damaged" in error
        assert running.search("Paris", retriever="bm25").status == 200
        assert running.ask("GET", "/readyz").status == 503  # it is the default
        with vectors.open("r+b") as file:
            file.write(good)
        until(lambda: running.search("Paris", retriever="trained").status == 200)
        assert running.ask("GET", "/readyz").status == 200


def test_a_missing_index_is_answered_from_memory(workdir: WorkDir) -> None:
    with serve(
        workdir, "--retriever", "trained", "bm25", "--serve.watch-s", "0.2", ADMIN
    ) as running:
        before = [ids(running, name) for name in ("trained", "bm25")]
        for name in ("trained", "bm25"):
            shutil.rmtree(workdir.retriever(name).current("index"))
        time.sleep(1)
        assert [ids(running, name) for name in ("trained", "bm25")] == before
        running.wait("goes on with what it has in memory")
        assert running.ask("POST", "/v1/admin/reload", {}).status == 200  # nothing is new
        assert running.search("Paris").status == 200


def test_a_damaged_index_is_not_served_at_all(workdir: WorkDir) -> None:
    index = workdir.retriever("bm25").current("index")
    file = next(path for path in index.iterdir() if path.name.startswith("data"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with serve(workdir, "--retriever", "bm25", "--verify", ready=False) as running:
        running.wait("serve: not ready")
        assert running.ask("GET", "/readyz").status == 503
        reply = running.search("Paris")
        assert reply.status == 503 and f"{file} is damaged" in reply.json["error"]["message"]


def contents(root: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("after_s", [None, 0.0])
def test_kill_9_leaves_the_work_directory_as_it_was(
    workdir: WorkDir, after_s: float | None
) -> None:
    before = contents(workdir.root)
    with serve(workdir, "--retriever", "bm25", ready=after_s is None) as running:
        if after_s is None:
            running.search("Paris")
        else:
            time.sleep(after_s)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    assert contents(workdir.root) == before


def resident_bytes(process_id: int) -> int:
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def resident_after(workdir: WorkDir, requests: int, times: int) -> list[int]:
    """Returns the server's memory in bytes after every so many requests of eight clients."""
    flags = ("--retriever", "hybrid", "--serve.access-log", "")
    found = []
    with serve(workdir, *flags) as running, ThreadPoolExecutor(8) as pool:
        # it compiles until then
        until(lambda: running.ask("GET", "/v1/info").json["files_checked"], timeout_s=600)
        wires = [running.connect() for _ in range(8)]

        def ask(wire: http.client.HTTPConnection) -> None:
            for number in range(requests // len(wires)):
                body = json.dumps({"question": f"the river number {number} in Paris", "k": 3})
                wire.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
                reply = wire.getresponse()
                assert reply.status == 200
                reply.read()

        for _ in range(times):
            list(pool.map(ask, wires))
            found.append(resident_bytes(running.process.pid))
            print(f"{len(found) * requests:,} requests: {found[-1] / 2**20:.1f} MiB", flush=True)
        for wire in wires:
            wire.close()
    return found


def test_memory_stays_flat(workdir: WorkDir) -> None:
    after = resident_after(workdir, 320, 4)
    assert after[-1] - after[1] < 25_000_000, after


@pytest.mark.slow
def test_memory_stays_flat_over_200_000_requests(workdir: WorkDir) -> None:
    after = resident_after(workdir, 10_000, 20)
    assert after[-1] - after[1] < 25_000_000, after
