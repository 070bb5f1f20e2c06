"""What every transport offers: tagged messages between the ranks of a job, straight from memory.

A transport moves bytes at addresses; it knows nothing of dtypes, collectives or arrays. Everything is
nonblocking: an operation returns a `Request`, and time passes only in `Transport.progress` and
`Transport.wait`. Messages of one (sender, receiver, tag) arrive in the order sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from hetcomm.types import MemoryKind

__all__ = ["Herald", "QuickTransport", "Request", "Script", "ScriptRun", "Transport"]


class Request(Protocol):
    """One message on its way."""

    @property
    def nbytes(self) -> int:
        """Bytes that arrived, of a completed receive; of a send, and while under way, undefined."""
        ...

    def test(self) -> bool:
        """Whether it has completed; never blocks, never progresses the transport.

        Raises:
            PeerFailureError: The peer is gone.
            TransportError: It failed, was cancelled, or the incoming message was longer than the memory given.
        """
        ...

    def cancel(self) -> None:
        """Ask for it to be cancelled; `test` then raises or returns True once it is over."""
        ...


class ScriptRun(Protocol):
    """One run of a script."""

    @property
    def call(self) -> int:
        """The number of the collective call it is part of, where the fast path has begun it."""
        ...

    @property
    def number(self) -> int:
        """Its own number among the runs of the communicator, likewise."""
        ...

    @property
    def check(self) -> int:
        """What the ranks must agree on, likewise: see `hetcomm.execution.tags`."""
        ...

    @property
    def ncalled(self) -> int:
        """Vendor calls it has started."""
        ...

    @property
    def length_mismatch(self) -> tuple[int, int] | None:
        """Step and bytes of the message of the wrong length that ended it."""
        ...

    def test(self, patient: bool) -> bool:
        """Start what can be started and collect what has completed, but for vendor calls; whether all is done.

        With `patient` it progresses the transport for some microseconds meanwhile.

        Raises:
            TransportError: A message failed.
            VendorError: A vendor's call failed.
        """
        ...

    @property
    def due(self) -> bool:
        """Whether a vendor call is ready to be started."""
        ...

    def start_calls(self) -> int:
        """Start the vendor calls that are ready; how many.

        Raises:
            VendorError: A vendor refused one, or failed.
        """
        ...

    @property
    def in_vendors(self) -> list[tuple[int, Any]]:
        """The vendor calls under way: step and operation."""
        ...

    def waits_for_turn(self) -> list[int]:
        """The vendor calls that are ready and have not been started."""
        ...

    def contradiction(self) -> tuple[int, int] | None:
        """Step and check bits of a message that has come for another plan of the same run; None: there is none."""
        ...

    def record(self) -> None:
        """Note when steps are started and complete."""
        ...

    def spans(self) -> list[tuple[int, float, float]]:
        """The steps completed since: themselves and both times, on the clock of `time.perf_counter`."""
        ...

    def release(self) -> None:
        """It is done, and nobody asks it anything more."""
        ...

    def under_way(self) -> list[int]:
        """The steps whose messages or vendor calls are under way."""
        ...

    def detach(self) -> Sequence[Request]:
        """Its messages under way; it is over."""
        ...


class Script(Protocol):
    """A program that a transport runs by itself but for vendor calls, if it has the method `script`."""

    def start(self, in_address: int, out_address: int, scratch_address: int, tag: int, factor: bytes) -> ScriptRun:
        """Begin a run on three buffers, with `tag` set in all tags; `factor` is the element of `Scale.FACTOR`."""
        ...


class Herald(Protocol):
    """What says which peers are dead, beside what a transport sees itself."""

    def fileno(self) -> int:
        """A descriptor that is readable when there are more of them."""
        ...

    def dead(self) -> frozenset[int]:
        """All of them; the descriptor is not readable any more."""
        ...


class Transport(Protocol):
    """The end of a job's network that one process holds.

    Peers are numbered by the caller in `connect`; tags are any unsigned 64-bit numbers. A message matches a receive of
    the same tag only, so who sent it must be part of the tag.
    """

    @property
    def address(self) -> bytes:
        """What another process needs to reach this one."""
        ...

    def connect(self, peer: int, address: bytes) -> None:
        """Make `peer` reachable under its number; its own number is allowed and loops back."""
        ...

    def supports(self, memory: MemoryKind) -> bool:
        """Whether addresses of that memory may be passed to `send` and `recv`."""
        ...

    def send(self, address: int, nbytes: int, peer: int, tag: int) -> Request:
        """Start sending `nbytes` bytes at `address`; they must stay unchanged until the request is complete."""
        ...

    def recv(self, address: int, nbytes: int, peer: int, tag: int) -> Request:
        """Start receiving at most `nbytes` bytes to `address`. `peer` is whose failure fails this request."""
        ...

    def progress(self) -> bool:
        """Move messages along without waiting; whether anything happened."""
        ...

    def failed_peers(self) -> frozenset[int]:
        """The peers that are known to have failed by now; whoever asks need not have messages for them."""
        ...

    def dying_peers(self) -> frozenset[int]:
        """Those that will be among these soon, as far as that can be seen: their processes have been killed."""
        ...

    def processes(self) -> dict[int, int]:
        """The processes of other peers that this one sees, by the peer's number."""
        ...

    def heed(self, herald: Herald | None) -> None:
        """Count the peers that `herald` says are dead among `failed_peers`; None: nobody says so any more."""
        ...

    def watch(self, seconds: float, query: int = 0, events: Sequence[int] = ()) -> bool:
        """Progress until something has happened, another thread calls `rouse`, or `seconds` have passed.

        Other threads run meanwhile, but must not use the transport.

        Args:
            seconds: The longest it may take.
            query: The address of a C function `int query(void *event)`; 0: none.
            events: What it is asked for; that it is 0 for one of them is one of the things that may happen. A transport
                that does not ask lets the caller look for itself after `seconds`.

        Returns:
            Whether something has happened.
        """
        ...

    def rouse(self) -> None:
        """End the `watch` that another thread is in, or comes to next. The one method that any thread may call."""
        ...

    def wait(self, requests: Sequence[Request], timeout: float) -> None:
        """Progress until all `requests` are complete: spin, then yield the processor, then sleep.

        Raises:
            CollectiveTimeoutError: `timeout` seconds passed; what was unfinished has been cancelled.
            PeerFailureError, TransportError: As `Request.test`; the other requests have been cancelled.
        """
        ...

    def flush(self, timeout: float) -> None:
        """Wait until all that was sent has left this process for good."""
        ...

    def close(self) -> None:
        """Cancel what is under way and release everything; calling it again does nothing."""
        ...


@runtime_checkable
class QuickTransport(Protocol):
    """What a transport may offer beside: messages of host buffers that are mostly over when the call returns.

    Each returns NotImplemented, and has done nothing, where another call is under way in the process. What is not over
    after a short while goes on, as the request or requests that are returned.
    """

    def quick_send(self, buffer: Any, peer: int, tag: int) -> Any:
        """Send a buffer: None if it is over."""
        ...

    def quick_recv(self, buffer: Any, peer: int, tag: int) -> Any:
        """Receive into a buffer: the bytes that arrived if it is over."""
        ...

    def quick_exchange(self, outgoing: Any, peer: int, tag: int, incoming: Any, source: int, source_tag: int) -> Any:
        """Both at the same time: the bytes that arrived if both are over, else the receive and the send."""
        ...
