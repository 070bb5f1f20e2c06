"""The numeric oracle itself, against arithmetic written out, and the runner against the oracle."""

from __future__ import annotations

import ml_dtypes
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcomm._conformance.reference import Array, average, numpy_dtype, reference, run_schedule, scaled
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Copy, Recv, Reduce, Send, Slice
from hetcomm.types import DataType, ReduceKind, has_meaning

from .handmade import IN, OUT, SCRATCH, bordered_all_reduce, build, collective, examples, ring_all_reduce

FLOATS = [DataType.FLOAT16, DataType.BFLOAT16, DataType.FLOAT32, DataType.FLOAT64]
INTEGERS = [dtype for dtype in DataType if dtype.is_integer]


def only(outputs: list[Array | None], rank: int = 0) -> Array:
    found = outputs[rank]
    assert found is not None
    return found


def arrays(dtype: DataType, *rows: list[float]) -> list[Array | None]:
    return [numpy.array(row, numpy_dtype(dtype)) for row in rows]


ROWS = arrays(DataType.INT32, [1, 2, 3, 4], [10, 20, 30, 40])


def test_each_kind_on_two_ranks() -> None:
    def run(kind: str, count: int, op: str | None = None, root: int | None = None) -> list[list[int] | None]:
        what = collective(kind, 2, count, op, root=root, dtype=DataType.INT32)
        return [output.tolist() if output is not None else None for output in reference(what, ROWS)]

    assert run("all_reduce", 4, "sum") == [[11, 22, 33, 44]] * 2
    assert run("reduce", 4, "max", 1) == [None, [10, 20, 30, 40]]
    assert run("reduce_scatter", 2, "prod") == [[10, 40], [90, 160]]
    assert run("all_gather", 4) == [[1, 2, 3, 4, 10, 20, 30, 40]] * 2
    assert run("broadcast", 4, None, 1) == [[10, 20, 30, 40]] * 2
    assert run("all_reduce", 0, "sum") == [None, None]
    assert run("scan", 4, "sum") == [[1, 2, 3, 4], [11, 22, 33, 44]]
    assert run("exscan", 4, "sum") == [[0, 0, 0, 0], [1, 2, 3, 4]]
    assert run("exscan", 4, "min") == [[2**31 - 1] * 4, [1, 2, 3, 4]]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_around(dtype: DataType) -> None:
    info = numpy.iinfo(dtype.value)
    what = collective("all_reduce", 2, 1, "sum", dtype=dtype)
    assert only(reference(what, arrays(dtype, [info.max], [1]))).tolist() == [info.min]
    assert scaled(numpy.array([3], dtype.value), -1).tolist() == [-3 if info.min else info.max - 2]


@pytest.mark.parametrize("dtype", INTEGERS)
@given(values=st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4), nranks=st.integers(1, 300))
def test_averages_of_integers_truncate_towards_zero(dtype: DataType, values: list[int], nranks: int) -> None:
    info = numpy.iinfo(dtype.value)
    clipped = [max(int(info.min), min(int(info.max), value)) for value in values]
    expected = [abs(value) // nranks * (1 if value >= 0 else -1) for value in clipped]
    found = average(numpy.array(clipped, dtype.value), nranks)
    assert found.dtype == numpy.dtype(dtype.value)
    assert found.tolist() == expected


def test_averages_of_16_bit_floats_are_rounded_once() -> None:
    # bfloat16 has no 257: dividing in bfloat16 would divide by 256.
    found = average(numpy.array([257 * 64], ml_dtypes.bfloat16), 257)
    assert float(found[0]) == float(ml_dtypes.bfloat16(float(ml_dtypes.bfloat16(257 * 64)) / 257))
    assert average(numpy.array([7.0], "f2"), 2).tolist() == [3.5]


@pytest.mark.parametrize("nranks", [1, 2, 3])
@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        ("land", [[1, 0, 1], [0, 0, 1], [0, 0, 1]]),
        ("lor", [[1, 0, 1], [1, 0, 1], [1, 1, 1]]),
        ("lxor", [[1, 0, 1], [1, 0, 0], [1, 1, 1]]),
    ],
)
def test_logical_ops_give_0_and_1_on_a_single_rank_too(op: str, wanted: list[list[int]], nranks: int) -> None:
    what = collective("all_reduce", nranks, 3, op, dtype=DataType.INT16)
    rows = arrays(DataType.INT16, [6, 0, -3], [0, 0, 5], [0, 4, 8])
    found = only(reference(what, rows[:nranks]))
    assert (found.dtype, found.tolist()) == (numpy.dtype("i2"), wanted[nranks - 1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["min", "max"])
def test_nan_comes_through_min_and_max(dtype: DataType, op: str) -> None:
    what = collective("all_reduce", 2, 3, op, dtype=dtype)
    nan = float("nan")
    found = only(reference(what, arrays(dtype, [nan, 1, 2], [1, nan, 3])))
    assert numpy.isnan(found.astype("f8")).tolist() == [True, True, False]
    assert float(found[2]) == (2 if op == "min" else 3)


def test_factors_come_first_and_belong_to_their_rank() -> None:
    what = collective("all_reduce", 2, 4, "premul_sum", dtype=DataType.INT32)
    assert only(reference(what, ROWS, [2, -1])).tolist() == [-8, -16, -24, -32]
    assert only(reference(what, ROWS)).tolist() == [11, 22, 33, 44]


def test_16_bit_floats_accumulate_in_their_own_type() -> None:
    what = collective("all_reduce", 3, 1, "sum", dtype=DataType.BFLOAT16)
    assert float(only(reference(what, arrays(DataType.BFLOAT16, [256], [1], [1])))[0]) == 256


@pytest.mark.parametrize("dtype", DataType)
@pytest.mark.parametrize("op", [op for op in ReduceKind if op is not ReduceKind.PREMUL_SUM])
def test_schedules_give_the_reference_exactly_on_whole_numbers(op: ReduceKind, dtype: DataType) -> None:
    if not has_meaning(op, dtype):
        return
    rng = numpy.random.default_rng(2)
    for make, in_place in ((ring_all_reduce, False), (bordered_all_reduce, True)):
        what = Collective(CollectiveKind.ALL_REDUCE, 4, 9, dtype, op, in_place=in_place)
        inputs: list[Array | None] = [rng.integers(0, 3, 9).astype(numpy_dtype(dtype)) for _ in range(4)]
        wanted = only(reference(what, inputs))
        for seed in range(3):
            for got in run_schedule(make(what), inputs, None, seed):
                assert got is not None
                assert got.dtype == wanted.dtype
                assert got.tobytes() == wanted.tobytes()


def test_the_runner_sees_what_is_wrong() -> None:
    what = collective("all_reduce", 2, 8, "sum")
    inputs: list[Array | None] = [numpy.arange(8, dtype="f4"), numpy.ones(8, "f4")]
    whole, source, spare = Slice(OUT, 0, 8), Slice(IN, 0, 8), Slice(SCRATCH, 0, 8)
    good = [
        [Copy(source, whole), Send(source, 1 - r), Recv(spare, 1 - r), Reduce(spare, whole, ReduceKind.SUM)]
        for r in (0, 1)
    ]
    wanted = only(reference(what, inputs))
    assert only(run_schedule(build(what, good, 8), inputs)).tolist() == wanted.tolist()
    assert only(run_schedule(build(what, [good[0][:3], good[1]], 8), inputs)).tolist() != wanted.tolist()
    twice = build(what, [[*good[0], good[0][3]], good[1]], 8)
    assert only(run_schedule(twice, inputs)).tolist() != wanted.tolist()
    undefined = build(what, [good[0][1:], good[1]], 8)
    assert only(run_schedule(undefined, inputs)).tolist() != wanted.tolist()


@settings(max_examples=25)
@given(seed=st.integers(0, 1000))
def test_every_admissible_order_gives_the_same_bits(seed: int) -> None:
    rng = numpy.random.default_rng(3)
    for schedule in examples(4, 5, "sum", 2, False)[:3]:
        what = schedule.collective
        inputs: list[Array | None] = [rng.standard_normal(what.in_count(rank)).astype("f4") for rank in range(4)]
        first, again = (run_schedule(schedule, inputs, None, number) for number in (0, seed))
        for one, other in zip(first, again, strict=True):
            assert one is not None
            assert other is not None
            assert one.tobytes() == other.tobytes()


def test_complex_averages_are_rounded_once() -> None:
    """NumPy's own complex division multiplies by a rounded reciprocal."""
    array = numpy.arange(1000).astype("c8") * (1 + 2j)
    parts = (array.view("f4").astype("f8") / 5).astype("f4")
    assert average(array, 5).tobytes() == parts.tobytes()
