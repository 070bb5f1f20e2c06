"""One rank of `run_ranks`: connects to the parent, runs the target, reports its result or its traceback.

Messages on the parent's socket are a kind (one byte), a length (eight bytes) and a payload:
`H` rank says hello, `C` the parent's call, `G` a payload to gather and the answer to it, `D` a gather that cannot
be completed, `R` the pickled result, `E` a traceback, `X` the leave to exit after one.
"""

from __future__ import annotations

import faulthandler
import functools
import importlib
import importlib.util
import pickle
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, UsageError

__all__ = ["Call", "RankGroup", "main", "receive", "send", "this_rank"]

_HEADER = struct.Struct("<cQ")


@dataclass(frozen=True, slots=True)
class Call:
    """What the ranks run: a function by name, so that it is imported in the rank and not before."""

    module: str
    file: str | None
    qualname: str
    args: bytes
    nranks: int
    timeout: float
    path: tuple[str, ...]


class RankGroup:
    """The ranks of one `run_ranks` call, as the `Group` that vendors and transports are wired up with."""

    def __init__(self, rank: int, nranks: int, channel: socket.socket, timeout: float) -> None:
        self.rank = rank
        self.nranks = nranks
        self.timeout = timeout
        self._channel = channel

    def wait(self, test: Callable[[], bool], what: str) -> None:
        """Return when `test()` is true.

        Raises:
            CollectiveTimeoutError: It is not within `timeout` seconds.
        """
        end = time.monotonic() + self.timeout
        while not test():
            if time.monotonic() > end:
                raise CollectiveTimeoutError(f"{what}: not within {self.timeout:g} s", rank=self.rank)
            time.sleep(1e-4)

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        """Everybody's payload, in rank order; payloads may differ in length. Collective.

        Raises:
            PeerFailureError: A rank ended without taking part.
        """
        send(self._channel, b"G", bytes(payload))
        kind, answer = receive(self._channel)
        if kind == b"D":
            raise PeerFailureError(answer.decode(), rank=self.rank)
        gathered: list[bytes] = pickle.loads(answer)
        return gathered

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        """The payload of `root` (the others pass None). Collective."""
        return self.all_gather(payload or b"")[root]

    def barrier(self) -> None:
        """Return when every rank has called it. Collective."""
        self.all_gather(b"")


_current: RankGroup | None = None


def this_rank() -> RankGroup:
    """The group of the `run_ranks` call this process is a rank of.

    Raises:
        UsageError: This process was not started by `run_ranks`.
    """
    if _current is None:
        raise UsageError("this process is no rank of a run_ranks call", remedy="Call it inside the target.")
    return _current


def send(channel: socket.socket, kind: bytes, payload: bytes = b"") -> None:
    """Write one message."""
    channel.sendall(_HEADER.pack(kind, len(payload)) + payload)


def receive(channel: socket.socket) -> tuple[bytes, bytes]:
    """Read one message.

    Raises:
        EOFError: The other side is gone.
    """
    kind, length = _HEADER.unpack(_read(channel, _HEADER.size))
    return kind, _read(channel, length)


def _read(channel: socket.socket, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        piece = channel.recv(min(nbytes - len(data), 1 << 20))
        if not piece:
            raise EOFError("the other side closed the socket")
        data += piece
    return bytes(data)


def _target(call: Call) -> Any:
    return functools.reduce(getattr, call.qualname.split("."), _module(call.module, call.file))


def _module(name: str, file: str | None) -> ModuleType:
    """The module, which need not be importable under the name that a test runner gave it."""
    if file is not None:
        # Its packages' folder goes last, so that it hides nothing; beside a test suite there may be a source tree.
        sys.path.append(str(Path(file).resolve().parents[name.count(".")]))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if file is None or error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{file} cannot be imported", name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _run(call: Call) -> bytes:
    target = _target(call)
    return pickle.dumps(target(*pickle.loads(call.args)))


def main(path: str, rank: int) -> int:
    """Run rank `rank` of the parent whose socket is at `path`; returns the exit status."""
    global _current  # noqa: PLW0603 (a process is one rank for as long as it lives)
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(path)
    send(channel, b"H", struct.pack("<q", rank))
    kind, payload = receive(channel)
    if kind != b"C":
        raise EOFError(f"the parent sent {kind!r} where its call was due")
    call = pickle.loads(payload)
    # The parent may be killed before its deadline: no rank outlives it by more than this, and a hang shows its stack.
    faulthandler.dump_traceback_later(call.timeout, exit=True)
    sys.path[:] = call.path
    _current = RankGroup(rank, call.nranks, channel, call.timeout)
    try:
        report, status = (b"R", _run(call)), 0
    except BaseException:  # noqa: BLE001 (KeyboardInterrupt and SystemExit too are shown in the parent)
        report, status = (b"E", traceback.format_exc().encode()), 1
    sys.stdout.flush()
    send(channel, *report)
    if status:
        receive(channel)  # mpirun ends the job when a rank fails: not before the others have reported
    return status
