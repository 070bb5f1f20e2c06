"""What one cluster of a large job does with one stretch of a vector: reduce, add what arrives, pass on, spread.

Each costs a rank a number of steps that depends neither on the job nor on the number of border ranks. n ranks, b border
ranks in the cluster, y elements.

*Scattered* is how a *tiled* cluster holds partials, one whose ranks are all border ranks with equal uplinks: each rank
holds its share. Everywhere else all ranks that add hold all of a partial, so that any of them can put its share into
a reduction.

Adding a partial that arrives from another cluster is a border reduction as in `hetcomm.topology.border`: of each
element, one rank puts in the cluster's own, another what has arrived, and the others the identity.

=================  ============  =====================  ===========================  ========================
the cluster        communicator  vendor call            share k of what arrives      share k of its own
=================  ============  =====================  ===========================  ========================
equal uplinks      border        scattered:             to member k+1, of another    by member k
                                 reduce_scatter; else   partial at once to member
                                 all_reduce             k+2, ...
unequal uplinks    border        all_reduce             to member k                  by member k+1
b = 1, n >= 2      home          all_reduce             to the border rank           by the rank next to it
n = 1              none          a local `Reduce`
=================  ============  =====================  ===========================  ========================

Scratch for one addition: y, at most 2y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetcomm.schedule.collective import CollectiveKind
from hetcomm.schedule.steps import CommId, Slice
from hetcomm.topology.builder import Builder
from hetcomm.topology.division import Division, arriving, leaving
from hetcomm.topology.model import Cluster
from hetcomm.topology.phases import DELIVERY

__all__ = ["Crew", "Stretch", "is_tiled", "landing", "per_call"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Elements that lie in one slice or, where they run over the end of a vector to its beginning, in two."""

    first: Slice
    rest: Slice | None = None

    @property
    def count(self) -> int:
        return self.first.count + (self.rest.count if self.rest is not None else 0)

    def pieces(self, start: int, stop: int) -> list[Slice]:
        """Where elements `start` to `stop` lie."""
        if self.rest is None:
            return [self.first.part(start, stop - start)]
        cut = self.first.count
        found = [self.first.part(start, min(stop, cut) - start)] if start < cut else []
        if stop > cut:
            begin = max(start, cut) - cut
            found.append(self.rest.part(begin, stop - cut - begin))
        return found


def is_tiled(cluster: Cluster) -> bool:
    """Whether all ranks, two or more, are border ranks with equal uplinks."""
    return cluster.is_even and len(cluster.border) == len(cluster) > 1


def per_call(cluster: Cluster) -> int:
    """How many partials that arrive from other clusters one vendor call can add."""
    return max(1, len(cluster.border) - 1) if cluster.is_even else 1


def landing(cluster: Cluster, count: int, number: int = 0) -> Division:
    """Who receives what of remote partial `number` of `count` elements that this cluster adds."""
    turns = cluster.is_even and len(cluster.border) > 1
    return arriving(cluster, count, 1 + number % per_call(cluster) if turns else 0)


class Crew:
    """The cluster of `builder.rank`, as that rank sees it."""

    def __init__(self, builder: Builder, cluster: Cluster) -> None:
        self.builder = builder
        self.cluster = cluster
        self.position = cluster.position(builder.rank)
        self.border_position = cluster.border_position(builder.rank)

    @property
    def adds(self) -> bool:
        """Whether this rank takes part where partials are added."""
        return len(self.cluster.border) == 1 or self.border_position is not None

    # ---- between clusters

    def send(self, source: Stretch, there: Division, channel: int) -> None:
        """Send this rank's share of `source` to those who have it in `there`."""
        if self.border_position is None:
            return
        start, stop = leaving(self.cluster, source.count).share(self.border_position)
        for a, b, receiver in there.between(start, stop):
            self.builder.send(self.gathered(source, a, b), receiver, channel)

    def recv(self, sender: Cluster, room: Slice, channel: int) -> None:
        """Receive this rank's share of what `sender` has sent, at its place in `room`."""
        if self.border_position is not None:
            start, stop = arriving(self.cluster, room.count).share(self.border_position)
            self._recv_share(sender, room.count, start, room.part(start, stop - start), channel)

    def _recv_share(self, sender: Cluster, count: int, start: int, place: Slice, channel: int) -> None:
        """Receive elements of a stretch of `count` from `start` on, as many as `place` has."""
        for a, b, peer in leaving(sender, count).between(start, start + place.count):
            self.builder.recv(place.part(a - start, b - a), peer, channel)

    def gathered(self, source: Stretch, start: int, stop: int) -> Slice:
        """Elements `start` to `stop` in one slice: where they lie, else copied to scratch."""
        if source.rest is None:
            return source.first.part(start, stop - start)
        pieces = source.pieces(start, stop)
        if len(pieces) == 1:
            return pieces[0]
        room = self.builder.scratch(stop - start)
        self._fetch(pieces, room)
        return room

    def _fetch(self, pieces: Sequence[Slice], room: Slice) -> None:
        """Copy `pieces` to `room`, one behind the other."""
        start = 0
        for piece in pieces:
            self.builder.copy(piece, room.part(start, piece.count))
            start += piece.count

    def put(self, room: Slice, target: Stretch) -> None:
        """Copy `room` to where its elements belong, unless they lie there."""
        cut = target.first.count
        self.builder.copy(room if room.count == cut else room.part(0, cut), target.first)
        if target.rest is not None:
            self.builder.copy(room.part(cut, target.rest.count), target.rest)

    def room(self, target: Stretch) -> Slice:
        """Where what belongs to `target` can lie in one slice, to be `put` there."""
        return target.first if target.rest is None else self.builder.scratch(target.count)

    # ---- home phases

    def total(self, source: Slice, target: Slice) -> None:
        """The sum over all ranks of the cluster, on all of them."""
        if len(self.cluster) == 1:
            self.builder.copy(source, target)
        else:
            self._home(CollectiveKind.ALL_REDUCE, source.count, source, target)

    def scatter(self, source: Slice, target: Slice) -> None:
        """The sum over all ranks, equal shares of it at each, in its place of `target`; the last has what is left over.

        `source` and `target` may be the same.
        """
        nranks, me = len(self.cluster), self.position
        width, rest = divmod(source.count, nranks)
        body = width * nranks
        whole, mine = source.part(0, body), target.part(me * width, width)
        self._home(CollectiveKind.REDUCE_SCATTER, width, whole, whole if mine.overlaps(whole) else mine)
        if rest:
            last = target.part(body, rest) if me == nranks - 1 else None
            self._home(CollectiveKind.REDUCE, rest, source.part(body, rest), last, nranks - 1)

    def hand_up(self, source: Slice, target: Slice) -> None:
        """The sum over all ranks, each border rank's share of what leaves the cluster at its place in `target`."""
        cluster, count = self.cluster, source.count
        shares, nborder = leaving(cluster, count), len(cluster.border)
        if nborder < len(cluster) and nborder**2 <= len(cluster):
            for number, rank in enumerate(cluster.border):
                start, stop = shares.bounds(number)
                part = target.part(start, stop - start) if rank == self.builder.rank else None
                root = cluster.position(rank)
                self._home(CollectiveKind.REDUCE, stop - start, source.part(start, stop - start), part, root)
        else:
            self.scatter(source, target)
            self._exchange(target, Division(cluster.ranks, count), shares)

    def spread(self, region: Slice, shares: Division, *, home: bool) -> None:
        """Give all of `region`, of which each rank holds its share, to all ranks, or to all that add.

        Takes one all_gather of equal blocks, and one broadcast for what is left over; where few hold shares, one
        broadcast for each.
        """
        cluster = self.cluster
        home = home or len(cluster.border) == 1
        members = cluster.ranks if home else cluster.border
        comm, nmembers = (cluster.home_id if home else cluster.border_id), len(members)
        me = self.position if home else self.border_position
        if nmembers == 1 or me is None:
            return
        nshares = len(shares.members)
        if nshares < nmembers and nshares**2 <= nmembers:
            for number, rank in enumerate(shares.members):
                start, stop = shares.bounds(number)
                part, root = region.part(start, stop - start), cluster.position(rank)
                self._broadcast(comm, nmembers, part, root, is_root=rank == self.builder.rank)
            return
        self._exchange(region, shares, Division(members, region.count))
        width = region.count // nmembers
        body, kind = region.part(0, width * nmembers), CollectiveKind.ALL_GATHER
        if width:
            self.builder.vendor(comm, nmembers, kind, width, src=body.part(me * width, width), dst=body)
        if body.count < region.count:
            rest = region.part(body.count, region.count - body.count)
            self._broadcast(comm, nmembers, rest, nmembers - 1, is_root=me == nmembers - 1)

    def share_with_all(self, region: Slice) -> None:
        """Give `region` to all ranks, where all that add have it."""
        border = self.cluster.border
        if 1 < len(border) < len(self.cluster):
            root = self.cluster.position(border[0])
            self._broadcast(self.cluster.home_id, len(self.cluster), region, root, is_root=self.position == root)

    def _exchange(self, region: Slice, before: Division, after: Division) -> None:
        """Hand elements of `region` from those who have them to those who are to have them, inside the cluster."""
        if before.weights == after.weights and len(before.members) == len(after.members):
            return
        me = self.builder.rank
        for a, b, receiver in self._overlaps(before, after):
            if receiver != me:
                self.builder.send(region.part(a, b - a), receiver, DELIVERY)
        for a, b, sender in self._overlaps(after, before):
            if sender != me:
                self.builder.recv(region.part(a, b - a), sender, DELIVERY)

    def _overlaps(self, mine: Division, others: Division) -> list[tuple[int, int, int]]:
        home = len(mine.members) == len(self.cluster)
        position = self.position if home else self.border_position
        return others.between(*mine.share(position)) if position is not None else []

    def _home(
        self, kind: CollectiveKind, count: int, src: Slice | None, dst: Slice | None, root: int | None = None
    ) -> None:
        self.builder.vendor(self.cluster.home_id, len(self.cluster), kind, count, src=src, dst=dst, root=root)

    def _broadcast(self, comm: CommId, nranks: int, part: Slice, root: int, *, is_root: bool) -> None:
        src = part if is_root else None
        self.builder.vendor(comm, nranks, CollectiveKind.BROADCAST, part.count, src=src, dst=part, root=root)

    # ---- adding

    def add(
        self,
        own: Stretch,
        count: int,
        senders: Sequence[Cluster],
        target: Stretch,
        channel: int,
        *,
        scattered: bool = False,
        home: bool = False,
    ) -> None:
        """Add what `senders`, no more than `per_call`, send of `count` elements to this cluster's own partial.

        Args:
            own: The partial: this rank's share if `scattered`, else all of it.
            count: Elements.
            senders: In the order of the numbers of `landing`.
            target: Where the sum goes; as `own`, and may be the same.
            channel: Of the messages.
            scattered: Each rank holds its share of the partial, and of the sum; for tiled clusters.
            home: All ranks get the sum, not only those that add.
        """
        if len(self.cluster) == 1:
            self._add_alone(own, senders, target, channel)
            return
        border = len(self.cluster.border) > 1 and not home
        if border and self.border_position is None:
            return
        comm = self.cluster.border_id if border else self.cluster.home_id
        nranks = len(self.cluster.border) if border else len(self.cluster)
        if not scattered:
            work = self._laid_out(own, count, senders, channel)
            total = self.room(target)
            self.builder.vendor(comm, nranks, CollectiveKind.ALL_REDUCE, count, src=work, dst=total)
            self.put(total, target)
            return
        width = count - count // nranks * (nranks - 1)
        work = self._laid_out(own, count, senders, channel, scattered=True, width=width)
        fits = target.rest is None and target.count == width
        block = target.first if fits else self.builder.scratch(width)
        self.builder.vendor(comm, nranks, CollectiveKind.REDUCE_SCATTER, width, src=work, dst=block)
        self.put(block, target)

    def add_at(
        self, root: int, own: Stretch, senders: Sequence[Cluster], target: Slice | None, channel: int, count: int
    ) -> None:
        """As `add`, but only the rank `root` of this cluster gets the sum, at its `target`.

        `own` is this rank's share if the cluster is tiled, else all of the partial.
        """
        if len(self.cluster) == 1:
            if target is not None:
                self._add_alone(own, senders, Stretch(target), channel)
            return
        work = self._laid_out(own, count, senders, channel, scattered=is_tiled(self.cluster))
        self._home(CollectiveKind.REDUCE, count, work, target, self.cluster.position(root))

    def _add_alone(self, own: Stretch, senders: Sequence[Cluster], target: Stretch, channel: int) -> None:
        rooms = [self.builder.scratch(own.count) for _ in senders]
        for sender, room in zip(senders, rooms, strict=True):
            self.recv(sender, room, channel)
        if own != target:
            self.put(self.gathered(own, 0, own.count), target)
        cut = target.first.count
        for room in rooms:
            self.builder.reduce(room.part(0, cut), target.first)
            if target.rest is not None:
                self.builder.reduce(room.part(cut, target.rest.count), target.rest)

    def _laid_out(
        self,
        own: Stretch,
        count: int,
        senders: Sequence[Cluster],
        channel: int,
        *,
        scattered: bool = False,
        width: int = 0,
    ) -> Slice:
        """What this rank puts into the reduction: what it has for it, and the identity everywhere else.

        Shares lie as in the stretch, or, if `width` is given, every `width` elements.
        """
        builder, shares = self.builder, landing(self.cluster, count)
        nshares = len(shares.members)
        work = builder.scratch(width * nshares or count)
        many = nshares > 2 * len(senders) + 2  # then one fill is better than several that leave out a little
        if many:
            builder.fill(work)
        filled: list[tuple[int, int]] = []

        def place(number: int, start: int, stop: int) -> Slice:
            begin = number * width if width else start
            filled.append((begin, begin + stop - start))
            return work.part(begin, stop - start)

        mine = self._own_share()
        if mine is not None:
            start, stop = shares.bounds(mine)
            pieces = own.pieces(0, own.count) if scattered else own.pieces(start, stop)
            self._fetch(pieces, place(mine, start, stop))
        if self.border_position is not None:
            for number, sender in enumerate(senders):
                theirs = landing(self.cluster, count, number).number(self.border_position)
                start, stop = shares.bounds(theirs)
                self._recv_share(sender, count, start, place(theirs, start, stop), channel)
        position = work.count if many else 0
        for start, stop in [*sorted(filled), (work.count, work.count)]:
            if position < start:
                builder.fill(work.part(position, start - position))
            position = max(position, stop)
        return work

    def _own_share(self) -> int | None:
        """Which share of its cluster's own partial this rank puts into a reduction."""
        border = self.cluster.border
        if len(border) == 1:
            following = (self.cluster.position(border[0]) + 1) % len(self.cluster)
            return 0 if self.position == following else None
        if self.border_position is None:
            return None
        return self.border_position if self.cluster.is_even else (self.border_position - 1) % len(border)
