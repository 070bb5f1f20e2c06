"""`hetcomm bench COLLECTIVE`: its arithmetic, what it prints and writes, real runs, and that wrong results show."""

from __future__ import annotations

import json
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import hetcomm
from hetcomm._cli import bandwidths, baselines, report
from hetcomm._cli.bench import parse_size
from hetcomm._cli.cases import NAMES, Arrays, Case, sizes
from hetcomm._cli.measure import Benchmark
from hetcomm._cli.report import Report, Row
from hetcomm._conformance.reference import numpy_dtype, reference
from hetcomm._ranks.launch import mpi_command
from hetcomm.cli import main
from hetcomm.errors import UsageError
from hetcomm.job.launcher import Launcher
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.testing import run_ranks
from hetcomm.types import DataType, ReduceKind, has_meaning

from . import scripts
from .scripts import DEADLINE

HEADS = ["size", "count", "type", "redop", "root", "library", "time", "min", "p95", "algbw", "busbw", "wrong"]


def cases_of(name: str) -> st.SearchStrategy[Case]:
    kind = next((kind for kind in CollectiveKind if kind.value == name), None)
    ops = kind.ops if kind is not None and kind.reduces else tuple(ReduceKind)
    return st.builds(
        lambda nranks, nbytes, pair: Case.of(name, nranks, nbytes, *pair, root=0, in_place=False),
        st.integers(1, 7),
        st.integers(0, 5000),
        st.sampled_from([(dtype, op) for dtype in DataType for op in ops if op is not None and has_meaning(op, dtype)]),
    )


cases = st.sampled_from(NAMES).flatmap(cases_of)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["bench", *args], env={"COLUMNS": "100", "NO_COLOR": "1"})


def a_case(name: str, nranks: int = 4, nbytes: int = 1 << 20, **changes: Any) -> Case:
    chosen: dict[str, Any] = {"dtype": DataType.FLOAT32, "op": ReduceKind.SUM, "root": 0, "in_place": False}
    return Case.of(name, nranks, nbytes, **chosen | changes)


# ---- arithmetic


@pytest.mark.parametrize(("text", "nbytes"), [("8", 8), ("1K", 1 << 10), ("64M", 64 << 20), ("2gib", 2 << 30)])
def test_sizes_are_binary(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "-8", "1.5K", "64MB", "8 8", "K", "1e6", "9" * 5000])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


def test_sizes_go_by_a_factor_or_by_a_step() -> None:
    assert sizes(8, 64, 2, None) == [8, 16, 32, 64]
    assert sizes(8, 63, 2, None) == [8, 16, 32]
    assert sizes(8, 8, 1, None) == [8]
    assert sizes(0, 10, 2, 4) == [0, 4, 8]
    for args in ((9, 8, 2, None), (8, 16, 1, None), (0, 16, 2, None), (8, 16, 2, 0), (0, 1 << 40, 2, 1)):
        with pytest.raises(UsageError):
            sizes(*args)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        *(("all_reduce", 1.5), ("reduce", 1.0), ("broadcast", 1.0), ("send_recv", 1.0)),
        *((name, 0.75) for name in ("all_gather", "reduce_scatter", "gather", "scatter", "all_to_all")),
    ],
)
def test_busbw_is_that_of_nccl_tests(name: str, factor: float) -> None:
    case = a_case(name)
    assert case.bus_factor == factor
    row = Row("hetcomm", case.nbytes, case.count, case.bus_factor, 1, (3e-3, 1e-3, 2e-3), 0)
    assert row.algbw == (1 << 20) / 2e-3
    assert row.busbw == row.algbw * factor
    assert (row.least, row.median, row.p95) == (1e-3, 2e-3, 3e-3)


def test_what_does_not_divide_is_rounded_down() -> None:
    gathered = a_case("all_gather", nranks=3, nbytes=1024)
    assert (gathered.count, gathered.nbytes) == (85, 1020)
    assert (a_case("all_reduce", nranks=3, nbytes=1023).nbytes, a_case("all_to_all", nbytes=15).nbytes) == (1020, 0)


# ---- checks


@given(cases, st.data())
@settings(max_examples=60)
def test_every_wrong_element_is_counted(case: Case, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, case.nranks - 1))
    arrays = Arrays([case], rank)
    arrays.fill(case)
    result = arrays.output(case)
    writes = case.takes_part(rank)[1]
    for start, right in case.expected(rank) if writes else ():
        result[start : start + len(right)] = right
    assert arrays.wrong(case, result) == 0
    places = data.draw(st.sets(st.integers(0, len(result) - 1), max_size=5)) if len(result) and writes else set()
    for place in places:
        other = not result[place] if case.dtype is DataType.BOOL else 99
        result[place] = 100 if result[place] != 100 and case.dtype is not DataType.BOOL else other
    assert arrays.wrong(case, result) == len(places)


@given(cases)
@settings(max_examples=60)
def test_the_right_result_is_the_references(case: Case) -> None:
    if case.collective is None:
        return
    inputs = [case.values(rank, 0, case.collective.in_count(rank)) for rank in range(case.nranks)]
    outputs = reference(case.collective, inputs, [1 + rank % 2 for rank in range(case.nranks)])
    for rank, output in enumerate(outputs):
        pieces = [right for _, right in case.expected(rank)]
        found = numpy.concatenate(pieces) if pieces else numpy.empty(0)
        assert found.tobytes() == (output.tobytes() if output is not None else b"")


@pytest.mark.parametrize("dtype", [DataType.BFLOAT16, DataType.FLOAT16, DataType.FLOAT32, DataType.COMPLEX64])
@pytest.mark.parametrize("op", [ReduceKind.SUM, ReduceKind.PROD, ReduceKind.PREMUL_SUM])
@pytest.mark.parametrize("nranks", [2, 9])
def test_no_order_of_additions_rounds(dtype: DataType, op: ReduceKind, nranks: int) -> None:
    case = a_case("all_reduce", nranks=nranks, nbytes=256 * dtype.itemsize, dtype=dtype, op=op)
    ((_, right),) = case.expected(0)
    exact = numpy.full(256, 1 if op is ReduceKind.PROD else 0, numpy.complex128)
    for rank in range(nranks):
        wide = case.values(rank, 0, 256).astype(numpy.complex128)
        if op is ReduceKind.PROD:
            exact *= wide
        else:
            exact += wide * (1 + rank % 2 if op is ReduceKind.PREMUL_SUM else 1)
    assert numpy.array_equal(right.astype(numpy.complex128), exact)
    assert len({array.tobytes() for array in (case.values(rank, 0, 256) for rank in range(min(nranks, 3)))}) > 1
    assert right.dtype == numpy_dtype(dtype)


def sabotaged(benchmark: Benchmark) -> Report:
    """A rank whose all_reduce changes two elements of one rank's result behind the back of the benchmark."""
    honest = hetcomm.Communicator.all_reduce

    def broken(self: Any, in_array: Any, out_array: Any = None, op: Any = "sum", **options: Any) -> Any:
        honest(self, in_array, out_array, op, **options)
        if self.rank == 1:
            out_array[[0, -1]] += 1

    hetcomm.Communicator.all_reduce = broken  # type: ignore[method-assign]
    with hetcomm.init() as comm:
        return benchmark.run(comm, time.monotonic() + 30, lambda done: None)


def test_wrong_results_are_noticed() -> None:
    versus = ("mpi", "persistent")
    benchmark = Benchmark(
        "all_reduce", (64, 1024), DataType.INT16, ReduceKind.SUM, 0, False, versus, iters=1, warmup=1, check=True
    )
    found = run_ranks(2, sabotaged, benchmark, timeout=DEADLINE)[0]
    assert {(row.library, row.wrong) for row in found.rows} == {("hetcomm", 2), ("mpi", 0), ("persistent", 0)}
    assert found.wrong == 4
    assert "# Wrong values         : 4 FAILED" in report.table(found)


# ---- the command


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["all_reduced"], "'all_reduced' is not one of"),
        (["all_reduce", "--calibrate"], "and not both"),
        (["all_reduce", "--dtype", "float33"], "'bfloat16'"),
        (["all_reduce", "--op", "xor"], "'premul_sum'"),
        (["all_reduce", "-b", "8X"], "Write bytes with or without a unit"),
        (["all_reduce", "-b", "1M", "-e", "1K"], "are none"),
        (["all_reduce", "-f", "1"], "Use 2 or more"),
        (["all_reduce", "--iters", "0"], "--iters"),
        (["all_reduce", "--vs", "mpi,nccl"], "Use some of gloo,mpi,vendor,ucx,direct,persistent"),
        (["all_reduce", "--vs", ""], "is no baseline"),
        (["all_reduce", "-n", "0"], "less than one"),
        (["all_reduce", "-n", "3", "--vendors", "mpi,mpi"], "one for each rank"),
        (["all_reduce", "--vendors", "mpi,nosuch"], "'nosuch' is not known"),
        (["all_reduce", "--clusters", "3"], "from 1 to 2"),
        (["reduce", "--root", "2"], "from 0 to 1"),
        (["send_recv", "--in-place"], "no in-place form"),
        (["all_reduce", "--dtype", "complex64", "--op", "max"], "complex numbers have no order"),
        (["all_reduce", "--timeout", "nan"], "no time"),
        (["all_reduce", "--json", "no/such/folder/b.json"], "cannot be written"),
        (["all_reduce", "--plot", "b.pdf"], "suffix .svg or .png"),
        (["all_reduce", "--quick"], "--quick has no meaning with"),
        (["--calibrate", "--dtype", "float64"], "--dtype has no meaning with --calibrate"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_is_allowed(args: list[str], message: str) -> None:
    if "--plot" in args:
        pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_under_a_launcher_ranks_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launcher, "from_environ", lambda: Launcher("a launcher", 0, 2))
    result = run("all_reduce", "-n", "2")
    assert result.exit_code == 2
    assert "Tell the launcher" in result.output


def test_buffers_that_do_not_fit_are_refused_before_they_are_touched() -> None:
    result = run("all_reduce", "-b", "64T", "-e", "64T", "--timeout", "30")
    assert result.exit_code == 2
    assert "Give a smaller --end" in result.output


def test_it_starts_its_ranks_and_says_what_it_found(tmp_path: Path) -> None:
    file, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    plot = ["--plot", str(picture)] if find_spec("matplotlib") is not None else []
    args = ["reduce_scatter", "-b", "8", "-e", "1K", "-f", "128", "-d", "float16", "-o", "max", "--iters", "2"]
    result = run(*args, "-n", "3", "--clusters", "2", "--vs", "mpi,vendor,ucx", "--json", str(file), *plot)
    assert result.exit_code == 0, result.output

    lines = result.output.splitlines()
    assert next(line for line in lines if "algbw" in line).split() == ["#", *HEADS]
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert [(row[0], row[1], row[5]) for row in rows] == [
        *(("6", "1", "hetcomm"), ("6", "1", "vendor")),
        *(("1020", "170", "hetcomm"), ("1020", "170", "vendor")),
    ]
    assert all(row[2:5] == ["float16", "max", "-1"] and row[-1] == "0" for row in rows)
    assert "# mpi is left out: MPI has no type float16" in lines
    assert "# ucx is left out: raw UCX has no reduce_scatter; it is a baseline for send_recv" in lines
    assert "# Wrong values         : 0 OK" in lines
    assert any(line.startswith("# hetcomm is ") and "as fast as vendor" in line for line in lines)

    found = json.loads(file.read_text())
    assert found["format"] == report.FORMAT
    assert found["units"] == {"time": "s", "bandwidth": "bytes/s"}
    assert (found["collective"], found["nranks"], found["checked"]) == ("reduce_scatter", 3, True)
    assert [sorted(cluster) for cluster in found["clusters"]] == [["name", "ranks", "vendor"]] * 2
    assert set(found["left_out"]) == {"mpi", "ucx"}
    assert {"python", "numpy", "ucx"} <= set(found["versions"])
    assert {"host", "system", "cores", "load"} == set(found["machine"])
    for row in found["rows"]:
        assert len(row["samples"]) == 2
        assert 0 < row["min"] <= row["time"] <= row["p95"] < 10
        assert math.isclose(row["algbw"], row["nbytes"] / row["time"])
        assert math.isclose(row["busbw"], row["algbw"] * 2 / 3)
        assert row["wrong"] == 0
    assert not plot or "<svg" in picture.read_text()


@pytest.mark.parametrize(("nbytes", "factor"), [((0, 0), 0.5), ((4, 8), 0.0), ((0, 8), 0.5)])
def test_the_picture_has_a_place_for_nothing(tmp_path: Path, nbytes: tuple[int, ...], factor: float) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    rows = tuple(Row(name, size, size, factor, 1, (1e-6,), 0) for size in nbytes for name in ("hetcomm", "mpi"))
    clusters = (("mpi", "mpi", (0, 1)),)
    form = {"in_place": False, "checked": True, "shared": False, "touched": True, "ahead": False, "warmup": 1}
    found = Report(
        "all_gather", 2, clusters, "int8", None, None, **form, left_out={}, machine={}, versions={}, rows=rows
    )
    bandwidths.draw(found, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 1000
    assert found.speedups("mpi") == [(size, 1.0) for size in nbytes]


def everything(names: tuple[str, ...], versus: tuple[str, ...]) -> dict[str, Any]:
    """One rank that measures all of `names` in both forms, on a root that is not 0; the rows' faults by contender."""
    faults: dict[str, Any] = {}
    with hetcomm.init() as comm:
        for name in names:
            for in_place in (False, True) if name != "send_recv" else (False,):
                benchmark = Benchmark(
                    name, (600,), DataType.INT32, ReduceKind.PROD, 1, in_place, versus, 1, 0, True, in_place, in_place
                )
                found = benchmark.run(comm, time.monotonic() + 60, lambda done: None)
                faults[f"{name} {in_place}"] = {row.library: row.wrong for row in found.rows}
    return faults


def test_every_collective_is_right_with_every_baseline() -> None:
    answers = run_ranks(3, everything, NAMES, ("mpi", "vendor", "ucx", "direct", "persistent"), timeout=DEADLINE)
    assert answers[0] == answers[1] == answers[2]
    for name, faults in answers[0].items():
        assert set(faults.values()) == {0}, name
        assert {"hetcomm", "mpi"} <= set(faults), name
    assert "ucx" in answers[0]["send_recv False"]
    assert "vendor" in answers[0]["all_reduce True"]
    assert [name for name, faults in answers[0].items() if "direct" in faults] == [
        "all_reduce False",
        "all_reduce True",
    ]


@pytest.mark.gloo
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_gloo_is_right_too() -> None:
    answers = run_ranks(2, everything, NAMES, ("gloo",), timeout=DEADLINE)  # not three: importing PyTorch is slow
    for name, faults in answers[0].items():
        lacks = name == "all_to_all True" or "scan" in name
        assert faults == ({"hetcomm": 0} if lacks else {"hetcomm": 0, "gloo": 0}), name


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is installed")
def test_a_baseline_that_is_not_there_is_named() -> None:
    with hetcomm.init() as comm, baselines.opened(("gloo",), comm, a_case("broadcast", nranks=1)) as (found, left_out):
        assert list(found) == ["hetcomm"]
        assert left_out == {"gloo": "PyTorch, which brings Gloo, is not installed"}


def test_under_mpirun_rank_0_prints() -> None:
    code = "from hetcomm.cli import main; main()"
    argv = [sys.executable, "-c", code, "bench", "send_recv", "-b", "1K", "-e", "1K", "--iters", "1", "--no-check"]
    command = mpi_command([({}, argv)] * 2)
    done = scripts.run(command)
    rows = [line.split() for line in done.stdout.splitlines() if line and not line.startswith("#")]
    assert [(row[0], row[5], row[-1]) for row in rows] == [("1024", "hetcomm", "N/A")]
    assert "Wrong values" not in done.stdout
    assert "measuring" not in done.stderr
