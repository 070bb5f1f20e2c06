"""Divisions of which one share is found without listing the others: what a rank of a large job needs.

`hetcomm.topology.layout` lists every share of a division, which is right where clusters are small. A rank that is one
of many border ranks, and divides many parts of a vector, asks here for its own share and for the few shares of another
cluster that overlap it: constant time each where uplinks are equal, the logarithm of their number where they are not.

Shares are in proportion to the uplinks, cuts rounded down. With equal uplinks all shares are equal but the last, which
also has what is left over, so that a vendor's reduce_scatter and all_gather fit them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from hetcomm.topology.model import Cluster

__all__ = ["Division", "arriving", "blocks", "leaving"]


@dataclass(frozen=True, slots=True)
class Division:
    """`count` elements divided over `members`.

    Attributes:
        members: Ranks.
        count: Elements.
        weights: Running sums of the members' weights, from 0 on; empty where all are equal.
        turn: Share k belongs to member number (k + turn) mod their number.
    """

    members: Sequence[int]
    count: int
    weights: Sequence[int] = ()
    turn: int = 0

    def bounds(self, number: int) -> tuple[int, int]:
        """(start, stop) of share `number`."""
        count, weights = self.count, self.weights
        if weights:
            total = weights[-1] or 1
            return count * weights[number] // total, count * weights[number + 1] // total
        nmembers = len(self.members)
        width = count // nmembers
        return width * number, count if number == nmembers - 1 else width * (number + 1)

    def number(self, member: int) -> int:
        """The number of the share of the member with number `member`."""
        return (member - self.turn) % len(self.members)

    def share(self, member: int) -> tuple[int, int]:
        """(start, stop) of what the member with this number has."""
        return self.bounds(self.number(member))

    def between(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(start, stop, rank) of the parts of shares that lie between `start` and `stop`, ascending, none empty."""
        members, count, weights, turn = self.members, self.count, self.weights, self.turn
        nmembers = len(members)
        total, width = (weights[-1] if weights else 0), count // nmembers
        number, found = self._number_at(start), []
        while start < stop:
            number += 1
            end = count * weights[number] // total if weights else width * number if number < nmembers else count
            if end > start:
                end = min(end, stop)
                found.append((start, end, members[(number - 1 + turn) % nmembers]))
                start = end
        return found

    def _number_at(self, position: int) -> int:
        """The number of the share that holds `position`, or of an earlier one that ends close to it."""
        weights, nmembers = self.weights, len(self.members)
        if not weights:
            width = self.count // nmembers
            return min(position // width, nmembers - 1) if width else nmembers - 1
        if not position:
            return 0
        # Of all shares that begin there or before, the last; cuts are rounded down, so it is hardly ever too low.
        return bisect_right(weights, position * weights[-1] // self.count) - 1


def leaving(cluster: Cluster, count: int) -> Division:
    """`count` elements that `cluster` sends to others, over its border ranks."""
    return Division(cluster.border, count, cluster.weights_out)


def arriving(cluster: Cluster, count: int, turn: int = 0) -> Division:
    """`count` elements that `cluster` receives, over its border ranks."""
    return Division(cluster.border, count, cluster.weights_in, turn)


def blocks(ranks: Sequence[int], offsets: Sequence[int]) -> Division:
    """Blocks of `ranks`, which begin at `offsets`; the last of these is where the last block ends."""
    return Division(ranks, offsets[-1], offsets)
