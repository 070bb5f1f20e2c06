"""The small jobs `hetcomm doctor` runs: two processes over UCX, and two ranks under mpirun."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from hetcomm._ranks.child import this_rank
from hetcomm._ranks.parent import run_ranks
from hetcomm.types import Config

if TYPE_CHECKING:
    from hetcomm.transport.ucx import UcxTransport

__all__ = ["MpiAnswer", "UcxAnswer", "ask_mpi", "ask_ucx"]

_SIZES = {8: 2000, 4096: 1000, 1 << 20: 60, 64 << 20: 4}  # message size in bytes -> round trips timed
_TIMEOUT = 30.0  # seconds, for one message


class UcxAnswer(TypedDict):
    """What two processes measured.

    `lanes` are the transports between them; each timing is a size in bytes with half of its round trip in seconds.
    """

    lanes: list[str]
    timings: list[tuple[int, float]]


class MpiAnswer(TypedDict):
    """What one rank of an MPI job of two sees."""

    rank: int
    nranks: int
    library: str
    path: str


def ask_ucx(config: Config, timeout: float) -> UcxAnswer:
    """Send messages between two processes over UCX.

    Raises:
        RanksFailed: A process failed; the message shows its traceback.
    """
    answers: Sequence[UcxAnswer] = run_ranks(2, ping_pong, config, launcher="spawn", timeout=timeout)
    return answers[0]


def ask_mpi(timeout: float) -> list[MpiAnswer]:
    """Start two ranks with this environment's mpirun and ask each who it is.

    Raises:
        RanksFailed: A rank failed; the message shows its traceback.
        UsageError: There is no mpirun.
    """
    answers: list[MpiAnswer] = run_ranks(2, who_am_i, timeout=timeout)
    return answers


def ping_pong(config: Config) -> UcxAnswer:
    """Exchange messages of several sizes with the other process and time the round trips."""
    from hetcomm.transport.ucx import UcxTransport

    group = this_rank()
    peer = 1 - group.rank
    transport = UcxTransport(config)
    try:
        for other, address in enumerate(group.all_gather(transport.address)):
            transport.connect(other, address)
        memory = memoryview(bytearray(max(_SIZES)))
        timings: list[tuple[int, float]] = []
        for nbytes, times in _SIZES.items():
            _exchange(transport, memory[:nbytes], group.rank, 2)  # pages are touched, endpoints wired
            start = time.perf_counter()
            _exchange(transport, memory[:nbytes], group.rank, times)
            timings.append((nbytes, (time.perf_counter() - start) / times / 2))
        group.barrier()
        return {"lanes": transport.lane_names()[peer], "timings": timings}
    finally:
        transport.close()


def _exchange(transport: UcxTransport, message: memoryview, rank: int, times: int) -> None:
    """`times` round trips; a message's tag is its sender."""
    peer = 1 - rank
    for _ in range(times):
        if rank == 0:
            transport.send_buffer(message, peer, rank, _TIMEOUT)
        transport.recv_buffer(message, peer, peer, _TIMEOUT)
        if rank == 1:
            transport.send_buffer(message, peer, rank, _TIMEOUT)


def who_am_i() -> MpiAnswer:
    """This rank as MPI sees it."""
    from mpi4py import MPI

    with open("/proc/self/maps") as maps:
        paths = sorted({line.split()[-1] for line in maps if "/libmpi" in line})
    library = MPI.Get_library_version().replace("\0", "").strip().partition(",")[0].partition("\n")[0]
    return {
        "rank": MPI.COMM_WORLD.rank,
        "nranks": MPI.COMM_WORLD.size,
        "library": library,
        "path": ", ".join(paths),
    }
