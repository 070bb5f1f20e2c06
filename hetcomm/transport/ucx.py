"""The transport over UCX: host and device memory, shared memory, RDMA and TCP, whatever this machine has.

All messages go through one `hetcomm._ext.ucp.Worker`, of which `UcxTransport` is the kind that chooses its library, or
takes over a worker that runs already. One thread at a time may use a transport.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import suppress

from hetcomm._ext import ucp
from hetcomm.errors import CollectiveTimeoutError, TransportError, UsageError
from hetcomm.transport.adoption import endpoint_of, handle_of, still_runs
from hetcomm.transport.arena import share
from hetcomm.transport.descriptors import make_room
from hetcomm.transport.library import Library, load_library
from hetcomm.types import Config, MemoryKind

__all__ = ["UcxTransport", "home_of", "is_shared", "prepare"]

_GREETING = 1 << 19  # bytes: more than any transport sends without an answer of the other end
_GREETING_TAG = 0xB << 44 | 1

# Without the first two UCX sends through TCP between processes of one host, ten times slower, as soon as failures are
# to be noticed. The third is how often UCX looks whether idle peers are alive; it waits 20 s unless told.
_OPTIONS = {"POSIX_ERROR_HANDLING": "y", "SYSV_ERROR_HANDLING": "y", "KEEPALIVE_INTERVAL": "500ms"}

# Where all peers share memory with this process. Without TCP, nothing listens on any network interface. SysV's segments
# have numbers that everybody may list, and the group may write to them; POSIX's have no name, and only this user can
# have them, through /proc.
_WITHIN = "^tcp,sysv"
_WITHIN_TIGHT = "^tcp"  # where there is little room for POSIX's
_ROOM = 1 << 30  # bytes

_DESCRIPTORS = 48  # that a context and a worker may need: 17 were seen, and some for each network interface

_RDMA = ("rc", "dc", "ud")
_DIRECT = {
    MemoryKind.HOST: ("",),
    MemoryKind.CUDA: ("cuda_ipc", *_RDMA),
    MemoryKind.ROCM: ("rocm_ipc", *_RDMA),
}


class UcxTransport(ucp.Worker):
    """A `hetcomm.transport.base.Transport` over UCX.

    UCX's own environment variables (`UCX_TLS`, `UCX_NET_DEVICES`, ...) hold. Beside the protocol's methods there are
    `send_buffer` and `recv_buffer`, the short way for host arrays, and `lanes`, `describe` and `statistics` for people
    who ask.

    Args:
        config: Where to look for UCX; the defaults if None.
        worker: A running UCP worker to share, as `hetcomm.transport.adoption.handle_of` takes it; None: a new one. It
            keeps the settings it was made with, is held until `close`, and goes on running after it. Its owner may use
            and progress it meanwhile, from any thread, but must not destroy it.
        endpoints: By peer, the endpoints of `worker` that lead there, to send over instead of new ones; they are held
            as `worker` is, and not closed.
        within: Whether all peers will be processes of this user that share memory with this one. Then a new worker
            does without network, unless UCX has been told which transports or interfaces to use.

    Raises:
        TransportError: There is no UCX, it is too old, or it does not start.
        UsageError: `worker` cannot be shared: the message says why.
    """

    library: Library

    def __init__(
        self,
        config: Config | None = None,
        *,
        worker: object = None,
        endpoints: Mapping[int, object] | None = None,
        within: bool = False,
    ) -> None:
        handle = 0 if worker is None else handle_of(worker)
        given = {} if endpoints is None else endpoints
        reason = "is no mapping" if not isinstance(given, Mapping) else "needs 'worker'" if worker is None else ""
        if reason and given:
            raise UsageError(
                f"argument 'endpoints' ({type(given).__name__}) {reason}",
                remedy="Pass endpoints by rank, and the worker that they belong to.",
            )
        self._handles = {peer: endpoint_of(peer, each, handle) for peer, each in given.items()}
        self.library = prepare(config)
        options = {name: value for name, value in _OPTIONS.items() if f"UCX_{name}" not in os.environ}
        if within and not handle and _is_free():
            options["TLS"] = _WITHIN if _has_room() else _WITHIN_TIGHT
        super().__init__(options, handle)
        with suppress(OSError, MemoryError):  # then all messages go through UCX
            self.lend(share(ucp.SHELF_NBYTES))
        self._owner, self._endpoints = worker, endpoints

    def connect(self, peer: int, address: bytes, endpoint: int = 0) -> None:
        """Make `peer` reachable under its number, over the endpoint given for it if there is one; errors as the base's.

        Its own number is allowed and loops back.
        """
        super().connect(peer, address, endpoint or self._handles.get(peer, 0))

    def greet(self, rank: int, timeout: float) -> None:
        """Exchange a message with each peer whose worker is shared as this one is, once all are connected.

        Everything that can be wrong with the endpoints between two shared workers shows when an answer must come back
        over them, so it is let come here.

        Args:
            rank: The number under which this process is a peer of theirs.
            timeout: Seconds until the messages must have arrived.

        Raises:
            UsageError: An endpoint was given for a peer that does not share its worker.
            TransportError: Messages did not arrive.
        """
        peers = self.shared_peers
        if strange := sorted(set(self._handles) - set(peers), key=str):
            raise UsageError(
                f"argument 'endpoints' has one for {strange[0]}, which is no other rank that shares a worker",
                remedy="Number endpoints by rank, and pass 'worker' on both ranks.",
            )
        greetings = [ctypes.create_string_buffer(_GREETING) for _ in range(1 + len(peers))]
        first, *rest = map(ctypes.addressof, greetings)
        requests = [
            self.recv(address, _GREETING, peer, _GREETING_TAG | peer << 24, greetings)
            for address, peer in zip(rest, peers, strict=True)
        ]
        requests += [self.send(first, _GREETING, peer, _GREETING_TAG | rank << 24, greetings) for peer in peers]
        try:
            self.wait(requests, timeout)
        except CollectiveTimeoutError as error:
            raise TransportError(
                f"the UCP worker shared here does not reach that of rank {error.peer}",
                remedy="UCX pairs the endpoints that two workers make from each other's addresses in the order made. "
                "Call hetcomm.init before UCXX makes such endpoints, or pass them as 'endpoints' on both ranks.",
                peer=error.peer,
            ) from error

    def close(self, timeout: float = 1.0) -> None:
        """Cancel what is under way and release everything; a shared worker goes on running.

        Messages already handed to UCX get `timeout` seconds to leave. Calling it again does nothing.
        """
        owner, self._owner = getattr(self, "_owner", None), None
        if owner is not None and not still_runs(owner, self.handle):
            self.abandon()
        super().close(timeout)
        self._endpoints = None

    def supports(self, memory: MemoryKind) -> bool:
        """Whether addresses of that memory may be passed to `send` and `recv`."""
        return self.supports_memory_type(memory.value)

    def staged(self, memory: MemoryKind) -> dict[int, list[str]]:
        """The peers that messages from and to device memory reach by way of host memory only, with their lanes.

        Straight from device memory go the lanes between processes of one host that share it, and RDMA.
        """
        direct = _DIRECT[memory]
        lanes = self.lane_names()
        return {peer: names for peer, names in lanes.items() if not any(name.startswith(direct) for name in names)}

    def lanes(self) -> str:
        """One line per peer: the transports and devices UCX has chosen for it."""
        return "\n".join(f"peer {peer}: {', '.join(names)}" for peer, names in sorted(self.lane_names().items()))

    def __repr__(self) -> str:
        return f"<UcxTransport on {self.library}{', closed' if self.closed else ''}>"


def prepare(config: Config | None = None) -> Library:
    """Load UCX, so that an MPI that is started later finds it.

    Raises:
        TransportError: There is none, or it is too old.
    """
    make_room(_DESCRIPTORS, "opening UCX")
    library = load_library(config)
    ucp.resolve(library.path)
    return library


def _is_free() -> bool:
    """Whether neither environment nor file tell UCX which transports or interfaces to use."""
    told = ucp.configured()
    return all(told.get(name, "all") == "all" for name in ("TLS", "NET_DEVICES"))


def _has_room() -> bool:
    """Whether there is room for the shared memory of POSIX, which containers often give little."""
    try:
        state = os.statvfs("/dev/shm")
    except OSError:
        return False
    return state.f_bavail * state.f_frsize >= _ROOM


def is_shared(address: bytes) -> bool:
    """Whether that is the address of a worker that its process shares with the worker's owner."""
    return address.startswith(ucp.SHARED)


def home_of(address: bytes) -> str:
    """Equal for the addresses of processes that see one another: of one machine, in one namespace of processes."""
    return ucp.home_of(address)
