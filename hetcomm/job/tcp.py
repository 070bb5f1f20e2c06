"""The bootstrap over TCP: ranks that meet at the rendezvous of `hetcomm run`, without MPI.

The launcher hands each rank its number, the rendezvous's address and the job's key in the environment. Whoever serves
the rendezvous sees ranks end, so a rank that dies before it has come, or in the middle, is named at once.
"""

from __future__ import annotations

import hmac
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from secrets import token_bytes

from hetcomm.errors import PeerFailureError, TransportError, UsageError
from hetcomm.job import frames
from hetcomm.job.group import JobGroup, WaitingGroup, unpack
from hetcomm.job.launcher import Launcher

__all__ = ["TcpGroup"]

_CONNECTING = 10.0  # seconds: the launcher serves the rendezvous before it starts ranks
_TRIES = 8  # to connect: strangers may be so many that the rendezvous lets go of a rank with the oldest of them,
_BETWEEN = 0.05  # and seconds between two of them
_ASKING = 1.0  # seconds that the rendezvous gets to say who is missing
_LOOK = "Look at the output of those ranks for why they ended."


class _Connection:
    """One rank's connection to the rendezvous, used by all groups of a job and whichever threads they wait in."""

    def __init__(self, connected: socket.socket) -> None:
        self.ended: dict[int, frames.Ended] = {}
        self._socket = connected
        self._lock = threading.Lock()
        self._frames = frames.Frames()
        self._unsent = bytearray()
        self._answers: dict[int, tuple[bytes, bytes]] = {}
        self._tickets = 0
        self._serials: Counter[tuple[int, ...]] = Counter()
        self._lost = False
        connected.setblocking(False)

    def begin(self, members: tuple[int, ...], payload: bytes) -> int:
        """Take part in the next exchange of these ranks of the job; the ticket of its answer."""
        with self._lock:
            self._tickets += 1
            part = frames.pack_part(members, self._serials[members], payload)
            self._unsent += frames.frame(b"G", self._tickets, part)
            self._serials[members] += 1
            return self._tickets

    def ask(self, ticket: int) -> None:
        """Ask who is missing; the answer has the same ticket."""
        with self._lock:
            self._unsent += frames.frame(b"W", ticket)

    def answer(self, ticket: int) -> tuple[bytes, bytes] | None:
        """Kind and payload of the answer with that ticket, once it is there; never blocks.

        Raises:
            TransportError: The rendezvous is gone.
        """
        with self._lock:
            if ticket not in self._answers and not self._lost:
                self._move()
            found = self._answers.pop(ticket, None)
            if found is None and self._lost:
                raise TransportError(
                    "the rendezvous of the job is gone", remedy="See why the launcher that started the ranks has ended."
                )
            return found

    def look(self) -> None:
        """Read what has come unasked for."""
        with self._lock:
            if not self._lost:
                self._move()

    def close(self) -> None:
        """Leave."""
        with self._lock:
            self._lost = True
            self._socket.close()

    def _move(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # what has come is still read
        while (data := frames.received(self._socket)) is not None:
            if not data:
                self._lost = True
                return
            for kind, ticket, payload in self._frames.feed(data):
                if kind == b"E":
                    self.ended.update(frames.unpack_ended(payload))
                else:
                    self._answers[ticket] = (kind, payload)


class TcpGroup(WaitingGroup):
    """Some ranks of a job that meets at a rendezvous.

    Groups of one job may overlap: those that have the same ranks are used in the same order by all of them.
    """

    def __init__(self, connection: _Connection, rank: int, ranks: Sequence[int], timeout: float) -> None:
        super().__init__(rank, ranks, timeout)
        self._connection = connection

    @classmethod
    def join(cls, launcher: Launcher, timeout: float) -> TcpGroup:
        """All ranks of the job that `launcher` has started; does not wait for the others.

        Raises:
            UsageError: The launcher's variables are not such as `hetcomm run` sets.
            TransportError: There is no rendezvous, or it has not got the key.
        """
        connection = _Connection(_connect(launcher, min(timeout, _CONNECTING)))
        return cls(connection, launcher.rank, range(launcher.nranks), timeout)

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        """Everybody's payload, in rank order.

        Raises:
            PeerFailureError: A rank ended without taking part; `ranks` names it, and the message says when it ended.
            CollectiveTimeoutError: Ranks did not take part in time; `ranks` names them.
            TransportError: The launcher is gone.
        """
        connection = self._connection
        ticket = connection.begin(self._ranks, payload)
        answers: list[tuple[bytes, bytes]] = []

        def answered() -> bool:
            if not answers and (answer := connection.answer(ticket)) is not None:
                answers.append(answer)
            return bool(answers)

        if not self._wait(answered, time.monotonic() + self._timeout):
            connection.ask(ticket)
            if not self._wait(answered, time.monotonic() + _ASKING):
                raise self._late(frozenset())
        kind, data = answers[0]
        if kind == b"D":
            raise self._failed(frames.unpack_ended(data))
        if kind == b"M":
            raise self._late(frozenset(self._ranks.index(rank) for rank in frames.unpack_ranks(data)))
        return unpack(data)

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        """The payload of `root`; errors as `all_gather`.

        Raises:
            UsageError: This is the root, and it passes None.
        """
        if payload is None and root == self.rank:
            raise UsageError(f"rank {root} broadcasts, so it must pass a payload", rank=self.rank)
        return self.all_gather(payload if payload is not None and root == self.rank else b"")[root]

    def barrier(self) -> None:
        """Return when every rank has called it; errors as `all_gather`."""
        self.all_gather(b"")

    def subgroup(self, ranks: Sequence[int]) -> JobGroup:
        members = [self._ranks[rank] for rank in ranks]
        mine = members.index(self._ranks[self._rank])
        return TcpGroup(self._connection, mine, members, self._timeout)

    def close(self) -> None:
        """Leave the rendezvous, with all groups of the job."""
        self._connection.close()

    def _ended(self) -> Collection[int]:
        self._connection.look()
        return self._connection.ended

    def failure(self, ended: Collection[int]) -> PeerFailureError:
        """The error for ranks of this group that have ended, with what the launcher has said of how."""
        self._connection.look()
        known = self._connection.ended
        found = {number: known[number] for rank in ended if (number := self._ranks[rank]) in known}
        if not found:
            return super().failure(ended)
        causes = {cause for each in found.values() for cause in each.because if cause in self._ranks}
        return self._failed(found | {cause: known[cause] for cause in causes & known.keys()})

    def _failed(self, ended: dict[int, frames.Ended]) -> PeerFailureError:
        """The error that names ranks of the job, in terms of this group; not those that gave up because of others."""
        own = {rank: each for rank, each in ended.items() if not set(each.because) & set(ended)} or ended
        here = {self._ranks.index(rank): each.fate for rank, each in own.items()}
        error = PeerFailureError(
            "; ".join(f"rank {rank} {fate}" for rank, fate in sorted(here.items())),
            rank=self.rank,
            ranks=here,
            origin=self.rank,
            remedy=_LOOK,
        )
        error.is_final = not all(each.again for each in own.values())
        return error


def _connect(launcher: Launcher, seconds: float) -> socket.socket:
    """A connection to the rendezvous, when both sides have shown that they have the key."""
    host, _, port = launcher.address.rpartition(":")
    try:
        key, number = bytes.fromhex(launcher.key), int(port)
    except ValueError:
        key, number = b"", 0
    if not key or not host or not 0 < number < 1 << 16:
        raise UsageError(
            "HETCOMM_ADDRESS and HETCOMM_KEY are no address and key of a rendezvous",
            remedy="They are set by 'hetcomm run'; start the ranks with it, or unset them.",
        )
    deadline = time.monotonic() + seconds
    for tries_left in reversed(range(_TRIES)):
        try:
            return _connected((host, number), key, launcher.rank, deadline)
        except OSError as error:
            if not tries_left or not isinstance(error, ConnectionError) or time.monotonic() > deadline:
                raise TransportError(
                    f"the rendezvous of the job at {launcher.address} cannot be used: {error}",
                    remedy="See whether the launcher that started this rank still runs.",
                    rank=launcher.rank,
                ) from error
            time.sleep(_BETWEEN)
    raise AssertionError("the last try returns or raises")


def _connected(address: tuple[str, int], key: bytes, rank: int, deadline: float) -> socket.socket:
    """One try.

    Raises:
        OSError: It went wrong.
    """
    connected = socket.create_connection(address, max(1e-3, deadline - time.monotonic()))
    try:
        theirs = _read(connected, frames.NONCE, deadline)
        mine = token_bytes(frames.NONCE)
        shown = frames.mac(key, "rank", rank, theirs, mine)
        connected.sendall(frames.HELLO.pack(rank, mine, shown))
        right = frames.mac(key, "rendezvous", rank, mine, theirs)
        if not hmac.compare_digest(_read(connected, frames.WELCOME, deadline), right):
            raise PermissionError("what answers there has not got the key of the job")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        connected.close()
        raise
    return connected


def _read(connected: socket.socket, nbytes: int, deadline: float) -> bytes:
    """So many bytes.

    Raises:
        OSError: The other side has closed, or the deadline has passed.
    """
    data = b""
    while len(data) < nbytes:
        connected.settimeout(max(1e-3, deadline - time.monotonic()))
        piece = connected.recv(nbytes - len(data))
        if not piece:
            raise ConnectionError("it has closed the connection: it may have another key")
        data += piece
    return data
