"""Who handles which part of a vector: shares by bandwidth, tilings, and the messages between two divisions.

A division of `count` elements is a tuple of `Share`s: ascending, not empty, disjoint and together everything. A
cluster divides its traffic over its border ranks in proportion to their uplinks. Where all its ranks are border
ranks with equal uplinks and their number divides the count, the division is a *tiling*: one equal block for each rank
in home order, which is what a vendor's reduce_scatter and all_gather understand.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hetcomm.topology.model import Cluster, Topology

__all__ = ["Direction", "Share", "alignment", "blocks", "divide", "messages", "tile_count"]

_MIN_TILES = 16


class Direction(enum.Enum):
    """Which of an uplink's two bandwidths counts."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True)
class Share:
    """Elements `start` to `stop` of a vector, and the rank that handles them."""

    start: int
    stop: int
    rank: int

    @property
    def count(self) -> int:
        return self.stop - self.start


def divide(cluster: Cluster, count: int, direction: Direction) -> tuple[Share, ...]:
    """`count` elements divided over the border ranks of `cluster`, in proportion to their uplinks one way.

    Each cut between two shares is less than an element off the proportion.
    """
    border = cluster.border
    weights = cluster.weights_out if direction is Direction.OUT else cluster.weights_in
    if cluster.is_even:
        cuts = [count * k // len(border) for k in range(len(border) + 1)]
    else:
        cuts = [count * so_far // weights[-1] for so_far in weights]
    return tuple(Share(a, b, rank) for a, b, rank in zip(cuts, cuts[1:], border, strict=False) if a < b)


def blocks(ranks: Sequence[int], count: int) -> tuple[Share, ...]:
    """One block of `count` elements for each of `ranks`, in order."""
    return tuple(Share(k * count, (k + 1) * count, rank) for k, rank in enumerate(ranks))


def tile_count(shares: Sequence[Share], ranks: Sequence[int]) -> int:
    """Elements of each block if `shares` is a tiling over `ranks`, else 0."""
    if len(shares) != len(ranks):
        return 0
    count = shares[0].count
    tiled = all(share.count == count and share.rank == rank for share, rank in zip(shares, ranks, strict=True))
    return count if tiled else 0


def messages(senders: Sequence[Share], receivers: Sequence[Share]) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, sender, receiver) of each message that turns one division into the other, ascending."""
    i = j = 0
    while i < len(senders) and j < len(receivers):
        a, b = senders[i], receivers[j]
        start, stop = max(a.start, b.start), min(a.stop, b.stop)
        if start < stop:
            yield start, stop, a.rank, b.rank
        i, j = (i + 1, j) if a.stop <= b.stop else (i, j + 1)


def alignment(topology: Topology, count: int) -> int:
    """What cuts of a vector of `count` elements should be multiples of, so that the parts are tilings everywhere.

    1 where the vector is too short for that.
    """
    unit = _tiles(topology)
    return unit if count >= _MIN_TILES * len(topology.clusters) * unit else 1


@lru_cache(maxsize=64)
def _tiles(topology: Topology) -> int:
    """The least number that all clusters divide whose ranks are all border ranks."""
    return math.lcm(*{len(cluster) for cluster in topology.clusters if len(cluster) == len(cluster.border)})
