"""What steps cost on a topology: the uplinks it states, and a calibration for all that happens inside a cluster.

A *calibration* holds a few straight lines: alpha seconds, and beta seconds for each byte. It is data, measured on one
machine and kept as JSON; `DEFAULT` is a documented stand-in where there is none, and `IDEAL` prices the uplinks
alone, which is what lower bounds are about. `costs_of` joins a calibration and a topology to the costs that
`hetcomm.schedule.simulate` asks for.

The document, version 1; seconds throughout, bytes where it says so::

    {
      "format": "hetcomm.calibration",
      "version": 1,
      "machine": "two hosts of 64 cores",
      "calls": [
        {"vendor": "mpi", "kind": "all_reduce", "alpha": 1e-6, "per_log2": 2e-6, "per_rank": 0.0, "beta": 3e-10},
        {"vendor": null, "kind": null, "alpha": 1e-5, "per_log2": 5e-6, "per_rank": 0.0, "beta": 5e-11}
      ],
      "message": {"alpha": 2e-6, "beta": 1e-10},
      "copy": {"alpha": 1e-6, "beta": 1e-10},
      "reduce": {"alpha": 1e-6, "beta": 1e-10},
      "overhead": 5e-6
    }

Every key is there, no other is. "vendor" or "kind" null stands for all that have no entry of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path as File
from typing import Any

from hetcomm.errors import TopologyError, UsageError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.simulate import Costs, Path, Port
from hetcomm.schedule.steps import CommId, Copy, Fill, Reduce
from hetcomm.topology.model import Topology, Uplink

__all__ = [
    "DEFAULT",
    "EAGER_BYTES",
    "FORMAT",
    "IDEAL",
    "VERSION",
    "Calibration",
    "CallCost",
    "Line",
    "costs_of",
    "volume",
]

EAGER_BYTES = 64 << 10
"""Longer messages wait for their receive; about where UCX and the MPIs change over."""

FORMAT = "hetcomm.calibration"
VERSION = 1
_REMEDY = "Measure it again, or correct the file."


def volume(collective: Collective) -> float:
    """Bytes that each rank must send in a vendor call, whatever the algorithm: what nccl-tests' bus bandwidth counts.

    n ranks, S bytes of the vector (of all blocks together, where it has blocks): 2(n-1)/n S for all_reduce, (n-1)/n S
    for reduce_scatter and all_gather, S for reduce and broadcast; nothing where n is 1.
    """
    n = collective.nranks
    if n == 1:
        return 0.0
    nbytes = collective.total * collective.dtype.itemsize
    if collective.kind in (CollectiveKind.REDUCE, CollectiveKind.BROADCAST):
        return float(nbytes)
    return nbytes * (n - 1) / n * (2 if collective.kind is CollectiveKind.ALL_REDUCE else 1)


@dataclass(frozen=True, slots=True)
class Line:
    """`alpha` seconds, and `beta` seconds for each byte.

    Raises:
        UsageError: One of them is not a finite number from 0 on; the same for the other classes of this file.
    """

    alpha: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        _check_numbers(self, ("alpha", "beta"), "a cost")

    def seconds(self, nbytes: float) -> float:
        """What `nbytes` bytes cost."""
        return self.alpha + self.beta * nbytes


@dataclass(frozen=True, slots=True)
class CallCost:
    """What a call of a vendor costs on n ranks: `alpha + per_log2 log2(n) + per_rank (n-1) + beta volume`.

    Attributes:
        vendor: The vendor's name; None: any that has no entry of its own.
        kind: The collective; None: any that has no entry of its own.
        alpha: Seconds of each call.
        per_log2: Seconds for each doubling of the ranks.
        per_rank: Seconds for each rank beyond the first.
        beta: Seconds for each byte of `volume`.
    """

    vendor: str | None
    kind: CollectiveKind | None
    alpha: float = 0.0
    per_log2: float = 0.0
    per_rank: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        what = f"the cost of {self.kind.value if self.kind else 'a call'} of {self.vendor or 'a vendor'}"
        _check_numbers(self, ("alpha", "per_log2", "per_rank", "beta"), what)

    def seconds(self, collective: Collective) -> float:
        """What one call costs."""
        n = collective.nranks
        return self.alpha + self.per_log2 * math.log2(n) + self.per_rank * (n - 1) + self.beta * volume(collective)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What everything but an uplink costs on some machine.

    Attributes:
        calls: Vendor calls. Of those that fit, an entry for the vendor and the kind counts before one for the vendor,
            that before one for the kind, and that before one for all.
        message: Between two ranks of one cluster. Each rank sends, and receives, one byte every `beta` seconds.
        copy: A local copy or fill.
        reduce: A local reduction.
        overhead: Seconds of a rank's CPU for each step that it starts.
        machine: What it was measured on.

    Raises:
        UsageError: As `Line`, or two entries of `calls` are for the same.
    """

    calls: tuple[CallCost, ...]
    message: Line
    copy: Line
    reduce: Line
    overhead: float
    machine: str = ""
    _calls: dict[tuple[str | None, CollectiveKind | None], CallCost] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "calls", tuple(self.calls))
        object.__setattr__(self, "_calls", {(cost.vendor, cost.kind): cost for cost in self.calls})
        if len(self._calls) < len(self.calls):
            raise UsageError("the calibration has two costs for one vendor and kind of call", remedy=_REMEDY)
        _check_numbers(self, ("overhead",), "the calibration")

    def call(self, vendor: str, collective: Collective) -> float:
        """Seconds of one call of `vendor`.

        Raises:
            UsageError: The calibration has no entry that fits.
        """
        for key in ((vendor, collective.kind), (vendor, None), (None, collective.kind), (None, None)):
            found = self._calls.get(key)
            if found is not None:
                return found.seconds(collective)
        raise UsageError(
            f"the calibration has no cost for {collective.kind.value} of vendor {vendor!r}",
            remedy="Add one, or one whose vendor is null, which stands for all others.",
        )

    def fingerprint(self) -> str:
        """A hexadecimal digest, equal on all ranks exactly where the calibrations are equal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The calibration as a document that `json.dumps` takes and `from_json` reads back to an equal one."""
        calls = [asdict(cost) | {"kind": cost.kind.value if cost.kind else None} for cost in self.calls]
        lines = {name: asdict(getattr(self, name)) for name in _LINES}
        head = {"format": FORMAT, "version": VERSION, "machine": self.machine}
        return {**head, "calls": calls, **lines, "overhead": self.overhead}

    @classmethod
    def from_json(cls, document: object) -> Calibration:
        """The calibration that `to_json` wrote.

        Raises:
            UsageError: `document` is none, is of another version, or has a value that cannot be used; names the place.
        """
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise UsageError(f"this is no document of format {FORMAT!r}", remedy="Measure a calibration first.")
        if document.get("version") != VERSION or isinstance(document["version"], bool):
            raise UsageError(
                f"version {document.get('version')!r} of {FORMAT} is not known", remedy="Measure it again."
            )
        _check_keys(document, {"format", "version", "machine", "calls", *_LINES, "overhead"}, "the calibration")
        if not isinstance(document["calls"], list) or not isinstance(document["machine"], str):
            raise UsageError("calls of the calibration is no list, or machine no text", remedy=_REMEDY)
        calls = tuple(_call_from(entry, f"calls[{number}]") for number, entry in enumerate(document["calls"]))
        lines = {name: _line_from(document[name], name) for name in _LINES}
        return cls(calls, **lines, overhead=document["overhead"], machine=document["machine"])

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Calibration:
        """The calibration in the file at `path`.

        Raises:
            UsageError: The file cannot be read, is not JSON, or as `from_json`; names the file.
        """
        try:
            return cls.from_json(json.loads(File(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            text, remedy = (error.message, error.remedy) if isinstance(error, UsageError) else (str(error), None)
            raise UsageError(f"calibration {str(path)!r} cannot be used: {text}", remedy=remedy) from error

    def save(self, path: str | PathLike[str]) -> None:
        """Write the calibration to the file at `path`.

        Raises:
            UsageError: It cannot be written; names the file.
        """
        try:
            File(path).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"calibration {str(path)!r} cannot be written: {error}") from error


_LINES = ("message", "copy", "reduce")


def _check_numbers(costs: object, names: Iterable[str], what: str) -> None:
    """Raise unless these attributes are usable; make them floats, so that equal ones have equal documents."""
    for name in names:
        value = getattr(costs, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= sys.float_info.max:
            raise UsageError(f"{name} of {what} is {value!r}, which is no finite number from 0 on", remedy=_REMEDY)
        object.__setattr__(costs, name, float(value))


def _check_keys(entry: object, keys: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping) or set(entry) != keys:
        found = ", ".join(sorted(map(str, entry))) if isinstance(entry, Mapping) else repr(entry)
        raise UsageError(f"{where} has {found} instead of the keys {', '.join(sorted(keys))}", remedy=_REMEDY)
    return entry


def _line_from(entry: object, where: str) -> Line:
    return Line(**_check_keys(entry, {each.name for each in fields(Line)}, where))


def _call_from(entry: object, where: str) -> CallCost:
    found = _check_keys(entry, {each.name for each in fields(CallCost)}, where)
    kinds = {kind.value: kind for kind in CollectiveKind}
    if not isinstance(found["vendor"], (str, type(None))):
        raise UsageError(f"vendor of {where} is {found['vendor']!r}, neither text nor null", remedy=_REMEDY)
    if found["kind"] is not None and not (isinstance(found["kind"], str) and found["kind"] in kinds):
        raise UsageError(f"kind of {where} is {found['kind']!r}, neither null nor one of {', '.join(kinds)}")
    return CallCost(**{**found, "kind": kinds[found["kind"]] if found["kind"] is not None else None})


DEFAULT = Calibration(
    # From 25 times of all_reduce with 2 and 4 processes on 2 cores, 4 B to 64 MiB: these lines meet 16 of them within a
    # factor of two. The last entry, for libraries of devices, is a guess and not a measurement.
    calls=(
        CallCost("mpi", None, per_log2=2e-6, beta=3e-10),
        CallCost("oneccl", None, per_log2=4e-6, beta=1.4e-10),
        CallCost("gloo", None, per_rank=8e-4, beta=8e-10),
        CallCost("ucx", None, per_rank=2e-5, beta=2e-10),
        CallCost(None, None, alpha=1e-5, per_log2=5e-6, beta=1e-11),
    ),
    message=Line(2e-6, 1 / 13e9),
    copy=Line(1e-6, 1 / 11.6e9),
    reduce=Line(1e-6, 1 / 12.3e9),
    overhead=5e-6,
    machine="hetcomm's defaults",
)
"""Orders of magnitude of host memory, for a machine that nothing is known about."""

IDEAL = Calibration((CallCost(None, None),), Line(), Line(), Line(), 0.0, "ideal")
"""Nothing costs anything but the uplinks, as lower bounds have it; their latencies still count."""


def costs_of(topology: Topology, calibration: Calibration = DEFAULT) -> Costs:
    """What the steps of any schedule for `topology` cost.

    A message between clusters passes the uplinks of sender and receiver; its latency is the longer of theirs. A rank
    without an uplink uses that of one border rank of its cluster; the ranks are divided evenly among those, in the
    order of the cluster. A message inside a cluster has ports of its own at each rank.

    The costs raise `TopologyError` for a rank or communicator that is not the topology's, and `UsageError` for a vendor
    that the calibration leaves out.
    """
    return _TopologyCosts(topology, calibration)


class _TopologyCosts:
    """See `costs_of`."""

    def __init__(self, topology: Topology, calibration: Calibration) -> None:
        self._topology = topology
        self._calibration = calibration
        self._vendors = {cluster.name: cluster.vendor for cluster in topology.clusters}
        self._uplinks = {uplink.rank: uplink for cluster in topology.clusters for uplink in cluster.uplinks}
        self._bandwidth = 1 / calibration.message.beta if calibration.message.beta else math.inf

    @property
    def overhead(self) -> float:
        """Seconds of a rank's CPU for each step."""
        return self._calibration.overhead

    def path(self, sender: int, receiver: int) -> Path:
        """What messages from one rank to another pass."""
        topology = self._topology
        if topology.cluster_index(sender) == topology.cluster_index(receiver):
            ends = [Port(("home", rank), self._bandwidth) for rank in (sender, receiver)]
            return Path(ends[0], ends[1], self._calibration.message.alpha, EAGER_BYTES)
        out, into = self._uplink(sender), self._uplink(receiver)
        latency = max(out.latency, into.latency)
        leaving, arriving = (
            Port(("uplink", out.rank), out.bandwidth_out),
            Port(("uplink", into.rank), into.bandwidth_in),
        )
        return Path(leaving, arriving, latency, EAGER_BYTES)

    def _uplink(self, rank: int) -> Uplink:
        found = self._uplinks.get(rank)
        if found is None:
            cluster = self._topology.cluster_of(rank)
            found = cluster.uplinks[cluster.ranks.index(rank) * len(cluster.uplinks) // len(cluster)]
            self._uplinks[rank] = found
        return found

    def vendor(self, comm: CommId, collective: Collective) -> float:
        """Seconds of a vendor call."""
        vendor = self._vendors.get(comm.cluster)
        if vendor is None:
            raise TopologyError(
                f"the schedule calls {comm}, but the topology has no cluster {comm.cluster!r}",
                remedy=f"Use the topology that the schedule was made for; this one has {', '.join(self._vendors)}.",
            )
        return self._calibration.call(vendor, collective)

    def local(self, step: Copy | Fill | Reduce, nbytes: int) -> float:
        """Seconds of a local step."""
        line = self._calibration.reduce if isinstance(step, Reduce) else self._calibration.copy
        return line.seconds(nbytes)
