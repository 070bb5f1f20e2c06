"""Broadcast and reduce in two hops between clusters, so that the root's cluster moves the vector only once.

The vector is divided into C-1 regions, one for each cluster but the root's.

* broadcast: the root's cluster sends each region to its owner, which sends it on to the C-2 others.
* reduce: each owner combines its region from all clusters but the root's and sends the sum to the root's cluster.

Between clusters (C-1)S, as in one hop, but out of the root's cluster (broadcast) or into it (reduce) S instead of
(C-1)S, and S(C-2)/(C-1) the same way at each other cluster; 2 latencies instead of 1. This is van de Geijn's broadcast
by scatter and all_gather (M. Barnett et al., "Interprocessor Collective Communication Library", SHPCC 1994) among
clusters, and its mirror image.
"""

from __future__ import annotations

from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Program, Slice
from hetcomm.topology.border import PARTIALS, Combination, Slot, combine, place
from hetcomm.topology.builder import Builder
from hetcomm.topology.layout import Direction, Share, divide
from hetcomm.topology.model import Topology
from hetcomm.topology.phases import (
    RESULTS,
    Destination,
    contribute,
    finish_at_root,
    in_slots,
    others,
    spread_from_root,
    within,
)

__all__ = ["MIN_BYTES", "broadcast", "pays", "reduce"]

MIN_BYTES = 64 << 10
"""The shortest vector that is worth a second latency."""


def pays(collective: Collective, topology: Topology) -> bool:
    """Whether a relayed plan is better: three clusters or more, and a long vector."""
    return len(topology.clusters) > 2 and collective.count * collective.dtype.itemsize >= MIN_BYTES


def broadcast(collective: Collective, topology: Topology, rank: int) -> Program:
    """S out of the root's cluster and into every other: the least for each."""
    builder = Builder(collective, rank)
    clusters, here = topology.clusters, topology.cluster_index(rank)
    cluster, root = clusters[here], collective.root or 0
    there = topology.cluster_index(root)
    target, owners = builder.target(), others(there, len(clusters))
    if here == there:
        source = spread_from_root(builder, cluster, target)
        for number, owner in enumerate(owners):
            part = _region(source, number, len(owners))
            senders, receivers = _first_hop(topology, there, owner, part.count)
            builder.send_shares(senders, receivers, within(part), RESULTS)
        return builder.program("relayed broadcast")
    mine = _region(target, owners.index(here), len(owners))
    senders, arrived = _first_hop(topology, there, here, mine.count)
    builder.recv_shares(senders, arrived, within(mine), RESULTS)
    leaving = divide(cluster, mine.count, Direction.OUT)
    if leaving != arrived:
        builder.home_spread(cluster, mine, arrived)
    for other in others(here, len(clusters)):
        if other != there:
            receivers = divide(clusters[other], mine.count, Direction.IN)
            builder.send_shares(leaving, receivers, within(mine), RESULTS)
    if leaving == arrived:
        builder.home_spread(cluster, mine, arrived)
    for owner in others(here, len(clusters)):
        if owner != there:
            part = _region(target, owners.index(owner), len(owners))
            receivers = divide(cluster, part.count, Direction.IN)
            builder.recv_shares(divide(clusters[owner], part.count, Direction.OUT), receivers, within(part), RESULTS)
            builder.home_spread(cluster, part, receivers)
    return builder.program("relayed broadcast")


def reduce(collective: Collective, topology: Topology, rank: int) -> Program:
    """S into the root's cluster and out of every other: the least for each."""
    builder = Builder(collective, rank)
    clusters, here = topology.clusters, topology.cluster_index(rank)
    cluster, root = clusters[here], collective.root or 0
    there = topology.cluster_index(root)
    source, target, owners = builder.source(), builder.target(), others(there, len(clusters))
    if here == there:
        for number, owner in enumerate(owners):
            part = _region(source, number, len(owners))
            arriving = [place(clusters[owner], part.count).results]
            finish_at_root(builder, cluster, arriving, part, _region(target, number, len(owners)))
        return builder.program("relayed reduce")
    for owner in others(here, len(clusters)):
        if owner != there:
            to = Destination(owner, _contributors(owner, there, len(clusters)).index(here))
            contribute(builder, topology, to, _region(source, owners.index(owner), len(owners)))
    mine = _region(source, owners.index(here), len(owners))
    placement = place(cluster, mine.count)
    contributors = _contributors(here, there, len(clusters))
    incoming = [divide(clusters[other], mine.count, Direction.OUT) for other in contributors]
    held: dict[int, Slice] = {}

    def result(slot: Slot) -> Slice:
        held[slot.start] = builder.scratch(slot.count)
        return held[slot.start]

    combine(builder, Combination(cluster, mine, placement, incoming, result, is_last=False))
    receivers = place(clusters[there], mine.count).receivers(0)
    builder.send_shares(placement.results, receivers, in_slots(placement.slots, held), PARTIALS)
    return builder.program("relayed reduce")


def _region(whole: Slice, number: int, nregions: int) -> Slice:
    """Region `number` of equal ones; nothing of a buffer that is empty."""
    start = whole.count * number // nregions
    return whole.part(start, whole.count * (number + 1) // nregions - start)


def _first_hop(topology: Topology, there: int, owner: int, count: int) -> tuple[tuple[Share, ...], tuple[Share, ...]]:
    clusters = topology.clusters
    return divide(clusters[there], count, Direction.OUT), divide(clusters[owner], count, Direction.IN)


def _contributors(owner: int, there: int, nclusters: int) -> list[int]:
    """The clusters whose partials the owner of a region combines with its own: all but the root's."""
    return [other for other in others(owner, nclusters) if other != there]
