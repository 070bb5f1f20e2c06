"""Collectives over several clusters: home phase, border phase, home phase.

The vector is divided into regions, each owned by one cluster. C clusters, n ranks and b border ranks in a cluster,
S elements as in the table of the least volumes (`hetcomm.topology.bounds`).

===============  =========================================================================  ==================
collective       phases, for each region                                                    between clusters
===============  =========================================================================  ==================
all_reduce       home reduce to border ranks; partials to the owner; border reduction       2(C-1)S
                 there; results to all clusters; home all_gather or broadcast
reduce_scatter   the same as far as the border reduction; then each rank gets its block     (C-1)S
all_gather       home all_gather; border ranks send it on; home all_gather or broadcast     (C-1)S
broadcast        home broadcast at the root; border ranks send it on; home spreading        (C-1)S
reduce           home reduce; partials to the root's cluster; border reduction; to the      (C-1)S
                 root
===============  =========================================================================  ==================

Every message between clusters goes from a border rank to a border rank, and the border ranks of a cluster share
what it sends and what it receives in proportion to their uplinks. Messages between clusters: 2 latencies one after
another for all_reduce and what is relayed, 1 for the others. The regions of one collective are independent of one
another, so one's home phase overlaps another's transfer.

The border reduction follows H2 / FlagCX's border communicator (https://github.com/FlagOpen/FlagCX), which
covers equal clusters of two or more ranks; `hetcomm.topology.border` covers any.
"""

from __future__ import annotations

from collections.abc import Callable

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program, Slice
from hetcomm.topology import relay
from hetcomm.topology.border import Combination, Slot, combine, place
from hetcomm.topology.builder import Builder, Place
from hetcomm.topology.layout import Direction, blocks, divide, owner_cuts
from hetcomm.topology.model import Topology
from hetcomm.topology.packing import packed, room, unpack
from hetcomm.topology.phases import (
    RESULTS,
    contribute,
    deliver,
    finish_at_root,
    incoming,
    others,
    spread_from_root,
    to_owner,
    within,
)

__all__ = ["all_gather", "all_reduce", "broadcast", "plan", "reduce", "reduce_scatter"]


def plan(collective: Collective, topology: Topology, rank: int) -> Program:
    """The program of `rank` for any collective over a topology of two or more clusters."""
    return _PLANNERS[collective.kind](collective, topology, rank)


def all_reduce(collective: Collective, topology: Topology, rank: int) -> Program:
    """Each cluster owns an equal part of the vector: 2(C-1)S between clusters, out of and into each 2(C-1)S/C."""
    builder = Builder(collective, rank)
    clusters, here = topology.clusters, topology.cluster_index(rank)
    cluster = clusters[here]
    source, target = builder.source(), builder.target()
    cuts = owner_cuts(topology, collective.count)

    def region(owner: int, of: Slice) -> Slice:
        return of.part(cuts[owner], cuts[owner + 1] - cuts[owner])

    owners = [owner for owner in others(here, len(clusters)) if cuts[owner] < cuts[owner + 1]]
    for owner in owners:
        to = to_owner(here, owner, len(clusters))
        contribute(builder, topology, to, region(owner, source), region(owner, target))
    mine = region(here, target)
    if mine.count:
        placement = place(cluster, mine.count)
        own, arriving = region(here, source), incoming(topology, here, mine.count)
        combine(builder, Combination(cluster, own, placement, arriving, lambda s: mine.part(s.start, s.count)))
        for other in others(here, len(clusters)):
            receivers = divide(clusters[other], mine.count, Direction.IN)
            builder.send_shares(placement.results, receivers, within(mine), RESULTS)
        builder.home_spread(cluster, mine, placement.results)
    for owner in owners:
        part = region(owner, target)
        senders = place(clusters[owner], part.count).results
        receivers = divide(cluster, part.count, Direction.IN)
        builder.recv_shares(senders, receivers, within(part), RESULTS)
        builder.home_spread(cluster, part, receivers)
    return builder.program("hierarchical all_reduce")


def reduce_scatter(collective: Collective, topology: Topology, rank: int) -> Program:
    """Each cluster owns the blocks of its ranks: (C-1)S between clusters, S(1-f) out of one with a share f of ranks."""
    builder = Builder(collective, rank)
    clusters, here = topology.clusters, topology.cluster_index(rank)
    cluster, count = clusters[here], collective.count
    source, target = builder.source(), builder.target()

    def region(owner: int) -> Slice:
        return packed(builder, source, clusters[owner], count)

    if count:
        for owner in others(here, len(clusters)):
            contribute(builder, topology, to_owner(here, owner, len(clusters)), region(owner))
        placement = place(cluster, count * len(cluster))
        final = blocks(cluster.ranks, count)
        held: dict[int, Slice] = {}
        direct = placement.results == final

        def result(slot: Slot) -> Slice:
            held[slot.start] = target if direct else builder.scratch(slot.count)
            return held[slot.start]

        arriving = incoming(topology, here, count * len(cluster))
        combine(builder, Combination(cluster, region(here), placement, arriving, result))
        if not direct:
            deliver(builder, placement.slots, held, final, target)
    return builder.program("hierarchical reduce_scatter")


def all_gather(collective: Collective, topology: Topology, rank: int) -> Program:
    """Each cluster sends its ranks' blocks to every other: (C-1)S between clusters, S(1-f) into one with a share f."""
    builder = Builder(collective, rank)
    clusters, here = topology.clusters, topology.cluster_index(rank)
    cluster, count = clusters[here], collective.count
    source, target = builder.source(), builder.target()
    if not count:
        return builder.program("hierarchical all_gather")
    own_block = target.part(rank * count, count)
    mine = room(builder, target, cluster, count)
    senders = divide(cluster, count * len(cluster), Direction.OUT)
    at_hand = senders == blocks(cluster.ranks, count)  # then nobody waits for the home phase

    def send_all(where: Place) -> None:
        for other in others(here, len(clusters)):
            receivers = divide(clusters[other], count * len(cluster), Direction.IN)
            builder.send_shares(senders, receivers, where, RESULTS)

    if at_hand:
        send_all(within(source, cluster.ranks.index(rank) * count))
    if len(cluster) > 1:
        builder.vendor(cluster.home_id, len(cluster), CollectiveKind.ALL_GATHER, count, src=source, dst=mine)
    else:
        builder.copy(source, own_block)
    if not at_hand:
        send_all(within(mine))
    unpack(builder, mine, target, cluster, count)
    for owner in others(here, len(clusters)):
        part = room(builder, target, clusters[owner], count)
        receivers = divide(cluster, part.count, Direction.IN)
        arriving = divide(clusters[owner], part.count, Direction.OUT)
        builder.recv_shares(arriving, receivers, within(part), RESULTS)
        builder.home_spread(cluster, part, receivers)
        unpack(builder, part, target, clusters[owner], count)
    return builder.program("hierarchical all_gather")


def broadcast(collective: Collective, topology: Topology, rank: int) -> Program:
    """The root's cluster sends the vector to every other: (C-1)S between clusters, all of it out of the root's.

    Long vectors for three clusters or more are relayed (`hetcomm.topology.relay`).
    """
    if relay.pays(collective, topology):
        return relay.broadcast(collective, topology, rank)
    builder = Builder(collective, rank)
    clusters, here = topology.clusters, topology.cluster_index(rank)
    cluster, root, count = clusters[here], collective.root or 0, collective.count
    there = topology.cluster_index(root)
    target = builder.target()
    senders = divide(clusters[there], count, Direction.OUT)
    if here != there:
        receivers = divide(cluster, count, Direction.IN)
        builder.recv_shares(senders, receivers, within(target), RESULTS)
        builder.home_spread(cluster, target, receivers)
        return builder.program("hierarchical broadcast")
    source = spread_from_root(builder, cluster, target)
    for other in others(here, len(clusters)):
        receivers = divide(clusters[other], count, Direction.IN)
        builder.send_shares(senders, receivers, within(source), RESULTS)
    return builder.program("hierarchical broadcast")


def reduce(collective: Collective, topology: Topology, rank: int) -> Program:
    """The root's cluster owns the vector: (C-1)S between clusters, all of it into the root's.

    Long vectors of three clusters or more are relayed (`hetcomm.topology.relay`).
    """
    if relay.pays(collective, topology):
        return relay.reduce(collective, topology, rank)
    builder = Builder(collective, rank)
    clusters, here = topology.clusters, topology.cluster_index(rank)
    cluster, root, count = clusters[here], collective.root or 0, collective.count
    there = topology.cluster_index(root)
    if not count:
        return builder.program("hierarchical reduce")
    source, target = builder.source(), builder.target()
    if here != there:
        contribute(builder, topology, to_owner(here, there, len(clusters)), source)
        return builder.program("hierarchical reduce")
    finish_at_root(builder, cluster, incoming(topology, there, count), source, target)
    return builder.program("hierarchical reduce")


_PLANNERS: dict[CollectiveKind, Callable[[Collective, Topology, int], Program]] = {
    CollectiveKind.ALL_REDUCE: all_reduce,
    CollectiveKind.REDUCE: reduce,
    CollectiveKind.BROADCAST: broadcast,
    CollectiveKind.ALL_GATHER: all_gather,
    CollectiveKind.REDUCE_SCATTER: reduce_scatter,
}
