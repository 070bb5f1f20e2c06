"""What ranks do that lose one another and go on; run by `test_elastic`."""

from __future__ import annotations

import os
import signal

import mpi4py
import numpy as np

import hetcomm
from hetcomm import elastic
from hetcomm.communicator import Communicator


def count(victims: dict[int, int], stops: int) -> tuple[int, int, float, list[object], int]:
    """Add up in steps; `victims` says which rank dies in which step. Ranks commit in every other step only."""
    mpi4py.rc.finalize = False  # MPI may wait for the dead in it
    with hetcomm.init() as comm:
        me = comm.rank
        state = elastic.State(total=np.zeros(1000), step=0, history=[])
        calls = 0

        def work(comm: Communicator) -> float:
            nonlocal calls
            calls += 1
            while state.step < stops:
                if victims.get(me) == state.step:
                    os.kill(os.getpid(), signal.SIGKILL)
                array = np.full(1000, 1.0 / comm.nranks)
                comm.all_reduce(array)
                state.total += array
                state.step += 1
                state.history = [*state.history, state.step]
                if state.step % 2 == 0:
                    state.commit()
            return float(state.total.sum())

        found = elastic.run(work, comm, state)
        return me, state.step, found, state.history, calls
