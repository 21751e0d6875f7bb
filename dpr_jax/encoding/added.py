"""The embeddings follow the corpus: vectors of the passages that were added to it, and the rows
that were removed.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.console import progress, say
from dpr_jax.data import changes, store
from dpr_jax.data.formats import Passage
from dpr_jax.errors import InputError
from dpr_jax.model.embed import Embedder, load_embedder

FOLDER = "changes"


def run(config: Config, workdir: WorkDir) -> None:
    """Brings `<encode.out>/changes` up to date with the log of changes; the embeddings of the
    corpus as prepared stay as they are.

    The rows of an addition follow those before it, in shards of their own. A killed run goes on
    with the shard that it was at.

    Raises:
      InputError: there are no embeddings of this corpus, or they were encoded by another model, or
        a vector is not finite.
    """
    settings = config.encode
    out = workdir.inside(settings.out)
    folder = out / FOLDER
    manifest = folder / "manifest.json"
    log = changes.read(workdir)
    if not log.folders:
        shutil.rmtree(folder, ignore_errors=True)  # of changes that were deleted
        return
    facts = artifacts.read_json(out / "manifest.json")
    origin = artifacts.made_from(
        "encode changes",
        {},
        {
            "embeddings": artifacts.fingerprint(out / "manifest.json"),
            "changes": log.fingerprint,
        },
    )
    if artifacts.is_fresh(manifest, origin):
        say(f"encode: changes are up to date ({folder})")
        return
    if facts["made_from"]["inputs"]["corpus"] != log.prints[0]:
        raise InputError(
            f"{out} holds another corpus than {workdir.data / 'corpus'}; run `dpr encode` and `dpr"
            " index` first"
        )

    # --- the same model, in the same precision
    embedder = load_embedder(
        settings.model,
        workdir,
        "passage",
        model=config.model,
        batch_tokens=settings.batch_tokens,
        dtype=facts["made_from"]["settings"]["dtype"],
    )
    if facts["made_from"]["inputs"]["model"] != embedder.fingerprint:
        raise InputError(
            f"{out} was encoded by another model than encode.model={settings.model}; give that"
            " model, or run `dpr encode` and `dpr index` first"
        )

    # --- one file a shard, named after all that it depends on
    folder.mkdir(exist_ok=True)
    if manifest.exists():
        artifacts.verify(manifest, f"delete {folder} and run `dpr encode` again")
    additions = dict(log.additions())
    listed: list[dict[str, Any]] = []
    count = facts["count"]
    for number, change in enumerate(log.folders, 1):
        at = log.prints[number]
        if number in additions:
            corpus = store.Corpus(additions[number])
            starts = range(0, len(corpus), settings.rows_per_shard)
            rows = [range(start, min(start + starts.step, len(corpus))) for start in starts]
            files = [folder / f"added-{number:05d}-{_hash(at, part)}.npy" for part in rows]
            left = [
                (file, part) for file, part in zip(files, rows, strict=True) if not file.exists()
            ]
            total = sum(len(part) for _, part in left)
            with progress(f"encode change {number}", total, "passages") as advance:
                for file, part in left:
                    passages = corpus.rows(part)
                    _write(file, _vectors(embedder, passages, count + part.start))
                    advance(len(part))
            count += len(corpus)
            entry = {"added": [file.name for file in files]}
        else:
            file = folder / f"removed-{number:05d}-{_hash(at)}.npy"
            _write(file, np.load(change / changes.REMOVED))
            entry = {"removed": [file.name]}
        listed.append({"log": at, **entry})

    # --- all together
    names = [name for entry in listed for name in entry.get("added", entry.get("removed"))]
    artifacts.write_manifest(
        manifest,
        origin,
        [folder / name for name in names],
        count=count,
        changes=listed,
    )
    for path in folder.iterdir():
        if path.name not in {*names, manifest.name}:
            path.unlink()  # of another log
    say(f"encode: up to change {len(log.folders)}, {count:,} rows ({folder})")


def _vectors(embedder: Embedder, passages: list[Passage], first_row: int) -> np.ndarray:
    """float16 [len(passages), D]."""
    texts = [(passage.title, passage.text) for passage in passages]
    with np.errstate(over="ignore"):  # too large becomes infinity
        emb_ND = embedder.encode(texts).astype(np.float16)
    finite_N = np.isfinite(emb_ND).all(axis=1)
    if not finite_N.all():
        at = int(np.argmin(finite_N))
        raise InputError(
            f"passage {passages[at].id!r} (row {first_row + at:,}) has a vector with NaN or values"
            " beyond float16's 65,504; the passage encoder's weights are unsound, train or export"
            " it again"
        )
    return emb_ND


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _write(file: Path, array: np.ndarray) -> None:
    with artifacts.atomic_file(file) as partial, partial.open("wb") as opened:
        np.save(opened, array)
