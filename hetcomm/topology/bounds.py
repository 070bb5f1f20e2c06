"""The least that a collective can move between clusters, and what a schedule does move.

C clusters, n_i ranks in cluster i, N in all, f_i the share of cluster i in the blocks (n_i/N where blocks are equal).
S bytes are the vector of one rank (all_reduce, reduce, broadcast, scan, exscan), its input (reduce_scatter), or all
blocks together (all_gather, gather, scatter); m bytes go from each rank to each other in an all_to_all. No cluster can
combine elements without having them, so:

===============  =======================  =======================  ==================
collective       out of cluster i         into cluster i           total
===============  =======================  =======================  ==================
all_reduce       S                        S                        2(C-1)S
reduce_scatter   S(1-f_i)                 S f_i                    (C-1)S
all_gather       S f_i                    S(1-f_i)                 (C-1)S
broadcast        S at the root's, else 0  S, 0 at the root's       (C-1)S
reduce           S, 0 at the root's       S at the root's, else 0  (C-1)S
gather           S f_i, 0 at the root's   S(1-f_i) at the root's   S(1-f_root)
scatter          S(1-f_i) at the root's   S f_i, 0 at the root's   S(1-f_root)
scan, exscan     S r_i, S(r_i-1) at the   S r_i, S(r_i-1) at the   (R-1)S
                 last rank's              first rank's
all_to_all       n_i(N-n_i)m              n_i(N-n_i)m              m(N^2 - sum n_i^2)
===============  =======================  =======================  ==================

r_i is the number of stretches of the rank order in cluster i, R the number of all: C where the ranks of every cluster
are consecutive, up to N where clusters take turns (`hetcomm.topology.scans`).

All numbers are exact integers of bytes. The least per cluster need not be reached together with the least total.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.spec import Family
from hetcomm.schedule.steps import Program, Send
from hetcomm.topology.hubs import crossing, least_time, sizes
from hetcomm.topology.model import Topology
from hetcomm.topology.stretches import needed

__all__ = ["Traffic", "least_in", "least_out", "least_time", "least_total", "traffic", "vector_bytes"]


def vector_bytes(collective: Collective) -> int:
    """S of the table, in bytes; for all_to_all the blocks of all pairs of ranks."""
    return collective.total * collective.dtype.itemsize


def least_total(collective: Collective, topology: Topology) -> int:
    """The least bytes between clusters, in all."""
    match collective.kind:
        case CollectiveKind.ALL_REDUCE:
            return 2 * (len(topology.clusters) - 1) * vector_bytes(collective)
        case kind if kind.row.family is not Family.VENDOR:
            return sum(least_out(collective, topology))
        case _:
            return (len(topology.clusters) - 1) * vector_bytes(collective)


def least_out(collective: Collective, topology: Topology) -> tuple[int, ...]:
    """The least bytes out of each cluster, in the order of the clusters."""
    return _least(collective, topology, out=True)


def least_in(collective: Collective, topology: Topology) -> tuple[int, ...]:
    """The least bytes into each cluster, in the order of the clusters."""
    return _least(collective, topology, out=False)


def _least(collective: Collective, topology: Topology, *, out: bool) -> tuple[int, ...]:
    kind, whole, nclusters = collective.kind, vector_bytes(collective), len(topology.clusters)
    if nclusters == 1:
        return (0,)
    if kind is CollectiveKind.ALL_REDUCE:
        return (whole,) * nclusters
    if kind.row.family is Family.SCAN:
        return tuple(whole * count for count in needed(topology)[0 if out else 1])
    if kind is CollectiveKind.ALL_TO_ALL:
        return tuple(count * collective.dtype.itemsize for count in crossing(collective, topology)[0 if out else 1])
    there = topology.cluster_index(collective.root) if collective.root is not None else -1
    if kind in (CollectiveKind.BROADCAST, CollectiveKind.REDUCE):
        at_root = (kind is CollectiveKind.BROADCAST) == out
        return tuple(whole if (i == there) == at_root else 0 for i in range(nclusters))
    own = [count * collective.dtype.itemsize for count in sizes(collective, topology)]
    giving = kind in (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER)
    if collective.root is not None:
        at_root = giving != out
        return tuple(
            (whole - each if at_root else 0) if i == there else 0 if at_root else each for i, each in enumerate(own)
        )
    return tuple(own) if giving == out else tuple(whole - each for each in own)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that cross from one cluster to another.

    Attributes:
        total: All of them.
        out_of: Out of each cluster, in the order of the clusters.
        into: Into each cluster.
        sent: By each rank that sends any.
        received: By each rank that receives any.
    """

    total: int
    out_of: tuple[int, ...]
    into: tuple[int, ...]
    sent: Mapping[int, int]
    received: Mapping[int, int]


def traffic(programs: Iterable[Program], topology: Topology) -> Traffic:
    """What `programs`, of some ranks or of all, send between clusters; vendor calls stay inside a cluster."""
    sent: Counter[int] = Counter()
    received: Counter[int] = Counter()
    for program in programs:
        here, itemsize = topology.cluster_index(program.rank), program.collective.dtype.itemsize
        for step in program.steps:
            if isinstance(step, Send) and step.src.count and topology.cluster_index(step.peer) != here:
                sent[program.rank] += step.src.count * itemsize
                received[step.peer] += step.src.count * itemsize
    out_of, into = [0] * len(topology.clusters), [0] * len(topology.clusters)
    for rank, nbytes in sent.items():
        out_of[topology.cluster_index(rank)] += nbytes
    for rank, nbytes in received.items():
        into[topology.cluster_index(rank)] += nbytes
    return Traffic(sum(out_of), tuple(out_of), tuple(into), dict(sent), dict(received))
