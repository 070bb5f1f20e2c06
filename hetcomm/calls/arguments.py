"""What all calls check alike: roots, ops, counts and arrays; and the `Collective` that a call means.

Whatever is wrong is a `UsageError` that names rank, argument and remedy.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from hetcomm.calls.buffers import overlap
from hetcomm.errors import UsageError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, Memory, Number, PremulSum, ReduceOp, as_number, seconds

__all__ = [
    "Call",
    "check_factor",
    "check_factor_of",
    "check_integer",
    "check_integers",
    "check_op",
    "check_root",
    "check_same_kind",
    "check_timeout",
    "missing",
    "refuse_overlap",
    "uniform_collective",
    "unless_in_place",
    "vector_collective",
    "wrong_size",
]

_KEPT = 4096
_UNIFORM: dict[tuple[int, int, int, int, int, int | None, bool], Collective] = {}
_VECTOR: dict[tuple[object, ...], Collective] = {}


@dataclass(frozen=True, slots=True)
class Call:
    """One rank's call. In place, `out_memory` is the one buffer and `in_memory` is None."""

    collective: Collective
    in_memory: Memory | None
    out_memory: Memory | None
    factor: Number | None = None


def uniform_collective(
    kind: CollectiveKind,
    nranks: int,
    count: int,
    one: Memory,
    op: ReduceOp | None,
    root: int | None,
    in_place: bool,
    rank: int,
) -> Collective:
    """The collective on arrays like `one`; equal arguments give the identical object: plans are found by identity.

    Raises:
        UsageError: The op has no meaning for the dtype.
    """
    reduction = None if op is None else op.kind
    key = (id(kind), nranks, count, id(one.dtype), id(reduction), root, in_place)  # members of enums are never freed
    found = _UNIFORM.get(key)
    if found is None:
        try:
            found = Collective(kind, nranks, count, one.dtype, reduction, root, in_place)
        except UsageError as error:
            raise UsageError(error.message, remedy=error.remedy, rank=rank) from error
        if len(_UNIFORM) >= _KEPT:
            _UNIFORM.clear()
        _UNIFORM[key] = found
    return found


def vector_collective(
    kind: CollectiveKind,
    nranks: int,
    counts: tuple[int, ...],
    dtype: DataType,
    *,
    rank: int,
    op: ReduceOp | None = None,
    root: int | None = None,
    in_place: bool = False,
    in_displs: tuple[int, ...] | None = None,
    out_displs: tuple[int, ...] | None = None,
) -> Collective:
    """The same for the vector forms.

    Raises:
        UsageError: The op has no meaning for the dtype.
    """
    reduction = None if op is None else op.kind
    key = (id(kind), nranks, counts, id(dtype), id(reduction), root, in_place, in_displs, out_displs)
    found = _VECTOR.get(key)
    if found is None:
        try:
            found = Collective(
                kind, nranks, sum(counts), dtype, reduction, root, in_place, counts, in_displs, out_displs
            )
        except UsageError as error:
            raise UsageError(error.message, remedy=error.remedy, rank=rank) from error
        if len(_VECTOR) >= _KEPT:
            _VECTOR.clear()
        _VECTOR[key] = found
    return found


# ---- numbers


def check_timeout(timeout: Any, default: float, rank: int) -> float:
    """Seconds a call may take."""
    if timeout is None:
        return default
    if type(timeout) is float and 0 < timeout < math.inf:
        return timeout
    try:
        return seconds(timeout)
    except UsageError as error:
        raise UsageError(f"argument 'timeout' is {error.message}", remedy=error.remedy, rank=rank) from error.__cause__


def check_integer(argument: str, value: Any, rank: int | None) -> int:
    """An integer of any type, exactly."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise UsageError(
            f"argument {argument!r} is {value!r}, which is no integer", remedy="Pass an int.", rank=rank
        ) from error


def check_root(root: Any, rank: int, nranks: int) -> int:
    """A rank of the communicator."""
    try:
        number = operator.index(root)
    except TypeError:
        number = -1
    if isinstance(root, bool) or not 0 <= number < nranks:
        raise UsageError(
            f"argument 'root' is {root!r}, which is not a rank of this communicator",
            remedy=f"Use a root from 0 to {nranks - 1}.",
            rank=rank,
        )
    return number


def check_op(op: Any, rank: int) -> ReduceOp:
    """A reduction."""
    if isinstance(op, ReduceOp):
        return op
    try:
        return ReduceOp.parse(op)
    except UsageError as error:
        raise UsageError(f"argument 'op': {error.message}", remedy=error.remedy, rank=rank) from error


def check_factor(factor: Number, dtype: DataType, rank: int) -> None:
    """Refuse a factor of `premul_sum` that the element type cannot hold.

    Raises:
        UsageError: Not an integer for integers, complex for reals, or an integer beyond all floats for others.
    """
    wanted = "an int" if dtype.is_integer else "a real number"
    if isinstance(factor, int):
        if dtype.is_integer or -sys.float_info.max <= factor <= sys.float_info.max:
            return
        described, wanted = f"of {factor.bit_length()} bits", "a float, which may be infinite,"
    else:
        if dtype.is_complex or (not dtype.is_integer and not isinstance(factor, complex)):
            return
        described = repr(factor)
    raise UsageError(
        f"argument 'op' has the factor {described}, which {dtype.value} arrays cannot be multiplied by",
        remedy=f"Pass {wanted} to hetcomm.premul_sum.",
        rank=rank,
    )


def check_factor_of(op: ReduceOp, dtype: DataType, rank: int) -> Number | None:
    """The factor of `premul_sum`, which `dtype` can hold; None for other ops."""
    if not isinstance(op, PremulSum):
        return None
    factor = as_number(op.factor)
    if factor is None:
        raise UsageError(
            f"argument 'op' has the factor {op.factor!r}, which is not a number",
            remedy="Pass an int, a float or a complex to hetcomm.premul_sum.",
            rank=rank,
        )
    check_factor(factor, dtype, rank)
    return factor


def check_integers(values: Any, argument: str, rank: int, nranks: int) -> tuple[int, ...]:
    """One integer for each rank, none negative, from a sequence or an array of one dimension."""
    if type(values) in (tuple, list) and all(type(value) is int for value in values):
        found = tuple(values)
    elif isinstance(values, numpy.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        found = tuple(values.tolist())
    else:
        found = _integers(values, argument, rank)
    if len(found) != nranks:
        raise UsageError(
            f"argument {argument!r} has {len(found)} entries for {nranks} ranks",
            remedy="Give one for each rank, in rank order.",
            rank=rank,
        )
    if found and not 0 <= min(found) <= max(found) <= sys.maxsize:
        number = next(number for number, value in enumerate(found) if not 0 <= value <= sys.maxsize)
        what = "negative" if found[number] < 0 else "longer than any array"
        raise UsageError(
            f"argument {argument!r} has {found[number]} for rank {number}, which is {what}",
            remedy="Pass numbers of elements.",
            rank=rank,
        )
    return found


def _integers(values: Any, argument: str, rank: int) -> tuple[int, ...]:
    """The slow path: other sequences, other arrays, NumPy's integers; or an error that says what is wrong."""
    if isinstance(values, (str, bytes)) or not (isinstance(values, Sequence) or hasattr(values, "__array__")):
        raise UsageError(
            f"argument {argument!r} is a {type(values).__name__}, which is no sequence of integers",
            remedy="Pass a list, a tuple or an array of integers, one for each rank.",
            rank=rank,
        )
    found = []
    try:
        entries = list(values)
    except TypeError:  # an array without dimensions
        entries = [values]
    for number, value in enumerate(entries):
        try:
            if isinstance(value, bool):
                raise TypeError
            found.append(operator.index(value))
        except TypeError:
            raise UsageError(
                f"argument {argument!r} has {value!r} for rank {number}, which is no integer",
                remedy="Pass a list, a tuple or an array of integers, one for each rank.",
                rank=rank,
            ) from None
    return tuple(found)


# ---- arrays


def check_same_kind(src: Memory, dst: Memory, rank: int) -> None:
    """Both arrays are of one dtype, in one kind of memory."""
    if src.dtype is not dst.dtype:
        raise UsageError(
            f"argument 'out_array' is of dtype {dst.dtype.value}, but 'in_array' of {src.dtype.value}",
            remedy="Pass arrays of one dtype.",
            rank=rank,
        )
    if src.kind is not dst.kind:
        raise UsageError(
            f"argument 'out_array' is in {dst.kind.value} memory, but 'in_array' in {src.kind.value} memory",
            remedy="Pass arrays in the same memory.",
            rank=rank,
        )


def unless_in_place(part: Memory | None, whole: Memory, offset: int, rank: int) -> Memory | None:
    """`part`, or None if it is `whole` from element `offset` on; any other overlap is refused."""
    if part is None:
        return None
    if part.count and part.kind is whole.kind and part.address == whole.address + offset * whole.dtype.itemsize:
        return None
    refuse_overlap(part, whole, "or call it in place: without out_array", rank)
    return part


def refuse_overlap(one: Memory, other: Memory, otherwise: str, rank: int) -> None:
    """Input and output share no element; `otherwise` ends the remedy."""
    if overlap(one, other):
        raise UsageError(
            "arguments 'in_array' and 'out_array' overlap in memory",
            remedy=f"Pass arrays that share no element, {otherwise}.",
            rank=rank,
        )


def missing(argument: str, why: str, remedy: str, rank: int) -> UsageError:
    """The error for None where an array or counts are needed."""
    return UsageError(f"argument {argument!r} is None, but {why}", remedy=remedy, rank=rank)


def wrong_size(argument: str, count: int, wanted: str, rank: int) -> UsageError:
    """The error for an array of `count` elements."""
    return UsageError(f"argument {argument!r} has {count} elements", remedy=f"It must have {wanted}.", rank=rank)
