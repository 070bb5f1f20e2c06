"""The in-process twin of a transport: several ranks in one process, for tests.

It keeps the promises of `hetcomm.transport.base` and nothing more, so that code which leans on luck fails here: a
message above the eager limit completes at the sender only once it is matched, and with a seed each message is held back
for a random number of the receiver's `progress` calls. Order per (sender, receiver, tag) is kept.

Ranks may run in threads of their own, one per transport. Nothing sleeps: a wait that nothing in this thread can end
blocks on a condition until another thread does something.
"""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections import deque
from collections.abc import Sequence

from hetcomm.errors import CollectiveTimeoutError, HetcommError, PeerFailureError, TransportError, UsageError
from hetcomm.transport.base import Herald, Request
from hetcomm.types import MemoryKind

__all__ = ["InprocNetwork", "InprocRequest", "InprocTransport"]


class InprocRequest:
    """One message on its way through an `InprocNetwork`."""

    def __init__(self, owner: InprocTransport, address: int, nbytes: int, peer: int, tag: int, is_recv: bool) -> None:
        self.owner = owner
        self.address = address
        self.capacity = nbytes
        self.peer = peer
        self.tag = tag
        self.is_recv = is_recv
        self.nbytes = 0
        """Bytes that arrived, or were sent; 0 while under way."""
        self.done = False
        self.error: HetcommError | None = None

    def test(self) -> bool:
        """Whether it has completed; never blocks, never progresses the transport."""
        with self.owner.network.changed:
            self.owner._check_peer(self)
            if self.error is not None:
                raise self.error
            return self.done

    def cancel(self) -> None:
        """Cancel it if it has not been matched; `test` raises then."""
        with self.owner.network.changed:
            if not self.over:
                self.owner._withdraw(self)
                what = "receive from" if self.is_recv else "send to"
                self.fail(
                    TransportError(f"the {what} peer {self.peer} (tag {self.tag:#x}) was cancelled", peer=self.peer)
                )

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.done or self.error is not None

    def complete(self, nbytes: int) -> None:
        """Let it be over, with that many bytes moved."""
        self.nbytes = nbytes
        self.done = True
        self.owner.network.changed.notify_all()

    def fail(self, error: HetcommError) -> None:
        """Let it be over with an error, which `test` raises."""
        self.error = error
        self.owner.network.changed.notify_all()


class _Message:
    """A message between its send and its receive; `copy` holds the bytes of an eager one."""

    def __init__(self, sender: int, request: InprocRequest, delay: int) -> None:
        self.sender = sender
        self.request = request
        self.nbytes = request.capacity
        self.tag = request.tag
        self.delay = delay
        self.copy: bytes | None = None

    def read_into(self, address: int) -> None:
        if self.copy is not None:
            ctypes.memmove(address, self.copy, self.nbytes)
        elif self.nbytes:
            ctypes.memmove(address, self.request.address, self.nbytes)


class InprocNetwork:
    """`nranks` transports in one process, connected with each other as peers 0 to nranks - 1.

    Args:
        nranks: How many.
        seed: Seeds the delays; None delivers everything at the receiver's next `progress`.
        max_delay: With a seed, the most `progress` calls of the receiver that a message is held back.
        eager_nbytes: Messages up to this long are copied by `send` and complete at once; longer ones wait for a match.
    """

    def __init__(self, nranks: int, *, seed: int | None = None, max_delay: int = 20, eager_nbytes: int = 1024) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.eager_nbytes = eager_nbytes
        self._random = random.Random(seed) if seed is not None else None
        self._max_delay = max_delay
        self.dead: set[int] = set()
        self.transports = [InprocTransport(self, rank) for rank in range(nranks)]
        for transport in self.transports:
            for other in self.transports:
                transport.connect(other.rank, other.address)

    def fail(self, rank: int) -> None:
        """Make `rank` dead for the others, as if its process had been killed.

        What it had sent eagerly still arrives; everything else that names it raises `PeerFailureError`. Its own
        transport refuses every call.
        """
        with self.changed:
            self.dead.add(rank)
            for transport in self.transports:
                transport._drop_uncopied(rank)
            self.changed.notify_all()

    def delay(self) -> int:
        """How many calls of `progress` the next message is held back."""
        return 0 if self._random is None else self._random.randint(0, self._max_delay)


class InprocTransport:
    """A `hetcomm.transport.base.Transport` to the other ranks of an `InprocNetwork`."""

    def __init__(self, network: InprocNetwork, rank: int) -> None:
        self.network = network
        self.rank = rank
        self._closed = False
        self._peers: dict[int, int] = {}
        self._channels: dict[tuple[int, int], deque[_Message]] = {}  # (sender, tag): on their way to this rank
        self._unexpected: dict[int, deque[_Message]] = {}  # by tag: arrived, no receive yet
        self._posted: dict[int, deque[InprocRequest]] = {}  # by tag: receives without a message
        self._sends: list[InprocRequest] = []
        self._roused = False

    @property
    def address(self) -> bytes:
        """What another transport of this network needs to reach this one."""
        return b"inproc:%d" % self.rank

    def connect(self, peer: int, address: bytes) -> None:
        """Make `peer` reachable under its number; its own number is allowed and loops back.

        Raises:
            UsageError: `address` is not of this network, or `peer` stands for another address already.
        """
        with self.network.changed:
            self._check_open()
            kind, _, number = address.partition(b":")
            if kind != b"inproc" or not number.isdigit():
                raise UsageError(f"the address given for peer {peer} is not of an inproc network", peer=peer)
            if self._peers.setdefault(peer, int(number)) != int(number):
                raise UsageError(f"peer {peer} is connected already", peer=peer, remedy="Number the peers differently.")

    def supports(self, memory: MemoryKind) -> bool:
        """Host memory only."""
        return memory is MemoryKind.HOST

    def send(self, address: int, nbytes: int, peer: int, tag: int) -> InprocRequest:
        """Start sending `nbytes` bytes at `address`; they must stay unchanged until the request is complete."""
        with self.network.changed:
            self._check_open()
            rank = self._rank_of(peer)
            request = InprocRequest(self, address, nbytes, peer, tag, is_recv=False)
            if rank in self.network.dead:
                self._check_peer(request)
                return request
            message = _Message(self.rank, request, self.network.delay())
            if nbytes <= self.network.eager_nbytes:
                message.copy = ctypes.string_at(address, nbytes) if nbytes else b""
                request.complete(nbytes)
            else:
                self._sends.append(request)
            self.network.transports[rank]._channels.setdefault((self.rank, tag), deque()).append(message)
            self.network.changed.notify_all()
            return request

    def recv(self, address: int, nbytes: int, peer: int, tag: int) -> InprocRequest:
        """Start receiving at most `nbytes` bytes to `address`. `peer` is whose failure fails this request."""
        with self.network.changed:
            self._check_open()
            self._rank_of(peer)
            request = InprocRequest(self, address, nbytes, peer, tag, is_recv=True)
            waiting = self._unexpected.get(tag)
            if waiting:
                self._deliver(waiting.popleft(), request)
            else:
                self._posted.setdefault(tag, deque()).append(request)
            return request

    def failed_peers(self) -> frozenset[int]:
        """Those that `InprocNetwork.fail` was called for."""
        return frozenset(peer for peer, rank in self._peers.items() if rank in self.network.dead)

    def dying_peers(self) -> frozenset[int]:
        """None: they die at once."""
        return frozenset()

    def processes(self) -> dict[int, int]:
        """None: all are this one."""
        return {}

    def heed(self, herald: Herald | None) -> None:
        """Nothing: `InprocNetwork.fail` says who is dead."""

    def progress(self) -> bool:
        """Let what is due arrive; whether anything did."""
        with self.network.changed:
            self._check_open()
            moved = False
            for key in list(self._channels):
                channel = self._channels[key]
                while channel and channel[0].delay <= 0:
                    self._arrive(channel.popleft())
                    moved = True
                if channel:
                    channel[0].delay -= 1
                else:
                    del self._channels[key]
            return moved

    def watch(self, seconds: float, query: int = 0, events: Sequence[int] = ()) -> bool:
        """Progress until something arrives, `rouse` is called, or `seconds` have passed; whether something arrived."""
        deadline = time.monotonic() + seconds
        with self.network.changed:
            while not (moved := self.progress()) and not self._roused:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                if not self._channels:
                    self.network.changed.wait(left)
            self._roused = False
            return moved

    def rouse(self) -> None:
        """End the `watch` that another thread is in, or comes to next."""
        self._roused = True
        with self.network.changed:
            self.network.changed.notify_all()

    def wait(self, requests: Sequence[Request], timeout: float) -> None:
        """Progress until all `requests` are complete.

        Raises:
            CollectiveTimeoutError: `timeout` seconds passed; what was unfinished has been cancelled.
            PeerFailureError, TransportError: As `Request.test`; the other requests have been cancelled.
        """
        deadline = time.monotonic() + timeout
        with self.network.changed:
            self._check_open()
            try:
                while unfinished := [request for request in requests if not request.test()]:
                    self._pause(deadline, f"{len(unfinished)} of {len(requests)} messages", unfinished[0])
            except BaseException:
                for request in requests:
                    request.cancel()
                raise

    def flush(self, timeout: float) -> None:
        """Wait until all that was sent has left; raises `CollectiveTimeoutError` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self.network.changed:
            self._check_open()
            while True:
                for request in self._sends:
                    self._check_peer(request)
                self._sends = [request for request in self._sends if not request.over]
                if not self._sends:
                    return
                self._pause(deadline, "what was sent to leave", self._sends[0])

    def close(self) -> None:
        """Cancel what is under way; for the others this rank has failed. Calling it again does nothing."""
        with self.network.changed:
            if self._closed:
                return
            for request in [*self._sends, *(request for posted in self._posted.values() for request in posted)]:
                request.cancel()
            self._closed = True
            self.network.fail(self.rank)

    def _pause(self, deadline: float, what: str, request: Request) -> None:
        """Progress; if nothing is on its way here, block until another thread changes something."""
        if self.progress() or self._channels:
            if time.monotonic() < deadline:
                return
        elif self.network.changed.wait(max(0.0, deadline - time.monotonic())):
            return
        peer = getattr(request, "peer", None)
        raise CollectiveTimeoutError(
            f"waited in vain for {what}",
            peer=peer,
            remedy="See whether that peer is alive and makes the same calls; HETCOMM_TIMEOUT sets the limit.",
        )

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("this transport is closed", rank=self.rank, remedy="Open a new one.")
        if self.rank in self.network.dead:
            raise TransportError("this rank was made to fail", rank=self.rank)

    def _check_peer(self, request: InprocRequest) -> None:
        """Fail `request` if its peer is dead and nothing of it is on the way that could complete it."""
        rank = self._peers[request.peer]
        if request.over or rank not in self.network.dead:
            return
        if request.is_recv and self._channels.get((rank, request.tag)):
            return
        self._withdraw(request)
        request.fail(
            PeerFailureError(
                f"peer {request.peer} is gone",
                peer=request.peer,
                remedy="Close this communicator, or shrink it; that peer's output may say why it ended.",
            )
        )

    def _rank_of(self, peer: int) -> int:
        try:
            return self._peers[peer]
        except KeyError:
            raise UsageError(f"peer {peer} is not connected", peer=peer, remedy="Call connect() first.") from None

    def _arrive(self, message: _Message) -> None:
        posted = self._posted.get(message.tag)
        if posted:
            self._deliver(message, posted.popleft())
        else:
            self._unexpected.setdefault(message.tag, deque()).append(message)

    def _deliver(self, message: _Message, request: InprocRequest) -> None:
        if message.nbytes > request.capacity:
            request.fail(
                TransportError(
                    f"the message from peer {request.peer} (tag {message.tag:#x}) of {message.nbytes} bytes is longer "
                    f"than the {request.capacity} bytes given for it",
                    peer=request.peer,
                    remedy="Receive into an array at least as long as the sender's.",
                )
            )
        else:
            message.read_into(request.address)
            request.complete(message.nbytes)
        if not message.request.over:
            message.request.complete(message.nbytes)

    def _withdraw(self, request: InprocRequest) -> None:
        """Take an unmatched request out of the queues."""
        if request.is_recv:
            posted = self._posted.get(request.tag)
            if posted and request in posted:
                posted.remove(request)
            return
        for receiver in self.network.transports:
            queues = [*receiver._channels.values(), *receiver._unexpected.values()]
            for queue in queues:
                for message in [message for message in queue if message.request is request]:
                    queue.remove(message)

    def _drop_uncopied(self, sender: int) -> None:
        """Forget the messages of a dead rank whose bytes died with it."""
        for queue in [*self._channels.values(), *self._unexpected.values()]:
            for message in [message for message in queue if message.sender == sender and message.copy is None]:
                queue.remove(message)
