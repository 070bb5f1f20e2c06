"""Everything that is to be shown on a GPU, one part after the other, each within its time, with a summary at the end.

    python -m benchmarks.gpu.suite OUT --seconds 480

`benchmarks/gpu/run.sh` calls this on a bare machine. OUT then holds

* `gpu.json`: the machine, all claims, and the report of every part; written anew after each part, so that what was
  measured is there whatever happens later;
* `all_reduce.png`: the picture; `activity.json`: a CUDA activity trace, for Perfetto or chrome://tracing;
* `tests.xml`, `sanitizer.log`: what pytest and compute-sanitizer said; `parts.log`: the output of all parts.

A part that fails or runs out of time is reported and the next one runs. A part gets its own seconds, or what is left of
all; the last two, the tests and the run under compute-sanitizer, go on side by side and share what is left. The exit
status is 1 if a claim does not hold or a part failed, 2 if nothing of that happened but something was not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu import all_reduce, p2p, sharing, streams, trace
from benchmarks.gpu.report import Claim, claims_of, machine, summary, unmeasured
from benchmarks.gpu.verdicts import (
    MATRIX_LINES,
    OTHER_TESTS,
    SANITIZER_LINE,
    judge_sanitizer,
    judge_tests,
    test_cases,
)

_ERROR = re.compile(r"[\w.]*(Error|Exception|RanksFailed|Interrupt)\b.*:")
ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins that happen to be installed may warn, which is an error here
ENDING = 8.0  # seconds that a part gets to end by itself when its time is over


@dataclass(frozen=True, slots=True)
class Part:
    """A program to run.

    Attributes:
        name: What it is called in the report.
        command: Its command line.
        seconds: What it may take.
        lines: The claims it is about.
        read: Makes the claims and the results of what it left behind, given its exit status.
        env: What is added to its environment.
    """

    name: str
    command: Sequence[str]
    seconds: float
    lines: Sequence[str]
    read: Callable[[int], tuple[list[Claim], Any]]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part.

    Attributes:
        name: The part's.
        claims: All of its lines.
        seconds: What it took.
        failure: Why it gave nothing or not all; empty if it went well.
        results: Its figures, if any.
    """

    name: str
    claims: Sequence[Claim]
    seconds: float
    failure: str = ""
    results: Any = None


def benchmark(name: str, lines: Sequence[str], seconds: float, folder: Path, *extra: str) -> Part:
    """The part that is the module `benchmarks.gpu.NAME`, whose processes may take somewhat less than itself."""
    path = folder / f"{name}.json"

    def read(status: int) -> tuple[list[Claim], Any]:
        report = json.loads(path.read_text())
        return claims_of(report), report["results"]

    inner = ["--json", str(path), "--seconds", f"{seconds - 10:g}", *extra]
    return Part(name, (sys.executable, "-m", f"benchmarks.gpu.{name}", *inner), seconds, tuple(lines), read)


def measurements(out: Path, folder: Path) -> list[Part]:
    """The parts that need the machine for themselves, in the order in which they run."""
    picture, chrome = str(out / "all_reduce.png"), str(out / "activity.json")
    return [
        benchmark("p2p", p2p.LINES, 60, folder),
        benchmark("all_reduce", all_reduce.LINES, 100, folder, "--plot", picture),
        benchmark("trace", trace.LINES, 50, folder, "--chrome", chrome),
        benchmark("streams", streams.LINES, 45, folder),
        benchmark("sharing", sharing.LINES, 45, folder),
    ]


def pytest(path: str, report: Path, *extra: str) -> list[str]:
    """The command that runs the GPU tests of a file or folder of `tests/gpu` and writes a JUnit report."""
    report.unlink(missing_ok=True)  # one of an earlier run would be taken for this one's
    asked = ["-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", *extra]
    return [sys.executable, "-m", "pytest", str(ROOT / "tests" / "gpu" / path), *asked]


def tests(out: Path, seconds: float) -> Part:
    """pytest on `tests/gpu`."""
    report = out / "tests.xml"

    def read(status: int) -> tuple[list[Claim], Any]:
        cases = test_cases(report.read_text())
        return judge_tests(cases, status), cases

    command = pytest("", report, "-k", "not memcheck", "-p", "xdist", "-n", "3", "--dist", "worksteal")
    return Part("tests", command, seconds, (*MATRIX_LINES.values(), OTHER_TESTS), read, PLAIN)


def find_sanitizer() -> str | None:
    """compute-sanitizer on the search path, or beside the CUDA compiler."""
    nvcc = shutil.which("nvcc")
    beside = str(Path(nvcc).resolve().parent) if nvcc else ""
    return shutil.which("compute-sanitizer") or (shutil.which("compute-sanitizer", path=beside) if beside else None)


def sanitizer(out: Path, folder: Path, seconds: float, tool: str) -> Part:
    """One job of the matrix under memcheck, for as many cases as there is time; all logs end up in one file."""
    report = folder / "sanitizer.xml"

    def read(status: int) -> tuple[list[Claim], Any]:
        text = "".join(path.read_text(errors="replace") for path in sorted(folder.glob("memcheck.*")))
        (out / "sanitizer.log").write_text(text)
        cases = test_cases(report.read_text()) if report.is_file() else []
        return [judge_sanitizer(status, text, cases)], {"status": status, "tests": cases, "end": text[-4000:]}

    # What fills the time besides the cases: starting Python and CuPy under the tool, and ending.
    env = {**PLAIN, "HETCOMM_GPU_MATRIX_SECONDS": f"{max(10.0, seconds - 60):g}"}
    # Not what the driver answers to questions: UCX asks it about addresses of the host, which is an error each time.
    command = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--target-processes", "all"]
    command += [
        "--error-exitcode",
        "99",
        "--log-file",
        str(folder / "memcheck.%p"),
        *pytest("test_matrix.py", report, "-k", "memcheck"),
    ]
    return Part("sanitizer", command, seconds, (SANITIZER_LINE,), read, env)


@contextlib.contextmanager
def started(part: Part, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The running part; when the block is left nothing of it goes on."""
    with log.open("ab") as output:
        output.write(f"\n===== {part.name}: {' '.join(part.command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            part.command,
            env={**os.environ, **part.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
        )
        try:
            yield process
        finally:
            for number in (signal.SIGINT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(ENDING)


def last_error(output: str) -> str:
    """The last line of an output that names an exception, shortened; empty if there is none."""
    found = [line for line in output.splitlines() if _ERROR.match(line)]
    return found[-1][:200] if found else ""


def outcome(part: Part, status: int | None, seconds: float, output: str) -> Outcome:
    """What a part that ended (or ran out of time: status None) has shown."""
    late = f"not done after {seconds:.0f} s" if status is None else ""
    try:
        claims, results = part.read(-1 if status is None else status)
    except (OSError, ValueError, KeyError, TypeError, ElementTree.ParseError) as error:
        why = late or f"it ended with status {status}: {last_error(output) or f'no report: {error}'}"
        return Outcome(part.name, unmeasured(part.lines, why), seconds, why)
    if late and all(claim.holds is None for claim in claims):
        claims = unmeasured(part.lines, late)
    return Outcome(part.name, claims, seconds, late, results)


def run_all(parts: Sequence[Part], until: float, log: Path) -> list[Outcome]:
    """Run parts side by side; each gets its seconds, but nothing goes on after `until` (of `time.monotonic`)."""
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        logs = [log.with_name(f"{part.name}.part") for part in parts]
        running = [stack.enter_context(started(part, path)) for part, path in zip(parts, logs, strict=True)]
        ended: list[tuple[int | None, float]] = []
        for part, process in zip(parts, running, strict=True):
            end = min(begin + part.seconds, until)
            try:
                ended.append((process.wait(max(0.1, end - time.monotonic())), time.monotonic() - begin))
            except subprocess.TimeoutExpired:
                ended.append((None, max(0.1, end - begin)))
    outputs = [path.read_bytes() for path in logs]
    with log.open("ab") as whole:
        for path, output in zip(logs, outputs, strict=True):
            whole.write(output)
            path.unlink()
    return [
        outcome(part, *end, output.decode(errors="replace"))
        for part, end, output in zip(parts, ended, outputs, strict=True)
    ]


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """1 if something failed or does not hold, else 2 if something was not measured, else 0."""
    claims = [claim for each in outcomes for claim in each.claims]
    if any(each.failure for each in outcomes) or any(claim.holds is False for claim in claims):
        return 1
    return 2 if any(claim.holds is None for claim in claims) else 0


def write(out: Path, about: Mapping[str, Any], outcomes: Sequence[Outcome], seconds: float) -> None:
    """The report, whole or so far."""
    claims = [asdict(claim) for each in outcomes for claim in each.claims]
    parts = {
        each.name: {"seconds": each.seconds, "failure": each.failure, "results": each.results} for each in outcomes
    }
    report = {"machine": about, "seconds": seconds, "claims": claims, "parts": parts}
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a file."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder for reports and pictures")
    parser.add_argument("--seconds", type=float, default=480.0, help="what all parts may take together (480)")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    until = begin + options.seconds - 2 * ENDING
    log, about, outcomes = out / "parts.log", machine(), []
    log.write_bytes(b"")
    print(json.dumps(about))

    def go(parts: Sequence[Part]) -> None:
        for each in run_all(parts, until, log):
            outcomes.append(each)
            print(f"{each.name}: {each.seconds:.0f} s{', ' if each.failure else ''}{each.failure}", flush=True)
        if any(each.failure for each in outcomes[-len(parts) :]):
            print(tail(log), flush=True)
        write(out, about, outcomes, time.monotonic() - begin)

    with tempfile.TemporaryDirectory(prefix="hetcomm-gpu-") as folder:
        for part in measurements(out, Path(folder)):
            go([part])
        left = until - time.monotonic()
        last, tool = [tests(out, left)], find_sanitizer()
        if tool is not None:
            last.append(sanitizer(out, Path(folder), left, tool))
        else:
            lacking = unmeasured([SANITIZER_LINE], "there is no compute-sanitizer here")
            outcomes.append(Outcome("sanitizer", lacking, 0.0))
        go(last)
    print(f"\n{summary([claim for each in outcomes for claim in each.claims])}")
    return exit_status(outcomes)


if __name__ == "__main__":
    sys.exit(main())
