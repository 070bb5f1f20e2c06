"""What each rank says about itself, and the topology that follows.

A rank states its vendor, its cluster's label, its host and its transport's address; or the error that keeps it from
taking part. Statements are exchanged, so an error on one rank is raised on every rank.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hetcomm import errors
from hetcomm.errors import HetcommError, TopologyError, TransportError
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import Config
from hetcomm.vendors import registry
from hetcomm.vendors.base import Group

__all__ = [
    "Statement",
    "build_topology",
    "check_hosts",
    "choose_vendor",
    "exchange",
    "host",
    "parsed",
    "place",
    "restrict",
    "unreadable",
]


@dataclass(frozen=True, slots=True)
class Statement:
    """What one rank says about itself when a job begins.

    Attributes:
        vendor: The name of its vendor.
        label: What distinguishes its cluster from others of that vendor; '' if nothing.
        host: Its host, as `host` tells it.
        address: Its transport's address.
        topology: Fingerprint of the topology it was given; '' for none.
    """

    vendor: str = ""
    label: str = ""
    host: str = ""
    address: bytes = b""
    topology: str = ""

    def pack(self) -> bytes:
        """The statement as JSON."""
        fields = asdict(self) | {"address": self.address.hex()}
        return json.dumps(fields).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Statement:
        """What `pack` wrote on another rank.

        Raises:
            TransportError: No rank of this version of hetcomm writes that.
        """
        fields = parsed(data)
        if not isinstance(fields, dict) or fields.keys() != cls.__dataclass_fields__.keys():
            raise unreadable("a statement has other fields")
        if not all(isinstance(value, str) for value in fields.values()):
            raise unreadable("a statement is not text throughout")
        try:
            address = bytes.fromhex(fields["address"])
        except ValueError as error:
            raise unreadable(f"an address is no hexadecimal number: {error}") from error
        return cls(**(fields | {"address": address}))


def parsed(data: bytes) -> Any:
    """The JSON that another rank wrote.

    Raises:
        TransportError: It is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # RecursionError: lists in lists in lists
        raise unreadable(f"it is no JSON: {error}") from error


def unreadable(why: str) -> TransportError:
    """The error of what another rank says as the ranks meet, and none of this version of hetcomm would."""
    return TransportError(
        f"what another rank says of itself cannot be read: {why}",
        remedy="Use the same version of hetcomm on all ranks.",
    )


def exchange(group: Group, payload: bytes, error: HetcommError | None, where: str) -> list[bytes]:
    """Everybody's payload, in rank order; collective.

    Args:
        group: The ranks.
        payload: What this rank has to say.
        error: Why it cannot take part, if so.
        where: What is being done, for the message.

    Raises:
        HetcommError: On every rank, if any has an error: of the type and with the text of the first one's.
        TransportError: What a rank says cannot be read.
    """
    if error is None:
        said = b"+" + payload
    else:
        parts = {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}
        said = b"-" + json.dumps(parts).encode()
    answers = group.all_gather(said)
    for rank, answer in enumerate(answers):
        if answer[:1] == b"+":
            continue
        kind, message, remedy = _failure(answer)
        raise kind(
            f"{where} failed on rank {rank}: {message}",
            remedy=remedy,
            rank=group.rank,
            peer=rank if rank != group.rank else None,
        ) from error
    return [answer[1:] for answer in answers]


def _failure(answer: bytes) -> tuple[type[HetcommError], str, str | None]:
    """Type, message and remedy of the error that a rank tells of; `TopologyError` for a type that is not known here."""
    parts = parsed(answer[1:]) if answer[:1] == b"-" else None
    if not isinstance(parts, dict) or parts.keys() != {"type", "message", "remedy"}:
        raise unreadable("it is neither a statement nor an error")
    name, message, remedy = parts["type"], parts["message"], parts["remedy"]
    if not isinstance(name, str) or not isinstance(message, str) or not isinstance(remedy, str | None):
        raise unreadable("an error is not told in text")
    return (getattr(errors, name) if name in errors.__all__ else TopologyError), message, remedy


def host() -> str:
    """This host: its name and, since names are not always unique, a part of the kernel's boot id."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    suffix = f":{boot_id.read_text()[:8]}" if boot_id.exists() else ""
    return socket.gethostname() + suffix


def place() -> bytes:
    """Equal for processes that can have each other's memory: of one kernel, one user and the same namespaces."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        spaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("ipc", "pid")]
    except OSError:
        return os.urandom(16)  # like no other's
    return " ".join([boot, *spaces, str(os.geteuid())]).encode()


def check_hosts(topology: Topology, hosts: Sequence[str], rank: int) -> None:
    """Refuse a topology that puts ranks on other hosts than they are on; hosts that it does not name are not checked.

    Args:
        topology: As given.
        hosts: Of each rank, as `host` tells it.
        rank: This process's.

    Raises:
        TopologyError: A rank is on a host of another name, or two ranks share a host in one and not in the other.
    """
    places = [zip(cluster.ranks, cluster.hosts, strict=False) for cluster in topology.clusters]
    stated = {each: name for place in places for each, name in place if name}
    by_name: dict[str, int] = {}
    by_host: dict[str, int] = {}
    for each, name in sorted(stated.items()):
        if not _is_called(hosts[each], name):
            raise TopologyError(
                f"the topology puts rank {each} on host {name!r}, but it runs on {_plain(hosts[each])!r}",
                remedy="Correct its hosts, leave them out, or start the ranks where it says.",
                rank=rank,
                peer=each,
            )
        of_name, of_host = by_name.setdefault(name, each), by_host.setdefault(hosts[each], each)
        if of_name != of_host:
            other = of_host if hosts[of_name] == hosts[each] else of_name
            raise TopologyError(
                f"the topology puts ranks {other} and {each} on hosts {stated[other]!r} and {name!r}, but they run on "
                f"{hosts[other]!r} and {hosts[each]!r}",
                remedy="Correct its hosts, or leave them out.",
                rank=rank,
                ranks=(other, each),
            )


def _plain(name: str) -> str:
    """The name of a host without what `host` adds."""
    return name.partition(":")[0]


def _is_called(actual: str, stated: str) -> bool:
    """Whether a host may be called so: with or without its domain."""
    name, other = _plain(actual), _plain(stated)
    return name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.")


def choose_vendor(config: Config, *, over_mpi: bool, from_topology: str | None = None) -> str:
    """The vendor of this rank: as configured, as the topology file says, or by what is here; it can be used.

    Raises:
        UsageError: The vendor is not known.
        VendorError: It cannot be used here; the remedy says what to install.
        TopologyError: Configuration and topology file contradict each other.
    """
    if from_topology is not None and config.vendor not in (None, from_topology):
        raise TopologyError(
            f"HETCOMM_VENDOR is {config.vendor!r}, but the topology puts this rank into a cluster of {from_topology!r}",
            remedy="Unset HETCOMM_VENDOR, or correct the topology file.",
        )
    name = config.vendor or from_topology or _device_vendor() or ("mpi" if over_mpi else "ucx")
    registry.usable_vendor(name)
    return name


def _device_vendor() -> str | None:
    """The vendor of this host's GPU, if it has one whose library is here too; makes no device context."""
    for name, device in (("nccl", "/dev/nvidiactl"), ("rccl", "/dev/kfd")):
        if os.path.exists(device) and registry.vendor(name).availability().usable:
            return name
    return None


def build_topology(statements: Sequence[Statement]) -> Topology:
    """The topology of a job without a topology file.

    One cluster for each vendor and label, in the order of their first ranks; ranks ascend; every rank is a border rank,
    and all uplinks are equal.
    """
    clusters: dict[tuple[str, str], list[int]] = {}
    for rank, statement in enumerate(statements):
        clusters.setdefault((statement.vendor, statement.label), []).append(rank)
    return Topology(
        tuple(
            Cluster(
                f"{vendor}/{label}" if label else vendor,
                vendor,
                ranks,
                tuple(Uplink(rank) for rank in ranks),
                tuple(statements[rank].host for rank in ranks),
            )
            for (vendor, label), ranks in clusters.items()
        )
    )


def restrict(topology: Topology, ranks: Sequence[int]) -> Topology:
    """The topology of a part of a job, whose rank i is `ranks[i]` of the whole.

    A cluster none of whose border ranks is left gets one default uplink for each rank.
    """
    new = {old: number for number, old in enumerate(ranks)}
    clusters = []
    for cluster in topology.clusters:
        members = sorted((new[old], old) for old in cluster.ranks if old in new)
        if not members:
            continue
        known = {uplink.rank: uplink for uplink in cluster.uplinks}
        hosts = dict(zip(cluster.ranks, cluster.hosts, strict=False))
        uplinks = [
            Uplink(number, known[old].bandwidth_out, known[old].bandwidth_in, known[old].latency)
            for number, old in members
            if old in known
        ]
        clusters.append(
            Cluster(
                cluster.name,
                cluster.vendor,
                [number for number, _ in members],
                tuple(uplinks) or tuple(Uplink(number) for number, _ in members),
                tuple(hosts[old] for _, old in members) if hosts else (),
                cluster.site,
            )
        )
    return Topology(tuple(clusters))
