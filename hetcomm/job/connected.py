"""Groups over the transport: how ranks that are connected exchange small payloads, as to make a communicator.

A payload travels behind its length: 1 KiB of both first, and the rest in a second message. Groups of a communicator use
its context, so that nothing which a broken one has left on its way meets another's.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence

from hetcomm.calls.buffers import memory
from hetcomm.errors import PeerFailureError, TransportError
from hetcomm.execution import tags
from hetcomm.execution.execution import collect
from hetcomm.job.group import JobGroup, MessageGroup
from hetcomm.transport.base import Request, Transport

__all__ = ["MEETING", "SHRINKING", "ConnectedGroup"]

MEETING = 1
"""What tells the group of all ranks, before any communicator has a context, from that of context 0."""

SHRINKING = 2
"""The first number of groups that survivors form in the context of a broken communicator."""

_FIRST = 1024
_LENGTH = struct.Struct("<Q")
_MOST = 1 << 30  # bytes of a payload; who says more is no rank of this version of hetcomm

_held: list[tuple[Request, bytearray]] = []  # what a transport would not let go of


class ConnectedGroup(MessageGroup):
    """Some ranks of a job whose transport reaches them.

    Whichever two ranks share several groups of one context use them in the same order.

    Args:
        transport: Reaches every rank under its number in the job.
        origin: The same ranks as they met: closes what it holds, and knows how ranks have ended.
        rank: This process's number in the group.
        ranks: The group, as ranks of the job.
        timeout: Seconds every exchange may take.
        context, which: See `hetcomm.execution.tags.group`.
    """

    def __init__(
        self,
        transport: Transport,
        origin: JobGroup,
        rank: int,
        ranks: Sequence[int],
        timeout: float,
        context: int = 0,
        which: int = MEETING,
    ) -> None:
        super().__init__(rank, ranks, timeout)
        self._transport = transport
        self._origin = origin
        self._context, self._which = context, which

    def subgroup(self, ranks: Sequence[int]) -> ConnectedGroup:
        members = [self._ranks[rank] for rank in ranks]
        mine = members.index(self._ranks[self._rank])
        origin = self._origin.subgroup(ranks)
        return ConnectedGroup(self._transport, origin, mine, members, self._timeout, self._context, self._which)

    def within(self, context: int, which: int = 0, timeout: float | None = None) -> ConnectedGroup:
        """The same ranks, with messages that meet no others: see `hetcomm.execution.tags.group`."""
        seconds = self._timeout if timeout is None else timeout
        return ConnectedGroup(self._transport, self._origin, self._rank, self._ranks, seconds, context, which)

    def failure(self, ended: Collection[int]) -> PeerFailureError:
        """The error for ranks of this group that have ended, with what is known of how."""
        return self._origin.failure(ended)

    def close(self) -> None:
        """Release what the ranks met over."""
        self._origin.close()

    def _ended(self) -> Collection[int]:
        return self._transport.failed_peers()

    def _tag(self, source: int) -> int:
        return tags.group(self._context, self._ranks[source], self._which)

    def _send(self, payload: bytes, rank: int, deadline: float) -> None:
        packed = _LENGTH.pack(len(payload)) + payload
        pieces = [bytearray(packed[:_FIRST].ljust(_FIRST, b"\0"))]
        if len(packed) > _FIRST:
            pieces.append(bytearray(packed[_FIRST:]))
        self._transfer(pieces, rank, deadline, sends=True)

    def _receive(self, rank: int, deadline: float) -> bytes:
        first = bytearray(_FIRST)
        self._transfer([first], rank, deadline, sends=False)
        (nbytes,) = _LENGTH.unpack_from(first)
        if nbytes > _MOST:
            raise TransportError(f"a payload of {nbytes} bytes cannot be", rank=self.rank, peer=rank)
        rest = bytearray(max(0, nbytes + _LENGTH.size - _FIRST))
        if rest:
            self._transfer([rest], rank, deadline, sends=False)
        return bytes(first[_LENGTH.size : _LENGTH.size + nbytes] + rest)

    def _transfer(self, pieces: Sequence[bytearray], rank: int, deadline: float, *, sends: bool) -> None:
        """Send some pieces, or receive into them, and wait until that is done.

        Raises:
            CollectiveTimeoutError, PeerFailureError, TransportError: It was not; the pieces are left alone.
        """
        peer, tag = self._ranks[rank], self._tag(self.rank if sends else rank)
        start = self._transport.send if sends else self._transport.recv
        under_way: list[tuple[Request, bytearray]] = []

        def over() -> bool:
            while under_way and under_way[0][0].test():
                under_way.pop(0)
            return not under_way

        with self._moving.lock:
            try:
                for piece in pieces:
                    address = memory(piece, argument="payload", rank=self.rank, writable=True).address
                    under_way.append((start(address, len(piece), peer, tag), piece))
                if not self._wait(over, deadline):
                    raise self._late((rank,))
            except PeerFailureError as error:
                raise (error if error.rank is not None else self.failure((rank,))) from error
            finally:
                if under_way and not collect(self._transport, [request for request, _ in under_way]):
                    _held.extend(under_way)
