"""Joining a run of several processes, and moving trees to the devices and back."""

import jax
import numpy as np
import pytest

from dpr_jax import parallel
from dpr_jax.errors import InputError

NAMES = ("DPR_COORDINATOR", "DPR_NUM_PROCESSES", "DPR_PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("h:1", "", ""), "DPR_NUM_PROCESSES and DPR_PROCESS_ID not set"),
        (("h:1", "two", "0"), "must be numbers"),
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
        parallel.initialize()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False),  # sbatch's script, without srun
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_NTASKS": "", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": ""}, False),
        ({"OMPI_COMM_WORLD_SIZE": "", "OMPI_COMM_WORLD_RANK": ""}, False),
        ({"TPU_WORKER_HOSTNAMES": "one"}, False),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, True),
    ],
)
def test_clusters_are_recognised(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: bool
) -> None:
    for name in (
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "TPU_WORKER_HOSTNAMES",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined: list[bool] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda: joined.append(True))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    parallel.initialize()
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
    asked: list[dict] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: asked.append(how))
    parallel.initialize()
    assert asked == [
        {
            "coordinator_address": "a:1",
            "num_processes": 2,
            "process_id": 1,
            "cluster_detection_method": "deactivate",
        }
    ]


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
