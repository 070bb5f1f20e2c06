"""Ranks that wait for one another in different communicators, and what a broken communicator tells its next call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm.testing import run_ranks

from .scripts import DEADLINE

SECONDS = 1.0


def wait_crosswise(same_wait: bool) -> tuple[str, str]:
    """Rank 0 calls an all_reduce on the whole, rank 1 a broadcast on a part of the same ranks in another order."""
    with hetcomm.init() as comm:
        part = comm.split(0, key=-comm.rank)
        assert part is not None
        comm.barrier()
        seconds = SECONDS if same_wait or comm.rank == 0 else 20 * SECONDS
        try:
            if comm.rank == 0:
                comm.all_reduce(np.ones(3), timeout=seconds)
            else:
                part.broadcast(np.ones(5, np.float32), root=1, timeout=seconds)
        except hetcomm.HetcommError as error:
            told = type(error).__name__, str(error)
        else:
            told = "none", ""
        part.close()
    return told


@pytest.mark.parametrize("same_wait", [True, False], ids=["both time out", "one times out"])
def test_both_calls_are_named(same_wait: bool) -> None:
    told: list[tuple[str, str]] = run_ranks(2, wait_crosswise, same_wait, vendors=("mpi", "ucx"), timeout=DEADLINE)
    for rank, (kind, text) in enumerate(told):
        assert kind in ("CollectiveTimeoutError", "DepartedError", "PlanMismatchError"), (rank, text)
        assert "all_reduce sum 3 x float64" in text, rank
        assert "broadcast 5 x float32" in text, rank
        assert "communicator of ranks 0, 1 of the job" in text, rank
    if not same_wait:
        assert [kind for kind, _ in told] == ["CollectiveTimeoutError", "DepartedError"]


def begun_by_others() -> list[tuple[str, str]]:
    """Rank 2 calls something else than the others, asynchronously, and waits for what it calls next."""
    found = []

    def attempt(call: Any) -> None:
        try:
            call()
        except hetcomm.HetcommError as error:
            found.append((type(error).__name__, str(error)))

    with hetcomm.init() as comm:
        x, y = np.ones(9), np.ones(4)
        for op in ("sum", "max"):
            comm.all_reduce(x, op=op)
            comm.all_reduce(x, op=op)
        comm.barrier()
        work = comm.all_reduce(x, op="max" if comm.rank == 2 else "sum", async_op=True)
        assert work is not None
        attempt(lambda: comm.all_reduce(y))
        attempt(work.wait)
        attempt(lambda: comm.all_reduce(y))
    return found


def test_the_call_after_a_mismatch_that_nobody_waited_for_names_both_sides() -> None:
    for rank, found in enumerate(run_ranks(3, begun_by_others, vendors=("ucx",) * 3, timeout=DEADLINE)):
        assert found[0][0] == "PlanMismatchError", (rank, found)
        assert "sum 9 x float64" in found[0][1], rank
        assert "max 9 x float64" in found[0][1], rank
        assert found[2][0] == "TransportError", (rank, found)
