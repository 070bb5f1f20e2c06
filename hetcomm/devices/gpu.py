"""A CUDA or ROCm device, driven with CuPy: one class, the differences as data.

What the runtime relies on beyond the words of `hetcomm.devices.base`:

* A gate is a word in host memory and a wait for it in the stream. Where the device can, the stream itself waits;
  elsewhere, and on ROCm, a kernel of one thread does. Which one is logged once.
* A device has a few hardware queues (CUDA 8, or `CUDA_DEVICE_MAX_CONNECTIONS`, up to 32; ROCm 4), and of two streams in
  one queue the first can hold up the other. Work that opens a gate must not end up behind that gate, so streams of
  `open_stream` have the greatest priority, for which there are other queues, and nothing else is queued by the runtime.
* Handle 2 is the default stream of the *calling* thread, so it must be used on the thread that it was given on.
* Loading code and freeing device memory may wait until the device is idle, which it is not while a gate is closed:
  `prepare` comes first.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from hetcomm.devices import arithmetic
from hetcomm.devices.base import Event, Gate
from hetcomm.devices.driver import Driver
from hetcomm.devices.gates import Gates
from hetcomm.devices.kernels import Kernels
from hetcomm.devices.library import DIFFERENCES, described, load_cupy
from hetcomm.types import DataType, Memory, MemoryKind, Number, ReduceKind, identity

__all__ = ["Gpu", "current_gpu"]

_log = logging.getLogger(__name__)

# Of both libraries: cudaError_t, CUresult and hipError_t agree on these.
_INVALID_VALUE = 1
_NOT_READY = 600
_NOT_SUPPORTED = 801
_CAPTURE_IMPLICIT = 906


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _reported(method: Callable[Concatenate[Gpu, _P], _R]) -> Callable[Concatenate[Gpu, _P], _R]:
    """Raise what CuPy raises as a `DeviceError`."""

    @functools.wraps(method)
    def call(self: Gpu, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except self._failures as error:
            raise described(error, self.name) from error

    return call


class _GpuEvent:
    """An event of CuPy's, which goes back to its pool with this object: streams that wait have noted its point."""

    __slots__ = ("_check", "_pool", "_query", "event")

    def __init__(self, event: Any, pool: list[Any], runtime: Any, check: Callable[[int], None]) -> None:
        self.event = event
        self._pool = pool
        self._query = runtime.eventQuery
        self._check = check

    @property
    def handle(self) -> int:
        return int(self.event.ptr)

    def done(self) -> bool:
        status = self._query(self.event.ptr)
        if status not in (0, _NOT_READY):
            self._check(status)
        return bool(status == 0)

    def __del__(self) -> None:
        self._pool.append(self.event)


class Gpu:
    """The calling thread's current CUDA or ROCm device.

    Args:
        kind: `CUDA` or `ROCM`.

    Attributes:
        number: Of the device, as CuPy counts.
        stream_waits: Whether streams wait at gates by themselves, not in a kernel.

    Raises:
        DeviceError: CuPy is not installed, is made for the other kind, or finds no device.
    """

    def __init__(self, kind: MemoryKind) -> None:
        self._kind = kind
        self._differences = DIFFERENCES[kind]
        self._cupy = cupy = load_cupy(kind)
        self._runtime = runtime = cupy.cuda.runtime
        self._failures = (RuntimeError, MemoryError, cupy.cuda.compiler.CompileException)
        self._name = f"a {kind.value} device"
        self._events: list[Any] = []
        self._closing: list[int] = []
        self.number = -1
        self.stream_waits = False
        self._open(cupy, runtime)

    @property
    def kind(self) -> MemoryKind:
        return self._kind

    @property
    def name(self) -> str:
        return self._name

    @property
    def query(self) -> int:
        return self._driver.query

    def versions(self) -> dict[str, str]:
        """Of CuPy, and of the driver and the runtime library as their makers number them."""
        return {
            "cupy": str(self._cupy.__version__),
            "driver": str(self._runtime.driverGetVersion()),
            "runtime": str(self._runtime.runtimeGetVersion()),
        }

    @_reported
    def use(self) -> None:
        """Make it the current device of the calling thread, which from then on may work while others record graphs."""
        self._runtime.setDevice(self.number)
        self._driver.ignore_captures()

    @_reported
    def owns(self, address: int) -> bool:
        runtime = self._runtime
        try:
            found = runtime.pointerGetAttributes(address)
        except runtime.CUDARuntimeError as error:
            if error.status == _INVALID_VALUE:  # ROCm's answer for host memory that it does not know
                return False
            raise
        return found.device == self.number and found.type in (runtime.memoryTypeDevice, runtime.memoryTypeManaged)

    # ---- streams

    @_reported
    def stream_of(self, array: Any) -> int:
        cupy, torch = self._cupy, sys.modules.get("torch")
        if isinstance(array, cupy.ndarray):
            return int(cupy.cuda.get_current_stream(self.number).ptr)
        if torch is not None and isinstance(array, torch.Tensor):
            return int(torch.cuda.current_stream(array.device).cuda_stream)
        interface = getattr(array, "__cuda_array_interface__", None) or {}
        return int(interface.get("stream") or 0)

    @_reported
    def open_stream(self) -> int:
        self._destroy_idle()
        return self._driver.create_stream()

    @_reported
    def close_stream(self, stream: int) -> None:
        # Destroying waits for the stream on ROCm, so one that is busy is kept until a later call finds it idle.
        self._closing.append(stream)
        self._destroy_idle()

    @_reported
    def capturing(self, stream: int) -> bool:
        runtime = self._runtime
        try:
            return bool(runtime.streamIsCapturing(stream))
        except runtime.CUDARuntimeError as error:
            if error.status == _CAPTURE_IMPLICIT:  # the default stream, which may not be used while others record
                return True
            raise
        except RuntimeError:  # CuPy's for a capture that something has made invalid
            return True

    @_reported
    def record(self, stream: int) -> Event:
        cuda = self._cupy.cuda
        event = self._events.pop() if self._events else cuda.Event(disable_timing=True)
        found = _GpuEvent(event, self._events, self._runtime, self._check_runtime)
        self._runtime.eventRecord(event.ptr, stream)
        return found

    @_reported
    def follow(self, stream: int, event: Event) -> None:
        self._runtime.streamWaitEvent(stream, event.handle)

    @_reported
    def gate(self) -> Gate:
        return self._gates.new()

    @_reported
    def synchronize(self, stream: int) -> None:
        self._runtime.streamSynchronize(stream)

    # ---- memory and arithmetic

    @_reported
    def allocate(self, nbytes: int) -> Memory:
        """At least `nbytes` bytes as `UINT8`, which live as long as the result's `owner`.

        They may be used on any stream. The owner must live until all of them are done with it: the bytes are given out
        again without waiting for any.
        """
        # CuPy's pool keeps what was freed on one stream for that stream. This one never has work, so what it gives out
        # has none pending either, whatever the streams of its users.
        with self._quiet:
            pointer = self._cupy.cuda.alloc(max(1, nbytes))
        self._runtime.streamSynchronize(self._quiet.ptr)  # for allocators that are ordered in the stream
        return Memory(int(pointer.ptr), nbytes, DataType.UINT8, self._kind, pointer)

    @_reported
    def prepare(self, dtype: DataType, op: ReduceKind | None) -> None:
        if op is not None:
            self._kernels.load(dtype, arithmetic.kernels_of(op))

    @_reported
    def copy(self, src: Memory, dst: Memory, stream: int) -> None:
        if dst.count and src.address != dst.address:
            runtime = self._runtime
            runtime.memcpyAsync(dst.address, src.address, dst.nbytes, runtime.memcpyDeviceToDevice, stream)

    @_reported
    def fill(self, dst: Memory, op: ReduceKind, stream: int) -> None:
        value = arithmetic.factor(dst.dtype, identity(op, dst.dtype))
        self._kernels.run(dst.dtype, "fill", dst, dst, stream, value)

    @_reported
    def reduce(self, src: Memory, dst: Memory, op: ReduceKind, stream: int) -> None:
        self._kernels.run(dst.dtype, op.value, src, dst, stream)

    @_reported
    def multiply(self, src: Memory, dst: Memory, factor: Number, stream: int) -> None:
        self._kernels.run(dst.dtype, "multiply", src, dst, stream, arithmetic.factor(dst.dtype, factor))

    @_reported
    def average(self, src: Memory, dst: Memory, nranks: int, stream: int) -> None:
        self._kernels.run(dst.dtype, "average", src, dst, stream, arithmetic.divisor(dst.dtype, nranks))

    # ---- how it is opened

    @_reported
    def _open(self, cupy: Any, runtime: Any) -> None:
        self.number = runtime.getDevice()
        runtime.setDevice(self.number)  # makes its context the current one, for the driver's functions
        properties = runtime.getDeviceProperties(self.number)
        self._name = f"{properties['name'].decode()} (device {self.number})"
        self._quiet = cupy.cuda.Stream(non_blocking=True)
        self._driver = Driver(self._kind, cupy.cuda.driver.check_status)
        processors = properties["multiProcessorCount"]
        self._kernels = Kernels(cupy, self._differences.options, processors, self._quiet.ptr)
        self._flush = self._kind is MemoryKind.CUDA and bool(
            runtime.deviceGetAttribute(runtime.cudaDevAttrCanFlushRemoteWrites, self.number)
        )
        self.stream_waits = self._driver.can_wait
        self._gates = Gates(lambda nbytes: int(runtime.hostAlloc(nbytes, self._differences.pinned)), self._hold)
        if self.stream_waits:
            self._try_gate()
        if not self.stream_waits:
            self._kernels.load_hold()
            self._try_gate()
        _log.info(
            "%s: streams wait for messages %s", self._name, "by themselves" if self.stream_waits else "in a kernel"
        )

    def _try_gate(self) -> None:
        """Pass an open gate, which finds out whether streams can wait and loads what they need for it."""
        gate = self._gates.new()
        gate.open()
        try:
            gate.hold(self._quiet.ptr)
        except self._cupy.cuda.driver.CUDADriverError as error:
            if error.status != _NOT_SUPPORTED or not self.stream_waits:
                raise
            self.stream_waits = False
        self._runtime.streamSynchronize(self._quiet.ptr)

    def _hold(self, stream: int, address: int, value: int) -> None:
        if self.stream_waits:
            self._driver.wait_value(stream, address, value, self._flush)
        else:
            self._kernels.hold(stream, address, value)

    def _check_runtime(self, status: int) -> None:
        try:
            self._runtime.check_status(status)
        except RuntimeError as error:
            raise described(error, self._name) from error

    def _destroy_idle(self) -> None:
        runtime, busy = self._runtime, []
        for stream in self._closing:
            if runtime.streamQuery(stream) == _NOT_READY:
                busy.append(stream)
            else:
                runtime.streamDestroy(stream)
        self._closing = busy


_opened: dict[tuple[MemoryKind, int], Gpu] = {}


def current_gpu(kind: MemoryKind) -> Gpu:
    """The calling thread's current device, opened once in a process.

    Raises:
        DeviceError: As `Gpu`.
    """
    cupy = load_cupy(kind)
    try:
        number = int(cupy.cuda.runtime.getDevice())
    except RuntimeError:
        return Gpu(kind)  # which says what is wrong
    found = _opened.get((kind, number))
    if found is None:
        found = _opened[kind, number] = Gpu(kind)
    return found
