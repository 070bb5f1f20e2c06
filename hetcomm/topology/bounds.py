"""The least that a collective can move between clusters, and what a schedule does move.

C clusters, n_i ranks in cluster i, N in all, f_i = n_i/N. S bytes are the vector of one rank (all_reduce, reduce,
broadcast), its input (reduce_scatter) or the gathered total (all_gather). No cluster can combine elements without
having them, so:

===============  =======================  =======================  =========
collective       out of cluster i         into cluster i           total
===============  =======================  =======================  =========
all_reduce       S                        S                        2(C-1)S
reduce_scatter   S(1-f_i)                 S f_i                    (C-1)S
all_gather       S f_i                    S(1-f_i)                 (C-1)S
broadcast        S at the root's, else 0  S, 0 at the root's       (C-1)S
reduce           S, 0 at the root's       S at the root's, else 0  (C-1)S
===============  =======================  =======================  =========

All numbers are exact integers of bytes. The least per cluster need not be reached together with the least total.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program, Send
from hetcomm.topology.model import Topology

__all__ = ["Traffic", "least_in", "least_out", "least_total", "traffic", "vector_bytes"]


def vector_bytes(collective: Collective) -> int:
    """S of the table, in bytes."""
    blocks = collective.kind in (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER)
    return collective.count * collective.dtype.itemsize * (collective.nranks if blocks else 1)


def least_total(collective: Collective, topology: Topology) -> int:
    """The least bytes between clusters, in all."""
    times = 2 if collective.kind is CollectiveKind.ALL_REDUCE else 1
    return times * (len(topology.clusters) - 1) * vector_bytes(collective)


def least_out(collective: Collective, topology: Topology) -> tuple[int, ...]:
    """The least bytes out of each cluster, in the order of the clusters."""
    return _least(collective, topology, out=True)


def least_in(collective: Collective, topology: Topology) -> tuple[int, ...]:
    """The least bytes into each cluster, in the order of the clusters."""
    return _least(collective, topology, out=False)


def _least(collective: Collective, topology: Topology, *, out: bool) -> tuple[int, ...]:
    whole = vector_bytes(collective)
    if len(topology.clusters) == 1:
        return (0,)
    if collective.kind is CollectiveKind.ALL_REDUCE:
        return (whole,) * len(topology.clusters)
    if collective.root is not None:
        there = topology.cluster_index(collective.root)
        at_root = (collective.kind is CollectiveKind.BROADCAST) == out
        return tuple(whole if (i == there) == at_root else 0 for i in range(len(topology.clusters)))
    own = [len(cluster) * collective.count * collective.dtype.itemsize for cluster in topology.clusters]
    if (collective.kind is CollectiveKind.ALL_GATHER) == out:
        return tuple(own)
    return tuple(whole - each for each in own)


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
