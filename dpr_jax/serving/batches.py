"""Micro-batching: questions that arrive together are encoded and searched together.

A question that comes alone is answered at once: it waits for others only while a batch is running.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from dpr_jax.data.readers.formats import Passage
from dpr_jax.data.store import Corpus
from dpr_jax.retrieval.searcher import Ranking, Searcher, as_they_are
from dpr_jax.serving.metrics import Metrics
from dpr_jax.serving.passages import PassageCache

MOST_LOOKED_AT = 100_000  # of the best passages, to find k that fit a filter
DEEPER = 8  # times as many are looked at where too few fit
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
        """Waits for running work, and drops the rest."""
        self.encode.shutdown(cancel_futures=True)
        self.find.shutdown(cancel_futures=True)


class Full(Exception):
    """Raised where the queue of a retriever is full.

    Attributes:
      retry_after_s: when to ask again.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many questions wait; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class ServedHit(NamedTuple):
    """A passage with its score and its row in the corpus."""

    passage: Passage
    score: float
    row: int


class Hits(list[ServedHit]):
    """The hits of a question, best first.

    Attributes:
      complete: False where others may fit a filter that were not looked at.
    """

    complete = True


class Answer(NamedTuple):
    """The answer to the questions of one request.

    Attributes:
      hits: one list per question.
      times_s: seconds in each stage: queue, encode, search, passages.
    """

    hits: list[Hits]
    times_s: dict[str, float]


class _Waiting:
    """The questions of one request, until all are answered."""

    def __init__(
        self,
        questions: Sequence[str],
        k: int,
        keep_N: np.ndarray | None,
        answer: "asyncio.Future[Answer]",
    ) -> None:
        self.k, self.depth, self.keep_N, self.answer = k, max(k, DEPTH), keep_N, answer
        self.kept = 0 if keep_N is None else int(keep_N.sum())
        self.waiting = deque(enumerate(questions))
        self.hits: list[Hits | None] = [None] * len(questions)
        self.left = len(questions)
        self.since_s = time.perf_counter()
        self.times_s = dict.fromkeys(("queue", "encode", "search", "passages"), 0.0)


class _Item(NamedTuple):
    job: _Waiting
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
          searcher: of the retriever.
          corpus: its passages.
          workers: threads to encode and search in.
          metrics: of the server.
          name: of the retriever, a label of the metrics.
          most: questions in a batch.
          wait_s: longest wait for more of them while other work is under way.
          most_waiting: questions that may wait.
        """
        self._searcher, self._workers = searcher, workers
        self._passages, self._rows = PassageCache(corpus), len(corpus)
        self._metrics, self._name = metrics, name
        self._most, self._wait_s, self._most_waiting = most, wait_s, most_waiting
        self._jobs: deque[_Waiting] = deque()
        self._waiting = 0
        self._running = 0  # batches being encoded or searched
        self._per_s = 50.0  # questions answered per second, a running mean
        self._task: asyncio.Task[None] | None = None
        self._finding: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Questions that wait for a batch."""
        return self._waiting

    async def ask(
        self, questions: Sequence[str], k: int, keep_N: np.ndarray | None = None
    ) -> Answer:
        """Returns the k best passages of every question.

        Args:
          questions: texts.
          k: passages per question.
          keep_N: bool, the rows of the corpus that may be found; None: all.

        Raises:
          Full: too many questions wait already.
        """
        if self._waiting + len(questions) > self._most_waiting and self._waiting:
            raise Full(max(1, round(self._waiting / self._per_s)))
        job = _Waiting(questions, k, keep_N, asyncio.get_running_loop().create_future())
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
                queries: Any = [one.question for one in batch]
                if self._searcher.encode is not as_they_are:
                    queries = await loop.run_in_executor(
                        self._workers.encode, self._searcher.encode, queries
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
                self._workers.find, self._search, queries, depth, [one.job for one in batch]
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

    def _search(self, queries: Any, depth: int, jobs: list[_Waiting]) -> tuple[list[Hits], float]:
        """Returns the hits of every query, and when the search ended; runs in a thread."""
        rankings = [*zip(*self._searcher.find(queries, depth), strict=True)]
        all_complete = [True] * len(jobs)
        for at, job in enumerate(jobs):
            if job.keep_N is not None:
                rankings[at], all_complete[at] = self._filtered(queries, at, rankings[at], job)
        searched_s = time.perf_counter()
        best = [
            [*zip(scores_K[: job.k].tolist(), rows_K[: job.k].tolist(), strict=True)]
            for (scores_K, rows_K), job in zip(rankings, jobs, strict=True)
        ]
        passages = self._passages.rows({row for hits in best for _, row in hits if row >= 0})
        found = []
        for hits, complete in zip(best, all_complete, strict=True):
            found.append(
                Hits(ServedHit(passages[row], score, row) for score, row in hits if row >= 0)
            )
            found[-1].complete = complete
        return found, searched_s

    def _filtered(
        self, queries: Any, at: int, ranking: Ranking, job: _Waiting
    ) -> tuple[Ranking, bool]:
        """Returns the part of a ranking that a filter keeps, searched deeper until k are found, and
        whether no others can be.
        """
        most = min(self._rows, MOST_LOOKED_AT)
        while True:
            scores_K, rows_K = ranking
            kept_K = (rows_K >= 0) & job.keep_N[rows_K]
            enough = kept_K.sum() >= min(job.k, job.kept)
            all_seen = len(rows_K) >= self._rows or rows_K[-1] < 0
            if enough or all_seen or len(rows_K) >= most:
                return (scores_K[kept_K], rows_K[kept_K]), bool(enough or all_seen)
            found = self._searcher.find(_one(queries, at), min(len(rows_K) * DEEPER, most))
            ranking = found[0][0], found[1][0]

    def _observe(
        self, stage: str, batch: list[_Item], started_s: float, spent_s: list[float]
    ) -> None:
        """Adds the time of a stage to each request of the batch, and once to the metrics."""
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


def _one(queries: Any, at: int) -> Any:
    """Returns one of several queries, as a searcher takes them; a hybrid's are in two parts."""
    if isinstance(queries, tuple):
        return tuple(_one(part, at) for part in queries)
    return queries[at : at + 1]
