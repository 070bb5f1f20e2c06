"""Border reduction: where partial results are laid so that the vendor's own reduction combines them.

A region of y elements is owned by one cluster. Its own partial is the sum over the cluster's n ranks; every other
cluster that contributes sends its partial of the region, k of them. For each *slot* of the region the own partial
lies at a border rank (the holder) and each remote partial arrives at a different one, all at one offset, so that
one vendor call over the border communicator adds them. A rank that holds no partial of a slot puts in the identity.

====================  =========================  ============================  ===========================
the cluster has       communicator               remote partial r goes to      rounds
====================  =========================  ============================  ===========================
b >= 2, equal uplinks border, 1 reduce_scatter   rank (slot + 1 + r mod (b-1)) ceil(k / (b-1))
b >= 2, unequal       border, reduce per slot    the slot's rank by bandwidth  k
b = 1, n >= 2         home, reduce to a helper   the border rank               k
n = 1                 none, local `Reduce`       the rank                      k
any, if `locally`     the same, at equal uplinks the slot's rank               k
====================  =========================  ============================  ===========================

Into the cluster come k*y elements, divided over the border ranks in proportion to their uplinks' bandwidth in; the
finished elements lie at the border ranks in proportion to their bandwidth out. Scratch per border rank:
y for each round with equal uplinks, else at most (1 + k)y; k times its share where it adds by itself. For each
element all additions happen in one place and in one order, so every rank that gets it gets the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hetcomm.schedule.collective import CollectiveKind
from hetcomm.schedule.steps import CommId, Slice
from hetcomm.topology.builder import Builder
from hetcomm.topology.layout import Direction, Share, divide, messages
from hetcomm.topology.model import Cluster

__all__ = ["PARTIALS", "Combination", "Placement", "Slot", "combine", "place"]

PARTIALS = 0
"""The channel on which partials travel to the owner of their region."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Elements `start` to `stop` of a region.

    Attributes:
        holder: The rank that holds the cluster's own partial, and what has been added up between rounds.
        result: The rank that holds the finished elements.
        receiver: The rank that receives the first remote partial; never the holder, unless that adds by itself.
    """

    start: int
    stop: int
    holder: int
    result: int
    receiver: int

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Placement:
    """How one cluster combines a region it owns.

    Attributes:
        comm: The vendor communicator whose calls add; None where each rank adds up its slots by itself.
        members: Its ranks.
        slots: Ascending, together the region.
        per_round: Remote partials that are added in one round, each received by the next border rank round.
        scattered: A round is one reduce_scatter over all slots; otherwise one reduce for each.
    """

    comm: CommId | None
    members: Sequence[int]
    slots: tuple[Slot, ...]
    per_round: int
    scattered: bool

    @property
    def results(self) -> tuple[Share, ...]:
        """Who holds the finished elements."""
        return tuple(Share(slot.start, slot.stop, slot.result) for slot in self.slots)

    def receivers(self, remote: int) -> tuple[Share, ...]:
        """Who receives remote partial number `remote`; of each slot, no two of a round go to one rank."""
        turn = remote % self.per_round
        if not turn:
            return tuple(Share(slot.start, slot.stop, slot.receiver) for slot in self.slots)
        index = {rank: k for k, rank in enumerate(self.members)}
        return tuple(
            Share(slot.start, slot.stop, self.members[(index[slot.receiver] + turn) % len(self.members)])
            for slot in self.slots
        )


def place(cluster: Cluster, count: int, *, locally: bool = False) -> Placement:
    """How `cluster` combines `count` elements that it owns with any number of remote partials.

    `locally`: by `Reduce` steps of the border ranks rather than by its vendor, if their uplinks are equal.
    """
    border, nborder = cluster.border, len(cluster.border)
    if locally and cluster.is_even:
        shares = divide(cluster, count, Direction.OUT)
        own = tuple(Slot(share.start, share.stop, share.rank, share.rank, share.rank) for share in shares)
        return Placement(None, border, own, 1, False)
    if nborder == 1:
        rank, alone = border[0], len(cluster) == 1
        helper = rank if alone else cluster.ranks[(cluster.ranks.index(rank) + 1) % len(cluster)]
        slot = Slot(0, count, helper, rank, rank)
        return Placement(None if alone else cluster.home_id, cluster.ranks, (slot,), 1, False)
    by_out = divide(cluster, count, Direction.OUT)
    following = dict(zip(border, (*border[1:], border[0]), strict=True))
    if cluster.is_even:
        slots = tuple(Slot(share.start, share.stop, share.rank, share.rank, following[share.rank]) for share in by_out)
        return Placement(cluster.border_id, border, slots, nborder - 1, len(slots) == nborder)
    slots = tuple(
        Slot(start, stop, following[receiver], result, receiver)
        for start, stop, result, receiver in messages(by_out, divide(cluster, count, Direction.IN))
    )
    return Placement(cluster.border_id, border, slots, 1, False)


@dataclass(frozen=True, slots=True)
class Combination:
    """A region that one cluster owns, as one rank of that cluster sees it.

    Attributes:
        cluster: The owner.
        source: The region in this rank's input.
        placement: From `place`.
        incoming: For each remote partial, who sends what of it.
        result: Where on this rank the finished elements of a slot go whose `result` it is.
        is_last: Nothing is added to them any more, so that an average is divided now.
    """

    cluster: Cluster
    source: Slice
    placement: Placement
    incoming: Sequence[Sequence[Share]]
    result: Callable[[Slot], Slice]
    is_last: bool = True

    @property
    def nrounds(self) -> int:
        return -(-len(self.incoming) // self.placement.per_round)


def combine(builder: Builder, region: Combination) -> None:
    """Add the remote partials of a region to the owner's own; an average is then divided by the number of ranks."""
    comm = region.placement.comm
    if comm is None:
        _combine_locally(builder, region)
    elif region.placement.scattered:
        _combine_scattered(builder, region, comm)
    else:
        _combine_by_slot(builder, region, comm)


def _combine_locally(builder: Builder, region: Combination) -> None:
    """Each border rank adds the remote partials of its slots to the cluster's own, in their order."""
    totals = {slot.start: region.result(slot) for slot in region.placement.slots if slot.holder == builder.rank}
    _own_partial(builder, region, totals)
    rooms = [{start: builder.scratch(total.count) for start, total in totals.items()} for _ in region.incoming]
    for number, room in enumerate(rooms):
        _receive(builder, region, number, room)
    for room in rooms:
        for start, remote in room.items():
            builder.reduce(remote, totals[start])
    for total in totals.values():
        _finish(builder, region, total, total)


def _combine_scattered(builder: Builder, region: Combination, comm: CommId) -> None:
    """Rounds of one reduce_scatter; block k of a round's work buffer, as long as the longest slot, is slot k."""
    me, placement = builder.rank, region.placement
    slots, nmembers = placement.slots, len(placement.members)
    if me not in placement.members:
        _own_partial(builder, region, {})
        return
    width = max(slot.count for slot in slots)
    works = [builder.scratch(width * nmembers) for _ in range(region.nrounds)]
    parts = [{slot.start: work.part(number * width, slot.count) for number, slot in enumerate(slots)} for work in works]
    _own_partial(builder, region, parts[0])
    index = placement.members.index(me)
    filled = [{slots[index].start} for _ in works]
    for remote in range(len(region.incoming)):
        number = remote // placement.per_round
        filled[number] |= _receive(builder, region, remote, parts[number])
    for part, starts in zip(parts, filled, strict=True):
        for start, hole in part.items():
            if start not in starts:
                builder.fill(hole)
    target = region.result(slots[index])
    last = target if target.count == width else builder.scratch(width)
    totals = [work.part(index * width, width) for work in works[1:]] + [last]
    for work, total in zip(works, totals, strict=True):
        builder.vendor(comm, nmembers, CollectiveKind.REDUCE_SCATTER, width, src=work, dst=total)
    _finish(builder, region, last.part(0, target.count), target)


def _combine_by_slot(builder: Builder, region: Combination, comm: CommId) -> None:
    """Rounds of one reduce for each slot, to its holder and in the last round to where the result belongs."""
    me, placement = builder.rank, region.placement
    slots, nmembers = placement.slots, len(placement.members)
    totals = {slot.start: builder.scratch(slot.count) for slot in slots if slot.holder == me}
    _own_partial(builder, region, totals)
    if me not in placement.members:
        return
    held = [dict(totals) for _ in range(region.nrounds)]
    for remote in range(len(region.incoming)):
        mine = {share.start: share.count for share in placement.receivers(remote) if share.rank == me}
        rooms = {start: builder.scratch(count) for start, count in mine.items()}
        _receive(builder, region, remote, rooms)
        held[remote // placement.per_round] |= rooms
    nothing = builder.scratch(max((slot.count for slot in slots for part in held if slot.start not in part), default=0))
    builder.fill(nothing)
    for number, part in enumerate(held):
        last = number == region.nrounds - 1
        for slot in slots:
            root = slot.result if last else slot.holder
            dst = None if root != me else region.result(slot) if last else totals[slot.start]
            src = part[slot.start] if slot.start in part else nothing.part(0, slot.count)
            where = placement.members.index(root)
            builder.vendor(comm, nmembers, CollectiveKind.REDUCE, slot.count, src=src, dst=dst, root=where)
            if last and dst is not None:
                _finish(builder, region, dst, dst)


def _finish(builder: Builder, region: Combination, src: Slice, dst: Slice) -> None:
    """Copy the sum to its place, averaged if it is one and nothing is missing from it."""
    if region.is_last:
        builder.average(src, dst)
    else:
        builder.copy(src, dst)


def _own_partial(builder: Builder, region: Combination, where: Mapping[int, Slice]) -> None:
    """Reduce the region over the owner's ranks, each slot to its holder; `where` says where, by the slot's start."""
    slots = region.placement.slots

    def at(start: int, stop: int) -> Slice:
        slot = next(slot for slot in slots if slot.start <= start < slot.stop)
        return where[slot.start].part(start - slot.start, stop - start)

    holders = [Share(slot.start, slot.stop, slot.holder) for slot in slots]
    builder.home_reduce(region.cluster, region.source, holders, at)


def _receive(builder: Builder, region: Combination, remote: int, where: Mapping[int, Slice]) -> set[int]:
    """Receive what this rank gets of remote partial number `remote`; `where` says where, by the slot's start.

    Returns:
        The starts of the slots that it gets.
    """
    mine = [share for share in region.placement.receivers(remote) if share.rank == builder.rank]
    for share in mine:
        room = where[share.start]
        for start, stop, sender, _ in messages(region.incoming[remote], (share,)):
            builder.recv(room.part(start - share.start, stop - start), sender, PARTIALS)
    return {share.start for share in mine}
