"""Micro-batching: questions that arrive together are encoded and searched together.

A question never waits for company while the encoder is idle and nothing else is under way.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from dpr_jax.data.readers.formats import Passage
from dpr_jax.data.store import Corpus
from dpr_jax.retrieval.searcher import Searcher
from dpr_jax.serving.metrics import Metrics
from dpr_jax.serving.passages import PassageCache

DEPTH = 100  # fewer hits are cut from so many, so that questions of any such k share a batch


class Workers(NamedTuple):
    """The threads that all retrievers share: one encodes while the other searches."""

    encode: ThreadPoolExecutor
    find: ThreadPoolExecutor

    @classmethod
    def start(cls) -> "Workers":
        """Starts both threads."""
        return cls(ThreadPoolExecutor(1, "dpr-encode"), ThreadPoolExecutor(1, "dpr-find"))

    def stop(self) -> None:
        """Lets running work end."""
        self.encode.shutdown(cancel_futures=True)
        self.find.shutdown(cancel_futures=True)


class Full(Exception):
    """More questions wait than may.

    Attributes:
      retry_after_s: when to ask again.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many questions wait; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Hit(NamedTuple):
    """A passage with its score."""

    passage: Passage
    score: float


class Answer(NamedTuple):
    """What became of the questions of one request.

    Attributes:
      hits: best first, one list per question.
      times_s: seconds in each stage: queue, encode, search, passages.
    """

    hits: list[list[Hit]]
    times_s: dict[str, float]


class _Job:
    """The questions of one request, until all are answered."""

    def __init__(self, questions: Sequence[str], k: int, answer: "asyncio.Future[Answer]") -> None:
        self.k, self.depth, self.answer = k, max(k, DEPTH), answer
        self.waiting = deque(enumerate(questions))
        self.hits: list[list[Hit] | None] = [None] * len(questions)
        self.left = len(questions)
        self.since_s = time.perf_counter()
        self.times_s = dict.fromkeys(("queue", "encode", "search", "passages"), 0.0)


class _Item(NamedTuple):
    job: _Job
    place: int
    question: str


class Batcher:
    """Answers questions with one searcher over one state of the corpus."""

    def __init__(
        self,
        searcher: Searcher,
        corpus: Corpus,
        workers: Workers,
        metrics: Metrics,
        *,
        name: str,
        most: int,
        wait_s: float,
        most_waiting: int,
    ) -> None:
        """Takes a started searcher.

        Args:
          searcher: answers of it are batched.
          corpus: its passages.
          workers: the threads.
          metrics: of the server.
          name: of the retriever, for metrics.
          most: questions in a batch.
          wait_s: longest wait for more of them while other work is under way.
          most_waiting: questions that may wait.
        """
        self._searcher, self._workers = searcher, workers
        self._passages = PassageCache(corpus)
        self._metrics, self._name = metrics, name
        self._most, self._wait_s, self._most_waiting = most, wait_s, most_waiting
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._running = 0  # batches being encoded or searched
        self._per_s = 50.0  # questions answered per second, a running mean
        self._task: asyncio.Task[None] | None = None
        self._finding: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Questions that wait for a batch."""
        return self._waiting

    async def ask(self, questions: Sequence[str], k: int) -> Answer:
        """Returns the k best passages of every question.

        Raises:
          Full: too many questions wait already.
        """
        if self._waiting + len(questions) > self._most_waiting and self._waiting:
            raise Full(max(1, round(self._waiting / self._per_s)))
        job = _Job(questions, k, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._waiting += len(questions)
        if self._task is None:  # it ends where nothing waits, so that nothing has to be closed
            self._task = asyncio.create_task(self._run())
        return await job.answer

    async def _run(self) -> None:
        """Forms batches, and has each encoded while the one before is searched."""
        loop = asyncio.get_running_loop()
        while self._jobs:
            if self._running and self._wait_s and self._waiting < self._most:
                await asyncio.sleep(self._wait_s)
            while len(self._finding) > 1:  # searching is slower than encoding
                await asyncio.wait(self._finding, return_when=asyncio.FIRST_COMPLETED)
            batch, depth = self._take()
            if not batch:
                continue
            self._running += 1
            started_s = time.perf_counter()
            self._observe("queue", batch, started_s, [started_s - one.job.since_s for one in batch])
            try:
                queries = await loop.run_in_executor(
                    self._workers.encode, self._searcher.encode, [one.question for one in batch]
                )
            except Exception as error:  # noqa: BLE001 - the request fails, the server does not
                self._fail(batch, error)
                self._running -= 1
                continue
            spent_s = time.perf_counter() - started_s
            self._observe("encode", batch, started_s, [spent_s] * len(batch))
            finding = asyncio.create_task(self._find(batch, queries, depth, started_s))
            self._finding.add(finding)
            finding.add_done_callback(self._finding.discard)
        self._task = None

    def _take(self) -> tuple[list[_Item], int]:
        """Takes questions from all waiting requests in turn, so that none waits for a large one.

        All of a batch are searched to one depth: those of the first request.
        """
        batch: list[_Item] = []
        while self._jobs and self._jobs[0].answer.done():  # its client left
            self._waiting -= len(self._jobs.popleft().waiting)
        if not self._jobs:
            return [], 0
        depth = self._jobs[0].depth
        share = max(1, self._most // len(self._jobs))
        for _ in range(len(self._jobs)):
            if len(batch) >= self._most:
                break
            job = self._jobs.popleft()
            if job.answer.done():
                self._waiting -= len(job.waiting)
                continue
            if job.depth == depth:
                room = min(share, self._most - len(batch))
                while job.waiting and room:
                    batch.append(_Item(job, *job.waiting.popleft()))
                    room -= 1
            if job.waiting:
                self._jobs.append(job)
        self._waiting -= len(batch)
        self._metrics.batch_size.labels(self._name).observe(len(batch))
        return batch, depth

    async def _find(self, batch: list[_Item], queries: Any, depth: int, started_s: float) -> None:
        """Searches a batch, and answers the requests that are complete with it."""
        loop = asyncio.get_running_loop()
        encoded_s = time.perf_counter()
        try:
            found, searched_s = await loop.run_in_executor(
                self._workers.find, self._search, queries, depth, [one.job.k for one in batch]
            )
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(batch, error)
            return
        finally:
            self._running -= 1
        ended_s = time.perf_counter()
        self._observe("search", batch, started_s, [searched_s - encoded_s] * len(batch))
        self._observe("passages", batch, started_s, [ended_s - searched_s] * len(batch))
        rate = len(batch) / max(ended_s - started_s, 1e-6)
        self._per_s += 0.1 * (rate - self._per_s)
        for item, hits in zip(batch, found, strict=True):
            job = item.job
            job.hits[item.place] = hits
            job.left -= 1
            if not job.left and not job.answer.done():
                job.answer.set_result(Answer(job.hits, job.times_s))

    def _search(self, queries: Any, depth: int, ks: list[int]) -> tuple[list[list[Hit]], float]:
        """Returns the first k hits of every query, and when the search ended; runs in a thread."""
        scores_QK, rows_QK = self._searcher.find(queries, depth)
        searched_s = time.perf_counter()
        best = [rows_K[:k][rows_K[:k] >= 0] for rows_K, k in zip(rows_QK, ks, strict=True)]
        passages = self._passages.rows({row for rows in best for row in rows.tolist()})
        found = [
            [Hit(passages[row], score) for row, score in zip(rows.tolist(), scores_K.tolist())]
            for rows, scores_K in zip(best, scores_QK, strict=True)
        ]
        return found, searched_s

    def _observe(
        self, stage: str, batch: list[_Item], started_s: float, spent_s: list[float]
    ) -> None:
        """Counts the time of a stage once per request that it is about."""
        seen: set[int] = set()
        for item, spent in zip(batch, spent_s, strict=True):
            if id(item.job) not in seen:
                seen.add(id(item.job))
                item.job.times_s[stage] = max(item.job.times_s[stage], spent)
        observe: Callable[[float], None] = self._metrics.stage_s.labels(stage).observe
        observe(spent_s[0])

    def _fail(self, batch: list[_Item], error: Exception) -> None:
        for item in batch:
            if not item.job.answer.done():
                item.job.answer.set_exception(error)
