"""An array in the memory of a fake device, as users of a device library have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

from hetcomm._conformance.reference import Array
from hetcomm.calls import buffers
from hetcomm.types import Memory, MemoryKind

if TYPE_CHECKING:
    from hetcomm._conformance.fake_device import FakeDevice

__all__ = ["FakeArray", "Snapshot"]


class Snapshot:
    """What an array holds when a stream comes to a point.

    Attributes:
        values: That, once `done`.
        done: Whether the stream has come to it.
    """

    def __init__(self, values: Array) -> None:
        self.values = values
        self.done = False


class FakeArray:
    """An array of a `FakeDevice`; `FakeDevice.array` makes it.

    Args:
        device: Where it lives.
        block: Its memory, as `FakeDevice.allocate` gives it.
        values: What it holds at first, with shape and dtype.
    """

    def __init__(self, device: FakeDevice, block: Memory, values: Array) -> None:
        self.device = device
        self.shape = values.shape
        self.dtype = values.dtype
        self.size, self.nbytes = values.size, values.nbytes
        self._block = block
        self._host()[...] = values  # nobody else knows of it yet

    @property
    def address(self) -> int:
        """Of its first element."""
        return self._block.address

    @property
    def memory(self) -> Memory:
        """As transports and vendors are given it; the array lives as long."""
        dtype = buffers.memory(numpy.empty(0, self.dtype), argument="dtype", rank=0, writable=False).dtype
        return Memory(self.address, self.size, dtype, self.device.kind, self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, with the device's current stream, as CuPy states it."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": self.device.current or 1,
        }

    def __len__(self) -> int:
        return int(self.shape[0])

    def put(self, values: Any, stream: int | None = None) -> None:
        """Queue the writing of new values, on the current stream unless another is given."""
        source = numpy.broadcast_to(numpy.asarray(values, self.dtype), self.shape).copy()

        def write() -> None:
            self._host()[...] = source

        self.device.queue(self._on(stream), write, writes=(self.memory,), name="the user's write")

    def snapshot(self, stream: int | None = None) -> Snapshot:
        """Queue a copy of what it holds at that point of the stream."""
        made = Snapshot(numpy.empty(self.shape, self.dtype))

        def read() -> None:
            made.values[...] = self._host()
            made.done = True

        self.device.queue(self._on(stream), read, reads=(self.memory,), name="the user's read")
        return made

    def get(self, stream: int | None = None) -> Array:
        """What it holds at that point of the stream, as a NumPy array; waits for the stream.

        Raises:
            DeviceError: As `FakeDevice.synchronize`.
        """
        made = self.snapshot(stream)
        self.device.synchronize(self._on(stream))
        return made.values

    def _on(self, stream: int | None) -> int:
        return self.device.current if stream is None else stream

    def _host(self) -> Array:
        flat = Memory(self.address, self.size, self.memory.dtype, MemoryKind.HOST)
        viewed: Array = buffers.view(flat).reshape(self.shape)
        return viewed
