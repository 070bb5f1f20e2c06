"""Collectives that only hand blocks from rank to rank, over several clusters: gather, scatter, all_to_all.

C clusters; cluster i has n_i ranks, b_i of them border ranks; N ranks in all; S elements are all blocks of a gather or
scatter, f_r the part of them that belongs to the root's cluster; m elements are a block of an all_to_all. What cluster
i has for cluster j is one vector, a lane (`hetcomm.topology.lanes`). The border ranks of i divide it by their
bandwidth out, those of j by their bandwidth in, each within one element; where the two divisions overlap is a message,
at most b_i + b_j - 1 of them. Three phases for each lane:

1. The ranks of i hand the elements of each message to the border rank that sends it.
2. The messages, from border rank to border rank.
3. The receiving border ranks hand the elements to the ranks of j that get them.

Lanes are independent of one another, so the phases of one overlap those of the others. Long ones are cut into up to
`MAX_PARTS` parts, each divided by itself, and the lanes of a rank take turns: so all uplinks are busy from the
beginning, however unequal they are. Inside a cluster each block goes straight from rank to rank. A message that lies
as it is in the input of its sender, or in the output of its receiver, goes from there, or to there; any other is put
together in scratch.

==========  ==================================  =============================================  ============
collective  elements between clusters           steps of a rank, about                         latencies
==========  ==================================  =============================================  ============
gather      S(1-f_r), all into the root's       1; border rank n_i/b_i + 1, of the root's      1 to 3
            cluster                             cluster (sum of b_j) / b_r; the root n_r more
                                                and sum of b_j
scatter     S(1-f_r), all out of the root's     mirrored                                       1 to 3
            cluster
all_to_all  m(N^2 - sum of n_i^2), of which     2N to 4N                                       1 to 4, 1
            n_i(N-n_i)m out of i and as much                                                   where direct
            into i
==========  ==================================  =============================================  ============

Steps are for clusters of consecutive ranks; others have up to one for each block. Vector forms move exactly the
elements of each pair.

A lane of an all_to_all is ordered by source where the receiving cluster has as many border ranks as the sending one, or
more, else by target. The other end sorts n_i n_j blocks: its border ranks do if they are many or blocks are large;
else each row of blocks, those of one source or target, goes by way of another rank of that cluster, which sorts it.

Large equal blocks of an all_to_all go straight from rank to rank, n_i n_j messages, between two clusters of which all
ranks are border ranks with equal uplinks: every uplink has its share anyway, and nothing passes through a third rank.

Scratch of a border rank: the messages that it sends and receives, S(1-f_r)/b at most for gather and scatter, about
2n(N-n)m/b for all_to_all; of the others, rows that they sort, 2(N-n)m. In place, all_to_all first copies its input to
scratch, Nm.

Sources: J. L. Traeff, A. Rougier, "MPI Collectives and Datatypes for Hierarchical All-to-all Communication", EuroMPI
2014; NCCL's PXN, which also joins the messages of several ranks at the one that has the uplink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program, Slice
from hetcomm.topology.builder import SMALL_BYTES, Builder
from hetcomm.topology.lanes import Blocks, Lane, Piece
from hetcomm.topology.layout import Direction, Share, divide, messages
from hetcomm.topology.model import Topology
from hetcomm.topology.phases import DELIVERY, RESULTS, others

__all__ = ["MAX_PARTS", "PART_BYTES", "SORTING", "plan"]

PART_BYTES = 1 << 20
"""Of a lane, which is the least that is sent at one time where the lane is cut."""

MAX_PARTS = 32
"""Into how many parts a lane is cut: a fast uplink must not keep a slow one waiting for longer than one of them."""

SORTING = 3
"""The channel on which parts of messages travel between a border rank and those that sort them."""


def plan(collective: Collective, topology: Topology, rank: int) -> Program:
    """The program of `rank` for a gather, scatter or all_to_all over a topology of two or more clusters."""
    builder = Builder(collective, rank)
    if collective.total:
        exchange = _Exchange(builder, topology)
        _in_turns(exchange.receivers(), exchange.send)
        exchange.stay()
        _in_turns(exchange.senders(), exchange.receive)
    return builder.program(f"hierarchical {collective.kind.value}")


def _in_turns(clusters: Sequence[int], move: Callable[[int, int], bool]) -> None:
    """Move part 0 of every cluster's lane, then part 1 of those that have more, and so on."""
    part = 0
    while clusters:
        clusters = [there for there in clusters if move(there, part)]
        part += 1


@dataclass(frozen=True, slots=True)
class _Message:
    """Elements `start` to `stop` of a lane, as the cluster at one end of it sees their message.

    Attributes:
        border: The border rank of this cluster that sends or receives it.
        peer: The one of the other cluster.
        legs: The parts of it, each with the rank of this cluster that puts it together or takes it apart.
    """

    start: int
    stop: int
    border: int
    peer: int
    legs: tuple[Share, ...]

    def part(self, whole: Slice, leg: Share) -> Slice:
        """A leg of the message, all of which lies in `whole`."""
        return whole.part(leg.start - self.start, leg.count)


class _Exchange:
    """One collective as one rank sees it; of the other ranks it needs nothing but arithmetic.

    Between two ranks of a cluster the messages of a channel come in the same order on both: what goes to other
    clusters, what stays, what comes from other clusters, each cluster by cluster and ascending.
    """

    def __init__(self, builder: Builder, topology: Topology) -> None:
        collective, rank = builder.collective, builder.rank
        self._builder, self._collective, self._me = builder, collective, rank
        self._clusters, self._here = topology.clusters, topology.cluster_index(rank)
        self._cluster = self._clusters[self._here]
        self._root_at = topology.cluster_index(collective.root) if collective.root is not None else None
        self._divisions: dict[tuple[int, Direction], Sequence[Share]] = {}
        self._lanes: dict[tuple[int, int], Lane] = {}
        source, target = builder.source(), builder.target()
        if collective.kind is CollectiveKind.ALL_TO_ALL and collective.in_place:
            kept = builder.scratch(source.count)
            builder.copy(source, kept)
            source = kept
        self._blocks = Blocks(collective, rank, source, target)

    # ---- who has to do with whom

    def receivers(self) -> Sequence[int]:
        """The clusters that this one has something for."""
        return self._partners(CollectiveKind.SCATTER)

    def senders(self) -> Sequence[int]:
        """The clusters that have something for this one."""
        return self._partners(CollectiveKind.GATHER)

    def _partners(self, fanning: CollectiveKind) -> Sequence[int]:
        """Without a root all other clusters. With one, where the kind is `fanning`, all at the root's cluster and none
        elsewhere; where it is not, the root's cluster elsewhere and none there."""
        if self._root_at is None:
            return others(self._here, len(self._clusters))
        if (self._here == self._root_at) != (self._collective.kind is fanning):
            return ()
        if self._here != self._root_at:
            return (self._root_at,)
        concerned = self._me == self._collective.root or self._me in self._cluster.border
        return others(self._here, len(self._clusters)) if concerned else ()

    def _ranks(self, cluster: int, *, of_source: bool) -> Sequence[int]:
        """The ranks of a cluster that have something to give, or those that get something."""
        if self._collective.kind is not (CollectiveKind.SCATTER if of_source else CollectiveKind.GATHER):
            return self._clusters[cluster].ranks
        return (self._collective.root or 0,) if cluster == self._root_at else ()

    def _round(self, ranks: Sequence[int], ahead: int) -> Iterator[int]:
        """`ranks`, the first one `ahead` of this rank's own position, so that not all send to the same one first."""
        first = self._cluster.ranks.index(self._me) + ahead
        return (ranks[(first + k) % len(ranks)] for k in range(len(ranks)))

    def _is_direct(self, there: int) -> bool:
        """Whether what this cluster and cluster `there` have for each other goes from rank to rank."""
        collective, both = self._collective, (self._cluster, self._clusters[there])
        if collective.kind is not CollectiveKind.ALL_TO_ALL or collective.counts is not None:
            return False
        large = collective.count * collective.dtype.itemsize > SMALL_BYTES
        return large and all(len(cluster) == len(cluster.border) and cluster.is_even for cluster in both)

    # ---- lanes

    def send(self, there: int, part: int) -> bool:
        """Send one part of what this cluster has for cluster `there`; whether there are more."""
        builder = self._builder
        if self._is_direct(there):
            start, stop, more = self._part(self._collective.count, self._pairs(there), part)
            for target in self._round(self._clusters[there].ranks, 0):
                builder.send(self._blocks.outgoing(target, start, stop - start), target, RESULTS)
            return more
        lane = self._lane(self._here, there)
        start, stop, more = self._part(lane.total, 1, part)
        found = self._messages(lane, there, start, stop, of_source=True)
        for sorter, own in self._own_parts(lane, found, of_source=True):
            builder.send(own, sorter, DELIVERY)
        for message in found:
            self._put_together(lane, message)
        return more

    def receive(self, there: int, part: int) -> bool:
        """Receive one part of what cluster `there` has for this one; whether there are more."""
        builder = self._builder
        if self._is_direct(there):
            start, stop, more = self._part(self._collective.count, self._pairs(there), part)
            for source in self._clusters[there].ranks:
                builder.recv(self._blocks.incoming(source, start, stop - start), source, RESULTS)
            return more
        lane = self._lane(there, self._here)
        start, stop, more = self._part(lane.total, 1, part)
        found = self._messages(lane, there, start, stop, of_source=False)
        for message in found:
            self._take_apart(lane, message)
        for sorter, own in self._own_parts(lane, found, of_source=False):
            builder.recv(own, sorter, DELIVERY)
        return more

    def _pairs(self, there: int) -> int:
        return len(self._cluster) * len(self._clusters[there])

    def _part(self, count: int, times: int, part: int) -> tuple[int, int, bool]:
        """(start, stop) of part `part` of `count` elements, in a lane `times` as long, and whether more follow."""
        nbytes = count * times * self._collective.dtype.itemsize
        nparts = max(1, min(MAX_PARTS, nbytes // PART_BYTES))
        return count * part // nparts, count * (part + 1) // nparts, part + 1 < nparts

    def _lane(self, here: int, there: int) -> Lane:
        lane = self._lanes.get((here, there))
        if lane is None:
            lane = self._new_lane(here, there)
            if self._part(lane.total, 1, 0)[2]:  # it will be asked for again
                self._lanes[here, there] = lane
        return lane

    def _new_lane(self, here: int, there: int) -> Lane:
        collective, by_source = self._collective, True
        if collective.kind is CollectiveKind.ALL_TO_ALL:
            by_source = len(self._clusters[there].border) >= len(self._clusters[here].border)
        count = collective.count if collective.counts is None else self._blocks.count
        return Lane(self._ranks(here, of_source=True), self._ranks(there, of_source=False), by_source, count)

    def _messages(self, lane: Lane, there: int, first: int, last: int, *, of_source: bool) -> list[_Message]:
        """The messages of elements `first` to `last` of a lane."""
        ours, theirs = (Direction.OUT, Direction.IN) if of_source else (Direction.IN, Direction.OUT)
        own = self._divisions.get((last - first, ours))  # often the same for many clusters
        if own is None:
            own = self._divisions[last - first, ours] = divide(self._cluster, last - first, ours)
        together, ranks, found = self._sorts_together(lane, of_source=of_source), self._cluster.ranks, []
        for begin, end, border, peer in messages(own, divide(self._clusters[there], last - first, theirs)):
            start, stop = first + begin, first + end
            legs: tuple[Share, ...] = (Share(start, stop, border),)
            if together:
                rows = lane.rows(start, stop)
                legs = tuple(Share(a, b, ranks[(row + there) % len(ranks)]) for a, b, row in rows)
            found.append(_Message(start, stop, border, peer, legs))
        return found

    def _sorts_together(self, lane: Lane, *, of_source: bool) -> bool:
        """Whether all ranks of this cluster, not its border ranks alone, bring the blocks into order."""
        nouter, ninner = len(lane.outer), len(lane.inner)
        if of_source is lane.by_source or min(nouter, ninner) == 1:
            return False
        small = lane.total * self._collective.dtype.itemsize <= SMALL_BYTES * nouter * ninner
        return small and 2 * len(self._cluster.border) <= len(self._cluster) > 2

    # ---- inside the cluster

    def stay(self) -> None:
        """Hand the blocks that stay in this cluster from rank to rank."""
        builder, me, here = self._builder, self._me, self._here
        sources, targets = self._ranks(here, of_source=True), self._ranks(here, of_source=False)
        if me in sources:
            for target in self._round(targets, 1):
                if target != me:
                    builder.send(self._blocks.outgoing(target), target, DELIVERY)
        if me in targets:
            for source in self._round(sources, 1):
                if source != me:
                    builder.recv(self._blocks.incoming(source), source, DELIVERY)
                elif self._collective.kind is not CollectiveKind.ALL_TO_ALL or not self._collective.in_place:
                    builder.copy(self._blocks.outgoing(me), self._blocks.incoming(me))

    def _own(self, piece: Piece, *, of_source: bool) -> Slice:
        """Where a piece lies in this rank's input or output."""
        count = piece.stop - piece.start
        if of_source:
            return self._blocks.outgoing(piece.target, piece.inside, count)
        return self._blocks.incoming(piece.source, piece.inside, count)

    def _own_parts(self, lane: Lane, found: list[_Message], *, of_source: bool) -> Iterator[tuple[int, Slice]]:
        """(rank that sorts it, part) of all that this rank gives or gets, ascending, but for what it sorts itself."""
        if self._me not in (lane.sources if of_source else lane.targets):
            return
        legs = [leg for message in found for leg in message.legs]
        for start, stop, sorter, _ in messages(legs, lane.parts(self._me, of_source=of_source)):
            if sorter != self._me:
                for piece in lane.pieces(start, stop, of_source=of_source):
                    yield sorter, self._own(piece, of_source=of_source)

    def _as_it_is(self, lane: Lane, message: _Message, *, of_source: bool) -> Slice | None:
        """Where the message of this border rank lies in its input or output, if all of it does."""
        if len(message.legs) > 1 or message.legs[0].rank != self._me:
            return None
        pieces = lane.pieces(message.start, message.stop, of_source=of_source)
        first = next(pieces)
        if first.stop < message.stop or (first.source if of_source else first.target) != self._me:
            return None
        return self._own(first, of_source=of_source)

    def _put_together(self, lane: Lane, message: _Message) -> None:
        """This rank's part in sending a message, if it has one."""
        builder, me, whole = self._builder, self._me, None
        if message.border == me:
            whole = self._as_it_is(lane, message, of_source=True)
            if whole is not None:
                builder.send(whole, message.peer, RESULTS)
                return
            whole = builder.scratch(message.stop - message.start)
        for leg in message.legs:
            if leg.rank == me:
                part = builder.scratch(leg.count) if whole is None else message.part(whole, leg)
                self._collect(lane, leg, part)
                if whole is None:
                    builder.send(part, message.border, SORTING)
            elif whole is not None:
                builder.recv(message.part(whole, leg), leg.rank, SORTING)
        if whole is not None:
            builder.send(whole, message.peer, RESULTS)

    def _take_apart(self, lane: Lane, message: _Message) -> None:
        """This rank's part in receiving a message, if it has one."""
        builder, me, whole = self._builder, self._me, None
        if message.border == me:
            whole = self._as_it_is(lane, message, of_source=False)
            if whole is not None:
                builder.recv(whole, message.peer, RESULTS)
                return
            whole = builder.scratch(message.stop - message.start)
            builder.recv(whole, message.peer, RESULTS)
        for leg in message.legs:
            if leg.rank == me:
                part = builder.scratch(leg.count) if whole is None else message.part(whole, leg)
                if whole is None:
                    builder.recv(part, message.border, SORTING)
                self._distribute(lane, leg, part)
            elif whole is not None:
                builder.send(message.part(whole, leg), leg.rank, SORTING)

    def _collect(self, lane: Lane, leg: Share, room: Slice) -> None:
        """Take what the ranks of this cluster give of a leg."""
        for piece in lane.pieces(leg.start, leg.stop, of_source=True):
            part = room.part(piece.start - leg.start, piece.stop - piece.start)
            if piece.source == self._me:
                self._builder.copy(self._own(piece, of_source=True), part)
            else:
                self._builder.recv(part, piece.source, DELIVERY)

    def _distribute(self, lane: Lane, leg: Share, arrived: Slice) -> None:
        """Hand out what the ranks of this cluster get of a leg."""
        for piece in lane.pieces(leg.start, leg.stop, of_source=False):
            part = arrived.part(piece.start - leg.start, piece.stop - piece.start)
            if piece.target == self._me:
                self._builder.copy(part, self._own(piece, of_source=False))
            else:
                self._builder.send(part, piece.target, DELIVERY)
