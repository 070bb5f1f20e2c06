"""One cluster: what its vendor's library is good at, or point-to-point for what vendors do not offer.

No byte between clusters. N ranks.

===========================================  ===============================================================
collective                                   steps of a rank
===========================================  ===============================================================
all_reduce, reduce, broadcast, all_gather,   one vendor call on the home communicator, straight between
reduce_scatter                               input and output
all_gather_v, reduce_scatter_v, few bytes    one vendor call by way of scratch (all_gather of equal blocks,
                                             all_reduce), and copies
the same, many bytes                         one broadcast or reduce for each block that is not empty
gather, scatter, all_to_all and their        messages: `hetcomm.topology.flat_exchange`
vector forms
scan, exscan                                 messages: `hetcomm.topology.scans`
===========================================  ===============================================================

`AVG` adds one copy that scales the result, `PREMUL_SUM` one that scales the input, and ranks out of order the copies of
`hetcomm.topology.runs`. A single rank copies, or does nothing; a logical op makes its elements 0 or 1. A vector form of
equal blocks is planned like the collective without counts.
"""

from __future__ import annotations

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.spec import Family
from hetcomm.schedule.steps import Program
from hetcomm.topology import flat
from hetcomm.topology.builder import Builder
from hetcomm.topology.layout import Share
from hetcomm.topology.model import Cluster, Topology
from hetcomm.topology.phases import within
from hetcomm.topology.runs import Run

__all__ = ["plan"]


def plan(collective: Collective, topology: Topology, rank: int) -> Program:
    """The program of `rank` for any collective over a topology of one cluster."""
    cluster = topology.clusters[0]
    if collective.kind.row.family is not Family.VENDOR:
        return flat.plan(collective, rank)
    builder = Builder(collective, rank)
    if not collective.total:
        return builder.program("nothing to do")
    if len(cluster) == 1:
        builder.alone()
        return builder.program("local copy")
    count = flat.equal_count(collective)
    if count is not None:
        _call(builder, cluster, count)
        return builder.program("vendor call")
    _calls(builder, cluster)
    return builder.program("vendor calls")


def _call(builder: Builder, cluster: Cluster, count: int) -> None:
    """One vendor call; in those with blocks all have `count` elements."""
    collective, rank, kind = builder.collective, builder.rank, builder.collective.kind
    source, target = builder.source(), builder.target()
    run = Run(collective, cluster)
    src = source if collective.in_count(rank) else None
    dst = target if collective.out_count(rank) else None
    if kind is CollectiveKind.REDUCE_SCATTER:
        src = run.packed(builder, source)
        if target.overlaps(src):
            dst = src  # in place, the one buffer
    elif kind is CollectiveKind.ALL_GATHER:
        dst = run.room(builder, target)
    root = cluster.ranks.index(collective.root) if collective.root is not None else None
    builder.vendor(cluster.home_id, len(cluster), kind, count, src=src, dst=dst, root=root)
    if kind is CollectiveKind.ALL_GATHER and dst is not None:
        run.unpack(builder, dst, target)
    if collective.out_count(rank):
        builder.average(target, target)


def _calls(builder: Builder, cluster: Cluster) -> None:
    """An all_gather or reduce_scatter of unequal blocks."""
    collective, rank = builder.collective, builder.rank
    source, target, offset = builder.source(), builder.target(), collective.block_offset
    owners = [Share(offset(owner), offset(owner + 1), owner) for owner in range(collective.nranks)]
    shares = [share for share in owners if share.count]
    if collective.kind is CollectiveKind.ALL_GATHER:
        builder.copy(source, target.part(offset(rank), source.count))
        builder.home_spread(cluster, target, shares)
        return
    builder.home_reduce(cluster, source, shares, within(target, offset(rank)))
    builder.average(target, target)
