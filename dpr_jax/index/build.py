"""The stage that builds the search index and measures, in a fresh process, how much of the exact
result it finds.
"""

import dataclasses
import shutil
from typing import Any

from dpr_jax import artifacts
from dpr_jax.artifacts import WorkDir
from dpr_jax.config import Config, IndexConfig
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.index import certificate, defaults, embeddings, worker
from dpr_jax.index.engines import faiss_index, scann_index
from dpr_jax.index.finished import up_to_date
from dpr_jax.index.open import MANIFEST
from dpr_jax.index.recall import RECALL_AT
from dpr_jax.index.reduction import Reduction
from dpr_jax.index.sample import draw
from dpr_jax.index.tune import tune

SCANN_FROM_ROWS = 5000
FORM = 2  # since `model` in index.json is the encoder of passages, without that of questions
# What building takes at its peak, measured: before it has any vectors, and for each of their
# numbers. ScaNN holds three float32 copies (ours, its own, and one while it trains or writes),
# FAISS one whose arrays double while they grow; the float16 shards are mapped.
PROCESS_MB = 350
BYTES_A_NUMBER = {"scann": 14, "faiss": 10}

# The settings that matter to each engine: another value of another setting builds nothing anew.
_SETTINGS_OF = {
    "exact": ("exact_recall",),
    "faiss": ("faiss", "leaves", "leaves_to_search", "ef_search", "reorder"),
    "scann": (
        "leaves",
        "leaves_to_search",
        "reorder",
        "dimensions_per_block",
        "anisotropic_threshold",
        "soar_lambda",
        "reorder_dtype",
    ),
}


def run(config: Config, workdir: WorkDir) -> None:
    """Builds, moves, and certifies an index of the embeddings; index.json is written last.

    Raises:
      InputError: no embeddings, a damaged or unsound shard, an engine that is not installed or that
        crashed.
    """
    settings = config.index
    source = workdir.inside(settings.embeddings)
    out = workdir.inside(settings.out)

    # --- is there anything to do? --------------------------------------------
    artifacts.restore_dir(out)
    facts = artifacts.read_json(source / "manifest.json")
    count, dimension = facts["count"], facts["width"]
    kind, why = choose_kind(settings.kind, count)
    tuning = settings.target_recall > 0 and kind != "exact"
    questions = workdir.inside(settings.queries) if settings.queries else None
    origin = origin_of(
        settings,
        count,
        artifacts.fingerprint(source / "manifest.json"),
        artifacts.fingerprint(questions / "manifest.json") if questions else "",
    )
    if artifacts.is_fresh(out / MANIFEST, origin):
        up_to_date(out, facts["model"])
        return
    shards, _ = embeddings.open_embeddings(source)
    sample = draw(
        shards,
        questions,
        model=facts["model"],
        certificate=settings.recall_queries,
        tuning=tuning,
    )

    # --- build ---------------------------------------------------------------
    say(f"index: {kind} ({why})")
    width = settings.dimensions or dimension
    say(f"index: {count:,} vectors of width {width}, {_memory(kind, count, width)}")
    building, reduced = (out.with_name(out.name + end) for end in (".building", ".reduced"))
    for folder in (building, reduced):
        shutil.rmtree(folder, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        if settings.dimensions:
            reduction = Reduction.learn(shards, settings.reduction, settings.dimensions)
            say(f"index: {reduction.describe()}")
            reduction.write(shards, reduced)
        narrow = reduced if settings.dimensions else None
        if tuning:
            built, engine_settings, tried = tune(
                kind,
                source,
                building,
                settings,
                shards,
                sample.tuning_QD,
                build_of=narrow,
            )
            tuned = {"target_recall": settings.target_recall, "tried": tried}
            tuned["tuning_queries"] = len(sample.tuning_QD)
        else:
            built, tuned = building, {}
            engine_settings = worker.build(
                kind, narrow or source, built, dataclasses.asdict(settings)
            )
        shutil.rmtree(reduced, ignore_errors=True)

        # --- certify: the folder is moved, then a fresh process answers from it ---
        with artifacts.atomic_dir(out) as moved:
            built.replace(moved)
            recall, queries_per_s = certificate.measure(
                kind, moved, engine_settings, shards, sample.certificate_QD
            )
            # a file of their own, so that the fingerprint of the index changes with them
            artifacts.write_json(moved / "settings.json", engine_settings)
            artifacts.write_manifest(
                moved / MANIFEST,
                origin,
                [path for path in moved.iterdir() if path.is_file()],
                kind=kind,
                metric="inner_product",
                count=count,
                dimension=dimension,
                settings=engine_settings,
                recall_at_100=round(recall, 6),
                recall_queries=len(sample.certificate_QD),
                recall_queries_from=sample.origin,
                queries_per_s=queries_per_s,
                model=facts["model"],
                **tuned,
            )
    finally:
        for folder in (building, reduced):
            shutil.rmtree(folder, ignore_errors=True)
    say(
        f"index: done, recall@{RECALL_AT} {recall:.4f} against exact search on"
        f" {len(sample.certificate_QD)} {sample.origin}"
        + (", none of them tuned on" if tuning else "")
    )
    if recall < settings.target_recall:
        say(
            f"index: that is below index.target_recall {settings.target_recall:g}: the tuning"
            f" queries had it; give a target that is {settings.target_recall - recall:.4f} higher"
            " if it must hold here"
        )


def origin_of(
    settings: IndexConfig, count: int, vectors: str, questions: str = ""
) -> dict[str, Any]:
    """What an index of `count` vectors with the fingerprint `vectors` is made from, for its
    manifest.

    Args:
      questions: fingerprint of the question vectors that it is measured with; empty for none.

    Raises:
      InputError: the engine asked for is not installed.
    """
    kind, _ = choose_kind(settings.kind, count)
    tuning = settings.target_recall > 0 and kind != "exact"
    filled = settings if tuning else defaults.fill_in(settings, count)
    chosen = {name: getattr(filled, name) for name in _SETTINGS_OF[kind]}
    chosen |= {"kind": kind, "recall_queries": settings.recall_queries}
    if settings.dimensions:
        chosen["dimensions"] = settings.dimensions
        chosen["reduction"] = settings.reduction
    if tuning:
        chosen["target_recall"] = settings.target_recall
    inputs = {"embeddings": vectors}
    if questions:
        inputs["queries"] = questions
    return artifacts.made_from("index", chosen, inputs, form=FORM)


def choose_kind(asked: str, count: int) -> tuple[str, str]:
    """The engine to build, and why: (kind, reason).

    Raises:
      InputError: the one asked for is not installed.
    """
    if asked == "scann" and not scann_index.available():
        raise InputError(
            "index.kind is scann, which is not installed; `pip install scann` (Linux on x86, Python"
            " below 3.14) or give --index.kind faiss"
        )
    if asked != "auto":
        return asked, "as index.kind says"
    if count < SCANN_FROM_ROWS:
        return "exact", f"auto: fewer than {SCANN_FROM_ROWS:,} passages"
    if scann_index.available():
        enough = f"auto: {SCANN_FROM_ROWS:,} passages or more"
        return "scann", f"{enough}, scann is installed"
    without = "auto: scann is not installed (`pip install scann` on Linux)"
    if faiss_index.available():
        return "faiss", without
    return "exact", f"{without}, nor is faiss (`pip install faiss-cpu`)"


def _memory(kind: str, count: int, dimension: int) -> str:
    """What a build takes at its peak, in words."""
    if kind == "exact":
        return "copied as they are"
    megabytes = PROCESS_MB + count * dimension * BYTES_A_NUMBER[kind] / 1e6
    return f"about {megabytes:,.0f} MB of memory to build"
