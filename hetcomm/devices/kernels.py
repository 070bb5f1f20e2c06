"""Kernels on a device: `hetcomm.devices.arithmetic` compiled, loaded ahead of time, and launched through CuPy.

CuPy's own `RawModule` is not used: it compiles with subnormal numbers flushed to zero, which NumPy does not do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy

from hetcomm.devices import arithmetic
from hetcomm.errors import DeviceError
from hetcomm.types import DataType, Memory

__all__ = ["Handle", "Kernels"]

_THREADS = 256
_BLOCKS_PER_PROCESSOR = 8  # as many threads of that size as a multiprocessor holds


class Handle:
    """A stream as CuPy's functions want one: an object with the integer in `ptr`."""

    __slots__ = ("ptr",)

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class Kernels:
    """The kernels of one device.

    CuPy's exceptions come through.

    Args:
        cupy: The module.
        options: For its compiler.
        processors: Multiprocessors of the device.
        stream: On which nothing else waits, for loading.
    """

    def __init__(self, cupy: Any, options: tuple[str, ...], processors: int, stream: int) -> None:
        self._cupy = cupy
        self._options = options
        self._blocks = processors * _BLOCKS_PER_PROCESSOR
        self._stream = stream
        self._functions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def load(self, dtype: DataType, parts: Iterable[str]) -> None:
        """Make kernels of `arithmetic.kernel_name` ready to be launched without blocking; blocks, if only for a while.

        The device loads the code of a kernel when it is first launched, and may want to be idle for that: each is
        launched here, on nothing. Any thread may call this at any time.
        """
        with self._lock:
            missing = [what for what in parts if arithmetic.kernel_name(dtype, what) not in self._functions]
            if not missing:
                return
            names = [arithmetic.kernel_name(dtype, what) for what in missing]
            found = self._compiled(arithmetic.source((dtype, what) for what in missing), names)
            for what, function in zip(missing, found, strict=True):
                self._launch(function, 1, (0, 0, 0, *_scalar(dtype, what)), self._stream)
            self._cupy.cuda.runtime.streamSynchronize(self._stream)
            self._functions.update(zip(names, found, strict=True))

    def load_hold(self) -> None:
        """Compile the kernel of `hold`. The device loads it at its first launch, which should be on an open word."""
        self._functions[arithmetic.HOLD_NAME] = self._compiled(arithmetic.HOLD_SOURCE, [arithmetic.HOLD_NAME])[0]

    def run(self, dtype: DataType, what: str, src: Memory, dst: Memory, stream: int, *scalar: Any) -> None:
        """Queue a kernel, with its `factor` or `divisor` if it has one.

        Raises:
            DeviceError: An array does not begin at a multiple of its element's size (half of it, if complex).
        """
        if dst.count == 0:
            return
        if (src.address | dst.address) % (dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize):
            raise DeviceError(
                f"an array of {dtype.value} begins within an element, at {src.address:#x} or {dst.address:#x}",
                remedy="Pass arrays whose data is aligned to its dtype.",
            )
        name = arithmetic.kernel_name(dtype, what)
        if name not in self._functions:
            self.load(dtype, [what])
        per_block = _THREADS * max(1, 16 // dtype.itemsize)
        blocks = min(self._blocks, -(-dst.count // per_block))
        self._launch(self._functions[name], blocks, (dst.address, src.address, dst.count, *scalar), stream)

    def hold(self, stream: int, address: int, value: int) -> None:
        """Queue a kernel of one thread that waits for the word at `address`; `load_hold` has been called."""
        function = self._functions[arithmetic.HOLD_NAME]
        function((1,), (1,), (address, numpy.uint32(value)), 0, Handle(stream))

    def _compiled(self, source: str, names: list[str]) -> list[Any]:
        binary, _ = self._cupy.cuda.compiler.compile_using_nvrtc(source, self._options, None, "hetcomm.cu")
        module = self._cupy.cuda.function.Module()
        module.load(binary)
        return [module.get_function(name) for name in names]  # each keeps the module

    def _launch(self, function: Any, blocks: int, arguments: tuple[Any, ...], stream: int) -> None:
        function((blocks,), (_THREADS,), arguments, 0, Handle(stream))


def _scalar(dtype: DataType, what: str) -> tuple[Any, ...]:
    """Some scalar of the kind that the kernel takes, if it takes one."""
    if what == "average":
        return (arithmetic.divisor(dtype, 1),)
    return (arithmetic.factor(dtype, 1),) if what in ("fill", "multiply") else ()
