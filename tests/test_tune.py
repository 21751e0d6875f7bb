"""The walk through builds, on a model of an engine, and its result in index.json."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpr_jax.config import IndexConfig
from dpr_jax.errors import InputError
from dpr_jax.index import sample, tune, worker
from dpr_jax.index.sweep import Point, sweep

SHARDS = [np.eye(16, dtype=np.float16)[np.arange(400) % 16]]


class Engine:
    """Stands in for the fresh processes: with 80 leaves, blocks of 3 and a second partition it is
    fastest.
    """

    def __init__(self) -> None:
        self.built: list[tuple[int, int, float | None]] = []
        self.start = 20  # leaves by rule

    def build(self, kind: str, vectors: Path, folder: Path, config: dict) -> dict:
        leaves, block = (
            config["leaves"] or self.start,
            config["dimensions_per_block"] or 2,
        )
        soar = config["soar_lambda"]
        self.built.append((leaves, block, soar))
        (folder / "file").write_text(f"{leaves} {block}")
        return {
            "leaves": leaves,
            "dimensions_per_block": block,
            "soar_lambda": soar,
            "leaves_to_search": 9,
        }

    def sweep(
        self, kind: str, vectors: Path, folder: Path, settings: dict, **how: Any
    ) -> list[Point]:
        def measure(changes: dict[str, int]) -> Point:
            now = settings | changes
            part = now["leaves_to_search"] / now["leaves"]
            speed = 100 / (1 + part) / abs(np.log(now["leaves"] / 80) + 0.1)
            speed /= 1 + abs(now["dimensions_per_block"] - 3)
            speed *= 1 + (now["soar_lambda"] or 0)
            return Point(changes, part**0.1, 0.0, speed)

        return sweep(measure, how["knobs"], how["target"])


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(worker, "build", engine.build)
    monkeypatch.setattr(worker, "sweep", engine.sweep)
    return engine


def run(folder: Path, config: IndexConfig) -> tune.Tuned:
    queries_QD = np.eye(16, dtype=np.float32)
    return tune.tune("scann", folder, folder, config, SHARDS, queries_QD)


def test_walks_as_long_as_it_gets_faster(tmp_path: Path, engine: Engine) -> None:
    tuned = run(tmp_path, IndexConfig(target_recall=0.9))
    assert engine.built == [
        (20, 2, None),
        (20, 2, 1.5),
        (40, 2, 1.5),
        (80, 2, 1.5),
        (80, 3, 1.5),
        (80, 4, 1.5),
    ]
    wanted = {"leaves": 80, "dimensions_per_block": 3}
    assert {name: tuned.settings[name] for name in wanted} == wanted
    assert (tuned.folder / "file").read_text() == "80 3"
    assert list(tmp_path.iterdir()) == [tuned.folder]  # the others are gone
    # the least that reaches 0.9 on this model, within a step of the ladder
    assert 0.35 * 80 <= tuned.settings["leaves_to_search"] <= 0.4 * 80
    assert {point["leaves"] for point in tuned.tried} == {20, 40, 80}
    assert {"recall_at_100", "queries_per_cpu_s", "build_s"} < tuned.tried[0].keys()


def test_the_other_way_where_more_leaves_are_slower(tmp_path: Path, engine: Engine) -> None:
    engine.start = 150
    tuned = run(
        tmp_path,
        IndexConfig(target_recall=0.9, dimensions_per_block=3, soar_lambda=1.0),
    )
    assert engine.built == [(150, 3, 1), (300, 3, 1), (75, 3, 1), (37, 3, 1)]
    assert tuned.settings["leaves"] == 75


def test_what_is_set_by_hand_stays(tmp_path: Path, engine: Engine) -> None:
    config = IndexConfig(
        target_recall=0.9,
        leaves=50,
        leaves_to_search=40,
        dimensions_per_block=2,
        soar_lambda=1.5,
    )
    tuned = run(tmp_path, config)
    assert engine.built == [(50, 2, 1.5)] and len(tuned.tried) == 1
    assert tuned.settings["leaves_to_search"] == 40


def test_a_target_out_of_reach_is_said_with_the_best(tmp_path: Path, engine: Engine) -> None:
    config = IndexConfig(target_recall=0.9, leaves=50, leaves_to_search=5)
    with pytest.raises(InputError, match=r"0\.9 by .*leaves 50.*recall 0\.7943") as error:
        run(tmp_path, config)
    assert "\n" not in str(error.value)


def test_no_query_is_both_tuned_on_and_certified_with() -> None:
    shards = [np.arange(2000, dtype=np.float32).reshape(1000, 2)]
    drawn = sample.draw(shards, None, model="m", certificate=200, tuning=True)
    assert drawn.certificate_QD.shape == (200, 2) and drawn.tuning_QD.shape == (400, 2)
    assert not set(drawn.certificate_QD[:, 0]) & set(drawn.tuning_QD[:, 0])
    few = sample.draw([shards[0][:7]], None, model="m", certificate=200, tuning=True)
    assert (len(few.certificate_QD), len(few.tuning_QD)) == (3, 4)
    all_of_them = sample.draw(shards, None, model="m", certificate=200, tuning=False)
    assert len(all_of_them.certificate_QD) == 200 and not len(all_of_them.tuning_QD)
    with pytest.raises(InputError, match="1 corpus rows"):
        sample.draw([shards[0][:1]], None, model="m", certificate=9, tuning=True)
