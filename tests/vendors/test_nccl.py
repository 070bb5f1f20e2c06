"""NCCL and RCCL on fake devices: values, order on streams, failures; and what of the wrappers is seen without a GPU."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcomm.calls.buffers import view
from hetcomm.errors import DeviceError, VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.testing import FakeDevice, reference
from hetcomm.types import COMBINING, DataType, Memory, MemoryKind, ReduceKind, has_meaning
from hetcomm.vendors import nccl_detours, registry
from hetcomm.vendors.base import COLLECTIVES
from hetcomm.vendors.nccl import NcclVendor, RcclVendor
from hetcomm.vendors.nccl_communicator import NcclCommunicator

from .fake_nccl import Library, NcclError, ThreadGroup, on_threads

KINDS = sorted(COLLECTIVES, key=lambda kind: kind.value)


# ---- ranks


@dataclass
class Rank:
    """One rank of a job whose ranks one thread drives, so that their calls interleave as a test likes."""

    number: int
    device: FakeDevice
    communicator: NcclCommunicator
    streams: list[int]

    def memory(self, dtype: DataType, values: Any) -> Memory:
        """Device memory that holds these values."""
        made = self.empty(dtype, len(values))
        view(replace(made, kind=MemoryKind.HOST))[...] = values
        return made

    def empty(self, dtype: DataType, count: int) -> Memory:
        """Device memory that holds garbage."""
        whole = self.device.allocate(max(count, 1) * dtype.itemsize)
        return replace(whole, count=count, dtype=dtype)


def seen(memory: Memory) -> Any:
    """What device memory holds."""
    return view(replace(memory, kind=MemoryKind.HOST))


def job(
    monkeypatch: pytest.MonkeyPatch,
    nranks: int,
    *,
    seed: int = 0,
    vendor: type[NcclVendor] = NcclVendor,
    library: Library | None = None,
) -> list[Rank]:
    """Communicators on fake devices."""
    library = library or Library()
    library.install(monkeypatch)

    def make(group: ThreadGroup) -> Rank:
        device = FakeDevice(seed * 8 + group.rank)
        device.kind = vendor.capabilities.memory.__iter__().__next__()
        library.here.device, library.here.gpu = device, (f"0000:0{group.rank}:00.0", bytes([group.rank]) * 16)
        made = vendor(lambda kind: device if kind is device.kind else pytest.fail("opened the wrong kind"))
        communicator = made.create(group)
        assert isinstance(communicator, NcclCommunicator)
        return Rank(group.rank, device, communicator, [device.open_stream(), device.open_stream()])

    ranks = on_threads(nranks, make)
    for rank in ranks:
        if isinstance(rank, Exception):
            raise rank
        rank.device.use()
    return ranks


def drain(ranks: list[Rank]) -> None:
    """Let the devices work until nothing is queued; they have found no race."""
    for _ in range(20_000):
        if all(rank.device.idle() for rank in ranks):
            break
        for rank in ranks:
            rank.device.step()
    else:
        raise AssertionError("; ".join(rank.device.describe() for rank in ranks))
    for rank in ranks:
        rank.communicator.progress()
        assert not rank.device.violations, rank.device.violations[0]
        assert not rank.device.unprepared


@dataclass
class Queued:
    """A collective that all ranks have queued."""

    collective: Collective
    given: list[Any]
    inputs: list[Memory | None]
    outputs: list[Memory | None]

    def check(self) -> None:
        """Its values are NumPy's, and inputs that are not outputs are as they were."""
        collective = self.collective
        for rank, expected in enumerate(reference(collective, self.given)):
            source, output = self.inputs[rank], self.outputs[rank]
            if source is not None:
                assert seen(source).tobytes() == self.given[rank].tobytes(), f"{collective} changed its input"
            if expected is not None and output is not None:
                first = collective.out_offset(rank)
                got = seen(output)[first : first + len(expected)]
                same = (got == expected) | ((got != got) & (expected != expected))
                assert same.all(), f"{collective}: rank {rank} has {got}, not {expected}"


def values(collective: Collective, rank: int, random: np.random.Generator) -> Any:
    """An input that every order of combination gives the same result for; with NaN for min and max of floats."""
    dtype, count = collective.dtype, collective.in_count(rank)
    if dtype is DataType.BOOL:
        made = random.integers(0, 2, count)
    elif collective.op is not None and collective.op.is_logical:
        made = random.choice(np.array([0, 0, 1, 2, 64]), count)
    elif dtype.is_integer:
        made = random.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype.value)
    else:
        made = random.integers(-2, 3, count).astype("f8")
        if collective.op in (ReduceKind.MIN, ReduceKind.MAX):
            made[random.random(count) < 0.2] = np.nan
        if dtype.is_complex:
            made = made + 1j * random.integers(-2, 3, count)
    like = seen(Memory(np.empty(1).ctypes.data, 0, dtype))
    return made.astype(like.dtype)


def queue(ranks: list[Rank], collective: Collective, random: np.random.Generator, *, scattered: bool = True) -> Queued:
    """Queue a collective on all ranks, each on one of its streams."""
    given = [values(collective, rank.number, random) if collective.in_count(rank.number) else None for rank in ranks]
    queued = Queued(collective, given, [], [])
    for rank, source in zip(ranks, given, strict=True):
        in_memory = out_memory = None
        if collective.in_place:
            if collective.buffer_count(rank.number):
                out_memory = rank.empty(collective.dtype, collective.buffer_count(rank.number))
                if source is not None:
                    seen(out_memory)[collective.in_offset(rank.number) :][: len(source)] = source
        else:
            in_memory = rank.memory(collective.dtype, source) if source is not None else None
            count = collective.out_count(rank.number)
            out_memory = rank.empty(collective.dtype, count) if count else None
        stream = rank.streams[int(random.integers(2))] if scattered else rank.streams[0]
        rank.communicator.enqueue(collective, in_memory, out_memory, stream)
        queued.inputs.append(in_memory)
        queued.outputs.append(out_memory)
    return queued


def meant(dtype: DataType) -> list[ReduceKind]:
    """The ops that vendors are asked for on that type."""
    return [op for op in COMBINING if has_meaning(op, dtype)]


def every_case(nranks: int, dtype: DataType) -> list[Collective]:
    """Each kind and op with a few counts, roots, and both places."""
    cases = []
    rotating = itertools.count()
    for kind in KINDS:
        for op in meant(dtype) if kind.reduces else (None,):
            for in_place in (False, True):
                turn = next(rotating)
                count = (0, 1, nranks, nranks + 1, 11)[turn % 5]
                root = turn % nranks if kind.has_root else None
                cases.append(Collective(kind, nranks, count or 2, dtype, op, root, in_place))
                cases.append(Collective(kind, nranks, count, dtype, op, root, in_place))
    return cases


@pytest.mark.parametrize("dtype", DataType, ids=lambda dtype: dtype.value)
@pytest.mark.parametrize("nranks", [1, 2, 3])
def test_the_whole_matrix(monkeypatch: pytest.MonkeyPatch, nranks: int, dtype: DataType) -> None:
    monkeypatch.setattr(nccl_detours, "_SCRATCH", nranks * 4 * dtype.itemsize)  # so that 11 elements need pieces
    ranks = job(monkeypatch, nranks, seed=nranks, vendor=RcclVendor if nranks == 2 else NcclVendor)
    random = np.random.default_rng(nranks)
    cases = every_case(nranks, dtype)
    for first in range(0, len(cases), 8):
        queued = [queue(ranks, collective, random) for collective in cases[first : first + 8]]
        drain(ranks)
        for each in queued:
            each.check()
    for rank in ranks:
        rank.communicator.close()


@settings(max_examples=40)
@given(data=st.data(), nranks=st.integers(2, 4), seed=st.integers(0, 1 << 16))
def test_any_calls_in_any_timing(data: st.DataObject, nranks: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(nccl_detours, "_SCRATCH", data.draw(st.sampled_from([64, 512, 1 << 20])))
        ranks = job(monkeypatch, nranks, seed=seed)
        random = np.random.default_rng(seed)
        calls = []
        for _ in range(data.draw(st.integers(1, 6))):
            kind = data.draw(st.sampled_from(KINDS))
            dtype = data.draw(st.sampled_from(list(DataType)))
            op = data.draw(st.sampled_from(meant(dtype))) if kind.reduces else None
            root = data.draw(st.integers(0, nranks - 1)) if kind.has_root else None
            count = data.draw(st.sampled_from([0, 1, nranks - 1, nranks, nranks + 1, 40]))
            collective = Collective(kind, nranks, count, dtype, op, root, data.draw(st.booleans()))
            calls.append(queue(ranks, collective, random))
        drain(ranks)
        for call in calls:
            call.check()


def test_nothing_is_done_at_the_call_and_started_ones_are_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = job(monkeypatch, 2)
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 3, DataType.FLOAT32, ReduceKind.SUM)
    inputs = [rank.memory(DataType.FLOAT32, [1, 2, rank.number]) for rank in ranks]
    outputs = [rank.memory(DataType.FLOAT32, [7, 7, 7]) for rank in ranks]
    first = ranks[0].communicator.start(collective, inputs[0], outputs[0])
    assert not any(first.test() for _ in range(100)), "the other rank has not called"
    assert seen(outputs[0]).tolist() == [7, 7, 7]
    second = ranks[1].communicator.start(collective, inputs[1], outputs[1])
    deadline = time.monotonic() + 20
    while not all([first.test(), second.test()]):
        assert time.monotonic() < deadline
    assert first.test(), "a complete operation stays complete"
    assert [seen(output).tolist() for output in outputs] == [[2, 4, 1]] * 2
    for rank in ranks:
        rank.communicator.close()
        assert "closed" in repr(rank.communicator)
        rank.communicator.close()
        with pytest.raises(VendorError, match="the communicator is closed"):
            rank.communicator.enqueue(collective, inputs[0], outputs[0], 0)
    drain(ranks)


def test_what_is_called_and_with_which_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    ranks = job(monkeypatch, 2, library=library)
    random = np.random.default_rng(0)
    all_reduce, all_gather = CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER
    wanted = [
        (Collective(all_reduce, 2, 5, DataType.BFLOAT16, ReduceKind.SUM), ("all_reduce", 5, 9, 0, 0)),
        (Collective(all_reduce, 2, 5, DataType.INT8, ReduceKind.MAX), ("all_reduce", 5, 0, 2, 0)),
        (Collective(all_reduce, 2, 5, DataType.UINT64, ReduceKind.MIN), ("all_reduce", 5, 5, 3, 0)),
        (Collective(all_reduce, 2, 5, DataType.COMPLEX128, ReduceKind.SUM), ("all_reduce", 10, 8, 0, 0)),
        (Collective(CollectiveKind.REDUCE, 2, 5, DataType.FLOAT16, ReduceKind.PROD, 1), ("reduce", 5, 6, 1, 1)),
        (Collective(all_gather, 2, 5, DataType.INT16), ("all_gather", 10, 1, 0, 0)),
        (Collective(CollectiveKind.BROADCAST, 2, 5, DataType.COMPLEX64, root=1), ("broadcast", 40, 1, 0, 1)),
    ]
    for collective, agreed in wanted:
        library.log.clear()
        queued = queue(ranks, collective, random)
        drain(ranks)
        queued.check()
        assert {call.agreed for _, call in library.log} == {agreed}


def test_more_elements_than_an_int_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts go through whole: the wrapper takes them as `size_t`."""
    ranks = job(monkeypatch, 2)
    calls: list[tuple[Any, ...]] = []
    library = ranks[0].communicator._library
    assert library is not None
    monkeypatch.setattr(library[1], "queue", lambda *arguments: calls.append(arguments))
    count = (1 << 32) + 1
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, count, DataType.COMPLEX64, ReduceKind.SUM, in_place=True)
    ranks[0].communicator.enqueue(collective, None, Memory(256, count, DataType.COMPLEX64, MemoryKind.CUDA), 5)
    collective = Collective(CollectiveKind.BROADCAST, 2, count, DataType.FLOAT64, root=0, in_place=True)
    ranks[0].communicator.enqueue(collective, None, Memory(256, count, DataType.FLOAT64, MemoryKind.CUDA), 5)
    assert calls == [("all_reduce", 256, 256, 2 * count, 7, 0, 5), ("broadcast", 256, 256, 8 * count, 1, 0, 5)]


def test_scratch_memory_is_bounded_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = job(monkeypatch, 2)
    asked: list[int] = []
    device = ranks[0].device
    allocate = device.allocate
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 64, DataType.FLOAT32, ReduceKind.MAX, in_place=True)
    monkeypatch.setattr(nccl_detours, "_SCRATCH", 128)
    random = np.random.default_rng(1)
    kept = []
    for _ in range(5):
        kept.append(queue(ranks, collective, random))
        if not asked:
            monkeypatch.setattr(device, "allocate", lambda nbytes: asked.append(nbytes) or allocate(nbytes))
    drain(ranks)
    assert [nbytes for nbytes in asked if nbytes != 64 * 4] == [], "what the first call used serves the others"


# ---- refusals


def test_what_is_refused_is_told_before_anything_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    ranks = job(monkeypatch, 2, library=library)
    communicator = ranks[0].communicator
    all_reduce = Collective(CollectiveKind.ALL_REDUCE, 2, 2, DataType.FLOAT32, ReduceKind.SUM)
    on_device = ranks[0].memory(DataType.FLOAT32, [1, 2])
    on_host = replace(on_device, kind=MemoryKind.HOST)
    with pytest.raises(VendorError, match=r"float32 in host memory is not what it can do\. Pass device arrays.*=mpi"):
        communicator.enqueue(all_reduce, on_host, on_host, 0)
    other = replace(on_device, kind=MemoryKind.ROCM)
    with pytest.raises(VendorError, match="in rocm memory is not what it can do. Use the vendor of that GPU's maker"):
        communicator.enqueue(all_reduce, other, other, 0)
    with pytest.raises(VendorError, match="all_to_all on float32 in cuda memory is not what it can do"):
        communicator.enqueue(
            Collective(CollectiveKind.ALL_TO_ALL, 2, 1, DataType.FLOAT32), on_device, on_device, ranks[0].streams[0]
        )
    with pytest.raises(VendorError, match="the output must be 2 elements of float32, not none"):
        communicator.enqueue(all_reduce, on_device, None, 0)
    with pytest.raises(VendorError, match="the input must be 2 elements of float32, not 1 of float32"):
        communicator.enqueue(all_reduce, on_device.part(0, 1), on_device, 0)
    with pytest.raises(VendorError, match="a collective over 3 ranks on a communicator of 2"):
        communicator.enqueue(replace(all_reduce, nranks=3), on_device, on_device, 0)
    assert not library.log
    queued = queue(ranks, all_reduce, np.random.default_rng(0))
    drain(ranks)
    queued.check()


@pytest.mark.parametrize("vendor", [NcclVendor, RcclVendor])
def test_the_capabilities_are_complete(vendor: type[NcclVendor]) -> None:
    found = vendor.capabilities
    assert found.streams
    assert found.nan_propagates
    assert found.collectives == COLLECTIVES
    assert not found.refused
    assert registry.vendor(vendor.name).capabilities == found
    for kind, dtype in itertools.product(KINDS, DataType):
        for op in meant(dtype) if kind.reduces else (None,):
            collective = Collective(kind, 2, 1, dtype, op, 0 if kind.has_root else None)
            (memory,) = found.memory
            assert found.takes(collective, memory)
            assert not found.takes(collective, MemoryKind.HOST)


# ---- making one


def create(
    monkeypatch: pytest.MonkeyPatch,
    places: list[tuple[str, bytes]],
    *,
    versions: list[int] | None = None,
    vendor: type[NcclVendor] = NcclVendor,
    broken: int | None = None,
) -> list[str]:
    """What each rank is told when a communicator is made on these GPUs: an error's text, or ''."""
    library = Library((versions or [22703])[0])
    library.install(monkeypatch)
    if versions is not None:
        monkeypatch.setattr(sys.modules["cupy.cuda.nccl"], "get_version", lambda: library.here.version, raising=False)

    def make(group: ThreadGroup) -> str:
        library.here.device = device = FakeDevice(group.rank)
        library.here.gpu = places[group.rank]
        library.here.version = (versions or [])[group.rank] if versions else 0

        def opener(kind: MemoryKind) -> FakeDevice:
            if group.rank == broken:
                raise DeviceError("the driver is too old", remedy="Update it.")
            return device

        vendor(opener).create(group).close()
        return ""

    return ["" if not result else str(result) for result in on_threads(len(places), make)]


ALONE = [("0000:01:00.0", b"a"), ("0000:02:00.0", b"b"), ("0000:03:00.0", b"c")]
SHARED = [("0000:01:00.0", b"a"), ("0000:02:00.0", b"b"), ("0000:01:00.0", b"a")]
PARTS = [("0000:01:00.0", b"a"), ("0000:01:00.0", b"b")]


def test_ranks_that_share_a_gpu_are_refused_on_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE", raising=False)
    assert create(monkeypatch, ALONE) == [""] * 3
    for text in create(monkeypatch, SHARED):
        assert "rank 2 of its cluster: it shares a GPU with rank 0, which NCCL 2.27.3 refuses" in text
        assert "HETCOMM_VENDOR=ucx" in text
        assert "install NCCL 2.30.3 or later and set NCCL_MULTI_RANK_GPU_ENABLE=1" in text
    for text in create(monkeypatch, SHARED, versions=[23003] * 3):
        assert "which NCCL 2.30.3 refuses" in text
        assert "or set NCCL_MULTI_RANK_GPU_ENABLE=1 on all of them." in text
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    assert create(monkeypatch, SHARED, versions=[23003] * 3) == [""] * 3
    assert all("refuses" in text for text in create(monkeypatch, SHARED))
    for text in create(monkeypatch, SHARED, vendor=RcclVendor):
        assert "which RCCL 2.27.3 refuses. Give each rank a GPU of its own, or set HETCOMM_VENDOR=ucx" in text
        assert "ENABLE" not in text


def test_parts_of_a_gpu_are_told_apart_by_versions_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE", raising=False)
    assert create(monkeypatch, PARTS, versions=[23007] * 2) == ["", ""]
    assert all("shares a GPU" in text for text in create(monkeypatch, PARTS, versions=[23004] * 2))


def test_what_is_wrong_on_one_rank_is_told_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in create(monkeypatch, ALONE, broken=1):
        assert "vendor 'nccl' failed on rank 1 of its cluster: the driver is too old. Update it." in text
    for text in create(monkeypatch, ALONE, versions=[22703, 22703, 23003]):
        assert "rank 2 of its cluster: it has NCCL 2.30.3, and rank 0 has 2.27.3. Install one NCCL" in text


def test_one_rank_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    (rank,) = job(monkeypatch, 1, library=Library())
    monkeypatch.setitem(sys.modules, "cupy", None)
    queued = queue([rank], Collective(CollectiveKind.ALL_GATHER, 1, 4, DataType.INT16), np.random.default_rng(0))
    drain([rank])
    queued.check()
    rank.communicator.abort()
    rank.communicator.close()


@pytest.mark.parametrize("version", ["13.6.0", "14.2.0"])
def test_unique_ids_of_both_kinds(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    ranks = job(monkeypatch, 2, library=Library(cupy_version=version))
    queued = queue(ranks, Collective(CollectiveKind.ALL_GATHER, 2, 4, DataType.INT16), np.random.default_rng(0))
    drain(ranks)
    queued.check()


# ---- failures


def test_what_the_library_notices_later_is_raised_once_and_ends_the_communicator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = Library()
    ranks = job(monkeypatch, 2, library=library)
    communicator = ranks[0].communicator
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 2, DataType.FLOAT32, ReduceKind.SUM, in_place=True)
    operation = communicator.start(collective, None, ranks[0].memory(DataType.FLOAT32, [1, 2]))
    communicator.progress()
    library.async_error = NcclError(6)
    with pytest.raises(VendorError, match=r"\[rank 0\] vendor 'nccl': a collective failed: NCCL_ERROR_REMOTE_ERROR"):
        operation.test()
    communicator.progress()
    with pytest.raises(VendorError, match="the communicator is aborted. Make a new one"):
        communicator.enqueue(collective, None, ranks[0].memory(DataType.FLOAT32, [1, 2]), 0)
    communicator.close()
    assert "closed" in repr(communicator)
    library.async_error = KeyError(8)  # CuPy's table of names ends before it
    with pytest.raises(VendorError, match="a collective failed: result 8 of the library"):
        ranks[1].communicator.progress()


def test_a_refused_call_ends_the_communicator(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = job(monkeypatch, 2)
    communicator = ranks[0].communicator
    library = communicator._library
    assert library is not None

    def refuse(*_: object) -> None:
        raise NcclError(5)

    for op in (ReduceKind.SUM, ReduceKind.MAX):  # natively and by a detour
        ranks = job(monkeypatch, 2)
        communicator = ranks[0].communicator
        library = communicator._library
        assert library is not None
        monkeypatch.setattr(library[1], "queue", refuse)
        collective = Collective(CollectiveKind.ALL_REDUCE, 2, 2, DataType.FLOAT32, op, in_place=True)
        with pytest.raises(VendorError, match="NCCL_ERROR_INVALID_USAGE"):
            communicator.enqueue(collective, None, ranks[0].memory(DataType.FLOAT32, [1, 2]), ranks[0].streams[0])
        assert "aborted" in repr(communicator)
        communicator.close()


def test_an_abort_that_blocks_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    ranks = job(monkeypatch, 2, library=library)
    monkeypatch.setattr("hetcomm.vendors.nccl_communicator._ABORT_SECONDS", 0.05)
    library.abort_blocks = threading.Event()
    done: list[int] = []

    def abort() -> None:
        for rank in ranks:
            rank.communicator.abort()
            rank.communicator.abort()
            rank.communicator.close()
            done.append(rank.number)

    thread = threading.Thread(target=abort, daemon=True)
    thread.start()
    thread.join(15)
    assert done == [0, 1]
    library.abort_blocks.set()
    for other in threading.enumerate():
        if other.name == "hetcomm-nccl-abort":
            other.join(15)
    members = next(iter(library.cliques.values())).members
    assert {member.gone for member in members.values()} == {"aborted"}


def test_an_abort_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = job(monkeypatch, 2)
    library = ranks[0].communicator._library
    assert library is not None

    def fail() -> None:
        raise NcclError(1)

    monkeypatch.setattr(library[1], "abort", fail)
    ranks[0].communicator.abort()
    ranks[0].communicator.close()


def test_closing_waits_for_the_device_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    ranks = job(monkeypatch, 2, library=library)
    random = np.random.default_rng(0)
    kept = []
    for count in (10, 1000, 10):  # more scratch memory is taken, and the first is let go
        collective = Collective(CollectiveKind.ALL_REDUCE, 2, count, DataType.FLOAT32, ReduceKind.MAX)
        kept.append(queue(ranks, collective, random))
    for _ in range(200):
        for rank in ranks:
            rank.device.step()
    for rank in ranks:
        rank.communicator.close()
    assert {member.gone for member in next(iter(library.cliques.values())).members.values()} == {"destroyed"}
    drain(ranks)


def test_closing_with_something_under_way_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetcomm.vendors.nccl_communicator._CLOSE_SECONDS", 0.02)
    for op in (ReduceKind.SUM, ReduceKind.MIN):
        library = Library()
        ranks = job(monkeypatch, 2, library=library)
        collective = Collective(CollectiveKind.ALL_REDUCE, 2, 2, DataType.FLOAT32, op, in_place=True)
        ranks[0].communicator.start(collective, None, ranks[0].memory(DataType.FLOAT32, [1, 2]))
        ranks[0].communicator.close()
        ranks[1].communicator.close()
        members = next(iter(library.cliques.values())).members
        assert [members[rank].gone for rank in range(2)] == ["aborted", "destroyed"]
