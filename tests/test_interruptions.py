"""A call that is interrupted while a vendor's library runs it: the communicator is broken, and the array left alone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

import numpy as np
import pytest

import hetcomm
from hetcomm.testing import run_ranks
from hetcomm.waiting.waiting import wait

from .scripts import DEADLINE, PATIENCE

COUNT = 3_000_000
ENV = {"HETCOMM_INLINE_BYTES": "0", **PATIENCE}


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise, if the process is in the loop that waits for a work: the timer goes on until it is."""
    while frame is not None:
        if frame.f_code is wait.__code__:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt
        frame = frame.f_back


def call_until_interrupted(seconds: float, late: bool) -> tuple[str, list[int], bool, bool]:
    """What ended the calls, the ranks it names, whether the communicator is broken, and whether the array stays so."""
    comm = hetcomm.init()
    array = np.zeros(COUNT, np.float32)
    ended, named = "", list[int]()
    signal.signal(signal.SIGALRM, interrupt)
    comm.barrier()
    if late and comm.rank != 0:
        time.sleep(4 * seconds)
    try:
        for turn in range(1000):
            if comm.rank == 0 and turn == 2:
                signal.setitimer(signal.ITIMER_REAL, seconds, 0.001)
            array += 1
            work = comm.all_reduce(array, op="max", async_op=True)
            assert work is not None
            work.wait()
            if late and comm.rank != 0 and turn == 1:
                time.sleep(4 * seconds)
    except KeyboardInterrupt:
        ended = "interrupted"
    except hetcomm.HetcommError as error:
        ended, named = type(error).__name__, sorted(error.ranks)
    before = array.copy()
    broken = "broken" in repr(comm)
    end = time.monotonic() + 0.5
    probe = world_probe()
    while time.monotonic() < end:  # what moves the libraries of this process must move nothing into the array
        probe()
        time.sleep(1e-4)
    kept = bool((before == array).all())
    comm.close()
    return ended, named, broken, kept


def world_probe() -> Callable[[], object]:
    from mpi4py import MPI

    probe: Callable[[], object] = MPI.COMM_WORLD.Iprobe
    return probe


@pytest.mark.parametrize(
    ("vendor", "late"),
    [
        pytest.param("mpi", False, id="mpi, within"),
        pytest.param("mpi", True, id="mpi, before the others come", marks=pytest.mark.slow),
        pytest.param("oneccl", False, id="oneccl, within", marks=pytest.mark.slow),
        pytest.param("oneccl", True, id="oneccl, before the others come", marks=pytest.mark.slow),
        pytest.param("gloo", False, id="gloo, within", marks=[pytest.mark.slow, pytest.mark.gloo]),
        pytest.param("gloo", True, id="gloo, before the others come", marks=pytest.mark.gloo),
    ],
)
def test_nothing_is_written_after_an_interruption(vendor: str, late: bool) -> None:
    seconds = 0.3 if late else 0.003
    told = run_ranks(2, call_until_interrupted, seconds, late, vendors=[vendor] * 2, env=ENV, timeout=DEADLINE)
    assert told[0] == ("interrupted", [], True, True)
    kind, named, broken, kept = told[1]
    assert (kind, named) == ("PeerFailureError", [0])
    assert broken
    assert kept
