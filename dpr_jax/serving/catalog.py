"""The live retrievers, and the hot swap to others while requests go on.

A table of retrievers never changes: a reload opens another one beside it, checks every file, and
then swaps one reference. A request keeps the table that it began with. The table before stays in
memory, so that going back takes one call and no time.
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from dpr_jax import artifacts, recipes
from dpr_jax.config import ServeConfig
from dpr_jax.console import say
from dpr_jax.data import changes
from dpr_jax.data.changes import Log
from dpr_jax.data.store import Corpus
from dpr_jax.errors import InputError
from dpr_jax.retrieval.retriever import best
from dpr_jax.retrieval.searcher import Opened
from dpr_jax.serving.batches import Batcher, Workers
from dpr_jax.serving.live import (
    Served,
    language_of,
    manifests_of,
    open_certified,
    state_of,
    written_at,
)
from dpr_jax.serving.metrics import Metrics
from dpr_jax.serving.passages import PassageIds
from dpr_jax.serving.shapes import QuestionEncoder
from dpr_jax.workdir import WorkDir


@dataclasses.dataclass(frozen=True)
class LiveSet:
    """The retrievers that are live at one time.

    Attributes:
      number: counts the tables of this server, from 1.
      served: by name.
      default: the one that answers where none is named.
      why: the reason for it.
      refused: retrievers that were to be served, with what is wrong with them.
      ids: passages of the default's corpus by id.
      since_s: when it went live, seconds since 1970.
    """

    number: int
    served: dict[str, Served]
    default: str
    why: str
    refused: dict[str, str]
    ids: PassageIds
    since_s: float


class Catalog:
    """Opens retrievers, swaps them, and watches their files.

    Attributes:
      live: the table that answers; None until the first is open.
      before: the one before it.
      last_error: why the last reload did not go live; empty if it did.
      stopping: set when threads must end.
    """

    def __init__(
        self,
        workdir: WorkDir,
        names: Sequence[str],
        settings: ServeConfig,
        workers: Workers,
        metrics: Metrics,
    ) -> None:
        """Takes the names of retrievers to serve; without names the best on dev is served."""
        self.live: LiveSet | None = None
        self.before: LiveSet | None = None
        self._damaged: dict[tuple[str, Path], str] = {}
        self.last_error = ""
        self._workdir, self._names, self._settings = workdir, tuple(names), settings
        self._workers, self._metrics = workers, metrics
        self.stopping = threading.Event()
        self._lock = threading.Lock()  # one reload at a time
        self._stats: dict[Path, tuple[int, int]] = {}
        self._tried = ""
        self._count = 0  # tables so far

    @property
    def damaged(self) -> dict[str, str]:
        """The error of each retriever with a damaged file, by name; these do not answer."""
        return {name: said for (name, _), said in self._damaged.items()}

    # --- opening

    def open(self) -> LiveSet:
        """Opens the first table; files are compared by size, and hashed by `check`.

        Raises:
          InputError: a named retriever cannot be served, or none can.
        """
        with self._lock:
            self._tried = self._state()
            table = self._opened(self._names, strict=bool(self._names))
            self.live, self._count = table, table.number
            return table

    def reload(self, names: Sequence[str] | None = None) -> LiveSet:
        """Opens what the work directory holds now, and makes it live once all of it is checked.

        Args:
          names: serve these from now on; None keeps those that are served.

        Raises:
          InputError: the new table cannot be served; the live one stays.
        """
        with self._lock:
            names = self._names if names is None else tuple(names)
            try:
                self._tried = self._state()
                before, table = self.live, self._opened(names, strict=bool(names))
                if _same(before, table):
                    self._names = names
                    self.last_error = ""
                    return before
                known = {path for one in before.served.values() for path in one.manifests}
                for one in table.served.values():
                    for manifest in {*one.manifests} - known:
                        artifacts.verify(manifest)
                    if one is not before.served.get(one.name):
                        one.warm(self.stopping)
            except (InputError, OSError) as error:
                self.last_error = str(error)
                self._metrics.reloads.labels("refused").inc()
                say(f"serve: not reloaded: {error}")
                raise InputError(str(error)) from None
            dropped, self._count = self.before, table.number
            self.before, self.live, self._names = before, table, names
            if dropped is not None and dropped.ids not in (before.ids, table.ids):
                dropped.ids.close()
            self._damaged, self.last_error, self._stats = {}, "", {}
            self._metrics.reloads.labels("live").inc()
            say(f"serve: table {table.number} is live: {', '.join(table.served)}")
            return table

    def roll_back(self) -> LiveSet:
        """Swaps the live table and the one before it.

        Raises:
          InputError: there is none.
        """
        with self._lock:
            if self.before is None:
                raise InputError("no other table was live since this server started")
            self.live, self.before = self.before, self.live
            self._damaged, self._stats = {}, {}
            self._metrics.reloads.labels("rolled back").inc()
            say(f"serve: table {self.live.number} is live again")
            return self.live

    def close(self) -> None:
        """Ends the threads that read ids."""
        for table in (self.live, self.before):
            if table is not None:
                table.ids.close()

    def _opened(self, names: Sequence[str], *, strict: bool) -> LiveSet:
        """Opens a table; with `strict` a name that cannot be served is an error."""
        why = "as asked"
        if not names:
            name, why = best(self._workdir)
            names = (name,)
        default = names[0]
        names = self._with_parts(names)
        log = changes.read(self._workdir)
        served: dict[str, Served] = {}
        refused: dict[str, str] = {}
        opened: dict[str, Opened] = {}
        encoders: dict[str, QuestionEncoder] = {}
        with artifacts.hash_later():
            corpus = changes.open_corpus(self._workdir, log)
            for name in reversed(names):  # parts first: a hybrid takes those that are live
                try:
                    self._open_one(name, corpus, log, opened, encoders, served)
                except InputError as error:
                    kept = self.live.served.get(name) if self.live else None
                    if kept is None and (strict or name == default):
                        raise
                    refused[name] = str(error)
                    if kept is not None:
                        served[name] = kept
        served = {name: served[name] for name in names if name in served}
        live = self.live.served if self.live else {}
        if refused and all(one is live.get(name) for name, one in served.items()):
            raise InputError("; ".join(refused.values()))
        newest = next((one for one in served.values() if one.corpus is corpus), None)
        ids = self.live.ids if newest is None and self.live else PassageIds(corpus)
        return LiveSet(self._count + 1, served, default, why, refused, ids, time.time())

    def _with_parts(self, names: Sequence[str]) -> list[str]:
        """Returns the names with those of the parts of hybrids, which are opened anyway."""
        found = list(dict.fromkeys(names))
        for name in found:  # grows on the way
            retriever = self._workdir.retriever(name)
            if retriever.kind == "hybrid" and retriever.file.exists():
                parts = recipes.load(retriever).retrieve.parts
                found += [part for part in parts if part not in found]
        return found

    def _open_one(
        self,
        name: str,
        corpus: Corpus,
        log: Log,
        opened: dict[str, Opened],
        encoders: dict[str, QuestionEncoder],
        served: dict[str, Served],
    ) -> None:
        retriever = self._workdir.retriever(name)
        state = state_of(retriever, log.fingerprint)
        there = self.live.served.get(name) if self.live else None
        if there is not None and there.state == state:
            served[name] = there
            opened.setdefault(name, there.opened)
            encoders |= {one: there.encoders[one] for one in there.encoders if one == name}
            return
        found, facts = open_certified(
            retriever, corpus, opened, encoders, min_recall=self._settings.min_recall
        )
        facts["passages"] = len(corpus) - len(corpus.removed_R)
        facts["corpus"] = log.fingerprint
        facts["fields"] = corpus.fields.names
        settings = self._settings
        batcher = Batcher(
            found.start(),
            corpus,
            self._workers,
            self._metrics,
            name=name,
            most=settings.batch,
            wait_s=settings.batch_wait_ms / 1000,
            most_waiting=settings.max_queue,
        )
        data = [self._workdir.data / "manifest.json"]
        data += [folder / changes.MANIFEST for folder in log.folders]
        served[name] = Served(
            name,
            state,
            found,
            {one: encoders[one] for one in self._with_parts([name]) if one in encoders},
            corpus,
            batcher,
            facts,
            written_at(retriever),
            tuple(manifests_of(retriever) + data),
            functools.cache(lambda: language_of(self._workdir, corpus, log.fingerprint)),
        )

    # --- checking

    def check(self) -> None:
        """Hashes every file of the live table; a retriever with a damaged one stops answering."""
        table = self.live
        for one in table.served.values():
            for manifest in one.manifests:
                self._hash(one.name, manifest)

    def watch(self) -> None:
        """Reloads if the work directory has changed, and hashes files whose size or time has."""
        try:
            state = self._state()
        except (InputError, OSError) as error:
            self.last_error = str(error)
            return
        if state != self._tried:
            try:
                self.reload()
            except InputError:
                return  # said already
        for one in self.live.served.values():
            for manifest in one.manifests:
                if self._changed(manifest):
                    self._hash(one.name, manifest)

    def _state(self) -> str:
        """Returns a text that changes whenever another table could be served."""
        fingerprint = changes.read(self._workdir).fingerprint
        names = [one.name for one in self._workdir.retrievers()]
        state = [state_of(self._workdir.retriever(name), fingerprint) for name in names]
        return repr((names, state, best(self._workdir) if not self._names else ""))

    def _hash(self, name: str, manifest: Path) -> None:
        try:
            artifacts.verify(manifest)
        except InputError as error:
            if "is missing" in str(error) or "does not exist" in str(error):
                say(f"serve: {error}; {name} goes on with what it has in memory")
                return
            if name not in self.damaged:
                say(f"serve: {name} stops answering: {error}")
            self._damaged = self._damaged | {(name, manifest): str(error)}
            return
        self._changed(manifest)
        here = (name, manifest)
        self._damaged = {one: said for one, said in self._damaged.items() if one != here}

    def _changed(self, manifest: Path) -> bool:
        """Returns whether the size or time of a file has changed since the last call."""
        changed = False
        try:
            names = artifacts.read_json(manifest)["files"]
        except (InputError, KeyError, TypeError):
            return True
        for name in names:
            path = manifest.parent / name
            try:
                stat = path.stat()
                now = (stat.st_size, stat.st_mtime_ns)
            except OSError:
                now = (-1, -1)
            if self._stats.get(path, now) != now:
                changed = True
            self._stats[path] = now
        return changed


def _same(before: LiveSet, after: LiveSet) -> bool:
    """Returns whether two tables give the same answers."""
    return (
        before.default == after.default
        and before.served.keys() == after.served.keys()
        and all(before.served[name] is one for name, one in after.served.items())
    )
