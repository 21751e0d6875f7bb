"""Processes, devices and threads: how this run was started, how one per-device function is mapped
over all devices, and work done ahead.

Everything that knows of more than one device or process is here; the step in training/step.py is
written for one device and names one axis, `AXIS`.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpr_jax import peers
from dpr_jax.errors import InputError, OtherProcessFailed, exit_status

AXIS = "devices"
HEARTBEAT_S = 30  # JAX's own, for which it aborts the others with a stack trace
FIND_S = 300  # for which JAX looks for the coordinator of a cluster
LOST_SIGNS = r"Gloo|NCCL|Connection (closed|reset)|UNAVAILABLE|DEADLINE_EXCEEDED|Socket closed"
FAREWELL_S = 3  # for which process 0 stays after an error
# by each device when CPU processes first meet, half of it in one message: Linux' usual upper limits
# of a send buffer are 0.2 and 4 MB
FIRST_SENT_BYTES = 1 << 23

T = TypeVar("T")
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
        peers.split_address(address)
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


def is_main() -> bool:
    """Returns whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; with one process it returns at once."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def on_main(work: Callable[[], None]) -> None:
    """Does `work` on process 0 while the others wait; where it fails there, all of them end.

    Else they would wait for what does not come, and hear of it late.

    Raises:
      OtherProcessFailed: on the processes that waited, where it failed, with the exit status of
        process 0; process 0 raises what `work` raised.
    """
    try:
        if is_main():
            work()
    except BaseException as error:  # whatever it is, the others have to hear of it
        of_main(np.int32(exit_status(error)))
        raise
    if status := int(of_main(np.int32(0))):
        raise OtherProcessFailed(status)


def leave(status: int) -> NoReturn:
    """Ends this process; one of several without JAX's shutdown, which waits up to five minutes for
    the others.

    They are told, and end with the same status.
    """
    if not _peers:
        sys.exit(status)
    try:
        _peers.end(status)
        if (
            is_main()
        ):  # JAX ends the others with it: where they found the same error, let them say so
            time.sleep(FAREWELL_S)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # whatever is broken: devices that do not start, output that nobody reads
        os._exit(status)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each one made in a thread of its own while the one before is used."""
    end = object()
    source = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item


class Spmd(NamedTuple):
    """One way of running a per-device function on all devices of all processes.

    Attributes:
      replicate: tree of host arrays -> the same tree, whole on every device.
      shard: tree of this process's host arrays [n, ...] -> split along the first axis over this
        process's devices (n is a multiple of their number); the global array is all processes'
        parts together.
      map: `fn(replicated, sharded) -> (replicated, replicated)`, which may use collectives over
        AXIS -> the function that runs on all devices. The first argument's memory is reused when
        `donate` is set.
      fetch: a replicated tree -> host arrays.
    """

    replicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]
    map: Callable[..., Callable[[Any, Any], Any]]
    fetch: Callable[[Any], Any]


def spmd(kind: Literal["pmap", "shard_map"], devices: list[jax.Device] | None = None) -> Spmd:
    """The mapping named by `train.spmd`.

    Args:
      kind: pmap, or jit of shard_map without its varying-axes check: with the check on, shard_map
        sums the gradient of replicated weights once more by itself, which makes it W times too
        large (W devices).
      devices: all devices of the run, in order; None takes jax.devices().
    """
    devices = jax.devices() if devices is None else devices
    local = [device for device in devices if device.process_index == jax.process_index()]
    mapping = (_pmap if kind == "pmap" else _shard_map)(devices, local)
    if jax.process_count() > 1 and devices[0].platform == "cpu":
        _widen(mapping, len(devices), len(local))
    return mapping


def _widen(mapping: Spmd, devices: int, local: int) -> None:
    """Opens the connections between processes on CPUs with a large reduce-scatter.

    There JAX's collectives are Gloo's, which sets the send buffer of a connection to the largest
    message of a reduce-scatter so far (Pair::send in gloo/transport/tcp/pair.cc), and sends all
    else over the same connection. A step begins with the small reduce-scatter of embeddings'
    gradients, and each 64 kB of the all-reduce after it waited 40 ms for an acknowledgement: 120 s
    for 23 million parameters.
    """

    def scatter(_: None, sent: jax.Array) -> jax.Array:
        part = lax.psum_scatter(sent, AXIS, tiled=True)
        return lax.psum(jnp.sum(part), AXIS)

    width = FIRST_SENT_BYTES // devices // np.dtype(np.float32).itemsize
    sent = mapping.shard(np.zeros((local * devices, width), np.float32))
    jax.block_until_ready(mapping.map(scatter)(None, sent))


def _pmap(devices: list[jax.Device], local: list[jax.Device]) -> Spmd:
    stacked = NamedSharding(Mesh(np.array(local), (AXIS,)), PartitionSpec(AXIS))
    everywhere = devices if jax.process_count() == 1 else None

    def replicate(tree: Any) -> Any:
        def put(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            return jax.device_put(np.broadcast_to(leaf, (len(local), *leaf.shape)), stacked)

        return jax.tree.map(put, tree)

    def shard(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.device_put(_split(leaf, len(local)), stacked), tree)

    def mapped(fn: Callable[[Any, Any], Any], donate: bool = False) -> Callable[[Any, Any], Any]:
        return jax.pmap(
            fn,
            axis_name=AXIS,
            devices=everywhere,
            donate_argnums=(0,) if donate else (),
        )

    def fetch(tree: Any) -> Any:
        return jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree))

    return Spmd(replicate, shard, mapped, fetch)


def _shard_map(devices: list[jax.Device], local: list[jax.Device]) -> Spmd:
    mesh = Mesh(np.array(devices), (AXIS,))
    whole, split = (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec(AXIS)),
    )

    def replicate(tree: Any) -> Any:
        def put(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(leaf.shape, whole, lambda index: leaf[index])

        return jax.tree.map(put, tree)

    def shard(tree: Any) -> Any:
        def put(leaf: np.ndarray) -> jax.Array:
            _split(leaf, len(local))  # the check
            return jax.make_array_from_process_local_data(split, leaf)

        return jax.tree.map(put, tree)

    def mapped(fn: Callable[[Any, Any], Any], donate: bool = False) -> Callable[[Any, Any], Any]:
        body = jax.shard_map(
            fn,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        return jax.jit(body, donate_argnums=(0,) if donate else ())

    def fetch(tree: Any) -> Any:
        return jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree))

    return Spmd(replicate, shard, mapped, fetch)


def _split(leaf: np.ndarray, parts: int) -> np.ndarray:
    """[n, ...] -> [parts, n / parts, ...]."""
    if leaf.shape[0] % parts:
        raise InputError(
            f"{leaf.shape[0]} rows cannot be split over {parts} devices; make train.batch_size a"
            " multiple of the device count"
        )
    return leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:])


def all_processes(values: np.ndarray) -> np.ndarray:
    """Concatenates every process's rows, in process order; every process must give the same number
    of rows.
    """
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.process_allgather(jnp.asarray(values), tiled=True))


def agree(inputs: dict[str, str]) -> None:
    """Checks that all processes start from the same inputs.

    Args:
      inputs: name -> fingerprint; all processes give the same names.

    Raises:
      InputError: on all processes, naming the first one that differs, and in what.
    """
    if jax.process_count() == 1:
        return
    own_N = np.array([zlib.crc32(value.encode()) for value in inputs.values()], np.uint32)
    differs_PN = (found_PN := all_processes(own_N[None])) != found_PN[0]
    if differs_PN.any():
        number = int(differs_PN.any(axis=1).argmax())
        names = [name for name, other in zip(inputs, differs_PN[number], strict=True) if other]
        raise InputError(
            f"process {number} has another {' and '.join(names)} than process 0; give all"
            " processes the same work directory and the same encoders"
        )


def of_main(values: np.ndarray) -> np.ndarray:
    """Process 0's values, on every process; with several processes in at most 32 bits."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yields `asked(step)`: whether this run has been asked to stop (SIGTERM), to be called after
    every step with its number.

    All processes get the same answer at the same step, also where only one of them was asked. JAX
    does that for several processes, with a signal handler of its own. A single process is asked
    only while the block runs, and only in the main thread.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
