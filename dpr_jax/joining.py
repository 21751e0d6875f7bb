"""Joins a process to the others of its run, and takes leave of them."""

import contextlib
import os
import re
import sys
import threading
import time
from typing import NoReturn

import jax
from jax._src import distributed
from jax._src.clusters import ClusterEnv

from dpr_jax import console, peers, sockets
from dpr_jax.errors import InputError

HEARTBEAT_S = 30  # JAX's own, for which it aborts the others with a stack trace
FIND_S = 300  # for which JAX looks for the coordinator of a cluster
FAREWELL_S = 3  # for which process 0 stays after an error
LOST_SIGNS = r"Gloo|NCCL|Connection (closed|reset)|UNAVAILABLE|DEADLINE_EXCEEDED|Socket closed"

_peers: peers.Peers | None = None


def initialize(facts: dict[str, str] | None = None) -> None:
    """Joins the other processes of this run, where the environment says that there are any.

    DPR_COORDINATOR (host:port of process 0), DPR_NUM_PROCESSES and DPR_PROCESS_ID name them by hand
    (most scripts in launch/ set them). DPR_COORDINATOR=auto leaves it to JAX, which asks the
    machine it is on (launch/tpu_vm.sh sets it), as do Slurm, Open MPI and Kubernetes jobs of
    several tasks without being told. Otherwise one process. Named by hand, each process drives all
    accelerators it sees; left to JAX, those of Slurm and Open MPI drive one GPU each.

    Args:
      facts: what has to be equal on all processes, by name.

    Raises:
      InputError: some of the three variables are set and some are not, or one is not a number in
        range; or the processes differ in `facts` or in their number.
      OtherProcessFailed: not all processes came in time.
    """
    facts = facts or {}
    names = ("DPR_COORDINATOR", "DPR_NUM_PROCESSES", "DPR_PROCESS_ID")
    values = [os.environ.get(name, "") for name in names]
    if values[0] == "auto" or (not any(values) and _in_cluster()):
        _join_found(facts)
    elif any(values):
        missing = [name for name, value in zip(names, values, strict=True) if not value]
        if missing:
            raise InputError(
                f"{' and '.join(missing)} not set; a run of several processes needs all of"
                f" {', '.join(names)}"
            )
        try:
            count, index = int(values[1]), int(values[2])
        except ValueError:
            raise InputError(
                f"DPR_NUM_PROCESSES={values[1]!r}, DPR_PROCESS_ID={values[2]!r}: both must be"
                " numbers"
            ) from None
        if not 0 <= index < count:
            raise InputError(
                f"DPR_PROCESS_ID is {index}; with DPR_NUM_PROCESSES={count} it must be in"
                f" 0..{count - 1}"
            )
        if not re.fullmatch(r".+:\d+", values[0]):
            raise InputError(f"DPR_COORDINATOR is {values[0]!r}; it must be HOST:PORT or auto")
        _join(values[0], count, index, facts)


def _join_found(facts: dict[str, str]) -> None:
    """Joins processes that JAX finds by itself."""
    try:
        address, count, index, local = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, FIND_S
        )
        count, index = int(count), int(index)
        sockets.split_address(address)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # the environment's fault
        raise InputError(
            "the environment says that this is one of several processes, and JAX cannot find the"
            f" others ({type(error).__name__}: {error}); name them with DPR_COORDINATOR=HOST:PORT,"
            " DPR_NUM_PROCESSES and DPR_PROCESS_ID"
        ) from error
    _join(address, count, index, facts, local)


def _join(
    address: str,
    count: int,
    index: int,
    facts: dict[str, str],
    local_devices: list[int] | None = None,
) -> None:
    """Meets the other processes, and starts JAX with them."""
    global _peers
    _peers = peers.Peers(address, count, index, facts)
    # where JAX looks around by itself, it takes one GPU for a process that Slurm or Open MPI
    # started, named by hand or not
    jax.distributed.initialize(
        coordinator_address=_peers.jax_address,
        num_processes=count,
        process_id=index,
        local_device_ids=local_devices,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=HEARTBEAT_S,
    )
    if index:
        threading.Thread(target=_ask_process_0, daemon=True).start()


def _ask_process_0() -> None:
    """Asks JAX's coordinator every few seconds for something, which it answers unless process 0 is
    stopped.
    """
    client, answered = distributed.global_state.client, threading.Event()

    def ask() -> None:
        while client is distributed.global_state.client:
            with contextlib.suppress(Exception):  # that there is no such key is an answer
                client.key_value_try_get("dpr/life")
            answered.set()
            time.sleep(peers.PULSE_S)

    threading.Thread(target=ask, daemon=True).start()
    silent_s, looked_s = 0.0, time.monotonic()
    while client is distributed.global_state.client:
        answer = answered.wait(1.0)
        answered.clear()
        # this process may have been stopped itself: then it has not listened
        passed_s, looked_s = min(time.monotonic() - looked_s, 2.0), time.monotonic()
        silent_s = 0.0 if answer else silent_s + passed_s
        if silent_s > peers.LOST_S and _peers:
            _peers.silent()


def is_alone() -> bool:
    """Returns whether this process is the only one of its run."""
    return _peers is None


def part() -> None:
    """Tells the other processes that this one has done its part: its end is no failure."""
    if _peers:
        _peers.leave()


def claim_end() -> None:
    """Makes this the thread that says why the process ends; waits where another one does."""
    if _peers and not _peers.claim():
        time.sleep(FAREWELL_S)


def await_end(error: BaseException) -> None:
    """Waits for the word of a lost process where an error looks as if one were lost."""
    if _peers and re.search(LOST_SIGNS, str(error)):
        time.sleep(peers.LOST_S + 10)


def _in_cluster() -> bool:
    """Returns whether JAX can join the other processes by itself, and the environment says there
    are any.

    An allocation of several tasks is not enough: its shell is one process. Slurm's srun numbers
    the tasks of its step, mpirun its ranks.
    """
    workers = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(","))
    slices = _number("MEGASCALE_NUM_SLICES")
    return (
        0 <= _number("SLURM_PROCID") < _number("SLURM_STEP_NUM_TASKS") > 1
        or 0 <= _number("OMPI_COMM_WORLD_RANK") < _number("OMPI_COMM_WORLD_SIZE") > 1
        or 0 <= _number("TPU_WORKER_ID") < workers > 1
        or 0 <= _number("MEGASCALE_SLICE_ID") < slices > 1
        or (
            _number("JOB_COMPLETION_INDEX") >= 0 and bool(os.environ.get("JAX_COORDINATOR_ADDRESS"))
        )
    )


def _number(name: str) -> int:
    """Returns a number of the environment; -1 for none, and for what is no number from 0."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else -1


def end(status: int, line: str) -> NoReturn:
    """Ends this process from any of its threads, in a line, and with it the others of its run."""
    claim_end()
    console.complain(line)
    if _peers:
        _peers.end(status)
    os._exit(status)


def leave(status: int) -> NoReturn:
    """Ends this process; one of several without JAX's shutdown, which waits up to five minutes for
    the others.

    They are told, and end with the same status.
    """
    if not _peers:
        sys.exit(status)
    try:
        _peers.end(status)
        if _peers.index == 0:  # where the others found the same error, let them say so
            time.sleep(FAREWELL_S)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # whatever is broken: devices that do not start, output that nobody reads
        os._exit(status)
