"""A scan in few messages one after another, each of the whole vector or a share of it: for short vectors.

Three phases:

1. In every stretch of the rank order (`hetcomm.topology.stretches`) recursive doubling (W. D. Hillis, G. L. Steele,
   "Data Parallel Algorithms", CACM 29(12), 1986): its ranks exchange what they have over distances 1, 2, 4, ...
2. The last rank of a stretch, which now has its sum, gives each border rank of the cluster its share. Border ranks hand
   the sums on from stretch to stretch, as `exchanges` has it, and add up what lies before each.
3. They give that to all ranks of the stretch, each its share along a binomial tree, and these add it to their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from hetcomm.schedule.spec import Sources
from hetcomm.schedule.steps import Slice
from hetcomm.topology.builder import Builder, Place
from hetcomm.topology.layout import Direction, Share, divide, messages
from hetcomm.topology.model import Topology
from hetcomm.topology.phases import within
from hetcomm.topology.stretches import Exchange, Stretch, exchanges

__all__ = ["Tree"]

Shares = Sequence[Share]
_INSIDE, _TOTALS, _ACROSS, _TURNED, _SPREAD = range(5)  # channels


class Tree:
    """The phases as one rank sees them.

    Args:
        builder: Takes the steps.
        source, target: Input and output of this rank.
        stretches: Of the rank order.
        mine: The numbers of those that this rank has to do with: its own, as a border rank all of its cluster.
        topology: Whose border ranks share what goes between clusters; None: the last ranks of stretches do it all.
    """

    def __init__(
        self,
        builder: Builder,
        source: Slice,
        target: Slice,
        stretches: Sequence[Stretch],
        mine: Sequence[int],
        topology: Topology | None,
    ) -> None:
        self._builder, self._rank = builder, builder.rank
        self._stretches, self._mine, self._topology = stretches, mine, topology
        self._source, self._target = source, target
        self._count = self._target.count
        self._is_exclusive = builder.collective.kind.row.sources is Sources.BEFORE
        self._here = next(number for number in mine if self._rank in stretches[number].ranks)
        self._sums: dict[int, Place | None] = {}  # where this rank's share is of what a stretch hands on
        self._before: dict[int, Place] = {}  # and of what lies before it

    def run(self) -> None:
        """Write all steps."""
        total, before = self._inside(self._stretches[self._here])
        if len(self._stretches) > 1:
            self._give_totals(total)
            every = sorted({each for number in self._mine for each in exchanges(len(self._stretches), number)})
            turns = {each.source: each.turn for each in every}  # the last in which it hands something on
            for each in every:
                self._exchange(each, turns.get(each.target, -1) < each.turn)
        self._finish(total, before, self._spread())

    # ---- inside a stretch

    def _inside(self, stretch: Stretch) -> tuple[Slice, Slice | None]:
        """The sum of the stretch's ranks up to this one, and for an exscan that of those before it, if there are any.

        The first may be the input itself; in an exscan it is left out where nobody needs it.
        """
        builder, rank, held = self._builder, self._rank, self._source
        goes_on = stretch is not self._stretches[-1]
        before: Slice | None = None
        distance = 1
        while distance < len(stretch.ranks):
            if rank + distance < stretch.stop:
                builder.send(held, rank + distance, _INSIDE)
            if rank - distance >= stretch.start:
                arrived = builder.scratch(self._count)
                builder.recv(arrived, rank - distance, _INSIDE)
                if not self._is_exclusive:
                    builder.reduce(held, arrived)
                    held = arrived
                else:
                    if rank + 2 * distance < stretch.stop or (rank == stretch.last and goes_on):
                        held = self._sum(held, arrived)
                    if before is None:
                        before = arrived
                    else:
                        builder.reduce(arrived, before)
            distance *= 2
        return held, before

    def _sum(self, held: Slice, arrived: Slice) -> Slice:
        """Both together, in scratch of its own."""
        found = self._builder.scratch(self._count)
        self._builder.copy(held, found)
        self._builder.reduce(arrived, found)
        return found

    # ---- between stretches

    def _shares(self, number: int, direction: Direction) -> Shares:
        """Who handles what comes to a stretch, or goes out of it."""
        stretch = self._stretches[number]
        if self._topology is None:
            return (Share(0, self._count, stretch.last),)
        return divide(self._topology.clusters[stretch.cluster], self._count, direction)

    def _give_totals(self, total: Slice) -> None:
        """The sums of the stretches to those who hand them on; nobody needs that of the last."""
        for number in self._mine:
            if number < len(self._stretches) - 1:
                whole = (Share(0, self._count, self._stretches[number].last),)
                self._sums[number] = self._moved(within(total), whole, self._shares(number, Direction.OUT), _TOTALS)

    def _exchange(self, exchange: Exchange, is_last: bool) -> None:
        """The target gets the sum of the source, and adds it to its own, unless that has been handed on already."""
        source, target, here = exchange.source, exchange.target, self._stretches[self._here].cluster
        given, taken = self._shares(source, Direction.OUT), self._shares(target, Direction.OUT)
        held = self._sums.get(source)
        if self._stretches[source].cluster == self._stretches[target].cluster:
            arrived = self._moved(held, given, taken, _ACROSS)
        else:
            landed = self._shares(target, Direction.IN)
            arrived = self._moved(held, given, landed, _ACROSS)
            if landed != taken and self._stretches[target].cluster == here:
                arrived = self._moved(arrived, landed, taken, _TURNED)
        mine = next((share for share in taken if share.rank == self._rank), None)
        if mine is None or arrived is None:
            return
        place = mine.start, mine.stop
        before, sums = self._before.get(target), self._sums.get(target)
        if before is None:
            self._before[target] = arrived
        else:
            self._builder.reduce(arrived(*place), before(*place))
        if sums is not None and not is_last:
            self._builder.reduce(arrived(*place), sums(*place))

    def _moved(self, held: Place | None, senders: Shares, receivers: Shares, channel: int) -> Place | None:
        """Elements go from those who handle them to others who will; where this rank's then are, if it has any."""
        builder, rank = self._builder, self._rank
        mine = next((share for share in receivers if share.rank == rank), None)
        room = within(builder.scratch(mine.count), mine.start) if mine is not None else None
        for start, stop, sender, receiver in messages(senders, receivers):
            if sender == rank and held is not None:
                if room is not None and receiver == rank:
                    builder.copy(held(start, stop), room(start, stop))
                else:
                    builder.send(held(start, stop), receiver, channel)
            elif room is not None and receiver == rank:
                builder.recv(room(start, stop), sender, channel)
        return room

    # ---- from the border ranks to all

    def _spread(self) -> list[tuple[int, Slice]]:
        """What lies before each stretch to its ranks; (where it begins, elements) of the parts that this rank gets."""
        found = []
        for number in self._mine:
            if number:
                for share in self._shares(number, Direction.OUT):
                    part = self._hand_down(number, share)
                    if part is not None:
                        found.append((share.start, part))
        return found

    def _hand_down(self, number: int, share: Share) -> Slice | None:
        """A share of what lies before a stretch along a binomial tree; where this rank has it, if it needs it."""
        builder, ranks = self._builder, self._stretches[number].ranks
        members = [share.rank, *(rank for rank in ranks if rank != share.rank)]
        if self._rank not in members:
            return None
        place = members.index(self._rank)
        if place:
            part = builder.scratch(share.count)
            builder.recv(part, members[place - (1 << place.bit_length() - 1)], _SPREAD)
        else:
            part = self._before[number](share.start, share.stop)
        distance = 1 << place.bit_length()
        while place + distance < len(members):
            builder.send(part, members[place + distance], _SPREAD)
            distance *= 2
        return part if self._rank in ranks else None

    def _finish(self, total: Slice, before: Slice | None, parts: Sequence[tuple[int, Slice]]) -> None:
        """The output: what this rank's stretch has up to it, and what lies before the stretch."""
        builder, inside = self._builder, before if self._is_exclusive else total
        if inside is not None:
            builder.copy(inside, self._target)
        elif not parts:
            builder.fill(self._target)
        for start, part in parts:
            place = self._target.part(start, part.count)
            if inside is not None:
                builder.reduce(part, place)
            else:
                builder.copy(part, place)
