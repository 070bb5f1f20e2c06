"""A transport that tells a fake device which of its bytes messages read and write, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hetcomm._conformance.fake_device import FakeDevice
from hetcomm._conformance.fake_scheduler import Watch
from hetcomm._ext import ucp
from hetcomm.transport.base import Herald, Request
from hetcomm.types import MemoryKind

__all__ = ["WatchedRequest", "WatchedTransport"]


class _Use:
    """A message's use of memory: the device watches it, and if the memory is its own, the binding may not touch it."""

    def __init__(self, device: FakeDevice, watch: Watch, address: int, nbytes: int) -> None:
        self._watch = watch
        self._guarded = (address, nbytes) if nbytes and device.owns(address) else None
        if self._guarded is not None:
            ucp.guard(*self._guarded)

    def over(self) -> None:
        """It has ended; calling it again does nothing."""
        self._watch.over()
        if self._guarded is not None:
            ucp.unguard(*self._guarded)
            self._guarded = None


class WatchedRequest:
    """A message; until the host has seen that it is complete, its bytes are in use."""

    def __init__(self, inner: Request, watch: _Use) -> None:
        self.inner = inner
        self._watch = watch

    @property
    def nbytes(self) -> int:
        """Bytes that arrived."""
        return self.inner.nbytes

    def test(self) -> bool:
        """Whether it has completed.

        Raises:
            TransportError: As that of the transport behind it.
        """
        try:
            complete = self.inner.test()
        except BaseException:
            self._watch.over()
            raise
        if complete:
            self._watch.over()
        return complete

    def cancel(self) -> None:
        """Ask for it to be cancelled."""
        self.inner.cancel()


class WatchedTransport:
    """A `hetcomm.transport.base.Transport` that moves a fake device's memory through another one.

    What the protocol does not know, and the transport behind it has, is that one's. Only UCX may touch the device's
    memory: the binding refuses to while a message is under way, and counts that (`hetcomm._ext.ucp.refused`).

    Args:
        transport: Moves the messages; the device's memory is host memory to it.
        device: Whose memory they are from or for.
    """

    inner: Any
    device: FakeDevice

    def __init__(self, transport: Any, device: FakeDevice) -> None:
        object.__setattr__(self, "inner", transport)
        object.__setattr__(self, "device", device)
        if isinstance(transport, ucp.Worker):
            transport.decline_offers()  # as on a machine where UCX reaches device memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)

    @property
    def address(self) -> bytes:
        """What another process needs to reach this one."""
        found: bytes = self.inner.address
        return found

    def connect(self, peer: int, address: bytes) -> None:
        """Make `peer` reachable under its number."""
        self.inner.connect(peer, address)

    def supports(self, memory: MemoryKind) -> bool:
        """The device's memory, and what the transport behind it does."""
        return memory is self.device.kind or bool(self.inner.supports(memory))

    def send(self, address: int, nbytes: int, peer: int, tag: int, *more: Any) -> WatchedRequest:
        """Start sending; the bytes are read until the request is seen to be complete."""
        return self._post(self.inner.send, False, address, nbytes, peer, tag, *more)

    def recv(self, address: int, nbytes: int, peer: int, tag: int, *more: Any) -> WatchedRequest:
        """Start receiving; the bytes are written until the request is seen to be complete."""
        return self._post(self.inner.recv, True, address, nbytes, peer, tag, *more)

    def progress(self) -> bool:
        """Move messages along without waiting."""
        return bool(self.inner.progress())

    def failed_peers(self) -> frozenset[int]:
        """The peers that are known to have failed."""
        return frozenset(self.inner.failed_peers())

    def dying_peers(self) -> frozenset[int]:
        """The peers that will be among these soon."""
        return frozenset(self.inner.dying_peers())

    def processes(self) -> dict[int, int]:
        """The processes of peers."""
        return dict(self.inner.processes())

    def heed(self, herald: Herald | None) -> None:
        """Let `herald` say who is dead."""
        self.inner.heed(herald)

    def watch(self, seconds: float, query: int = 0, events: Sequence[int] = ()) -> bool:
        """Progress until something has happened, `rouse` is called, or `seconds` have passed."""
        return bool(self.inner.watch(seconds, query, events))

    def rouse(self) -> None:
        """End the `watch` that another thread is in."""
        self.inner.rouse()

    def wait(self, requests: Sequence[Request], timeout: float) -> None:
        """Progress until all `requests` are complete; raises as the transport behind it."""
        inner = [request.inner if isinstance(request, WatchedRequest) else request for request in requests]
        self.inner.wait(inner, timeout)
        for request in requests:
            request.test()

    def flush(self, timeout: float) -> None:
        """Wait until all that was sent has left this process."""
        self.inner.flush(timeout)

    def close(self) -> None:
        """Cancel what is under way and release everything."""
        self.inner.close()

    def _post(
        self, post: Any, write: bool, address: int, nbytes: int, peer: int, tag: int, *more: Any
    ) -> WatchedRequest:
        who = f"the message {'from' if write else 'to'} peer {peer} (tag {tag:#x})"
        use = _Use(self.device, self.device.watch(address, nbytes, write, who), address, nbytes)
        try:
            return WatchedRequest(post(address, nbytes, peer, tag, *more), use)
        except BaseException:
            use.over()
            raise
