"""The few functions of libcuda and libamdhip64 that CuPy does not offer, through ctypes.

The library is the one that CuPy has loaded; a second copy would have other devices and streams. All return a status,
which the caller's `check` turns into an exception. ctypes releases the GIL around them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass

from hetcomm.errors import DeviceError
from hetcomm.types import MemoryKind

__all__ = ["Driver"]

_NON_BLOCKING = 1
_GREATEST_PRIORITY = -1000  # lower numbers go first; both libraries clamp it to what the device has
_THREAD_LOCAL = 1
_WAIT_AT_LEAST = 0  # modulo 2^32
_FLUSH = 1 << 30


@dataclass(frozen=True, slots=True)
class _Names:
    """What the functions are called; `wait_value` is None where there is none that reads mapped host memory."""

    libraries: tuple[str, ...]
    create_stream: str
    exchange_capture_mode: str
    query_event: str
    wait_value: str | None


_NAMES = {
    MemoryKind.CUDA: _Names(
        ("libcuda.so.1",),
        "cuStreamCreateWithPriority",
        "cuThreadExchangeStreamCaptureMode",
        "cuEventQuery",
        "cuStreamWaitValue32_v2",
    ),
    # hipStreamWaitValue32 is documented for the 8 bytes of one hipMallocSignalMemory each, and is a kernel itself.
    MemoryKind.ROCM: _Names(
        ("libamdhip64.so.7", "libamdhip64.so.6"),
        "hipStreamCreateWithPriority",
        "hipThreadExchangeStreamCaptureMode",
        "hipEventQuery",
        None,
    ),
}


class Driver:
    """The driver of one kind of device, in this process.

    Args:
        kind: Which.
        check: Raises for a status that is not 0.

    Attributes:
        query: Address of the C function that says 0 once an event has come.
        can_wait: Whether this driver knows waiting for a value; the device may still refuse it.

    Raises:
        DeviceError: CuPy has loaded no such library, or one that is too old.
    """

    def __init__(self, kind: MemoryKind, check: Callable[[int], None]) -> None:
        names = _NAMES[kind]
        library = _loaded(names.libraries)
        self._check = check
        try:
            self._create_stream = library[names.create_stream]
            self._exchange_capture_mode = library[names.exchange_capture_mode]
            self.query = ctypes.cast(library[names.query_event], ctypes.c_void_p).value or 0
        except AttributeError as error:
            raise DeviceError(f"{library._name} is too old: {error}", remedy="Update the driver.") from error
        self._create_stream.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint, ctypes.c_int)
        self._exchange_capture_mode.argtypes = (ctypes.POINTER(ctypes.c_int),)
        wait = getattr(library, names.wait_value, None) if names.wait_value is not None else None
        self.can_wait = wait is not None
        if wait is not None:
            wait.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint)
            self._wait = wait

    def create_stream(self) -> int:
        """A stream of the current device that does not wait for its default one, of the greatest priority."""
        stream = ctypes.c_void_p()
        self._check(self._create_stream(ctypes.byref(stream), _NON_BLOCKING, _GREATEST_PRIORITY))
        return stream.value or 0

    def ignore_captures(self) -> None:
        """Let the calling thread ask for events and memory while other threads record graphs.

        A capture of mode 'global', which is PyTorch's default, otherwise fails as soon as any thread does.
        """
        mode = ctypes.c_int(_THREAD_LOCAL)
        self._check(self._exchange_capture_mode(ctypes.byref(mode)))

    def wait_value(self, stream: int, address: int, value: int, flush: bool) -> None:
        """Queue a wait until the word at `address` is at least `value`, modulo 2^32; `can_wait` is true.

        With `flush`, which some devices support, what other devices wrote before the word is seen behind the wait.
        """
        self._check(self._wait(stream, address, value, _WAIT_AT_LEAST | (_FLUSH if flush else 0)))


def _loaded(names: tuple[str, ...]) -> ctypes.CDLL:
    for name in names:
        try:
            return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            continue  # not that one
    raise DeviceError(
        f"CuPy has loaded none of {', '.join(names)}",
        remedy="Install a CuPy made for this machine's driver; 'hetcomm doctor' shows both.",
    )
