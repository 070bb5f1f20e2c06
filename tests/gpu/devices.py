"""What the processes of the device and NCCL tests run; each is alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from hetcomm._conformance.reference import numpy_dtype
from hetcomm.calls.buffers import memory
from hetcomm.devices import open_device
from hetcomm.devices.base import Device
from hetcomm.execution import local
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.testing import reference, this_rank
from hetcomm.types import COMBINING, DataType, Memory, MemoryKind, Number, ReduceKind, has_meaning
from hetcomm.vendors.registry import vendor

from ..runtime.invoke import equal, inputs_of
from .arrays import fetch, put
from .stream_jobs import spinner

COUNTS = (1, 5, 1000, 70_001)
NRANKS = 3  # what is averaged over


def pairs() -> Iterator[tuple[DataType, ReduceKind]]:
    """Every dtype with every op that it has."""
    for dtype, op in itertools.product(DataType, COMBINING):
        if has_meaning(op, dtype):
            yield dtype, op


def rough(dtype: DataType, count: int, seed: int) -> Any:
    """Elements of all sizes, the extremes among them; of floating types also infinities, zeros of both signs and NaN.

    Of complex numbers these only where no operation mixes the parts, so that there is one right answer.
    """
    rng = np.random.default_rng(seed)
    if dtype is DataType.BOOL:
        return rng.random(count) < 0.5
    if dtype.is_integer:
        info = np.iinfo(dtype.value)
        array = rng.integers(info.min, info.max, count, dtype.value, endpoint=True)
        array[: min(count, 2)] = [info.min, info.max][: min(count, 2)]
        return array
    values = rng.standard_normal(2 * count) * 10.0 ** rng.integers(-3, 4, 2 * count)
    if dtype.is_complex:
        return (values[:count] + 1j * values[count:]).astype(dtype.value)
    values = values[:count]
    special = np.array([np.inf, -np.inf, 0.0, -0.0, np.nan])
    values[seed % 3 :: 7] = special[np.arange(len(values[seed % 3 :: 7])) % 5]
    return values.astype(numpy_dtype(dtype))


def agree(got: Any, wanted: Any, name: str, op: ReduceKind, dtype: DataType) -> bool:
    """Whether the device's elements are the host's, bit for bit but for the payload of NaNs.

    The host itself leaves open which of two zeros is the smaller one, and whether a product of complex numbers is
    rounded once or twice.
    """
    if dtype.is_complex and name == "reduce" and op is ReduceKind.PROD:
        return np.allclose(got, wanted, rtol=1e-5 if dtype is DataType.COMPLEX64 else 1e-13, equal_nan=True)
    if dtype.is_complex:
        got, wanted = (each.view(each.real.dtype) for each in (got, wanted))
    unsigned = f"u{got.dtype.itemsize}"
    alike = got.view(unsigned) == wanted.view(unsigned)
    if dtype.is_inexact:
        alike |= np.isnan(got.astype("f8")) & np.isnan(wanted.astype("f8"))
        if op in (ReduceKind.MIN, ReduceKind.MAX):
            alike |= got == wanted
    return bool(alike.all())


def of(array: Any) -> Memory:
    """The memory of an array on the host or on the device."""
    return memory(array, argument="array", rank=0, writable=True)


def opened() -> tuple[Device, int]:
    """The device, in use, with a stream of its own."""
    device = open_device(MemoryKind.CUDA)
    device.use()
    return device, device.open_stream()


def arithmetic() -> tuple[int, list[str]]:
    """Every operation of a device against the host's, also at odd addresses: how many, and what is wrong."""
    device, stream = opened()
    wrong, done = [], 0
    for dtype, op in pairs():
        device.prepare(dtype, op)
        for count, skip in itertools.product(COUNTS, (0, 1)):
            left, right = rough(dtype, count, 1), rough(dtype, count, 2)
            operations: dict[str, Any] = {
                "reduce": lambda place, src, dst, op=op: place.reduce(src, dst, op),
                "fill": lambda place, src, dst, op=op: place.fill(dst, op),
                "copy": lambda place, src, dst: place.copy(src, dst),
            }
            if op is ReduceKind.SUM:
                factor: Number = -3 if dtype.is_integer and dtype.is_signed else 2
                operations["multiply"] = lambda place, src, dst, f=factor: place.multiply(src, dst, f)
                operations["average"] = lambda place, src, dst: place.average(src, dst, NRANKS)
                operations["average in place"] = lambda place, src, dst: place.average(dst, dst, NRANKS)
            for name, operation in operations.items():
                src, dst = (put(np.concatenate([array[:skip], array])) for array in (left, right))
                operation(OnStream(device, stream), of(src[skip:]), of(dst[skip:]))
                device.synchronize(stream)
                on_host = right.copy()
                operation(local, of(left.copy()), of(on_host))
                done += 1
                got, what = fetch(dst), f"{name} {op.value} of {count} x {dtype.value}, {skip} further on"
                if not agree(got[skip:], on_host, name, op, dtype):
                    wrong.append(what)
                elif got[:skip].tobytes() != right[:skip].tobytes():
                    wrong.append(f"{what}, wrote before its memory")
    device.close_stream(stream)
    return done, wrong


class OnStream:
    """The operations of a device with those of `hetcomm.execution.local`'s arguments."""

    def __init__(self, device: Device, stream: int) -> None:
        self._device, self._stream = device, stream

    def __getattr__(self, name: str) -> Any:
        return lambda *args: getattr(self._device, name)(*args, self._stream)


def events_and_gates() -> list[str]:
    """Events fire when their work is done and not before; gates hold streams and never the host."""
    import cupy

    device, stream = opened()
    spin, wrong = spinner(), []
    other = cupy.cuda.Stream(non_blocking=True)
    array, seen = cupy.zeros(1000), cupy.zeros(1000)
    cupy.cuda.Device().synchronize()
    entry = device.record(other.ptr)
    device.synchronize(other.ptr)
    if not entry.done():
        wrong.append("an event of an idle stream has not fired")
    with other:
        spin(0.05)
        late = device.record(other.ptr)
        if late.done():
            wrong.append("an event behind 50 ms of work fired at once")
        array.fill(1)
    after = device.record(other.ptr)
    device.follow(stream, after)
    device.copy(of(array), of(seen), stream)
    device.synchronize(stream)
    if not late.done() or not (seen.get() == 1).all():
        wrong.append("a stream that follows an event ran ahead")
    gates = [device.gate() for _ in range(3)]
    with other:
        for gate in gates:
            gate.hold(other.ptr)
        array.fill(2)
    gates[1].hold(stream)  # one gate may hold several streams
    device.copy(of(array), of(seen), stream)
    held, copied = device.record(other.ptr), device.record(stream)
    time.sleep(0.05)
    if held.done() or copied.done():
        wrong.append("a closed gate let something pass")
    for number in (2, 1, 0):
        gates[number].open()
        gates[number].open()
        if number == 1:
            device.synchronize(stream)  # it was held by this gate alone
    device.synchronize(other.ptr)
    if not (array.get() == 2).all():
        wrong.append("what was behind the gates is not done")
    gates[0].hold(other.ptr)  # open ones hold nothing
    device.synchronize(other.ptr)
    device.close_stream(stream)
    return wrong


def memory_of_the_device() -> list[str]:
    """Allocations are aligned, belong to the device and live as long as they are held; foreign addresses do not."""
    import cupy

    device, stream = opened()
    wrong = []
    held = [device.allocate(nbytes) for nbytes in (1, 1000, 1 << 20)]
    for each, nbytes in zip(held, (1, 1000, 1 << 20), strict=True):
        if each.nbytes < nbytes or each.address % 256 or not device.owns(each.address):
            wrong.append(f"allocate({nbytes}) gave {each}")
    host = np.zeros(10)
    if device.owns(host.ctypes.data) or device.owns(0):
        wrong.append("it owns what is the host's")
    for name, current in {"null": cupy.cuda.Stream.null, "own": cupy.cuda.Stream(non_blocking=True)}.items():
        with current:
            if device.stream_of(cupy.zeros(3)) != current.ptr:
                wrong.append(f"stream_of under the {name} stream")
    device.close_stream(stream)
    return wrong


def nccl_alone() -> tuple[int, list[str]]:
    """Everything NCCL declares, on a communicator of one rank, in stream order: how many calls, and what is wrong."""
    device, stream = opened()
    found = vendor("nccl")
    comm: Any = found.create(this_rank())
    wrong, done = [], 0
    for kind, dtype in itertools.product(found.capabilities.collectives, found.capabilities.dtypes):
        for op in found.capabilities.ops if kind.reduces else (None,):
            if op is not None and not has_meaning(op, dtype):
                continue
            for count, in_place in itertools.product((0, 1, 1001), (False, True)):
                root = 0 if kind.has_root else None
                collective = Collective(kind, 1, count, dtype, op, root, in_place or kind is CollectiveKind.BROADCAST)
                if not found.capabilities.takes(collective, MemoryKind.CUDA):
                    continue
                given = inputs_of(collective, done)[0]
                out = put(given if collective.in_place else np.zeros(collective.out_count(0), given.dtype))
                source = None if collective.in_place else put(given)
                device.follow(stream, device.record(0))
                comm.enqueue(collective, source if source is None else of(source), of(out), stream)
                device.synchronize(stream)
                comm.progress()
                done += 1
                wanted = reference(collective, [given])[0]
                if wanted is not None and not equal(fetch(out), wanted):
                    wrong.append(f"{collective}: {fetch(out)} instead of {wanted}")
    comm.close()
    device.close_stream(stream)
    return done, wrong
