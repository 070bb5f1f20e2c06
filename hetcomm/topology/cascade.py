"""Broadcast and reduce over many clusters, on trees of clusters.

Short vectors go on one binomial tree. Long ones are cut into two halves, each with a binary tree of its own:
P. Sanders, J. Speck, J. L. Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan" (Parallel
Computing 35, 2009), with clusters for processors. A cluster that hands one half on to two others is a leaf for the
other half, so none sends more than S in a broadcast, or receives more than S in a reduce; the root's sends or receives
S. Each half travels in chunks, one behind the other. C clusters, S elements, K chunks in each half.

===================  ================  =============================  =======================================
collective           between clusters  latencies between clusters     inside a cluster, vendor calls per chunk
===================  ================  =============================  =======================================
broadcast, binomial  (C-1)S            ceil(log2 C)                   all_gather or broadcast
broadcast, twin      (C-1)S            about log2 C + 2K              the same
reduce, binomial     (C-1)S            ceil(log2 C)                   reduce_scatter or all_reduce; one for each
                                                                      child, or all of them (border reduction)
reduce, twin         (C-1)S            about log2 C + 2K              the same
===================  ================  =============================  =======================================

The border ranks of a cluster divide each chunk in proportion to their uplinks. A program has a number of steps, and
takes a time, in proportion to log C for short vectors and to K for long ones, whatever the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program, Slice
from hetcomm.topology.border import PARTIALS
from hetcomm.topology.builder import Builder
from hetcomm.topology.crew import Crew, Stretch, is_tiled, landing, per_call
from hetcomm.topology.division import arriving, leaving
from hetcomm.topology.model import Cluster, Topology
from hetcomm.topology.phases import RESULTS
from hetcomm.topology.trees import Binomial, Tree

__all__ = ["HOP_BYTES", "MAX_CHUNKS", "SHORT_BYTES", "Twin", "broadcast", "fits", "plan", "reduce"]

SHORT_BYTES = 64 << 10
"""The longest vector that travels on one tree."""

HOP_BYTES = 128 << 10
"""What an uplink carries in the time that a hop takes anyway."""

MAX_CHUNKS = 8
"""Of each half: more steps would take longer to write than they save."""

_WINDOW = 4  # stages of one tree after which scratch is used again


def fits(collective: Collective, topology: Topology) -> bool:
    """Whether this planner has a plan, in constant time: broadcast and reduce over two or more clusters."""
    return len(topology.clusters) > 1 and collective.kind in (CollectiveKind.BROADCAST, CollectiveKind.REDUCE)


def plan(collective: Collective, topology: Topology, rank: int) -> Program:
    """The program of `rank` for a collective that `fits`."""
    match collective.kind:
        case CollectiveKind.BROADCAST:
            return broadcast(collective, topology, rank)
        case CollectiveKind.REDUCE:
            return reduce(collective, topology, rank)
        case kind:
            raise ValueError(f"no plan on trees for {kind.value}")


class Twin:
    """One of two binary trees (`side` 0 or 1) over C clusters; no cluster but the root has children in both.

    The clusters after the root, round the job, are numbered 1 to C-1. The first tree has them in order (inorder, that
    is): odd numbers are leaves, and the number with the highest power of two is the root's only child. The other one
    is its mirror image, or, where C-1 is odd, the same one further round, so that even numbers are its leaves.
    """

    def __init__(self, nclusters: int, root: int, side: int) -> None:
        self.root = root
        self._nclusters = nclusters
        self._last = nclusters - 1
        self._side = side
        self.height = self._last.bit_length()

    def parent(self, cluster: int) -> int:
        return self._cluster(self._above(self._number(cluster)))

    def children(self, cluster: int) -> Sequence[int]:
        number = self._number(cluster)
        if not number:
            return [self._cluster(1 << (self._last.bit_length() - 1))]
        step = (number & -number) >> 1
        if not step:
            return []
        found = [number - step]
        while number + step > self._last and step:
            step >>= 1
        if step:
            found.append(number + step)
        return [self._cluster(child) for child in found]

    def depth(self, cluster: int) -> int:
        number, found = self._number(cluster), 0
        while number:
            number, found = self._above(number), found + 1
        return found

    def _above(self, number: int) -> int:
        lowest = number & -number
        above = (number ^ lowest) | lowest << 1
        return above if above <= self._last else number ^ lowest

    def _number(self, cluster: int) -> int:
        number = (cluster - self.root) % self._nclusters
        if not number or not self._side:
            return number
        return self._last + 1 - number if self._last % 2 == 0 else (number - 2) % self._last + 1

    def _cluster(self, number: int) -> int:
        if number and self._side:
            number = self._last + 1 - number if self._last % 2 == 0 else number % self._last + 1
        return (number + self.root) % self._nclusters


@dataclass(frozen=True, slots=True)
class _Stage:
    """What one cluster does for one chunk: elements `start` to `stop`, which travel on `tree`."""

    tree: Tree
    start: int
    stop: int


def _stages(collective: Collective, topology: Topology, here: int, *, up: bool) -> Iterator[_Stage]:
    """The stages of a cluster in the order in which their elements get there, the same on all its ranks.

    A stage comes one tick before those of the clusters that it hands its elements to, so nobody waits in a circle.
    """
    root = topology.cluster_index(collective.root or 0)
    count, nclusters = collective.count, len(topology.clusters)
    if count * collective.dtype.itemsize <= SHORT_BYTES or nclusters < 4:
        if count:
            yield _Stage(Binomial(nclusters, root), 0, count)
        return
    unit = topology.unit
    half = count // 2 // unit * unit
    # h hops of K chunks take (h + K) (1 + H/K) hops' time if the half is H of what a hop carries: least at K^2 = h H.
    hops = (nclusters - 1).bit_length() * half * collective.dtype.itemsize // HOP_BYTES
    nchunks = max(1, min(MAX_CHUNKS, math.isqrt(hops)))
    found: list[tuple[int, int, _Stage]] = []
    for side, (first, last) in enumerate(((0, half), (half, count))):
        tree = Twin(nclusters, root, side)
        level = tree.height - tree.depth(here) if up else tree.depth(here)
        cuts = [first + (last - first) // unit * k // nchunks * unit for k in range(nchunks)] + [last]
        for chunk in range(nchunks):
            if cuts[chunk] < cuts[chunk + 1]:
                found.append((chunk + level, side, _Stage(tree, cuts[chunk], cuts[chunk + 1])))
    found.sort(key=lambda entry: entry[:2])
    for _, _, stage in found:
        yield stage


def _run(builder: Builder, stages: Iterator[_Stage], work: Callable[[_Stage], None]) -> None:
    """Write the steps of all stages; scratch is used again some stages later."""
    builder.lent()  # what was asked for before belongs to no stage
    kept: list[list[Slice]] = []
    for stage in stages:
        work(stage)
        kept.append(builder.lent())
        if len(kept) > 2 * _WINDOW:
            builder.release(kept.pop(0))


def broadcast(collective: Collective, topology: Topology, rank: int) -> Program:
    """The root's vector down the trees: (C-1)S between clusters."""
    builder = Builder(collective, rank)
    clusters, here = topology.clusters, topology.cluster_index(rank)
    cluster, root = clusters[here], collective.root or 0
    crew, target = Crew(builder, cluster), builder.target()
    source = builder.source() if rank == root else None

    def hand_on(tree: Tree, part: Slice) -> None:
        for child in tree.children(here):
            crew.send(Stretch(part), arriving(clusters[child], part.count), RESULTS)

    def begin(stage: _Stage) -> None:
        start, count = stage.start, stage.stop - stage.start
        part = target.part(start, count)
        have = source.part(start, count) if source is not None else None
        if len(cluster) > 1:
            where, kind = cluster.position(root), CollectiveKind.BROADCAST
            builder.vendor(cluster.home_id, len(cluster), kind, count, src=have, dst=part, root=where)
        elif have is not None:
            builder.copy(have, part)
        hand_on(stage.tree, part if have is None else have)

    def go_on(stage: _Stage) -> None:
        part = target.part(stage.start, stage.stop - stage.start)
        shares = arriving(cluster, part.count)
        crew.recv(clusters[stage.tree.parent(here)], part, RESULTS)
        first = shares == leaving(cluster, part.count)  # those who have received a share are those who send it on
        if first:
            hand_on(stage.tree, part)
        crew.spread(part, shares, home=True)
        if not first:
            hand_on(stage.tree, part)

    is_root = here == topology.cluster_index(root)
    _run(builder, _stages(collective, topology, here, up=False), begin if is_root else go_on)
    return builder.program("broadcast on trees")


def reduce(collective: Collective, topology: Topology, rank: int) -> Program:
    """Partials up the trees, added to in every cluster on the way: (C-1)S between clusters."""
    builder = Builder(collective, rank)
    here, root = topology.cluster_index(rank), collective.root or 0
    crew = Crew(builder, topology.clusters[here])
    source, target = builder.source(), builder.target()
    work = _Adder(crew, topology.clusters, here)

    def go_on(stage: _Stage) -> None:
        work.hand_on(stage.tree, source.part(stage.start, stage.stop - stage.start))

    def finish(stage: _Stage) -> None:
        start, count = stage.start, stage.stop - stage.start
        part = target.part(start, count) if rank == root else None
        work.finish(stage.tree, source.part(start, count), root, part)

    is_root = here == topology.cluster_index(root)
    _run(builder, _stages(collective, topology, here, up=True), finish if is_root else go_on)
    return builder.program("reduce on trees")


class _Adder:
    """Adds what a cluster's children send to its own partial, as one rank of it."""

    def __init__(self, crew: Crew, clusters: Sequence[Cluster], here: int) -> None:
        self.crew = crew
        self.clusters = clusters
        self.here = here
        self.tiled = is_tiled(crew.cluster)

    def hand_on(self, tree: Tree, source: Slice) -> None:
        """Add up a chunk and send the sum to the parent."""
        crew, children = self.crew, tree.children(self.here)
        if children:
            room = crew.builder.scratch(source.count)
            self._add(source, room, self._groups(children))
        elif len(crew.cluster) > 1:
            room = crew.builder.scratch(source.count)
            crew.hand_up(source, room)
        else:
            room = source
        parent = tree.parent(self.here)
        number = tree.children(parent).index(self.here)
        crew.send(Stretch(room), landing(self.clusters[parent], room.count, number), PARTIALS)

    def finish(self, tree: Tree, source: Slice, root: int, target: Slice | None) -> None:
        """Add up a chunk in the root's cluster and give the sum to `root`."""
        crew = self.crew
        *groups, last = self._groups(tree.children(self.here))
        own = self._add(source, crew.builder.scratch(source.count), groups)
        crew.add_at(root, own, last, target, PARTIALS, source.count)
        if target is not None:
            crew.builder.average(target, target)

    def _add(self, source: Slice, room: Slice, groups: Sequence[Sequence[Cluster]]) -> Stretch:
        """The cluster's own partial, with those of `groups` added, in `room`; where this rank's part of it lies."""
        crew, position = self.crew, self.crew.border_position
        if self.tiled and position is not None:
            crew.scatter(source, room)
            start, stop = leaving(crew.cluster, room.count).share(position)
            found = Stretch(room.part(start, stop - start))
        else:
            crew.total(source, room)
            found = Stretch(room)
        for group in groups:
            crew.add(found, room.count, group, found, PARTIALS, scattered=self.tiled)
        return found

    def _groups(self, children: Sequence[int]) -> list[Sequence[Cluster]]:
        """As many children at a time as one vendor call can add."""
        most, clusters = per_call(self.crew.cluster), [self.clusters[child] for child in children]
        return [clusters[first : first + most] for first in range(0, len(clusters), most)]
