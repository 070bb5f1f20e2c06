"""The rank order as stretches of one cluster, and the order in which prefixes go from stretch to stretch.

Ranks 0, 1 | 2, 3 of two clusters are two stretches; where the clusters take turns there are four, 0 | 1 | 2 | 3.

Prefixes go along the chain of up to `MOST_CHAINED` stretches, with one message for each but the first. Beyond it they
go up and down the binary tree of R. P. Brent, H. T. Kung, "A Regular Layout for Parallel Adders", IEEE TC C-31(3),
1982: 2 log R messages one after another, fewer than two for each stretch in all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from hetcomm.topology.model import Topology

__all__ = [
    "MOST_CHAINED",
    "Exchange",
    "RankOrder",
    "Stretch",
    "depth",
    "exchanges",
    "needed",
    "one_stretch",
    "rank_order",
]

MOST_CHAINED = 8
"""Stretches up to which the chain takes no more messages one after another than the tree, or two more at most."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Ranks `start` to `stop`, all of the cluster with index `cluster`."""

    start: int
    stop: int
    cluster: int

    @property
    def ranks(self) -> range:
        return range(self.start, self.stop)

    @property
    def last(self) -> int:
        """The rank whose prefix is that of the whole stretch."""
        return self.stop - 1


@dataclass(frozen=True, slots=True)
class RankOrder:
    """All ranks of a job, in stretches.

    Attributes:
        stretches: In rank order; neighbours are of different clusters.
        of_cluster: For each cluster the numbers of its stretches, ascending.
        longest: Ranks of the longest stretch.
    """

    stretches: tuple[Stretch, ...]
    of_cluster: tuple[tuple[int, ...], ...]
    longest: int

    def __len__(self) -> int:
        return len(self.stretches)

    def number(self, rank: int) -> int:
        """That of the stretch that holds `rank`."""
        return bisect_right(self.stretches, rank, key=lambda stretch: stretch.start) - 1


def one_stretch(nranks: int) -> RankOrder:
    """The order of one group of ranks."""
    return RankOrder((Stretch(0, nranks, 0),), ((0,),), nranks)


@lru_cache(maxsize=64)
def rank_order(topology: Topology) -> RankOrder:
    """That of a topology."""
    if topology.order is not None:
        ranges = [(index, topology.clusters[index].ranks) for index in topology.order]
        found = [Stretch(ranks[0], ranks[-1] + 1, index) for index, ranks in ranges]
    else:
        found, start = [], 0
        for index, ranks in groupby(range(topology.nranks), key=topology.cluster_index):
            stop = start + sum(1 for _ in ranks)
            found.append(Stretch(start, stop, index))
            start = stop
    numbers: list[list[int]] = [[] for _ in topology.clusters]
    for number, stretch in enumerate(found):
        numbers[stretch.cluster].append(number)
    return RankOrder(tuple(found), tuple(map(tuple, numbers)), max(len(stretch.ranks) for stretch in found))


def needed(topology: Topology) -> tuple[list[int], list[int]]:
    """How many sums every plan takes out of each cluster, and into each: one for each stretch but the last of all, and
    one for each but the first (`hetcomm.topology.scans` says why)."""
    order = rank_order(topology)
    out = [len(numbers) for numbers in order.of_cluster]
    into = list(out)
    out[order.stretches[-1].cluster] -= 1
    into[order.stretches[0].cluster] -= 1
    return out, into


@dataclass(frozen=True, slots=True, order=True)
class Exchange:
    """In turn `turn` stretch `target` gets the sum of the stretches up to `source` that it has not got yet."""

    turn: int
    target: int
    source: int


def exchanges(count: int, number: int) -> Iterator[Exchange]:
    """Those of `count` stretches in which stretch `number` takes part, by turns.

    What a stretch gets in all, each time together with what it has, is the prefix of all before it.
    """
    if count <= MOST_CHAINED:
        if number:
            yield Exchange(number - 1, number, number - 1)
        if number + 1 < count:
            yield Exchange(number, number + 1, number)
        return
    place, height = number + 1, (count - 1).bit_length()
    ways = [(1 << level, 0) for level in range(height)] + [(1 << level, 1) for level in reversed(range(height))]
    for turn, (distance, down) in enumerate(ways):
        # Upwards the multiples of twice the distance get something, downwards those half way between them.
        half = bool(place % (2 * distance))
        if place % distance:
            continue
        if half == bool(down):
            if place > distance:
                yield Exchange(turn, number, number - distance)
        elif number + distance < count:
            yield Exchange(turn, number + distance, number)


def depth(count: int) -> int:
    """How many exchanges wait for one another at most."""
    return count - 1 if count <= MOST_CHAINED else 2 * (count - 1).bit_length() - 1
