"""The parts of the benchmarks over slow links that need no hosts: bounds, parsing, and what figures are taken for."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
MEBI = 1 << 20
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks are in no installed package")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, Any]]:
    """The modules, which are in no package, by name."""
    sys.path.insert(0, str(FOLDER))
    names = ("contenders", "links", "overlap")
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("setting", "seconds"), [("1+1", 0.5613), ("1+2+4", 0.5613), ("1+1+1", 0.7484), ("4+4", 0.1403)]
)
def test_the_bound_is_that_of_the_payload(benchmarks: dict[str, Any], setting: str, seconds: float) -> None:
    links = benchmarks["links"]
    topology = links.topology_of(setting, 2, ["mpi"])
    assert topology.nranks == 2 * len(links.rates(setting))
    assert links.bound("all_reduce", 64 * MEBI, topology) == pytest.approx(seconds, abs=1e-4)


def test_a_rate_is_a_positive_number(benchmarks: dict[str, Any]) -> None:
    for setting in ("1+0", "1+-2", "1+fast", ""):
        with pytest.raises(ValueError, match=r"positive|could not convert"):
            benchmarks["links"].rates(setting)


def test_the_slowest_rank_counts_and_silence_is_told(
    benchmarks: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    links, say = benchmarks["links"], benchmarks["contenders"].say
    say({"collective": "all_reduce", "rank": 1, "seconds": [2.0, 1.0], "right": True})
    print("a warning of some library")
    say({"collective": "all_reduce", "rank": 0, "seconds": [1.0, 3.0], "right": True})
    said = capsys.readouterr().out
    assert links.gathered(said, "all_reduce", 2, "") == {"seconds": [2.0, 3.0], "right": True}
    assert links.gathered(said, "all_reduce", 3, "exit status 1") == {
        "missing": "no word from all ranks, exit status 1"
    }
    assert "missing" in links.gathered(said, "broadcast", 2, "")
    row: dict[str, Any] = {}
    links.add(row, {"seconds": [3.0, 1.0], "right": True})
    links.add(row, {"seconds": [2.0], "right": False})
    assert (row["median"], row["right"]) == (2.0, False)


def test_open_mpi_is_judged_by_its_best(benchmarks: dict[str, Any]) -> None:
    links = benchmarks["links"]
    rows = {
        "hetcomm": {"median": 1.0},
        "Open MPI": {"median": 3.0},
        "Open MPI tuned 4": {"median": 1.3},
        "Open MPI tuned 9": {"missing": "no such algorithm"},
        "Gloo": {"median": 1.3},
    }
    assert links.best_of_mpi(rows) == "Open MPI tuned 4"
    assert links.is_hopeless("Open MPI", rows)
    assert links.is_hopeless("Open MPI tuned 9", rows)
    assert not links.is_hopeless("Open MPI tuned 4", rows)
    assert not links.is_hopeless("Gloo", rows)
    assert [kept for *_, kept in links.judge(3, 0.92, rows)] == [True, False, True]
    assert [kept for *_, kept in links.judge(3, 0.90, rows)] == [False, False, True]
    assert links.judge(5, 0.9, rows) == []
    assert links.judge(2, 0.9, {"hetcomm": {"missing": "it failed"}}) == []


def test_every_algorithm_of_open_mpi_has_a_name_of_its_own(benchmarks: dict[str, Any]) -> None:
    found = list(benchmarks["links"].variants("Open MPI", ("all_reduce", "reduce_scatter")))
    assert len({name for name, _, _ in found}) == len(found) == 9
    name, environ, able = found[-1]
    assert (name, list(able)) == ("Open MPI tuned 6", ["all_reduce"])
    assert environ["OMPI_MCA_coll_tuned_allreduce_algorithm"] == "6"
    assert [name for name, _, _ in benchmarks["links"].variants("Gloo", ("broadcast",))] == ["Gloo"]


def test_the_rate_makes_the_border_phase_as_long_as_asked(benchmarks: dict[str, Any]) -> None:
    links, overlap = benchmarks["links"], benchmarks["overlap"]
    rate = overlap.rate_for(64 * MEBI, 0.4)
    assert links.bound("all_reduce", 64 * MEBI, overlap.cluster_topology(4, "mpi", rate)) == pytest.approx(0.4)


def test_the_sequential_plan_has_one_chunk(benchmarks: dict[str, Any]) -> None:
    overlap = benchmarks["overlap"]
    topology = overlap.cluster_topology(2, "mpi", 1.0)
    assert [cluster.border for cluster in topology.clusters] == [(0,), (2,)]
    schedule = overlap.one_chunk(topology, 4 * MEBI)
    assert schedule.collective.nranks == 4
    assert max(len(program.steps) for program in schedule.programs) < 16


def test_ranks_that_say_nothing_are_an_error(benchmarks: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="exit status 3"):
        benchmarks["overlap"].gathered("", "home", 8, "exit status 3")


def test_reports_name_no_place(benchmarks: dict[str, Any], tmp_path: Path) -> None:
    links = benchmarks["links"]
    file = tmp_path / "deep" / "links.json"
    options = links.parse(["--json", str(file), "--lab", "/somewhere/hosts.sh", "--gloo-python", "/elsewhere/python"])
    benchmarks["contenders"].report(options, links.__file__, results={})
    found = json.loads(file.read_text())
    assert found["command"] == "python benchmarks/links.py --json links.json"
    assert not any(word in file.read_text() for word in ("somewhere", "elsewhere", str(tmp_path)))
