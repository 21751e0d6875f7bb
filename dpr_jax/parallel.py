"""Processes, devices and threads: how this run was started, how one per-device function is mapped
over all devices, and work done ahead.

Everything that knows of more than one device or process is here; the step in training/step.py is
written for one device and names one axis, `AXIS`.
"""

import contextlib
import signal
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpr_jax import parts
from dpr_jax.errors import InputError, OtherProcessFailed, exit_status

AXIS = "devices"
# by each device when CPU processes first meet, half of it in one message: Linux' usual upper limits
# of a send buffer are 0.2 and 4 MB
FIRST_SENT_BYTES = 1 << 23

T = TypeVar("T")


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


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yields the items; a thread of its own makes the next while one is used."""
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
        `donate` is set. With `scattered` the first argument and result are as of `scatter`.
      fetch: a replicated tree -> host arrays.
      scatter: tree of host arrays -> the same tree, each array split along its first axis over all
        devices, filled up with zeros where they do not divide it; scalars are whole everywhere.
      collect: such a tree, and one of the whole arrays' shapes -> whole host arrays; all processes
        call it.
      shapes: (replicated, sharded) trees of ShapeDtypeStruct, the second with the rows of all
        processes -> what the mapped function is lowered with where there are no arrays; `scattered`
        as of `map`.
      platform: cpu, gpu or tpu.
      kind: pmap or shard_map.
    """

    replicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]
    map: Callable[..., Callable[[Any, Any], Any]]
    fetch: Callable[[Any], Any]
    scatter: Callable[[Any], Any]
    collect: Callable[[Any, Any], Any]
    shapes: Callable[..., tuple[Any, Any]]
    platform: str
    kind: str


def platform_of(devices: Sequence[jax.Device]) -> str:
    """Returns cpu, gpu or tpu, of devices that are here or not."""
    platform = devices[0].platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def spmd(
    kind: Literal["pmap", "shard_map"] | None, devices: list[jax.Device] | None = None
) -> Spmd:
    """Returns the mapping named by `train.spmd`.

    Args:
      kind: pmap, or jit of shard_map without its varying-axes check: with the check on, shard_map
        sums the gradient of replicated weights once more by itself, which makes it W times too
        large (W devices). None: pmap, on TPUs shard_map. The stacked tables of pmap, [1, rows, D],
        have another layout there than [rows, D], and all of them are copied twice in every update
        (docs/log.md).
      devices: all devices of the run, in order; None takes jax.devices(). Those of a topology that
        is not here can be mapped over and compiled for, not run.
    """
    devices = slice_by_slice(jax.devices()) if devices is None else devices
    local = [device for device in devices if device.process_index == jax.process_index()]
    if kind is None:
        kind = "shard_map" if platform_of(devices) == "tpu" else "pmap"
    mapping = (_pmap if kind == "pmap" else _shard_map)(devices, local)
    if jax.process_count() > 1 and mapping.platform == "cpu":
        _widen(mapping, len(devices), len(local))
    return mapping


def slice_by_slice(devices: list[jax.Device]) -> list[jax.Device]:
    """Sorts devices so that those of a TPU slice follow each other, in their order.

    So what neighbours exchange stays within a slice, and one part crosses the network between two.
    """
    return sorted(devices, key=lambda device: getattr(device, "slice_index", None) or 0)


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

    def scatter(tree: Any) -> Any:
        def put(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            if not leaf.ndim:
                return replicate(leaf)
            return jax.device_put(_split(parts.own_rows(leaf, devices, local), len(local)), stacked)

        return jax.tree.map(put, tree)

    def mapped(
        fn: Callable[[Any, Any], Any], donate: bool = False, scattered: bool = False
    ) -> Callable[[Any, Any], Any]:
        del scattered  # each device has its own array either way
        return jax.pmap(
            fn,
            axis_name=AXIS,
            devices=everywhere,
            donate_argnums=(0,) if donate else (),
        )

    def fetch(tree: Any) -> Any:
        return jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree))

    def collect(tree: Any, whole: Any) -> Any:
        def take(leaf: jax.Array, like: Any) -> np.ndarray:
            if not like.shape:
                return fetch(leaf)
            return _whole([part[0] for part in parts.in_order(leaf)], like, devices.index(local[0]))

        return jax.tree.map(take, tree, whole)

    def shapes(replicated: Any, sharded: Any, scattered: bool = False) -> tuple[Any, Any]:
        count = len(devices)

        def of_device(leaf: Any) -> tuple[int, ...]:
            if scattered and leaf.shape:
                return parts.rounded_up(leaf.shape[0], count) // count, *leaf.shape[1:]
            return leaf.shape

        return (
            jax.tree.map(lambda leaf: _struct(leaf, (count, *of_device(leaf))), replicated),
            jax.tree.map(lambda leaf: _struct(leaf, _split_shape(leaf.shape, count)), sharded),
        )

    platform = platform_of(devices)
    return Spmd(replicate, shard, mapped, fetch, scatter, collect, shapes, platform, "pmap")


def _struct(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, leaf.dtype)


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

    def scatter(tree: Any) -> Any:
        def put(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            if not leaf.ndim:
                return replicate(leaf)
            own = parts.own_rows(leaf, devices, local)
            return jax.make_array_from_process_local_data(split, own)

        return jax.tree.map(put, tree)

    def mapped(
        fn: Callable[[Any, Any], Any], donate: bool = False, scattered: bool = False
    ) -> Callable[[Any, Any], Any]:
        def body(first: Any, second: Any) -> Any:
            spec = PartitionSpec()
            if scattered:
                spec = jax.tree.map(lambda x: PartitionSpec(*(AXIS,) * bool(x.ndim)), first)
            return jax.shard_map(
                fn,
                mesh=mesh,
                in_specs=(spec, PartitionSpec(AXIS)),
                out_specs=(spec, PartitionSpec()) if scattered else spec,
                check_vma=False,
            )(first, second)

        return jax.jit(body, donate_argnums=(0,) if donate else ())

    def fetch(tree: Any) -> Any:
        return jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree))

    def collect(tree: Any, whole: Any) -> Any:
        def take(leaf: jax.Array, like: Any) -> np.ndarray:
            if not like.shape:
                return fetch(leaf)
            return _whole(parts.in_order(leaf), like, devices.index(local[0]))

        return jax.tree.map(take, tree, whole)

    def shapes(replicated: Any, sharded: Any, scattered: bool = False) -> tuple[Any, Any]:
        def part(leaf: Any) -> jax.ShapeDtypeStruct:
            if not scattered or not leaf.shape:
                return placed(leaf, whole)
            rows = parts.rounded_up(leaf.shape[0], len(devices))
            return placed(_struct(leaf, (rows, *leaf.shape[1:])), split)

        def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        jax.tree.map(lambda leaf: _split_shape(leaf.shape, len(devices)), sharded)  # the check
        return (
            jax.tree.map(part, replicated),
            jax.tree.map(lambda leaf: placed(leaf, split), sharded),
        )

    platform = platform_of(devices)
    return Spmd(replicate, shard, mapped, fetch, scatter, collect, shapes, platform, "shard_map")


def _whole(own_parts: list[jax.Array], like: Any, first: int) -> np.ndarray:
    """The whole array of which this process's devices, from number `first` on, have these parts."""
    own = np.concatenate([np.asarray(part) for part in own_parts])
    order = np.argsort(all_processes(np.array([first])))  # slices may stand in another order
    every = all_processes(own).reshape(len(order), *own.shape)
    return np.concatenate(every[order])[: like.shape[0]]


def _split(leaf: np.ndarray, parts: int) -> np.ndarray:
    """Splits [n, ...] into [parts, n / parts, ...]."""
    return leaf.reshape(_split_shape(leaf.shape, parts))


def _split_shape(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    if shape[0] % parts:
        raise InputError(
            f"{shape[0]} rows cannot be split over {parts} devices; make train.batch_size a"
            " multiple of the device count"
        )
    return parts, shape[0] // parts, *shape[1:]


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
