"""What the ranks of the vendor tests run; every function but the helpers is a target of `run_ranks`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import pytest

from hetcomm._conformance import vendor as suite
from hetcomm.errors import VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.testing import this_rank
from hetcomm.types import DataType, Memory, ReduceKind
from hetcomm.vendors.base import Capabilities, Group, Operation, VendorCommunicator
from hetcomm.vendors.registry import vendor

DEADLINE = 60.0


class SubGroup:
    """Some ranks of a group; all ranks of the group must make the same calls, each on its own part."""

    def __init__(self, whole: Group, members: Sequence[int]) -> None:
        self._whole = whole
        self._members = members
        self.rank = members.index(whole.rank)
        self.nranks = len(members)

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        everything = self._whole.all_gather(payload)
        return [everything[member] for member in self._members]

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
        self._whole.barrier()


def conformance(name: str, limit: int | None = None, part: int = 1) -> int:
    """The suite, on a vendor that cuts calls of more than `limit` elements if given.

    Of the calls that are alike but for count, root and place it makes one of `part`, drawn by a seed, and at least one;
    with a limit only those that are cut.
    """
    batches = suite._batches

    def some(nranks: int, capabilities: Capabilities) -> Iterator[list[Collective]]:
        rng = random.Random(part)
        for batch in batches(nranks, capabilities):
            fit = [collective for collective in batch if limit is None or collective.count > limit]
            drawn = rng.sample(range(len(fit)), -(-len(fit) // part))
            yield [fit[index] for index in sorted(drawn)]

    suite._batches = some
    if limit is not None:
        from hetcomm.vendors import mpi

        mpi._LIMIT = limit
    group = this_rank()
    found = vendor(name)
    return suite.check_vendor(found.create, group, found.capabilities)


def make(name: str, group: Group | None = None) -> VendorCommunicator:
    """A communicator of a library."""
    return vendor(name).create(group or this_rank())


def all_reduce(comm: VendorCommunicator, array: numpy.ndarray[Any, Any]) -> Operation:
    """Start the sum in place of a float64 array."""
    collective = Collective(
        CollectiveKind.ALL_REDUCE, comm.nranks, array.size, DataType.FLOAT64, ReduceKind.SUM, in_place=True
    )
    return comm.start(collective, None, Memory(array.ctypes.data, array.size, DataType.FLOAT64, owner=array))


def finish(operation: Operation) -> None:
    """Poll until complete."""
    end = time.monotonic() + 100
    while not operation.test():
        os.sched_yield()
        assert time.monotonic() < end, "not complete after 100 s"


def two_clusters(name: str) -> list[float]:
    """Two groups of one library in one job, each with a home and a border communicator over the same ranks."""
    whole = this_rank()
    half = whole.nranks // 2
    members = range(half) if whole.rank < half else range(half, whole.nranks)
    group = SubGroup(whole, members)
    home, border = make(name, group), make(name, group)
    arrays = [numpy.full(1 + 5000 * (i % 3), float(whole.rank + i)) for i in range(8)]
    operations = [all_reduce((home, border)[i % 2], array) for i, array in enumerate(arrays)]
    for operation in operations[whole.rank :] + operations[: whole.rank]:
        finish(operation)
    sums = [float(sum(member + i for member in members)) for i in range(8)]
    assert all((array == due).all() for array, due in zip(arrays, sums, strict=True))
    for comm in (home, border):
        finish(all_reduce(comm, numpy.ones(1)))
        comm.close()
    return sums


kept: list[object] = []


def left_open(name: str) -> float:
    """A communicator that is still open when the process ends."""
    comm = make(name)
    array = numpy.full(1000, 1.0)
    finish(all_reduce(comm, array))
    kept.append(comm)
    return float(array[0])


def pid_of_left_open(name: str) -> int:
    """As `left_open`; returns who this was."""
    left_open(name)
    return os.getpid()


def unfinished_in_every_way(name: str) -> list[str]:
    """Three communicators, one after another, on which something is never completed; the last is left to the exit."""
    return [unfinished(name, end) for end in ("abort", "close", "exit")]


def unfinished(name: str, end: str) -> str:
    """Rank 0 has started what the others never will; `end` says how it goes on."""
    group = this_rank()
    comm = make(name)
    if group.rank == 0:
        array = numpy.ones(100_000)
        operation = all_reduce(comm, array)
        del array
        assert not any(operation.test() for _ in range(100))
    if end == "abort":
        comm.abort()
        if group.rank == 0:
            with pytest.raises(VendorError, match="aborted while this was under way"):
                operation.test()
    if end == "exit" or (end == "close" and group.rank != 0):
        kept.append(comm)  # closing is collective, and rank 0 only drops its end
    else:
        comm.close()
    group.barrier()
    return repr(comm)


def beyond_int(name: str) -> list[int]:
    """More than 2^31 elements, in place."""
    comm = make(name)
    count = 2**31 + 3
    array = numpy.full(count, 1 + comm.rank, "i1")
    memory = Memory(array.ctypes.data, count, DataType.INT8, owner=array)
    root = comm.nranks - 1
    collective = Collective(CollectiveKind.BROADCAST, comm.nranks, count, DataType.INT8, root=root, in_place=True)
    finish(comm.start(collective, None, memory))
    values = [int(array.min()), int(array.max())]
    op = ReduceKind.MAX
    collective = Collective(CollectiveKind.ALL_REDUCE, comm.nranks, count, DataType.INT8, op, in_place=True)
    array[-1] = 50 + comm.rank
    finish(comm.start(collective, None, memory))
    comm.close()
    return [*values, int(array[0]), int(array[-1])]


def wrong_arguments(name: str) -> list[str]:
    """The messages of calls that do not fit the communicator."""
    comm = make(name)
    array = numpy.zeros(4)
    fits = Memory(array.ctypes.data, 4, DataType.FLOAT64, owner=array)
    messages = []
    for nranks, memory in ((comm.nranks + 1, fits), (comm.nranks, fits.part(0, 3)), (comm.nranks, None)):
        op = ReduceKind.SUM
        collective = Collective(CollectiveKind.ALL_REDUCE, nranks, 4, DataType.FLOAT64, op, in_place=True)
        with pytest.raises(VendorError) as caught:
            comm.start(collective, None, memory)
        messages.append(str(caught.value))
    finish(all_reduce(comm, numpy.ones(3)))  # it is usable after a refusal
    comm.close()
    return messages


def not_one_world() -> str:
    """Ranks that `mpirun` did not start, each in an MPI world of its own."""
    with pytest.raises(VendorError) as caught:
        make("mpi")
    return str(caught.value)


def finalised() -> tuple[str, str]:
    """MPI has been used and finalised by the program itself."""
    from mpi4py import MPI

    MPI.Finalize()
    reason = vendor("mpi").availability().reason
    with pytest.raises(VendorError) as caught:
        make("mpi")
    return reason, str(caught.value)


def no_library() -> str:
    """oneCCL is missing on rank 1 only; all ranks hear of it."""
    from hetcomm.vendors import oneccl

    if this_rank().rank == 1:
        oneccl._LIBRARY = "libccl-that-is-not-there.so"
    with pytest.raises(VendorError) as caught:
        make("oneccl")
    return str(caught.value)


def silent_start() -> tuple[dict[str, str], int]:
    """The variables that oneCCL was given, and how much it printed meanwhile."""
    import tempfile

    with tempfile.TemporaryFile() as output:
        saved = os.dup(1), os.dup(2)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            make("oneccl").close()
        finally:
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
        printed = output.seek(0, os.SEEK_END)
    return {name: value for name, value in os.environ.items() if name.startswith(("CCL_", "FI_"))}, printed


def unlucky() -> tuple[str, str]:
    """What rank 0 is told when rank 1 names an interface that is not there, and when rank 1 dies in a call."""
    rank = this_rank().rank
    if rank == 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "nowhere0"
    with pytest.raises(VendorError) as misnamed:
        make("gloo")
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    comm = make("gloo")
    if rank == 1:
        os._exit(1)
    with pytest.raises(VendorError) as died:
        finish(all_reduce(comm, numpy.ones(1000)))
    assert "aborted" in repr(comm)
    comm.close()
    return str(misnamed.value), str(died.value)


def many_under_way(name: str) -> int:
    """Broadcasts and sums, big and small, on three communicators at once, asked for in another order on each rank."""
    group = this_rank()
    comms = [make(name) for _ in range(3)]
    started = []
    for number in range(120):
        comm, array = comms[number % 3], numpy.full(1 + number % 5 * 20_000, float(number + group.rank))
        if number % 2:
            started.append((all_reduce(comm, array), array, float(3 * number + 3)))
            continue
        collective = Collective(
            CollectiveKind.BROADCAST, 3, array.size, DataType.FLOAT64, root=number % 3, in_place=True
        )
        memory = Memory(array.ctypes.data, array.size, DataType.FLOAT64, owner=array)
        started.append((comm.start(collective, None, memory), array, float(number + number % 3)))
    for operation, array, due in started[:: 1 if group.rank else -1]:
        finish(operation)
        assert (array == due).all()
    for comm in comms:
        comm.close()
    return len(started)


def beside_a_process_group() -> dict[str, Any]:
    """The program has a default process group, before, during and after hetcomm's communicator."""
    import torch
    import torch.distributed

    group = this_rank()
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True) if group.rank == 0 else None
    port = int(group.broadcast(b"%d" % store.port if store is not None else None))
    store = store or torch.distributed.TCPStore("127.0.0.1", port)
    torch.distributed.init_process_group("gloo", store=store, rank=group.rank, world_size=group.nranks)
    comm = make("gloo")
    ours, theirs = numpy.full(5, 1.0 + group.rank), torch.full((5,), 1.0 + group.rank)
    operation = all_reduce(comm, ours)
    work = torch.distributed.all_reduce(theirs, async_op=True)
    finish(operation)
    work.wait()
    comm.close()
    again = torch.tensor([15.0])
    torch.distributed.all_reduce(again)
    torch.distributed.destroy_process_group()
    return {
        "ours": ours.tolist(),
        "default": theirs.tolist(),
        "again": again.tolist(),
        "alone": torch.distributed.is_initialized(),
    }
