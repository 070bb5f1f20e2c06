"""A communicator whose ranks do not all come to make it while its library blocks in that: a typed error, and soon."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import mpi4py
import pytest

import hetcomm
from hetcomm.testing import RanksFailed, run_ranks

from .scripts import DEADLINE, PATIENCE

TIMEOUT = 4.0
VICTIM = 1


def sabotage(vendor: str, action: Any) -> None:
    """Do something else where this vendor's library would make a communicator."""
    if vendor == "oneccl":
        from hetcomm.vendors import oneccl

        oneccl._CclLibrary.__init__ = lambda *_: action()  # type: ignore[assignment,method-assign]
    else:
        from hetcomm.vendors import mpi

        mpi._MpiLibrary.__init__ = lambda *_: action()  # type: ignore[assignment,method-assign]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stay_away() -> None:
    time.sleep(1.5 * TIMEOUT)


def split_without_one(vendor: str, dies: bool) -> tuple[str, list[int], float]:
    """The error of a split, the ranks that it names, and how long it took."""
    mpi4py.rc.finalize = not dies  # MPI may wait for the dead in it
    comm = hetcomm.init()
    comm.barrier()
    if comm.rank == VICTIM:
        sabotage(vendor, kill if dies else stay_away)
    begun = time.monotonic()
    try:
        comm.split(0)
    except hetcomm.HetcommError as error:
        took = time.monotonic() - begun
        comm.close()
        return type(error).__name__, sorted(error.ranks), took
    return "", [], time.monotonic() - begun


@pytest.mark.parametrize("vendor", ["oneccl", "mpi"])
def test_who_dies_while_a_library_makes_a_communicator_is_named(vendor: str) -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(
            3,
            split_without_one,
            vendor,
            True,
            vendors=[vendor] * 3,
            env=PATIENCE,
            recovery=True,
            timeout=DEADLINE,
        )
    assert set(caught.value.failures) == {VICTIM}, str(caught.value)
    for rank, (kind, ranks, took) in caught.value.results.items():
        assert (kind, ranks) == ("PeerFailureError", [VICTIM]), (rank, kind, ranks)
        assert took < 30, rank


@pytest.mark.slow
def test_who_does_not_come_to_make_a_communicator_costs_no_more_than_the_timeout() -> None:
    env, vendors = {"HETCOMM_TIMEOUT": str(TIMEOUT)}, ["oneccl"] * 2
    for kind, _, took in run_ranks(2, split_without_one, "oneccl", False, vendors=vendors, env=env, timeout=DEADLINE):
        assert kind == "CollectiveTimeoutError"
        assert took < 5 * TIMEOUT
