"""The stage that keeps an index of the corpus as it is now: it builds one, lays changes over the
one there is, or builds it anew.

index.json says which files make the index, and takes effect by one rename: whatever was written
  before it, under names that are in
no older index.json, is not yet part of the index, and what it no longer lists is deleted after it.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.index import build, certificate, embeddings, sample
from dpr_jax.index.finished import delete_others, up_to_date
from dpr_jax.index.layers import rows_in
from dpr_jax.index.open import LAYERED, MANIFEST
from dpr_jax.index.recall import RECALL_AT
from dpr_jax.index.reduction import Reduction

REBALANCE_FROM = 0.1  # share of the rows outside the partitions, from which it is worth it
OF_ONE_MANIFEST = ("made_from", "files", "versions", "checksum")


class Vectors(NamedTuple):
    """The embeddings with the changes of their corpus.

    Attributes:
      folder: of the embeddings.
      facts: their manifest.
      fingerprint: of the embeddings of the corpus as it was prepared.
      questions: folder of the question vectors to measure with, if one is set.
      changes: the changes in order, each with `log`, a hash of the corpus up to it, and the files
        `added` or `removed`.
    """

    folder: Path
    facts: dict[str, Any]
    fingerprint: str
    questions: Path | None
    changes: list[dict[str, Any]]

    def files(self, what: str, begin: int, end: int) -> list[Path]:
        """The files `added` or `removed` by the changes begin..end-1."""
        names = [self.changes[number].get(what, []) for number in range(begin, end)]
        return [self.folder / "changes" / name for part in names for name in part]

    def shards(self, end: int) -> list[np.ndarray]:
        """The vectors of all rows after the first `end` changes, memory-mapped."""
        added = self.files("added", 0, end)
        return embeddings.open_shards(self.folder) + [
            np.load(file, mmap_mode="r") for file in added
        ]


def run(config: Config, workdir: WorkDir) -> None:
    """`dpr index`: builds an index, or brings the one there is up to date with the changes of the
    corpus.

    Raises:
      InputError: no embeddings, a damaged or unsound file, an engine that is not installed or that
        crashed.
    """
    vectors, out, facts = _open(config, workdir)
    if not vectors.changes:
        build.run(config, workdir)
    elif facts is None or not _was_built_so(config, vectors, facts):
        _build_anew(config, workdir, vectors, out, facts)
    else:
        _lay(config, vectors, out, facts)


def check(config: Config, workdir: WorkDir) -> None:
    """Whether there is an index that `follow` can lay changes over, before one is recorded.

    Raises:
      InputError: as for `follow`.
    """
    _of_these_embeddings(*_open(config, workdir))


def follow(config: Config, workdir: WorkDir) -> None:
    """`dpr index add` and `remove`: lays the changes over the index there is, with whatever
    settings it was built.

    Raises:
      InputError: there is no index, it is one of other embeddings, or a file is damaged.
    """
    vectors, out, facts = _open(config, workdir)
    _lay(config, vectors, out, _of_these_embeddings(vectors, out, facts))


def rebalance(config: Config, workdir: WorkDir) -> None:
    """`dpr index rebalance`: partitions and code books trained on the passages there are now, and
    no room for those removed.

    Raises:
      InputError: as for `run`.
    """
    vectors, out, facts = _open(config, workdir)
    if vectors.changes:
        _build_anew(config, workdir, vectors, out, facts)
    else:
        build.run(config, workdir)


def _open(config: Config, workdir: WorkDir) -> tuple[Vectors, Path, dict[str, Any] | None]:
    """The embeddings, the folder of the index, and what its index.json says if there is one."""
    source = workdir.inside(config.index.embeddings)
    out = workdir.inside(config.index.out)
    artifacts.restore_dir(out)
    manifest, changes = source / "manifest.json", source / "changes" / "manifest.json"
    vectors = Vectors(
        source,
        artifacts.read_json(manifest),
        artifacts.fingerprint(manifest),
        workdir.inside(config.index.queries) if config.index.queries else None,
        artifacts.read_json(changes)["changes"] if changes.exists() else [],
    )
    if vectors.changes:
        made_from = artifacts.read_json(changes)["made_from"]
        if made_from["inputs"]["embeddings"] != vectors.fingerprint:
            raise InputError(
                f"{changes.parent} belongs to other embeddings than {source}; run `dpr encode`"
                " first"
            )
    facts = artifacts.read_json(out / MANIFEST) if (out / MANIFEST).exists() else None
    return vectors, out, facts


def _of_these_embeddings(
    vectors: Vectors, out: Path, facts: dict[str, Any] | None
) -> dict[str, Any]:
    if facts is None or not _is_of(vectors, _built(facts)):
        raise InputError(f"{out} holds no index of {vectors.folder}; run `dpr index` first")
    return facts


def _verify(vectors: Vectors) -> None:
    artifacts.verify(vectors.folder / "manifest.json")
    changes = vectors.folder / "changes"
    artifacts.verify(changes / "manifest.json", f"delete {changes} and run `dpr encode` again")


# --- what was built


def _built(facts: dict[str, Any]) -> dict[str, Any]:
    """The part of an index that an engine built.

    Its folder and files; rows, the file of its corpus rows; made_from, and count of the vectors it
    was built of; embeddings, their fingerprint without changes; changes, how many are in it, and
    log, up to which; as_built, the fingerprint for who asks for the corpus without its changes.
    """
    if "built" in facts:
        return facts["built"]
    return {
        "folder": "",
        "files": [*facts["files"]],
        "rows": "",
        "made_from": facts["made_from"],
        "count": facts["count"],
        "embeddings": facts["made_from"]["inputs"]["embeddings"],
        "changes": 0,
        "log": "",
    }


def _is_of(vectors: Vectors, built: dict[str, Any]) -> bool:
    """Whether it was built of these embeddings, and the changes in it are still the first ones."""
    count = built["changes"]
    if built["embeddings"] != vectors.fingerprint or count > len(vectors.changes):
        return False
    return count == 0 or vectors.changes[count - 1]["log"] == built["log"]


def _was_built_so(config: Config, vectors: Vectors, facts: dict[str, Any]) -> bool:
    """Whether building anew with these settings would give what is there, apart from later
    changes.
    """
    built = _built(facts)
    made_from = built["made_from"]
    vectors_built_of = made_from["inputs"]["embeddings"]
    origin = _origin_to_build(config, vectors, built["count"], vectors_built_of)
    return _is_of(vectors, built) and json.loads(json.dumps(origin)) == made_from


def _origin_to_build(
    config: Config, vectors: Vectors, count: int, fingerprint: str
) -> dict[str, Any]:
    """What the build of `count` vectors with this fingerprint is made from."""
    questions = ""
    if vectors.questions is not None:
        questions = artifacts.fingerprint(vectors.questions / "manifest.json")
    return build.origin_of(config.index, count, fingerprint, questions)


def _build_anew(
    config: Config,
    workdir: WorkDir,
    vectors: Vectors,
    out: Path,
    facts: dict[str, Any] | None,
) -> None:
    """Builds the passages there are now into a folder of its own in `out`, and lays nothing over
    it.
    """
    changes = len(vectors.changes)
    log = vectors.changes[-1]["log"]
    gone_R = rows_in(vectors.files("removed", 0, changes))
    shards = vectors.shards(changes)
    count = sum(len(shard) for shard in shards)

    # the name says what it is built of, so that a killed run finds it again and another index is
    # not touched
    origin = _origin_to_build(config, vectors, count - len(gone_R), vectors.fingerprint)
    key = hashlib.sha256(json.dumps([origin, log]).encode()).hexdigest()[:12]
    folder = out / f"built-{key}"
    if facts is not None and _built(facts)["folder"] == folder.name:
        _up_to_date(vectors, out, facts)
        return
    _verify(vectors)

    # --- the vectors that are left, as if there had been no others
    live = out.with_name(out.name + ".vectors")
    _write_live(live, vectors, shards, gone_R)
    settings = dataclasses.replace(config.index, embeddings=str(live), out=str(folder))
    build.run(dataclasses.replace(config, index=settings), workdir)
    shutil.rmtree(live)
    rows = f"rows-{key}.npy" if len(gone_R) else ""
    if rows:
        with artifacts.atomic_file(out / rows) as partial, partial.open("wb") as file:
            np.save(file, np.delete(np.arange(count), gone_R))

    # --- and the index that consists of it alone
    new_facts = artifacts.verify(folder / MANIFEST)
    names = [f"{folder.name}/{name}" for name in (MANIFEST, *new_facts["files"])]
    new_facts["built"] = {
        "folder": folder.name,
        "files": [*names, rows] if rows else names,
        "rows": rows,
        "made_from": new_facts["made_from"],
        "count": new_facts["count"],
        "embeddings": vectors.fingerprint,
        "changes": changes,
        "log": log,
    }
    if facts is not None and _built(facts)["embeddings"] == vectors.fingerprint:
        new_facts["as_built"] = _as_built(facts, out)
    else:
        new_facts["as_built"] = vectors.fingerprint
    _switch(config, vectors, out, new_facts)


def _write_live(
    folder: Path, vectors: Vectors, shards: list[np.ndarray], gone_R: np.ndarray
) -> None:
    """Embeddings without the rows that were removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files, start = [], 0
    for number, shard in enumerate(shards):
        here_R = gone_R[(gone_R >= start) & (gone_R < start + len(shard))] - start
        start += len(shard)
        if len(here_R) < len(shard):
            files.append(folder / f"shard-{number:05d}.npy")
            np.save(files[-1], np.delete(shard, here_R, axis=0))
    facts = {name: value for name, value in vectors.facts.items() if name not in OF_ONE_MANIFEST}
    facts["count"] = start - len(gone_R)
    origin = artifacts.made_from(
        "live rows",
        {},
        {"embeddings": vectors.fingerprint, "changes": vectors.changes[-1]["log"]},
    )
    artifacts.write_manifest(folder / "manifest.json", origin, files, **facts)


# --- what is laid over it


def _lay(config: Config, vectors: Vectors, out: Path, facts: dict[str, Any]) -> None:
    """Lays the changes that are not in the built index over it."""
    built = _built(facts)
    if artifacts.is_fresh(out / MANIFEST, _origin(vectors, built)):
        _up_to_date(vectors, out, facts)
        return
    artifacts.verify(out / MANIFEST)  # what follows gives these files new checksums
    _verify(vectors)
    begin, end = built["changes"], len(vectors.changes)
    narrow = facts["settings"].get("reduction")
    if narrow:
        reduction = Reduction.load(out / built["folder"], narrow)
    for file in vectors.files("added", begin, end):
        with artifacts.atomic_file(out / file.name) as partial:
            if narrow:  # as the built ones are, so that scores compare
                reduction.write_shard([np.load(file, mmap_mode="r")], partial)
            else:
                shutil.copyfile(file, partial)
    for file in vectors.files("removed", begin, end):
        with artifacts.atomic_file(out / file.name) as partial:
            shutil.copyfile(file, partial)
    _switch(
        config,
        vectors,
        out,
        {**facts, "built": built, "as_built": _as_built(facts, out)},
    )


def _as_built(facts: dict[str, Any], out: Path) -> str:
    return facts.get("as_built") or artifacts.fingerprint(out / MANIFEST)


def _origin(vectors: Vectors, built: dict[str, Any]) -> dict[str, Any]:
    """What the index with all changes is made from."""
    inputs = {"embeddings": vectors.fingerprint, "built": built["folder"]}
    if vectors.changes:
        inputs["changes"] = vectors.changes[-1]["log"]
    return artifacts.made_from("index", built["made_from"]["settings"], inputs)


def _switch(config: Config, vectors: Vectors, out: Path, facts: dict[str, Any]) -> None:
    """Certifies the built index with what is laid over it, writes index.json, and deletes what it
    does not list.
    """
    built = facts["built"]
    begin, end = built["changes"], len(vectors.changes)
    added, removed = (
        [file.name for file in vectors.files(what, begin, end)] for what in ("added", "removed")
    )
    shards = vectors.shards(end)
    gone_R = rows_in(vectors.files("removed", 0, end))
    count = sum(len(shard) for shard in shards)
    rows_added = count - sum(len(shard) for shard in vectors.shards(begin))
    engine_settings = dict(facts["settings"])
    reduction = engine_settings.pop("reduction", None)
    layers = {
        "kind": facts["kind"],
        "folder": built["folder"],
        "settings": engine_settings,
        "rows": built["rows"],
        "first_added": count - rows_added,
        "added": added,
        "removed": removed,
        "count": count,
        "dimension": reduction["dimensions"] if reduction else facts["dimension"],
    }
    if reduction:
        layers["reduction"] = reduction
    if vectors.questions is None:
        wanted = config.index.recall_queries
        queries_QD = sample.corpus_rows(shards, wanted, gone_R)
        asked = "corpus rows"
    else:
        queries_QD, _, asked = sample.draw(
            shards,
            vectors.questions,
            model=vectors.facts["model"],
            certificate=config.index.recall_queries,
            tuning="tried" in facts,
        )
    recall, queries_per_s = certificate.measure(
        LAYERED, out, layers, shards, queries_QD, gone_R=gone_R
    )
    files = [out / name for name in [*built["files"], *added, *removed]]
    kept = {name: facts[name] for name in facts if name not in OF_ONE_MANIFEST}
    kept["model"] = vectors.facts["model"]
    kept |= {
        "count": count,
        "removed": len(gone_R),
        "layers": layers,
        "prepared": vectors.facts["count"],
        "changes": {"count": end, "log": vectors.changes[-1]["log"]},
        "recall_at_100": round(recall, 6),
        "recall_queries": len(queries_QD),
        "recall_queries_from": asked,
        "queries_per_s": queries_per_s,
    }
    artifacts.write_manifest(out / MANIFEST, _origin(vectors, built), files, **kept)
    delete_others(out, files)
    say(
        f"index: up to change {end}, {count - len(gone_R):,} passages; recall@{RECALL_AT}"
        f" {recall:.4f} against exact search on {len(queries_QD)} {asked}"
    )
    outside = rows_added + len(rows_in([out / name for name in removed]))
    if outside > REBALANCE_FROM * count:
        say(
            f"index: {outside:,} of {count:,} rows came or went since the index was built; `dpr"
            " index rebalance` builds it anew"
        )


def _up_to_date(vectors: Vectors, out: Path, facts: dict[str, Any]) -> None:
    # the run that wrote index.json may have been killed before it deleted the rest
    delete_others(out, [out / name for name in facts["files"]])
    up_to_date(out, vectors.facts["model"])
