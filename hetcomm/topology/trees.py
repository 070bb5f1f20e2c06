"""The shapes in which clusters hand elements on: partials go up a tree to its root, finished elements down.

A tree joins C clusters by C-1 edges, and each edge carries an element once each way, so every tree gives the least
total volume. What differs is the number of hops and the traffic of single clusters. Trees answer in constant time, or
in proportion to the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from hetcomm.topology.phases import others

__all__ = ["Binomial", "Nested", "Star", "Tree"]


class Tree(Protocol):
    """A tree over the clusters 0 to C-1."""

    @property
    def root(self) -> int: ...

    @property
    def height(self) -> int:
        """Edges on the longest way from the root."""
        ...

    def parent(self, cluster: int) -> int:
        """The next cluster towards the root; not for the root itself."""
        ...

    def children(self, cluster: int) -> Sequence[int]:
        """The clusters whose parent it is, always in the same order."""
        ...

    def depth(self, cluster: int) -> int:
        """Edges between it and the root."""
        ...


class Star:
    """All clusters joined to `hub`; the root is the hub, or one of the others."""

    def __init__(self, nclusters: int, hub: int, root: int | None = None) -> None:
        self.hub = hub
        self.root = hub if root is None else root
        self.height = 1 if self.root == hub or nclusters == 2 else 2
        self._nclusters = nclusters

    def parent(self, cluster: int) -> int:
        return self.root if cluster == self.hub else self.hub

    def children(self, cluster: int) -> Sequence[int]:
        if cluster == self.hub:
            return [other for other in others(cluster, self._nclusters) if other != self.root]
        return [self.hub] if cluster == self.root else []

    def depth(self, cluster: int) -> int:
        if cluster == self.root:
            return 0
        return 1 if self.hub in (cluster, self.root) else 2


class Binomial:
    """Clusters are numbered from the root on; the parent of a number lacks its lowest bit. ceil(log2 C) hops."""

    def __init__(self, nclusters: int, root: int) -> None:
        self.root = root
        last = nclusters - 1
        self.height = max(last.bit_count(), last.bit_length() - 1)
        self._nclusters = nclusters

    def parent(self, cluster: int) -> int:
        number = self._number(cluster)
        return self._cluster(number & (number - 1))

    def children(self, cluster: int) -> Sequence[int]:
        number = self._number(cluster)
        lowest = number & -number if number else 1 << (self._nclusters - 1).bit_length()
        found, bit = [], lowest >> 1
        while bit:
            if number + bit < self._nclusters:
                found.append(self._cluster(number + bit))
            bit >>= 1
        return found

    def depth(self, cluster: int) -> int:
        return self._number(cluster).bit_count()

    def _number(self, cluster: int) -> int:
        return (cluster - self.root) % self._nclusters

    def _cluster(self, number: int) -> int:
        return (number + self.root) % self._nclusters


class Nested:
    """Sites within sites: every site, of whatever level, is joined to the rest by one edge.

    Each site that does not hold the root has a leader, to which its other clusters and the leaders of the sites inside
    it are joined. The leaders take turns, so that the pieces of a vector go by different ones.

    Args:
        sites: The site of each cluster, as the names of its levels from the largest on.
        root: The root of the tree.
        turn: Which cluster of a site is its leader, modulo their number.
    """

    def __init__(self, sites: Sequence[Sequence[str]], root: int, turn: int) -> None:
        self.root = root
        members: dict[tuple[str, ...], list[int]] = {}
        for cluster, site in enumerate(sites):
            for level in range(len(site) + 1):
                members.setdefault(tuple(site[:level]), []).append(cluster)
        leaders: dict[tuple[str, ...], int] = {(): root}
        for site in sorted(members, key=len):
            # The leader of a site leads whatever site inside it it stands in, or edges would close a ring.
            above, found = leaders[site[:-1]], members[site]
            leaders[site] = above if above in found else found[turn % len(found)]
        self._parents = [self._parent_in(tuple(site), cluster, leaders) for cluster, site in enumerate(sites)]
        self._children: list[list[int]] = [[] for _ in sites]
        for step in range(1, len(sites)):
            for cluster in range(len(sites)):
                if cluster != root and (self._parents[cluster] + step) % len(sites) == cluster:
                    self._children[self._parents[cluster]].append(cluster)
        self.height = max(map(self.depth, range(len(sites))))

    @staticmethod
    def _parent_in(site: tuple[str, ...], cluster: int, leaders: Mapping[tuple[str, ...], int]) -> int:
        for level in range(len(site), -1, -1):
            if leaders[site[:level]] != cluster:
                return leaders[site[:level]]
        return cluster  # the root

    def parent(self, cluster: int) -> int:
        return self._parents[cluster]

    def children(self, cluster: int) -> Sequence[int]:
        return self._children[cluster]

    def depth(self, cluster: int) -> int:
        edges = 0
        while cluster != self.root:
            cluster = self._parents[cluster]
            edges += 1
        return edges
