"""The conformance suite of vendors: what a communicator declares to do, it does, and the rest it refuses.

Inputs are made so that every order of combination gives the same bits (whole numbers, powers of two, integers that
wrap around), hence results are compared exactly. A second kind of input is rough (thirds, NaN): there the bits must be
the same on all ranks. Every array lies between guard elements.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy

from hetcomm._conformance.reference import Array, numpy_dtype, reference
from hetcomm.errors import VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind, has_meaning
from hetcomm.vendors.base import Capabilities, Group, Operation, VendorCommunicator

__all__ = ["check_vendor"]

_E = TypeVar("_E", bound=enum.Enum)

_DEADLINE = 60.0  # seconds for any one operation
_LONG = 200_000  # elements of what is under way when it is aborted
_AFTER = 0.2  # seconds in which nothing may be written any more
_GUARD = 8  # elements on either side of every array
_GUARD_BYTE = 0xA5
_ONE_BY_ONE = (DataType.INT8, DataType.FLOAT32)  # collectives of the other dtypes are under way together
_TOLERANCE = {DataType.FLOAT16: 1e-2, DataType.BFLOAT16: 8e-2, DataType.FLOAT32: 1e-5, DataType.COMPLEX64: 1e-5}


def check_vendor(
    create: Callable[[Group], VendorCommunicator], group: Group, capabilities: Capabilities, *, seed: int = 0
) -> int:
    """Run the suite on every rank of a job; collective over `group`.

    Args:
        create: Makes a communicator over a group; collective. It is called several times.
        group: The ranks of the job.
        capabilities: What the vendor declares; exactly this is held against it.
        seed: Of the inputs; the same on all ranks.

    Returns:
        How many collectives were compared.

    Raises:
        AssertionError: The vendor fails; the message names the case. The other ranks then fail by their deadline.
    """
    assert MemoryKind.HOST in capabilities.memory, "check_vendor needs a vendor that takes host memory"
    communicator = create(group)
    assert (communicator.rank, communicator.nranks) == (group.rank, group.nranks), (
        f"the communicator is rank {communicator.rank} of {communicator.nranks}, "
        f"the group {group.rank} of {group.nranks}"
    )
    suite = _Suite(group, capabilities, seed)
    for batch in _batches(group.nranks, capabilities):
        suite.compare(communicator, batch)
    suite.several_outstanding(communicator)
    suite.refusals(communicator)
    second = create(group)
    suite.two_communicators(communicator, second)
    suite.closing(second)
    communicator.close()
    suite.aborting(create(group))
    return suite.cases


def _batches(nranks: int, capabilities: Capabilities) -> Iterator[list[Collective]]:
    """Everything the capabilities promise, in lists of one kind, dtype and op."""
    counts = sorted({0, 1, 5, max(nranks - 1, 1), nranks, nranks + 1, 1000})
    for kind in _ordered(CollectiveKind, capabilities.collectives):
        ops = _ordered(ReduceKind, capabilities.ops) if kind.reduces else [None]
        for dtype, op in itertools.product(_ordered(DataType, capabilities.dtypes), ops):
            if op is not None and not (has_meaning(op, dtype) and capabilities.reduces(dtype, op)):
                continue
            batch = [
                Collective(kind, nranks, count, dtype, op, root, in_place)
                for count, in_place in itertools.product(counts, (False, True))
                for root in _roots(kind, nranks, count)
            ]
            if dtype in (DataType.FLOAT64, DataType.INT32):  # other algorithms, which depend on size only
                batch += [
                    Collective(kind, nranks, count, dtype, op, nranks - 1 if kind.has_root else None, in_place)
                    for count, in_place in ((70_001, False), (70_001, True))
                ]
            yield batch


def _ordered(members: type[_E], chosen: frozenset[_E]) -> list[_E]:
    """The chosen members of an enum in the order of their definition, which is the same on all ranks."""
    return [member for member in members if member in chosen]


def _roots(kind: CollectiveKind, nranks: int, count: int) -> list[int | None]:
    if not kind.has_root:
        return [None]
    return list(range(nranks)) if count == 5 else [count % nranks]


@dataclass
class _Buffers:
    """One rank's arrays of one call, with their guards."""

    collective: Collective
    rank: int
    in_array: Array | None
    out_array: Array | None
    guarded: list[Array]
    given: bytes

    @classmethod
    def make(cls, collective: Collective, rank: int, given: Array | None) -> _Buffers:
        """Arrays that hold the input `given`; the output holds garbage."""
        dtype = numpy_dtype(collective.dtype)
        guarded: list[Array] = []

        def guard(count: int) -> Array | None:
            if not count:
                return None
            whole = numpy.full((count + 2 * _GUARD) * dtype.itemsize, _GUARD_BYTE, "u1").view(dtype)
            guarded.append(whole)
            return whole[_GUARD : _GUARD + count]

        in_count, out_count = collective.in_count(rank), collective.out_count(rank)
        if collective.in_place:
            in_array, out_array = None, guard(collective.buffer_count(rank))
            source = out_array[collective.in_offset(rank) :][:in_count] if out_array is not None else None
        else:
            in_array, out_array = guard(in_count), guard(out_count)
            source = in_array
        if given is not None and source is not None:
            source[:] = given
        return cls(collective, rank, in_array, out_array, guarded, b"" if given is None else given.tobytes())

    def start(self, communicator: VendorCommunicator) -> Operation:
        """Start the call on these arrays."""
        return communicator.start(self.collective, self._memory(self.in_array), self._memory(self.out_array))

    def result(self) -> Array | None:
        """This rank's output."""
        count = self.collective.out_count(self.rank)
        if not count or self.out_array is None:
            return None
        offset = self.collective.out_offset(self.rank)
        return self.out_array[offset : offset + count]

    def contents(self) -> list[bytes]:
        """All of these arrays as they are now."""
        return [whole.tobytes() for whole in self.guarded]

    def check_untouched(self) -> None:
        """The guards and the input are as they were."""
        for whole in self.guarded:
            raw = whole.view("u1")
            edge = _GUARD * whole.dtype.itemsize
            assert (raw[:edge] == _GUARD_BYTE).all(), f"{_case(self.collective)}: wrote before the array"
            assert (raw[-edge:] == _GUARD_BYTE).all(), f"{_case(self.collective)}: wrote past the array"
        if self.in_array is not None:
            assert self.in_array.tobytes() == self.given, f"{_case(self.collective)}: changed its input"

    def _memory(self, array: Array | None) -> Memory | None:
        return None if array is None else Memory(array.ctypes.data, array.size, self.collective.dtype, owner=array)


class _Suite:
    """The checks, and the count of what they compared."""

    def __init__(self, group: Group, capabilities: Capabilities, seed: int) -> None:
        self._group = group
        self._capabilities = capabilities
        self._seed = seed
        self.cases = 0

    def compare(self, communicator: VendorCommunicator, batch: list[Collective]) -> None:
        """Run collectives on exact and on rough input against the reference, some one by one, some all at once."""
        cases = [
            (collective, rough) for collective in batch for rough in (False, True)[: 1 + _can_be_rough(collective)]
        ]
        width = 1 if batch[0].dtype in _ONE_BY_ONE else len(cases)
        digests = []
        for first in range(0, len(cases), width):
            chunk = [(*self._prepare(*case), case[1]) for case in cases[first : first + width]]
            started = [buffers.start(communicator) for buffers, _, _ in chunk]
            for (buffers, expected, rough), operation in zip(chunk, started, strict=True):
                _finish(operation, buffers.collective, (communicator,))
                buffers.check_untouched()
                digests.append(self._verify(buffers, expected, rough))
        self._meet(communicator)
        self._same_bits(batch[0], digests)

    def several_outstanding(self, communicator: VendorCommunicator) -> None:
        """Different collectives under way together, asked for in another order on each rank."""
        self._together([(communicator, collective) for collective in self._sample(communicator.nranks)])

    def two_communicators(self, first: VendorCommunicator, second: VendorCommunicator) -> None:
        """Collectives under way on two communicators over the same ranks."""
        sample = self._sample(first.nranks)
        self._together([(comm, collective) for collective in sample for comm in (first, second)])

    def refusals(self, communicator: VendorCommunicator) -> None:
        """What is not in the capabilities raises `VendorError`, and the communicator stays usable."""
        for kind, dtype, op in itertools.product(CollectiveKind, DataType, (None, *ReduceKind)):
            if op not in kind.ops or (op is not None and not has_meaning(op, dtype)):
                continue
            collective = Collective(kind, communicator.nranks, 3, dtype, op, 0 if kind.has_root else None)
            if not self._capabilities.takes(collective):
                self._refuses(communicator, collective, "it is not among the capabilities")
        self.several_outstanding(communicator)

    def closing(self, communicator: VendorCommunicator) -> None:
        """A closed communicator may be closed again and refuses everything else."""
        communicator.close()
        communicator.close()
        for collective in self._sample(communicator.nranks)[:1]:
            self._refuses(communicator, collective, "it is closed")
        communicator.abort()
        self._group.barrier()

    def aborting(self, communicator: VendorCommunicator) -> None:
        """An aborted communicator refuses everything but `drain` and `close`.

        Nothing touches the memory of what was begun any more when `drain` says so. It may not: a call that a library
        does in several may have been given up between two of them on one rank, and not on another.
        """
        kinds = {collective.kind: collective for collective in self._sample(communicator.nranks)}
        begun = [self._prepare(replace(collective, count=_LONG), False)[0] for collective in kinds.values()]
        for buffers in begun:
            buffers.start(communicator)
        self._group.barrier()
        communicator.abort()
        drained = communicator.drain(_DEADLINE)
        before = [buffers.contents() for buffers in begun]
        self._group.barrier()
        time.sleep(_AFTER)
        for buffers, contents in zip(begun, before, strict=True):
            assert not drained or buffers.contents() == contents, f"{_case(buffers.collective)}: wrote after drain"
        communicator.abort()
        assert not drained or communicator.drain(0.0)
        for collective in self._sample(communicator.nranks)[:1]:
            self._refuses(communicator, collective, "it is aborted")
        communicator.close()
        self._group.barrier()

    def _together(self, calls: list[tuple[VendorCommunicator, Collective]]) -> None:
        communicators = list({id(comm): comm for comm, _ in calls}.values())
        prepared = [(*self._prepare(collective, False), comm) for comm, collective in calls]
        started = [(buffers, expected, buffers.start(comm)) for buffers, expected, comm in prepared]
        shift = self._group.rank % max(len(started), 1)
        for buffers, _, operation in started[shift:] + started[:shift]:
            _finish(operation, buffers.collective, communicators)
        for buffers, expected, _ in started:
            buffers.check_untouched()
            self._verify(buffers, expected, False)
        for communicator in communicators:
            self._meet(communicator)

    def _meet(self, communicator: VendorCommunicator) -> None:
        """Wait for the other ranks, still moving along what they need from this one."""
        kinds = [kind for kind in (CollectiveKind.ALL_GATHER, CollectiveKind.ALL_REDUCE) if self._takes(kind)]
        if kinds:
            op = ReduceKind.SUM if kinds[0].reduces else None
            meeting = Collective(kinds[0], communicator.nranks, 1, DataType.INT32, op)
            buffers, _ = self._prepare(meeting, False)
            operation = buffers.start(communicator)
            _finish(operation, meeting, (communicator,))

    def _takes(self, kind: CollectiveKind) -> bool:
        op = ReduceKind.SUM if kind.reduces else None
        return self._capabilities.takes(Collective(kind, 1, 1, DataType.INT32, op))

    def _sample(self, nranks: int) -> list[Collective]:
        """A few collectives of all kinds that the vendor takes."""
        sample: list[Collective] = []
        for number, kind in enumerate(_ordered(CollectiveKind, self._capabilities.collectives)):
            for dtype in _ordered(DataType, self._capabilities.dtypes)[:: 1 + number % 3]:
                op = ReduceKind.MAX if number % 2 and not dtype.is_complex else ReduceKind.SUM
                op = op if has_meaning(op, dtype) else ReduceKind.LXOR
                root = number % nranks if kind.has_root else None
                count = 7 + 1000 * (len(sample) % 3)
                collective = Collective(kind, nranks, count, dtype, op if kind.reduces else None, root)
                if self._capabilities.takes(collective):
                    sample.append(collective)
        return sample

    def _refuses(self, communicator: VendorCommunicator, collective: Collective, why: str) -> None:
        buffers, _ = self._prepare(collective, False)
        try:
            buffers.start(communicator)
        except VendorError:
            return
        raise AssertionError(f"{_case(collective)} must raise VendorError, since {why}")

    def _prepare(self, collective: Collective, rough: bool) -> tuple[_Buffers, Array | None]:
        inputs = _inputs(collective, rough, self._seed)
        rank = self._group.rank
        return _Buffers.make(collective, rank, inputs[rank]), reference(collective, inputs)[rank]

    def _verify(self, buffers: _Buffers, expected: Array | None, rough: bool) -> bytes:
        """Compare an output with what is due; returns its digest."""
        self.cases += 1
        result = buffers.result()
        if result is None or expected is None:
            return b""
        collective = buffers.collective
        with numpy.errstate(invalid="ignore"):  # a NaN that is cast
            got, due = (array.astype("f8") if _is_small_float(array) else array for array in (result, expected))
        if rough and not self._capabilities.nan_propagates and collective.op in (ReduceKind.MIN, ReduceKind.MAX):
            usable = ~numpy.isnan(due)
            got, due = got[usable], due[usable]
        if rough and collective.op in (ReduceKind.SUM, ReduceKind.PROD):
            tolerance = _TOLERANCE.get(collective.dtype, 1e-12)
            fits = numpy.isclose(got, due, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            fits = (got == due) | ((got != got) & (due != due))
        if not fits.all():
            where = int(numpy.argmin(fits))
            raise AssertionError(
                f"{_case(collective)}{' on rough input' if rough else ''}: element {where} on rank {buffers.rank} is "
                f"{result[where]}, not {expected[where]} ({int((~fits).sum())} of {fits.size} are wrong)"
            )
        return hashlib.blake2b(result.tobytes(), digest_size=16).digest()

    def _same_bits(self, collective: Collective, digests: list[bytes]) -> None:
        everyone = self._group.all_gather(b"".join(digests))
        if collective.kind not in (CollectiveKind.REDUCE, CollectiveKind.REDUCE_SCATTER):
            different = [rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]]
            assert not different, f"{_case(collective)} and its like: ranks {different} hold other bits than rank 0"


def _finish(operation: Operation, collective: Collective, communicators: Iterable[VendorCommunicator]) -> None:
    end = time.monotonic() + _DEADLINE
    for tries in itertools.count():
        if operation.test():
            break
        if tries > 50:
            for communicator in communicators:
                communicator.progress()
            os.sched_yield()
        assert time.monotonic() < end, f"{_case(collective)} is not complete after {_DEADLINE:.0f} s"
    assert operation.test(), f"{_case(collective)}: a complete operation must stay complete"


def _case(collective: Collective) -> str:
    op = f" {collective.op.value}" if collective.op is not None else ""
    root = f", root {collective.root}" if collective.root is not None else ""
    place = ", in place" if collective.in_place else ""
    name = f"{collective.kind.value}{op} of {collective.count} {collective.dtype.value}"
    return f"{name} on {collective.nranks} ranks{root}{place}"


def _can_be_rough(collective: Collective) -> bool:
    return collective.kind.reduces and collective.dtype.is_inexact and collective.count > 0


def _is_small_float(array: Array) -> bool:
    return array.dtype.itemsize == 2 and array.dtype.kind not in "biu"


def _inputs(collective: Collective, rough: bool, seed: int) -> list[Array | None]:
    """Every rank's input, the same wherever it is asked for."""
    generator = numpy.random.default_rng([zlib.crc32(_case(collective).encode()), rough, seed])
    inputs: list[Array | None] = []
    for rank in range(collective.nranks):
        count = collective.in_count(rank)
        inputs.append(_values(generator, collective, count, rough) if count else None)
    return inputs


def _values(generator: numpy.random.Generator, collective: Collective, count: int, rough: bool) -> Array:
    dtype = numpy_dtype(collective.dtype)
    if collective.dtype is DataType.BOOL:
        return generator.random(count) < 0.5
    if collective.op is not None and collective.op.is_logical:
        return generator.choice(numpy.array([0, 1, 2, 16]), count).astype(dtype)
    if collective.dtype.is_integer or collective.op is None:
        values: Array = numpy.frombuffer(generator.bytes(count * dtype.itemsize), dtype).copy()
        return numpy.nan_to_num(values) if dtype.kind in "fc" else values
    if rough:
        values = (generator.integers(1, 99, count) / 3.0 / 16).astype(dtype)
        if collective.dtype.is_complex:
            values *= dtype.type(1 + 0.3j)
        chosen = generator.random(count)
        values[chosen < 0.1] = numpy.nan
        values[chosen > 0.9] = -numpy.nan
        return values
    if collective.op is ReduceKind.PROD:
        units = [1, -1, 1j, -1j, 1 + 1j] if collective.dtype.is_complex else [1, -1, 2, 0.5, -0.5]
        return generator.choice(numpy.array(units), count).astype(dtype)
    values = generator.integers(-8, 9, count).astype(dtype)
    if collective.dtype.is_complex:
        values += (1j * generator.integers(-8, 9, count)).astype(dtype)
    elif collective.op in (ReduceKind.MIN, ReduceKind.MAX):
        values[generator.random(count) < 0.1] = numpy.inf
        values[generator.random(count) < 0.1] = -numpy.inf
        values[values == 0] = 1  # zeros of either sign are equal
    return values
