"""All_reduce of a short vector over two clusters: they exchange their sums, and both add.

Each cluster adds up its ranks' vectors, its border ranks exchange the parts of that sum with those of the other
cluster, and each adds what comes to its own: one message after another between clusters where a hub would need two, and
the same 2S between them. Both take the first cluster's sum as the left operand, so all ranks get the same bits.
"""

from __future__ import annotations

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program
from hetcomm.topology.builder import Builder
from hetcomm.topology.layout import Direction, divide
from hetcomm.topology.model import Topology
from hetcomm.topology.phases import within
from hetcomm.topology.tuning import Tuning

__all__ = ["fits", "plan"]


def fits(collective: Collective, topology: Topology, tuning: Tuning) -> bool:
    """Whether this is the plan with the fewest steps, and calls of vendors cost more than steps.

    A border rank must send what it receives, so its cluster's uplinks are as wide in as out, in proportion.
    """
    nbytes, clusters = collective.total * collective.dtype.itemsize, topology.clusters
    return (
        collective.kind is CollectiveKind.ALL_REDUCE
        and len(clusters) == 2
        and nbytes > 0
        and tuning.is_small(nbytes)
        and tuning.is_inlined(nbytes, max(map(len, clusters)))
        and all(
            divide(each, collective.count, Direction.IN) == divide(each, collective.count, Direction.OUT)
            for each in clusters
        )
    )


def plan(collective: Collective, topology: Topology, rank: int) -> Program:
    """The program of `rank`."""
    builder = Builder(collective, rank)
    here = topology.cluster_index(rank)
    cluster, other = topology.clusters[here], topology.clusters[1 - here]
    source, target = builder.source(), builder.target()
    mine, theirs = (divide(each, collective.count, Direction.OUT) for each in (cluster, other))
    share = next((share for share in mine if share.rank == rank), None)
    if share is None:
        builder.home_reduce(cluster, source, mine, within(target))
        builder.home_spread(cluster, target, mine)
        return builder.program("mutual all_reduce")
    part = target.part(share.start, share.count)
    held, arriving = (part, builder.scratch(share.count)) if here == 0 else (builder.scratch(share.count), part)
    if here and len(cluster) == 1 and not source.overlaps(target):
        held = source.part(share.start, share.count)  # it need not be kept apart
    else:
        builder.home_reduce(cluster, source, mine, within(held, share.start))
    builder.send_shares(mine, theirs, within(held, share.start), 0)
    builder.recv_shares(theirs, mine, within(arriving, share.start), 0)
    left, right = (held, arriving) if here == 0 else (arriving, held)
    builder.reduce(right, left)
    builder.average(left, part)
    builder.home_spread(cluster, target, mine)
    return builder.program("mutual all_reduce")
