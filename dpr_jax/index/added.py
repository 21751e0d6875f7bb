"""The files of the changes in the folder of an index: vectors of additions, rows of removals."""

import functools
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpr_jax import artifacts
from dpr_jax.config import Config
from dpr_jax.console import progress
from dpr_jax.data import changes
from dpr_jax.data.changes import Log
from dpr_jax.data.raw import Passage
from dpr_jax.errors import InputError
from dpr_jax.index.open import MANIFEST
from dpr_jax.model.embed import Embedder, load_embedder
from dpr_jax.workdir import RetrieverDir


class ChangeFiles(NamedTuple):
    """The files of one change in an index folder; one of the two is empty.

    Attributes:
      added: float16 [rows, D] each, in corpus order.
      removed: int64 rows.
    """

    added: tuple[Path, ...] = ()
    removed: tuple[Path, ...] = ()


def change_files(
    config: Config, retriever: RetrieverDir, log: Log, vectors: Path, folder: Path
) -> list[ChangeFiles]:
    """Puts the files of every change into a folder, and encodes what is in no index yet.

    A killed run goes on with the shard that it was at.

    Args:
      config: of the retriever.
      retriever: a dense one.
      log: the changes.
      vectors: embeddings of the corpus as it was prepared.
      folder: where to; what is in it is used.

    Raises:
      InputError: a file is damaged, the model is another one, or a vector is not finite.
    """
    if not log.folders:
        return []
    corpus = changes.open_corpus(retriever.workdir, log)  # checks every change
    facts = artifacts.read_json(vectors / "manifest.json")
    counts, additions = log.live(facts["count"]), dict(log.additions())
    known = _known(retriever, log, vectors)
    embedder = functools.cache(lambda: _embedder(config, retriever, vectors))
    first, found = facts["count"], []
    for number, change in enumerate(log.folders, 1):
        if number not in additions:
            file = folder / f"removed-{number:05d}.npy"
            link(change / changes.REMOVED, file)
            found.append(ChangeFiles(removed=(file,)))
            continue
        prefix, rows = f"added-{number:05d}-", counts[number] - counts[number - 1]
        shared = [file for file in known if file.name.startswith(prefix)]
        files = [folder / file.name for file in shared]
        for file, place in zip(shared, files, strict=True):
            link(file, place)
        if not shared:
            step = config.encode.rows_per_shard
            with progress(f"encode change {number}", rows, "passages") as advance:
                for shard, start in enumerate(range(first, first + rows, step)):
                    part = range(start, min(start + step, first + rows))
                    files.append(folder / f"{prefix}{shard:05d}.npy")
                    if not _is_whole(files[-1], len(part), facts["width"]):
                        passages = corpus.rows(part)
                        _encode(embedder(), passages, part.start, files[-1])
                    advance(len(part))
        first += rows
        found.append(ChangeFiles(added=tuple(files)))
    return found


def _known(retriever: RetrieverDir, log: Log, vectors: Path) -> list[Path]:
    """Returns the vectors of additions that the current index has, after checking them."""
    folder = retriever.find("index")
    if folder is None or not (folder / MANIFEST).exists():
        return []
    facts = artifacts.read_json(folder / MANIFEST)
    of = artifacts.fingerprint(vectors / "manifest.json")
    if facts["made_from"]["inputs"]["embeddings"] != of or facts["corpus"] not in log.prints:
        return []
    artifacts.verify(folder / MANIFEST)
    return [folder / name for name in sorted(facts["files"]) if name.startswith("added-")]


def _embedder(config: Config, retriever: RetrieverDir, vectors: Path) -> Embedder:
    """Loads the encoder of the embeddings, in their precision."""
    facts = artifacts.read_json(vectors / "manifest.json")
    embedder = load_embedder(
        retriever.encoder,
        "passage",
        model=config.model,
        batch_tokens=config.encode.batch_tokens,
        dtype=facts["computed_in"],
    )
    if embedder.passage_fingerprint != facts["model"]:
        raise InputError(
            f"{vectors} was encoded by another model than {retriever.encoder}; run `dpr"
            f" encode {retriever.flags}` first"
        )
    return embedder


def _encode(embedder: Embedder, passages: list[Passage], first_row: int, file: Path) -> None:
    """Writes the vectors of passages: float16 [rows, D]."""
    with np.errstate(over="ignore"):  # too large becomes infinity
        emb_ND = embedder.encode([(one.title, one.text) for one in passages]).astype(np.float16)
    finite_N = np.isfinite(emb_ND).all(axis=1)
    if not finite_N.all():
        at = int(np.argmin(finite_N))
        raise InputError(
            f"passage {passages[at].id!r} (row {first_row + at:,}) has a vector with NaN or values"
            " beyond float16's 65,504; the passage encoder's weights are unsound, train or export"
            " it again"
        )
    with artifacts.atomic_file(file) as partial, partial.open("wb") as opened:
        np.save(opened, emb_ND)


def _is_whole(file: Path, rows: int, width: int) -> bool:
    """Checks whether a killed run left this shard; it got its name when it was complete."""
    return file.exists() and np.load(file, mmap_mode="r").shape == (rows, width)


def link(source: Path, target: Path) -> None:
    """Gives a file a second name; copies it where the disk has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
