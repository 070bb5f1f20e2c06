"""Where the ranks of a job meet over TCP: answers their exchanges, and tells them which of them have ended.

It is served by whoever started the ranks and sees them end, in that one's own loop: nothing here blocks. It listens on
the loopback interface, and talks to nobody who has not shown that it has the job's key.

The k-th connection of each rank belongs to the k-th `hetcomm.init` of the job. An exchange is known by this number, by
its members, and by how many these members have had. It fails where a member that has not taken part has ended.
"""

from __future__ import annotations

import hmac
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from secrets import token_bytes

from hetcomm.errors import TransportError
from hetcomm.job import frames
from hetcomm.job.group import pack

__all__ = ["Rendezvous"]

_HANDSHAKE_SECONDS = 10.0
_STRANGERS = 256  # connections at once that have not shown the key, beside one for each rank
_LISTENING = 1024
_ALL = 1 << 62  # meetings
_UNEXPLAINED = 0.25  # seconds that a connection may be closed before its rank's process is known to have ended


@dataclass(slots=True, eq=False)
class _Connection:
    """One `hetcomm.init` of one rank; `rank` is -1 until it has shown the key."""

    socket: socket.socket
    nonce: bytes
    since: float
    rank: int = -1
    meeting: int = -1
    data: bytearray = field(default_factory=bytearray)
    frames: frames.Frames = field(default_factory=frames.Frames)
    unsent: bytearray = field(default_factory=bytearray)
    closed: float | None = None


@dataclass(slots=True)
class _Exchange:
    """The parts that are there, by rank, with where to answer."""

    members: tuple[int, ...]
    parts: dict[int, bytes] = field(default_factory=dict)
    waiting: dict[int, tuple[_Connection, int]] = field(default_factory=dict)


class Rendezvous:
    """The meeting place of the ranks of one job.

    Args:
        nranks: How many there are.
        key: The job's.
        selector: Of the loop that serves it; the data of its keys are functions to be called.
    """

    def __init__(self, nranks: int, key: bytes, selector: selectors.BaseSelector) -> None:
        self._nranks = nranks
        self._key = key
        self._selector = selector
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_LISTENING)
        self._listener.setblocking(False)
        self._connections: list[_Connection] = []
        self._meetings: Counter[int] = Counter()  # of each rank, that it has come to
        self._met: set[int] = set()  # the ranks whose present processes have come to one
        self._exchanges: dict[tuple[int, tuple[int, ...], int], _Exchange] = {}
        self._ended: dict[int, tuple[int, frames.Ended]] = {}  # and from which meeting on it may come again
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def ended(self, rank: int, how: str, killed: bool, again: bool = False) -> None:
        """The process of a rank has ended: whoever waits for it is told at once.

        A rank that ended when it had been told of another's end is taken to have given up because of that one.

        Args:
            rank: The rank.
            how: 'exit status 1', for example.
            killed: By a signal, so that it has not given up by itself.
            again: Another process is about to take its place: it may come to the meetings that it has not come to.
        """
        because: set[int] = set()
        if not killed and rank in self._met:
            for other in self._ended.keys() - {rank}:  # as far as they have to do with the last meeting that it came to
                fate = self._fate(other, self._meetings[rank] - 1)
                because.update(() if fate is None else fate.because or (other,))
        self._met.discard(rank)
        because.discard(rank)
        until = self._meetings[rank] if again else _ALL
        self._ended[rank] = until, frames.Ended(how, tuple(sorted(because)), again)
        self._fail_exchanges()
        for connection in self._known():
            self._tell_ended(connection, rank)

    @property
    def is_over(self) -> bool:
        """Whether a rank has ended for good, so that all will never meet again."""
        return any(until == _ALL for until, _ in self._ended.values())

    def look(self) -> None:
        """What the passing of time brings: called at least every tenth of a second."""
        now = time.monotonic()
        for connection in [each for each in self._connections if each.rank < 0]:
            if now - connection.since > _HANDSHAKE_SECONDS:
                self._drop(connection)
        if any(each.closed is not None for each in self._connections):
            self._fail_exchanges()

    def close(self) -> None:
        """Close every socket."""
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.unregister(self._listener)
        self._listener.close()

    # ---- connections

    def _known(self) -> Iterable[_Connection]:
        return [each for each in self._connections if each.rank >= 0 and each.closed is None]

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        connected.setblocking(False)
        strangers = [each for each in self._connections if each.rank < 0]
        if len(strangers) >= _STRANGERS + self._nranks:  # a rank takes milliseconds: who came first has had its time
            self._drop(strangers[0])
        connection = _Connection(connected, token_bytes(frames.NONCE), time.monotonic())
        self._connections.append(connection)
        self._watch(connection)
        self._send(connection, connection.nonce)

    def _watch(self, connection: _Connection) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        serve: Callable[[], None] = lambda: self._serve(connection)  # noqa: E731
        try:
            self._selector.modify(connection.socket, events, serve)
        except KeyError:
            self._selector.register(connection.socket, events, serve)

    def _serve(self, connection: _Connection) -> None:
        """What has come is read and answered, and what is due is sent."""
        if connection.closed is not None:
            return
        self._flush(connection)
        data = frames.received(connection.socket)
        if data is None:
            return
        try:
            if not data:
                raise TransportError("the rank has closed its connection")
            if connection.rank < 0:
                data = self._meet(connection, data)
            for kind, ticket, payload in connection.frames.feed(data):
                self._handle(connection, kind, ticket, payload)
        except (TransportError, struct.error, ValueError, IndexError):  # it speaks no more, or something else
            self._drop(connection)

    def _send(self, connection: _Connection, data: bytes) -> None:
        connection.unsent += data
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        if not connection.unsent or connection.closed is not None:
            return
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:  # its end of file is read next
            connection.unsent.clear()
            return
        del connection.unsent[:sent]
        self._watch(connection)

    def _drop(self, connection: _Connection) -> None:
        """It is closed; that of a rank is remembered, since nobody need wait for it any more."""
        if connection.closed is not None:
            return
        connection.closed = time.monotonic()
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.rank < 0:
            self._connections.remove(connection)

    def _meet(self, connection: _Connection, data: bytes) -> bytes:
        """Let a rank show the key; what it has sent beyond that.

        Raises:
            TransportError: It has not got it.
        """
        connection.data += data
        if len(connection.data) < frames.HELLO.size:
            return b""
        rank, nonce, shown = frames.HELLO.unpack_from(connection.data)
        right = frames.mac(self._key, "rank", rank, connection.nonce, nonce)
        if not hmac.compare_digest(shown, right) or rank >= self._nranks:
            raise TransportError("it has not got the key of the job")
        connection.rank, connection.meeting = rank, self._meetings[rank]
        self._meetings[rank] += 1
        self._met.add(rank)
        self._send(connection, frames.mac(self._key, "rendezvous", rank, nonce, connection.nonce))
        if self._ended:
            self._tell_ended(connection, *self._ended)
        return bytes(connection.data[frames.HELLO.size :])

    # ---- exchanges

    def _handle(self, connection: _Connection, kind: bytes, ticket: int, payload: bytes) -> None:
        if kind == b"W":
            for exchange in self._exchanges.values():
                if exchange.waiting.get(connection.rank) == (connection, ticket):
                    missing = [rank for rank in exchange.members if rank not in exchange.parts]
                    self._send(connection, frames.frame(b"M", ticket, frames.pack_ranks(missing)))
            return
        if kind != b"G":
            raise TransportError(f"a rank has sent {kind!r}")
        members, serial, part = frames.unpack_part(payload)
        name = (connection.meeting, members, serial)
        exchange = self._exchanges.setdefault(name, _Exchange(members))
        if connection.rank not in members or connection.rank in exchange.parts:
            raise TransportError("a rank takes part in an exchange that is not its own")
        exchange.parts[connection.rank] = part
        exchange.waiting[connection.rank] = (connection, ticket)
        if len(exchange.parts) == len(members):
            answer = pack([exchange.parts[rank] for rank in members])
            for asking, number in exchange.waiting.values():
                self._send(asking, frames.frame(b"A", number, answer))
            del self._exchanges[name]
        else:
            self._fail(connection.meeting, exchange)

    def _fail_exchanges(self) -> None:
        for (meeting, _, _), exchange in self._exchanges.items():
            self._fail(meeting, exchange)

    def _fail(self, meeting: int, exchange: _Exchange) -> None:
        """Tell those that wait for a rank that has ended; those that come later are told then."""
        missing = {rank for rank in exchange.members if rank not in exchange.parts}
        ended = {rank: found for rank in missing if (found := self._fate(rank, meeting)) is not None}
        if not ended:
            return
        said = frames.pack_ended(ended | self._causes(ended, exchange.members, meeting))
        for connection, ticket in exchange.waiting.values():
            self._send(connection, frames.frame(b"D", ticket, said))
        exchange.waiting.clear()

    def _causes(
        self, ended: dict[int, frames.Ended], members: tuple[int, ...], meeting: int
    ) -> dict[int, frames.Ended]:
        """The members because of which others have given up."""
        causes = {cause for each in ended.values() for cause in each.because if cause in members}
        return {cause: found for cause in causes if (found := self._fate(cause, meeting)) is not None}

    def _tell_ended(self, connection: _Connection, *ranks: int) -> None:
        found = {rank: fate for rank in ranks if (fate := self._fate(rank, connection.meeting)) is not None}
        if found:
            self._send(connection, frames.frame(b"E", 0, frames.pack_ended(found)))

    def _fate(self, rank: int, meeting: int) -> frames.Ended | None:
        """What keeps a rank from ever taking part in exchanges of a meeting."""
        come = self._meetings[rank] > meeting
        until, found = self._ended.get(rank, (0, None))
        if found is not None and meeting < until:
            where = "while a communicator was set up" if come else "before it had joined the job in hetcomm.init"
            then = ", and is started again" if found.again else ""
            return frames.Ended(f"ended {where} ({found.fate}){then}", found.because, found.again)
        closed = [each.closed for each in self._connections if (each.rank, each.meeting) == (rank, meeting)]
        if closed and closed[0] is not None and time.monotonic() > closed[0] + _UNEXPLAINED:
            return frames.Ended("has given up, or has closed its communicator", again=True)
        return None
