"""Collectives over several clusters: home phase, border phase, home phase, overlapped chunk by chunk.

Each element has a hub (`hetcomm.topology.hubs`) and travels through the clusters on a tree (`hetcomm.topology.flow`). C
clusters, S elements as in the table of the least volumes (`hetcomm.topology.bounds`).

===============  ==========================================================================  ==================
collective       what happens to a piece                                                     between clusters
===============  ==========================================================================  ==================
all_reduce       home reduce to border ranks; partials to the hub; border reduction there;   2(C-1)S
                 results to all clusters; home all_gather or broadcast
reduce_scatter   partials to the hub and on to the cluster of the block, border reduction    (C-1)S
                 in both; each rank gets its block
reduce           the same, to the cluster of the root                                        (C-1)S
all_gather       home all_gather; to the hub and on to all clusters; home spreading          (C-1)S
broadcast        home broadcast at the root; the same                                        (C-1)S
===============  ==========================================================================  ==================

Every message between clusters goes from a border rank to a border rank, and the border ranks of a cluster share
what it sends and what it receives in proportion to their uplinks. Messages one after another between clusters: 2 for
all_reduce and for what has a hub of its own, 1 for the rest. Vectors of up to `Tuning.few_steps_bytes` have one hub,
so that a cluster takes part in as few messages as there can be; where clusters are many, a binomial tree, 2 log C or
log C messages.

Where clusters stand in sites, racks in halls say, the tree is nested: an element enters and leaves every site once,
whatever its level, with the same total.

The border reduction follows H2 / FlagCX's border communicator (https://github.com/FlagOpen/FlagCX), which covers equal
clusters of two or more ranks; `hetcomm.topology.border` covers any. The relay by hubs is van de Geijn's broadcast by
scatter and all_gather (M. Barnett et al., "Interprocessor Collective Communication Library", SHPCC 1994) among
clusters, with shares by bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program, Slice
from hetcomm.topology.border import Placement, Slot
from hetcomm.topology.builder import Builder, Place
from hetcomm.topology.flow import Flow
from hetcomm.topology.hubs import Region, bandwidths, regions
from hetcomm.topology.layout import Direction, Share, alignment
from hetcomm.topology.model import Topology
from hetcomm.topology.phases import within
from hetcomm.topology.runs import Run
from hetcomm.topology.trees import Binomial, Nested, Star, Tree
from hetcomm.topology.tuning import RULES, Tuning

__all__ = ["all_gather", "all_reduce", "broadcast", "plan", "reduce", "reduce_scatter"]

_STAR_CLUSTERS = 8  # up to which one hub serves all others by itself


def plan(collective: Collective, topology: Topology, rank: int, tuning: Tuning = RULES) -> Program:
    """The program of `rank` for one of these collectives over a topology of two or more clusters."""
    return _PLANNERS[collective.kind](collective, topology, rank, tuning)


def all_reduce(collective: Collective, topology: Topology, rank: int, tuning: Tuning = RULES) -> Program:
    """Partials to the hub of each piece, results back: 2(C-1)S between clusters."""
    builder = Builder(collective, rank)
    flow = Flow(builder, topology, locally=tuning.local_reduction)
    source, target = builder.source(), builder.target()
    for tick, region, start, stop in _pieces(collective, topology, tuning):
        tree = _tree(topology, region, collective, tuning)
        part = target.part(start, stop - start)

        def final(slot: Slot, part: Slice = part) -> Slice:
            return part.part(slot.start, slot.count)

        flow.up(tick, tree, source.part(start, stop - start), part, final, _nothing)
        flow.down(tick, tree, tree.height, part, _lying(part), spread_first=True)
    flow.run()
    return builder.program("hierarchical all_reduce")


def reduce(collective: Collective, topology: Topology, rank: int, tuning: Tuning = RULES) -> Program:
    """Partials to the hub of each piece and on to the root's cluster: (C-1)S between clusters."""
    builder = Builder(collective, rank)
    flow = Flow(builder, topology, locally=tuning.local_reduction)
    source, target, root = builder.source(), builder.target(), collective.root or 0
    for tick, region, start, stop in _pieces(collective, topology, tuning):
        there = within(target, -start)
        whole = (Share(0, stop - start, root),)
        _reduce_to(
            flow, tick, _tree(topology, region, collective, tuning), source.part(start, stop - start), whole, there
        )
    flow.run()
    return builder.program("hierarchical reduce")


def reduce_scatter(collective: Collective, topology: Topology, rank: int, tuning: Tuning = RULES) -> Program:
    """Partials to the hub of each piece and on to the cluster whose ranks get it: (C-1)S between clusters."""
    builder = Builder(collective, rank)
    flow = Flow(builder, topology, locally=tuning.local_reduction)
    if not collective.total:
        return builder.program("hierarchical reduce_scatter")
    source, target = builder.source(), builder.target()
    runs = [Run(collective, cluster) for cluster in topology.clusters]
    packed = [run.packed(builder, source) for run in runs]
    mine = runs[flow.here].start(flow.cluster.ranks.index(rank))
    for tick, region, start, stop in _pieces(collective, topology, tuning):
        home = region.home or 0
        owners = runs[home].owners(start, stop)
        there = within(target, mine - start)
        _reduce_to(
            flow,
            tick,
            _tree(topology, region, collective, tuning),
            packed[home].part(start, stop - start),
            owners,
            there,
        )
    flow.run()
    return builder.program("hierarchical reduce_scatter")


def _reduce_to(flow: Flow, tick: int, tree: Tree, source: Slice, owners: tuple[Share, ...], there: Place) -> None:
    """Add a piece up and hand each rank in `owners` its part, which goes `there`."""
    me = flow.builder.rank

    def final(slot: Slot) -> Slice | None:
        for share in owners:
            if share.rank == slot.result == me and share.start <= slot.start and slot.stop <= share.stop:
                return there(slot.start, slot.stop)
        return None

    def finish(placement: Placement, held: Place) -> None:
        flow.deliver(placement, held, owners, there)

    flow.up(tick, tree, source, None, final, finish)


def all_gather(collective: Collective, topology: Topology, rank: int, tuning: Tuning = RULES) -> Program:
    """Each cluster's blocks to their hubs and on to every other: (C-1)S between clusters."""
    builder = Builder(collective, rank)
    flow = Flow(builder, topology)
    if not collective.total:
        return builder.program("hierarchical all_gather")
    source, target, cluster = builder.source(), builder.target(), flow.cluster
    runs = [Run(collective, each) for each in topology.clusters]
    rooms = [run.room(builder, target) for run in runs]
    mine, position = runs[flow.here], cluster.ranks.index(rank)
    own, start = rooms[flow.here], mine.start(position)
    blocks = mine.owners(0, mine.count)
    pieces = list(_pieces(collective, topology, tuning))
    at_hand = len(cluster) > 1 and all(  # then nobody waits for the home phase
        region.home != flow.here or (first, last) == (0, mine.count) for _, region, first, last in pieces
    )
    at_hand = at_hand and flow.divide(flow.here, mine.count, Direction.OUT) == blocks

    def spread() -> None:
        if collective.counts is None and len(cluster) > 1:
            kind = CollectiveKind.ALL_GATHER
            builder.vendor(cluster.home_id, len(cluster), kind, collective.count, src=source, dst=own)
        else:
            builder.copy(source, own.part(start, source.count))
            builder.home_spread(cluster, own, blocks)

    if at_hand:
        flow.at(0, 1, spread)
    else:
        spread()
    for tick, region, first, last in pieces:
        home = region.home or 0
        part = rooms[home].part(first, last - first)
        lying = _lying(part) if not at_hand or home != flow.here else lambda: within(source, start)
        flow.down(tick, _tree(topology, region, collective, tuning), 0, part, lying, spread_first=False)
    flow.run()
    for run, arrived in zip(runs, rooms, strict=True):
        run.unpack(builder, arrived, target)
    return builder.program("hierarchical all_gather")


def broadcast(collective: Collective, topology: Topology, rank: int, tuning: Tuning = RULES) -> Program:
    """The root's vector to the hub of each piece and on to every other cluster: (C-1)S between clusters."""
    builder = Builder(collective, rank)
    flow = Flow(builder, topology)
    root, target, cluster = collective.root or 0, builder.target(), flow.cluster
    source = builder.source() if rank == root else None
    for tick, region, start, stop in _pieces(collective, topology, tuning):
        part = target.part(start, stop - start)
        have = source.part(start, stop - start) if source is not None else None

        def first(part: Slice = part, have: Slice | None = have) -> Place:
            if len(cluster) > 1:
                where, kind = cluster.ranks.index(root), CollectiveKind.BROADCAST
                builder.vendor(cluster.home_id, len(cluster), kind, part.count, src=have, dst=part, root=where)
            elif have is not None:
                builder.copy(have, part)
            return within(part if have is None else have)

        flow.down(tick, _tree(topology, region, collective, tuning), 0, part, first, spread_first=False)
    flow.run()
    return builder.program("hierarchical broadcast")


def _pieces(collective: Collective, topology: Topology, tuning: Tuning) -> Iterator[tuple[int, Region, int, int]]:
    """(chunk, region, start, stop) of each piece; a chunk has one piece of each region."""
    if not collective.total:
        return
    nbytes = collective.total * collective.dtype.itemsize
    if tuning.is_small(nbytes):
        for region in _few(collective, topology):
            yield 0, region, region.start, region.stop
        return
    unit = alignment(topology, collective.total)
    nchunks = tuning.chunks(nbytes, len(topology.clusters))
    found = regions(collective, topology, unit)
    for chunk in range(nchunks):
        for region in found:
            count = region.stop - region.start
            body = count // unit
            cuts = [body * k // nchunks * unit for k in (chunk, chunk + 1)]
            start, stop = region.start + cuts[0], region.start + cuts[1]
            if start < stop:
                yield chunk, region, start, stop
            if chunk == nchunks - 1 and stop < region.stop:  # less than a unit, which is no tiling
                yield chunk, region, stop, region.stop


def _few(collective: Collective, topology: Topology) -> Iterator[Region]:
    """The regions of a vector that travels in few steps: each at home, or all of it at the cluster with most
    bandwidth."""
    if collective.kind is CollectiveKind.ALL_REDUCE:
        both = bandwidths(topology).both
        yield Region(0, collective.count, both.index(max(both)))
    elif collective.root is not None:
        there = topology.cluster_index(collective.root)
        yield Region(0, collective.count, there, there)
    else:
        for home, cluster in enumerate(topology.clusters):
            count = Run(collective, cluster).count
            if count:
                yield Region(0, count, home, home)


def _tree(topology: Topology, region: Region, collective: Collective, tuning: Tuning) -> Tree:
    clusters = topology.clusters
    root = region.hub if region.home is None else region.home
    if topology.has_sites:
        return _nested(topology, root, region.hub)
    few = tuning.is_small(collective.total * collective.dtype.itemsize)
    if few and len(clusters) > _STAR_CLUSTERS and not collective.kind.has_blocks:
        return Binomial(len(clusters), root)
    return Star(len(clusters), region.hub, root)


@lru_cache(maxsize=256)
def _nested(topology: Topology, root: int, turn: int) -> Nested:
    return Nested([cluster.sites for cluster in topology.clusters], root, turn)


def _lying(part: Slice) -> Callable[[], Place]:
    return lambda: within(part)


def _nothing(placement: Placement, held: Place) -> None:
    """The results lie where they belong."""


_PLANNERS: dict[CollectiveKind, Callable[[Collective, Topology, int, Tuning], Program]] = {
    CollectiveKind.ALL_REDUCE: all_reduce,
    CollectiveKind.REDUCE: reduce,
    CollectiveKind.BROADCAST: broadcast,
    CollectiveKind.ALL_GATHER: all_gather,
    CollectiveKind.REDUCE_SCATTER: reduce_scatter,
}
