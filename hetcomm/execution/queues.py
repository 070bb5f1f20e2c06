"""What an execution queues on a device: arithmetic on a stream, and marks that tell when a step is complete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from hetcomm.devices.base import Device, Event
from hetcomm.schedule.steps import CommId
from hetcomm.types import Memory, Number, ReduceKind

__all__ = ["Arithmetic", "Mark", "Queue"]


class Arithmetic(Protocol):
    """What a rank computes alone: `hetcomm.execution.local`, or a stream of a device."""

    def copy(self, src: Memory, dst: Memory) -> None: ...
    def fill(self, dst: Memory, op: ReduceKind) -> None: ...
    def reduce(self, src: Memory, dst: Memory, op: ReduceKind) -> None: ...
    def multiply(self, src: Memory, dst: Memory, factor: Number) -> None: ...
    def average(self, src: Memory, dst: Memory, nranks: int) -> None: ...


class Queue:
    """The streams of one executor on one device: one for local steps, whose `Arithmetic` it is, and one for each vendor
    communicator.

    Args:
        device: Where they are.
        comms: The vendor communicators.

    Attributes:
        device: As given.
        stream: That of local steps, which never waits for a vendor.
    """

    def __init__(self, device: Device, comms: Iterable[CommId]) -> None:
        self.device = device
        self.stream = device.open_stream()
        self._lanes = {comm: device.open_stream() for comm in comms}
        self._last: tuple[int, Event] | None = None  # the last vendor call: its stream, and the point before it

    def lane(self, comm: CommId) -> int:
        """The stream of a vendor communicator, for its next call.

        Calls start in the order in which they are queued, on whatever communicators: kernels of several that start in
        different orders on different ranks could take the device from one another.
        """
        stream = self._lanes[comm]
        if self._last is not None and self._last[0] != stream:
            self.device.follow(stream, self._last[1])
        return stream

    def called(self, stream: int, before: Event) -> None:
        """A vendor call has been queued on `stream`, at the point `before`."""
        self._last = stream, before

    def enter(self, event: Event) -> None:
        """Let all streams wait for the beginning of a call."""
        for stream in (self.stream, *self._lanes.values()):
            self.device.follow(stream, event)

    def close(self) -> None:
        """Release the streams."""
        for stream in (self.stream, *self._lanes.values()):
            self.device.close_stream(stream)

    def copy(self, src: Memory, dst: Memory) -> None:
        self.device.copy(src, dst, self.stream)

    def fill(self, dst: Memory, op: ReduceKind) -> None:
        self.device.fill(dst, op, self.stream)

    def reduce(self, src: Memory, dst: Memory, op: ReduceKind) -> None:
        self.device.reduce(src, dst, op, self.stream)

    def multiply(self, src: Memory, dst: Memory, factor: Number) -> None:
        self.device.multiply(src, dst, factor, self.stream)

    def average(self, src: Memory, dst: Memory, nranks: int) -> None:
        self.device.average(src, dst, nranks, self.stream)


@dataclass(frozen=True, slots=True)
class Mark:
    """The completion of a queued step, as an `Operation`."""

    event: Event

    def test(self) -> bool:
        return self.event.done()
