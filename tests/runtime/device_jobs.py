"""What the ranks of `test_streams_processes` run: real processes, real UCX, fake devices with threads of their own.

A rank's role says what it is: `fake` has a device and a vendor that works in streams (MPI does what the streams come
to), `ucx` has a device and hetcomm's own programs, `mpi` has host arrays.
"""

from __future__ import annotations

import itertools
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm import devices
from hetcomm._ext import ucp
from hetcomm.communicator import Communicator
from hetcomm.errors import HetcommError, PeerFailureError, PlanMismatchError, UsageError
from hetcomm.job import job
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.testing import FakeArray, FakeDevice, HostedStreamVendor, WatchedTransport, reference, this_rank
from hetcomm.types import Config, DataType, ReduceKind, has_meaning
from hetcomm.vendors import registry

from .invoke import Invocation, equal, inputs_of, invocation

N = 1000


class Rank:
    """This process: its device, or none, and what it did.

    Args:
        role: See the text of the module.
        seed: Of the device.
    """

    def __init__(self, role: str, seed: int) -> None:
        self.group = this_rank()
        self.role = role
        self.device = FakeDevice(seed + self.group.rank, background=True) if role != "mpi" else None
        self.stream = self.device.open_stream() if self.device is not None else 0

    @contextmanager
    def communicator(self) -> Iterator[Communicator]:
        """A job on this device; what it finds wrong with the device's work is raised at its end."""
        vendor, open_transport, device = registry.vendor, job._open_transport, self.device

        def with_fake(name: str) -> Any:
            return HostedStreamVendor(vendor("mpi"), device) if name == "fake" and device is not None else vendor(name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "vendor", with_fake)
            if device is not None:
                patch.setattr(devices, "open_device", lambda kind: device)
                patch.setattr(job, "_open_transport", lambda *how: WatchedTransport(open_transport(*how), device))
            with hetcomm.init(config=Config(vendor=self.role, timeout=20.0)) as comm:
                yield comm
        if device is not None:
            assert not device.violations, "\n".join(map(str, device.violations[:5]))
            assert not device.unprepared, device.unprepared
            assert device.closed_gates == 0

    def array(self, values: Any) -> Any:
        """Where this rank has its arrays."""
        return self.device.array(values) if self.device is not None else np.array(values)

    def held(self) -> Any:
        """Work on the stream that takes until it is removed."""
        assert self.device is not None
        return self.device.obstacle(self.stream)


def mine(rank: int) -> Any:
    """The input of a rank."""
    return np.arange(N, dtype="i4") * (rank + 1)


def total(nranks: int) -> Any:
    """The sum of all inputs."""
    return sum(mine(rank) for rank in range(nranks))


# ---- scenarios


def returns_at_once(rank: Rank) -> None:
    """The call returns while earlier work on the stream is held; the user overwrites its arrays behind the call."""
    with rank.communicator() as comm:
        expected = total(comm.nranks)
        for _ in range(3):
            array = rank.array(np.zeros(N, "i4"))
            if rank.device is None:
                array[:] = mine(comm.rank)
                work = comm.all_reduce(array, async_op=True)
                rank.group.barrier()
                work.wait()
                assert np.array_equal(array, expected)
                continue
            obstacle = rank.held()
            array.put(mine(comm.rank), rank.stream)
            assert comm.all_reduce(array, stream=rank.stream) is None
            seen = array.snapshot(rank.stream)
            array.put(7, rank.stream)
            rank.group.barrier()  # all ranks have returned from the call, none of which has begun
            assert not seen.done
            obstacle.remove()
            assert (array.get(rank.stream) == 7).all()
            assert np.array_equal(seen.values, expected)


def many_at_once(rank: Rank) -> None:
    """All collectives, one behind the other on one stream, without the host waiting for any."""
    made: list[tuple[Invocation, Any, Any]] = []
    with rank.communicator() as comm:
        for turn, kind in enumerate(kind for kind in CollectiveKind for _ in range(3)):
            dtype = list(DataType)[turn % len(DataType)]
            op = [ReduceKind.SUM, ReduceKind.AVG, ReduceKind.BXOR][turn % 3] if kind.reduces else None
            if op is not None and (op not in kind.ops or not has_meaning(op, dtype)):
                op = ReduceKind.LXOR if dtype is DataType.BOOL else ReduceKind.PROD
            root = turn % comm.nranks if kind.has_root else None
            collective = Collective(kind, comm.nranks, (5, 600, 0)[turn % 3], dtype, op, root)
            inputs = inputs_of(collective, turn)
            call = invocation(collective.with_in_place(turn % 2 == 0), comm.rank, inputs[comm.rank])
            made.append((call, reference(collective, inputs)[comm.rank], submit(rank, comm, call)))
        for _, _, seen in made:
            if rank.device is not None and seen is not None:
                rank.device.synchronize(rank.stream)
    for call, expected, seen in made:
        if seen is not None:
            call.target[:] = seen.values
        assert equal(call.output(), expected), call


def submit(rank: Rank, comm: Communicator, call: Invocation) -> Any:
    """Make a call on this rank's arrays: its input is written late, its output is read right behind it."""
    if rank.device is None:
        getattr(comm, call.name)(*call.args)
        return None
    arrays: dict[int, FakeArray] = {}
    for host in (call.source, call.target):
        array = arrays.setdefault(id(host), rank.device.array(np.zeros(host.shape, host.dtype)))
        array.put(host, rank.stream)
    args = [arrays.get(id(arg), arg) for arg in call.args]
    getattr(comm, call.name)(*args, stream=rank.stream)
    seen = arrays[id(call.target)].snapshot(rank.stream)
    for array in arrays.values():
        array.put(np.zeros(array.shape, array.dtype), rank.stream)
    return seen


def works(rank: Rank) -> None:
    """`wait` lets the current stream wait, `synchronize` the host."""
    with rank.communicator() as comm:
        expected = total(comm.nranks)
        array = rank.array(mine(comm.rank))
        if rank.device is None:
            for _ in range(2):
                array[:] = mine(comm.rank)
                comm.all_reduce(array)
                assert np.array_equal(array, expected)
            return
        obstacle = rank.held()
        work = comm.all_reduce(array, stream=rank.stream, async_op=True)
        with rank.device.on(rank.device.open_stream()) as other:
            work.wait()
            seen = array.snapshot()
        assert not seen.done
        assert not work.done()
        obstacle.remove()
        rank.device.synchronize(other)
        assert np.array_equal(seen.values, expected)

        array.put(mine(comm.rank), rank.stream)
        obstacle, called = rank.held(), threading.Event()
        work = comm.all_reduce(array, stream=rank.stream, async_op=True)
        threading.Thread(target=lambda: called.wait() and obstacle.remove()).start()
        called.set()
        work.synchronize()
        assert work.done()
        assert work.exception() is None
        assert np.array_equal(array.get(rank.device.open_stream()), expected), "the host has waited: no stream must"


def messages(rank: Rank) -> None:
    """Messages between neighbours, written late and read behind the call; sends and receives in a group."""
    with rank.communicator() as comm:
        to, source = (comm.rank + 1) % comm.nranks, (comm.rank - 1) % comm.nranks
        for number in range(4):
            out, into = rank.array(np.zeros(N, "i4")), rank.array(np.zeros(N, "i4"))
            how = {} if rank.device is None else {"stream": rank.stream}
            if rank.device is None:
                out[:] = mine(comm.rank) + number
            else:
                obstacle = rank.held()
                out.put(mine(comm.rank) + number, rank.stream)
                threading.Timer(0.002, obstacle.remove).start()
            with comm.group():
                comm.recv(into, source, **how)
                comm.send(out, to, **how)
            got = into.get(rank.stream) if rank.device is not None else into
            assert np.array_equal(got, mine(source) + number)


def long_collectives(rank: Rank) -> None:
    """Messages of any length between device and host ranks, of which only those between host ranks are offers."""
    before = ucp.refused()
    made: list[tuple[Invocation, Any, Any]] = []
    with rank.communicator() as comm:
        for turn, (kind, count) in enumerate(itertools.product(CollectiveKind, (1100, 80_000))):
            op = ReduceKind.SUM if kind.reduces else None
            root = turn % comm.nranks if kind.has_root else None
            collective = Collective(kind, comm.nranks, count, DataType.INT32, op, root)
            inputs = inputs_of(collective, turn)
            call = invocation(collective.with_in_place(turn % 2 == 0), comm.rank, inputs[comm.rank])
            made.append((call, reference(collective, inputs)[comm.rank], submit(rank, comm, call)))
        for _, _, seen in made:
            if rank.device is not None and seen is not None:
                rank.device.synchronize(rank.stream)
        taken = comm._parts.job.transport.statistics()["taken"]
    for call, expected, seen in made:
        if seen is not None:
            call.target[:] = seen.values
        assert equal(call.output(), expected), call
    assert ucp.refused() == before
    assert taken == 0 if rank.device is not None else taken > 0


def capture_is_refused(rank: Rank) -> None:
    """A captured stream is refused on every rank, and the communicator stays usable."""
    with rank.communicator() as comm:
        array = rank.array(mine(comm.rank))
        if rank.device is not None:
            rank.device.captured.add(rank.stream)
        with pytest.raises(UsageError, match="captured"):
            comm.all_reduce(array, **({} if rank.device is None else {"stream": rank.stream}))
        if rank.device is None:
            comm.all_reduce(array)
            assert np.array_equal(array, total(comm.nranks))
            return
        rank.device.captured.clear()
        comm.all_reduce(array, stream=rank.stream)
        assert np.array_equal(array.get(rank.stream), total(comm.nranks))


def failing(rank: Rank, call: Callable[[Communicator, Any], Any], error: type[HetcommError]) -> None:
    """A call that goes wrong after it has returned: its stream goes on, and the next call raises."""
    with rank.communicator() as comm:
        array = rank.array(np.zeros(N, "i4"))
        if rank.device is None:
            with pytest.raises(error):
                call(comm, array)
            return
        with rank.device.on(rank.stream):
            obstacle = rank.held()
            work = call(comm, array)
            assert work is None
            array.put(3)
            obstacle.remove()
            assert (array.get() == 3).all(), "the gate is open, and nothing is written any more"
            with pytest.raises(error):
                while True:
                    comm.barrier()


def another_plan(rank: Rank) -> None:
    """One rank passes another count."""

    def call(comm: Communicator, array: Any) -> Any:
        wrong = rank.array(np.zeros(N + 1, "i4")) if comm.rank == comm.nranks - 1 else array
        return comm.all_reduce(wrong)

    failing(rank, call, PlanMismatchError)


def a_rank_leaves(rank: Rank) -> None:
    """One rank leaves with an exception while the others wait for it."""
    if rank.group.rank == 0:
        with pytest.raises(KeyError), rank.communicator():
            raise KeyError("this rank has had enough")
        return
    failing(rank, lambda comm, array: comm.all_reduce(array), PeerFailureError)


def close_with_calls_under_way(rank: Rank) -> None:
    """`close` waits for the calls; their results are there for whoever reads on their stream."""
    seen = []
    with rank.communicator() as comm:
        for _ in range(5):
            array = rank.array(mine(comm.rank))
            comm.all_reduce(array, **({} if rank.device is None else {"stream": rank.stream}))
            seen.append((array, array.snapshot(rank.stream) if rank.device is not None else None))
        nranks = comm.nranks
    for array, snapshot in seen:
        if snapshot is not None:
            rank.device.synchronize(rank.stream)  # type: ignore[union-attr]
        assert np.array_equal(array if snapshot is None else snapshot.values, total(nranks))


SCENARIOS: tuple[Callable[[Rank], None], ...] = (
    returns_at_once,
    many_at_once,
    works,
    messages,
    long_collectives,
    capture_is_refused,
    another_plan,
    a_rank_leaves,
    close_with_calls_under_way,
)


def run(roles: Sequence[str], only: str = "") -> dict[str, str]:
    """All scenarios, one job each; the traceback of each that failed."""
    said: dict[str, str] = {}
    for seed, scenario in enumerate(SCENARIOS):
        if only and scenario.__name__ != only:
            continue
        rank = Rank(roles[this_rank().rank], seed)
        try:
            scenario(rank)
        except BaseException:
            said[scenario.__name__] = traceback.format_exc()
        if rank.device is not None:
            rank.device.close()
        rank.group.barrier()
    return said
