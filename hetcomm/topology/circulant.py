"""Collectives over many clusters in ceil(log2 C) rounds, or twice as many for all_reduce.

J. L. Traeff, "Optimal, Non-pipelined Reduce-scatter and Allreduce Algorithms" (arXiv 2410.14234), with clusters for
processors. The vector has C regions, one for each cluster. With s' = C, s = ceil(s'/2), then s' = s and so on down to
1, cluster r

* in a reduce_scatter sends its partials of regions r+s to r+s'-1 (all modulo C) to cluster r+s, and adds the partials
  of regions r to r+s'-s-1 that arrive from cluster r-s to its own; at last it has region r;
* in an all_gather, which goes the same way back, sends regions r to r+s'-s-1 to cluster r-s, and receives regions r+s
  to r+s'-1 from cluster r+s.

An all_reduce is both. S elements as in the table of the least volumes (`hetcomm.topology.bounds`).

===============  ===================  ==============================  =============================================
collective       between clusters     rounds between clusters         inside a cluster, vendor calls
===============  ===================  ==============================  =============================================
reduce_scatter   (C-1)S               ceil(log2 C)                    all_reduce of S; one of each round's elements
all_gather       (C-1)S               ceil(log2 C)                    all_gather of the blocks; of each round's
all_reduce       2(C-1)S              2 ceil(log2 C)                  both of these
all_reduce on    2(C-1)S              2 ceil(log2 C)                  reduce_scatter of S; border reduce_scatter of
rails                                                                 each round's elements; all_gather of S
===============  ===================  ==============================  =============================================

*Rails*: where all clusters have equally many ranks, each with an uplink like the others' of its cluster, rank k of each
owns the k-th part of the vector, and the regions are cut inside these parts. Then nothing is handed on inside a
cluster between rounds. Otherwise the border ranks of a cluster divide each round's elements anew, in proportion to
their uplinks, and the cluster shares what has arrived (`hetcomm.topology.crew`).

The regions of an all_reduce are equal. Those of the others are the blocks of the clusters' ranks and must lie side by
side, so each cluster must have consecutive ranks. Every element is finished in one cluster, in the order of the rounds.
A program has a number of steps, and takes a time, in proportion to log C, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program, Slice
from hetcomm.topology.border import PARTIALS
from hetcomm.topology.builder import Builder
from hetcomm.topology.crew import Crew, Stretch, landing
from hetcomm.topology.division import arriving, blocks
from hetcomm.topology.model import Cluster, Topology
from hetcomm.topology.phases import RESULTS

__all__ = ["all_gather", "all_reduce", "fits", "plan", "reduce_scatter", "rounds"]

_MIN_UNITS = 16  # in a region that begins at a multiple of the unit


def fits(collective: Collective, topology: Topology) -> bool:
    """Whether this planner has a plan, in constant time: all_reduce over two or more clusters, and all_gather and
    reduce_scatter, vector forms included, where each cluster has consecutive ranks."""
    if len(topology.clusters) < 2:
        return False
    if collective.kind in (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER):
        return topology.order is not None
    return collective.kind is CollectiveKind.ALL_REDUCE


def plan(collective: Collective, topology: Topology, rank: int) -> Program:
    """The program of `rank` for a collective that `fits`."""
    match collective.kind:
        case CollectiveKind.ALL_REDUCE:
            return all_reduce(collective, topology, rank)
        case CollectiveKind.REDUCE_SCATTER:
            return reduce_scatter(collective, topology, rank)
        case CollectiveKind.ALL_GATHER:
            return all_gather(collective, topology, rank)
        case kind:
            raise ValueError(f"no circulant plan for {kind.value}")


def rounds(nclusters: int) -> Iterator[tuple[int, int]]:
    """(s, s' - s) of each round of a reduce_scatter: how far it sends, and how many regions."""
    size = nclusters
    while size > 1:
        half = -(-size // 2)
        yield half, size - half
        size = half


@dataclass(frozen=True, slots=True)
class _Wheel:
    """The regions of a vector round the clusters.

    Attributes:
        clusters: In the order of their regions.
        cut: Where the region with a number begins; for the number of clusters, where the last one ends.
        here: The number of this rank's cluster.
    """

    clusters: Callable[[int], Cluster]
    nclusters: int
    cut: Callable[[int], int]
    here: int

    def cluster(self, distance: int) -> Cluster:
        """The cluster that is `distance` further on."""
        return self.clusters((self.here + distance) % self.nclusters)

    def stretch(self, vector: Slice, distance: int, nregions: int) -> Stretch:
        """The regions from `distance` further on."""
        number = (self.here + distance) % self.nclusters
        start, last = self.cut(number), number + nregions
        if last <= self.nclusters:
            return Stretch(vector.part(start, self.cut(last) - start))
        stop = self.cut(self.nclusters)
        return Stretch(vector.part(start, stop - start), vector.part(0, self.cut(last - self.nclusters)))


def all_reduce(collective: Collective, topology: Topology, rank: int) -> Program:
    """Each cluster finishes an equal part of the vector: 2(C-1)S between clusters."""
    if topology.rails > 1:
        return _on_rails(collective, topology, rank)
    builder = Builder(collective, rank)
    wheel = _even_wheel(topology, rank, collective.count, topology.unit)
    crew = Crew(builder, wheel.cluster(0))
    target = builder.target()
    crew.total(builder.source(), target)
    _reduce_rounds(crew, wheel, target)
    mine = wheel.stretch(target, 0, 1).first
    if crew.adds:
        builder.average(mine, mine)
    _gather_rounds(crew, wheel, target)
    crew.share_with_all(target)
    return builder.program("circulant all_reduce")


def reduce_scatter(collective: Collective, topology: Topology, rank: int) -> Program:
    """Each cluster finishes the blocks of its ranks: (C-1)S between clusters."""
    builder = Builder(collective, rank)
    wheel = _block_wheel(collective, topology, rank)
    crew = Crew(builder, wheel.cluster(0))
    source, target = builder.source(), builder.target()
    work = builder.scratch(collective.total)
    crew.total(source, work)
    _reduce_rounds(crew, wheel, work, home=True)
    builder.average(work.part(collective.block_offset(rank), target.count), target)
    return builder.program("circulant reduce_scatter")


def all_gather(collective: Collective, topology: Topology, rank: int) -> Program:
    """Each cluster passes on the blocks of its ranks and what it has received: (C-1)S between clusters."""
    builder = Builder(collective, rank)
    wheel = _block_wheel(collective, topology, rank)
    cluster = wheel.cluster(0)
    crew = Crew(builder, cluster)
    source, target = builder.source(), builder.target()
    mine = wheel.stretch(target, 0, 1).first
    if collective.counts is None and len(cluster) > 1:
        kind = CollectiveKind.ALL_GATHER
        builder.vendor(cluster.home_id, len(cluster), kind, collective.count, src=source, dst=mine)
    else:
        start = collective.block_offset(cluster.ranks[0])
        offsets = [collective.block_offset(each) - start for each in (*cluster.ranks, cluster.ranks[-1] + 1)]
        builder.copy(source, mine.part(offsets[crew.position], source.count))
        crew.spread(mine, blocks(cluster.ranks, offsets), home=True)
    _gather_rounds(crew, wheel, target)
    crew.share_with_all(target)
    return builder.program("circulant all_gather")


def _reduce_rounds(crew: Crew, wheel: _Wheel, vector: Slice, *, home: bool = False) -> None:
    """From the cluster's partial of `vector` to the finished region of the cluster, in place.

    All ranks that add hold all of it, before and after; with `home` all ranks of the cluster hold the region after.
    """
    for distance, nregions in rounds(wheel.nclusters):
        away = wheel.stretch(vector, distance, nregions)
        crew.send(away, landing(wheel.cluster(distance), away.count), PARTIALS)
        kept = wheel.stretch(vector, 0, nregions)
        last = distance == 1
        crew.add(kept, kept.count, [wheel.cluster(-distance)], kept, PARTIALS, home=home and last)


def _gather_rounds(crew: Crew, wheel: _Wheel, vector: Slice) -> None:
    """From the cluster's region of `vector` to all of it, on all ranks that add."""
    for distance, nregions in reversed(list(rounds(wheel.nclusters))):
        known = wheel.stretch(vector, 0, nregions)
        crew.send(known, arriving(wheel.cluster(-distance), known.count), RESULTS)
        new = wheel.stretch(vector, distance, nregions)
        if crew.adds:
            room = crew.room(new)
            crew.recv(wheel.cluster(distance), room, RESULTS)
            crew.spread(room, arriving(crew.cluster, room.count), home=False)
            crew.put(room, new)


def _on_rails(collective: Collective, topology: Topology, rank: int) -> Program:
    """As `all_reduce`; rank k of each cluster has the k-th part of the vector, the last also what is left over."""
    builder, nrails = Builder(collective, rank), topology.rails
    width = collective.count // nrails
    wheel = _even_wheel(topology, rank, width, 1)
    cluster = wheel.cluster(0)
    crew = Crew(builder, cluster)
    source, target = builder.source(), builder.target()
    left_over = collective.count - width * nrails
    is_last = crew.position == nrails - 1
    if is_last:  # of its rail, the last region is so much longer
        wheel = _even_wheel(topology, rank, width, 1, left_over)
    rail = target.part(width * crew.position, width + left_over * is_last)
    crew.scatter(source, target)
    for distance, nregions in rounds(wheel.nclusters):
        there, away = wheel.cluster(distance), wheel.stretch(rail, distance, nregions)
        builder.send(crew.gathered(away, 0, away.count), there.border[(crew.position + 1) % nrails], PARTIALS)
        kept = wheel.stretch(rail, 0, nregions)
        # Counted over all rails: the left-over elements are in if the last region is.
        count = (kept.count - left_over * _has_last(wheel, nregions) * is_last) * nrails
        count += left_over * _has_last(wheel, nregions)
        crew.add(kept, count, [wheel.cluster(-distance)], kept, PARTIALS, scattered=True)
    mine = wheel.stretch(rail, 0, 1).first
    builder.average(mine, mine)
    for distance, nregions in reversed(list(rounds(wheel.nclusters))):
        known = wheel.stretch(rail, 0, nregions)
        builder.send(crew.gathered(known, 0, known.count), wheel.cluster(-distance).border[crew.position], RESULTS)
        new = wheel.stretch(rail, distance, nregions)
        room = crew.room(new)
        builder.recv(room, wheel.cluster(distance).border[crew.position], RESULTS)
        crew.put(room, new)
    crew.spread(target, arriving(cluster, target.count), home=True)
    return builder.program("circulant all_reduce on rails")


def _has_last(wheel: _Wheel, nregions: int) -> bool:
    """Whether the last region of all is among those from this cluster's own on."""
    return wheel.here + nregions >= wheel.nclusters


def _even_wheel(topology: Topology, rank: int, count: int, unit: int, left_over: int = 0) -> _Wheel:
    """Regions of a vector of `count + left_over` elements: equal, the last one longer by `left_over`.

    They begin at multiples of `unit` where they are long enough for that.
    """
    clusters = topology.clusters
    nclusters = len(clusters)
    if count < _MIN_UNITS * unit * nclusters:
        unit = 1
    nunits = count // unit

    def cut(number: int) -> int:
        return count + left_over if number == nclusters else nunits * number // nclusters * unit

    return _Wheel(clusters.__getitem__, nclusters, cut, topology.cluster_index(rank))


def _block_wheel(collective: Collective, topology: Topology, rank: int) -> _Wheel:
    """The blocks of each cluster's ranks, in the order in which they lie in the vector."""
    clusters, order = topology.clusters, topology.order
    if order is None:
        raise ValueError("a cluster has ranks that are not consecutive")
    nclusters = len(order)

    def cluster(number: int) -> Cluster:
        return clusters[order[number]]

    def cut(number: int) -> int:
        return collective.total if number == nclusters else collective.block_offset(cluster(number).ranks[0])

    return _Wheel(cluster, nclusters, cut, topology.places[topology.cluster_index(rank)])
