"""The functions behind all interfaces: search, passages by id, vectors, and the state."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import ServeConfig
from dpr_jax.data.fields import Value
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Corpus
from dpr_jax.errors import InputError
from dpr_jax.serving.batches import Answer, Full, Hits, Workers
from dpr_jax.serving.catalog import Catalog, LiveSet
from dpr_jax.serving.live import Served
from dpr_jax.serving.metrics import Metrics
from dpr_jax.serving.passages import NotRead

IDS_WAIT_S = 2.0


class Refusal(Exception):
    """Raised for a request that is refused.

    Attributes:
      status: of HTTP.
      retry_after_s: seconds until the request may be tried again; None if it would fail again.
    """

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


class SearchResult(NamedTuple):
    """The answer to a search.

    Attributes:
      table: which one answered.
      served: the retriever that did.
      hits: one list per question.
      times_ms: milliseconds by stage, and in all.
    """

    table: LiveSet
    served: Served
    hits: list[Hits]
    times_ms: dict[str, float]


class Service:
    """Answers requests, whatever interface they come by.

    Attributes:
      warm: whether the first programs are compiled.
      checked: whether every file was hashed.
      draining: whether it is about to end.
    """

    def __init__(
        self, catalog: Catalog, settings: ServeConfig, workers: Workers, metrics: Metrics
    ) -> None:
        self.catalog, self.settings, self.metrics = catalog, settings, metrics
        self._workers = workers
        self.warm = self.checked = self.draining = False
        self.wants_check = False
        self._versions = artifacts.versions()
        metrics.gauges("dpr_queue_questions", "Questions that wait.", "retriever", self._queues)
        metrics.gauges(
            "dpr_index_age_seconds",
            "Since the index of a live retriever was written.",
            "retriever",
            lambda: {name: time.time() - one.written_s for name, one in self._served().items()},
        )
        metrics.gauges(
            "dpr_damaged",
            "Whether a live retriever has a damaged file.",
            "retriever",
            lambda: {name: float(name in catalog.damaged) for name in self._served()},
        )
        metrics.gauge("dpr_table", "Number of the live table.", lambda: self.table().number)

    def _served(self) -> dict[str, Served]:
        return self.catalog.live.served if self.catalog.live else {}

    def _queues(self) -> dict[str, float]:
        return {name: float(one.batcher.waiting) for name, one in self._served().items()}

    def table(self) -> LiveSet:
        """Returns the live table."""
        if self.catalog.live is None:
            raise Refusal(503, "the server is starting", 1)
        return self.catalog.live

    def why_not_ready(self) -> str:
        """Returns why the server is not ready; empty if it is."""
        if self.draining:
            return "draining"
        if self.catalog.live is None or not self.warm:
            return "starting"
        if self.wants_check and not self.checked:
            return "checking files"
        default = self.catalog.live.default
        return self.catalog.damaged.get(default, "")

    def retriever(self, table: LiveSet, name: str | None) -> Served:
        """Returns a live retriever by name, or the default.

        Raises:
          Refusal: 404 where it is not served, 503 where a file of it is damaged.
        """
        name = table.default if name is None else name
        if name not in table.served:
            said = f"no retriever {name[:80]!r} is served, only {', '.join(table.served)}"
            raise Refusal(404, f"{said}: {table.refused[name]}" if name in table.refused else said)
        if name in self.catalog.damaged:
            raise Refusal(503, f"retriever {name} does not answer: {self.catalog.damaged[name]}")
        return table.served[name]

    async def search(
        self,
        questions: Sequence[str],
        k: int,
        *,
        name: str | None = None,
        offset: int = 0,
        wanted: dict[str, Any] | None = None,
    ) -> SearchResult:
        """Returns the k best passages of every question, exactly as `Retriever.search` does.

        Args:
          questions: texts.
          k: passages per question.
          name: of the retriever; None: the default.
          offset: so many of the best are left out.
          wanted: {field: condition}, as `Fields.mask_N` takes them; None: no filter.

        Raises:
          Refusal: what is wrong with the request, or why it cannot be answered now.
        """
        begun_s = time.perf_counter()
        table = self.table()
        served = self.retriever(table, name)
        self.check_texts(questions, "question")
        most = self.settings.max_k
        if k < 1 or offset < 0 or k + offset > most:
            raise Refusal(422, f"k is {k}, offset {offset}; together they may be 1 to {most}")
        # as `dpr prepare` has it: DPR's questions know the straight apostrophe alone
        plain = [text.replace("’", "'") for text in questions]
        deep = min(k + offset, len(served.corpus))
        answer = await self._ask(served, plain, deep, wanted)
        times_ms = {stage: spent * 1000 for stage, spent in answer.times_s.items()}
        times_ms["total"] = (time.perf_counter() - begun_s) * 1000
        for hits in answer.hits:
            del hits[:offset]
        return SearchResult(table, served, answer.hits, times_ms)

    async def _ask(
        self, served: Served, questions: Sequence[str], k: int, wanted: dict[str, Any] | None
    ) -> Answer:
        names = served.corpus.fields.names
        for name in wanted or ():
            if name not in names:
                there = ", ".join(names) or "none at all"
                raise Refusal(422, f"the passages have no field {name!r}; they have {there}")
        try:
            keep_N = wanted and await asyncio.to_thread(_mask_N, served.corpus, wanted)
            return await served.batcher.ask(questions, k, keep_N)
        except Full as full:
            self.metrics.rejected.labels("queue").inc()
            raise Refusal(429, str(full), full.retry_after_s) from None
        except (InputError, OSError) as error:
            raise Refusal(503, f"retriever {served.name} cannot answer: {error}") from error

    def check_texts(self, texts: Sequence[str], noun: str) -> None:
        """Raises Refusal where there are too many texts, or one is empty or too long."""
        most, longest = self.settings.max_questions, self.settings.max_question_chars
        if not 1 <= len(texts) <= most:
            raise Refusal(422, f"{len(texts)} {noun}s; a request may have 1 to {most}")
        for number, text in enumerate(texts):
            if not text.strip():
                raise Refusal(422, f"{noun} {number} is empty; write one")
            if not text.isascii() and any("\ud800" <= one <= "\udfff" for one in text):
                raise Refusal(422, f"{noun} {number} holds half a character (a lone surrogate)")
            if len(text) > longest:
                raise Refusal(
                    422, f"{noun} {number} has {len(text)} characters; at most {longest} are taken"
                )

    async def passage(self, id_: str) -> tuple[Passage, dict[str, Value]]:
        """Returns the passage of an id, with its fields.

        Raises:
          Refusal: 404 where there is none, 503 while the ids are being read.
        """
        ids = self.table().ids
        try:
            found = await asyncio.to_thread(ids.find, id_, wait_s=IDS_WAIT_S)
        except NotRead:
            raise Refusal(503, "the ids of the corpus are being read", 5) from None
        if found is None:
            raise Refusal(404, f"no passage has the id {id_[:200]!r}")
        return found

    async def vectors(self, name: str | None, texts: Sequence[str]) -> tuple[str, np.ndarray, int]:
        """Returns the vectors of questions.

        Args:
          name: of a dense retriever, or of a hybrid of one; None: the default.
          texts: questions.

        Returns:
          (name of the retriever, float32 [len(texts), width], tokens).

        Raises:
          Refusal: the retriever has no encoder, or a text is wrong.
        """
        served = self.retriever(self.table(), name)
        encoder = served.encoder
        if encoder is None:
            raise Refusal(422, f"retriever {served.name} has no encoder; name a dense one")
        self.check_texts(texts, "input")
        plain = [text.replace("’", "'") for text in texts]
        size = self.settings.batch
        loop, parts = asyncio.get_running_loop(), []
        for start in range(0, len(plain), size):  # in parts, so that searches come between
            part = plain[start : start + size]
            parts.append(await loop.run_in_executor(self._workers.encode, encoder.encode, part))
        tokens = int(encoder.tokenize(plain).lengths_N.sum())
        return served.name, np.concatenate(parts), tokens

    def info(self) -> dict[str, Any]:
        """Returns the answer of /v1/info: retrievers with recall, model, counts and versions."""
        table = self.table()
        damaged = self.catalog.damaged
        retrievers = {
            name: one.facts
            | {"index_age_s": round(time.time() - one.written_s)}
            | ({"damaged": damaged[name]} if name in damaged else {})
            for name, one in table.served.items()
        }
        limits = ("max_body_bytes", "max_questions", "max_question_chars", "max_k", "max_queue")
        return {
            "default": table.default,
            "why": table.why,
            "table": table.number,
            "live_since_s": round(time.time() - table.since_s),
            "table_before": self.catalog.before.number if self.catalog.before else None,
            "retrievers": retrievers,
            "refused": table.refused,
            "last_reload_error": self.catalog.last_error or None,
            "files_checked": self.checked,
            "ready": not self.why_not_ready(),
            "limits": {name: getattr(self.settings, name) for name in limits},
            "versions": self._versions,
        }


def _mask_N(corpus: Corpus, wanted: dict[str, Any]) -> np.ndarray:
    """Returns the rows that a filter keeps, removed ones left out, bool [rows of the corpus]."""
    mask_N = corpus.fields.mask_N(json.dumps(wanted, sort_keys=True))
    if len(corpus.removed_R):
        mask_N = mask_N.copy()
        mask_N[corpus.removed_R] = False
    return mask_N
