"""The blocks of one cluster's ranks, side by side in home order: the cluster's *run*.

A vector of all ranks' blocks has them in rank order. Where a cluster's ranks are consecutive its run lies in the
vector as it is, and nothing is copied. Otherwise each stretch of consecutive ranks is one copy, to or from scratch.
"""

from __future__ import annotations

from itertools import accumulate

from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Slice
from hetcomm.topology.builder import Builder
from hetcomm.topology.layout import Share
from hetcomm.topology.model import Cluster

__all__ = ["Run"]


class Run:
    """The run of `cluster` in the vectors of `collective`; counts and offsets in elements.

    Attributes:
        count: Elements of the run.
    """

    def __init__(self, collective: Collective, cluster: Cluster) -> None:
        self._collective = collective
        self._cluster = cluster
        self._starts: list[int] | None = None
        if collective.counts is not None:
            self._starts = [0, *accumulate(collective.block_count(rank) for rank in cluster.ranks)]
        self.count = collective.count * len(cluster) if self._starts is None else self._starts[-1]

    def start(self, position: int) -> int:
        """Where in the run the block of home rank `position` begins, up to the number of ranks."""
        return self._collective.count * position if self._starts is None else self._starts[position]

    def owners(self, start: int, stop: int) -> tuple[Share, ...]:
        """Whose blocks elements `start` to `stop` belong to, counted from `start`."""
        found = []
        for position, rank in enumerate(self._cluster.ranks):
            a, b = max(start, self.start(position)), min(stop, self.start(position + 1))
            if a < b:
                found.append(Share(a - start, b - start, rank))
        return tuple(found)

    def packed(self, builder: Builder, vector: Slice) -> Slice:
        """The run out of `vector`: a part of it where it lies so, else copied to scratch."""
        stretches = self._stretches()
        if len(stretches) == 1:
            return vector.part(stretches[0][1], self.count)
        found = builder.scratch(self.count)
        for start, there, count in stretches:
            builder.copy(vector.part(there, count), found.part(start, count))
        return found

    def room(self, builder: Builder, vector: Slice) -> Slice:
        """Where the run may arrive: at its place in `vector`, or in scratch, to be unpacked."""
        stretches = self._stretches()
        return vector.part(stretches[0][1], self.count) if len(stretches) == 1 else builder.scratch(self.count)

    def unpack(self, builder: Builder, arrived: Slice, vector: Slice) -> None:
        """Copy what has arrived in `room` to its places in `vector`, unless it lies there."""
        stretches = self._stretches()
        if len(stretches) > 1:
            for start, there, count in stretches:
                builder.copy(arrived.part(start, count), vector.part(there, count))

    def _stretches(self) -> list[tuple[int, int, int]]:
        """(start in the run, start in the vector, elements) of each stretch of consecutive ranks."""
        ranks, offset = self._cluster.ranks, self._collective.block_offset
        if isinstance(ranks, range):
            return [(0, offset(ranks[0]), self.count)]
        found: list[tuple[int, int, int]] = []
        for position, rank in enumerate(ranks):
            count = self._collective.block_count(rank)
            if found and found[-1][1] + found[-1][2] == offset(rank):
                found[-1] = (found[-1][0], found[-1][1], found[-1][2] + count)
            else:
                found.append((self.start(position), offset(rank), count))
        return found
