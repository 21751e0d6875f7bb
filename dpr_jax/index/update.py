"""The stage `dpr index`, and the one place that knows how an index follows a corpus that changes.

The embeddings hold the corpus as it was prepared and never change; neither does an index. After a
change of the corpus the stage writes another index folder. It holds the vectors of all that was
added and the rows that were removed, hard-linked from the index before it. The engine's own files
are built in it, or stay in the folder of an earlier build over which the changes are laid.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts, recipes
from dpr_jax.config import Config
from dpr_jax.console import say
from dpr_jax.data import changes
from dpr_jax.data.changes import Log
from dpr_jax.errors import InputError
from dpr_jax.index import bm25, bm25_words, certificate, embeddings
from dpr_jax.index.added import change_files, link
from dpr_jax.index.build import build, is_tuned, settings_of
from dpr_jax.index.layers import rows_in
from dpr_jax.index.open import MANIFEST, Parts
from dpr_jax.index.recall import RECALL_AT
from dpr_jax.index.sample import draw
from dpr_jax.workdir import RetrieverDir, WorkDir

REBALANCE_FROM = 0.1  # share of the rows outside the engine's files, from which it is worth it
ROWS = "rows.npy"


def run(config: Config, retriever: RetrieverDir, *, lay: bool = True) -> None:
    """Finds or writes the index of the corpus as it is now, and points the retriever to it.

    Args:
      config: of the retriever.
      retriever: of any kind.
      lay: whether changes of the corpus may be laid over an earlier build.

    Raises:
      InputError: there are no embeddings, or of another corpus; a file is damaged or unsound; an
        engine is not installed or crashed; no setting has the wanted recall.
    """
    if retriever.kind == "hybrid":
        say(f"index: {retriever.name} is a hybrid, which searches the indexes of its parts")
        return
    if retriever.kind == "bm25":
        _words(config, retriever)
        return
    source = _open(config, retriever)
    base, out, origin = _choose(config, retriever, source, lay=lay)
    for left in (*out.parent.glob("index-*.building"), *out.parent.glob("index-*.partial")):
        if left != _building(out):  # a killed run left it, for another state of the corpus
            shutil.rmtree(left)
    if artifacts.is_fresh(out / MANIFEST, origin):
        shutil.rmtree(_building(out), ignore_errors=True)
        say(f"index: up to date ({out})")
    else:
        try:
            _write(config, retriever, source, base, out, origin)
        finally:  # the shards of additions stay for the next run
            shutil.rmtree(_building(out) / "scratch", ignore_errors=True)
            with contextlib.suppress(OSError):
                _building(out).rmdir()
    retriever.point("index", out)


def rebalance(config: Config, retriever: RetrieverDir) -> None:
    """Builds the index of the passages that are there now; raises what `run` does."""
    run(config, retriever, lay=False)


def add(config: Config, workdir: WorkDir, passages: str) -> None:
    """Adds passages to the corpus, and updates every index by the recipe of its retriever.

    Args:
      config: its `data` says how documents are cut.
      workdir: whose corpus it is.
      passages: a file or folder in any layout that data.passages may have.

    Raises:
      InputError: as for `run`; there is no index; or the passages cannot be added.
    """
    _change(workdir, lambda: changes.add(config, workdir, passages))


def remove(config: Config, workdir: WorkDir, ids: str) -> None:
    """Removes passages from the corpus, and updates every index by the recipe of its retriever.

    Args:
      config: not needed; the same arguments as `add`.
      workdir: whose corpus it is.
      ids: a file with one passage id per line.

    Raises:
      InputError: as for `run`; there is no index; or a passage cannot be removed.
    """
    _change(workdir, lambda: changes.remove(workdir, ids))


def _change(workdir: WorkDir, record: Callable[[], None]) -> None:
    """Records a change once every index is known to be able to follow it, and updates them."""
    followers = [
        (recipes.load(one), one)
        for one in workdir.retrievers()
        if one.kind in ("dense", "bm25") and one.find("index")
    ]
    if not followers:
        raise InputError(
            f"{workdir.root} has no index that could follow; run `dpr index {workdir.flag}` first"
        )
    for config, retriever in followers:
        if retriever.kind == "dense":
            _open(config, retriever)
    record()
    for config, retriever in followers:
        run(config, retriever)


class IndexSource(NamedTuple):
    """The inputs of the index of a dense retriever.

    Attributes:
      log: the changes of the corpus.
      embeddings: folder of the vectors of the corpus as it was prepared.
      facts: what their manifest says.
      questions: folder of question vectors to measure with, if any.
      inputs: fingerprints, without that of the corpus.
    """

    log: Log
    embeddings: Path
    facts: dict[str, Any]
    questions: Path | None
    inputs: dict[str, str]

    def origin(self, settings: dict[str, Any], corpus: str, **more: str) -> dict[str, Any]:
        """Returns what an index over the corpus with this fingerprint is made from."""
        return artifacts.made_from("index", settings, self.inputs | {"corpus": corpus} | more)


def _open(config: Config, retriever: RetrieverDir) -> IndexSource:
    log = changes.read(retriever.workdir)
    folder = retriever.current("embeddings")
    facts = artifacts.read_json(folder / "manifest.json")
    again = f"`dpr encode {retriever.flags}`"
    if facts["made_from"]["inputs"]["corpus"] != log.prints[0]:
        raise InputError(
            f"{folder} holds another corpus than {retriever.workdir.data}; run {again}"
        )
    fingerprint = artifacts.fingerprint(folder / "manifest.json")
    inputs = {"embeddings": fingerprint, "model": facts["model"]}
    questions = None
    if split := config.index.queries:
        questions = retriever.find(f"questions/{split}")
        if questions is None:
            raise InputError(
                f"index.queries is {split}, whose questions retriever {retriever.name} has not"
                f" encoded; run {again[:-1]} --encode.questions {split}`"
            )
        inputs["queries"] = artifacts.fingerprint(questions / "manifest.json")
    return IndexSource(log, folder, facts, questions, inputs)


def _words(config: Config, retriever: RetrieverDir) -> None:
    """Finds or builds the BM25 index of the corpus as it is now."""
    log = changes.read(retriever.workdir)
    corpus = changes.open_corpus(retriever.workdir, log)
    count = len(corpus) - len(corpus.removed_R)
    folder = bm25.build_if_missing(
        retriever.workdir,
        (passage.title_and_text for passage in corpus.live()),
        count=count,
        corpus=log.fingerprint,
        sample=(corpus[row].title_and_text for row in bm25_words.evenly(len(corpus))),
        **bm25.settings_of(config.bm25),
    )
    retriever.point("index", folder)
    say(f"index: BM25 over {count:,} passages ({folder})")


def _choose(
    config: Config, retriever: RetrieverDir, source: IndexSource, *, lay: bool
) -> tuple[Path | None, Path, dict[str, Any]]:
    """Returns the earlier build to lay changes over (None: build), the folder, and its origin."""
    log, found = source.log, []
    for count, corpus in zip(log.live(source.facts["count"]), log.prints, strict=True):
        origin = source.origin(settings_of(config.index, count), corpus)
        out = retriever.place("index", origin)
        if artifacts.is_fresh(out / MANIFEST, origin):
            found.append(out)
    if not found or found[-1] == out or not lay:
        return None, out, origin
    origin = source.origin({}, log.fingerprint, built=found[-1].name)
    return found[-1], retriever.place("index", origin), origin


def _building(out: Path) -> Path:
    return out.with_name(out.name + ".building")


def _write(
    config: Config,
    retriever: RetrieverDir,
    source: IndexSource,
    base: Path | None,
    out: Path,
    origin: dict[str, Any],
) -> None:
    """Writes an index folder: built, or the changes since an earlier build, `base`."""
    settings, scratch = config.index, _building(out) / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shards, _ = embeddings.open_embeddings(source.embeddings)
    files = change_files(config, retriever, source.log, source.embeddings, _building(out))
    shards += [np.load(file, mmap_mode="r") for change in files for file in change.added]
    gone_R = rows_in([file for change in files for file in change.removed])
    count = sum(map(len, shards))
    before = {} if base is None else artifacts.verify(base / MANIFEST)
    sample = draw(
        shards,
        source.questions,
        model=source.facts["model"],
        certificate=settings.recall_queries,
        tuning="tried" in before if base else is_tuned(settings, count - len(gone_R)),
        gone_R=gone_R,
    )

    # --- the engine's files, and what lies over them
    if base is None:
        vectors, live = source.embeddings, shards
        if files:
            vectors, live = embeddings.write_without(gone_R, shards, scratch / "live")
        built = build(settings, vectors, live, scratch, sample.tuning_QD)
        parts = Parts(built.kind, built.settings, first_added=count)
        if len(gone_R):
            parts = parts._replace(rows=ROWS)
        tuned: dict[str, Any] = {}
        if built.tried:
            tuned = {"target_recall": settings.target_recall, "tried": built.tried}
            tuned["tuning_queries"] = len(sample.tuning_QD)
    else:
        later = files[before["changes"] :]
        parts = Parts.of(before)._replace(
            built=base.name,
            added=tuple(file.name for change in later for file in change.added),
            removed=tuple(file.name for change in later for file in change.removed),
        )
        names = ("target_recall", "tried", "tuning_queries")
        tuned = {name: before[name] for name in names if name in before}

    # --- certify: the files are moved, then a fresh process answers from them
    with artifacts.atomic_dir(out) as moved:
        if base is None:
            built.folder.replace(moved)
            if parts.rows:
                np.save(moved / parts.rows, np.delete(np.arange(count), gone_R))
        for change in files:
            for file in (*change.added, *change.removed):
                link(file, moved / file.name)
        recall, queries_per_s = certificate.measure(
            moved, parts, shards, sample.certificate_QD, gone_R=gone_R
        )
        # a file of its own, so that the fingerprint of the index changes with it
        artifacts.write_json(moved / "parts.json", parts._asdict())
        artifacts.write_manifest(
            moved / MANIFEST,
            origin,
            [path for path in moved.iterdir() if path.is_file()],
            **parts._asdict(),
            metric="inner_product",
            count=count,
            dimension=shards[0].shape[1],
            prepared=source.facts["count"],
            changes=len(files),
            corpus=source.log.fingerprint,
            recall_at_100=round(recall, 6),
            recall_queries=len(sample.certificate_QD),
            recall_queries_from=sample.origin,
            queries_per_s=queries_per_s,
            model=source.facts["model"],
            **tuned,
        )
    shutil.rmtree(_building(out))

    # --- say what came of it
    say(
        f"index: {count - len(gone_R):,} passages"
        + (f", up to change {len(files)}" if files else "")
        + f"; recall@{RECALL_AT} {recall:.4f} against exact search on"
        f" {len(sample.certificate_QD)} {sample.origin}"
        + (", none of them tuned on" if tuned else "")
    )
    if recall < (target := tuned.get("target_recall", 0)):
        say(
            f"index: that is below index.target_recall {target:g}: the tuning queries had it; give"
            f" a target that is {target - recall:.4f} higher if it must hold here"
        )
    outside = count - parts.first_added + len(rows_in([out / name for name in parts.removed]))
    if outside > REBALANCE_FROM * count:
        say(
            f"index: {outside:,} of {count:,} rows were added or removed since the index was built;"
            f" `dpr index rebalance {retriever.flags}` builds"
            " it anew"
        )
