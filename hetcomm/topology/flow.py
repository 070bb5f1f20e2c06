"""How the elements of one piece travel through the clusters, and how the pieces of a vector overtake one another.

A vector is cut into pieces, each with a tree of clusters (`hetcomm.topology.trees`). A partial goes up the tree: each
cluster adds what its children send to its own and hands the sum to its parent. Finished elements go down. A *stage* is
what one cluster does for one piece at one level: edges lead from one level to the next, and

    tick of a stage = number of the piece's chunk + LAG * level

Programs hold the stages in the order of their ticks. So while a partial of one chunk is between clusters, the home
communicator already reduces the next ones, and the results of earlier ones come back: the vendor calls, which run in
program order, never wait long for a message. Both ends of a channel see the stages in the same order, since a
receiver's are those of the sender one level on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hetcomm.schedule.steps import Slice
from hetcomm.topology.border import PARTIALS, Combination, Placement, Slot, combine, place
from hetcomm.topology.builder import Builder, Place
from hetcomm.topology.layout import Direction, Share, divide, messages
from hetcomm.topology.model import Topology
from hetcomm.topology.phases import DELIVERY, RESULTS, in_slots, within
from hetcomm.topology.trees import Tree

__all__ = ["Flow"]

LAG = 2
"""Chunks by which one level follows another: enough to keep both the uplinks and the home communicators busy."""

_WINDOW = 4  # ticks after which the scratch of a stage is used again


class Flow:
    """The stages of one rank, collected in any order.

    Args:
        builder: Takes the steps.
        topology: Of the job.
        locally: See `Tuning.local_reduction`.
    """

    def __init__(self, builder: Builder, topology: Topology, *, locally: bool = False) -> None:
        self.builder = builder
        self._locally = locally
        self.clusters = topology.clusters
        self.here = topology.cluster_index(builder.rank)
        self.cluster = topology.clusters[self.here]
        self._stages: list[tuple[int, int, int, Callable[[], None]]] = []
        self._divisions: dict[tuple[int, int, Direction], tuple[Share, ...]] = {}
        self._placements: dict[tuple[int, int], Placement] = {}

    def at(self, tick: int, level: int, stage: Callable[[], None]) -> None:
        """Add a stage of chunk `tick`."""
        self._stages.append((tick + LAG * level, level, len(self._stages), stage))

    def run(self) -> None:
        """Write the steps of all stages; scratch is used again a few ticks later."""
        self._stages.sort(key=lambda stage: stage[:3])
        kept: list[tuple[int, list[Slice]]] = []
        self.builder.lent()  # what was asked for before belongs to no stage
        for tick, _, _, stage in self._stages:
            while kept and kept[0][0] + _WINDOW <= tick:
                self.builder.release(kept.pop(0)[1])
            stage()
            lent = self.builder.lent()
            if lent:
                kept.append((tick, lent))

    def divide(self, cluster: int, count: int, direction: Direction) -> tuple[Share, ...]:
        """`layout.divide`, remembered."""
        key = (cluster, count, direction)
        found = self._divisions.get(key)
        if found is None:
            found = self._divisions[key] = divide(self.clusters[cluster], count, direction)
        return found

    def place(self, cluster: int, count: int) -> Placement:
        """`border.place`, remembered."""
        found = self._placements.get((cluster, count))
        if found is None:
            found = self._placements[cluster, count] = place(self.clusters[cluster], count, locally=self._locally)
        return found

    # ---- up

    def up(
        self,
        tick: int,
        tree: Tree,
        source: Slice,
        space: Slice | None,
        final: Callable[[Slot], Slice | None],
        finish: Callable[[Placement, Place], None],
    ) -> None:
        """Add a piece up over all clusters.

        Args:
            tick: The number of the chunk.
            tree: Its root gets the sum.
            source: The piece in this rank's input.
            space: Where a partial of the whole piece may lie, each rank's share at its place; None: in scratch.
            final: At the root, where the finished elements of a slot go whose `result` this rank is; None: to scratch.
            finish: Called at the root with where they lie, to write the steps that follow.
        """
        level = tree.height - tree.depth(self.here)
        if self.here == tree.root:
            self.at(tick, level, lambda: self._finish_up(tree, source, final, finish))
        elif tree.children(self.here):
            self.at(tick, level, lambda: self._pass_up(tree, source))
        else:
            self.at(tick, level, lambda: self._begin_up(tree, source, space))

    def _begin_up(self, tree: Tree, source: Slice, space: Slice | None) -> None:
        """A leaf: reduce the piece inside the cluster and send the partial to the parent."""
        shares = self.divide(self.here, source.count, Direction.OUT)
        where = within(source)
        if len(self.cluster) > 1:
            mine = self._share_of(shares)
            if space is not None:
                where = within(space)
            elif mine is not None:
                where = within(self.builder.scratch(mine.count), mine.start)
            self.builder.home_reduce(self.cluster, source, shares, where)
        self._send_up(tree, source.count, where)

    def _pass_up(self, tree: Tree, source: Slice) -> None:
        """A cluster in between: add what the children send, and send the sum to the parent."""
        mine = self._share_of(self.divide(self.here, source.count, Direction.OUT))
        start = mine.start if mine is not None else 0
        room = self.builder.scratch(mine.count) if mine is not None else source.part(0, 0)
        self._combine(tree, source, lambda slot: room.part(slot.start - start, slot.count), is_last=False)
        self._send_up(tree, source.count, within(room, start))

    def _finish_up(
        self,
        tree: Tree,
        source: Slice,
        final: Callable[[Slot], Slice | None],
        finish: Callable[[Placement, Place], None],
    ) -> None:
        held: dict[int, Slice] = {}

        def result(slot: Slot) -> Slice:
            held[slot.start] = final(slot) or self.builder.scratch(slot.count)
            return held[slot.start]

        self._combine(tree, source, result, is_last=True)
        placement = self.place(self.here, source.count)
        finish(placement, in_slots(placement.slots, held))

    def _combine(self, tree: Tree, source: Slice, result: Callable[[Slot], Slice], *, is_last: bool) -> None:
        placement = self.place(self.here, source.count)
        incoming = [self.divide(child, source.count, Direction.OUT) for child in tree.children(self.here)]
        combine(self.builder, Combination(self.cluster, source, placement, incoming, result, is_last))

    def _send_up(self, tree: Tree, count: int, where: Place) -> None:
        parent = tree.parent(self.here)
        receivers = self.place(parent, count).receivers(tree.children(parent).index(self.here))
        self.builder.send_shares(self.divide(self.here, count, Direction.OUT), receivers, where, PARTIALS)

    def deliver(self, placement: Placement, held: Place, final: Sequence[Share], there: Place) -> None:
        """Hand finished elements from the border ranks to those ranks of the cluster that get them, at `there`."""
        me = self.builder.rank
        for start, stop, sender, receiver in messages(placement.results, final):
            if sender == receiver == me:
                self.builder.copy(held(start, stop), there(start, stop))
            elif sender == me:
                self.builder.send(held(start, stop), receiver, DELIVERY)
            elif receiver == me:
                self.builder.recv(there(start, stop), sender, DELIVERY)

    # ---- down

    def down(
        self, tick: int, tree: Tree, begin: int, region: Slice, first: Callable[[], Place], *, spread_first: bool
    ) -> None:
        """Give a piece to all ranks.

        Args:
            tick: The number of the chunk.
            tree: Its root has the piece.
            begin: The level at which it does.
            region: The piece in this rank's output.
            first: Called at the root to write the steps before the piece is sent on; says where the border ranks'
            shares
                of it lie.
            spread_first: The ranks of the root's cluster do not have all of it yet.
        """
        depth = tree.depth(self.here)
        if depth:
            self.at(tick, begin + depth, lambda: self._pass_down(tree, region))
        else:
            self.at(tick, begin, lambda: self._begin_down(tree, region, first, spread_first))

    def _begin_down(self, tree: Tree, region: Slice, first: Callable[[], Place], spread_first: bool) -> None:
        self._send_down(tree, region.count, first())
        if spread_first:
            self.builder.home_spread(self.cluster, region, self.divide(self.here, region.count, Direction.OUT))

    def _pass_down(self, tree: Tree, region: Slice) -> None:
        senders = self.divide(tree.parent(self.here), region.count, Direction.OUT)
        arrived = self.divide(self.here, region.count, Direction.IN)
        leaving = self.divide(self.here, region.count, Direction.OUT)
        self.builder.recv_shares(senders, arrived, within(region), RESULTS)
        in_place = leaving == arrived
        if not in_place or not tree.children(self.here):
            self.builder.home_spread(self.cluster, region, arrived)
        self._send_down(tree, region.count, within(region))
        if in_place and tree.children(self.here):
            self.builder.home_spread(self.cluster, region, arrived)

    def _send_down(self, tree: Tree, count: int, where: Place) -> None:
        senders = self.divide(self.here, count, Direction.OUT)
        for child in tree.children(self.here):
            self.builder.send_shares(senders, self.divide(child, count, Direction.IN), where, RESULTS)

    def _share_of(self, shares: Sequence[Share]) -> Share | None:
        return next((share for share in shares if share.rank == self.builder.rank), None)
