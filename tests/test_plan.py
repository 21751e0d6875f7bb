"""`dpr plan` without a compiler for accelerators: what it reads of a compiled text, what it
refuses, and that it plans the program that `dpr train` maps.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dpr_jax import needs, parallel
from dpr_jax.cli import run as dpr
from dpr_jax.config import Config, DataConfig, MineConfig, ModelConfig, TrainConfig
from dpr_jax.errors import InputError
from dpr_jax.planning import compiled, counts, machine, plan, programs, show
from dpr_jax.training import loop, setup
from dpr_jax.workdir import WorkDir

pytestmark = pytest.mark.usefixtures("own_programs")

CHIP = {"bytes_per_cycle": 100.0, "flops_per_cycle": 1000.0}
# two loops, one in the other: 3 * (10 + 5 * 7) cycles, and 4 outside
TEXT = (Path(__file__).parent / "fixtures" / "plan_step.hlo").read_text(encoding="utf-8")


def read(kernel: str = "TopK", config: str = "", trips: str = '"n":"3"') -> compiled.Cycles:
    text = TEXT.replace("KERNEL", kernel).replace("CONFIG", config).replace('"n":"3"', trips)
    return compiled.cycles(compiled.Text(text), **CHIP)


def test_loops_count_times_their_trips_and_unknown_kernels_make_no_sum() -> None:
    found = read()
    # the copy of an absurd estimate and top-k: 400 bytes in and 400 out, 100 a cycle
    assert found.total == 3 * (10 + 5 * 7) + 4 + 8 + 8
    assert found.charged_cycles == 16
    assert [(one.what, one.count, one.bytes) for one in found.charged] == [("TopK", 1, 800)]
    assert found.by_part["dropout"] == 4
    assert found.by_part["products"] == 30

    estimate = ', backend_config={"custom_call_config":{"cost_estimate":{"flops":"20000"}}}'
    assert read("tpu_custom_call", estimate).total == found.total - 8 + 20
    for unknown in (read("tpu_custom_call"), read(trips="")):
        assert unknown.total is None
        assert len(unknown.unknown) >= 1


def test_collectives_cut_into_a_chain_are_one() -> None:
    gathers, sums = compiled.collectives(compiled.Text(TEXT))
    assert gathers == ("all-gather", 1, 800, ("jit(s)/all_gather",))
    assert sums == ("all-reduce", 1, 450, ("jit(s)/psum",))


@pytest.mark.parametrize(
    ("shape", "kind", "result"),
    [
        ("((f32[80]{0}), f32[10]{0})", "reduce-scatter", 40),
        ("(f32[80]{0}, f32[640]{0})", "all-gather", 2560),
        ("((f32[80]{0}), f32[80]{0})", "all-reduce", 320),
        ("f32[80]{0}", "all-reduce", 320),
    ],
)
def test_operands_that_stand_before_a_result_are_no_part_of_it(
    shape: str, kind: str, result: int
) -> None:
    """The forms in which XLA writes the start of a collective."""
    text = f"""ENTRY %main (p: f32[80]) -> f32[80] {{
  %p = f32[80]{{0}} parameter(0)
  %start = {shape} {kind}-start(%p), channel_id=1
  ROOT %done = f32[80]{{0}} {kind}-done(%start)
}}
"""
    [found] = compiled.collectives(compiled.Text(text))
    assert (found.kind, found.count, found.bytes) == (kind, 1, result)


def test_deep_towers_by_two_shallow_ones() -> None:
    cycles = compiled.Cycles(10.0, {"products": 6.0}, [], 1.0, [])
    one = counts.Counts(30, 100, 7, (compiled.Collective("all-reduce", 2, 8, ()),), cycles)
    cycles = compiled.Cycles(14.0, {"products": 7.0, "attention": 2.0}, [], 1.5, [])
    two = counts.Counts(40, 130, 9, (compiled.Collective("all-reduce", 3, 9, ()),), cycles)
    deep = one.per_layer(two, 12)
    assert deep[:3] == (140, 430, 29)
    assert deep.collectives[0].bytes == 19
    assert deep.cycles.total == 54
    assert deep.cycles.by_part == {"products": 17, "attention": 22}


@pytest.mark.parametrize("topology", ["v5e:2x4", "gpu:h100:8"])
def test_the_page_and_the_tables_show_either_kind(
    topology: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = machine.parse(topology)
    cycles = read() if target.platform == "tpu" else None
    reduced = (compiled.Collective("all-reduce", 2, 1_000_000, ("psum",)),)
    one = counts.Counts(3_000_000, 7_000_000, 5_000_000, reduced, cycles)
    found = counts.facts(one, target, 8, 1e9)
    advice = {"change": {"chunk_size": 4}, "confirmed": True}
    facts = {
        "topology": topology,
        "chip": target.chip._asdict(),
        "devices": 8,
        "hosts": 1,
        "passages": 1000,
        "assumptions": ["something"],
        "host": needs.of_corpus(1000, 8, "scann"),
        "encode": found | {"fits": True, "limited_by": "the devices", "hours": 1.5},
        "search": found | {"fits": True, "questions_per_second": 12_345.0},
        "train": found
        | {
            "fits": False,
            "advice": advice,
            "asked_bytes": 20e9,
            "usable_bytes": 15e9,
            "largest_batch": {"questions": 64, "questions_per_device": 8},
            "needless": [],
        },
    }
    show.tables(facts)
    page, printed = show.page(facts), capsys.readouterr().out
    for text in (page, printed):
        assert "12,345" in text
        assert "train.chunk_size 4" in text
        assert "all-reduce" in text
        assert ("cost model" if target.platform == "tpu" else "from public") in text
    assert ("Cycles of an update" in page) == (target.platform == "tpu")


@pytest.mark.parametrize(
    "topology", ["v9:2x2", "gpu:v5e:8", "h100:8", "v5e:2x2x2", "v5e:0x4", "v5e"]
)
def test_unknown_topologies_are_refused(topology: str) -> None:
    with pytest.raises(InputError, match="such as|chips are"):
        machine.parse(topology)


def test_shapes_of_machines() -> None:
    assert machine.parse("v5p:2x2x4").shape == (2, 2, 4)
    one, two = machine.parse("gpu:h100:8"), machine.parse("gpu:h100:2x8")
    assert (one.shape, two.shape) == ((1, 8), (2, 8))
    assert two.chip.link_rate < one.chip.link_rate  # between hosts


def test_without_a_compiler_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed here: see test_tpu_compile.py")
    code = "import sys; from dpr_jax import cli; sys.argv[0] = 'dpr'; cli.main()"
    # whatever the environment says of platforms, no device is asked for
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "--topology", "v5e:2x4", "--json", "plan.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == 'dpr: planning for v5e:2x4 needs libtpu: pip install "dpr_jax[plan]"\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "--topology is missing; usage: dpr plan"),
        (["--topology", "v5e:2x4", "--json", "nowhere/plan.json"], "is no folder"),
        (["--topology", "v5e:2x4", "--json", "plan.html"], "must end in .json"),
        (["--topology", "v5e:2x4", "--passages", "many"], "--passages is many"),
    ],
)
def test_what_the_command_line_refuses(given: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        dpr(["plan", *given])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    init = tiny.write(tmp_path / "init")
    return Config(
        data=DataConfig(),
        mine=MineConfig(enabled=False),
        model=ModelConfig(
            init=str(init), pooling="cls", max_question_tokens=16, max_passage_tokens=32
        ),
        train=TrainConfig(batch_size=16, total_steps=4, dtype="bfloat16"),
    )


class Stop(Exception):
    """Ends a run where its program is lowered."""


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_the_planned_program_is_the_one_that_the_loop_maps(
    config: Config,
    nq_small_workdir: tuple[Config, WorkDir],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    tmp_path: Path,
) -> None:
    """Text for text, from the stage itself, stopped where it would compile."""
    prepared_config, prepared = nq_small_workdir
    config = dataclasses.replace(
        config,
        data=prepared_config.data,
        train=dataclasses.replace(config.train, spmd=kind, batch_size=8),
    )
    lowered: list[str] = []
    mapping = parallel.spmd

    def spying(*args: object) -> parallel.Spmd:
        spmd = mapping(*args)

        def spy(*args: object, **options: object) -> object:
            step = spmd.map(*args, **options)

            class Step:
                def lower(self, *given: object) -> None:
                    positives = given[1].positive_texts_BM.shape[-1]
                    monkeypatch.setattr(programs, "POSITIVES", positives)
                    lowered.append(step.lower(*given).as_text())
                    raise Stop

            return Step()

        return spmd._replace(map=spy)

    monkeypatch.setattr(parallel, "spmd", spying)
    with pytest.raises(Stop):
        loop.run(config, prepared.retriever("planned"))
    monkeypatch.setattr(parallel, "spmd", mapping)

    schedule = setup.Schedule(4, min(round(config.train.warmup * 4), 3))
    model = programs.read_model(config)
    planned = programs.train(config, model, jax.devices(), schedule=schedule)
    assert planned.as_text() == lowered[0]


def test_no_form_made_for_cpus_is_in_an_accelerator_s_program(config: Config) -> None:
    """No row follows another, and bits are the device's own, not Threefry written out."""
    # more attention weights than stay in a CPU's caches
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=4096))
    spmd = parallel.spmd("shard_map", jax.devices())
    model = programs.read_model(config)
    found = {}
    for platform in ("cpu", "tpu"):
        placed = spmd._replace(platform=platform)
        text = programs.trace(config, model, placed, schedule=setup.Schedule(4, 1))
        shifted = re.findall(r"u32\[([\d,]+)\] = shift_left", text)
        found[platform] = {
            "rows one after another": "scan[" in text,
            "Threefry written out": any(
                math.prod(map(int, sizes.split(","))) > 1000 for sizes in shifted
            ),
            "bits of the device": "random_bits[" in text and "key<rbg>" in text,
        }
    assert [*found["cpu"].values()] == [True, True, False]
    assert [*found["tpu"].values()] == [False, False, True]


def test_encoders_of_public_shape_need_no_network() -> None:
    config = Config(model=ModelConfig(init="google-bert/bert-large-uncased"))
    model = programs.read_model(config)
    assert (model.width, model.layers) == (1024, 24)
    assert model.own["passage"].pooling == "cls"
    with pytest.raises(InputError, match="--model.init"):
        programs.read_model(Config(model=ModelConfig(init="retriever:trained")))


def test_towers_that_differ_are_planned_as_they_are(config: Config, tmp_path: Path) -> None:
    """Each side has its own layers, in training, encoding and the count of operations."""
    folder = tmp_path / "pair"
    for side, layers in (("question", 1), ("passage", 2)):
        file = tiny.write(folder / f"{side}_encoder") / "config.json"
        shape = json.loads(file.read_text()) | {"num_hidden_layers": layers}
        file.write_text(json.dumps(shape))
    pair = dataclasses.replace(config, model=dataclasses.replace(config.model, init=str(folder)))
    model = programs.read_model(pair)
    assert [model.shapes[side].num_hidden_layers for side in ("question", "passage")] == [1, 2]
    assert model.layers == 2
    spmd = parallel.spmd("shard_map", jax.devices())
    schedule = setup.Schedule(4, 1)
    same, other = (
        programs.trace(one, programs.read_model(one), spmd, schedule=schedule).count("dot_general")
        for one in (config, pair)
    )
    assert same != other


def test_packed_batches_and_masks_have_the_shapes_of_a_run(config: Config) -> None:
    """Rows as many as texts of the assumed lengths need; a mask of questions by passages."""
    train = dataclasses.replace(config.train, pack_rows=2, mask_answers="string")
    model = programs.read_model(config)
    batch = programs.batch(dataclasses.replace(config, train=train), model, 8)
    padded = programs.batch(config, model, 8)
    assert padded.question.ids_BL.shape == (16, 16)
    # a device's two questions of 12 tokens share a row of 32; its four passages fill 32 each
    assert batch.question.rows.ids_RL.shape == (8, 32)
    assert batch.passages.rows.ids_RL.shape == (16, 64)
    assert batch.passages.slot_B.shape == (32,)
    assert batch.holds_answer_BP.shape == (16, 32)
    spmd = parallel.spmd("shard_map", jax.devices())
    changed = dataclasses.replace(config, train=train)
    assert "bool[2,32]" in programs.trace(changed, model, spmd, schedule=setup.Schedule(4, 1))


@pytest.mark.parametrize(
    ("bytes_of", "change"),
    [
        (lambda one: 10 if one.shard_optimizer else 99, {"shard_optimizer": True}),
        (lambda one: 10 if one.remat else 99, {"remat": True}),
        (
            lambda one: 10 if one.remat and one.shard_optimizer else 99,
            {"remat": True, "shard_optimizer": True},
        ),
        # a line: six of a device's eight texts would fit into 16, of which four divide eight
        (
            lambda one: 3 + 2 * (one.chunk_size or 99),
            {"chunk_size": 4, "remat": False, "shard_optimizer": True},
        ),
        (lambda one: 99, {}),
    ],
)
def test_advice_is_the_least_costly_change_that_fits(
    bytes_of: Callable[[TrainConfig], int], change: dict[str, object]
) -> None:
    train = TrainConfig(batch_size=8, hard_negatives=1)
    found = plan._advise(train, 2, lambda one: counts.Counts(0, bytes_of(one)), 16)
    assert found["change"] == change


def test_exact_search_is_lowered_as_it_runs(config: Config) -> None:
    lowered, blocks = programs.search(config, 32, 20_000, jax.devices()[:2])
    assert blocks == 2  # 8,192 vectors on each of two CPU devices
    queries = np.zeros((1024, 32), np.float32)
    best = np.full((1024, 100), -np.inf, np.float32), np.full((1024, 100), -1, np.int32)
    block = np.ones((16384, 32), np.float16)
    scores, rows = lowered.compile()(best, queries, block, 0, 20_000)
    assert rows.shape == (1024, 100)
    assert jnp.all(scores == 0)
