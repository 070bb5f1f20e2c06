"""What ranks do whose communicator is aborted by another thread; run by `test_abort`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import hetcomm
from hetcomm.testing import this_rank

AFTER = 0.3  # seconds that the call has been blocked
CALLS = (
    "all_reduce",
    "known all_reduce",
    "broadcast",
    "barrier",
    "send",
    "recv",
    "split",
    "async",
    "persistent",
    "group",
)


def blocked(name: str, count: int) -> tuple[str, str, list[int], float, bool]:
    """Rank 0 blocks in a call that the other makes too late, and a thread of it aborts; what every rank is told.

    Returns:
        The error's kind, text and ranks; seconds from the abort to the error; whether no array was written afterwards.
    """
    group, comm = this_rank(), hetcomm.init()
    array, got = np.ones(count, np.float32), np.zeros(count, np.float32)
    request: Any = None
    for _ in range(3):
        if name.startswith("known") or name == "async":
            comm.all_reduce(array, op="max")
    if name == "persistent":
        request = comm.all_reduce_init(array, op="max")
        request.start()
        request.wait()
    comm.barrier()
    aborted = [0.0]

    def abort() -> None:
        time.sleep(AFTER)
        group.barrier()
        aborted[0] = time.monotonic()
        comm.abort()

    calls: dict[str, Callable[[], Any]] = {
        "broadcast": lambda: comm.broadcast(got, root=1),
        "barrier": comm.barrier,
        "send": lambda: comm.send(np.ones(1 << 20), 1),
        "recv": lambda: comm.recv(got, 1),
        "split": lambda: comm.split(0),
        "async": lambda: comm.all_reduce(array, op="max", async_op=True).wait(),  # type: ignore[union-attr]
        "persistent": lambda: (request.start(), request.wait()),
        "group": lambda: _grouped(comm, array),
    }
    thread = threading.Thread(target=abort)
    error: hetcomm.HetcommError | None = None
    if comm.rank == 0:
        thread.start()
    try:
        if comm.rank:
            group.barrier()  # rank 0 is about to abort; a library may want this rank's part for that
            time.sleep(4 * AFTER)
            aborted[0] = time.monotonic()
        call = calls.get(name, lambda: comm.all_reduce(array, op="max"))
        call = comm.barrier if comm.rank and name in ("send", "recv") else call
        for _ in range(1 + comm.rank):  # rank 0 may have done its part of the first
            call()
    except hetcomm.HetcommError as caught:
        error = caught
    seconds = time.monotonic() - aborted[0]
    if comm.rank == 0:
        thread.join()
    before = array.copy(), got.copy()
    comm.abort()
    comm.close()
    comm.abort()
    time.sleep(0.1)
    same = all((one == other).all() for one, other in zip(before, (array, got), strict=True))
    return type(error).__name__, str(error), sorted(error.ranks) if error is not None else [], seconds, same


def _grouped(comm: hetcomm.Communicator, array: Any) -> None:
    with comm.group():
        comm.all_reduce(array, op="max")
        comm.barrier()
