"""The stage `dpr encode`: passages or questions through their tower, into shards of vectors."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dpr_jax import artifacts, parallel
from dpr_jax.config import Config
from dpr_jax.console import progress, say
from dpr_jax.encoding.texts import Texts, open_texts
from dpr_jax.errors import InputError
from dpr_jax.model.embed import Embedder, compute_dtype, load_embedder
from dpr_jax.model.pace import Pace, clock
from dpr_jax.model.tokenizer import Text, TokenRows
from dpr_jax.workdir import RetrieverDir


class Shard(NamedTuple):
    """A shard's texts, ready for the device.

    Attributes:
      file: where their vectors go.
      first_row: row of the first one.
      ids: of all rows.
      tokens: of every text once, however often it stands in the shard.
      place_N: int64, where in `tokens` the text of each row is.
    """

    file: Path
    first_row: int
    ids: list[str]
    tokens: TokenRows
    place_N: np.ndarray


def run(config: Config, retriever: RetrieverDir) -> None:
    """Encodes the corpus, or the questions of `encode.questions`: row i of the shards is text i.

    Shards grow in `embeddings-HASH.building`, which takes its final name when all are there; a
    killed run goes on with the shards it lacks. Processes take every n-th shard on a shared file
    system and only meet at the barriers. Equal texts of a shard are computed once. While the device
    computes one shard, a thread tokenizes the next, and another reads the one after it.

    Raises:
      InputError: no texts, no such model, or a vector that is not finite or does not fit float16
        (by the id of its text).
    """
    settings = config.encode
    texts = open_texts(settings, retriever.workdir)
    dtype = _dtype(settings.dtype)
    embedder = load_embedder(
        retriever.encoder,
        texts.side,
        model=config.model,
        batch_tokens=settings.batch_tokens,
        dtype=dtype,
    )

    # --- is there anything to do? ---
    origin = artifacts.made_from(
        "encode",
        {
            "rows_per_shard": settings.rows_per_shard,
            "dtype": settings.dtype,  # auto is not resolved: another machine encodes nothing again
            **texts.settings,
        },
        {**texts.inputs, "model": embedder.fingerprint},
    )
    parallel.agree(origin["inputs"])
    out = retriever.place(texts.stage, origin)
    parallel.barrier(f"encode: look at {out.name}")
    manifest = out / "manifest.json"
    if artifacts.is_fresh(manifest, origin):
        if parallel.is_main():
            if artifacts.read_json(manifest)["model"] != embedder.passage_fingerprint:
                # questions' vectors, which stay as they are beside another encoder of passages
                artifacts.restate(manifest, model=embedder.passage_fingerprint)
            retriever.point(texts.stage, out)
        say(f"encode: up to date ({out})")
        return
    building = out.with_name(out.name + ".building")
    building.mkdir(parents=True, exist_ok=True)
    remote = retriever.remote
    if remote:  # shards of a killed run
        remote.pull_parts(building)

    # --- this process's shards ---
    shard_rows = _shard_rows(texts.count, settings.rows_per_shard)
    files = [
        building / f"shard-{number:05d}-of-{len(shard_rows):05d}.npy"
        for number in range(len(shard_rows))
    ]
    mine = range(jax.process_index(), len(files), jax.process_count())
    shape = (embedder.width, texts.dtype)
    left = [
        number for number in mine if not _is_whole(files[number], len(shard_rows[number]), *shape)
    ]
    if len(left) < len(mine):
        say(f"encode: {len(mine) - len(left)} of {len(mine)} shards are there already")
    total = sum(len(shard_rows[number]) for number in left)
    pace = Pace(embedder.shape, embedder.pooling)
    ready = _ready(embedder, texts, [(files[number], shard_rows[number]) for number in left])
    title = f"encode {retriever.name}"
    with progress(title, total, f"{texts.side}s", clock=clock) as advance:
        for shard in pace.waiting(parallel.ahead(ready)):
            _write(shard, embedder, texts, pace, advance)
            if remote:
                remote.push_file(shard.file)
    if left:
        say(f"encode: {pace.summary()}")

    # --- all together ---
    parallel.barrier(f"encode: end {out.name}")
    if parallel.is_main():
        if remote:  # the others' shards
            remote.pull_parts(building)
        if texts.ids is not None:
            files.append(building / "ids.json")
            artifacts.write_json(files[-1], texts.ids)
        artifacts.write_manifest(
            building / "manifest.json",
            origin,
            files,
            count=texts.count,
            width=embedder.width,
            dtype=np.dtype(texts.dtype).name,
            computed_in=dtype,
            rows_per_shard=settings.rows_per_shard,
            model=embedder.passage_fingerprint,
        )
        artifacts.replace_dir(building, out)
        retriever.point(texts.stage, out)
        say(
            f"encode: {texts.count:,} {texts.side}s, width {embedder.width}, in"
            f" {len(shard_rows)} shards ({out})"
        )
    parallel.barrier(f"encode: done {out.name}")


def _dtype(asked: str) -> str:
    """Returns the compute precision; what auto stands for is process 0's to say, for all."""
    is_bfloat16 = compute_dtype(asked) == "bfloat16"
    return "bfloat16" if parallel.of_main(np.int32(is_bfloat16)) else "float32"


def _shard_rows(count: int, rows_per_shard: int) -> list[range]:
    """Returns the rows of each shard."""
    return [
        range(start, min(start + rows_per_shard, count))
        for start in range(0, count, rows_per_shard)
    ]


def _is_whole(file: Path, rows: int, width: int, dtype: type[np.floating]) -> bool:
    """Returns whether a shard is there with the right shape; it only got its name when it was
    complete.
    """
    if not file.exists():
        return False
    try:
        shard = np.load(file, mmap_mode="r")
    except (ValueError, EOFError, OSError):
        return False
    return shard.shape == (rows, width) and shard.dtype == dtype


def _ready(
    embedder: Embedder, texts: Texts, shards: Iterable[tuple[Path, range]]
) -> Iterator[Shard]:
    """Yields the shards tokenized, in order; a thread of its own reads the next one."""
    read = ((file, rows, *texts.read(rows)) for file, rows in shards)
    for file, rows, ids, shard_texts in parallel.ahead(read):
        places: dict[Text, int] = {}
        place_N = [places.setdefault(text, len(places)) for text in shard_texts]
        tokens = embedder.tokenize(list(places))
        yield Shard(file, rows.start, ids, tokens, np.array(place_N))


def _write(
    shard: Shard,
    embedder: Embedder,
    texts: Texts,
    pace: Pace,
    advance: Callable[..., None],
) -> None:
    """Computes a shard's vectors straight into its memory-mapped file, which gets its name when it
    is complete.
    """
    # place u of the texts computed once is first seen at row first_U[u]
    _, first_U = np.unique(shard.place_N, return_index=True)
    shape = (len(shard.place_N), embedder.width)
    with artifacts.atomic_file(shard.file) as partial:
        emb_ND = np.lib.format.open_memmap(partial, "w+", texts.dtype, shape)
        for batch in embedder.vectors(shard.tokens):
            rows_B = first_U[batch.rows_B]
            with np.errstate(over="ignore"):  # too large becomes infinity
                emb_BD = batch.emb_BD.astype(texts.dtype)
            finite_B = np.isfinite(emb_BD).all(axis=1)
            if not finite_B.all():
                row = int(rows_B[np.argmin(finite_B)])
                raise InputError(
                    f"{texts.side} {shard.ids[row]!r} (row {shard.first_row + row:,}) has a vector"
                    f" with NaN or values beyond {emb_BD.dtype.name}'s"
                    f" {np.finfo(texts.dtype).max:,.0f}; the {texts.side} encoder's weights are"
                    " unsound, train or export it again"
                )
            emb_ND[rows_B] = emb_BD
            pace.add(shard.tokens.lengths_N[batch.rows_B], batch.slots)
            advance(len(rows_B), pace.note())
        again_R = np.flatnonzero(first_U[shard.place_N] != np.arange(len(shard.place_N)))
        if len(again_R):
            emb_ND[again_R] = emb_ND[first_U[shard.place_N[again_R]]]
            advance(len(again_R), pace.note())
        emb_ND.flush()
