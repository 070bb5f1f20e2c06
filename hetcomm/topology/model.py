"""The graph of a heterogeneous job: clusters, border ranks, uplinks.

The rules of this file:

* Plain, frozen values that validate themselves, so a contradictory topology cannot exist. Whatever is wrong is a
  `TopologyError` that names the cluster, the rank and the remedy.
* The order of `Cluster.ranks` is the order of the home communicator, and the border communicator and the uplinks
  follow it. Ranks of a cluster need not be consecutive.
* What is asked once per plan (`cluster_of`, `position`, `border_position`, `order`, `fingerprint`, `hash`) takes
  constant time in a job of any size: it is worked out when the topology is made.

Bandwidths are in bytes/s, latencies in seconds.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike

from hetcomm.errors import TopologyError
from hetcomm.schedule.steps import CommId
from hetcomm.topology import toml
from hetcomm.topology.cluster import DEFAULT_BANDWIDTH, DEFAULT_LATENCY, Cluster, Uplink, repeated, shown

__all__ = ["DEFAULT_BANDWIDTH", "DEFAULT_LATENCY", "Cluster", "Topology", "Uplink"]

_MAX_UNIT = 512


@dataclass(frozen=True, slots=True)
class Topology:
    """The clusters of a job; together they hold each rank from 0 to `nranks - 1` once.

    Raises:
        TopologyError: A rank in two clusters or in none, a name twice, or a cluster without an uplink where there
            are several clusters.
    """

    clusters: tuple[Cluster, ...]
    nranks: int = field(init=False, repr=False, compare=False)
    order: tuple[int, ...] | None = field(init=False, repr=False, compare=False)
    """The clusters by their first rank, where each has consecutive ranks; None where one has not."""
    places: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """For each cluster its place in `order`; empty where that is None."""
    rails: int = field(init=False, repr=False, compare=False)
    """Ranks of each cluster where all have equally many, each one a border rank, with equal uplinks; else 0."""
    nborder: int = field(init=False, repr=False, compare=False)
    """Border ranks of all clusters."""
    has_sites: bool = field(init=False, repr=False, compare=False)
    """Whether any cluster stands in a site."""
    unit: int = field(init=False, repr=False, compare=False)
    """The least number that the numbers of border ranks of all clusters divide, 1 where it is above 512."""
    _index: array[int] = field(init=False, repr=False, compare=False)
    _fingerprint: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "clusters", tuple(self.clusters))
        if not self.clusters:
            raise TopologyError("the topology has no clusters", remedy="Give it one or more.")
        names = [cluster.name for cluster in self.clusters]
        if len(set(names)) != len(names):
            raise TopologyError(
                f"two clusters have the name {repeated(names)!r}", remedy="Give each cluster a name of its own."
            )
        object.__setattr__(self, "nranks", sum(map(len, self.clusters)))
        object.__setattr__(self, "_index", _cluster_indices(self.clusters, self.nranks))
        if len(self.clusters) > 1:
            for cluster in self.clusters:
                if not cluster.uplinks:
                    raise TopologyError(
                        f"cluster {cluster.name!r} has no uplink, so no rank of it reaches the other clusters",
                        remedy=f"Give one or more of its ranks {shown(cluster.ranks)} an uplink.",
                    )
        self._look_around()
        object.__setattr__(self, "_fingerprint", hashlib.sha256(repr(self.clusters).encode()).hexdigest())

    def _look_around(self) -> None:
        clusters = self.clusters
        order: tuple[int, ...] | None = None
        places = [0] * len(clusters)
        if all(isinstance(cluster.ranks, range) for cluster in clusters):
            order = tuple(sorted(range(len(clusters)), key=lambda index: clusters[index].ranks[0]))
            for place, index in enumerate(order):
                places[index] = place
        sizes = {len(cluster) if cluster.is_even else 0 for cluster in clusters}
        sizes |= {len(cluster.border) for cluster in clusters}
        unit = math.lcm(*{len(cluster.border) or 1 for cluster in clusters})
        object.__setattr__(self, "nborder", sum(len(cluster.border) for cluster in clusters))
        object.__setattr__(self, "has_sites", any(cluster.site for cluster in clusters))
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "places", tuple(places) if order is not None else ())
        object.__setattr__(self, "rails", sizes.pop() if len(sizes) == 1 else 0)
        object.__setattr__(self, "unit", unit if unit <= _MAX_UNIT else 1)

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    def cluster_index(self, rank: int) -> int:
        """The position in `clusters` of the one that holds `rank`.

        Raises:
            TopologyError: `rank` is not a rank of this topology.
        """
        if not 0 <= rank < self.nranks:
            raise TopologyError(f"rank {rank} is not a rank of this topology", remedy=f"It has {self.nranks} ranks.")
        return self._index[rank]

    def cluster_of(self, rank: int) -> Cluster:
        """The cluster that holds `rank`; errors as `cluster_index`."""
        return self.clusters[self.cluster_index(rank)]

    def communicators_of(self, cluster: Cluster) -> dict[CommId, tuple[int, ...]]:
        """The vendor communicators of one cluster, with their ranks in the communicator's own order.

        The home communicator always; the border communicator where there are other clusters and two or more border
        ranks, also if those are all ranks, so that a trace tells the two apart.
        """
        found = {cluster.home_id: tuple(cluster.ranks)}
        if len(self.clusters) > 1 and len(cluster.border) > 1:
            found[cluster.border_id] = cluster.border
        return found

    def communicators(self) -> dict[CommId, tuple[int, ...]]:
        """`communicators_of` every cluster."""
        found: dict[CommId, tuple[int, ...]] = {}
        for cluster in self.clusters:
            found |= self.communicators_of(cluster)
        return found

    def fingerprint(self) -> str:
        """A hexadecimal digest, equal on all ranks and machines exactly where the topologies are equal."""
        return self._fingerprint

    def to_toml(self) -> str:
        """The topology as text that `from_toml` reads back to an equal one."""
        return toml.dumps(self.clusters)

    @classmethod
    def from_toml(cls, text: str) -> Topology:
        """The topology that `text` describes; see `hetcomm.topology.toml` for the format.

        Raises:
            TopologyError: `text` is not TOML, has unknown keys or wrong types, or describes no valid topology.
        """
        return cls(toml.loads(text))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Topology:
        """The topology in the file at `path`.

        Raises:
            TopologyError: As `from_toml`, or the file cannot be read; the message names the file.
        """
        text = toml.read(path)
        try:
            return cls.from_toml(text)
        except TopologyError as error:
            raise TopologyError(f"topology file {str(path)!r}: {error.message}", remedy=error.remedy) from error


def _cluster_indices(clusters: Sequence[Cluster], nranks: int) -> array[int]:
    """For each rank the index of its cluster; raises unless each rank is in exactly one."""
    found = array("l", [-1]) * nranks
    for index, cluster in enumerate(clusters):
        for rank in cluster.ranks:
            if not 0 <= rank < nranks:
                missing = sorted(set(range(nranks)).difference(*(other.ranks for other in clusters)))
                raise TopologyError(
                    f"cluster {cluster.name!r} has rank {rank}, but the clusters have {nranks} ranks in all, and "
                    + (f"{shown(missing)} missing" if missing else "none is missing"),
                    remedy=f"Name each rank from 0 to {nranks - 1} once, or add the missing ones.",
                )
            if found[rank] != -1:
                raise TopologyError(
                    f"rank {rank} is in cluster {clusters[found[rank]].name!r} and in cluster {cluster.name!r}",
                    remedy="Name each rank in one cluster.",
                )
            found[rank] = index
    return found
