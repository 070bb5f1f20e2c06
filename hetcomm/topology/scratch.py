"""How much scratch memory a plan takes at most, beside the arrays of the call.

S elements as in the table of the least volumes (`hetcomm.topology.bounds`), in C clusters; w is what the clusters
work on at one time: all of a short vector, and of a long one a chunk, S/K for K chunks (`Tuning.chunks`), rounded up to
what all clusters divide; D of them are under way at once, min(K, 4). X is what a cluster sends to others and receives
from them, and L what one rank passes and gets.

==============  ===========================  ===========================================
collective      scratch of a rank, elements  of which
==============  ===========================  ===========================================
all_reduce      D C w                        partials of the other clusters, at a hub
reduce          D (C+1) w                    the same, and sums on their way
reduce_scatter  S + D (C+1) w                S where the ranks of a cluster are scattered
all_gather      S                            the same
broadcast       0
gather          S                            messages that are put together
scatter         S                            the same
all_to_all      L + X                        L in place; messages that are put together
scan, exscan    min((2r+1) K, 4r+8) S/K      the chain: pieces on their way
                S (2 log n + (1 + 2e) r + 1) the tree: sums on their way
==============  ===========================  ===========================================

* Scans have two plans, `hetcomm.topology.scans`; r is the number of stretches of the rank's cluster, n the ranks of the
  longest one, and e is 1, or log R where there are more than 8 stretches.
* Over many clusters all_reduce and reduce take 3S at most where that is more, and reduce_scatter 3S.
* The op premul_sum adds S, its products, except in all_reduce and scan; displacements add the elements they apply to;
  the logical ops add S in a job of one rank, and in scans on the rank that gets one rank's elements.
* A few elements that are padded to equal blocks add D C E at most, where E is `SMALL_BYTES`; in a job of one cluster
  small blocks that travel on trees add 9E.
* Vendor calls that are written out as messages add 4 (w + E) at most (`hetcomm.topology.inline`), in a job of one
  cluster L.

A plan that takes as much needs one border rank in each cluster, or uplinks so unequal that one rank has almost all of
the traffic; with b equal ones the partials of all_reduce and reduce divide by b.
"""

from __future__ import annotations

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.spec import Family
from hetcomm.topology import scans
from hetcomm.topology.builder import SMALL_BYTES
from hetcomm.topology.layout import alignment
from hetcomm.topology.model import Topology
from hetcomm.topology.select import is_large
from hetcomm.topology.tuning import RULES, Tuning
from hetcomm.types import ReduceKind

__all__ = ["most_scratch"]

_WINDOW = 4  # chunks after which scratch is used again
_CALLS = 4  # written-out calls after which it is
_ROUNDS = 8  # of the trees and the exchange of small blocks in one cluster, each of which has room for all of them


def most_scratch(
    collective: Collective, topology: Topology, rank: int, tuning: Tuning = RULES, *, written_out: bool = False
) -> int:
    """Elements of scratch that the program of `rank` has at most; `written_out`: with its vendor calls as messages."""
    kind, nclusters = collective.kind, len(topology.clusters)
    itemsize, total = collective.dtype.itemsize, collective.total
    passed = max(collective.in_count(rank), collective.out_count(rank))
    chunk, at_once = _chunk(collective, topology, tuning)
    small = -(-SMALL_BYTES // itemsize)
    found = at_once * nclusters * small + _displaced(collective, rank)
    if collective.op is ReduceKind.PREMUL_SUM and kind not in (CollectiveKind.ALL_REDUCE, CollectiveKind.SCAN):
        found += total
    alone = collective.nranks == 1 or (kind.row.family is Family.SCAN and len(collective.sources(rank)) == 1)
    if collective.op is not None and collective.op.is_logical and alone:
        found += total
    match kind:
        case CollectiveKind.ALL_REDUCE:
            partials, many, packed = nclusters, 3, 0
        case CollectiveKind.REDUCE:
            partials, many, packed = nclusters + 1, 3, 0
        case CollectiveKind.REDUCE_SCATTER:
            partials, many, packed = nclusters + 1, 2, total
        case CollectiveKind.ALL_GATHER:
            partials, many, packed = 0, 0, total
        case CollectiveKind.BROADCAST:
            partials, many, packed = 0, 0, 0
        case CollectiveKind.GATHER | CollectiveKind.SCATTER:
            partials, many, packed = 0, 0, total
        case CollectiveKind.ALL_TO_ALL:
            partials, many, packed = 0, 0, passed + _exchanged(collective, topology, rank)
        case CollectiveKind.SCAN | CollectiveKind.EXSCAN:
            return found + scans.most_scratch(collective, topology, rank, tuning)
    if nclusters == 1:
        return found + packed + (passed if written_out else 0) + _ROUNDS * small
    held = at_once * partials * chunk
    if is_large(topology, tuning):
        held = max(held, many * total)
    return found + packed + held + (_CALLS * (chunk + small) if written_out else 0)


def _chunk(collective: Collective, topology: Topology, tuning: Tuning) -> tuple[int, int]:
    """Elements that the clusters work on at one time, and how many of these chunks are under way at once."""
    total, nclusters = collective.total, len(topology.clusters)
    nbytes = total * collective.dtype.itemsize
    if tuning.is_small(nbytes):
        return total, 1
    nchunks = tuning.chunks(nbytes, nclusters)
    return min(total, -(-total // nchunks) + 2 * nclusters * alignment(topology, total)), min(nchunks, _WINDOW)


def _displaced(collective: Collective, rank: int) -> int:
    """Elements that displacements apply to."""
    sent = collective.in_count(rank) if collective.in_displs is not None else 0
    return sent + (collective.out_count(rank) if collective.out_displs is not None else 0)


def _exchanged(collective: Collective, topology: Topology, rank: int) -> int:
    """Elements that the cluster of `rank` sends to others and receives from them, in an all_to_all."""
    inside = set(topology.cluster_of(rank).ranks)
    both = [
        count
        for mine in inside
        for counts in (collective.sent_counts(mine), collective.received_counts(mine))
        for other, count in enumerate(counts)
        if other not in inside
    ]
    return sum(both)
