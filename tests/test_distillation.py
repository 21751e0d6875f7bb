"""Distillation in the mapped step: the gradient of the global batch, however the scored questions
lie on the devices.
"""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from step_reference import (
    TEMPERATURE,
    TOLERANCE,
    assert_close,
    make_batch,
    make_params,
    make_settings,
    mapped_gradient,
    reference,
    with_teacher,
)

from dpr_jax.config import Config, MineConfig, ModelConfig, TrainConfig
from dpr_jax.mining import mine
from dpr_jax.training import loop
from dpr_jax.training.step import LOG_TEMPERATURE
from dpr_jax.workdir import WorkDir, open_workdir

CHOSEN = {
    (1, "shard_map", "kl", False),
    (2, "pmap", "margin_mse", True),
    (4, "shard_map", "margin_mse", False),
    (8, "pmap", "kl", True),
}
EVERY = itertools.product([1, 2, 4, 8], ["pmap", "shard_map"], ["kl", "margin_mse"], [False, True])


@pytest.mark.parametrize(
    ("count", "kind", "distillation", "chunked"),
    [pytest.param(*case, marks=[] if case in CHOSEN else pytest.mark.slow) for case in EVERY],
)
def test_gradient_is_that_of_the_global_batch(
    count: int, kind: str, distillation: str, chunked: bool
) -> None:
    rng = np.random.default_rng(0)
    batch = with_teacher(rng, make_batch(rng))
    settings = make_settings(
        distillation=distillation,
        distillation_weight=0.6,
        chunk_size=4 if chunked else None,
    )
    wanted_loss, wanted = reference(make_params(), batch, settings)
    found_loss, found, counted = mapped_gradient(kind, count, make_params(), batch, settings)
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=TOLERANCE)
    assert_close(found, wanted)
    if count > 1:  # no more of them than without a teacher
        assert (counted["all-reduce"], counted["all-gather"]) == (2, 2)


def test_gradient_with_every_option() -> None:
    """Cut vectors, both directions, a learned temperature; nothing but the teacher counts."""
    rng = np.random.default_rng(1)
    batch = with_teacher(rng, make_batch(rng))
    settings = make_settings(
        temperature=0.0,  # not read
        symmetric=True,
        matryoshka_widths=(4,),
        distillation="margin_mse",
        distillation_weight=1.0,
    )
    params = {**make_params(), LOG_TEMPERATURE: np.float32(np.log(TEMPERATURE))}
    wanted_loss, wanted = reference(params, batch, settings)
    found_loss, found, _ = mapped_gradient("shard_map", 4, params, batch, settings)
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=TOLERANCE)
    assert_close(found, wanted)


def test_a_batch_of_which_the_teacher_knows_nothing_is_contrast_alone() -> None:
    batch = make_batch(np.random.default_rng(0))
    unknown = np.full((8, 3), np.nan, np.float32)
    settings = make_settings(distillation="kl", distillation_weight=0.25)
    wanted_loss, wanted = reference(make_params(), batch, make_settings())
    found_loss, found, _ = mapped_gradient(
        "pmap", 2, make_params(), batch._replace(teacher_scores_BG=unknown), settings
    )
    np.testing.assert_allclose(found_loss, 0.75 * wanted_loss, rtol=TOLERANCE)
    assert_close(found, jax.tree.map(lambda leaf: 0.75 * leaf, wanted))


def test_a_teacher_of_the_config_file_teaches(
    tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> None:
    """From the mined passages' scores to the metrics of training."""
    config, prepared = nq_small_workdir
    tiny.write(tmp_path / "init", layers=1)
    shutil.copytree(prepared.root, tmp_path / "run", symlinks=True)
    target = open_workdir(tmp_path / "run").retriever("taught")

    def teacher(question: str, passages: list[tuple[str, str]]) -> list[float]:
        return [len({*question.split()} & {*text.split()}) for _, text in passages]

    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dev=None),
        mine=MineConfig(teacher=teacher),
        model=ModelConfig(
            init=str(tmp_path / "init"), max_question_tokens=16, max_passage_tokens=32
        ),
        train=TrainConfig(
            batch_size=8,
            total_steps=2,
            hard_negatives=2,
            distillation="kl",
            dropout=0,
            log_every_steps=1,
        ),
    )
    mine.run(config, target)
    loop.run(config, target)
    text = (target.current("checkpoints") / "metrics.jsonl").read_text()
    for row in map(json.loads, text.splitlines()):
        assert row["distillation"] > 0
        mixed = (row["nll"] + row["distillation"]) / 2
        assert row["loss"] == pytest.approx(mixed, rel=1e-5)
