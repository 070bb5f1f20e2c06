"""Detours and cutting, on a library that computes all ranks' parts in one process."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.reference import Array, numpy_dtype, reference
from hetcomm.errors import VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, Memory, ReduceKind
from hetcomm.vendors import compose, host
from hetcomm.vendors.base import COLLECTIVES, Operation
from hetcomm.vendors.mpi import MpiVendor

KINDS = [kind for kind in CollectiveKind if kind in COLLECTIVES]
REDUCTIONS = (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE, CollectiveKind.REDUCE_SCATTER)


class Together:
    """Every rank's call number `n` is one collective, done with the reference when the last rank has made it."""

    def __init__(self, nranks: int) -> None:
        self.calls: list[list[tuple[Collective, Memory | None, Memory | None]]] = [[] for _ in range(nranks)]

    def native(self, rank: int) -> Callable[[Collective, Memory | None, Memory | None], Operation]:
        def start(collective: Collective, src: Memory | None, dst: Memory | None) -> Operation:
            self.calls[rank].append((collective, src, dst))
            return _Last(self)

        return start

    def run(self) -> None:
        """Do everything called so far."""
        for calls in zip(*self.calls, strict=True):
            collective = calls[0][0]
            assert all(call[0] == collective for call in calls)
            sources = [compose.input_of(collective, rank, src, dst) for rank, (_, src, dst) in enumerate(calls)]
            inputs = [compose.as_array(source).copy() if source is not None else None for source in sources]
            for rank, (result, (_, _, dst)) in enumerate(zip(reference(collective, inputs), calls, strict=True)):
                target = compose.output_of(collective, rank, dst)
                assert (target is None) == (result is None)
                if target is not None and result is not None:
                    compose.as_array(target)[:] = result
        self.calls = [[] for _ in self.calls]


class _Last:
    def __init__(self, job: Together) -> None:
        self._job = job

    def test(self) -> bool:
        if self._job.calls[0]:
            self._job.run()
        return True


def memories(collective: Collective, inputs: list[Array | None]) -> list[tuple[Memory | None, Memory | None]]:
    """Every rank's input and output memory, its inputs laid in."""
    made = []
    for rank, values in enumerate(inputs):
        count = collective.buffer_count(rank) if collective.in_place else collective.out_count(rank)
        out = numpy.zeros(count, numpy_dtype(collective.dtype))
        dst = compose.as_memory(out, collective.dtype) if count else None
        src = compose.as_memory(values, collective.dtype) if values is not None and not collective.in_place else None
        if collective.in_place and values is not None:
            offset = collective.in_offset(rank)
            out[offset : offset + values.size] = values
        made.append((src, dst))
    return made


def results(collective: Collective, made: list[tuple[Memory | None, Memory | None]]) -> list[Array | None]:
    targets = [compose.output_of(collective, rank, dst) for rank, (_, dst) in enumerate(made)]
    return [compose.as_array(target) if target is not None else None for target in targets]


def bits(dtype: DataType, count: int, raw: bytes) -> Array:
    """Any bits at all as values."""
    wanted = count * dtype.itemsize
    return numpy.frombuffer((raw * (1 + wanted))[:wanted] if raw else bytes(wanted), numpy_dtype(dtype)).copy()


@st.composite
def reductions(draw: st.DrawFn, dtypes: list[DataType], ops: list[ReduceKind]) -> tuple[Collective, list[Array | None]]:
    nranks, kind = draw(st.integers(1, 4)), draw(st.sampled_from(REDUCTIONS))
    collective = Collective(
        kind,
        nranks,
        draw(st.integers(1, 9)),
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(ops)),
        draw(st.integers(0, nranks - 1)) if kind.has_root else None,
        draw(st.booleans()),
    )
    raw = draw(st.lists(st.binary(min_size=1, max_size=80), min_size=nranks, max_size=nranks))
    return collective, [bits(collective.dtype, collective.in_count(rank), raw[rank]) for rank in range(nranks)]


def through_compose(collective: Collective, inputs: list[Array | None]) -> list[Array | None]:
    made = memories(collective, inputs)
    job = Together(collective.nranks)
    operations = [compose.start(collective, rank, src, dst, job.native(rank)) for rank, (src, dst) in enumerate(made)]
    assert all(operation.test() for operation in operations)
    return results(collective, made)


def expect_equal(got: list[Array | None], due: list[Array | None]) -> None:
    for mine, theirs in zip(got, due, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert ((mine == theirs) | ((mine != mine) & (theirs != theirs))).all(), (mine, theirs)


FLOATS = [DataType.FLOAT16, DataType.BFLOAT16, DataType.FLOAT32, DataType.FLOAT64]
EXTREMES = [ReduceKind.MIN, ReduceKind.MAX]
FOUR_BYTE = frozenset(itertools.product((DataType.INT32,), EXTREMES))


@given(reductions(FLOATS, EXTREMES))
def test_extremes_of_floats_are_exact_for_all_bits_there_are(case: tuple[Collective, list[Array | None]]) -> None:
    collective, inputs = case
    expect_equal(through_compose(collective, inputs), reference(collective, inputs))


@given(reductions([DataType.INT8, DataType.UINT8, DataType.INT16, DataType.UINT16], [ReduceKind.SUM, ReduceKind.PROD]))
def test_small_integers_wrap_around(case: tuple[Collective, list[Array | None]]) -> None:
    collective, inputs = case
    expect_equal(through_compose(collective, inputs), reference(collective, inputs))


INTEGERS: list[DataType] = [
    dtype for dtype in DataType if dtype.is_integer and dtype not in (DataType.INT32, DataType.INT64)
]


@given(reductions(INTEGERS, EXTREMES))
def test_extremes_of_integers_are_those_of_their_own_type(case: tuple[Collective, list[Array | None]]) -> None:
    collective, inputs = case
    expect_equal(through_compose(collective, inputs), reference(collective, inputs))


def test_a_detour_may_lead_through_another() -> None:
    """Float16 extremes travel as int16, which a library without int16 is given as int32."""
    started: list[Collective] = []

    class Library(Failing):
        def start(self, *call: object) -> Operation:
            started.extend(part for part in call if isinstance(part, Collective))
            return host.Done()

    capabilities = replace(
        MpiVendor.capabilities, composed=frozenset(itertools.product(DataType, EXTREMES)) - FOUR_BYTE
    )
    comm = host.HostCommunicator("mpi", capabilities, 0, 2, Library())
    array = numpy.zeros(3, "f2")
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 3, DataType.FLOAT16, ReduceKind.MAX, in_place=True)
    assert comm.start(collective, None, compose.as_memory(array, DataType.FLOAT16)).test()
    assert [(call.dtype, call.op, call.count) for call in started] == [(DataType.INT32, ReduceKind.MAX, 3)]


@given(reductions([DataType.COMPLEX64, DataType.COMPLEX128], [ReduceKind.SUM, ReduceKind.PROD]))
def test_complex_numbers(case: tuple[Collective, list[Array | None]]) -> None:
    collective, inputs = case
    # Whole numbers: NumPy itself rounds products differently in loops of different length.
    inputs = [
        array.view("i1")[:: array.itemsize].astype(array.dtype) * (1 + 1j) for array in inputs if array is not None
    ]
    expect_equal(through_compose(collective, inputs), reference(collective, inputs))


@pytest.mark.parametrize("dtype", [DataType.FLOAT16, DataType.BFLOAT16])
def test_small_floats_are_rounded_once(dtype: DataType) -> None:
    one, small = numpy_dtype(dtype).type(1), numpy_dtype(dtype).type(2.0**-9)
    inputs: list[Array | None] = [numpy.array([value]) for value in (one, small, small, small, small)]
    collective = Collective(CollectiveKind.ALL_REDUCE, 5, 1, dtype, ReduceKind.SUM)
    for result in through_compose(collective, inputs):
        assert result is not None
        assert float(result[0]) == 1 + 2.0**-7  # rounding each time, bfloat16 would stay at 1


@given(st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 11), st.integers(1, 5), st.booleans(), st.data())
def test_pieces_together_do_what_the_whole_does(
    kind: CollectiveKind, nranks: int, count: int, limit: int, in_place: bool, data: st.DataObject
) -> None:
    op = ReduceKind.SUM if kind.reduces else None
    root = data.draw(st.integers(0, nranks - 1)) if kind.has_root else None
    collective = Collective(kind, nranks, count, DataType.INT32, op, root, in_place)
    numbers = itertools.count(1)
    inputs: list[Array | None] = [
        numpy.array([next(numbers) for _ in range(collective.in_count(rank))], "i4")
        if collective.in_count(rank)
        else None
        for rank in range(nranks)
    ]
    made = memories(collective, inputs)
    job = Together(nranks)
    for rank, (src, dst) in enumerate(made):
        for piece, piece_src, piece_dst in host.pieces(collective, rank, src, dst, limit):
            assert piece.buffer_count(rank) <= limit
            job.native(rank)(piece, piece_src, piece_dst)
    job.run()
    expect_equal(results(collective, made), reference(collective, inputs))


class Failing:
    """A library that fails when it is polled."""

    def __init__(self) -> None:
        self.ended = ""

    def start(self, *_: object) -> Operation:
        return self

    def test(self) -> bool:
        raise VendorError("the wire has melted")

    def progress(self) -> None:
        pass

    def release(self) -> None:
        self.ended = "released"

    def abandon(self) -> None:
        self.ended = "abandoned"

    def interrupt(self) -> None:
        self.ended = "interrupted"


def test_after_a_failure_of_the_library_only_close_is_left() -> None:
    library = Failing()
    comm = host.HostCommunicator("mpi", MpiVendor.capabilities, 0, 2, library)
    array = numpy.zeros(3)
    collective = Collective(CollectiveKind.BROADCAST, 2, 3, DataType.FLOAT64, root=0, in_place=True)
    memory = compose.as_memory(array, DataType.FLOAT64)
    operation = comm.start(collective, None, memory)
    with pytest.raises(VendorError, match="melted"):
        operation.test()
    assert library.ended == "abandoned"
    with pytest.raises(VendorError, match="the communicator is aborted"):
        comm.start(collective, None, memory)
    comm.close()
    assert (library.ended, repr(comm)) == ("abandoned", "<mpi communicator, rank 0 of 2, closed>")


def test_memory_lives_until_its_operation_is_complete() -> None:
    class Patient(Failing):
        done = False

        def test(self) -> bool:
            return self.done

    library = Patient()
    comm = host.HostCommunicator("mpi", MpiVendor.capabilities, 0, 2, library)
    collective = Collective(CollectiveKind.BROADCAST, 2, 3, DataType.FLOAT64, root=0, in_place=True)

    class Owner:
        alive = 0

        def __init__(self) -> None:
            Owner.alive += 1

        def __del__(self) -> None:
            Owner.alive -= 1

    operation = comm.start(collective, None, Memory(1 << 20, 3, DataType.FLOAT64, owner=Owner()))
    assert not operation.test()
    assert Owner.alive == 1
    library.done = True
    assert operation.test()
    assert Owner.alive == 0
    comm.close()
    assert library.ended == "released"


@pytest.mark.parametrize("how", ["finished", "failed", "neither"])
def test_an_abort_lets_go_of_memory_when_the_library_does(how: str) -> None:
    class Stubborn(Failing):
        looks = 0

        def test(self) -> bool:
            self.looks += 1
            if self.looks > 5 and how == "failed":
                raise VendorError("the connection was shut down")
            return self.looks > 5 and how == "finished"

    host._UNFINISHED.clear()
    library = Stubborn()
    comm = host.HostCommunicator("mpi", MpiVendor.capabilities, 0, 2, library)
    collective = Collective(CollectiveKind.BROADCAST, 2, 3, DataType.FLOAT64, root=0, in_place=True)
    array = numpy.zeros(3)
    owner = weakref.ref(array)
    operation = comm.start(collective, None, compose.as_memory(array, DataType.FLOAT64))
    comm.abort()
    assert library.ended == "abandoned"
    with pytest.raises(VendorError, match="aborted while this was under way"):
        operation.test()
    del array, operation
    assert owner() is not None, "the library still has it"
    assert comm.drain(0.01 if how == "neither" else 5.0) is (how != "neither")
    assert library.ended == "interrupted"
    comm.close()
    del comm
    assert (owner() is not None) is (how == "neither")
    assert len(host._UNFINISHED) == (how == "neither")
    host._UNFINISHED.clear()
