"""Topologies as TOML.

    [[cluster]]
    name = "left"               # optional: cluster0, cluster1, ... by position
    vendor = "mpi"
    ranks = "0-3"               # or "0-3, 8", or [0, 1, 2, 3]; the order is the home communicator's
    hosts = ["a", "a", "b", "b"]    # optional, one for each rank
    site = "hall 1/rack 3"      # optional: where it stands, the largest first

    [[cluster.uplink]]          # one for each border rank
    rank = 0
    bandwidth = "10 Gbit/s"     # or a number in bytes/s; or bandwidth_out and bandwidth_in apart; default 1e9
    latency = "5 us"            # or a number in seconds; default 5e-6

Units: bit/s and B/s with k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024); s, ms, us, ns. Unknown
keys are errors, so that a misspelt one is not ignored.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from hetcomm.errors import TopologyError
from hetcomm.topology.cluster import DEFAULT_BANDWIDTH, DEFAULT_LATENCY, Cluster, Uplink

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["dumps", "loads", "read"]

_QUANTITY = re.compile(r"\s*([0-9.eE+-]+?)\s*([A-Za-z][A-Za-z/]*)\s*")
_PREFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_PREFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_BANDWIDTHS = {f"{p}B/s": float(f) for p, f in _PREFIXES.items()} | {f"{p}bit/s": f / 8 for p, f in _PREFIXES.items()}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_MAX_RANKS = 1 << 24


def read(path: str | PathLike[str]) -> str:
    """The text of the file at `path`.

    Raises:
        TopologyError: It cannot be read; the message names it.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(
            f"topology file {str(path)!r} cannot be read: {error}", remedy="Check the path and that it is UTF-8 text."
        ) from error


def loads(text: str) -> tuple[Cluster, ...]:
    """The clusters that `text` describes.

    Raises:
        TopologyError: `text` is not TOML, has an unknown key or a value of the wrong type, or describes no valid
            cluster; the message names the cluster and the key.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, tables in tables in tables
        raise TopologyError(f"the topology is not TOML: {error}", remedy="Correct the syntax there.") from error
    _check_keys(document, {"cluster"}, "the topology")
    return tuple(_cluster(i, t) for i, t in enumerate(_tables(document, "cluster", "the topology")))


def dumps(clusters: Iterable[Cluster]) -> str:
    """Clusters as text that `loads` reads back to equal ones."""
    lines: list[str] = []
    for cluster in clusters:
        ranks = cluster.ranks
        lines += [
            "[[cluster]]",
            f"name = {_quoted(cluster.name)}",
            f"vendor = {_quoted(cluster.vendor)}",
            f'ranks = "{ranks[0]}-{ranks[-1]}"' if isinstance(ranks, range) else f"ranks = {list(ranks)}",
        ]
        if cluster.hosts:
            lines.append(f"hosts = [{', '.join(map(_quoted, cluster.hosts))}]")
        if cluster.site:
            lines.append(f"site = {_quoted(cluster.site)}")
        lines.append("")
        for uplink in cluster.uplinks:
            lines += ["[[cluster.uplink]]", f"rank = {uplink.rank}"]
            if uplink.bandwidth_out == uplink.bandwidth_in:
                lines.append(f"bandwidth = {uplink.bandwidth_out!r}")
            else:
                lines.append(f"bandwidth_out = {uplink.bandwidth_out!r}")
                lines.append(f"bandwidth_in = {uplink.bandwidth_in!r}")
            lines += [f"latency = {uplink.latency!r}", ""]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _cluster(index: int, table: dict[str, Any]) -> Cluster:
    name = table.get("name", f"cluster{index}")
    where = f"cluster {name!r}"
    _check_keys(table, {"name", "vendor", "ranks", "hosts", "site", "uplink"}, where)
    for key in ("vendor", "ranks"):
        if key not in table:
            raise TopologyError(f"{where} has no {key}", remedy=f"Add a line '{key} = ...' to it.")
    hosts = table.get("hosts", [])
    if not isinstance(hosts, list) or not all(isinstance(host, str) and host.isprintable() for host in hosts):
        raise TopologyError(
            f"{where}: hosts {hosts!r} is not a list of strings", remedy="Give one string for each rank."
        )
    uplinks = tuple(_uplink(each, where) for each in _tables(table, "uplink", where))
    return Cluster(name, table["vendor"], _ranks(table["ranks"], where), uplinks, tuple(hosts), table.get("site", ""))


def _uplink(table: dict[str, Any], where: str) -> Uplink:
    _check_keys(table, {"rank", "bandwidth", "bandwidth_out", "bandwidth_in", "latency"}, f"an uplink of {where}")
    if "rank" not in table:
        raise TopologyError(f"an uplink of {where} has no rank", remedy="Add a line 'rank = ...' to it.")
    rank = table["rank"]
    where = f"the uplink of rank {rank!r} in {where}"
    if "bandwidth" in table and ("bandwidth_out" in table or "bandwidth_in" in table):
        raise TopologyError(
            f"{where} has bandwidth and also bandwidth_out or bandwidth_in",
            remedy="Give one bandwidth for both ways, or one for each.",
        )
    both = table.get("bandwidth", DEFAULT_BANDWIDTH)
    return Uplink(
        rank,
        _quantity(table.get("bandwidth_out", both), _BANDWIDTHS, "10 Gbit/s", f"bandwidth of {where}"),
        _quantity(table.get("bandwidth_in", both), _BANDWIDTHS, "10 Gbit/s", f"bandwidth of {where}"),
        _quantity(table.get("latency", DEFAULT_LATENCY), _TIMES, "5 us", f"latency of {where}"),
    )


def _ranks(value: Any, where: str) -> tuple[int, ...] | range:
    """A list of ranks, or text such as '0-3, 8'."""
    if isinstance(value, list):
        return tuple(value)  # `Cluster` checks the types
    remedy = 'Write ranks = "0-3", "0-3, 8" or [0, 1, 2].'
    if not isinstance(value, str):
        raise TopologyError(f"{where}: ranks {value!r} is neither text nor a list", remedy=remedy)
    found: list[range] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise TopologyError(f"{where}: {part.strip()!r} in its ranks is neither a rank nor a span", remedy=remedy)
        found.append(range(first, last + 1))
    if sum(map(len, found)) > _MAX_RANKS:
        raise TopologyError(f"{where} has more than {_MAX_RANKS} ranks", remedy="Check the span of its ranks.")
    return found[0] if len(found) == 1 else tuple(rank for span in found for rank in span)


def _quantity(value: Any, units: dict[str, float], example: str, what: str) -> float:
    """A number as it is, or text such as '10 Gbit/s' in the base unit."""
    remedy = f"Write a number, or text such as {example!r} with one of the units {', '.join(units)}."
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value  # `Uplink` checks the range
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise TopologyError(f"{what}: {value!r} cannot be read", remedy=remedy)
    try:
        return float(match[1]) * units[match[2]]
    except ValueError as error:
        raise TopologyError(f"{what}: {value!r} cannot be read", remedy=remedy) from error


def _tables(table: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """The array of tables under `key`; none if it is absent."""
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        kind = "cluster" if key == "cluster" else "cluster.uplink"
        raise TopologyError(f"{key} of {where} is not a list of tables", remedy=f"Write it as [[{kind}]].")
    return found


def _check_keys(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise TopologyError(
            f"{where} has the unknown key {unknown[0]!r}", remedy=f"The keys there are {', '.join(sorted(known))}."
        )
