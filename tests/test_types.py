"""Data types, operations and their identities, memory views, and what the environment may say."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
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
    VARIABLES,
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
    for factor in ("2", None, numpy.ones(2)):
        with pytest.raises(UsageError, match="is not a number"):
            premul_sum(factor)  # type: ignore[arg-type]


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
        value = "7" if variable.setting in ("timeout", "inline_bytes") else "something"
        found = Config.from_environ({variable.name: value})
        assert str(getattr(found, variable.setting)).removesuffix(".0") == value
        assert replace(found, **{variable.setting: getattr(Config(), variable.setting)}) == Config()


def test_the_reference_lists_every_variable() -> None:
    rows = [f"| `{each.name}` | {each.meaning} | {each.unset} |" for each in VARIABLES]
    table = "\n".join(["| variable | meaning | where it is unset |", "| --- | --- | --- |", *rows])
    assert table in (Path(__file__).parent.parent / "docs" / "reference.md").read_text()
