"""What the ranks of `test_offers` do."""

from __future__ import annotations

import os
import signal
from typing import Any

import mpi4py
import numpy as np

import hetcomm
from hetcomm.errors import HetcommError

SIZES = [3, 1000, 4096, 20_000, 300_000]


def every_collective() -> list[str]:
    """The collectives of long and short vectors, on arrays that are shared here and there; what was wrong."""
    wrong: list[str] = []
    with hetcomm.init() as comm:
        me, n = comm.rank, comm.nranks

        def check(name: str, got: Any, wanted: Any) -> None:
            if not np.array_equal(got, wanted):
                wrong.append(f"rank {me}: {name}, {count} elements, turn {turn}")

        for count in SIZES:
            for turn in range(4):
                make = hetcomm.shared_empty if turn % 2 or (me + turn) % 3 == 0 else np.empty
                whole, other, block = (make(each, np.float32) for each in (n * count, n * count, count))
                given = [(np.arange(n * count) * 3 + 5 * rank + turn) % 11 for rank in range(n)]
                parts = [each.reshape(n, count) for each in given]
                whole[:] = given[me]
                comm.all_reduce(whole, other)
                check("all_reduce", other, sum(given))
                comm.reduce_scatter(whole, block)
                check("reduce_scatter", block, sum(given).reshape(n, count)[me])
                comm.all_to_all(whole, other)
                check("all_to_all", other, np.concatenate([each[me] for each in parts]))
                comm.broadcast(whole, turn % n)
                check("broadcast", whole, given[turn % n])
                block[:] = parts[me][0]
                comm.all_gather(block, other)
                check("all_gather", other, np.concatenate([each[0] for each in parts]))
                whole[:] = given[me]
                comm.all_reduce(whole)
                check("all_reduce in place", whole, sum(given))
    return wrong


def a_rank_dies() -> str:
    """The last rank kills itself after some calls on shared arrays; what the others are told."""
    mpi4py.rc.finalize = False  # MPI may wait for the dead in it
    comm = hetcomm.init()
    given, got = hetcomm.shared_empty(1 << 20, np.float32), hetcomm.shared_empty(1 << 20, np.float32)
    given[:] = 1
    try:
        for turn in range(1000):
            if comm.rank == comm.nranks - 1 and turn == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            comm.all_reduce(given, got)
    except HetcommError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        comm.close()
    return "nothing"
