"""Messages that are read where they lie: out of shared arrays, off the shelf, by whoever runs the program however."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import hetcomm
from hetcomm._ext import ucp
from hetcomm.calls.buffers import memory
from hetcomm.errors import CollectiveTimeoutError, TransportError, UsageError
from hetcomm.execution.execution import Execution
from hetcomm.execution.executor import Executor
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Buffer, Copy, Fill, Program, Recv, Reduce, Send, Slice
from hetcomm.testing import RanksFailed, run_ranks
from hetcomm.topology import flat
from hetcomm.transport import arena
from hetcomm.transport.ucx import UcxTransport
from hetcomm.types import DataType, ReduceKind

from ..scripts import DEADLINE
from . import offer_jobs as jobs
from .test_native import finish

NRANKS = 3
COUNTS = [500, 1023, 5000, 70_001]  # float64: eager, just short of an offer, off the shelf, too long for it
Make = Callable[[int, Any], Any]


@contextmanager
def connected(nranks: int = NRANKS, declining: Sequence[int] = ()) -> Iterator[list[Executor]]:
    """Ranks in this process that know nothing of each other yet; some take no offers."""
    transports = [UcxTransport() for _ in range(nranks)]
    for rank in declining:
        transports[rank].decline_offers()
    for transport in transports:
        for peer, other in enumerate(transports):
            transport.connect(peer, other.address)
    yield [Executor(transport, range(nranks), rank, 3, {}) for rank, transport in enumerate(transports)]
    for transport in transports:
        transport.close()


@contextmanager
def unseen() -> Iterator[None]:
    """Memory that is shared cannot be seen: its file is another."""
    owner = arena._arenas[os.getpid()]
    with open(os.devnull, "rb") as other:
        ucp.share(owner._address, owner._nbytes, other.fileno())
        yield
    ucp.share(owner._address, owner._nbytes, owner._descriptor)


def call(executors: list[Executor], kind: CollectiveKind, count: int, makes: list[Make], turn: int) -> None:
    """A collective whose rank k has arrays of `makes[k]`; its result must be NumPy's."""
    nranks, op = len(executors), ReduceKind.SUM if kind is CollectiveKind.ALL_REDUCE else None
    collective = Collective(kind, nranks, count, DataType.FLOAT64, op)
    inputs = [np.arange(collective.in_count(rank)) * (rank + 1.0) + turn for rank in range(nranks)]
    wanted = np.sum(inputs, axis=0) if op is not None else np.concatenate(inputs)
    runs, outputs = [], []
    for rank, (executor, make) in enumerate(zip(executors, makes, strict=True)):
        source, target = make(len(inputs[rank]), np.float64), make(len(wanted), np.float64)
        source[:], target[:] = inputs[rank], -1
        src = memory(source, argument="i", rank=rank, writable=False)
        dst = memory(target, argument="o", rank=rank, writable=True)
        runs.append(executor.start(flat.plan(collective, rank), src, dst))
        outputs.append(target)
    finish(executors, list(runs), turn)
    for target in outputs:
        assert np.array_equal(target, wanted)


@pytest.mark.parametrize("kind", [CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER], ids=lambda kind: kind.value)
@pytest.mark.parametrize("count", COUNTS)
def test_arrays_may_be_shared_on_some_ranks(kind: CollectiveKind, count: int) -> None:
    with connected() as executors:
        for turn, shared in enumerate([(), (0, 1, 2), (1,), (0, 2), (0, 1, 2), ()]):
            makes: list[Make] = [hetcomm.shared_empty if rank in shared else np.empty for rank in range(NRANKS)]
            call(executors, kind, count, makes, turn)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("make", [np.empty, hetcomm.shared_empty])
def test_a_rank_that_records_its_steps_takes_offers_too(make: Make, count: int) -> None:
    with connected() as executors:
        executors[1].spans = []
        for turn in range(3):
            call(executors, CollectiveKind.ALL_REDUCE, count, [make] * NRANKS, turn)
        assert executors[1].spans


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("make", [np.empty, hetcomm.shared_empty])
def test_what_cannot_be_seen_is_sent(make: Make, recorded: bool) -> None:
    hetcomm.shared_empty(1)
    for count in COUNTS:
        with connected() as executors:
            if recorded:
                executors[1].spans = []
            with unseen():
                for turn in range(3):
                    call(executors, CollectiveKind.ALL_REDUCE, count, [make] * NRANKS, turn)
            call(executors, CollectiveKind.ALL_REDUCE, count, [make] * NRANKS, 4)


def one_message(executors: list[Executor], sent: int, expected: int, make: Make = np.empty) -> list[Execution]:
    """Rank 0 sends so many elements, rank 1 expects so many; both have been started."""
    total = Collective(CollectiveKind.ALL_REDUCE, 2, max(sent, expected), DataType.FLOAT64, ReduceKind.SUM)
    arrays = [make(max(sent, expected), np.float64) for _ in range(2)]
    arrays[0][:], arrays[1][:] = np.arange(len(arrays[0])), -1
    steps: list[Send | Recv] = [Send(Slice(Buffer.IN, 0, sent), 1), Recv(Slice(Buffer.OUT, 0, expected), 0)]
    source = memory(arrays[0], argument="i", rank=0, writable=False)
    target = memory(arrays[1], argument="o", rank=1, writable=True)
    return [
        executors[0].start(Program(0, total, (steps[0],)), source, None),
        executors[1].start(Program(1, total, (steps[1],)), None, target),
    ]


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("make", [np.empty, hetcomm.shared_empty])
@pytest.mark.parametrize("counts", [(2000, 4000), (4000, 2000), (9000, 10_000)])
def test_an_offer_of_another_length_is_an_error(counts: tuple[int, int], make: Make, recorded: bool) -> None:
    with connected(2) as executors:
        executors[1].spans = [] if recorded else None
        sender, receiver = one_message(executors, *counts, make)
        with pytest.raises(TransportError, match="longer|received"):
            finish(executors, [receiver])
        finish(executors, [sender])  # it is told too, and does not wait


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("make", [np.empty, hetcomm.shared_empty])
def test_who_declines_offers_is_made_none(make: Make, recorded: bool) -> None:
    with connected(declining=[1]) as executors:
        executors[1].spans = [] if recorded else None
        for turn, count in enumerate(COUNTS):
            call(executors, CollectiveKind.ALL_REDUCE, count, [make] * NRANKS, turn)
        taken = [executor.transport.statistics()["taken"] for executor in executors]
        assert taken[1] == 0
        assert taken[0] > 0
        with pytest.raises(UsageError, match="before peers are connected"):
            executors[0].transport.decline_offers()


OFFER = struct.Struct("<6QQQii")  # mark (2), device, inode, offset, nbytes, rest, number, pid, fd
MARK = (0x68C3D1A90B5E7F24, 0xE29B46F7135AD08C)
FORGED = 3000  # elements that the receiver expects


def forged(rest: int = FORGED * 8, fd: int | None = None, **fields: int) -> np.ndarray[Any, Any]:
    """An offer as a message of floats: one of the arena's first page on, unless `fields` say something else."""
    descriptor = arena._arenas[os.getpid()]._descriptor if fd is None else fd
    status = os.fstat(max(descriptor, 0))
    values = {"device": status.st_dev, "inode": status.st_ino, "offset": 0, "nbytes": rest, "pid": os.getpid()} | fields
    packed = OFFER.pack(
        *MARK, *(values[name] for name in ("device", "inode", "offset", "nbytes")), rest, 1, values["pid"], descriptor
    )
    return np.frombuffer(packed)


def deceive(executors: list[Executor], message: np.ndarray[Any, Any]) -> Execution:
    """Rank 0 sends `message` in place of what rank 1 expects, whose run is returned."""
    source = np.zeros(FORGED)
    source[: len(message)] = message
    total = Collective(CollectiveKind.ALL_REDUCE, 2, FORGED, DataType.FLOAT64, ReduceKind.SUM)
    sends, receives = Send(Slice(Buffer.IN, 0, len(message)), 1), Recv(Slice(Buffer.OUT, 0, FORGED), 0)
    target = memory(np.full(FORGED, -1.0), argument="o", rank=1, writable=True)
    sender = executors[0].start(Program(0, total, (sends,)), memory(source, argument="i", rank=0, writable=False), None)
    receiver = executors[1].start(Program(1, total, (receives,)), None, target)
    finish(executors, [sender])
    return receiver


def looked(executors: list[Executor], receiver: Execution) -> bool:
    """Whether the receiver is done after ample turns."""
    for _ in range(1000):
        for executor in executors:
            executor.transport.progress()
        if receiver.test():
            return True
    return False


@pytest.mark.parametrize("recorded", [False, True])
def test_what_an_offer_says_is_not_believed(recorded: bool) -> None:
    """The sender lies about where its memory is: the receiver reads nothing and says that it cannot see it."""
    array = hetcomm.shared_empty(FORGED)
    array[:] = np.arange(FORGED)
    owner = arena._arenas[os.getpid()]
    with connected(2) as executors, ExitStack() as stack:
        executors[1].spans = [] if recorded else None
        files = [os.memfd_create("hetcomm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) for _ in range(3)]
        ends = os.pipe()
        for each in (*files, *ends):
            stack.callback(os.close, each)
        unsealed, growing, vast = files
        os.ftruncate(unsealed, 1 << 20)
        os.ftruncate(growing, 1 << 20)
        fcntl.fcntl(growing, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        os.ftruncate(vast, 1 << 62)
        fcntl.fcntl(vast, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        lies = [
            forged(offset=2**64 - 8),
            forged(offset=owner._nbytes - 8),
            forged(offset=owner._nbytes + 8),
            forged(nbytes=0),
            forged(pid=os.getppid()),
            forged(pid=-1),
            forged(pid=0),
            forged(fd=-1),
            forged(inode=1 << 40),
            forged(device=1 << 40),
            *(forged(fd=each) for each in (unsealed, growing, vast, ends[0])),
        ]
        for lie in lies:
            receiver = deceive(executors, lie)
            assert not looked(executors, receiver)
            receiver.abort()
        assert executors[1].transport.statistics()["taken"] == 0
        receiver = deceive(executors, forged(offset=array.ctypes.data - owner._address))
        assert looked(executors, receiver)  # this one was true
        assert np.array_equal(receiver._memories[Buffer.OUT].owner, array)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("lie", [{"rest": 2**64 - 1}, {"nbytes": 2**64 - 1}, {"rest": 0}, {"rest": 8}])
def test_an_offer_that_contradicts_itself_is_an_error(lie: dict[str, int], recorded: bool) -> None:
    hetcomm.shared_empty(1)
    with connected(2) as executors:
        executors[1].spans = [] if recorded else None
        receiver = deceive(executors, forged(**lie))
        with pytest.raises(TransportError):
            looked(executors, receiver)


def test_shared_memory_cannot_be_made_shorter() -> None:
    array = hetcomm.shared_empty(1000)
    descriptor = arena._arenas[os.getpid()]._descriptor
    for size in (0, 1 << 42):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)  # nor readable only, by whom it is offered to
    assert not array.any()
    assert not os.get_inheritable(descriptor)


def test_memory_that_is_not_the_hosts_is_not_touched() -> None:
    """As on a device: neither by the binding's loops nor by the look for an offer."""
    with connected(2) as executors:
        executors[1].spans = []
        sender, receiver = one_message(executors, 3000, 3000)
        before, where = ucp.refused(), receiver._memories[Buffer.OUT]
        assert where is not None
        ucp.guard(where.address, where.nbytes)
        try:
            with pytest.raises(TransportError, match="received"):
                finish(executors, [receiver])
            assert ucp.refused() > before
            executors[1].spans = None
            bound = executors[1].bind(receiver.bound.program)
            with pytest.raises(TransportError, match="not the host's"):
                executors[1].run(bound, 7, 0, None, where)
        finally:
            ucp.unguard(where.address, where.nbytes)
        sender.abort()


def test_the_shelf_is_full_for_a_while() -> None:
    """A rank runs far ahead of another: what finds no place waits for one, and all of it arrives in order."""
    with connected(2) as executors:
        finish(executors, one_message(executors, 3000, 3000))  # so that offers need no answer any more
        total = Collective(CollectiveKind.ALL_REDUCE, 2, 3000, DataType.FLOAT64, ReduceKind.SUM)
        whole, target = Slice(Buffer.IN, 0, 3000), np.zeros(3000)
        arrays = [np.full(3000, float(number)) for number in range(60)]
        sends = [
            executors[0].start(
                Program(0, total, (Send(whole, 1),)), memory(each, argument="i", rank=0, writable=False), None
            )
            for each in arrays
        ]
        assert sum(send.test() for send in sends) == 32
        for number in range(60):
            steps = (Recv(Slice(Buffer.OUT, 0, 3000), 0),)
            into = memory(target, argument="o", rank=1, writable=True)
            receive = executors[1].start(Program(1, total, steps), None, into)
            while not all(send.test() for send in sends[: number + 1]):
                for executor in executors:
                    executor.transport.progress()
                receive.test()
            finish(executors, [receive])
            assert np.all(target == number)
        assert all(send.test() for send in sends)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("count", [3000, 70_001, 140_000])
def test_a_full_shelf_keeps_nobody_from_what_is_needed_first(count: int, recorded: bool) -> None:
    """All places are taken by messages that the receiver comes to only after another one, which finds none."""

    def start(rank: int, number: int, array: Any) -> Execution:
        total = Collective(CollectiveKind.ALL_REDUCE, 2, len(array), DataType.FLOAT64, ReduceKind.SUM)
        step = Recv(Slice(Buffer.OUT, 0, len(array)), 0) if rank else Send(Slice(Buffer.IN, 0, len(array)), 1)
        whole = memory(array, argument="i", rank=rank, writable=bool(rank))
        bound = executors[rank].bind(Program(rank, total, (step,)))
        return executors[rank].run(bound, number, 0, None if rank else whole, whole if rank else None)

    with connected(2) as executors:
        executors[1].spans = [] if recorded else None
        finish(executors, one_message(executors, 3000, 3000))  # so that offers need no answer any more
        later = [start(0, 100 + number, np.full(3000, float(number))) for number in range(40)]
        assert sum(send.test() for send in later) == 32
        target = np.zeros(count)
        finish(executors, [start(0, 99, np.arange(float(count))), start(1, 99, target)])
        assert np.array_equal(target, np.arange(count))
        for number in range(40):
            target = np.zeros(3000)
            finish(executors, [start(1, 100 + number, target), *later[: number + 1]])
            assert np.all(target == number)


def test_what_lies_on_the_shelf_is_waited_for_at_the_end() -> None:
    with connected(2) as executors:
        finish(executors, one_message(executors, 3000, 3000))
        total = Collective(CollectiveKind.ALL_REDUCE, 2, 3000, DataType.FLOAT64, ReduceKind.SUM)
        source = memory(np.ones(3000), argument="i", rank=0, writable=False)
        sender = executors[0].start(Program(0, total, (Send(Slice(Buffer.IN, 0, 3000), 1),)), source, None)
        assert sender.test()  # the array may be changed
        with pytest.raises(CollectiveTimeoutError, match="not taken"):
            executors[0].transport.flush(0.05)
        target = np.zeros(3000)
        into = memory(target, argument="o", rank=1, writable=True)
        finish(executors, [executors[1].start(Program(1, total, (Recv(Slice(Buffer.OUT, 0, 3000), 0),)), None, into)])
        executors[0].transport.flush(10)
        assert np.all(target == 1)


@pytest.mark.parametrize("arrived", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("make", [np.empty, hetcomm.shared_empty])
def test_an_offer_that_is_aborted_is_over(make: Make, recorded: bool, arrived: bool) -> None:
    with connected(2) as executors:
        executors[1].spans = [] if recorded else None
        sender, receiver = one_message(executors, 3000, 3000, make)
        for _ in range(1000 if arrived else 0):
            for executor in executors:
                executor.transport.progress()
        receiver.abort()
        assert receiver.test()
        sender.abort()
        assert sender.test()


BLOCK, NBLOCKS = 512, 4  # elements that are offered; of each buffer
START = Fill(Slice(Buffer.SCRATCH, 0, BLOCK * NBLOCKS), ReduceKind.SUM)


@st.composite
def receivers(draw: st.DrawFn) -> list[Recv | Reduce | Copy]:
    """Steps of a rank that receives from rank 0; all slices are of one or two blocks."""

    def place(*buffers: Buffer) -> Slice:
        number = draw(st.integers(0, NBLOCKS - length))
        return Slice(draw(st.sampled_from(buffers)), number * BLOCK, length * BLOCK)

    steps: list[Recv | Reduce | Copy] = []
    for _ in range(draw(st.integers(1, 10))):
        length = draw(st.sampled_from([1, 2, 2, 2]))
        dst, src = place(Buffer.OUT, Buffer.SCRATCH), place(*Buffer)
        kind = draw(st.sampled_from([Recv, Recv, Reduce, Reduce, Copy]))
        if kind is Recv or src.overlaps(dst):
            steps.append(Recv(dst, 0))
        else:
            steps.append(Reduce(src, dst, ReduceKind.SUM) if kind is Reduce else Copy(src, dst))
    return steps


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Executor]]:
    with connected(2) as executors:
        yield executors


SPARE, ONE, OTHER = Slice(Buffer.SCRATCH, 0, 512), Slice(Buffer.OUT, 0, 512), Slice(Buffer.OUT, 512, 512)
GIVEN, BOTH = Slice(Buffer.IN, 0, 1024), Slice(Buffer.OUT, 0, 1024)


@example([Recv(SPARE, 0), Reduce(SPARE, ONE, ReduceKind.SUM)], False, 0)
@example([Recv(SPARE, 0), Reduce(SPARE, ONE, ReduceKind.SUM), Copy(SPARE, OTHER)], False, 0)
@example([Recv(ONE, 0), Reduce(OTHER, ONE, ReduceKind.SUM), Copy(ONE, OTHER)], True, 0)
@example([Recv(OTHER, 0), Reduce(OTHER, ONE, ReduceKind.SUM)], True, 0)
@example([Recv(BOTH, 0), Recv(ONE, 0), Reduce(GIVEN, BOTH, ReduceKind.SUM)], True, 0)
@given(receivers(), st.booleans(), st.integers(0, 1000))
def test_what_is_received_may_be_reduced_where_it_lies(
    pair: list[Executor], steps: list[Recv | Reduce | Copy], shared: bool, seed: int
) -> None:
    """Any program of receives, sums and copies does what its steps do one by one."""
    elements = BLOCK * NBLOCKS
    total = Collective(CollectiveKind.ALL_REDUCE, 2, elements, DataType.FLOAT64, ReduceKind.SUM)
    lengths = [step.dst.count for step in steps if isinstance(step, Recv)]
    messages = [np.arange(length) * (2.0 + number) % 11 + 1 for number, length in enumerate(lengths)]
    arrays = {buffer: np.zeros(elements) for buffer in Buffer}
    arrays[Buffer.IN][:] = np.arange(elements) % 7 + 1.0
    own, arriving = arrays[Buffer.IN].copy(), iter(messages)
    for step in steps:
        into = arrays[step.dst.buffer][step.dst.offset : step.dst.stop]
        if isinstance(step, Recv):
            into[:] = next(arriving)
        else:
            part = arrays[step.src.buffer][step.src.offset : step.src.stop]
            into[:] = into + part if isinstance(step, Reduce) else part
    source = (hetcomm.shared_empty if shared else np.empty)(sum(lengths), np.float64)
    source[:] = np.concatenate([np.zeros(0), *messages])
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    sends = tuple(Send(Slice(Buffer.IN, start, length), 1) for start, length in zip(starts, lengths, strict=True))
    got = np.zeros(elements)
    runs = [
        pair[0].start(Program(0, total, sends), memory(source, argument="i", rank=0, writable=False), None),
        pair[1].start(
            Program(1, total, (START, *steps), elements),
            memory(own, argument="i", rank=1, writable=False),
            memory(got, argument="o", rank=1, writable=True),
        ),
    ]
    finish(pair, runs, seed)
    assert np.array_equal(got, arrays[Buffer.OUT])


# ---- arrays


def test_shared_arrays_are_arrays() -> None:
    array = hetcomm.shared_empty((3, 5), "complex64")
    assert (array.shape, array.dtype) == ((3, 5), np.dtype("complex64"))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert not array.any()
    assert array.ctypes.data % mmap.PAGESIZE == 0
    assert hetcomm.shared_empty(7).dtype == np.float64
    assert hetcomm.shared_empty(np.int64(7)).shape == (7,)
    assert hetcomm.shared_empty((4, 0), np.int8).shape == (4, 0)
    assert hetcomm.shared_empty(()).shape == ()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, -1), "f4"), ("ab", "f4"), (None, "f4"), (2.5, "f4"), (3, object), (3, "no dtype")]
)
def test_what_is_no_array_is_refused(shape: Any, dtype: Any) -> None:
    with pytest.raises(UsageError):
        hetcomm.shared_empty(shape, dtype)


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(MemoryError, match="bytes are not left"):
        hetcomm.shared_empty(1 << 40)


def resident() -> int:
    """Bytes of shared memory that this process has touched."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssShmem"].split()[0]) * 1024


def test_memory_goes_with_the_last_view_of_it_and_is_used_again() -> None:
    before = resident()
    array = hetcomm.shared_empty(4 << 20, np.uint8)
    address = array.ctypes.data
    array[:] = 7
    view = array[10:20]
    del array
    assert view.tolist() == [7] * 10
    assert resident() - before >= 4 << 20
    del view
    assert resident() - before < 1 << 20
    again = hetcomm.shared_empty(3 << 20, np.uint8)
    assert again.ctypes.data == address
    assert not again.any()


def test_a_child_does_not_free_what_its_parent_has() -> None:
    array = hetcomm.shared_empty(1 << 16, np.uint8)
    array[:] = 5
    child = os.fork()
    if child == 0:
        code = 1
        try:
            del array
            mine = hetcomm.shared_empty(1 << 16, np.uint8)
            mine[:] = 6
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert np.all(array == 5)


# ---- whole jobs


@pytest.mark.parametrize("vendors", [("ucx", "ucx"), ("mpi", "ucx", "ucx")])
def test_collectives_of_processes(vendors: tuple[str, ...]) -> None:
    for wrong in run_ranks(len(vendors), jobs.every_collective, vendors=vendors, timeout=DEADLINE):
        assert wrong == []


def test_the_others_are_told_when_a_rank_dies_between_offers() -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(3, jobs.a_rank_dies, vendors=("ucx",) * 3, timeout=DEADLINE, recovery=True)
    assert set(caught.value.failures) == {2}
    for rank in (0, 1):
        assert caught.value.results[rank].startswith("PeerFailureError")
