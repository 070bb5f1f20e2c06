"""Clusters, border ranks and uplinks: what a topology consists of.

Plain, frozen values that validate themselves. The order of `Cluster.ranks` is the order of the home communicator, and
the border communicator and the uplinks follow it. Bandwidths are in bytes/s, latencies in seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from hetcomm.errors import TopologyError
from hetcomm.schedule.steps import CommId, CommRole

__all__ = ["DEFAULT_BANDWIDTH", "DEFAULT_LATENCY", "Cluster", "Uplink", "repeated", "shown"]

DEFAULT_BANDWIDTH = 1e9
"""Bytes/s of an uplink that states none, each way; only the ratios of bandwidths shape a plan."""

DEFAULT_LATENCY = 5e-6
"""Seconds a message takes over an uplink that states none."""

_RESOLUTION = 1 << 52  # of a bandwidth beside the fastest
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
            twice = repeated(self.ranks)
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
                    remedy=f"Use one of {shown(self.ranks)}.",
                )
        object.__setattr__(self, "uplinks", tuple(sorted(self.uplinks, key=lambda uplink: self.position(uplink.rank))))
        object.__setattr__(self, "border", tuple(uplink.rank for uplink in self.uplinks))
        object.__setattr__(self, "_border_positions", _positions(self.border))
        if len(self._border_positions) != len(self.border):
            raise TopologyError(
                f"{where} has two uplinks of rank {repeated(self.border)}",
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


def repeated(items: Iterable[object]) -> object:
    """The first item that has been seen before."""
    seen: set[object] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    raise ValueError("no item is repeated")


def shown(ranks: Sequence[int]) -> str:
    """A list of ranks for a message, cut short if it is long."""
    if isinstance(ranks, range) and len(ranks) > 2:
        return f"{ranks[0]} to {ranks[-1]}"
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown}, ..." if len(ranks) > 8 else shown
