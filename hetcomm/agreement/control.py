"""Control messages: small frames between any two ranks of a communicator, outside all collectives.

A frame has a fixed size, so that one posted receive, of no particular sender, takes any of them. Ranks look into their
mailbox while they wait for something else, so a frame costs the ordinary path nothing. What frames mean is
`hetcomm.agreement.agreement`'s business.
"""

from __future__ import annotations

import enum
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from hetcomm.calls.buffers import memory
from hetcomm.errors import TransportError
from hetcomm.execution import tags
from hetcomm.execution.execution import collect
from hetcomm.transport.base import Request, Transport

__all__ = ["Frame", "Leaving", "Mailbox", "Subject", "unreadable"]

# Subject, flag, number of spans of ranks, source, origin (-1: none), call, number, fingerprint, bytes of text; then the
# spans, each a first rank and how many follow it, then the text in UTF-8, then zeros.
_HEADER = struct.Struct("<BBBIiQq16sH")
_SPAN = struct.Struct("<II")
_SIZE = 1024
_SPANS = 32  # beside a text; without one as many as there is room for, all of which count
_MOST_SPANS = (_SIZE - _HEADER.size) // _SPAN.size
_LAST_LOOKS = 50
_CALLS = 1 << 63  # no call has this number: what counts them is signed
_NO_FINGERPRINT = bytes(16)


class Subject(enum.IntEnum):
    """What a frame is about; `flag` and `text` depend on it."""

    PLAN = 0  # to rank 0: the plan I want to run for this call; text: its description
    VERDICT = 1  # flag 1: all plans agree; flag 0: they do not, and text says which
    NOTE = 2  # I have waited a while in this call; this is my plan for it
    REFUSED = 3  # my arguments for this call were refused; flag: kind of error, text: the message
    SETTLE = 4  # to rank 0, after a call that failed everywhere; flag: whether I had begun it
    SETTLED = 5  # flag: whether any rank had begun it
    GONE = 6  # I have left the communicator before this call; flag: a `Leaving`; text: why;
    #           ranks: who is to blame, if it is not me
    CLOSING = 7  # this and the next three end it: see `hetcomm.agreement.closing`
    CLOSED = 8
    PARTING = 9
    PARTED = 10
    WAITING = 11  # I wait for a message from you, or for you to take one: say so if you have left
    JOIN = 12  # this and the next three find out who goes on: see `hetcomm.agreement.survival`
    DECIDED = 13
    ABSENT = 14
    LEADING = 15
    WHERE = 16  # which calls have you come to?
    HERE = 17  # this many, the last of which is text; number: how many are over; ranks: of whom I need messages


class Leaving(enum.IntEnum):
    """Why a rank has left, as far as it matters to the others."""

    FAILED = 0
    CLOSED = 1  # in good faith: it has nothing more to call
    MISMATCH = 2  # after a PlanMismatchError, which is that of all
    LATE = 3  # after a CollectiveTimeoutError


@dataclass(frozen=True, slots=True)
class Frame:
    """One control message.

    Attributes:
        subject, flag, text: See `Subject`.
        source: The sender.
        call: The number of the call it is about, below 2^63.
        fingerprint: Of the plan it is about.
        ranks: The ranks it is about; beside a text, of more than 32 runs of them the first 32 travel.
        origin: The rank that found out first; None where that is the sender.
        number: A signed number of 64 bits.
    """

    subject: Subject
    source: int
    call: int
    flag: int = 0
    fingerprint: bytes = _NO_FINGERPRINT
    text: str = ""
    ranks: frozenset[int] = frozenset()
    origin: int | None = None
    number: int = 0

    def pack(self) -> bytearray:
        """The frame as it travels; a text that is too long is cut.

        Raises:
            TransportError: There is no text, and there are more than 122 runs of ranks.
        """
        spans = _spans(self.ranks)
        if self.text:
            del spans[_SPANS:]
        elif len(spans) > _MOST_SPANS:
            raise TransportError(f"a control message cannot name {len(spans)} runs of ranks", rank=self.source)
        room = _SIZE - _HEADER.size - len(spans) * _SPAN.size
        text = self.text.encode(errors="backslashreplace")
        if len(text) > room:
            text = text[: room - 3].decode(errors="ignore").encode() + b"..."
        origin = -1 if self.origin is None else self.origin
        header = _HEADER.pack(
            self.subject,
            self.flag,
            len(spans),
            self.source,
            origin,
            self.call,
            self.number,
            self.fingerprint,
            len(text),
        )
        packed = b"".join([header, *(_SPAN.pack(*span) for span in spans), text])
        return bytearray(packed.ljust(_SIZE, b"\0"))

    @classmethod
    def unpack(cls, data: bytes | bytearray, nranks: int) -> Frame:
        """The frame in `data`, of a communicator of `nranks` ranks.

        Raises:
            TransportError: No rank of this version of hetcomm writes that.
        """
        if len(data) != _SIZE:
            unreadable(f"it has {len(data)} bytes, not {_SIZE}")
        kind, flag, nspans, source, origin, call, number, fingerprint, length = _HEADER.unpack_from(data)
        start = _HEADER.size + nspans * _SPAN.size
        if start + length > _SIZE:
            unreadable(f"it cannot hold {nspans} spans of ranks and {length} bytes of text")
        spans = [_SPAN.unpack_from(data, at) for at in range(_HEADER.size, start, _SPAN.size)]
        if source >= nranks or not -1 <= origin < nranks or any(first + more >= nranks for first, more in spans):
            unreadable(f"it names a rank that the communicator of {nranks} does not have")
        if call >= _CALLS:
            unreadable(f"it is about call {call}")
        try:
            subject = Subject(kind)
            text = data[start : start + length].decode()
        except ValueError as error:  # UnicodeDecodeError is one
            unreadable(str(error))
        ranks = frozenset(rank for first, more in spans for rank in range(first, first + more + 1))
        return cls(subject, source, call, flag, fingerprint, text, ranks, None if origin < 0 else origin, number)


def _spans(ranks: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive ranks, each as its first and how many follow."""
    spans: list[tuple[int, int]] = []
    for rank in sorted(ranks):
        if spans and rank == sum(spans[-1]) + 1:
            spans[-1] = spans[-1][0], spans[-1][1] + 1
        else:
            spans.append((rank, 0))
    return spans


def unreadable(why: str) -> NoReturn:
    """Raise the error of what no rank of this version of hetcomm says."""
    raise TransportError(
        f"a control message cannot be read: {why}", remedy="Use the same version of hetcomm on all ranks."
    )


class Mailbox:
    """One communicator's end of the exchange of frames.

    Args:
        transport: Carries them.
        peers: The transport's number of each rank.
        rank: This process's.
        context, serial: See `hetcomm.execution.tags`.

    Attributes:
        incoming: The receive of the next frame; None when there can be none.
        posted: Told when that is another.
    """

    def __init__(self, transport: Transport, peers: Sequence[int], rank: int, context: int, serial: int) -> None:
        self.rank = rank
        self.nranks = len(peers)
        self.posted: Callable[[Request], object] = lambda request: None
        self._transport = transport
        self._peers = peers
        self._tag = tags.control(context, serial)
        self._data = bytearray(_SIZE)
        self._address = memory(self._data, argument="mailbox", rank=rank, writable=True).address
        self._leaving: list[tuple[Request, bytearray]] = []
        self.incoming: Request | None = self._post() if self.nranks > 1 else None

    def _post(self) -> Request:
        return self._transport.recv(self._address, _SIZE, self._peers[self.rank], self._tag)

    def receive(self) -> Frame | None:
        """A frame that has arrived, if any; progresses nothing.

        Raises:
            TransportError: It is none that a rank of this communicator could have sent.
        """
        if self.incoming is None:
            return None
        try:
            if not self.incoming.test():
                return None
            data = bytes(self._data[: self.incoming.nbytes])
        except TransportError:  # those behind it can be read all the same
            self._post_next()
            unreadable(f"it is longer than {_SIZE} bytes")
        self._post_next()
        return Frame.unpack(data, self.nranks)

    def _post_next(self) -> None:
        self.incoming = None  # should the next one not come about
        self.incoming = self._post()
        self.posted(self.incoming)

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
            with suppress(TransportError):  # whatever it says comes too late
                while self.receive() is not None:
                    pass
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
