"""Two layers of the paper's update, compiled for eight TPU chips that are not here.

Needs libtpu: pip install "dpr_jax[plan]". What is held is what XLA's compiler says; the recorded
cycles are those of one libtpu, and are compared where that one is installed.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path

import jax
import pytest

from dpr_jax import config_file
from dpr_jax.planning import compiled, counts, machine, programs
from dpr_jax.training import setup

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason='libtpu is not installed: pip install "dpr_jax[plan]"',
    ),
]

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests" / "fixtures" / "tpu_cycles.json"
TOPOLOGY = "v5e:2x4"
LAYERS = 2
PRODUCT = (
    r"stablehlo.dot_general [^:]*?(?:batching_dims = \[([^\]]*)\][^:]*)?"
    r": \(tensor<([^>]*)>, tensor<([^>]*)>\)"
)
TEMPORARY_BYTES = 0.9e9  # gradients of 0.3 GB, and activations of two layers


@pytest.fixture(scope="module")
def target() -> machine.Machine:
    machine.set_environment()
    return machine.parse(TOPOLOGY)


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_the_update_of_the_paper(target: machine.Machine, kind: str) -> None:
    config = config_file.load(str(ROOT / "configs" / "nq_bert_base.py"))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, spmd=kind))
    model = programs.read_model(config).cut(LAYERS)
    devices = machine.devices(target)
    schedule = setup.schedule(config.train, 58_880)
    lowered = programs.train(config, model, devices, schedule=schedule)

    # products of the towers are bfloat16; those of scores and their two gradients are float32
    products = [
        sides
        for batched, *sides in re.findall(PRODUCT, lowered.as_text())
        # a sum over the last axis alone is no product of matrices
        if len(batched.split(",")) * bool(batched) + 1 < len(sides[0].split("x")) - 1
    ]
    wide = [sides for sides in products if any(side.endswith("f32") for side in sides)]
    assert len(products) > 20 * LAYERS
    assert len(wide) == 3, wide

    found = counts.read(lowered, target)
    by_kind = {one.kind: one for one in found.collectives}
    vectors = 4 * model.width * config.train.batch_size * 2
    assert by_kind["all-gather"].bytes in (vectors, vectors + 4 * 256)  # and the texts' keys
    assert by_kind["reduce-scatter"].count == 1
    assert by_kind["all-reduce"].count <= 8  # gradients in a few combined ones
    assert {*by_kind} == {"all-gather", "all-reduce", "reduce-scatter"}
    assert found.temporary_bytes < TEMPORARY_BYTES
    assert found.peak_bytes < 0.9 * target.chip.memory_bytes

    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    if importlib.metadata.version("libtpu") == recorded["libtpu"] and kind in recorded["cycles"]:
        assert found.cycles.total == pytest.approx(recorded["cycles"][kind], rel=0.1)


def test_a_host_of_a_pod_is_compiled_for_alone(target: machine.Machine) -> None:
    """XLA refuses a part of a pod's chips."""
    pod = machine.parse("v5e:16x16")
    every = machine.devices(pod)
    host = machine.of_one_host(pod, every, len({one.process_index for one in every}))
    mesh = jax.sharding.Mesh(host, ("rows",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    rows = jax.ShapeDtypeStruct((4, 128), "float32", sharding=split)
    assert len(host) == 4
    assert counts.read(jax.jit(lambda x: x + 1).lower(rows), pod).fits


def test_a_program_too_large_for_the_chip_says_its_size(target: machine.Machine) -> None:
    device = machine.devices(target)[0]
    mesh = jax.sharding.Mesh([device], ("x",))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    large = jax.ShapeDtypeStruct((1 << 16, 1 << 17), "float32", sharding=here)  # 32 GiB
    found = counts.read(jax.jit(lambda x: x + 1).lower(large), target)
    assert not found.fits
    assert found.peak_bytes > 32 * machine.GIB


def test_cycles_come_from_the_text(target: machine.Machine) -> None:
    """A large product takes at least what the matrix units need, and little more."""
    device = machine.devices(target)[0]
    mesh = jax.sharding.Mesh([device], ("x",))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    square = jax.ShapeDtypeStruct((4096, 4096), "bfloat16", sharding=here)
    program = jax.jit(lambda a, b: a @ b).lower(square, square).compile()
    text = compiled.Text(program.as_text())
    chip = target.chip
    found = compiled.cycles(
        text,
        bytes_per_cycle=chip.memory_rate / chip.clock_hz,
        flops_per_cycle=chip.peak_flops / chip.clock_hz,
    )
    ideal = 2 * 4096**3 * chip.clock_hz / chip.peak_flops
    assert 1 < found.total / ideal < 1.3
