"""A small work directory to serve, a `dpr serve` of it in a process of its own, and a client."""

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tiny
from prepared import prepare, retriever
from test_retrieve import PASSAGES, QUESTIONS

from dpr_jax.config import Config, IndexConfig, RetrieveConfig
from dpr_jax.data.fields import with_fields
from dpr_jax.encoding import encode
from dpr_jax.index import update
from dpr_jax.model import hf
from dpr_jax.model.description import EncoderSettings
from dpr_jax.retrieval import retrieve
from dpr_jax.workdir import WorkDir

START_S = 120
FIELDS = [
    {"year": 1900 + 10 * number, "kind": "mountain" if passage.id == "w4" else "water"}
    for number, passage in enumerate(PASSAGES)
]
MAIN = "from dpr_jax.cli import main; main()"


def make_workdir(root: Path) -> WorkDir:
    """A finished work directory with bm25, trained (random weights) and hybrid."""
    passages = [*map(with_fields, PASSAGES, FIELDS)]
    workdir = prepare(root / "work", passages, QUESTIONS, dev=QUESTIONS)
    template = tiny.write(root / "encoder")
    for side in ("question", "passage"):
        folder = root / "model" / f"{side}_encoder"
        folder.mkdir(parents=True)
        hf.write_encoder(
            folder,
            template=template,
            shape=tiny.SHAPE,
            params=tiny.params(),
            settings=EncoderSettings("mean", True, 32),
        )
    config = Config(
        index=IndexConfig(kind="exact", recall_queries=3), retrieve=RetrieveConfig(top_k=3)
    )
    for name in ("bm25", "trained", "hybrid"):
        one = retriever(workdir, name, config, source=str(root / "model"))
        if name == "trained":
            encode.run(config, one)
        update.run(config, one)
        asked = dataclasses.replace(config.retrieve, split="dev")
        retrieve.run(dataclasses.replace(config, retrieve=asked), one)
    return workdir


class Reply(NamedTuple):
    """An answer over HTTP; `json` is None where the body is none."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body[:1] in (b"{", b"[") else None


@dataclasses.dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int = 0
    said: list[str] = dataclasses.field(default_factory=list)
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, timeout_s: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def ask(self, method: str, path: str, value: Any = None, **headers: str) -> Reply:
        """Sends one request; a value that is no bytes goes as JSON."""
        with contextlib.closing(self.connect()) as connection:
            body = value if isinstance(value, bytes | None) else json.dumps(value).encode()
            about = {"Content-Type": "application/json"} if body is not None else {}
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            connection.request(method, path, body, about | named)
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())

    def search(self, question: str, **asked: Any) -> Reply:
        return self.ask("POST", "/v1/search", {"question": question, **asked})

    def wait(self, text: str, timeout_s: float = START_S) -> None:
        """Waits for a line of stderr that has `text`."""
        end_s = time.monotonic() + timeout_s
        while not any(text in line for line in self.said):
            ended = self.process.poll() is not None and text != "exit"
            if ended or time.monotonic() > end_s:
                raise AssertionError(f"{text!r} was not said: {''.join(self.said)}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the server by a signal; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def serve(workdir: WorkDir | Path, *args: str, ready: bool = True) -> Iterator[Running]:
    """Runs `dpr serve` on a free port of the loopback, until the block ends."""
    root = workdir.root if isinstance(workdir, WorkDir) else workdir
    environment = os.environ | {"XLA_FLAGS": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "serve", "--workdir", root, "--port", "0", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    running = Running(process)

    def read_said() -> None:
        for line in process.stderr:
            running.said.append(line)

    def read_log() -> None:
        for line in process.stdout:
            running.log.append(json.loads(line))

    threads = [threading.Thread(target=one, daemon=True) for one in (read_said, read_log)]
    for thread in threads:
        thread.start()
    try:
        running.wait("serve: http://127.0.0.1:")
        [line] = [line for line in running.said if "serve: http://" in line]
        running.port = int(line.split("127.0.0.1:")[1].split()[0])
        if ready:
            running.wait("serve: ready after")
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for thread in threads:
            thread.join(5)
        process.stdout.close()
        process.stderr.close()
