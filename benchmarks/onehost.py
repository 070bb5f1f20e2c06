"""What hetcomm promises on one host, measured: short and middle vectors, long ones, beside Gloo and Open MPI.

    python benchmarks/onehost.py --json onehost.json --plot onehost.png

Each job is started on this machine, and measured as `hetcomm bench` does: the same buffers, results checked, contenders
interleaved in the same processes, a sample being the time of a block of calls on the slowest rank; medians count. Open
MPI is told to yield the processor, as it must be where ranks outnumber the cores. Gloo takes part where torch can be
imported. `direct` is an all_reduce through memory that all ranks map: a bound, not a library.

short   8 B to 1 MiB, two clusters of unlike vendors (`--vendors`), 2 and 4 ranks, five collectives. Promises are about
        geometric means of time ratios over all of these, and about the worst size.
long    4 and 64 MiB, all_reduce of 2 ranks of `ucx`; 64 MiB, all_reduce and the others, of 4 ranks in two clusters of
        `oneccl` and of `mpi`. The former four times: with arrays of the program's own and with shared ones, which
        `direct` has in any case, and each with arrays that nobody looks at between calls and with such as every rank
        writes and reads. The former favours `direct`: what a rank writes there stays in its caches.

The exit status is 1 if a result was wrong, 2 if a promise was not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from hetcomm._cli import baselines, report
from hetcomm._cli.bench import parse_size
from hetcomm._cli.cases import sizes
from hetcomm._cli.jobs import start_ranks
from hetcomm._cli.measure import Benchmark
from hetcomm._cli.units import format_nbytes
from hetcomm.schedule.canvas import new_figure, save
from hetcomm.transport.library import load_library
from hetcomm.types import DataType, ReduceKind

FORMAT = "hetcomm onehost 1"
COLLECTIVES = ("all_reduce", "broadcast", "all_gather", "reduce_scatter", "all_to_all")
COLOURS = {"over gloo": "#d62728", "over mpi": "#1f77b4", "over direct": "#7f7f7f"}
FORMS = {
    "2 ucx": (False, False),
    "2 ucx, touched": (False, True),
    "2 ucx, shared": (True, False),
    "2 ucx, shared and touched": (True, True),
}
"""Whether buffers are shared, and whether they are touched between calls, in each part with the vendor `ucx`."""
Job = dict[str, Any]
"""A report of `hetcomm bench` as JSON, with the `part` of this program that it belongs to."""


@dataclass(frozen=True)
class Promise:
    """At least `least`, of the value that is found among the ratios of a baseline's time to hetcomm's.

    Attributes:
        part: "short", or a long job's name.
        baseline: Whose time.
        least: What is promised.
        nbytes: The size it is about; None: all.
        of: What is made of several ratios.
        collective: Which one; None: all.
    """

    part: str
    baseline: str
    least: float
    nbytes: int | None = None
    of: Callable[[list[float]], float] = min
    collective: str | None = None

    def __str__(self) -> str:
        size = "all sizes" if self.nbytes is None else format_nbytes(self.nbytes)
        what = {min: "worst", geometric_mean: "geometric mean"}[self.of]
        return f"{self.part}: {self.collective or 'all collectives'}, {size}: {what} over {self.baseline}"


PROMISES = (
    Promise("short", "gloo", 17, of=geometric_mean),
    Promise("short", "mpi", 0.8, of=geometric_mean),
    Promise("short", "mpi", 0.5),
    Promise("short", "gloo", 1),
    Promise("2 ucx", "gloo", 5, 4 << 20, collective="all_reduce"),
    Promise("2 ucx", "mpi", 0.8, 4 << 20, collective="all_reduce"),
    Promise("2 ucx", "direct", 0.6, 4 << 20, collective="all_reduce"),
    Promise("2 ucx, touched", "direct", 0.6, 4 << 20, collective="all_reduce"),
    Promise("2 ucx, shared", "direct", 0.6, 4 << 20, collective="all_reduce"),
    Promise("2 ucx, shared and touched", "direct", 0.6, 4 << 20, collective="all_reduce"),
    Promise("2 ucx", "gloo", 3, 64 << 20, collective="all_reduce"),
    Promise("2 ucx", "mpi", 2, 64 << 20, collective="all_reduce"),
    Promise("2 ucx", "direct", 0.6, 64 << 20, collective="all_reduce"),
    Promise("2+2 oneccl", "gloo", 2.5, 64 << 20, collective="all_reduce"),
    Promise("2+2 oneccl", "mpi", 1.8, 64 << 20, collective="all_reduce"),
    Promise("2+2 mpi", "gloo", 1.3, 64 << 20, collective="all_reduce"),
    Promise("2+2 oneccl", "gloo", 1),
    Promise("2+2 mpi", "gloo", 1),
)


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, list[str], list[int], Benchmark]]:
    """Part, vendors, clusters and what is measured of each job."""
    first, second = options.vendors
    steps = tuple(sizes(8, options.most, options.factor, None))
    if "short" in options.parts:
        for half in (1, 2):
            for collective in COLLECTIVES:
                task = task_of(collective, steps, options.iters, options)
                yield "short", [first] * half + [second] * half, [0] * half + [1] * half, task
    if "long" in options.parts:
        for part, (shared, touched) in FORMS.items():
            versus = ("mpi", "direct") if shared or touched else ("gloo", "mpi", "direct")
            task = task_of("all_reduce", (4 << 20, 64 << 20), options.iters, options, versus, shared, touched)
            yield part, ["ucx"] * 2, [0, 0], task
        for vendor in ("oneccl", "mpi"):
            for collective in COLLECTIVES:
                task = task_of(collective, (64 << 20,), max(3, options.iters // 2), options)
                yield f"2+2 {vendor}", [vendor] * 4, [0, 0, 1, 1], task


def task_of(
    collective: str,
    steps: tuple[int, ...],
    iters: int,
    options: argparse.Namespace,
    versus: tuple[str, ...] = ("gloo", "mpi"),
    shared: bool = False,
    touched: bool = False,
) -> Benchmark:
    """What the ranks of a job do."""
    return Benchmark(
        collective,
        steps,
        DataType.FLOAT32,
        ReduceKind.SUM,
        0,
        False,
        versus,
        iters,
        options.warmup,
        check=True,
        shared=shared,
        touched=touched,
    )


def measure(part: str, vendors: list[str], clusters: list[int], task: Benchmark, options: argparse.Namespace) -> Job:
    """One job."""
    made = report.as_json(start_ranks(task, vendors, clusters, options.timeout), options.command)
    made["versions"]["ucx"] = load_library().version  # without its place on this machine
    return {"part": part, **made}


def ratios(found: Sequence[Job], promise: Promise) -> list[float]:
    """Times of the promise's baseline over those of hetcomm."""
    table = []
    for job in found:
        if job["part"] != promise.part or promise.collective not in (None, job["collective"]):
            continue
        times = {(row["nbytes"], row["library"]): row["time"] for row in job["rows"]}
        table += [
            times[nbytes, promise.baseline] / seconds
            for (nbytes, library), seconds in times.items()
            if library == baselines.HETCOMM and promise.nbytes in (None, nbytes) and (nbytes, promise.baseline) in times
        ]
    return table


def verdicts(found: Sequence[Job]) -> list[dict[str, Any]]:
    """What was promised, what was found, and whether that is as much."""
    table = []
    for promise in PROMISES:
        there = ratios(found, promise)
        if there:
            value = promise.of(there)
            kept = value >= promise.least
            table.append({"promise": str(promise), "least": promise.least, "found": value, "kept": kept})
    return table


def lines(job: Job) -> Iterator[str]:
    """What a job found, as text."""
    by_size: dict[int, dict[str, float]] = {}
    for row in job["rows"]:
        by_size.setdefault(row["nbytes"], {})[row["library"]] = row["time"]
    for nbytes, times in by_size.items():
        shown = "  ".join(f"{name} {seconds * 1e6:10.1f} us" for name, seconds in times.items())
        name = f"{job['part']}, {job['nranks']} ranks, {job['collective']}"
        yield f"{name:40} {format_nbytes(nbytes):>9}  {shown}"


def draw(found: Sequence[Job], path: Path) -> None:
    """Ratios against size, a panel for each collective and number of ranks of the short part."""
    short = [job for job in found if job["part"] == "short"]
    counts = sorted({job["nranks"] for job in short})
    figure = new_figure(path, 7.0)
    axes = figure.subplots(len(counts), len(COLLECTIVES), squeeze=False, sharex=True, sharey=True)
    for job in short:
        axis = axes[counts.index(job["nranks"])][COLLECTIVES.index(job["collective"])]
        times = {(row["nbytes"], row["library"]): row["time"] for row in job["rows"]}
        steps = sorted({nbytes for nbytes, _ in times})
        for library in ("gloo", "mpi"):
            there = [nbytes for nbytes in steps if (nbytes, library) in times]
            values = [times[nbytes, library] / times[nbytes, baselines.HETCOMM] for nbytes in there]
            axis.plot(there, values, color=COLOURS[f"over {library}"], marker=".")
        axis.axhline(1, color="black", linewidth=0.5)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(visible=True, alpha=0.3)
        axis.set_title(f"{job['collective']}, {job['nranks']} ranks", fontsize=8)
    for first, *_ in axes:
        first.set_ylabel("times as fast")
    for axis in axes[-1]:
        axis.set_xlabel("size, bytes")
    legend = {name: COLOURS[name] for name in ("over gloo", "over mpi")}
    save(figure, path, ("hetcomm on one host", "two clusters of unlike vendors, float32"), legend)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=["short", "long"], choices=["short", "long"], help="both unless given"
    )
    parser.add_argument("--vendors", nargs=2, default=["mpi", "oneccl"], help="of the two clusters of the short part")
    parser.add_argument("--most", type=parse_size, default=1 << 20, help="the longest of the short part (1M)")
    parser.add_argument("--factor", type=int, default=2, help="from one size of the short part to the next (2)")
    parser.add_argument("--iters", type=int, default=15, help="samples of each size (15)")
    parser.add_argument("--warmup", type=int, default=5, help="calls of a block of warm-up (5)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each job (300)")
    parser.add_argument("--json", type=Path, help="write every sample to this file, after each job")
    parser.add_argument("--plot", type=Path, help="draw the short part to this file (.png or .svg; needs matplotlib)")
    options = parser.parse_args(arguments)
    options.command = ["python", "benchmarks/onehost.py", *(sys.argv[1:] if arguments is None else arguments)]
    return options


def carry_out(
    options: argparse.Namespace,
    written_as: str,
    tasks: Iterator[tuple[str, list[str], list[int], Benchmark]],
    describe: Callable[[Job], Iterator[str]],
    judge: Callable[[Sequence[Job]], list[dict[str, Any]]],
) -> tuple[list[Job], int]:
    """Measure, print and write all jobs, then say what was promised; the status is 1 for wrong values, 2 for less."""
    found: list[Job] = []
    for task in tasks:
        found.append(measure(*task, options))
        print("\n".join(describe(found[-1])), flush=True)
        if options.json is not None:
            about = {"format": written_as, "command": options.command, "verdicts": judge(found), "jobs": found}
            options.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    table = judge(found)
    for row in table:
        kept = "kept    " if row["kept"] else "NOT KEPT"
        print(kept, f"{row['promise']}: {row['found']:.2f}, promised {row['least']:g}")
    if any(row["wrong"] for job in found for row in job["rows"]):
        return found, 1
    return found, 0 if all(row["kept"] for row in table) else 2


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    found, status = carry_out(options, FORMAT, jobs(options), lines, verdicts)
    if options.plot is not None and "short" in options.parts:
        draw(found, options.plot)
    return status


if __name__ == "__main__":
    sys.exit(main())
