"""The steps that a rank does alone on host memory: copy, scale, fill, reduce; with NumPy.

Integers wrap around, NaN comes through min and max, and an average of integers is truncated towards zero, as
`hetcomm.types.ReduceOp` promises. Nothing here warns about overflow or NaN: both are results.
"""

from __future__ import annotations

from typing import Any

import numpy

from hetcomm.calls.buffers import numpy_type, view
from hetcomm.types import COMBINING, DataType, Memory, Number, ReduceKind, identity

__all__ = ["average", "copy", "element", "fill", "multiply", "reduce"]

_UFUNCS: dict[ReduceKind, Any] = {kind: getattr(numpy, kind.ufunc) for kind in COMBINING}


def copy(src: Memory, dst: Memory) -> None:
    """`dst = src`."""
    numpy.copyto(view(dst), view(src))


def fill(dst: Memory, op: ReduceKind) -> None:
    """Set every element to the identity of `op`."""
    view(dst)[...] = identity(op, dst.dtype)


def reduce(src: Memory, dst: Memory, op: ReduceKind) -> None:
    """`dst = dst op src`, in that order of operands; `op` is one of `COMBINING`."""
    target = view(dst)
    with numpy.errstate(all="ignore"):
        _UFUNCS[op](target, view(src), out=target)


def multiply(src: Memory, dst: Memory, factor: Number) -> None:
    """`dst = src * factor`, in the element type; `check_factor` has accepted the factor."""
    source, target = view(src), view(dst)
    with numpy.errstate(all="ignore"):
        numpy.multiply(source, element(factor, src.dtype), out=target)


def element(value: Number, dtype: DataType) -> Any:
    """An array of one element: `value` in the element type. Integers wrap around, floats overflow to infinity."""
    if dtype.is_integer:
        bits = 8 * dtype.itemsize
        wrapped = int(value.real) & (1 << bits) - 1  # two's complement, whatever the sign
        return numpy.array([wrapped], f"uint{bits}").view(numpy_type(dtype))
    if dtype is DataType.BOOL:
        return numpy.array([value != 0])
    with numpy.errstate(all="ignore"):
        return numpy.array([value], "complex128" if dtype.is_complex else "float64").astype(numpy_type(dtype))


def average(src: Memory, dst: Memory, nranks: int) -> None:
    """`dst = src / nranks`: integers are truncated towards zero, 16-bit floats divided in float32 and rounded once."""
    source, target = view(src), view(dst)
    with numpy.errstate(all="ignore"):
        if not src.dtype.is_integer:
            if src.dtype.is_complex:  # component by component: complex division would mix NaN and infinities
                part = "float32" if src.dtype is DataType.COMPLEX64 else "float64"
                source, target = source.view(part), target.view(part)
            if src.dtype.itemsize == 2:
                target[...] = (source.astype("float32") / numpy.float32(nranks)).astype(target.dtype)
            else:
                numpy.divide(source, source.dtype.type(nranks), out=target)
            return
        wide = source.astype("int64" if src.dtype.is_signed else "uint64")  # nranks need not fit the narrow type
        quotient = wide // nranks
        quotient += (wide < 0) & (quotient * nranks != wide)  # floor to truncation
        target[...] = quotient.astype(target.dtype)
