"""The blocks of one cluster's ranks, side by side.

A vendor's all_gather and reduce_scatter number blocks by the home communicator's ranks; in the buffers of the whole job
the blocks lie in the order of the job's ranks. Where a cluster's ranks are consecutive both orders agree and nothing
is copied. Otherwise every run of consecutive ranks is one copy, to or from scratch.
"""

from __future__ import annotations

from hetcomm.schedule.steps import Buffer, Slice
from hetcomm.topology.builder import Builder
from hetcomm.topology.model import Cluster

__all__ = ["packed", "room", "unpack"]


def packed(builder: Builder, source: Slice, cluster: Cluster, count: int) -> Slice:
    """The blocks of the cluster's ranks out of a vector of all ranks' blocks, in home order: a part of `source`
    where they lie so, else copied to scratch."""
    runs = _runs(cluster)
    if len(runs) == 1:
        return source.part(runs[0][1] * count, runs[0][2] * count)
    found = builder.scratch(len(cluster) * count)
    for position, first, nranks in runs:
        builder.copy(source.part(first * count, nranks * count), found.part(position * count, nranks * count))
    return found


def room(builder: Builder, target: Slice, cluster: Cluster, count: int) -> Slice:
    """Where the blocks of the cluster's ranks may arrive in home order: in their place in `target`, which is
    an output of all ranks' blocks, or in scratch, to be unpacked."""
    runs = _runs(cluster)
    if len(runs) == 1:
        return target.part(runs[0][1] * count, runs[0][2] * count)
    return builder.scratch(len(cluster) * count)


def unpack(builder: Builder, arrived: Slice, target: Slice, cluster: Cluster, count: int) -> None:
    """Copy what has arrived in `room` to its place in `target`, unless it lies there."""
    if arrived.buffer is not Buffer.SCRATCH:
        return
    for position, first, nranks in _runs(cluster):
        builder.copy(arrived.part(position * count, nranks * count), target.part(first * count, nranks * count))


def _runs(cluster: Cluster) -> list[tuple[int, int, int]]:
    """(position, first rank, ranks) of each run of consecutive ranks of a cluster, in home order."""
    if isinstance(cluster.ranks, range):
        return [(0, cluster.ranks[0], len(cluster))]
    found: list[tuple[int, int, int]] = []
    for position, rank in enumerate(cluster.ranks):
        if found and found[-1][1] + found[-1][2] == rank:
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + 1)
        else:
            found.append((position, rank, 1))
    return found
