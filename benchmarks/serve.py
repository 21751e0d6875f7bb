"""Load on `dpr serve` beside a plain server of FastAPI, sentence-transformers and FAISS.

Both answer the same questions with the same encoder over the same passages, 10 passages each, one
question per request. Clients ask over connections that stay open, each the next question once it
has the answer. Both servers run at the same time and are asked in turn, a second or two each, so
that other work on the machine meets both. The clients are one process of their own.

  python benchmarks/serve.py --workdir runs/quickstart --plain-python VENV/bin/python
  python benchmarks/serve.py --workdir runs/quickstart --vectors 1000000 --work runs/million

VENV has fastapi, uvicorn, sentence-transformers and faiss-cpu: an environment of its own, with the
extras that a reader would install. Without --plain-python only `dpr serve` is measured.

With --vectors the corpus is made larger, once, in the work directory --work: the passages with
their vectors, then the same texts again, each with a vector of its own, made by adding noise.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np

from dpr_jax import artifacts, recipes
from dpr_jax.data import changes, store
from dpr_jax.data.store import open_questions
from dpr_jax.index import update
from dpr_jax.index.embeddings import READ_ROWS, as_float32, open_embeddings
from dpr_jax.retrieval.searcher import open_corpus
from dpr_jax.workdir import WorkDir, open_workdir

K = 10
IDLE_S = 4.0
NOISE = 0.6  # length of the noise that is added to a unit vector
PLAIN = """
import sys

import faiss
import json
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

folder, model, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
encoder = SentenceTransformer(model, device="cpu")
index = faiss.read_index(f"{folder}/index.faiss")
passages = [json.loads(line) for line in open(f"{folder}/passages.jsonl")]
app = FastAPI()


class Asked(BaseModel):
    question: str
    k: int = 10


@app.post("/v1/search")
def search(asked: Asked):
    vectors = encoder.encode([asked.question], normalize_embeddings=True, show_progress_bar=False)
    scores, rows = index.search(vectors, asked.k)
    hits = [passages[row] | {"score": float(score)} for score, row in zip(scores[0], rows[0])]
    return {"results": [{"question": asked.question, "passages": hits}]}


uvicorn.run(app, port=port, log_level="error", access_log=False)
"""


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes
) -> dict:
    """Sends one request over an open connection."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    said = await reader.readuntil(b"\r\n\r\n")
    length = int(said.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    content = await reader.readexactly(length)
    if b" 200 " not in said.split(b"\r\n")[0]:
        raise RuntimeError(content[:300])
    return content


@contextlib.asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list]:
    """Opens connections, and closes them at the end."""
    wires = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        yield wires
    finally:
        for _, writer in wires:
            writer.close()


async def load(port: int, bodies: list[bytes], clients: int, seconds: float) -> np.ndarray:
    """Asks for a while; returns the latency of every answer, seconds [N]."""
    spent: list[float] = []
    end_s = time.perf_counter() + seconds

    async def client(number: int, wire: tuple) -> None:
        at = number * 97
        while time.perf_counter() < end_s:
            begun_s = time.perf_counter()
            await post(*wire, "/v1/search", bodies[at % len(bodies)])
            spent.append(time.perf_counter() - begun_s)
            at += 1

    async with connections(port, clients) as wires:
        await asyncio.gather(*(client(number, wire) for number, wire in enumerate(wires)))
    return np.array(spent)


def wait_for(port: int, body: bytes, process: subprocess.Popen) -> float:
    """Returns the seconds until a server answers a question."""
    begun_s = time.perf_counter()
    while time.perf_counter() - begun_s < 600:
        if process.poll() is not None:
            raise SystemExit("a server ended before it answered")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, RuntimeError):
            asyncio.run(load(port, [body], 1, 0.01))
            return time.perf_counter() - begun_s
        time.sleep(0.1)
    raise SystemExit("a server did not answer within 600 s")


@contextlib.contextmanager
def started(args: list[str], **environment: str) -> Iterator[subprocess.Popen]:
    """Runs a server until the block ends."""
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, env=os.environ | environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def make_larger(source: WorkDir, name: str, root: str, count: int) -> WorkDir:
    """Writes a work directory of `count` passages whose retriever has the encoder of another.

    A made vector is one of the real ones, at random, plus Gaussian noise of that length (NOISE),
    scaled to length 1.
    """
    workdir, one = open_workdir(root), source.retriever(name)
    made = workdir.retriever(name)
    if made.find("index"):
        return workdir
    rng = np.random.default_rng(0)
    shards, facts = open_embeddings(one.current("embeddings"))
    real_ND, corpus = as_float32(shards), open_corpus(source)
    texts = [*corpus]

    # --- passages
    origin = artifacts.made_from("made larger", {"count": count}, {"name": name})
    data = workdir.place("data", origin)
    if not artifacts.is_fresh(data / "manifest.json", origin):
        with artifacts.atomic_dir(data) as partial:
            again = (texts[n % len(texts)]._replace(id=f"m{n}") for n in range(len(texts), count))
            files = store.write_corpus(partial, itertools.chain(texts, again))
            artifacts.write_manifest(partial / "manifest.json", origin, files, questions={})
    workdir.point("data", data)

    # --- vectors
    config = recipes.load(one)
    recipes.store(made, config, source=one.encoder)
    made_ND = np.empty((count, real_ND.shape[1]), np.float16)
    made_ND[: len(texts)] = real_ND
    for start in range(len(texts), count, READ_ROWS):
        part_BD = made_ND[start : start + READ_ROWS]
        noise_BD = rng.standard_normal(part_BD.shape, np.float32) * NOISE / real_ND.shape[1] ** 0.5
        noisy_BD = real_ND[rng.integers(len(texts), size=len(part_BD))] + noise_BD
        part_BD[:] = noisy_BD / np.linalg.norm(noisy_BD, axis=1, keepdims=True)
    inputs = {"corpus": changes.read(workdir).fingerprint, "model": facts["model"]}
    origin = artifacts.made_from("encode", {"made": count}, inputs)
    folder = made.place("embeddings", origin)
    with artifacts.atomic_dir(folder) as partial:
        file = partial / "shard-00000-of-00001.npy"
        np.save(file, made_ND)
        about = {key: facts[key] for key in ("width", "dtype", "computed_in", "model")}
        artifacts.write_manifest(
            partial / "manifest.json", origin, [file], count=count, rows_per_shard=count, **about
        )
    made.point("embeddings", folder)
    update.run(config, made)
    return workdir


def write_plain(workdir: WorkDir, name: str, folder: Path) -> None:
    """Writes the same vectors as a FAISS index, exact like ours on so few, and the passages."""
    import faiss

    shards, _ = open_embeddings(workdir.retriever(name).current("embeddings"))
    vectors_ND = as_float32(shards)
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(vectors_ND)
    faiss.write_index(index, str(folder / "index.faiss"))
    with (folder / "passages.jsonl").open("w") as out:
        for passage in open_corpus(workdir):
            out.write(json.dumps(passage._asdict()) + "\n")
    (folder / "plain.py").write_text(PLAIN)


def processor_s(process: subprocess.Popen) -> float:
    """Returns the processor time of a server so far, which other work on the machine changes
    little.
    """
    words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(process: subprocess.Popen) -> float:
    """Returns the memory of a server, files that it has mapped included."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def summary(spent: list[np.ndarray], seconds: float, processor_s: float) -> dict[str, float]:
    """Returns questions per second, latencies and processor time per question, milliseconds."""
    all_s = np.concatenate(spent)
    p50, p99 = np.percentile(all_s * 1000, [50, 99])
    return {
        "questions_per_s": len(all_s) / seconds,
        "p50_ms": p50,
        "p99_ms": p99,
        "processor_ms": 1000 * processor_s / len(all_s),
    }


def shown(figures: dict[str, float]) -> str:
    """Returns figures on one line."""
    return ", ".join(f"{key} {value:.1f}" for key, value in figures.items())


def wait_until_idle(process: subprocess.Popen) -> None:
    """Waits until a server that is not asked uses less than a fiftieth of a core."""
    used_s = -1.0
    while processor_s(process) - used_s > IDLE_S * 0.02:
        used_s = processor_s(process)
        time.sleep(IDLE_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--retriever", default="trained")
    parser.add_argument("--questions", default="test", help="split to ask")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=20, help="per server and clients")
    parser.add_argument("--vectors", type=int, help="passages of a corpus made larger")
    parser.add_argument("--work", default="runs/made", help="work directory of it")
    parser.add_argument("--plain-python", help="Python of the plain server's environment")
    parser.add_argument("--port", type=int, default=8470)
    args = parser.parse_args()
    workdir = open_workdir(args.workdir, new=False)
    texts = [question.question for question in open_questions(workdir, args.questions)]
    bodies = [json.dumps({"question": text, "k": K}).encode() for text in texts]
    if args.vectors:
        workdir = make_larger(workdir, args.retriever, args.work, args.vectors)
    rounds = max(1, round(args.seconds / 2))
    with contextlib.ExitStack() as stack:
        code = "from dpr_jax.cli import main; main()"
        ours = [sys.executable, "-c", code, "serve", "--workdir", str(workdir.root)]
        ours += ["--retriever", args.retriever, "--port", str(args.port)]
        ours += ["--serve.access-log", "", "--serve.watch-s", "0"]
        servers = {"dpr serve": (args.port, stack.enter_context(started(ours)))}
        ready_s = wait_for(args.port, bodies[0], servers["dpr serve"][1])
        used_s = processor_s(servers["dpr serve"][1])
        print(f"dpr serve: first answer after {ready_s:.1f} s, {used_s:.1f} s of processor time")
        spent_s = asyncio.run(load(args.port, bodies, 1, 5))
        figures = summary([spent_s], 5, processor_s(servers["dpr serve"][1]) - used_s)
        print(f"1 client, dpr serve while it compiles: {shown(figures)}", flush=True)
        if args.plain_python:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_plain(workdir, args.retriever, folder)
            model = workdir.retriever(args.retriever).current("model") / "question_encoder"
            plain = [args.plain_python, str(folder / "plain.py"), str(folder), str(model)]
            plain.append(str(args.port + 1))
            process = stack.enter_context(started(plain))
            servers["plain"] = (args.port + 1, process)
            wait_for(args.port + 1, bodies[0], process)
        wait_until_idle(servers["dpr serve"][1])  # it compiles for other lengths and batches
        for port, _ in servers.values():
            asyncio.run(load(port, bodies, 32, 3))
        for clients in args.clients:
            spent: dict[str, list[np.ndarray]] = {name: [] for name in servers}
            before_s = {name: processor_s(process) for name, (_, process) in servers.items()}
            for _ in range(rounds):
                for name, (port, _) in servers.items():
                    spent[name].append(asyncio.run(load(port, bodies, clients, 2)))
            for name, (_, process) in servers.items():
                used_s = processor_s(process) - before_s[name]
                figures = summary(spent[name], 2 * rounds, used_s)
                print(f"{clients} clients, {name}: {shown(figures)}", flush=True)
        for name, (_, process) in servers.items():
            print(f"{name}: {resident_mib(process):.0f} MiB of memory")


if __name__ == "__main__":
    main()
