"""The stage `dpr encode`: the corpus through the passage tower, into shards of float16 vectors."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpr_jax import artifacts, parallel
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config
from dpr_jax.data.formats import Passage
from dpr_jax.data.store import open_corpus
from dpr_jax.errors import InputError
from dpr_jax.logging import progress, say
from dpr_jax.model.embed import Embedder, compute_dtype, load_embedder


def run(config: Config, workdir: WorkDir) -> None:
    """Encodes the corpus: row i of the shards together is passage i.

    Shards grow in `<out>.building`, which takes the place of `<out>` when all are there; a killed run goes on with the shards it
    lacks. Processes take every n-th shard on a shared file system and only meet at the barriers.

    Raises:
      InputError: no corpus, no such model, or a vector that is not finite or does not fit float16 (by passage).
    """
    settings = config.encode
    out = workdir.inside(settings.out)
    corpus = open_corpus(workdir)
    if len(corpus) == 0:
        raise InputError(f"{workdir.data / 'corpus'} is empty; check data.passages")
    embedder = load_embedder(
        settings.model,
        workdir,
        "passage",
        model=config.model,
        batch_tokens=settings.batch_tokens,
        dtype=settings.dtype,
    )

    # --- is there anything to do? ---
    origin = artifacts.made_from(
        "encode",
        {
            "rows_per_shard": settings.rows_per_shard,
            "dtype": compute_dtype(settings.dtype),
        },
        {
            "corpus": artifacts.fingerprint(workdir.data / "manifest.json", "corpus/"),
            "model": embedder.fingerprint,
        },
    )
    if parallel.is_main():
        artifacts.restore_dir(out)
    parallel.barrier(f"encode: look at {out.name}")
    if artifacts.is_fresh(out / "manifest.json", origin):
        say(f"encode: up to date ({out})")
        return
    building = out.with_name(out.name + ".building")
    if parallel.is_main():
        _start_or_resume(building, origin)
    parallel.barrier(f"encode: start {out.name}")

    # --- this process's shards ---
    shard_rows = _shard_rows(len(corpus), settings.rows_per_shard)
    files = [
        building / f"shard-{number:05d}-of-{len(shard_rows):05d}.npy"
        for number in range(len(shard_rows))
    ]
    mine = range(jax.process_index(), len(files), jax.process_count())
    left = [
        number
        for number in mine
        if not _is_whole(files[number], len(shard_rows[number]), embedder.width)
    ]
    if len(left) < len(mine):
        say(f"encode: {len(mine) - len(left)} of {len(mine)} shards are there already")
    total = sum(len(shard_rows[number]) for number in left)
    with progress("encode", total, "passages") as advance:
        for number in left:
            rows = shard_rows[number]
            emb_ND = _encode(embedder, corpus.rows(rows), rows.start, advance)
            with (
                artifacts.atomic_file(files[number]) as partial,
                partial.open("wb") as file,
            ):
                np.save(file, emb_ND)

    # --- all together ---
    parallel.barrier(f"encode: end {out.name}")
    if parallel.is_main():
        artifacts.write_manifest(
            building / "manifest.json",
            origin,
            files,
            count=len(corpus),
            width=embedder.width,
            dtype="float16",
            rows_per_shard=settings.rows_per_shard,
            model=embedder.model_fingerprint,
        )
        artifacts.replace_dir(building, out)
        (out / "plan.json").unlink()
        say(
            f"encode: {len(corpus):,} passages, width {embedder.width}, in {len(files)} shards ({out})"
        )
    parallel.barrier(f"encode: done {out.name}")


def _start_or_resume(building: Path, origin: dict[str, Any]) -> None:
    """Keeps the shards of a killed run that had the same inputs and settings; removes others."""
    plan = building / "plan.json"
    if plan.exists() and artifacts.read_json(plan) == origin:
        return
    shutil.rmtree(building, ignore_errors=True)
    artifacts.write_json(plan, origin)


def _shard_rows(count: int, rows_per_shard: int) -> list[range]:
    """The corpus rows of each shard."""
    return [
        range(start, min(start + rows_per_shard, count))
        for start in range(0, count, rows_per_shard)
    ]


def _is_whole(file: Path, rows: int, width: int) -> bool:
    """Whether a shard is there with the right shape; it only got its name when it was complete."""
    if not file.exists():
        return False
    try:
        shard = np.load(file, mmap_mode="r")
    except (ValueError, EOFError, OSError):
        return False
    return shard.shape == (rows, width) and shard.dtype == np.float16


def _encode(
    embedder: Embedder,
    passages: list[Passage],
    first_row: int,
    advance: Callable[..., None],
) -> np.ndarray:
    """Vectors of passages, float16 [len(passages), D]; equal passages are computed once."""
    places: dict[tuple[str, str], int] = {}
    place_N = [
        places.setdefault((passage.title, passage.text), len(places))
        for passage in passages
    ]
    emb_UD = embedder.encode(list(places), advance=advance)
    if len(places) < len(passages):
        advance(len(passages) - len(places))
    with np.errstate(over="ignore"):  # too large becomes infinity and is named below
        emb_ND = emb_UD.astype(np.float16)[place_N]
    finite_N = np.isfinite(emb_ND).all(axis=1)
    if not finite_N.all():
        at = int(np.argmin(finite_N))
        raise InputError(
            f"passage {passages[at].id!r} (corpus row {first_row + at:,}) has a vector with NaN or values beyond float16's 65,504; the passage encoder's weights are unsound, train or export it again"
        )
    return emb_ND
