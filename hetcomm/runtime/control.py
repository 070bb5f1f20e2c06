"""Control messages: small frames between any two ranks of a communicator, outside all collectives.

A frame has a fixed size, so that one posted receive, of no particular sender, takes any of them. Ranks look into their
mailbox while they wait for something else, so a frame costs the ordinary path nothing. What frames mean is
`hetcomm.runtime.agreement`'s business.
"""

from __future__ import annotations

import enum
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hetcomm.errors import TransportError
from hetcomm.runtime import tags
from hetcomm.runtime.buffers import memory
from hetcomm.runtime.execution import collect
from hetcomm.transport.base import Request, Transport

__all__ = ["Frame", "Mailbox", "Subject"]

_HEADER = struct.Struct("<BBIQ16sH")
_SIZE = 1024
_TEXT = _SIZE - _HEADER.size
_LAST_LOOKS = 50
_NO_FINGERPRINT = bytes(16)


class Subject(enum.IntEnum):
    """What a frame is about; `flag` and `text` depend on it."""

    PLAN = 0  # to rank 0: the plan I want to run for this call; text: its description
    VERDICT = 1  # flag 1: all plans agree; flag 0: they do not, and text says which
    NOTE = 2  # I have waited a while in this call; this is my plan for it
    REFUSED = 3  # my arguments for this call were refused; flag: kind of error, text: the message
    SETTLE = 4  # to rank 0, after a call that failed everywhere; flag: whether I had begun it
    SETTLED = 5  # flag: whether any rank had begun it
    GONE = 6  # I have left the communicator before this call; text: why
    CLOSING = 7  # this and the others that end it: see `hetcomm.runtime.closing`
    CLOSED = 8
    PARTING = 9
    PARTED = 10


@dataclass(frozen=True, slots=True)
class Frame:
    """One control message; `source` is the sender, `call` the number of the call it is about."""

    subject: Subject
    source: int
    call: int
    flag: int = 0
    fingerprint: bytes = _NO_FINGERPRINT
    text: str = ""

    def pack(self) -> bytearray:
        """The frame as it travels; a text that is too long is cut."""
        text = self.text.encode(errors="backslashreplace")  # a file's name may be in it
        if len(text) > _TEXT:
            text = text[: _TEXT - 3].decode(errors="ignore").encode() + b"..."
        header = _HEADER.pack(self.subject, self.flag, self.source, self.call, self.fingerprint, len(text))
        return bytearray((header + text).ljust(_SIZE, b"\0"))

    @classmethod
    def unpack(cls, data: bytearray) -> Frame:
        """The frame in `data`."""
        subject, flag, source, call, fingerprint, length = _HEADER.unpack_from(data)
        text = data[_HEADER.size : _HEADER.size + length].decode()
        return cls(Subject(subject), source, call, flag, fingerprint, text)


class Mailbox:
    """One communicator's end of the exchange of frames.

    Args:
        transport: Carries them.
        peers: The transport's number of each rank.
        rank: This process's.
        context: See `hetcomm.runtime.tags`.

    Attributes:
        incoming: The receive of the next frame; None when there can be none.
        posted: Told when that is another.
    """

    def __init__(self, transport: Transport, peers: Sequence[int], rank: int, context: int) -> None:
        self.rank = rank
        self.nranks = len(peers)
        self.posted: Callable[[Request], object] = lambda request: None
        self._transport = transport
        self._peers = peers
        self._tag = tags.control(context)
        self._data = bytearray(_SIZE)
        self._address = memory(self._data, argument="mailbox", rank=rank, writable=True).address
        self._leaving: list[tuple[Request, bytearray]] = []
        self.incoming: Request | None = self._post() if self.nranks > 1 else None

    def _post(self) -> Request:
        return self._transport.recv(self._address, _SIZE, self._peers[self.rank], self._tag)

    def receive(self) -> Frame | None:
        """A frame that has arrived, if any; progresses nothing."""
        if self.incoming is None or not self.incoming.test():
            return None
        frame = Frame.unpack(self._data)
        self.incoming = self._post()
        self.posted(self.incoming)
        return frame

    def send(self, frame: Frame, ranks: Iterable[int]) -> None:
        """Send a frame to some ranks; one that cannot be reached is passed over: its failure is seen elsewhere."""
        self._leaving = [(request, data) for request, data in self._leaving if not _is_over(request)]
        data = frame.pack()
        address = memory(data, argument="frame", rank=self.rank, writable=True).address
        for rank in ranks:
            if rank == self.rank:
                continue
            try:
                request = self._transport.send(address, _SIZE, self._peers[rank], self._tag)
            except TransportError:
                continue
            if not _is_over(request):
                self._leaving.append((request, data))

    def others(self) -> Iterable[int]:
        """All ranks but this one."""
        return (rank for rank in range(self.nranks) if rank != self.rank)

    def close(self, seconds: float) -> None:
        """Give frames on their way `seconds` to leave, then take back the receive; calling it again does nothing."""
        end = time.monotonic() + seconds
        while self._leaving and time.monotonic() < end:
            self._transport.progress()
            self._leaving = [(request, data) for request, data in self._leaving if not _is_over(request)]
        for _ in range(_LAST_LOOKS):  # a frame left in UCX makes it print a warning when it is closed
            self._transport.progress()
            self.receive()
        requests = [request for request, _ in self._leaving]
        if self.incoming is not None:
            requests.append(self.incoming)
            self.incoming = None
        if collect(self._transport, requests):
            self._leaving.clear()


def _is_over(request: Request) -> bool:
    """Whether a send has ended, well or not: who a frame does not reach is gone."""
    try:
        return request.test()
    except TransportError:
        return True
