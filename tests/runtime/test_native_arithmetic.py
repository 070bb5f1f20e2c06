"""What the binding computes alone is what NumPy computes, to the bit, on every processor's path."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hetcomm._conformance.reference import numpy_dtype
from hetcomm._ext import ucp
from hetcomm.execution import local
from hetcomm.types import COMBINING as OPS
from hetcomm.types import DataType, Memory, Number, ReduceKind, has_meaning, identity

COMBINING = [op.value for op in OPS]
HALVES = [DataType.FLOAT16, DataType.BFLOAT16]
OF_STEPS = {"average": ReduceKind.AVG, "multiply": ReduceKind.PREMUL_SUM, **{op.value: op for op in OPS}}
STEPS = [(dtype, what) for dtype in DataType for what, op in OF_STEPS.items() if has_meaning(op, dtype)]
STEPS += [(dtype, "fill") for dtype in DataType]
steps = pytest.mark.parametrize(("dtype", "what"), STEPS, ids=lambda value: getattr(value, "value", value))
paths = pytest.mark.parametrize("plain", [False, True], ids=["best", "plain"])


def run(
    what: str,
    dst: Any,
    src: Any,
    dtype: DataType,
    count: int,
    number: Number,
    plain: bool,
    offset: int = 0,
    other: Any = None,
) -> None:
    """One step by the binding, on arrays of bytes; `dst` begins at byte `offset`, and is its own `other` if none is."""
    value = np.int64(number).tobytes() if what == "average" else local.element(number, dtype).tobytes()
    target = dst.ctypes.data + offset
    first = target if other is None else other.ctypes.data
    ucp._run_loop(dtype.value, what, target, first, src.ctypes.data, count, value, plain)


def expect(what: str, dst: Any, src: Any, dtype: DataType, count: int, number: Any, offset: int = 0) -> None:
    """The same by NumPy."""
    target, source = Memory(dst.ctypes.data + offset, count, dtype), Memory(src.ctypes.data, count, dtype)
    if what == "average":
        local.average(source, target, number)
    elif what == "multiply":
        local.multiply(source, target, number)
    elif what == "fill":
        local.fill(target, ReduceKind.LAND if dtype is DataType.BOOL else ReduceKind.PROD)  # with ones
    else:
        local.reduce(source, target, ReduceKind(what))


def unfused(one: Any, other: Any) -> Any:
    """The product of complex numbers where nothing is fused."""
    product = np.empty_like(one)
    product.real = one.real * other.real - one.imag * other.imag
    product.imag = one.real * other.imag + one.imag * other.real
    return product


def samples(dtype: DataType, count: int, rng: Any) -> Any:
    """Any bits there are, numbers whose sums and products are none too large, and all that is special."""
    kind = numpy_dtype(dtype)
    values = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(kind)
    if dtype is DataType.BOOL:
        special = np.array([False, True])
    elif dtype.is_integer:
        edges = [identity(op, dtype) for op in (ReduceKind.MIN, ReduceKind.MAX)]
        special = np.array([*edges, 0, 1, 2, 3], kind)
    else:
        tame = rng.random(count) < 0.4
        values[tame] = rng.standard_normal(int(tame.sum())).astype(kind)
        part = np.dtype(f"f{dtype.itemsize // 2}") if dtype.is_complex else kind
        tiny, huge = np.array([1], f"u{part.itemsize}").view(part)[0], np.array([3e38, 6e4][part.itemsize == 2], part)
        special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny, huge, -huge], part)
        if dtype.is_complex:
            special = rng.permutation(np.resize(special, 18)).view(kind)
    odd = rng.random(count) < 0.3
    values[odd] = rng.choice(special, int(odd.sum()))
    return values


def is_nan(array: Any) -> Any:
    with np.errstate(all="ignore"):  # ml_dtypes warns
        return array != array


def same(mine: Any, theirs: Any, two_nans: Any) -> bool:
    """Whether the bits are equal; where two NaNs were combined, or parts of complex numbers, a NaN is a NaN."""
    if mine.dtype.kind == "c":
        part = mine.real.dtype
        mine, theirs = mine.view(part), theirs.view(part)
        two_nans = is_nan(mine)
    bits = f"u{mine.dtype.itemsize}"
    alike = mine.view(bits) == theirs.view(bits)
    return bool(np.all(alike | (two_nans & is_nan(mine) & is_nan(theirs))))


@steps
@paths
@settings(max_examples=8)
@example(count=100, offset=0, in_place=False, seed=0)
@given(st.integers(0, 70), st.integers(0, 33), st.booleans(), st.integers(0, 2**20))
def test_every_step_is_that_of_numpy(
    dtype: DataType, what: str, plain: bool, count: int, offset: int, in_place: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if dtype.is_complex and count == 1:
        count = 2  # NumPy fuses as for all others only in arrays of several
    kind, nbytes = numpy_dtype(dtype), count * dtype.itemsize
    mine = rng.integers(0, 256, offset + nbytes + 40, np.uint8)
    inside = slice(offset, offset + nbytes)
    mine[inside] = samples(dtype, count, rng).view(np.uint8)
    theirs = mine.copy()
    in_place = in_place and what in ("average", "multiply")
    source = samples(dtype, count, rng).view(np.uint8)
    if in_place:
        source = mine[inside]
    before, other = theirs[inside].copy().view(kind), source.copy().view(kind)
    number: Any = 1
    if what == "average":
        number = int(rng.choice([1, 2, 3, 7, 300, 70000, 2**31 - 1]))
    elif what == "multiply":
        factors = [0, -1, 3, 7] if dtype.is_integer else [0.0, -1.0, 0.1, 3, 1e30]
        number = complex(*rng.choice(factors, 2)) if dtype.is_complex else rng.choice(factors).item()
    run(what, mine, source, dtype, count, number, plain, offset)
    expect(what, theirs, theirs[inside] if in_place else source, dtype, count, number, offset)
    if plain and dtype.is_complex and platform.machine() == "x86_64" and what in ("prod", "multiply"):
        with np.errstate(all="ignore"):
            if what == "prod":
                product = unfused(before, other)
            else:
                product = unfused(other, np.broadcast_to(local.element(number, dtype), count))
        theirs[inside] = product.view(np.uint8)
    two_nans = is_nan(before) & is_nan(other) & (what in ("sum", "prod"))
    got, wanted = mine[inside].copy().view(kind), theirs[inside].copy().view(kind)
    assert same(got, wanted, two_nans), (got, wanted)
    for is_second in (False, True) if what in COMBINING else ():  # the result in place of the second, or of neither
        second = mine[inside] if is_second else other.view(np.uint8)
        mine[inside] = other.view(np.uint8) if is_second else 0
        run(what, mine, second, dtype, count, number, plain, offset, before.view(np.uint8))
        assert np.array_equal(mine[inside], got.view(np.uint8))
    mine[inside] = theirs[inside] = 0
    assert mine.tobytes() == theirs.tobytes(), "what lies beside it is not touched"


@paths
@pytest.mark.parametrize("dtype", HALVES, ids=lambda value: value.value)
@pytest.mark.parametrize("what", ["sum", "prod", "min", "max", "average", "multiply"])
def test_every_half_precision_number_is_converted_as_numpy_does(dtype: DataType, what: str, plain: bool) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for seed in range(2):
        mine, source = every.copy(), np.random.default_rng(seed).permutation(every)
        theirs = mine.copy()
        number = 3 + seed
        run(what, mine, source, dtype, every.size, number, plain)
        expect(what, theirs, source, dtype, every.size, number)
        kind = numpy_dtype(dtype)
        two_nans = is_nan(every.view(kind)) & is_nan(source.view(kind)) & (what in ("sum", "prod"))
        assert same(mine.view(kind), theirs.view(kind), two_nans)


def test_there_are_no_loops_without_a_meaning() -> None:
    for dtype in DataType:
        for what in OF_STEPS:
            if (dtype, what) not in STEPS:
                with pytest.raises(ValueError, match=f"'{what}'"):
                    run(what, np.zeros(16, np.uint8), np.zeros(16, np.uint8), dtype, 1, 1, False)
