"""Data types, operations and their identities, memory views, and what the environment may say."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy
import pytest

from hetcomm._conformance.reference import numpy_dtype
from hetcomm.errors import UsageError
from hetcomm.types import (
    AVG,
    BAND,
    BOR,
    BXOR,
    COMBINING,
    LAND,
    LOR,
    LXOR,
    MAX,
    MIN,
    PROD,
    SUM,
    VARIABLES,
    Config,
    DataType,
    Memory,
    MemoryKind,
    Number,
    PremulSum,
    ReduceKind,
    ReduceOp,
    has_meaning,
    identity,
    premul_sum,
    seconds,
)

from .scripts import python

REAL = [dtype for dtype in DataType if not dtype.is_complex]


@pytest.mark.parametrize("dtype", DataType)
def test_data_types_are_numpys(dtype: DataType) -> None:
    found = numpy_dtype(dtype)
    assert found.name == dtype.value
    assert found.itemsize == dtype.itemsize
    assert dtype.is_integer == (found.kind in "iu")
    assert dtype.is_complex == (found.kind == "c")
    assert dtype.is_signed == (found.kind not in ("b", "u"))
    assert dtype.is_inexact == (found.kind not in "biu")
    assert DataType(dtype.value) is dtype


def test_there_are_fifteen_data_types() -> None:
    assert [dtype.itemsize for dtype in DataType] == [1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 8, 16]


@pytest.mark.parametrize("op", [SUM, PROD, MIN, MAX, BAND, BOR, BXOR, LAND, LOR, LXOR, AVG])
def test_parse_takes_strings_and_operations(op: ReduceOp) -> None:
    assert ReduceOp.parse(op.kind.value) is op
    assert ReduceOp.parse(op.kind.value.upper()) is op
    assert ReduceOp.parse(op) is op
    assert str(op) == op.kind.value


REAL_OPERATIONS = """
from mpi4py import MPI
from hetcomm.errors import UsageError
from hetcomm.types import ReduceOp
for op in (
    MPI.SUM, MPI.PROD, MPI.MIN, MPI.MAX, MPI.BAND, MPI.BOR, MPI.BXOR, MPI.LAND, MPI.LOR, MPI.LXOR,
    MPI.MINLOC, MPI.MAXLOC, MPI.REPLACE, MPI.OP_NULL, MPI.Op.Create(lambda a, b, t: None),
):
    try:
        print(ReduceOp.parse(op))
    except UsageError as error:
        print("no-pairs" if "pairs of a value and an index" in str(error) else "refused")
"""


def test_parse_takes_real_mpi4py_operations() -> None:
    pytest.importorskip("mpi4py")
    # In a process of its own: importing mpi4py.MPI starts MPI.
    done = python(REAL_OPERATIONS, status=None)
    if "cannot load MPI library" in done.stderr:
        pytest.skip("mpi4py finds no MPI library")
    wanted = [*(kind.value for kind in COMBINING), "no-pairs", "no-pairs", "refused", "refused", "refused"]
    assert done.stdout.split() == wanted, done.stderr


@pytest.mark.parametrize("op", ["xor", "", "mean", 3, None, SimpleNamespace(name="MPI_SUM"), ReduceKind.SUM, sum])
def test_parse_refuses_anything_else_and_lists_the_operations(op: object) -> None:
    listed = r"'sum', 'prod', 'min', 'max', 'band', .*'lxor', 'avg', or hetcomm\.premul_sum\(factor\)"
    with pytest.raises(UsageError, match=listed):
        ReduceOp.parse(op)


@pytest.mark.parametrize(("name", "least"), [("minloc", "min"), ("MAXLOC", "max")])
def test_where_an_extreme_lies_is_refused_with_what_to_do(name: str, least: str) -> None:
    with pytest.raises(UsageError, match="pairs of a value and an index, and no dtype") as caught:
        ReduceOp.parse(name)
    assert f"op '{name.lower()}'" in caught.value.message
    assert f"op={least!r}" in (caught.value.remedy or "")
    assert "numpy.where(values == result, rank, nranks)" in (caught.value.remedy or "")


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
    for kind in COMBINING:
        assert kind.combining is kind
    assert set(ReduceKind) - set(COMBINING) == {ReduceKind.AVG, ReduceKind.PREMUL_SUM}
    assert {kind.combining for kind in set(ReduceKind) - set(COMBINING)} == {ReduceKind.SUM}


def test_what_the_ops_do_to_two_elements() -> None:
    one, other = numpy.array([6, 0, 0, 6], "i4"), numpy.array([3, 3, 0, 6], "i4")
    assert {kind.value: getattr(numpy, kind.ufunc)(one, other).astype("i4").tolist() for kind in COMBINING} == {
        "sum": [9, 3, 0, 12],
        "prod": [18, 0, 0, 36],
        "min": [3, 0, 0, 6],
        "max": [6, 3, 0, 6],
        "band": [2, 0, 0, 6],
        "bor": [7, 3, 0, 6],
        "bxor": [5, 3, 0, 0],
        "land": [1, 0, 0, 1],
        "lor": [1, 1, 0, 1],
        "lxor": [0, 1, 0, 0],
    }
    assert [kind for kind in ReduceKind if kind.is_logical] == [ReduceKind.LAND, ReduceKind.LOR, ReduceKind.LXOR]


def test_which_ops_have_a_meaning_for_which_dtypes() -> None:
    bits = ["band", "bor", "bxor", "land", "lor", "lxor"]
    meant = {dtype: [kind.value for kind in ReduceKind if has_meaning(kind, dtype)] for dtype in DataType}
    for dtype, ops in meant.items():
        if dtype is DataType.BOOL:
            assert ops == ["min", "max", *bits]
        elif dtype.is_integer:
            assert ops == ["sum", "prod", "min", "max", *bits, "avg", "premul_sum"]
        elif dtype.is_complex:
            assert ops == ["sum", "prod", "avg", "premul_sum"]
        else:
            assert ops == ["sum", "prod", "min", "max", "avg", "premul_sum"]


@pytest.mark.parametrize(
    ("kind", "dtype", "remedy"),
    [
        (ReduceKind.SUM, DataType.BOOL, "op='lor' (true on any rank) or op='land' (true on all)"),
        (ReduceKind.PROD, DataType.BOOL, "op='land' (true on all)"),
        (ReduceKind.AVG, DataType.BOOL, "array.astype('int64')"),
        (ReduceKind.PREMUL_SUM, DataType.BOOL, "array.astype('int64')"),
        (ReduceKind.BAND, DataType.FLOAT32, "array.view() as unsigned integers"),
        (ReduceKind.BXOR, DataType.COMPLEX64, "array.view() as unsigned integers"),
        (ReduceKind.LAND, DataType.FLOAT64, "array != 0"),
        (ReduceKind.LOR, DataType.BFLOAT16, "array != 0"),
        (ReduceKind.MAX, DataType.COMPLEX128, "real and imaginary parts"),
    ],
)
def test_an_op_without_a_meaning_is_refused_with_what_to_do(kind: ReduceKind, dtype: DataType, remedy: str) -> None:
    with pytest.raises(UsageError, match=f"op '{kind.value}' has no meaning for {dtype.value}") as caught:
        identity(kind, dtype)
    assert remedy in (caught.value.remedy or "")


def samples(dtype: DataType) -> list[Number]:
    """Values at both ends and in the middle of a dtype."""
    if dtype.is_integer:
        info = numpy.iinfo(dtype.value)
        return [int(info.min), 0, 1, int(info.max)]
    return [False, True] if dtype is DataType.BOOL else [-math.inf, -1.5, 0.0, 2.0, math.inf]


@pytest.mark.parametrize("dtype", DataType)
@pytest.mark.parametrize("kind", ReduceKind)
def test_the_identity_changes_nothing(kind: ReduceKind, dtype: DataType) -> None:
    if not has_meaning(kind, dtype):
        with pytest.raises(UsageError, match="has no meaning"):
            identity(kind, dtype)
        return
    neutral = numpy.array([identity(kind, dtype)], numpy_dtype(dtype))
    values = [1 + 2j, -3.0] if dtype.is_complex else samples(dtype)
    for value in values:
        element = numpy.array([value], numpy_dtype(dtype))
        combined = getattr(numpy, kind.ufunc)(element, neutral)
        assert combined.dtype == (bool if kind.is_logical else element.dtype)
        assert (combined == (element != 0 if kind.is_logical else element)).all(), (kind, dtype, value)


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


@pytest.mark.parametrize("text", ["0.4", "-1", "soon", "nan", "inf", ""])
def test_a_heartbeat_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="HETCOMM_HEARTBEAT_TIMEOUT") as caught:
        Config.from_environ({"HETCOMM_HEARTBEAT_TIMEOUT": text})
    assert repr(text) in str(caught.value)
    assert Config.from_environ({"HETCOMM_HEARTBEAT_TIMEOUT": "0"}).heartbeat_timeout == 0


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


def test_a_variable_that_nothing_reads_is_warned_of_once_with_the_one_meant(caplog: pytest.LogCaptureFixture) -> None:
    env = {"HETCOMM_TIMOUT": "3", "HETCOMM_XYZZY": "", "HETCOMM_LAB": "hosts.sh", "HETCOMMON": "1", "PATH": "/"}
    assert Config.from_environ(env) == Config()
    assert Config.from_environ(env) == Config()
    first, second = (record.getMessage() for record in caplog.records)
    assert first == (
        "the environment variable HETCOMM_TIMOUT is not known to hetcomm and has no effect: did you mean "
        "HETCOMM_TIMEOUT?"
    )
    assert second.startswith("the environment variable HETCOMM_XYZZY is not known")
    assert all(variable.name in second for variable in VARIABLES)


def test_every_setting_has_its_variable_and_is_read_from_it() -> None:
    assert sorted(variable.setting for variable in VARIABLES) == sorted(each.name for each in fields(Config))
    for variable in VARIABLES:
        value = "7" if variable.setting in ("timeout", "inline_bytes", "heartbeat_timeout") else "something"
        found = Config.from_environ({variable.name: value})
        assert str(getattr(found, variable.setting)).removesuffix(".0") == value
        assert replace(found, **{variable.setting: getattr(Config(), variable.setting)}) == Config()


def test_the_reference_lists_every_variable() -> None:
    rows = [f"| `{each.name}` | {each.meaning} | {each.unset} |" for each in VARIABLES]
    table = "\n".join(["| variable | meaning | where it is unset |", "| --- | --- | --- |", *rows])
    assert table in (Path(__file__).parent.parent / "docs" / "reference.md").read_text()
