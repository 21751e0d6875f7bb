"""Reads the corpus with all processes of a run."""

import contextlib
import shutil
import socket
import zlib
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from dpr_jax import host, parallel
from dpr_jax.config import Config, DataConfig
from dpr_jax.data import named, piecewise
from dpr_jax.data.corpus import reading
from dpr_jax.data.piecewise import NONE_BAD, Outcome, Share
from dpr_jax.data.readers.detect import Source
from dpr_jax.errors import InputError
from dpr_jax.remote import Remote

KEPT = ("passages", "columns", "split_words", "split_tokens", "split_stride_tokens")


def source_here(config: Config) -> Source | None:
    """Returns the corpus as this process sees it; None where it does not, or there is none."""
    data = DataConfig(**{name: getattr(config.data, name) for name in KEPT})
    with contextlib.suppress(InputError):
        found, _ = named.recognised(data, config.model.init, Counter(), columns_of_any=True)
        return found.get("passages")
    return None


def write_pieces(source: Source | None, building: Path, remote: Remote | None) -> Path | None:
    """Writes the shards of the corpus, each process some; all processes call it.

    Those that see no corpus, or another one than process 0, take no part.

    Args:
      source: the corpus.
      building: folder for the shards, which all processes share, or of the cache of `remote`.
      remote: the object storage of which the work directory is a copy.

    Returns:
      On process 0 the folder with all shards and their facts, elsewhere one of that name; None
      where the corpus cannot be cut, or process 0 is alone with it.

    Raises:
      InputError: a row is broken (file and line), or the processes read different bytes.
    """
    form = source.by_lines if source else None
    size = source.files[0].stat().st_size if form else 0
    key = zlib.crc32(f"{size} {source.layout} {source.columns}".encode()) if form else 0
    here = zlib.crc32(socket.gethostname().encode())
    keys_P, hosts_P = parallel.all_processes(np.array([[key, here]], np.uint32)).T
    readers = np.flatnonzero(keys_P == keys_P[0]).tolist()
    if not keys_P[0] or len(readers) == 1:
        return None
    folder, own = building / "corpus", jax.process_index()
    if parallel.is_main() or remote:
        shutil.rmtree(building, ignore_errors=True)
        folder.mkdir(parents=True)
    parallel.barrier("prepare: begin")

    # --- this process's pieces
    outcome = Outcome(0, 0)
    if own in readers:
        here_too = int(np.sum(hosts_P[readers] == here))
        share = Share(readers.index(own), len(readers), host.cores(here_too))
        with reading("prepare corpus", source) as on_read:
            path, literal = source.files[0], source.literal
            outcome = piecewise.write(path, form, literal, folder, on_read, share=share)

    # --- are all well?
    facts = [outcome.bad, outcome.is_cut_wrong, outcome.checksum]
    bad_P, wrong_P, sums_P = parallel.all_processes(np.array([facts], np.uint32)).T
    first = int(bad_P.argmin())
    if bad_P[first] != NONE_BAD:
        if wrong_P[first]:
            return None
        if first == own:
            raise outcome.error
        parallel.barrier("prepare: the end of this run")  # which that process brings
    differs = [number for number in readers if sums_P[number] != sums_P[0]]
    if differs:
        raise InputError(
            f"process {differs[0]} has another data.passages than process 0; give all processes the"
            " same file"
        )
    if remote:
        for file in sorted(folder.iterdir()):
            remote.push_file(file)
    parallel.barrier("prepare: corpus is written")
    if remote and parallel.is_main():
        remote.pull_parts(building)
    elif remote:
        shutil.rmtree(building)
    return folder
