"""What ranks do that shrink their communicators, most of them without a death; run by `test_shrink`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import mpi4py
import numpy as np

import hetcomm
from hetcomm.communicator import Communicator


def total(comm: Communicator, mine: float, count: int = 5000) -> float:
    """The sum of a number of every rank, which must be the same everywhere in the array."""
    array = np.full(count, mine)
    comm.all_reduce(array)
    assert (array == array[0]).all()
    return float(array[0])


def shapes() -> dict[str, Any]:
    """Communicators of 4 ranks that nobody has died in: all shrink, some stay away, parts, blocks, refusals."""
    told: dict[str, Any] = {}
    with hetcomm.init() as comm:
        me = comm.rank
        request = comm.all_reduce_init(np.ones(4))
        part, pair = comm.split(0, -me), comm.split(me // 2)
        assert part is not None
        assert pair is not None
        total(comm, 1.0)
        whole = comm.shrink()
        told["all of them"] = whole.rank == me, whole.nranks, total(whole, me), comm.closed, whole.closed
        told["refused"] = []
        for use in (comm.shrink, comm.barrier, request.start):
            try:
                use()
            except hetcomm.UsageError as error:
                told["refused"].append("closed" in str(error))
        told["pair"] = total(pair, me)
        reversed_ranks = part.shrink()
        told["a part"] = reversed_ranks.rank, total(reversed_ranks, me)
        if me == 1:
            reversed_ranks.close()
            told["without one"] = None
        else:
            try:
                total(reversed_ranks, me)
            except hetcomm.PlanMismatchError as error:  # rank 1 has closed it
                told["closed by"] = sorted(error.ranks)
            without = reversed_ranks.shrink()
            told["without one"] = without.rank, without.nranks, total(without, me)
            again = without.split(me)
            assert again is not None
            told["then split"] = total(again, me)
    told["closed by the block"] = whole.closed
    return told


def one_stands_still() -> tuple[int, list[float]] | tuple[str, list[int], str]:
    """Rank 1 of 4 is stopped in the middle of calls: the others go on without it, and it is told when it wakes."""
    comm = hetcomm.init()
    me = comm.rank
    pids = np.empty(4, np.int64)
    comm.all_gather(np.array([os.getpid()]), pids)
    array = np.full(300_000, me + 1.0)
    if me == 2:
        os.kill(int(pids[1]), signal.SIGSTOP)
    try:
        while True:
            comm.all_reduce(array, timeout=2)
    except hetcomm.HetcommError as error:
        named, kept = sorted(error.ranks), array.copy()
    if me == 1:
        try:
            comm.shrink()
        except hetcomm.PeerFailureError as error:
            comm.close()
            assert (array == kept).all()
            return "left out", named, str(error)
        raise AssertionError("the others wait for this rank")
    small = comm.shrink(timeout=2)
    sums = [total(small, me + 1.0)]
    small.barrier()
    if small.rank == 0:
        os.kill(int(pids[1]), signal.SIGCONT)
    until, over = time.monotonic() + 2, np.zeros(1)
    while not over[0]:  # what it has to say now meets nobody
        sums.append(total(small, me + 1.0))
        over[0] = time.monotonic() >= until
        small.broadcast(over)
    assert (array == kept).all()
    return small.nranks, sorted(set(sums))


def work_goes_on(victims: tuple[int, ...]) -> tuple[int, int, float, list[str]]:
    """Ranks die while works of all kinds are under way; the others shrink and go on."""
    mpi4py.rc.finalize = False  # MPI may wait for the dead in it
    comm = hetcomm.init()
    me = comm.rank
    arrays = [np.full(100_000, me + 1.0) for _ in range(4)]
    request = comm.all_reduce_init(arrays[3])
    total(comm, 1.0)
    if me in victims:
        os.kill(os.getpid(), signal.SIGKILL)
    works = [comm.all_reduce(array, async_op=True) for array in arrays[:2]]
    works.append(comm.recv(arrays[2], victims[0], async_op=True))
    request.start()
    kinds = []
    for wait in (*(work.wait for work in works), request.wait):
        try:
            wait()
        except hetcomm.PeerFailureError as error:
            kinds.append(f"{type(error).__name__} {sorted(error.ranks)}")
    comm = comm.shrink()
    kept = [array.copy() for array in arrays]
    found = total(comm, me + 1.0), total(comm, me + 1.0, 300_000)
    assert found[0] == found[1]
    assert all((array == before).all() for array, before in zip(arrays, kept, strict=True))
    comm.close()
    return comm.rank, comm.nranks, found[0], kinds
