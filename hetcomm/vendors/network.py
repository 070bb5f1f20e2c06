"""Which of this host's addresses the other ranks of a group reach, without asking for the name of any host.

Names often resolve to an address that only their own host can use, or, in a container, to none. Linux only.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Place", "here", "is_one_host", "reachable_address"]

_GET_FLAGS, _GET_ADDRESS = 0x8913, 0x8915  # ioctls of sockets: SIOCGIFFLAGS, SIOCGIFADDR
_UP, _LOOPBACK = 0x1, 0x8
_ANY_PORT = 9


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is in the network.

    Attributes:
        network: Equal for ranks that share all interfaces: of one kernel, in one network namespace.
        addresses: IPv4 addresses of the interfaces that are up, in the kernel's order.
        loopback: The address of the loopback interface; '' if it is not up.
    """

    network: str
    addresses: Sequence[str]
    loopback: str


def here() -> Place:
    """The place of this process."""
    addresses, loopback = [], ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("40s", name.encode())
            try:
                (flags,) = struct.unpack_from("H", fcntl.ioctl(asking, _GET_FLAGS, request), 16)
                address = socket.inet_ntoa(fcntl.ioctl(asking, _GET_ADDRESS, request)[20:24])
            except OSError:  # gone since, or without an IPv4 address
                continue
            if not flags & _UP:
                continue
            if flags & _LOOPBACK:
                loopback = loopback or address
            else:
                addresses.append(address)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Place(f"{boot} {os.readlink('/proc/self/ns/net')}", tuple(addresses), loopback)


# Pairs of launchers' variables that are equal where all processes of a job are on this host.
_ALL_HERE = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_SIZE", "MPI_LOCALNRANKS"),
)


def is_one_host(places: Sequence[Place], environ: Mapping[str, str] | None = None) -> bool:
    """Whether the launcher has started no process on another host, nor any rank of these in another network.

    Of processes that it did not start nothing is known: then it is False.
    """
    env = os.environ if environ is None else environ
    whole = next(((env[size], env[here]) for size, here in _ALL_HERE if size in env and here in env), ("", "?"))
    return whole[0] == whole[1] and len({place.network for place in places}) == 1


def reachable_address(places: Sequence[Place], rank: int) -> str | None:
    """The address at which all ranks reach `rank`, which is the caller; None if there is none.

    In one network namespace that is the loopback's. Otherwise it is the one from which packets leave for the first rank
    elsewhere; addresses that several hosts have, such as those of container bridges, are left out.
    """
    mine = places[rank]
    elsewhere = next((place for place in places if place.network != mine.network), None)
    if elsewhere is None:
        return mine.loopback or None  # without it, the kernel does not even deliver to a host's own addresses
    for address in elsewhere.addresses:
        if address not in mine.addresses:
            local = _source_address(address)
            if local in mine.addresses and local not in elsewhere.addresses:
                return local
    return None


def _source_address(target: str) -> str | None:
    """The address that a packet to `target` would leave from; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        asking.connect((target, _ANY_PORT))
        local: str = asking.getsockname()[0]
        return local
    return None
