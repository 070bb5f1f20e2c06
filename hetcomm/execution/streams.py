"""Where calls on device arrays stand in the order of their users' streams.

A device works through a stream in order, and the host queues ahead of it. So a call does not wait for its input: it
notes the point of the stream at which the input is there (`Ordering.entry`), and nothing of it touches the arrays
before. Nor does it wait for its output: it queues a wait on the stream, which ends when the call is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hetcomm.devices import Devices
from hetcomm.devices.base import Device, Event, Gate
from hetcomm.errors import UsageError
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind

__all__ = ["Ordering", "Streams", "handle_of"]


def handle_of(stream: Any, array: Any, device: Device, rank: int) -> int:
    """The stream that a caller means.

    Args:
        stream: An integer, an object with `.ptr` (CuPy), `.cuda_stream` (PyTorch) or `__cuda_stream__`, or None for the
            one on which `array` is being worked on.
        array: An array of the call.
        device: Where it lives.
        rank: Of this process, for messages.

    Raises:
        UsageError: It is none of these.
    """
    if stream is None:
        return device.stream_of(array)
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        stream = (protocol() if callable(protocol) else protocol)[1]
    for name in ("ptr", "cuda_stream"):
        stream = getattr(stream, name, stream)
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return int(stream)
    raise UsageError(
        f"argument 'stream' is {stream!r}, which is no stream",
        remedy="Pass a CuPy or PyTorch stream, its handle as an int, or None for the current one.",
        rank=rank,
    )


class Ordering:
    """The place of one call in the order of its stream.

    Args:
        device: Where its arrays live.
        stream: The user's stream.
        memory: One of its arrays.
        rank: Of this process, for messages.

    Attributes:
        device, stream: As given.
        entry: The point of the stream at which the call may begin to touch its arrays.
        exit: The points of hetcomm's own streams at which it is over, once nothing of it is left for the host to do.

    Raises:
        UsageError: The stream is being captured into a graph.
    """

    __slots__ = ("_array", "_gate", "_over", "device", "entry", "exit", "stream")

    def __init__(self, device: Device, stream: int, memory: Memory, rank: int) -> None:
        if device.capturing(stream):
            raise UsageError(
                "the stream is being captured into a graph, which cannot hold messages to other ranks",
                remedy="Call hetcomm outside of the capture, or on a stream that is not captured.",
                rank=rank,
            )
        self.device = device
        self.stream = stream
        self.entry: Event = device.record(stream)
        self.exit: tuple[Event, ...] | None = None
        self._array = memory.owner
        self._gate: Gate | None = None
        self._over = False

    def hold(self, stream: int | None = None) -> None:
        """What is queued on `stream`, the call's own unless given, from now on waits until the call is over."""
        target = self.stream if stream is None else stream
        if self._over:
            return
        if self.exit is not None:
            for event in self.exit:
                self.device.follow(target, event)
            return
        if self._gate is None:
            self._gate = self.device.gate()
        self._gate.hold(target)

    def hold_current(self) -> None:
        """The same for the stream on which the call's array is being worked on now."""
        self.hold(self.device.stream_of(self._array))

    def release(self) -> None:
        """The call is over, well or not: let all go on."""
        self._over = True
        self._array = None
        if self._gate is not None:
            self._gate.open()


class Streams:
    """Puts the calls of one rank of one communicator in the order of their streams.

    Args:
        devices: Those of this process.
        serve: Makes sure that calls move while the user's thread does something else.
        opener: Opens what will be needed on the device of a kind.
        rank: Of this process, for messages.
    """

    def __init__(
        self,
        devices: Devices,
        serve: Callable[[Device], None],
        opener: Callable[[MemoryKind], object],
        rank: int,
    ) -> None:
        self._devices = devices
        self._opener = opener
        self._opened: set[MemoryKind] = set()
        self._serve = serve
        self._rank = rank
        self._prepared: set[tuple[MemoryKind, DataType, ReduceKind | None]] = set()

    def prepare(self, memories: Sequence[Memory | None], op: ReduceKind | None) -> None:
        """Make the device of a call's arrays ready; nothing to do for host arrays.

        May block for other users of the device. So the caller holds no lock that something under way may need.

        Raises:
            DeviceError: The device cannot be used.
            UsageError: The arrays are on another device.
        """
        for memory in memories:
            if memory is None or memory.kind is MemoryKind.HOST:
                continue
            device = self._devices.get(memory.kind)
            if memory.count and not device.owns(memory.address):
                raise UsageError(
                    f"an array of this call is not on {device.name}, which was this process's current device when "
                    "hetcomm first used one",
                    remedy="Let each rank work on one device, and make it the current one before the first call.",
                    rank=self._rank,
                )
            if memory.kind not in self._opened:
                self._opener(memory.kind)
                self._opened.add(memory.kind)
            key = memory.kind, memory.dtype, op
            if key not in self._prepared:
                device.prepare(memory.dtype, op)
                self._prepared.add(key)
            self._serve(device)

    def order(self, memories: Sequence[Memory | None], stream: Any) -> Ordering | None:
        """The place of a call in the order of its stream, from now on; None for host arrays.

        Raises:
            UsageError: `stream` is none, or is being captured.
        """
        for memory in memories:
            if memory is not None and memory.kind is not MemoryKind.HOST:
                device = self._devices.get(memory.kind)
                return Ordering(device, handle_of(stream, memory.owner, device, self._rank), memory, self._rank)
        return None
