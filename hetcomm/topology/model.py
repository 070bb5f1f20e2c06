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
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from os import PathLike

from hetcomm.errors import TopologyError
from hetcomm.schedule.steps import CommId, CommRole

__all__ = ["DEFAULT_BANDWIDTH", "DEFAULT_LATENCY", "Cluster", "Topology", "Uplink"]

DEFAULT_BANDWIDTH = 1e9
"""Bytes/s of an uplink that states none, each way; only the ratios of bandwidths shape a plan."""

DEFAULT_LATENCY = 5e-6
"""Seconds a message takes over an uplink that states none."""

_RESOLUTION = 1 << 52  # of a bandwidth beside the fastest
_MAX_UNIT = 512
_Positions = range | Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Uplink:
    """What joins one border rank to the other clusters.

    Attributes:
        rank: The border rank.
        bandwidth_out: Bytes/s towards the other clusters.
        bandwidth_in: Bytes/s from them.
        latency: Seconds.

    Raises:
        TopologyError: A bandwidth is not a positive number, or the latency a negative one.
    """

    rank: int
    bandwidth_out: float = DEFAULT_BANDWIDTH
    bandwidth_in: float = DEFAULT_BANDWIDTH
    latency: float = DEFAULT_LATENCY

    def __post_init__(self) -> None:
        if not _is_int(self.rank):
            raise TopologyError(f"uplink of rank {self.rank!r}: a rank is an integer")
        for name, value in (("bandwidth_out", self.bandwidth_out), ("bandwidth_in", self.bandwidth_in)):
            if not _is_number(value) or not 0 < value <= sys.float_info.max:
                raise TopologyError(
                    f"uplink of rank {self.rank}: {name} {value!r} is not a positive number",
                    remedy=f"Give it in bytes/s, or leave it out for {DEFAULT_BANDWIDTH:g}.",
                )
            object.__setattr__(self, name, float(value))
        if not _is_number(self.latency) or not 0 <= self.latency <= sys.float_info.max:
            raise TopologyError(
                f"uplink of rank {self.rank}: latency {self.latency!r} is not a number from 0 on",
                remedy=f"Give it in seconds, or leave it out for {DEFAULT_LATENCY:g}.",
            )
        object.__setattr__(self, "latency", float(self.latency))


@dataclass(frozen=True, slots=True)
class Cluster:
    """Ranks that one vendor communicator spans.

    Attributes:
        name: Unique in the topology.
        vendor: The vendor's name, such as 'mpi' or 'nccl'.
        ranks: In the order of the home communicator; consecutive ones are kept as a `range`.
        uplinks: One for each border rank; they are put into the order of `ranks`.
        hosts: The host of each rank, in the order of `ranks`; empty where they are not known.
        site: Where it stands, from the largest to the smallest with slashes between, such as 'hall 1/rack 3'. Clusters
        of
            one site are nearer to each other than to others, so that data enters and leaves a site as seldom as can be.

    Raises:
        TopologyError: No rank, a rank twice, an uplink of a rank outside, two uplinks of one rank.
    """

    name: str
    vendor: str
    ranks: Sequence[int]
    uplinks: tuple[Uplink, ...] = ()
    hosts: tuple[str, ...] = ()
    site: str = ""
    border: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The border ranks, in the order of the border communicator."""
    is_even: bool = field(init=False, repr=False, compare=False)
    """Whether all uplinks have the same bandwidths."""
    weights_out: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Running sums of the uplinks' bandwidths out as whole numbers, from 0 on; empty where `is_even`."""
    weights_in: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The same of their bandwidths in."""
    _positions: _Positions = field(init=False, repr=False, compare=False)
    _border_positions: _Positions = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("vendor", self.vendor)):
            if not isinstance(text, str) or not text or not text.isprintable():
                raise TopologyError(
                    f"{what} {text!r} of a cluster cannot be used",
                    remedy="Use a string of one or more printable characters.",
                )
        where = f"cluster {self.name!r}"
        if not isinstance(self.site, str) or (self.site and not self.site.isprintable()):
            raise TopologyError(
                f"{where}: site {self.site!r} cannot be used", remedy="Use printable characters, or leave it out."
            )
        object.__setattr__(self, "ranks", _compact(self.ranks, where))
        object.__setattr__(self, "uplinks", tuple(self.uplinks))
        object.__setattr__(self, "hosts", tuple(self.hosts))
        if not self.ranks:
            raise TopologyError(f"{where} has no ranks", remedy="Give it a rank, or leave the cluster out.")
        object.__setattr__(self, "_positions", _positions(self.ranks))
        if len(self._positions) != len(self.ranks):
            twice = _repeated(self.ranks)
            raise TopologyError(f"{where} names rank {twice} twice", remedy="Name each rank once.")
        if self.hosts and len(self.hosts) != len(self.ranks):
            raise TopologyError(
                f"{where} has {len(self.ranks)} ranks but {len(self.hosts)} hosts",
                remedy="Give one host for each rank, in the order of the ranks, or none.",
            )
        for uplink in self.uplinks:
            if uplink.rank not in self._positions:
                raise TopologyError(
                    f"{where} has an uplink to nowhere: rank {uplink.rank} is none of its ranks",
                    remedy=f"Use one of {_show(self.ranks)}.",
                )
        object.__setattr__(self, "uplinks", tuple(sorted(self.uplinks, key=lambda uplink: self.position(uplink.rank))))
        object.__setattr__(self, "border", tuple(uplink.rank for uplink in self.uplinks))
        object.__setattr__(self, "_border_positions", _positions(self.border))
        if len(self._border_positions) != len(self.border):
            raise TopologyError(
                f"{where} has two uplinks of rank {_repeated(self.border)}",
                remedy="State one uplink with the sum of their bandwidths: the transport uses all devices of a rank.",
            )
        even = len({(uplink.bandwidth_out, uplink.bandwidth_in) for uplink in self.uplinks}) <= 1
        object.__setattr__(self, "is_even", even)
        for name in ("out", "in"):
            speeds = [] if even else [getattr(uplink, f"bandwidth_{name}") for uplink in self.uplinks]
            object.__setattr__(self, f"weights_{name}", _running_weights(speeds))

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def sites(self) -> tuple[str, ...]:
        """The parts of `site`, from the largest on; none where it stands nowhere in particular."""
        return tuple(self.site.split("/")) if self.site else ()

    def position(self, rank: int) -> int:
        """The number of `rank`, which is one of `ranks`, in the home communicator."""
        found = self._positions
        return rank - found.start if isinstance(found, range) else found[rank]

    def border_position(self, rank: int) -> int | None:
        """The number of `rank` in the border communicator; None if it is no border rank."""
        found = self._border_positions
        if rank not in found:
            return None
        return rank - found.start if isinstance(found, range) else found[rank]

    @property
    def home_id(self) -> CommId:
        """The name of the vendor communicator over all ranks."""
        return CommId(self.name, CommRole.HOME)

    @property
    def border_id(self) -> CommId:
        """The name of the vendor communicator over the border ranks, where there are two or more."""
        return CommId(self.name, CommRole.BORDER)


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
                f"two clusters have the name {_repeated(names)!r}", remedy="Give each cluster a name of its own."
            )
        object.__setattr__(self, "nranks", sum(map(len, self.clusters)))
        object.__setattr__(self, "_index", _cluster_indices(self.clusters, self.nranks))
        if len(self.clusters) > 1:
            for cluster in self.clusters:
                if not cluster.uplinks:
                    raise TopologyError(
                        f"cluster {cluster.name!r} has no uplink, so no rank of it reaches the other clusters",
                        remedy=f"Give one or more of its ranks {_show(cluster.ranks)} an uplink.",
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
        from hetcomm.topology import toml  # it builds topologies, so it imports this file

        return toml.dumps(self)

    @classmethod
    def from_toml(cls, text: str) -> Topology:
        """The topology that `text` describes; see `hetcomm.topology.toml` for the format.

        Raises:
            TopologyError: `text` is not TOML, has unknown keys or wrong types, or describes no valid topology.
        """
        from hetcomm.topology import toml

        return toml.loads(text)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Topology:
        """The topology in the file at `path`.

        Raises:
            TopologyError: As `from_toml`, or the file cannot be read; the message names the file.
        """
        from hetcomm.topology import toml

        return toml.load(path)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _compact(ranks: Iterable[int], where: str) -> Sequence[int]:
    """`ranks` as a range if they are consecutive, else as a tuple: equal ranks always compare equal."""
    if not isinstance(ranks, range) or ranks.step != 1:
        ranks = tuple(ranks)
        for rank in ranks:
            if not _is_int(rank):
                raise TopologyError(f"{where} has rank {rank!r}", remedy="Ranks are integers from 0 on.")
        if ranks and ranks == tuple(range(ranks[0], ranks[0] + len(ranks))):
            return range(ranks[0], ranks[0] + len(ranks))
    return ranks


def _positions(ranks: Sequence[int]) -> _Positions:
    """What gives the position of each of `ranks`; a range where they are consecutive, to save memory."""
    if isinstance(ranks, range) and ranks.step == 1:
        return ranks
    if ranks and tuple(ranks) == tuple(range(ranks[0], ranks[0] + len(ranks))):
        return range(ranks[0], ranks[0] + len(ranks))
    return {rank: number for number, rank in enumerate(ranks)}


def _running_weights(speeds: Sequence[float]) -> tuple[int, ...]:
    """0 and the sums of the first one, two, ... of `speeds` beside the fastest; empty if there are none."""
    if not speeds:
        return ()
    fastest = max(speeds)
    return tuple(accumulate((max(1, round(speed / fastest * _RESOLUTION)) for speed in speeds), initial=0))


def _cluster_indices(clusters: Sequence[Cluster], nranks: int) -> array[int]:
    """For each rank the index of its cluster; raises unless each rank is in exactly one."""
    found = array("l", [-1]) * nranks
    for index, cluster in enumerate(clusters):
        for rank in cluster.ranks:
            if not 0 <= rank < nranks:
                missing = sorted(set(range(nranks)).difference(*(other.ranks for other in clusters)))
                raise TopologyError(
                    f"cluster {cluster.name!r} has rank {rank}, but the clusters have {nranks} ranks in all, and "
                    + (f"{_show(missing)} missing" if missing else "none is missing"),
                    remedy=f"Name each rank from 0 to {nranks - 1} once, or add the missing ones.",
                )
            if found[rank] != -1:
                raise TopologyError(
                    f"rank {rank} is in cluster {clusters[found[rank]].name!r} and in cluster {cluster.name!r}",
                    remedy="Name each rank in one cluster.",
                )
            found[rank] = index
    return found


def _repeated(items: Iterable[object]) -> object:
    """The first item that has been seen before."""
    seen: set[object] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    raise ValueError("no item is repeated")


def _show(ranks: Sequence[int]) -> str:
    """A list of ranks for a message, cut short if it is long."""
    if isinstance(ranks, range) and len(ranks) > 2:
        return f"{ranks[0]} to {ranks[-1]}"
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown}, ..." if len(ranks) > 8 else shown
