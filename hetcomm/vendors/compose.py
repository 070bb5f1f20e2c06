"""Reductions that a library lacks or gets wrong, made of ones it does right, by a detour on each rank.

Every detour starts exactly one collective of the library, at once, so that calls keep the same order on all ranks,
and every rank decodes the same bits, so that results stay bit-identical:

===========  =========================  ==================================================================
ordered      min, max of floats         as integers that sort like the floats, with NaN beyond all of them,
                                        since libraries compare with `<` and lose NaN
shifted      min, max of unsigned       as signed integers, less half of their range
widened      small types                as float32 or int32, rounded or truncated once at the end
pairs        sum of complex             as sums of twice as many reals, nothing is copied
gathered     anything else              all inputs are gathered, each rank combines them in rank order
===========  =========================  ==================================================================
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import COMBINING, DataType, Memory, ReduceKind
from hetcomm.vendors.base import Operation

__all__ = [
    "NUMPY_REDUCTION",
    "Native",
    "Then",
    "alone",
    "as_array",
    "as_memory",
    "copy",
    "input_of",
    "numpy_dtype",
    "one_nan",
    "output_of",
    "start",
]

Array = NDArray[Any]
Native = Callable[[Collective, Memory | None, Memory | None], Operation]
"""Starts a collective that the library itself can do."""

NUMPY_REDUCTION: dict[ReduceKind, np.ufunc] = {kind: getattr(np, kind.ufunc) for kind in COMBINING}
_BLOCK = 16384
_FLOATS = (DataType.FLOAT16, DataType.BFLOAT16, DataType.FLOAT32, DataType.FLOAT64)


class Then:
    """An operation with something to do here once it is complete, and the scratch memory it works on meanwhile."""

    def __init__(self, operation: Operation, finish: Callable[[], None], *scratch: Memory) -> None:
        self._operation = operation
        self._finish: Callable[[], None] | None = finish
        self._scratch = scratch

    def test(self) -> bool:
        """Whether the operation is complete and its ending done."""
        if self._finish is not None:
            if not self._operation.test():
                return False
            self._finish()
            self._finish = None
            self._scratch = ()
        return True


def numpy_dtype(dtype: DataType) -> np.dtype[Any]:
    """What NumPy calls it."""
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if dtype is DataType.BFLOAT16 else dtype.value)
    return found


def as_array(memory: Memory) -> Array:
    """Host memory as a NumPy array that shares it and keeps its owner alive."""
    if not memory.count:
        return np.empty(0, numpy_dtype(memory.dtype))
    raw = (ctypes.c_uint8 * memory.nbytes).from_address(memory.address)
    raw._owner = memory.owner  # type: ignore[attr-defined]  # ctypes objects take attributes
    array: Array = np.ctypeslib.as_array(raw).view(numpy_dtype(memory.dtype))
    return array


def as_memory(array: Array, dtype: DataType) -> Memory:
    """A NumPy array as host memory that keeps it alive."""
    address: int = array.__array_interface__["data"][0]  # quicker than array.ctypes
    return Memory(address, array.size, dtype, owner=array)


def alone(collective: Collective, src: Memory, dst: Memory) -> None:
    """What a single rank gets of its input: a copy; of a logical op, 0 and 1."""
    copy(src, dst)
    if collective.op is not None and collective.op.is_logical:
        values = as_array(dst)
        np.not_equal(values, 0, out=values)


def copy(src: Memory, dst: Memory) -> None:
    """Copy host memory of equal length; nothing happens where both are the same."""
    if src.address != dst.address and src.count:
        ctypes.memmove(dst.address, src.address, src.nbytes)


def input_of(collective: Collective, rank: int, src: Memory | None, dst: Memory | None) -> Memory | None:
    """Where the input of `rank` lies, in place or not; None if it passes none."""
    count = collective.in_count(rank)
    if collective.in_place and dst is not None and count:
        return dst.part(collective.in_offset(rank), count)
    return src if count else None


def output_of(collective: Collective, rank: int, dst: Memory | None) -> Memory | None:
    """Where the output of `rank` goes, in place or not; None if it gets none."""
    count = collective.out_count(rank)
    return dst.part(collective.out_offset(rank), count) if dst is not None and count else None


def one_nan(operation: Operation, collective: Collective, out_memory: Memory | None) -> Operation:
    """An all_reduce of floats with all NaN made equal at its end.

    Where a library adds a + b on one rank and b + a on the other, the bits are the same, but for the sign and payload
    of NaN, which a processor takes from the first of two.
    """
    if not collective.dtype.is_inexact or out_memory is None:
        return operation
    memory = out_memory

    def finish() -> None:
        values = as_array(memory)
        if collective.dtype.is_complex:
            values = values.view(values.real.dtype)
        lowest = np.minimum.reduce(values)
        if lowest != lowest:
            values[np.isnan(values)] = np.nan

    return Then(operation, finish)


@dataclass(frozen=True, slots=True)
class _Call:
    """One rank's call of a reduction, with where its input lies and where its output goes."""

    collective: Collective
    rank: int
    in_memory: Memory | None
    out_memory: Memory | None
    source: Memory
    target: Memory | None


@dataclass(frozen=True, slots=True)
class _Detour:
    """How elements travel: as which type and reduction, how they are put into it and got back."""

    dtype: DataType
    op: ReduceKind
    encode: Callable[[Array], Array]
    decode: Callable[[Array, Array], None]  # what has travelled, where it goes


def start(
    collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None, native: Native
) -> Operation:
    """Start a reduction by the detour for its dtype and op, through one call of `native`.

    The memories are those of `VendorCommunicator.start`; they are on the host.
    """
    source = input_of(collective, rank, in_memory, out_memory)
    assert source is not None  # every rank of a reduction passes an input
    call = _Call(collective, rank, in_memory, out_memory, source, output_of(collective, rank, out_memory))
    match collective.dtype, collective.op:
        case ((DataType.COMPLEX64 | DataType.COMPLEX128), ReduceKind.SUM):
            return _start_pairs(call, native)
        case dtype, (ReduceKind.MIN | ReduceKind.MAX) as op if dtype in _FLOATS:
            return _start_encoded(call, native, _ordered(dtype, op))
        case dtype, (ReduceKind.MIN | ReduceKind.MAX) as op if dtype.itemsize >= 4 and not dtype.is_signed:
            return _start_encoded(call, native, _shifted(dtype, op))
        case dtype, ReduceKind() as op if dtype.itemsize < 4:
            return _start_encoded(call, native, _widened(dtype, op))
        case _:
            return _start_gathered(call, native)


@lru_cache
def _ordered(dtype: DataType, op: ReduceKind) -> _Detour:
    """Floats as signed integers: a negative float's lower bits are inverted, so that integers sort as floats do."""
    travelling = {2: DataType.INT16, 4: DataType.INT32, 8: DataType.INT64}[dtype.itemsize]
    integer = np.dtype(travelling.value)
    low, high = np.iinfo(integer).min, np.iinfo(integer).max
    beyond = high if op is ReduceKind.MAX else low  # both decode to a NaN
    sign = 8 * dtype.itemsize - 1

    def flip(bits: Array, flipped: Array) -> None:
        np.right_shift(bits, sign, out=flipped)
        np.bitwise_and(flipped, high, out=flipped)
        np.bitwise_xor(flipped, bits, out=flipped)

    def encode(values: Array) -> Array:
        bits = values.view(integer)
        keys = np.empty_like(bits)
        for block in _blocks(values.size):
            flip(bits[block], keys[block])
            lost = np.isnan(values[block])
            if lost.any():
                keys[block][lost] = beyond
        return keys

    def decode(keys: Array, out: Array) -> None:
        bits = out.view(integer)
        for block in _blocks(out.size):
            flip(keys[block], bits[block])

    return _Detour(travelling, op, encode, decode)


def _blocks(count: int) -> list[slice]:
    """Pieces of an array that stay in a processor's cache from one pass to the next."""
    return [slice(start, start + _BLOCK) for start in range(0, count, _BLOCK)]


@lru_cache
def _widened(dtype: DataType, op: ReduceKind) -> _Detour:
    """Small types as 32-bit ones; for integers the low bits are exact, however far the wide ones wrap around."""
    travelling = DataType.INT32 if dtype.is_integer else DataType.FLOAT32

    def decode(wide: Array, out: Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            out[:] = wide.astype(out.dtype)

    return _Detour(travelling, op, lambda values: values.astype(travelling.value), decode)


@lru_cache
def _shifted(dtype: DataType, op: ReduceKind) -> _Detour:
    """Unsigned integers as signed ones, with the first bit inverted, so that they sort alike."""
    travelling = {4: DataType.INT32, 8: DataType.INT64}[dtype.itemsize]
    first = np.array(1 << 8 * dtype.itemsize - 1, dtype.value)

    def decode(shifted: Array, out: Array) -> None:
        np.bitwise_xor(shifted.view(out.dtype), first, out=out)

    return _Detour(travelling, op, lambda values: (values ^ first).view(travelling.value), decode)


def _start_encoded(call: _Call, native: Native, detour: _Detour) -> Operation:
    collective, target = call.collective, call.target
    travels = replace(
        collective,
        dtype=detour.dtype,
        op=detour.op,
        in_place=collective.kind is CollectiveKind.ALL_REDUCE,  # on the one scratch array
    )
    encoded = as_memory(detour.encode(as_array(call.source)), detour.dtype)
    if travels.in_place:
        result = encoded
        operation = native(travels, None, encoded)
    else:
        result = as_memory(np.empty(travels.out_count(call.rank), detour.dtype.value), detour.dtype)
        operation = native(travels, encoded, result if result.count else None)

    def finish() -> None:
        if target is not None:
            detour.decode(as_array(result), as_array(target))

    return Then(operation, finish, encoded, result)


def _start_pairs(call: _Call, native: Native) -> Operation:
    real = DataType.FLOAT32 if call.collective.dtype is DataType.COMPLEX64 else DataType.FLOAT64

    def pairs(memory: Memory | None) -> Memory | None:
        return None if memory is None else Memory(memory.address, 2 * memory.count, real, memory.kind, memory.owner)

    twice = replace(call.collective, count=2 * call.collective.count, dtype=real)
    return native(twice, pairs(call.in_memory), pairs(call.out_memory))


def _start_gathered(call: _Call, native: Native) -> Operation:
    collective, source, target = call.collective, call.source, call.target
    assert collective.op is not None  # it reduces
    nranks = collective.nranks
    combine = NUMPY_REDUCTION[collective.op]
    gather = Collective(CollectiveKind.ALL_GATHER, nranks, source.count, collective.dtype)
    gathered = as_memory(np.empty(nranks * source.count, numpy_dtype(collective.dtype)), collective.dtype)
    first = call.rank * collective.count if collective.kind is CollectiveKind.REDUCE_SCATTER else 0
    operation = native(gather, source, gathered)

    def finish() -> None:
        if target is None:
            return
        inputs = as_array(gathered).reshape(nranks, -1)[:, first : first + target.count]
        out = as_array(target)
        out[:] = inputs[0]
        with np.errstate(all="ignore"):
            for other in inputs[1:]:
                combine(out, other, out=out)

    return Then(operation, finish, gathered)
