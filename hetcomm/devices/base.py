"""What the runtime asks of a device: streams, events, gates, memory, and the arithmetic that a rank does alone.

A device works through its streams: what is queued on one is done in the order it was queued, and nothing that queues
waits. Two things tie the host to that order. An `Event` tells the host that a stream has come to a point; a stream can
wait for one too. A `Gate` holds streams back until the host opens it: that is how a call returns before its messages
have moved, and the user's stream still sees the result. Streams are passed as the integers of the device's own library
(`cudaStream_t`, `hipStream_t`); 0 is its default stream.

Methods raise `DeviceError` where the device's library reports a failure. They are called from any one thread at a time,
but `prepare`, `allocate` and `open_stream` from any thread at any time; a thread other than the one that opened the
device calls `use` first. None of them may block, except `synchronize` and those that say so: a host that waits for a
device that waits for a gate of that host waits for ever.
"""

from __future__ import annotations

from typing import Any, Protocol

from hetcomm.types import DataType, Memory, MemoryKind, Number, ReduceKind

__all__ = ["Device", "Event", "Gate"]


class Event(Protocol):
    """A point in the order of a stream."""

    @property
    def handle(self) -> int:
        """What the device's `query` takes; 0 without one."""
        ...

    def done(self) -> bool:
        """Whether the stream has come to it: all that was queued before has been done."""
        ...


class Gate(Protocol):
    """Holds streams back until the host opens it, once."""

    def hold(self, stream: int) -> None:
        """What is queued on `stream` from now on waits until the gate is open."""
        ...

    def open(self) -> None:
        """Let all go on; calling it again does nothing."""
        ...


class Device(Protocol):
    """One device, as one process uses it."""

    @property
    def kind(self) -> MemoryKind:
        """Whose memory it has: `CUDA` or `ROCM`."""
        ...

    @property
    def name(self) -> str:
        """What its maker calls it, with its number, for people."""
        ...

    @property
    def query(self) -> int:
        """The address of a C function `int query(void *event)`, 0 once the event has come; 0 if there is none.

        It needs no GIL, and any thread may call it.
        """
        ...

    def use(self) -> None:
        """Make it the current device of the calling thread."""
        ...

    def owns(self, address: int) -> bool:
        """Whether `address` is in this device's memory, and not in another's of its kind or the host's."""
        ...

    # ---- streams

    def stream_of(self, array: Any) -> int:
        """The stream on which `array` is being worked on, if the caller names none.

        That is the current stream of the array's library (CuPy, PyTorch), of any other library the stream that its
        `__cuda_array_interface__` names, else the default stream.
        """
        ...

    def open_stream(self) -> int:
        """A new stream that waits for no other, not even the default one, and is served before others; may block."""
        ...

    def close_stream(self, stream: int) -> None:
        """Release a stream of `open_stream` once all that was queued on it is done; does not wait for that."""
        ...

    def capturing(self, stream: int) -> bool:
        """Whether what is queued on `stream` is being recorded into a graph instead of done."""
        ...

    def record(self, stream: int) -> Event:
        """The point that `stream` comes to once all that has been queued on it is done."""
        ...

    def follow(self, stream: int, event: Event) -> None:
        """What is queued on `stream` from now on waits for `event`, which is of this device."""
        ...

    def gate(self) -> Gate:
        """A closed gate."""
        ...

    def synchronize(self, stream: int) -> None:
        """Block until all that was queued on `stream` is done; no gate that only this thread opens may be before it."""
        ...

    # ---- memory and arithmetic

    def allocate(self, nbytes: int) -> Memory:
        """At least `nbytes` bytes (as `UINT8`), aligned to 256, which live as long as the result's `owner`.

        They come from the pool of the array library that users have. May block for other users of the device.
        """
        ...

    def prepare(self, dtype: DataType, op: ReduceKind | None) -> None:
        """Make `copy`, and with `op` all arithmetic of that op, ready to be queued without blocking; may block."""
        ...

    def copy(self, src: Memory, dst: Memory, stream: int) -> None:
        """Queue `dst = src`; equally long, not overlapping unless they are the same."""
        ...

    def fill(self, dst: Memory, op: ReduceKind, stream: int) -> None:
        """Queue `dst = ` the identity of `op`."""
        ...

    def reduce(self, src: Memory, dst: Memory, op: ReduceKind, stream: int) -> None:
        """Queue `dst = dst op src`, in that order of operands; `op` is one of `hetcomm.types.COMBINING`.

        Values are those of `hetcomm.execution.local.reduce`, bit for bit but for the payload of NaNs.
        """
        ...

    def multiply(self, src: Memory, dst: Memory, factor: Number, stream: int) -> None:
        """Queue `dst = src * factor`, as `hetcomm.execution.local.multiply`; `src` and `dst` may be the same."""
        ...

    def average(self, src: Memory, dst: Memory, nranks: int, stream: int) -> None:
        """Queue `dst = src / nranks`, as `hetcomm.execution.local.average`; `src` and `dst` may be the same."""
        ...
