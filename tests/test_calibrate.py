"""`hetcomm bench --calibrate`: lines are found again in noisy times, and a real run writes a file that can be used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._cli.calibrate import FULL
from hetcomm._cli.fit import Point, fit, point
from hetcomm.cli import main
from hetcomm.errors import UsageError
from hetcomm.job.launcher import Launcher
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.topology.costs import Calibration
from hetcomm.topology.model import Topology
from hetcomm.types import DataType, ReduceKind
from hetcomm.vendors.base import COLLECTIVES

NOISE = 0.05

alphas = st.floats(1e-7, 1e-3)
betas = st.floats(1e-12, 1e-7)
noises = st.lists(st.floats(-NOISE, NOISE), min_size=len(FULL.sizes), max_size=len(FULL.sizes))


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["bench", *args], env={"COLUMNS": "100", "NO_COLOR": "1"})


@given(alphas, betas)
def test_a_line_without_noise_is_found_exactly(alpha: float, beta: float) -> None:
    found = fit([Point(size, alpha + beta * size) for size in FULL.sizes])
    assert found.residual < 1e-9
    for size in FULL.sizes:
        assert found.alpha + found.beta * size == pytest.approx(alpha + beta * size)
    if beta * 64 < alpha < beta * FULL.sizes[-1]:
        assert (found.alpha, found.beta) == (pytest.approx(alpha, rel=1e-6), pytest.approx(beta, rel=1e-6))


@given(alphas, betas, noises)
def test_noise_moves_a_line_by_no_more_than_there_is(alpha: float, beta: float, noise: list[float]) -> None:
    points = [Point(size, (alpha + beta * size) * (1 + part)) for size, part in zip(FULL.sizes, noise, strict=True)]
    found = fit(points)
    assert found.alpha >= 0
    assert found.beta >= 0
    assert found.per_log2 == found.per_rank == 0  # one number of ranks tells nothing about others
    most = (
        2 * NOISE * math.sqrt(len(points))
    )  # in the norm that is minimised, the line is as near as the noise is large
    for size in FULL.sizes:
        assert found.alpha + found.beta * size == pytest.approx(alpha + beta * size, rel=most)


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=9), st.integers(1, 3))
def test_nothing_is_ever_negative(seconds: list[float], counts: int) -> None:
    found = fit([Point(4.0**i, value, nranks=1 + i % counts) for i, value in enumerate(seconds)])
    numbers = (found.alpha, found.per_log2, found.per_rank, found.beta, found.spread, found.residual)
    assert all(0 <= number < math.inf for number in numbers)
    assert found.per_log2 == 0 or found.per_rank == 0


@pytest.mark.parametrize(("per_log2", "per_rank"), [(3e-6, 0.0), (0.0, 7e-6)])
def test_what_ranks_cost_is_told_apart_where_their_number_varies(per_log2: float, per_rank: float) -> None:
    def seconds(size: int, nranks: int) -> float:
        return 1e-6 + per_log2 * math.log2(nranks) + per_rank * (nranks - 1) + 1e-9 * size

    found = fit([Point(size, seconds(size, n), nranks=n) for size in FULL.sizes for n in (2, 3, 8)])
    assert found.alpha == pytest.approx(1e-6)
    assert found.per_log2 == pytest.approx(per_log2)
    assert found.per_rank == pytest.approx(per_rank)
    assert found.beta == pytest.approx(1e-9)


def test_a_point_is_the_median_and_its_spread() -> None:
    assert point(8, [4.0, 1.0, 2.0, 3.0, 100.0], 2) == Point(8, 3.0, 2 / 3, 2)
    assert point(8, [5.0]) == Point(8, 5.0)
    with pytest.raises(UsageError, match="took 0"):
        point(8, [0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "needs --calibrate"),
        (["--calibrate", "--timeout", "0"], "no time"),
        (["--calibrate", "--output", "no/such/folder/c.json"], "cannot be written"),
        (["--calibrate", "--ranks", "3"], "each needs two"),
        (["--calibrate", "--vendors", "mpi,,ucx", "--ranks", "6"], "and a name"),
    ],
)
def test_what_cannot_be_measured_is_an_error(args: list[str], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.output


def test_under_a_launcher_ranks_and_vendors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launcher, "from_environ", lambda: Launcher("a launcher", 0, 2))
    result = run("--calibrate", "--vendors", "mpi")
    assert result.exit_code == 2
    assert "Tell the launcher" in result.output


def test_a_real_run_writes_files_that_can_be_used(tmp_path: Path) -> None:
    file, described = tmp_path / "calibration.json", tmp_path / "job.toml"
    args = ["--calibrate", "--quick", "--timeout", "60", "--vendors", "mpi,ucx", "--ranks", "4"]
    result = run(*args, "--output", str(file), "--topology-output", str(described))
    assert result.exit_code == 0, result.output
    assert "call mpi all_reduce" in result.output
    assert "[[cluster.uplink]]" in result.output

    found = Calibration.load(file)
    assert found.to_json() == json.loads(file.read_text())
    assert {(cost.vendor, cost.kind) for cost in found.calls} == {(v, k) for v in ("mpi", "ucx") for k in COLLECTIVES}
    assert "2 mpi + 2 ucx" in found.machine
    for cost in found.calls:
        assert 0 < cost.alpha + cost.beta < 1
    for line in (found.message, found.copy, found.reduce):
        assert 0 < line.seconds(1 << 20) < 1
    assert 0 <= found.overhead < 0.01
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 1 << 18, DataType.FLOAT32, op=ReduceKind.SUM)
    assert 0 < found.call("ucx", collective) < 1

    topology = Topology.load(described)
    assert [(cluster.vendor, *cluster.ranks) for cluster in topology.clusters] == [("mpi", 0, 1), ("ucx", 2, 3)]
    for cluster in topology.clusters:
        assert cluster.border == tuple(cluster.ranks)
        for uplink in cluster.uplinks:
            assert 0 < uplink.bandwidth_out == uplink.bandwidth_in < math.inf
            assert 0 <= uplink.latency < 1
