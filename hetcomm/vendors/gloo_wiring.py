"""How the ranks of a Gloo communicator meet, and how they part: PyTorch's side of the vendor `gloo`.

Gloo's ranks tell one another their addresses through a store. Here that is the bootstrap's group, and what they listen
on is chosen by hetcomm, since PyTorch goes by the host's name.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import socket
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any, TypeVar

from hetcomm.errors import HetcommError, VendorError
from hetcomm.vendors import network
from hetcomm.vendors.base import Group

__all__ = ["INSTALL", "Connection", "call", "connect", "load"]

_T = TypeVar("_T")

INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/cpu   (without the index it may bring CUDA)"
_NETWORK = "Bring the loopback interface up, or set GLOO_SOCKET_IFNAME to the one through which others reach this host."
_CONNECTING = timedelta(minutes=1)
_CLOSING = timedelta(seconds=30)


class Connection:
    """A connected `ProcessGroupGloo`.

    It is destroyed by `close` only, even when the interpreter ends: its destructor waits for the calls that are under
    way, which may be for ever.

    Attributes:
        backend: The object itself.
        sockets: What it is connected with, as descriptors and inodes; none of connections that are made later.
    """

    def __init__(self, group: Group, devices: list[Any]) -> None:
        _users.add(id(self))
        self._c10d = load().distributed.distributed_c10d
        options = self._c10d.ProcessGroupGloo._Options()
        options._devices = devices
        options._threads = 1
        options._timeout = min(_CONNECTING, timedelta(seconds=group.timeout))
        self._store = _store_type()(group)
        before = _sockets()
        self.backend: Any = self._c10d.ProcessGroupGloo(self._store, group.rank, group.nranks, options)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.backend))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._store))
        self._store.settle()  # with TORCH_GLOO_LAZY_INIT nobody has asked for an address yet
        self.sockets = _own_sockets(_sockets() - before, group)

    def close(self) -> None:
        """Destroy it when all ranks do, so that no connection ends under a call; nothing is under way."""
        options = self._c10d.BarrierOptions()
        options.timeout = _CLOSING
        self.backend.barrier(options).wait()
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self.backend))
        self.backend = None
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._store))
        _users.discard(id(self))
        if not _users:
            _made.clear()

    def cut(self) -> None:
        """Shut the connections down: calls under way end with an error, here and on the ranks at the other ends."""
        for descriptor, inode in self.sockets:
            with suppress(OSError):  # it is closed already
                if os.fstat(descriptor).st_ino == inode:
                    with _as_socket(descriptor) as connection:
                        connection.shutdown(socket.SHUT_RDWR)


def _sockets() -> set[tuple[int, int]]:
    """The sockets of this process, as descriptors and inodes."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # such as the descriptor of the listing
            state = os.stat(int(name))
            if stat.S_ISSOCK(state.st_mode):
                found.add((int(name), state.st_ino))
    return found


def _own_sockets(candidates: Iterable[tuple[int, int]], group: Group) -> list[tuple[int, int]]:
    """Those that lead to another rank of the group, as its end of them shows; collective."""
    ends: dict[tuple[str, str], tuple[int, int]] = {}
    for descriptor, inode in candidates:
        with suppress(OSError), _as_socket(descriptor) as connection:  # it listens, or another thread has closed it
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                names = connection.getsockname(), connection.getpeername()
                here, there = (f"{name[0]}:{name[1]}" for name in names)
                ends[here, there] = descriptor, inode
    said = [json.loads(text) for text in group.all_gather(json.dumps(list(ends)).encode())]
    theirs = {(here, there) for rank, each in enumerate(said) if rank != group.rank for here, there in each}
    return [socket_ for (here, there), socket_ in ends.items() if (there, here) in theirs]


def _as_socket(descriptor: int) -> socket.socket:
    """The same socket under a descriptor of its own."""
    return socket.socket(fileno=os.dup(descriptor))


def connect(group: Group) -> Connection:
    """Connect the ranks of `group`; collective.

    Raises:
        VendorError: On each rank alike where PyTorch is missing or lacks Gloo on one of them, or an interface cannot
            be used; on each rank for itself where they cannot connect.
    """
    said = group.all_gather(json.dumps(dataclasses.asdict(network.here())).encode())
    places = [network.Place(**json.loads(text)) for text in said]
    problem, devices = "", []
    try:
        devices = _devices(network.reachable_address(places, group.rank))
    except VendorError as error:
        problem = str(error)
    answers = [json.loads(text) for text in group.all_gather(json.dumps([problem, len(devices)]).encode())]
    for rank, (text, _) in enumerate(answers):
        if text:
            raise VendorError(f"vendor 'gloo' failed on rank {rank} of its cluster: {text}")
    if len({number for _, number in answers}) > 1:
        raise VendorError("vendor 'gloo': GLOO_SOCKET_IFNAME names more interfaces on one rank than on another")
    return call(lambda: Connection(group, devices), "connecting its ranks")


def load() -> Any:
    """The module `torch`, with `torch.distributed` and Gloo.

    Raises:
        VendorError: It cannot be imported, or was built without them.
    """
    try:
        import torch
        import torch.distributed
    except (ImportError, OSError) as error:
        raise VendorError(f"PyTorch cannot be used: {error}", remedy=INSTALL) from error
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise VendorError("this PyTorch was built without Gloo", remedy=INSTALL)
    return torch


def call(function: Callable[[], _T], what: str) -> _T:
    """The function's result, PyTorch's errors as `VendorError`."""
    try:
        return function()
    except HetcommError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:  # those of torch.distributed are RuntimeErrors
        raise VendorError(f"Gloo failed in {what}: {str(error).splitlines()[0]}") from error


def _devices(address: str | None) -> list[Any]:
    """What Gloo listens on: the interfaces of `GLOO_SOCKET_IFNAME`, else `address`."""
    load()
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "")
    if chosen:
        what = f"using GLOO_SOCKET_IFNAME={chosen}"
        return [call(partial(_device, interface=name.strip()), what) for name in chosen.split(",")]
    if address is None:
        raise VendorError("no IPv4 address of this host leads to the other ranks of its cluster", remedy=_NETWORK)
    return [call(partial(_device, hostname=address), f"listening on {address}")]


_made: dict[tuple[str, str], Any] = {}  # devices by what they listen on, until all connections are closed
_users: set[int] = set()  # connections that are not; one that is given up keeps the devices, and they listen on


def _device(hostname: str = "", interface: str = "") -> Any:
    """A device, which is a thread that moves data and listens; the communicators of a process share it."""
    found = _made.get((hostname, interface))
    if found is None:
        found = load().distributed.ProcessGroupGloo.create_device(hostname=hostname, interface=interface)
        _made[hostname, interface] = found
    return found


def _in_child() -> None:
    """Destroying a device waits for the end of its thread, which a forked child does not have."""
    for device in _made.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(device))


os.register_at_fork(after_in_child=_in_child)


@lru_cache
def _store_type() -> type[Any]:
    """The type of the store, whose base class is PyTorch's."""

    class Store(load().distributed.Store):  # type: ignore[misc]
        """What Gloo asks while its ranks connect: each rank sets its own entry, then all of them read all entries."""

        def __init__(self, group: Group) -> None:
            super().__init__()
            self._group = group
            self._mine: dict[str, bytes] = {}
            self._entries: dict[str, bytes] = {}

        def set(self, key: str, value: bytes) -> None:
            self._mine[key] = bytes(value)

        def get(self, key: str) -> bytes:
            self.wait([key])
            return self._entries[key]

        def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
            if any(key not in self._entries for key in keys):
                self.settle()

        def settle(self) -> None:
            """Exchange what was set since the last exchange; collective."""
            if self._mine:
                said = json.dumps({key: value.hex() for key, value in self._mine.items()})
                self._mine = {}
                for text in self._group.all_gather(said.encode()):
                    self._entries |= {key: bytes.fromhex(value) for key, value in json.loads(text).items()}

    return Store
