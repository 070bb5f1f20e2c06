"""A scan along one chain of all ranks, piece by piece: for long vectors.

Each rank gets the prefix of those before it, adds its own part, and hands the sum on; a piece is at one rank while the
next is at the rank before. Within a stretch of the rank order (`hetcomm.topology.stretches`) a rank hands on to the
next. From one cluster to another a piece takes three messages one after another: from the last rank of the stretch to
its cluster's border ranks, each of which gets its share, from those to the border ranks of the other cluster, and on to
the first rank of the stretch there. A rank that is a border rank keeps its own share.

Every message has a turn, its place on the chain plus its piece, and programs hold the messages by their turns: what a
border rank passes on for other stretches comes in the order in which it can go, and what goes from one rank to another
is in the same order on both.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hetcomm.schedule.spec import Sources
from hetcomm.schedule.steps import Buffer, Slice
from hetcomm.topology.builder import Builder
from hetcomm.topology.layout import Direction, divide, messages
from hetcomm.topology.model import Topology
from hetcomm.topology.stretches import Stretch

__all__ = ["Chain"]

_WINDOW = 4  # pieces after which scratch is used again


@dataclass(frozen=True, slots=True)
class _Message:
    """Elements `start` to `stop` of a piece, on their way from rank `link` to the next."""

    turn: int
    link: int
    stage: int
    piece: int
    start: int
    stop: int
    sender: int
    receiver: int

    @property
    def order(self) -> tuple[int, int, int, int]:
        """By turns, and of one turn what has come farthest first."""
        return self.turn, -self.link, -self.stage, self.start


class Chain:
    """The chain as one rank sees it.

    Args:
        builder: Takes the steps.
        source, target: Input and output of this rank.
        stretches: Of the rank order.
        mine: The numbers of those that this rank has to do with: its own, as a border rank all of its cluster.
        topology: Whose border ranks share what goes between clusters; None: it goes straight from rank to rank.
        npieces: Of the vector, which has as many elements at least.
    """

    def __init__(
        self,
        builder: Builder,
        source: Slice,
        target: Slice,
        stretches: Sequence[Stretch],
        mine: Sequence[int],
        topology: Topology | None,
        npieces: int,
    ) -> None:
        self._builder, self._rank, self._nranks = builder, builder.rank, builder.collective.nranks
        self._stretches, self._mine = stretches, mine
        self._topology, self._npieces = topology, npieces
        self._source, self._target = source, target
        self._is_exclusive = builder.collective.kind.row.sources is Sources.BEFORE
        self._longest = -(-self._target.count // npieces)
        self._held: dict[int, Slice] = {}  # of a piece, what this rank hands on
        self._rooms: dict[tuple[int, int], Slice] = {}  # of a piece and a link, where it arrives
        self._lent: dict[int, Slice] = {}  # scratch in use, by where it begins
        self._spent: deque[Slice] = deque()  # scratch that was used last

    def run(self) -> None:
        """Write all steps."""
        if self._rank == 0:
            for piece in range(self._npieces):
                self._held[piece] = self._part(self._source, piece)
        order = sorted(self._messages(), key=lambda message: message.order)
        left = Counter((message.piece, message.link) for message in order)
        for each in order:
            if each.sender == self._rank:
                self._builder.send(self._lying(each), each.receiver, each.stage)
            else:
                self._builder.recv(self._lying(each), each.sender, each.stage)
            left[each.piece, each.link] -= 1
            if not left[each.piece, each.link]:
                self._over(each.piece, each.link)
        if self._rank == 0 and self._is_exclusive:
            self._builder.fill(self._target)
        elif self._rank == 0:
            self._builder.copy(self._source, self._target)

    # ---- the messages

    def _messages(self) -> Iterator[_Message]:
        """Those that this rank sends or receives."""
        for link, number in self._links().items():
            place = link + (2 * number if self._topology is not None else 0)
            for piece in range(self._npieces):
                for stage, start, stop, sender, receiver in self._stages(link, number, piece):
                    if self._rank in (sender, receiver):
                        yield _Message(piece + place + stage, link, stage, piece, start, stop, sender, receiver)

    def _links(self) -> dict[int, int]:
        """What this rank may have to do with, each with the number of the stretch that it begins in.

        Link r is from rank r to the next: its own, and those by which its cluster's stretches begin and end.
        """
        found: dict[int, int] = {}
        for number in self._mine:
            stretch = self._stretches[number]
            found |= {link: number for link in (self._rank - 1, self._rank) if stretch.start <= link < stretch.stop}
            found |= {stretch.start - 1: number - 1, stretch.last: number}
        return {link: number for link, number in found.items() if 0 <= link < self._nranks - 1}

    def _stages(self, link: int, number: int, piece: int) -> Iterator[tuple[int, int, int, int, int]]:
        """(stage, start, stop, sender, receiver) of the messages of a piece."""
        count = self._part(self._target, piece).count
        if self._topology is None or link < self._stretches[number].last:
            yield 0, 0, count, link, link + 1
            return
        clusters = self._topology.clusters
        out = divide(clusters[self._stretches[number].cluster], count, Direction.OUT)
        into = divide(clusters[self._stretches[number + 1].cluster], count, Direction.IN)
        yield from ((0, share.start, share.stop, link, share.rank) for share in out if share.rank != link)
        yield from ((1, *message) for message in messages(out, into))
        yield from ((2, share.start, share.stop, share.rank, link + 1) for share in into if share.rank != link + 1)

    # ---- where things are

    def _part(self, whole: Slice, piece: int) -> Slice:
        start = whole.count * piece // self._npieces
        return whole.part(start, whole.count * (piece + 1) // self._npieces - start)

    def _lying(self, message: _Message) -> Slice:
        """Where on this rank the elements of a message are."""
        piece, link = message.piece, message.link
        whole = self._held[piece] if link == self._rank else self._room(piece, link)
        return whole.part(message.start, message.stop - message.start)

    def _room(self, piece: int, link: int) -> Slice:
        """Where what comes of a piece is kept: a prefix in the output, unless the input is there and still needed."""
        found = self._rooms.get((piece, link))
        if found is not None:
            return found
        if link != self._rank - 1:
            found = self._scratch()  # to be passed on
        else:
            own, found = self._part(self._source, piece), self._part(self._target, piece)
            if self._is_exclusive and self._rank < self._nranks - 1:
                self._held[piece] = self._scratch().part(0, own.count)
                self._builder.copy(own, self._held[piece])
            elif not self._is_exclusive and own.overlaps(found):
                found = self._scratch().part(0, own.count)
        self._rooms[piece, link] = found
        return found

    def _over(self, piece: int, link: int) -> None:
        """Nothing else comes or goes of a piece by this link."""
        if link == self._rank:
            self._retire(self._held.pop(piece))
            return
        room = self._rooms.pop((piece, link))
        if link == self._rank - 1:
            self._add(piece, room)
        self._retire(room)

    def _add(self, piece: int, prefix: Slice) -> None:
        """Add this rank's part to the prefix of those before it."""
        own, result = self._part(self._source, piece), self._part(self._target, piece)
        if self._is_exclusive:
            if piece in self._held:
                self._builder.reduce(prefix, self._held[piece])
            return
        self._builder.reduce(own if prefix == result else prefix, result)
        if self._rank < self._nranks - 1:
            self._held[piece] = result

    def _scratch(self) -> Slice:
        room = self._builder.scratch(self._longest)
        self._lent[room.offset] = room
        return room

    def _retire(self, used: Slice) -> None:
        """What was used some pieces ago may be used again."""
        room = self._lent.pop(used.offset, None) if used.buffer is Buffer.SCRATCH else None
        if room is not None:
            self._spent.append(room)
            if len(self._spent) > _WINDOW:
                self._builder.release([self._spent.popleft()])
