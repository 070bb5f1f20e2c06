"""A module that looks like CuPy with one device, as far as `hetcomm.devices.gpu` looks: it notes what it is asked for.

What is queued is noted and not done, and events come when the test says so.
"""

# ruff: noqa: N802, N815 -- the names are CuPy's

from __future__ import annotations

import ctypes
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BUSY = 600


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError{status}")
        self.status = status


class CUDADriverError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"CUDA_ERROR_{status}")
        self.status = status


class CompileException(Exception):
    pass


class Array:
    """What `cupy.ndarray` is here."""


class FakeEvent:
    made = 0

    def __init__(self, disable_timing: bool = False) -> None:
        assert disable_timing
        FakeEvent.made += 1
        self.ptr = 0xE000 + FakeEvent.made


class FakeStream:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FakeRuntime:
    """`cupy.cuda.runtime`; `log` has what was queued, `status` what events and streams answer."""

    CUDARuntimeError = CUDARuntimeError
    memoryTypeDevice, memoryTypeManaged, memcpyDeviceToDevice = 2, 3, 3
    cudaDevAttrCanFlushRemoteWrites = 98

    def __init__(self, is_hip: bool, devices: int) -> None:
        self.is_hip = is_hip
        self.devices = devices
        self.device = 0
        self.log: list[tuple[Any, ...]] = []
        self.status: dict[int, int] = {}
        self.pointers: dict[int, tuple[int, int]] = {}
        self.capture: Exception | bool = False
        self.pages: list[Any] = []
        self.flushes = 1

    def getDeviceCount(self) -> int:
        if self.devices < 0:
            raise CUDARuntimeError(100)
        return self.devices

    def getDevice(self) -> int:
        return self.device

    def setDevice(self, number: int) -> None:
        self.log.append(("use", number))

    def getDeviceProperties(self, _: int) -> dict[str, Any]:
        return {"name": b"Fake GPU", "multiProcessorCount": 2}

    def deviceGetAttribute(self, attribute: int, _: int) -> int:
        assert attribute == self.cudaDevAttrCanFlushRemoteWrites
        assert not self.is_hip
        return self.flushes

    def driverGetVersion(self) -> int:
        return 13000

    def runtimeGetVersion(self) -> int:
        return 12090

    def hostAlloc(self, nbytes: int, flags: int) -> int:
        self.log.append(("pinned", nbytes, flags))
        self.pages.append(ctypes.create_string_buffer(b"\xff" * nbytes))
        return ctypes.addressof(self.pages[-1])

    def check_status(self, status: int) -> None:
        if status:
            raise CUDARuntimeError(status)

    def pointerGetAttributes(self, address: int) -> Any:
        if address not in self.pointers:
            raise CUDARuntimeError(1)
        device, kind = self.pointers[address]
        return types.SimpleNamespace(device=device, type=kind)

    def streamIsCapturing(self, _: int) -> bool:
        if isinstance(self.capture, Exception):
            raise self.capture
        return self.capture

    def streamQuery(self, stream: int) -> int:
        return self.status.get(stream, 0)

    def streamDestroy(self, stream: int) -> None:
        self.log.append(("destroy", stream))

    def streamSynchronize(self, stream: int) -> None:
        self.log.append(("synchronize", stream))

    def streamWaitEvent(self, stream: int, event: int) -> None:
        self.log.append(("follow", stream, event))

    def eventRecord(self, event: int, stream: int) -> None:
        self.log.append(("record", event, stream))

    def eventQuery(self, event: int) -> int:
        return self.status.get(event, 0)

    def memcpyAsync(self, dst: int, src: int, nbytes: int, kind: int, stream: int) -> None:
        self.log.append(("copy", dst, src, nbytes, kind, stream))


class FakeModule:
    """Loads text: a function is there if its name is in the source."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    def load(self, binary: bytes) -> None:
        self.source = binary.decode()

    def get_function(self, name: str) -> Any:
        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...], shared: int, stream: Any) -> None:
            assert shared == 0
            self._runtime.log.append(("launch", name, grid, block, arguments, stream.ptr))

        return launch


class FakeDriver:
    """Stands in for `hetcomm.devices.driver.Driver`."""

    can_wait = True
    refuses = 0

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime
        self.query = 0xC0DE
        self._streams = iter(range(0x5000, 0x6000))

    def create_stream(self) -> int:
        return next(self._streams)

    def ignore_captures(self) -> None:
        self._runtime.log.append(("ignore captures",))

    def wait_value(self, stream: int, address: int, value: int, flush: bool) -> None:
        if self.refuses:
            raise CUDADriverError(self.refuses)
        self._runtime.log.append(("wait", stream, address, value, flush))


def make(is_hip: bool = False, devices: int = 1) -> Any:
    """The module; `current` is the pointer of CuPy's current stream, `compiled` what was compiled, with its options."""
    cupy: Any = types.ModuleType("cupy")
    runtime = FakeRuntime(is_hip, devices)
    cupy.__version__ = "14.0"
    cupy.ndarray = Array
    cupy.current = 0
    cupy.compiled = []
    cupy.fails = None

    def compile_using_nvrtc(source: str, options: tuple[str, ...], arch: None, filename: str) -> tuple[bytes, None]:
        if cupy.fails is not None:
            raise cupy.fails
        cupy.compiled.append((source, options))
        return source.encode(), None

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    def alloc(nbytes: int) -> Any:
        if cupy.fails is not None:
            raise cupy.fails
        return types.SimpleNamespace(ptr=0x7000, nbytes=nbytes)

    cupy.cuda = types.SimpleNamespace(
        runtime=runtime,
        driver=types.SimpleNamespace(CUDADriverError=CUDADriverError, check_status=None),
        compiler=types.SimpleNamespace(CompileException=CompileException, compile_using_nvrtc=compile_using_nvrtc),
        function=types.SimpleNamespace(Module=lambda: FakeModule(runtime)),
        Event=FakeEvent,
        Stream=lambda non_blocking: FakeStream(0x99),
        alloc=alloc,
        get_current_stream=lambda device: FakeStream(cupy.current),
    )
    return cupy
