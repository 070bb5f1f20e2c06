"""A vendor of streams for ranks that are processes: one for host memory does what the streams come to."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from hetcomm._conformance.fake_device import FakeDevice
from hetcomm._conformance.fake_vendor import CAPABILITIES, QueuedCall, StreamsOnly
from hetcomm.schedule.collective import Collective
from hetcomm.types import Memory
from hetcomm.vendors.base import Availability, Capabilities, Group, Operation, VendorCommunicator

__all__ = ["HostedStreamVendor"]


class _HostedCommunicator(StreamsOnly):
    """Calls that another communicator does, on the same memory, when the stream has come to them."""

    def __init__(self, inner: VendorCommunicator, device: FakeDevice) -> None:
        super().__init__(inner.rank, inner.nranks, device)
        self._inner = inner
        self._queued: deque[QueuedCall] = deque()
        self._operation: Operation | None = None  # of the first one

    def enqueue(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None, stream: int) -> None:
        """Queue a call; it moves in `progress`.

        Raises:
            VendorError: It takes no such call, or is aborted.
        """
        self._check(collective, (in_memory, out_memory))
        call = QueuedCall(self.rank, collective, in_memory, out_memory)
        self._device.push(stream, call)
        self._queued.append(call)

    def progress(self) -> None:
        """Move the first call that is not over, if its stream has come to it.

        Raises:
            VendorError, PeerFailureError: As that of the vendor behind it.
        """
        if self._aborted:
            return
        self._inner.progress()
        while self._queued and self._queued[0].reached:
            call = self._queued[0]
            if self._operation is None:
                self._operation = self._inner.start(call.collective, call.src, call.dst)
            if not self._operation.test():
                return
            self._operation = None
            self._queued.popleft().over = True
            self._device.notify()

    def abort(self) -> None:
        """Give up what is queued: streams pass it, and nothing more is written."""
        self._aborted = True
        self._inner.abort()
        for call in self._queued:
            call.over = True
        self._device.notify()

    def drain(self, seconds: float) -> bool:
        """As the vendor behind it."""
        return self._inner.drain(seconds)

    def close(self) -> None:
        """Release the communicator behind it."""
        self._inner.close()


class HostedStreamVendor:
    """A vendor of streams for ranks that are processes.

    Args:
        inner: Does the work, on host memory.
        device: This process's.
        name: What it is called.
    """

    def __init__(self, inner: Any, device: FakeDevice, name: str = "fake") -> None:
        self.name = name
        self._inner = inner
        self._device = device
        capabilities: Capabilities = inner.capabilities
        self.capabilities = replace(capabilities, memory=CAPABILITIES.memory, streams=True)

    def availability(self) -> Availability:
        """That of the vendor behind it."""
        found: Availability = self._inner.availability()
        return found

    def create(self, group: Group) -> _HostedCommunicator:
        """A communicator over one of the vendor behind it."""
        return _HostedCommunicator(self._inner.create(group), self._device)
