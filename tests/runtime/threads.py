"""Whole communicators in one process: a thread for each rank, the in-process transport, and the `ucx` vendor.

Everything above the transport is the real thing, so misuse can be tested by the hundred without processes.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hetcomm import communicator
from hetcomm.communicator import Communicator
from hetcomm.errors import CollectiveTimeoutError, HetcommError
from hetcomm.execution.tags import Contexts
from hetcomm.job.job import Job
from hetcomm.job.wiring import wire
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.transport.inproc import InprocNetwork
from hetcomm.types import Config
from hetcomm.waiting.waiting import Pump

DEADLINE = 100.0


def clusters(*sizes: int) -> Topology:
    """Clusters of consecutive ranks, all of them border ranks, of the one vendor that runs in threads."""
    made, first = [], 0
    for number, size in enumerate(sizes):
        ranks = range(first, first + size)
        made.append(Cluster(f"c{number}", "ucx", ranks, tuple(Uplink(rank) for rank in ranks)))
        first += size
    return Topology(tuple(made))


def caught(call: Callable[[], object]) -> HetcommError | None:
    """The error that a call raises, or None."""
    try:
        call()
    except HetcommError as error:
        return error
    return None


def works(comm: Communicator) -> bool:
    """Whether the next call gives the right sum."""
    array = np.full(5, comm.rank + 1.0)
    comm.all_reduce(array)
    return bool((array == comm.nranks * (comm.nranks + 1) / 2).all())


class Meeting:
    """Where the threads of one job exchange payloads; the twin of an MPI communicator."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rounds: dict[tuple[Sequence[int], int], dict[int, bytes]] = defaultdict(dict)

    def exchange(self, ranks: Sequence[int], number: int, rank: int, payload: bytes) -> list[bytes]:
        with self._changed:
            said = self._rounds[ranks, number]
            said[rank] = payload
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: len(said) == len(ranks), DEADLINE):
                raise CollectiveTimeoutError("a thread did not come to a meeting")
            return [said[member] for member in ranks]


class ThreadGroup:
    """Some threads of a job as a `JobGroup`."""

    def __init__(self, meeting: Meeting, ranks: tuple[int, ...], me: int, rounds: dict[tuple[int, ...], int]) -> None:
        self._meeting, self._ranks, self._me, self._rounds = meeting, ranks, me, rounds
        self.rank = ranks.index(me)
        self.nranks = len(ranks)

    def all_gather(self, payload: bytes) -> list[bytes]:
        number = self._rounds[self._ranks]
        self._rounds[self._ranks] += 1
        return self._meeting.exchange(self._ranks, number, self._me, payload)

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        return self.all_gather(payload or b"")[root]

    @property
    def timeout(self) -> float:
        return DEADLINE

    def wait(self, test: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + DEADLINE
        while not test():
            assert time.monotonic() < end, what
            time.sleep(1e-4)

    def barrier(self) -> None:
        self.all_gather(b"")

    def close(self) -> None:
        return None

    def subgroup(self, ranks: Sequence[int]) -> ThreadGroup:
        return ThreadGroup(self._meeting, tuple(self._ranks[rank] for rank in ranks), self._me, self._rounds)


def run_threads(
    topology: Topology,
    function: Callable[[Communicator], Any],
    *,
    timeout: float = DEADLINE,
    seed: int | None = None,
    eager_nbytes: int = 1024,
    close: bool = True,
) -> list[Any]:
    """`function(communicator)` on every rank; the results in rank order. A thread's traceback is raised here."""
    network = InprocNetwork(topology.nranks, seed=seed, eager_nbytes=eager_nbytes)
    meeting = Meeting()
    results: list[Any] = [None] * topology.nranks
    failures: list[str] = []

    def body(rank: int) -> None:
        try:
            group = ThreadGroup(meeting, tuple(range(topology.nranks)), rank, defaultdict(int))
            transport = network.transports[rank]
            job = Job(Config(timeout=timeout), transport, group, topology, Contexts(), Pump(transport))
            parts = wire(job, group, range(topology.nranks), topology)
            comm = Communicator(parts, _token=communicator._TOKEN)
            results[rank] = function(comm)
            if close:
                comm.close()
        except BaseException:
            failures.append(f"--- rank {rank} ---\n{traceback.format_exc()}")

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(topology.nranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    stacks = sys._current_frames()
    for rank, thread in enumerate(threads):
        if thread.is_alive():
            failures.append(
                f"--- rank {rank} did not end ---\n{''.join(traceback.format_stack(stacks[thread.ident or 0]))}"
            )
    if failures:
        raise AssertionError("\n".join(failures))
    return results
