"""Scan and exscan: rank r gets the sum of ranks 0 to r, or 0 to r - 1, however the clusters lie in the rank order.

The rank order falls into R stretches of one cluster each (`hetcomm.topology.stretches`); where every cluster's ranks
are consecutive, R is C, the number of clusters. N ranks, n of them in the longest stretch, S bytes in K pieces, log is
the logarithm to base 2 rounded up.

==============================  ==============================================  ======================
plan                            messages one after another                      bytes between clusters
==============================  ==============================================  ======================
chain (`scan_chain`)            N - 1 + 2(R-1) + K - 1, of a piece each         (R-1)S
tree (`scan_tree`), R <= 8      2 log n + R + 1, of the whole vector            (R-1)S
                                (R = 1: log n)
the same, R > 8                 2 log n + 2 log R + 1                           less than 2(R-1)S
==============================  ==============================================  ======================

(R-1)S is the least there can be. Nothing can be taken out of a sum, so a cluster must be given, for each of its
stretches but the very first of all, the sum of what lies between that and its stretch before: vectors of S bytes that
do not depend on one another. The chain attains it, into and out of each cluster, and so does the tree of few stretches;
that of many pays up to twice as much, for vectors of up to `Tuning.few_steps_bytes` only, and takes 2 log R messages in
place of R. Few are up to 8.

The border ranks of a cluster share what it sends and receives in proportion to their uplinks; where all ranks are on
one host (`Tuning.direct_exchange`) messages go straight from rank to rank, two fewer for each step between clusters.
The first and the last rank of a stretch have a message for each border rank, in the chain for each piece.
The plan is the one that takes the least time by this table, so short vectors take the tree unless the chain is no
longer. Vendors are not called: their libraries have no scan.
"""

from __future__ import annotations

from collections.abc import Sequence

from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Program, Slice
from hetcomm.topology.builder import Builder
from hetcomm.topology.model import Topology
from hetcomm.topology.ring import PIECE_BYTES
from hetcomm.topology.scan_chain import Chain
from hetcomm.topology.scan_tree import Tree
from hetcomm.topology.stretches import MOST_CHAINED, RankOrder, depth, exchanges, one_stretch, rank_order
from hetcomm.topology.tuning import RULES, Tuning

__all__ = ["crossings", "most_scratch", "nstretches", "plan", "within_one"]


def plan(collective: Collective, topology: Topology, rank: int, tuning: Tuning = RULES) -> Program:
    """The program of `rank` for a scan or exscan over any topology."""
    builder = Builder(collective, rank)
    if not collective.total:
        return builder.program("nothing to do")
    sharing = topology if _is_shared(topology, tuning) else None
    name = _write(builder, builder.source(), builder.target(), rank_order(topology), sharing, tuning)
    return builder.program(f"{name} {collective.kind.value}")


def within_one(builder: Builder, source: Slice, target: Slice) -> str:
    """A scan of one group of ranks, by messages; the plan's name."""
    return _write(builder, source, target, one_stretch(builder.collective.nranks), None, RULES)


def crossings(collective: Collective, topology: Topology, tuning: Tuning = RULES) -> int:
    """How many vectors the plan moves between clusters: R - 1, unless it is the tree of many stretches."""
    order = rank_order(topology)
    if not _takes_tree(collective, order, _is_shared(topology, tuning), tuning):
        return len(order) - 1
    every = {each for number in range(len(order)) for each in exchanges(len(order), number)}
    cluster = [stretch.cluster for stretch in order.stretches]
    return sum(cluster[each.source] != cluster[each.target] for each in every)


def most_scratch(collective: Collective, topology: Topology, rank: int, tuning: Tuning) -> int:
    """Elements of scratch that the program of `rank` has at most; see `hetcomm.topology.scratch`."""
    order = rank_order(topology)
    here = len(order.of_cluster[topology.cluster_index(rank)])
    if not _takes_tree(collective, order, _is_shared(topology, tuning), tuning):
        npieces = _npieces(collective, tuning)
        return min((2 * here + 1) * npieces, 4 * here + 8) * -(-collective.count // npieces)
    turns = 1 if len(order) <= MOST_CHAINED else (len(order) - 1).bit_length()
    return collective.count * (2 * (order.longest - 1).bit_length() + (1 + 2 * turns) * here + 1)


def nstretches(topology: Topology) -> int:
    """R of the table."""
    return len(rank_order(topology))


def _write(
    builder: Builder, source: Slice, target: Slice, order: RankOrder, sharing: Topology | None, tuning: Tuning
) -> str:
    mine: Sequence[int] = (order.number(builder.rank),)
    if sharing is not None:
        cluster = sharing.cluster_of(builder.rank)
        if cluster.border_position(builder.rank) is not None:
            mine = order.of_cluster[sharing.cluster_index(builder.rank)]
    takes_tree = _takes_tree(builder.collective, order, sharing is not None, tuning)
    if takes_tree:
        Tree(builder, source, target, order.stretches, mine, sharing).run()
    else:
        Chain(builder, source, target, order.stretches, mine, sharing, _npieces(builder.collective, tuning)).run()
    if len(builder.collective.sources(builder.rank)) == 1:
        builder.normalise(target)
    return "tree" if takes_tree else "chain"


def _is_shared(topology: Topology, tuning: Tuning) -> bool:
    """Whether border ranks share what goes between clusters."""
    return len(topology.clusters) > 1 and not tuning.direct_exchange


def _takes_tree(collective: Collective, order: RankOrder, shared: bool, tuning: Tuning) -> bool:
    """Whether the tree takes less time than the chain, by the table."""
    npieces, hops = _npieces(collective, tuning), len(order) - 1
    if len(order) > MOST_CHAINED and not tuning.is_small(collective.total * collective.dtype.itemsize):
        return False  # a long vector is not sent twice
    inside = (order.longest - 1).bit_length()
    tree = 2 * inside + depth(len(order)) + (2 if shared else 0) if hops else inside
    chain = collective.nranks - 1 + (2 * hops if shared else 0)
    return tree * npieces < chain + npieces - 1


def _npieces(collective: Collective, tuning: Tuning) -> int:
    nbytes = collective.total * collective.dtype.itemsize
    if tuning.is_small(nbytes):
        return 1
    wanted = -(-nbytes // min(PIECE_BYTES, tuning.chunk_bytes))
    return max(1, min(wanted, tuning.max_chunks, collective.count))
