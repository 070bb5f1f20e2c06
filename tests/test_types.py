"""Data types, operations and their identities, memory views, and what the environment may say."""

from __future__ import annotations

import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import ml_dtypes
import numpy
import pytest

from hetcomm._conformance.reference import numpy_dtype
from hetcomm.errors import UsageError
from hetcomm.types import (
    AVG,
    MAX,
    MIN,
    PROD,
    SUM,
    Config,
    DataType,
    Memory,
    MemoryKind,
    Number,
    PremulSum,
    ReduceKind,
    ReduceOp,
    identity,
    premul_sum,
    seconds,
)

REAL = [dtype for dtype in DataType if not dtype.is_complex]


@pytest.mark.parametrize("dtype", DataType)
def test_data_types_are_numpys(dtype: DataType) -> None:
    found = numpy_dtype(dtype)
    assert found.name == dtype.value
    assert found.itemsize == dtype.itemsize
    assert dtype.is_integer == (found.kind in "iu")
    assert dtype.is_complex == (found.kind == "c")
    assert dtype.is_signed == (found.kind != "u")
    assert DataType(dtype.value) is dtype


def test_there_are_fourteen_data_types() -> None:
    assert [dtype.itemsize for dtype in DataType] == [1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 8, 16]


@pytest.mark.parametrize("op", [SUM, PROD, MIN, MAX, AVG])
def test_parse_takes_strings_and_operations(op: ReduceOp) -> None:
    assert ReduceOp.parse(op.kind.value) is op
    assert ReduceOp.parse(op.kind.value.upper()) is op
    assert ReduceOp.parse(op) is op
    assert str(op) == op.kind.value


REAL_OPERATIONS = """
from mpi4py import MPI
from hetcomm.errors import UsageError
from hetcomm.types import ReduceOp
for op in (MPI.SUM, MPI.PROD, MPI.MIN, MPI.MAX):
    print(ReduceOp.parse(op))
for op in (MPI.BAND, MPI.OP_NULL, MPI.Op.Create(lambda a, b, t: None)):
    try:
        print(ReduceOp.parse(op))
    except UsageError as error:
        print("refused")
"""


def test_parse_takes_real_mpi4py_operations() -> None:
    pytest.importorskip("mpi4py")
    # In a process of its own: importing mpi4py.MPI starts MPI.
    done = subprocess.run(
        [sys.executable, "-c", REAL_OPERATIONS], capture_output=True, text=True, timeout=60, check=False
    )
    if "cannot load MPI library" in done.stderr:
        pytest.skip("mpi4py finds no MPI library")
    assert done.stdout.split() == ["sum", "prod", "min", "max", "refused", "refused", "refused"], done.stderr


@pytest.mark.parametrize("op", ["xor", "", "mean", 3, None, SimpleNamespace(name="MPI_SUM"), ReduceKind.SUM, sum])
def test_parse_refuses_anything_else_and_lists_the_operations(op: object) -> None:
    with pytest.raises(UsageError, match=r"'sum', 'prod', 'min', 'max', 'avg', or hetcomm\.premul_sum\(factor\)"):
        ReduceOp.parse(op)


def test_premul_sum_needs_its_factor() -> None:
    with pytest.raises(UsageError, match=r"needs each rank's factor.*premul_sum\(factor\)"):
        ReduceOp.parse("premul_sum")
    made = premul_sum(2.5)
    assert made == PremulSum(ReduceKind.PREMUL_SUM, 2.5) != premul_sum(2)
    assert ReduceOp.parse(made) is made


class Refuses:
    """A number by its methods, each of which raises something that is no business of a number's."""

    def __index__(self) -> int:
        raise ZeroDivisionError("no index")

    def __float__(self) -> float:
        raise RecursionError("no float")


@pytest.mark.parametrize(
    ("factor", "kept"),
    [
        (numpy.int64(3), 3),
        (numpy.float32(0.5), 0.5),
        (numpy.float16(2), 2.0),
        (numpy.longdouble(0.25), 0.25),
        (numpy.complex64(1j), 1j),
        (numpy.array(7), 7),
        (numpy.array(0.5), 0.5),
        (ml_dtypes.bfloat16(1.5), 1.5),
        (Fraction(1, 4), 0.25),
        (Decimal("0.5"), 0.5),
        (True, 1),
        (10**400, 10**400),
    ],
)
def test_any_number_is_a_factor_and_kept_as_it_is_now(factor: object, kept: Number) -> None:
    made = premul_sum(factor)
    assert made == PremulSum(ReduceKind.PREMUL_SUM, kept)
    assert type(made.factor) is type(kept)


@pytest.mark.parametrize("factor", ["2", b"2", None, numpy.ones(2), numpy.ones(1), [1], Refuses()])
def test_a_factor_that_is_no_number_is_left_to_the_call(factor: object) -> None:
    assert premul_sum(factor).factor is factor


@pytest.mark.parametrize("value", [2, 2.0, numpy.float64(2), numpy.int8(2), numpy.array(2), Fraction(2)])
def test_any_positive_number_is_a_time(value: object) -> None:
    assert seconds(value) == 2.0
    assert type(seconds(value)) is float


@pytest.mark.parametrize(
    "value", [0, -1, math.inf, math.nan, "60", None, 10**400, 2j, numpy.ones(2), numpy.array(0), Refuses()]
)
def test_anything_else_is_none(value: object) -> None:
    with pytest.raises(UsageError, match="Pass a positive number of seconds"):
        seconds(value)


def test_combining_is_what_two_elements_undergo() -> None:
    assert [op.combining for op in (SUM, PROD, MIN, MAX, AVG, premul_sum(1))] == [
        ReduceKind.SUM,
        ReduceKind.PROD,
        ReduceKind.MIN,
        ReduceKind.MAX,
        ReduceKind.SUM,
        ReduceKind.SUM,
    ]


def samples(dtype: DataType) -> list[Number]:
    """Values at both ends and in the middle of a dtype."""
    if dtype.is_integer:
        info = numpy.iinfo(dtype.value)
        return [int(info.min), 0, 1, int(info.max)]
    return [-math.inf, -1.5, 0.0, 2.0, math.inf]


@pytest.mark.parametrize("dtype", DataType)
@pytest.mark.parametrize("kind", ReduceKind)
def test_the_identity_changes_nothing(kind: ReduceKind, dtype: DataType) -> None:
    if dtype.is_complex and kind in (ReduceKind.MIN, ReduceKind.MAX):
        with pytest.raises(UsageError, match="complex numbers have no order"):
            identity(kind, dtype)
        return
    neutral = numpy.array([identity(kind, dtype)], numpy_dtype(dtype))
    values = [1 + 2j, -3.0] if dtype.is_complex else samples(dtype)
    for value in values:
        element = numpy.array([value], numpy_dtype(dtype))
        combined = {
            ReduceKind.PROD: numpy.multiply,
            ReduceKind.MIN: numpy.minimum,
            ReduceKind.MAX: numpy.maximum,
        }.get(kind, numpy.add)(element, neutral)
        assert combined.dtype == element.dtype
        assert (combined == element).all(), (kind, dtype, value)


@pytest.mark.parametrize("dtype", [d for d in REAL if d.is_integer])
def test_integer_extremes_are_numpys(dtype: DataType) -> None:
    info = numpy.iinfo(dtype.value)
    assert (identity(ReduceKind.MAX, dtype), identity(ReduceKind.MIN, dtype)) == (info.min, info.max)


def test_bfloat16_is_that_of_ml_dtypes() -> None:
    assert numpy_dtype(DataType.BFLOAT16) == numpy.dtype(ml_dtypes.bfloat16)


def test_config_of_an_empty_environment() -> None:
    assert Config.from_environ({}) == Config()
    assert Config() == Config(vendor=None, cluster=None, topology=None, ucx_home=None, timeout=300.0, bootstrap=None)


def test_config_reads_every_variable() -> None:
    env = {
        "HETCOMM_VENDOR": "mpi",
        "HETCOMM_CLUSTER": "left",
        "HETCOMM_TOPOLOGY": "two.toml",
        "HETCOMM_UCX_HOME": "/opt/ucx",
        "HETCOMM_TIMEOUT": "1.5",
        "HETCOMM_BOOTSTRAP": "mpi",
        "PATH": "/bin",
    }
    assert Config.from_environ(env) == Config("mpi", "left", "two.toml", "/opt/ucx", 1.5, "mpi")


def test_empty_variables_count_as_unset() -> None:
    assert Config.from_environ({"HETCOMM_VENDOR": "", "HETCOMM_CLUSTER": ""}) == Config()


def test_config_reads_the_processs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETCOMM_VENDOR", "oneccl")
    monkeypatch.setenv("HETCOMM_TIMEOUT", "7")
    found = Config.from_environ()
    assert (found.vendor, found.timeout) == ("oneccl", 7.0)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf", "-inf", "", "1s"])
def test_a_timeout_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="HETCOMM_TIMEOUT") as caught:
        Config.from_environ({"HETCOMM_TIMEOUT": text})
    assert repr(text) in str(caught.value)
    assert caught.value.remedy == "Set a positive number of seconds, or unset it for 300."


def test_memory_parts() -> None:
    owner = object()
    whole = Memory(1000, 10, DataType.FLOAT32, MemoryKind.CUDA, owner)
    assert whole.nbytes == 40
    part = whole.part(3, 4)
    assert part == Memory(1012, 4, DataType.FLOAT32, MemoryKind.CUDA, owner)
    assert part.owner is owner
    assert whole.part(10, 0).count == 0
    for offset, count in ((-1, 2), (8, 3), (11, 0), (2, -1)):
        with pytest.raises(ValueError, match="lie outside a memory of 10"):
            whole.part(offset, count)
