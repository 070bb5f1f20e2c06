"""One cluster: one vendor call on the home communicator, straight between input and output.

One vendor call; no byte between clusters. `AVG` adds one copy that scales the result, `PREMUL_SUM` one that scales the
input, and ranks out of order the copies of `hetcomm.topology.packing`. A single rank copies, or does nothing.
"""

from __future__ import annotations

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program
from hetcomm.topology.builder import Builder
from hetcomm.topology.model import Topology
from hetcomm.topology.packing import packed, room, unpack

__all__ = ["plan"]


def plan(collective: Collective, topology: Topology, rank: int) -> Program:
    """The program of `rank` for any collective over a topology of one cluster."""
    builder = Builder(collective, rank)
    kind, count, cluster = collective.kind, collective.count, topology.clusters[0]
    source, target = builder.source(), builder.target()
    if not count:
        return builder.program("nothing to do")
    if len(cluster) == 1:
        builder.average(source, target)
        return builder.program("local copy")
    passes, gets = collective.in_count(rank) > 0, collective.out_count(rank) > 0
    root = cluster.ranks.index(collective.root) if collective.root is not None else None
    src, dst = source if passes else None, target if gets else None
    if kind is CollectiveKind.REDUCE_SCATTER:
        src = packed(builder, source, cluster, count)
    elif kind is CollectiveKind.ALL_GATHER:
        dst = room(builder, target, cluster, count)
    if kind is CollectiveKind.REDUCE_SCATTER and src is not None and target.overlaps(src):
        dst = src  # in place, the one buffer
    builder.vendor(cluster.home_id, len(cluster), kind, count, src=src, dst=dst, root=root)
    if kind is CollectiveKind.ALL_GATHER and dst is not None:
        unpack(builder, dst, target, cluster, count)
    if gets:
        builder.average(target, target)
    return builder.program("vendor call")
