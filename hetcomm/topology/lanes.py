"""Who has which block for whom, and what one cluster has for another: blocks in an order that both clusters know.

A *lane* is that vector of elements. Its blocks are ordered by one rank of their pair (source, target), the *outer* one,
and then by the other, each in home order. The border ranks of both clusters divide it by their bandwidths, which
cuts it into messages; the ranks whose blocks they are find theirs by the same arithmetic. Elements that lie
side by side in the lane, and also in the buffer of one rank, are a *piece*: it travels as one.

For an outer rank a piece is a stretch of consecutive inner ranks' blocks; for an inner rank it is one block, or, where
there is one inner rank only, a stretch of consecutive outer ranks' blocks. Nothing here costs more than the pieces that
are asked for, except where blocks are unequal: their offsets are added up once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Slice
from hetcomm.topology.layout import Share

__all__ = ["Blocks", "Lane", "Piece"]


class Blocks:
    """The blocks of a gather, scatter or all_to_all, and where those of one rank lie in its packed buffers.

    A scatter has only the root as a source, a gather only the root as a target.
    """

    def __init__(self, collective: Collective, rank: int, source: Slice, target: Slice) -> None:
        self._collective, self._rank, self._source, self._target = collective, rank, source, target
        self._sent: Sequence[int] = ()
        self._got: Sequence[int] = ()
        if collective.kind is CollectiveKind.ALL_TO_ALL:
            self._sent = (0, *accumulate(collective.sent_counts(rank)))
            self._got = (0, *accumulate(collective.received_counts(rank)))

    def count(self, source: int, target: int) -> int:
        """Elements that `source` has for `target`."""
        if self._collective.kind is CollectiveKind.ALL_TO_ALL:
            return self._collective.pair_count(source, target)
        return self._collective.block_count(source if self._collective.kind is CollectiveKind.GATHER else target)

    def outgoing(self, target: int, inside: int = 0, count: int | None = None) -> Slice:
        """In this rank's input, `count` elements from element `inside` of the block for `target` on, which may
        go on into the blocks behind it; None: that block."""
        start = 0
        if self._collective.kind is CollectiveKind.SCATTER:
            start = self._collective.block_offset(target)
        elif self._sent:
            start = self._sent[target]
        return self._source.part(start + inside, self.count(self._rank, target) if count is None else count)

    def incoming(self, source: int, inside: int = 0, count: int | None = None) -> Slice:
        """The same in this rank's output for the block from `source`."""
        start = 0
        if self._collective.kind is CollectiveKind.GATHER:
            start = self._collective.block_offset(source)
        elif self._got:
            start = self._got[source]
        return self._target.part(start + inside, self.count(source, self._rank) if count is None else count)


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements `start` to `stop` of a lane, which begin `inside` elements behind the start of the block of a pair."""

    start: int
    stop: int
    source: int
    target: int
    inside: int


class Lane:
    """The blocks that `sources` have for `targets`, in elements.

    Args:
        sources: Ranks of one cluster, in home order.
        targets: Ranks of another.
        by_source: The sources are the outer ranks, else the targets.
        count: Elements of every block, not 0; or of the block of each (source, target).
    """

    def __init__(
        self, sources: Sequence[int], targets: Sequence[int], by_source: bool, count: int | Callable[[int, int], int]
    ) -> None:
        self.sources, self.targets, self.by_source = sources, targets, by_source
        self.outer, self.inner = (sources, targets) if by_source else (targets, sources)
        nblocks = len(sources) * len(targets)
        self._cuts: Sequence[int]
        if isinstance(count, int):
            self._cuts = range(0, nblocks * count + 1, count)
        elif by_source:
            self._cuts = [0, *accumulate(count(source, target) for source in sources for target in targets)]
        else:
            self._cuts = [0, *accumulate(count(source, target) for target in targets for source in sources)]
        self.total = self._cuts[nblocks]
        self._stretches: dict[bool, Sequence[int]] = {}

    def parts(self, rank: int, *, of_source: bool) -> Sequence[Share]:
        """The blocks of `rank`, which is a source or else a target, ascending; empty ones may be among them."""
        cuts, ninner = self._cuts, len(self.inner)
        if of_source is self.by_source:
            first = self.outer.index(rank) * ninner
            return (Share(cuts[first], cuts[first + ninner], rank),)
        if ninner == 1:
            return (Share(0, self.total, rank),)
        first = self.inner.index(rank)
        return [Share(cuts[k], cuts[k + 1], rank) for k in range(first, len(self.outer) * ninner, ninner)]

    def pieces(self, start: int, stop: int, *, of_source: bool) -> Iterator[Piece]:
        """Elements `start` to `stop`, ascending, as pieces of the sources' inputs or of the targets' outputs."""
        cuts, ninner = self._cuts, len(self.inner)
        block = bisect_right(cuts, start) - 1
        while start < stop:
            outer, inner = divmod(block, ninner)
            pair = (self.outer[outer], self.inner[inner]) if self.by_source else (self.inner[inner], self.outer[outer])
            if of_source is self.by_source:
                following = outer * ninner + self._ends(of_inner=True)[inner]
            else:
                following = self._ends(of_inner=False)[outer] if ninner == 1 else block + 1
            end = min(cuts[following], stop)
            yield Piece(start, end, *pair, start - cuts[block])
            start, block = end, following
            while start < stop and cuts[block + 1] == start:  # empty
                block += 1

    def rows(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, position of the outer rank) of each outer rank's part of elements `start` to `stop`."""
        cuts, ninner = self._cuts, len(self.inner)
        row = (bisect_right(cuts, start) - 1) // ninner
        while start < stop:
            end = min(cuts[(row + 1) * ninner], stop)
            if start < end:
                yield start, end, row
            start, row = end, row + 1

    def _ends(self, *, of_inner: bool) -> Sequence[int]:
        """For each position of the inner or outer ranks, the end of the stretch of consecutive ranks it belongs to."""
        found = self._stretches.get(of_inner)
        if found is None:
            ranks = self.inner if of_inner else self.outer
            ends = [len(ranks)] * len(ranks)
            if not isinstance(ranks, range):
                for k in range(len(ranks) - 2, -1, -1):
                    ends[k] = ends[k + 1] if ranks[k + 1] == ranks[k] + 1 else k + 1
            found = self._stretches[of_inner] = ends
        return found
