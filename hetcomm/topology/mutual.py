"""All_reduce of a short vector over two clusters: they exchange their sums, and both add.

Each cluster adds up its ranks' vectors, its border ranks exchange the parts of that sum with those of the other
cluster, and each adds what comes to its own: one message after another between clusters where a hub would need two, and
the same 2S between them. Both take the first cluster's sum as the left operand, so all ranks get the same bits. What
goes between clusters is cut into pieces of `PIECE_BYTES`, each of which is added when it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program
from hetcomm.topology.builder import Builder
from hetcomm.topology.layout import Direction, Share, divide, messages
from hetcomm.topology.model import Topology
from hetcomm.topology.phases import within
from hetcomm.topology.ring import PIECE_BYTES
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
    given, part = (whole.part(share.start, share.count) for whole in (source, target))
    is_alone = len(cluster) == 1 and not source.overlaps(target)
    if here == 0:
        held, arriving = part, builder.scratch(share.count)
    else:
        held, arriving = given if is_alone else builder.scratch(share.count), part
    sent = given if is_alone else held
    if not is_alone:
        builder.home_reduce(cluster, source, mine, within(held, share.start))
    longest = max(1, PIECE_BYTES // collective.dtype.itemsize)
    for start, stop, sender, receiver in _pieces(mine, theirs, longest):
        if sender == rank:
            builder.send(sent.part(start - share.start, stop - start), receiver)
    if is_alone:
        builder.copy(sent, held)
    left, right = (held, arriving) if here == 0 else (arriving, held)
    for start, stop, sender, receiver in _pieces(theirs, mine, longest):
        if receiver == rank:
            at = start - share.start, stop - start
            builder.recv(arriving.part(*at), sender)
            builder.reduce(right.part(*at), left.part(*at))
            builder.average(left.part(*at), part.part(*at))
    builder.home_spread(cluster, target, mine)
    return builder.program("mutual all_reduce")


def _pieces(senders: Sequence[Share], receivers: Sequence[Share], longest: int) -> Iterator[tuple[int, int, int, int]]:
    """The messages of these shares, each in as few pieces of equal length as it takes."""
    for start, stop, sender, receiver in messages(senders, receivers):
        npieces = -(-(stop - start) // longest)
        cuts = [start + (stop - start) * number // npieces for number in range(npieces + 1)]
        for first, last in pairwise(cuts):
            yield first, last, sender, receiver
