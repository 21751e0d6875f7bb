"""Joining a run of several processes, and moving trees to the devices and back."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from dpr_jax import joining, parallel
from dpr_jax.errors import InputError

NAMES = ("DPR_COORDINATOR", "DPR_NUM_PROCESSES", "DPR_PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("h:1", "", ""), "DPR_NUM_PROCESSES and DPR_PROCESS_ID not set"),
        (("h:1", "two", "0"), "must be numbers"),
        (("h", "2", "0"), "DPR_COORDINATOR is 'h'; it must be HOST:PORT"),
        (
            ("h:1", "2", "2"),
            r"DPR_PROCESS_ID is 2; with DPR_NUM_PROCESSES=2 it must be in 0..1",
        ),
    ],
)
def test_half_a_cluster_is_refused(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], message: str
) -> None:
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        joining.initialize()


def test_a_time_to_wait_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip((*NAMES, "DPR_JOIN_S"), ("h:1", "2", "1", "soon"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="DPR_JOIN_S is 'soon'; it must be a number of seconds"):
        joining.initialize()


SLURM_SHELL = {"SLURM_JOB_ID": "123", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
TPU_SLICE = {"TPU_WORKER_HOSTNAMES": "one,two"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2"}
IN_POD = {"JAX_COORDINATOR_ADDRESS": "pod-0:55527"}
NAMES_OF_CLUSTERS = (
    *SLURM_SHELL,
    "SLURM_STEP_NUM_TASKS",
    *TPU_SLICE,
    "TPU_WORKER_ID",
    *OPEN_MPI,
    "OMPI_COMM_WORLD_RANK",
    *IN_POD,
    "JOB_COMPLETION_INDEX",
    "MEGASCALE_SLICE_ID",
    "MEGASCALE_NUM_SLICES",
)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (SLURM_SHELL, False),
        (SLURM_SHELL | {"SLURM_STEP_NUM_TASKS": "1"}, False),
        (SLURM_SHELL | {"SLURM_STEP_NUM_TASKS": "4"}, True),
        (SLURM_SHELL | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": ""}, False),
        ({"SLURM_NTASKS": "", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": ""}, False),
        ({"TPU_WORKER_HOSTNAMES": "one", "TPU_WORKER_ID": "0"}, False),
        (TPU_SLICE, False),
        (TPU_SLICE | {"TPU_WORKER_ID": "1"}, True),
        ({"MEGASCALE_SLICE_ID": "1", "MEGASCALE_NUM_SLICES": "2"}, True),
        (OPEN_MPI, False),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "", "OMPI_COMM_WORLD_RANK": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "two", "OMPI_COMM_WORLD_RANK": "-1"}, False),
        (IN_POD, False),
        (IN_POD | {"JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_a_process_joins_where_it_has_an_id_among_several(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: bool
) -> None:
    for name in (*NAMES, *NAMES_OF_CLUSTERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined: list[bool] = []
    monkeypatch.setattr(joining, "_join_found", lambda facts: joined.append(True))
    joining.initialize()
    assert bool(joined) == expected


def test_named_by_hand_a_process_keeps_all_its_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One process a node under Slurm: asked, JAX's detection would leave it the first GPU of the
    node.
    """
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "a,b",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    }
    named = dict(zip(NAMES, ("a:1", "2", "1"), strict=True))
    for name, value in (slurm | named).items():
        monkeypatch.setenv(name, value)
    asked: list[tuple] = []
    monkeypatch.setattr(joining, "_join", lambda *how: asked.append(how))
    joining.initialize({"code": "1"})
    assert asked == [("a:1", 2, 1, {"code": "1"})]  # and no list of devices


def test_found_by_jax_a_process_takes_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "a,b",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }
    for name in (*NAMES, *NAMES_OF_CLUSTERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    asked: list[tuple] = []
    monkeypatch.setattr(joining, "_join", lambda *how: asked.append(how))
    joining.initialize()
    [(address, count, index, facts, local)] = asked
    assert address.startswith("a:") and (count, index, facts, local) == (4, 3, {}, [1])


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_trees_go_to_the_devices_and_back(kind: str) -> None:
    spmd = parallel.spmd(kind, jax.devices()[:4])
    tree = {"a": np.arange(3.0, dtype=np.float32), "b": np.int32(7)}
    rows = np.arange(8.0, dtype=np.float32).reshape(8, 1)

    def add(state: dict, rows_BD: jax.Array) -> dict:
        total = jax.lax.psum(rows_BD.sum(), parallel.AXIS)
        return {"a": state["a"] + total, "b": state["b"] + rows_BD.shape[0]}

    found = spmd.fetch(spmd.map(add)(spmd.replicate(tree), spmd.shard(rows)))
    assert found["a"].tolist() == [28.0, 29.0, 30.0]
    assert found["b"] == 9  # two rows a device


def test_devices_of_a_slice_are_neighbours() -> None:
    class Device(NamedTuple):
        id: int
        slice_index: int

    found = parallel.slice_by_slice([Device(3, 1), Device(0, 0), Device(2, 1), Device(1, 0)])
    assert [device.id for device in found] == [0, 1, 3, 2]
    assert parallel.slice_by_slice(jax.devices()) == jax.devices()  # which name no slice
