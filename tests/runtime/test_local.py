"""The steps a rank does alone mean what the reference says, to the bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hetcomm._conformance.reference import average, numpy_dtype, scaled
from hetcomm.calls import arguments
from hetcomm.calls.buffers import memory
from hetcomm.errors import UsageError
from hetcomm.execution import local
from hetcomm.types import COMBINING, DataType, Memory, ReduceKind, has_meaning, identity

NUMBERS = [dtype for dtype in DataType if dtype is not DataType.BOOL]


def of(array: Any) -> Memory:
    return memory(array, argument="a", rank=0, writable=True)


def samples(dtype: DataType) -> Any:
    kind = numpy_dtype(dtype)
    if dtype.is_integer:
        edges = [identity(ReduceKind.MAX, dtype), identity(ReduceKind.MIN, dtype)]
        return np.array([*edges, 0, 1, 2, 3, 5, 7, 100], kind)
    if dtype is DataType.BOOL:
        return np.array([False, True, True])
    return np.array([0, -0.0, 1, -3, 7, 1e4, np.inf, -np.inf, np.nan]).astype(kind)


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("nranks", [1, 2, 3, 7, 300])
def test_average(dtype: DataType, nranks: int) -> None:
    values = samples(dtype)
    out = np.empty_like(values)
    local.average(of(values), of(out), nranks)
    with np.errstate(all="ignore"):
        expected = average(values, nranks)
    if dtype.is_complex:
        assert np.allclose(out, values.real / nranks, equal_nan=True)
    else:
        assert np.array_equal(out.astype("f8"), expected.astype("f8"), equal_nan=not dtype.is_integer)


def test_an_average_of_integers_is_truncated_towards_zero() -> None:
    values = np.array([-7, -1, 7, 1, -6], "i4")
    local.average(of(values), of(values), 3)
    assert values.tolist() == [-2, 0, 2, 0, -2]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("factor", [0, 1, 3, -2])
def test_multiply(dtype: DataType, factor: int) -> None:
    values = samples(dtype)
    out = np.empty_like(values)
    local.multiply(of(values), of(out), factor)
    with np.errstate(all="ignore"):
        assert out.tobytes() == scaled(values, factor).tobytes()


def test_reductions_propagate_nan_and_wrap_around() -> None:
    for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        for op in (ReduceKind.MIN, ReduceKind.MAX):
            left, right = np.array([1, np.nan, 2], kind), np.array([np.nan, 1, 3], kind)
            local.reduce(of(right), of(left), op)
            assert np.isnan(left).tolist() == [True, True, False]
            assert float(left[2]) == (2 if op is ReduceKind.MIN else 3)
    bytes_ = np.array([200, 255], "u1")
    local.reduce(of(np.array([100, 2], "u1")), of(bytes_), ReduceKind.SUM)
    assert bytes_.tolist() == [44, 1]


@pytest.mark.parametrize("dtype", DataType)
@pytest.mark.parametrize("op", COMBINING)
def test_fill_changes_nothing_when_combined(dtype: DataType, op: ReduceKind) -> None:
    if not has_meaning(op, dtype):
        return
    values = samples(dtype)
    if dtype.is_complex:
        values = values[np.isfinite(values)]  # a complex infinity times one is not a number
    before, filled = (values != 0 if op.is_logical else values.copy()), np.empty_like(values)
    local.fill(of(filled), op)
    local.reduce(of(filled), of(values), op)
    assert np.array_equal(values.astype("c16"), before.astype("c16"), equal_nan=True)


@pytest.mark.parametrize("dtype", [dtype for dtype in DataType if dtype.is_integer])
def test_bitwise_ops_work_on_bits_and_logical_ones_give_0_and_1(dtype: DataType) -> None:
    wanted = {
        "band": [4, 0, 0],
        "bor": [7, 3, 0],
        "bxor": [3, 3, 0],
        "land": [1, 0, 0],
        "lor": [1, 1, 0],
        "lxor": [0, 1, 0],
    }
    for op, expected in wanted.items():
        left, right = np.array([6, 3, 0], dtype.value), np.array([5, 0, 0], dtype.value)
        local.reduce(of(right), of(left), ReduceKind(op))
        assert left.tolist() == expected, op


def test_any_byte_of_bool_but_0_is_true() -> None:
    wanted = {"min": [1, 0, 0], "max": [1, 1, 0], "band": [1, 0, 0], "bor": [1, 1, 0], "bxor": [0, 1, 0]}
    wanted |= {"land": [1, 0, 0], "lor": [1, 1, 0], "lxor": [0, 1, 0]}
    for op, expected in wanted.items():
        left, right = np.array([2, 255, 0], "u1").view(bool), np.array([1, 0, 0], "u1").view(bool)
        local.reduce(of(right), of(left), ReduceKind(op))
        assert left.view("u1").tolist() == expected, op


def test_factors_that_a_dtype_cannot_hold_are_refused() -> None:
    arguments.check_factor(1.5, DataType.FLOAT16, 0)
    arguments.check_factor(2, DataType.INT8, 0)
    arguments.check_factor(1j, DataType.COMPLEX64, 0)
    for factor, dtype in ((1.5, DataType.INT32), (1j, DataType.FLOAT64), (1j, DataType.UINT8)):
        with pytest.raises(UsageError, match="'op' has the factor"):
            arguments.check_factor(factor, dtype, 0)
