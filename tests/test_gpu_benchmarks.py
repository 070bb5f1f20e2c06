"""The parts of the GPU benchmarks that need no GPU: what they conclude from figures, reports, and how parts are run."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20


def load(name: str) -> ModuleType:
    """A module of `benchmarks/gpu`, which is in no installed package."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(f"benchmarks.gpu.{name}")


report, p2p, all_reduce, trace = load("report"), load("p2p"), load("all_reduce"), load("trace")
streams, sharing, verdicts, suite = load("streams"), load("sharing"), load("verdicts"), load("suite")


def verdict(claims: list[Any]) -> list[bool | None]:
    return [claim.holds for claim in claims]


# ---- the report


def test_claims_are_told_apart_in_the_summary() -> None:
    claims = [
        report.Claim("first", "12 us", True),
        report.Claim("the second", "7", False, "too few"),
        *report.unmeasured(["third"], "no time"),
    ]
    lines = report.summary(claims).splitlines()
    assert lines[0].split() == ["line", "figure", "verdict"]
    assert lines[2].split() == ["first", "12", "us", "holds"]
    assert lines[3].endswith("DOES NOT HOLD: too few")
    assert lines[4].endswith("-       could not be measured: no time")
    assert len({line.index(column) for line, column in zip(lines[2:], ("12 us", "7  ", "-  "), strict=True)}) == 1


def test_a_report_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = [report.Claim("a", "1", True), report.Claim("b", why="because")]
    path = tmp_path / "folder" / "report.json"
    assert report.finish(str(path), claims, {"x": [1, 2]}) == 0
    read = json.loads(path.read_text())
    assert report.claims_of(read) == claims
    assert read["results"] == {"x": [1, 2]}
    assert "could not be measured: because" in capsys.readouterr().out
    assert report.finish(None, [report.Claim("c", "2", False)], {}) == 1


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NCCL 2.28.9", (2, 28, 9)),
        ("2.30.7+cuda13.3, found at x", (2, 30, 7)),
        ("v2.31", (2, 31)),
        ("cuda 13", ()),
        ("", ()),
    ],
)
def test_versions_are_found_in_text(text: str, version: tuple[int, ...]) -> None:
    assert report.version_of(text) == version
    assert (report.version_of("2.30.3") < sharing.OLDEST) is False


def test_statistics() -> None:
    assert report.geometric_mean([2, 8, 4]) == pytest.approx(4)
    assert math.isnan(report.geometric_mean([]))
    assert report.share_within([1, 2, 3, 4], 3) == 0.5
    assert [report.size_text(n) for n in (1 << 30, 16 * MIB, 1536, 5)] == ["1 GiB", "16 MiB", "1536 B", "5 B"]


# ---- what each part concludes


@pytest.mark.parametrize(
    ("message", "arrived", "expected"),
    [((1.2, 1.3), True, [True, False]), ((1.0, 1.25), True, [True, True]), ((1.0, 1.0), False, [False, False])],
)
def test_messages_are_judged_beside_plain_copies(
    message: tuple[float, float], arrived: bool, expected: list[bool]
) -> None:
    samples = {
        way: {"copy": [1e-4, 5e-4, 1e-3], "message": [seconds * 5e-4, 1.0, 1e-9]}
        for way, seconds in zip(p2p.WAYS, message, strict=True)
    }
    claims = p2p.judge(256 * MIB, samples, arrived)
    assert verdict(claims) == expected
    assert [claim.line for claim in claims] == list(p2p.LINES)
    assert claims[0].figure.startswith(f"{1 / message[0]:.0%} (")


def seconds(times: dict[int, float]) -> dict[str, dict[int, list[float]]]:
    """Samples with which hetcomm is that many times as fast as Gloo, by size."""
    return {
        "hetcomm": {n: [n * 1e-12, 9.0, 0.0] for n in times},
        "Gloo": {n: [n * 1e-12 * ratio] * 3 for n, ratio in times.items()},
    }


def test_all_reduce_holds_only_where_every_size_does() -> None:
    sizes = (MIB, 16 * MIB, 64 * MIB)
    good = seconds({MIB: 3.0, 16 * MIB: 19.5, 64 * MIB: 40.0})
    claims = all_reduce.judge(good, [], sizes)
    assert verdict(claims) == [True, True]  # the smallest size does not count
    assert claims[0].figure == "19.5 x at least, at 16 MiB"
    assert claims[1].figure == f"{(3 * 19.5 * 40) ** (1 / 3):.1f} x over 3 sizes"
    assert verdict(all_reduce.judge(seconds(dict.fromkeys(sizes, 18.9)), [], sizes)) == [False, True]
    assert verdict(all_reduce.judge(good, ["Gloo at 1 MiB"], sizes)) == [False, False]
    few = seconds({MIB: 3.0, 16 * MIB: 19.5})
    assert all_reduce.judge(few, [], sizes)[0].verdict == "could not be measured: no figures at 64 MiB"
    assert verdict(all_reduce.judge(seconds({MIB: 3.0}), [], sizes)) == [None, True]
    assert verdict(all_reduce.judge(seconds({}), [], sizes)) == [None, None]
    assert "19.5x" in all_reduce.table(good)


def test_all_reduce_draws_its_picture(tmp_path: Path) -> None:
    path = tmp_path / "all_reduce.png"
    measured = seconds({MIB << exponent: 2.0 * exponent + 1 for exponent in range(11)})
    measured["hetcomm"] = {n: [n * 1e-12, n * 2e-12] for n in measured["hetcomm"]}
    all_reduce.plot(measured, str(path), "device")
    assert path.stat().st_size > 20_000


def events(*names: str) -> list[dict[str, Any]]:
    """Copies of those names, of 8 bytes each, and a kernel."""
    copies = [{"cat": "gpu_memcpy", "name": name, "args": {"bytes": 8}} for name in names]
    return [*copies, {"cat": "kernel", "name": "spin"}, {"cat": "cpu_op", "name": "Memcpy HtoD"}]


DIRECT = ("Memcpy DtoD (Device -> Device)", "Memcpy PtoP (Device -> Device)")
TO_DEVICE, TO_HOST = "Memcpy HtoD (Pageable -> Device)", "Memcpy DtoH (Device -> Pinned)"


def recorded(*names: str, control: tuple[str, ...] = (TO_DEVICE, TO_HOST), right: bool = True) -> dict[str, Any]:
    """What a rank recorded: copies of those names at 1 MiB."""
    seen = trace.activity({"traceEvents": events(*names)})
    sizes = {MIB: {"copies": trace.copies(seen), "kernels": trace.kernels(seen) if names else {}}}
    return {"control": trace.copies(events(*control)), "sizes": sizes, "right": right}


def test_copies_are_counted_by_kind() -> None:
    seen = trace.activity({"traceEvents": events(*DIRECT, DIRECT[0], TO_HOST)})
    assert trace.copies(seen) == {
        "DtoD": {"count": 2, "bytes": 16},
        "DtoH": {"count": 1, "bytes": 8},
        "PtoP": {"count": 1, "bytes": 8},
    }
    assert trace.kernels(seen) == {"spin": 1}


def test_a_trace_holds_only_without_copies_through_the_host_and_if_it_would_show_them() -> None:
    direct, staged = recorded(*DIRECT), recorded(DIRECT[0], TO_DEVICE)
    assert verdict(trace.judge([direct, direct])) == [True]
    (claim,) = trace.judge([direct, staged])
    assert claim.holds is False
    assert claim.why == "1 HtoD at 1 MiB on rank 1"
    blind = recorded(*DIRECT, control=(TO_DEVICE,))
    assert "ranks [1]" in trace.judge([direct, blind])[0].verdict
    assert verdict(trace.judge([direct, blind])) == [None]
    assert verdict(trace.judge([direct, recorded()])) == [None]  # nothing at all was recorded
    assert verdict(trace.judge([direct, recorded(*DIRECT, right=False)])) == [False]


def streaming(call: float = 3e-5, busy: bool = True, right: bool = True, pace: float = 0.95) -> dict[str, Any]:
    """What a rank measured in ten calls, of which one took long."""
    one = {
        "call_seconds": [call] * 9 + [2e-3],
        "still_busy": [busy] * 10,
        "count_per_second": [pace * 1e7] * 10,
        "right": right,
    }
    return {"count_per_second_alone": 1e7, "sizes": {MIB: one}}


def test_calls_behind_a_busy_stream_are_judged_by_their_median() -> None:
    claims = streams.judge([streaming(), streaming()])
    assert verdict(claims) == [True, True, True]
    assert claims[0].figure == "median 30 us, worst 2000 us, 90% in time"
    assert verdict(streams.judge([streaming(call=1.1e-4)] * 2)) == [False, True, True]
    assert verdict(streams.judge([streaming(), streaming(busy=False)])) == [None, True, True]
    assert verdict(streams.judge([streaming(), streaming(right=False)])) == [True, False, True]
    assert verdict(streams.judge([streaming(), streaming(pace=0.5)])) == [True, True, False]


def test_counting_stops_when_the_stream_is_done() -> None:
    answers = iter([False, False, True])
    count, took = streams.count_until(lambda: next(answers))
    assert count == 6000
    assert took > 0


def test_only_reductions_of_nccl_over_a_border_count() -> None:
    border = "vendor border:nccl/a reduce_scatter sum 4096 x float32"
    others = ["send in[0:4] to 2", "vendor home:nccl/a reduce_scatter sum 4096 x float32"]
    assert sharing.border_calls([*others, border, "vendor border:nccl/a all_gather 8 x float32"]) == [border]
    ranks = [{"right": True, "steps": [*others, border]}] * 4
    assert verdict(sharing.judge(ranks)) == [True]
    lacking = [*ranks[:3], {"right": True, "steps": others}]
    assert sharing.judge(lacking)[0].verdict == "DOES NOT HOLD: no such step on ranks [3]"
    assert verdict(sharing.judge([*ranks[:3], {"right": False, "steps": [border]}])) == [False]


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_matrix" name="test_matrix[nccl-1+1]">
  <properties><property name="cases" value="454 cases"/></properties></testcase>
<testcase classname="tests.gpu.test_matrix" name="test_matrix[ucx-2+1]"><failure message="rank 1&#10;more"/></testcase>
<testcase classname="tests.gpu.test_matrix" name="test_matrix[ucx-2+2]"><skipped message="no CUDA device"/></testcase>
<testcase classname="tests.gpu.test_streams" name="test_a"/>
<testcase classname="tests.gpu.test_streams" name="test_b"><skipped message="no PyTorch"/></testcase>
%s</testsuite></testsuites>"""


def test_the_tests_are_read_from_their_report() -> None:
    claims = verdicts.judge_tests(verdicts.test_cases(JUNIT % ""), 1)
    assert verdict(claims) == [True, False, None, None, True]
    assert [claim.figure for claim in claims] == ["454 cases", "", "", "", "1 passed, 1 skipped"]
    assert [claim.why for claim in claims] == ["", "rank 1", "no CUDA device", "its test did not run", ""]
    broken = '<testcase classname="tests.gpu.test_streams" name="test_c"><error message="x"/></testcase>'
    last = verdicts.judge_tests(verdicts.test_cases(JUNIT % broken), 1)[-1]
    assert last.verdict == "DOES NOT HOLD: failed: test_c"
    assert verdict(verdicts.judge_tests([], 5)) == [None] * 5


CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
FAULTY = "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 2 errors\n"


@pytest.mark.parametrize(
    ("status", "log", "cases", "said"),
    [
        (0, CLEAN * 3, [{"cases": "454 of 454 cases"}], "holds"),
        (1, CLEAN + FAULTY, [{"cases": ""}], "DOES NOT HOLD: Invalid __global__ read of size 4 bytes"),
        (1, CLEAN, [{"reason": "timed out\nlater"}], "could not be measured: the run ended with status 1: timed out"),
        (0, CLEAN, [], "could not be measured: the run ended with status 0: its test left no report"),
    ],
)
def test_the_sanitizer_is_read_from_its_log(status: int, log: str, cases: list[dict[str, str]], said: str) -> None:
    claim = verdicts.judge_sanitizer(status, log, cases)
    assert claim.verdict == said
    if claim.holds:
        assert claim.figure == "0 errors in 3 processes, 454 of 454 cases"


# ---- running parts

WELL = (
    "import json, sys; json.dump({'claims': [{'line': 'one', 'figure': '1', 'holds': True, 'why': ''}]}, open(%r, 'w'))"
)


def part(name: str, code: str, path: Path, seconds: float = 30.0) -> Any:
    """A part that is a piece of Python."""

    def read(status: int) -> tuple[list[Any], Any]:
        found = json.loads(path.read_text())
        return report.claims_of(found), {"status": status}

    return suite.Part(name, (sys.executable, "-c", code), seconds, ("one",), read)


def run(parts: list[Any], tmp_path: Path, seconds: float = 30.0) -> list[Any]:
    log = tmp_path / "parts.log"
    log.touch()
    return list(suite.run_all(parts, time.monotonic() + seconds, log))


def test_a_part_that_fails_or_hangs_does_not_keep_the_others(tmp_path: Path) -> None:
    none, path = tmp_path / "none.json", tmp_path / "well.json"
    parts = [
        part("hangs", "import time\nprint('here', flush=True)\ntime.sleep(60)", none, 1.0),
        part("fails", "raise RuntimeError('it broke')", none),
        part("well", WELL % str(path), path),
    ]
    hangs, fails, well = run(parts, tmp_path)
    assert hangs.failure == "not done after 1 s"
    assert hangs.claims[0].verdict == "could not be measured: not done after 1 s"
    assert fails.failure == "it ended with status 1: RuntimeError: it broke"
    assert well.failure == ""
    assert verdict(well.claims) == [True]
    text = (tmp_path / "parts.log").read_text()
    assert "===== hangs" in text
    assert "here" in text
    assert list(tmp_path.glob("*.part")) == []
    assert suite.exit_status([well]) == 0
    assert suite.exit_status([well, hangs]) == 1
    lacking = suite.Outcome("x", report.unmeasured(["one"], "no tool"), 0.0)
    assert suite.exit_status([well, lacking]) == 2


def test_nothing_goes_on_after_the_end_of_all(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    (late,) = run([part("late", code, tmp_path / "none.json")], tmp_path, seconds=2.0)
    assert late.failure == "not done after 2 s"
    assert not Path("/proc", pid.read_text()).exists()


def test_the_report_has_what_was_measured_so_far(tmp_path: Path) -> None:
    done = suite.Outcome("p2p", [report.Claim("one", "1", True)], 2.5, results={"x": 1})
    suite.write(tmp_path, {"gpu": {}}, [done], 3.0)
    read = json.loads((tmp_path / "gpu.json").read_text())
    assert read["claims"] == [{"line": "one", "figure": "1", "holds": True, "why": ""}]
    assert read["parts"]["p2p"] == {"seconds": 2.5, "failure": "", "results": {"x": 1}}


def test_every_part_can_be_started(tmp_path: Path) -> None:
    """Their programs exist, take the options they are given, and each has time to start and end."""
    parts = suite.measurements(tmp_path, tmp_path)
    for each in parts:
        module = load(each.name)
        assert each.command[1:3] == ("-m", f"benchmarks.gpu.{each.name}")
        assert tuple(each.lines) == tuple(module.LINES)
        assert each.seconds > 20
    assert sum(each.seconds for each in parts) < 330  # of 570, which the tests have to fit into as well


@pytest.mark.parametrize("name", ["p2p", "all_reduce", "trace", "streams", "sharing"])
def test_every_part_knows_the_options_that_it_is_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(name)
    (mine,) = [each for each in suite.measurements(tmp_path, tmp_path) if each.name == name]
    monkeypatch.setattr(sys, "argv", [name, *mine.command[3:], "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    options = [word for word in mine.command[3:] if word.startswith("--")]
    text = capsys.readouterr().out
    assert all(option in text for option in options)
