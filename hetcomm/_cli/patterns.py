"""What is in the buffers of a benchmark, so that any result can be checked fast and exactly.

Inputs are whole numbers, small enough that no order of additions or multiplications rounds in any dtype, and they
differ between ranks and neighbouring elements: a result is right only if it is equal. They repeat themselves, by
periods that are no power of two, so what is right is worked out for one period only, by the reference of the tests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy
from numpy.typing import NDArray

from hetcomm._conformance.reference import numpy_dtype, reference
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, ReduceKind, identity

__all__ = ["PIECE", "Array", "combined", "factor", "values"]

Array = NDArray[Any]

PIECE = 1 << 14
"""Elements that can be asked for at a time."""

_EXACT = {DataType.FLOAT16: 2048, DataType.BFLOAT16: 256}  # up to there whole numbers are exact; others: far enough
_MOVED, _COMPARED, _ADDED = 127, 101, 101  # the periods, which are also how many values there are
_FACTORS = 11  # for products, where the number of ranks comes in too


def factor(rank: int) -> int:
    """What `rank` multiplies its input by in a premul_sum."""
    return 1 + rank % 2


def values(dtype: DataType, op: ReduceKind | None, nranks: int, rank: int, start: int, stop: int) -> Array:
    """Elements `start` to `stop`, at most `PIECE`, of the input of `rank`; not to be written to."""
    first = start % _period(dtype, op, nranks)
    return _values(dtype, op, nranks, rank)[first : first + stop - start]


def combined(dtype: DataType, op: ReduceKind | None, nranks: int, sources: range, start: int, stop: int) -> Array:
    """What elements `start` to `stop`, at most `PIECE`, of the inputs of `sources` combine to (none: the identity)."""
    first = start % _period(dtype, op, nranks)
    return _combined(dtype, op, nranks, sources)[first : first + stop - start]


def _period(dtype: DataType, op: ReduceKind | None, nranks: int) -> int:
    match op:
        case ReduceKind.PROD:
            return _FACTORS * nranks
        case ReduceKind.SUM | ReduceKind.AVG | ReduceKind.PREMUL_SUM:
            return min(_ADDED, max(2, 1 + _most(dtype) // nranks))
        case None:
            return _MOVED
        case _:
            return _COMPARED


def _most(dtype: DataType) -> int:
    """What all inputs may add up to; factors double it."""
    return _EXACT.get(dtype, 1 << 20) // 2


@lru_cache(maxsize=64)
def _values(dtype: DataType, op: ReduceKind | None, nranks: int, rank: int) -> Array:
    period = _period(dtype, op, nranks)
    index = numpy.arange(period + PIECE, dtype=numpy.int64)
    mixed = index * 7 + rank * 13
    match op:
        case ReduceKind.PROD:  # at most eight ranks have a 2 at one element
            raw = 1 + (mixed % _FACTORS % 2) * ((index + rank) % nranks < 8)
        case ReduceKind.SUM | ReduceKind.AVG | ReduceKind.PREMUL_SUM:
            raw = mixed % period if rank < _most(dtype) else 0 * mixed
        case ReduceKind.MIN | ReduceKind.MAX:
            raw = mixed % period - (period // 2 if dtype.is_signed else 0)
        case _:
            raw = mixed % period
    if dtype is DataType.BOOL or (op is not None and op.is_logical):
        raw = raw % 3  # of which two are true
    array: Array = raw.astype(numpy_dtype(dtype))
    if dtype.is_complex and op is not ReduceKind.PROD:
        array += 1j * ((raw + 1) % 3)
    return array


@lru_cache(maxsize=64)
def _combined(dtype: DataType, op: ReduceKind | None, nranks: int, sources: range) -> Array:
    inputs = [_values(dtype, op, nranks, source) for source in sources]
    if op is None:
        return inputs[0]
    if not inputs:
        return numpy.full(_period(dtype, op, nranks) + PIECE, identity(op, dtype), numpy_dtype(dtype))
    whole = Collective(CollectiveKind.ALL_REDUCE, len(inputs), len(inputs[0]), dtype, op=op)
    found = reference(whole, inputs, [factor(source) for source in sources])[0]
    assert found is not None  # every rank of an all_reduce gets something
    return found
