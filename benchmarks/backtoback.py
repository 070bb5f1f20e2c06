"""Calls one behind the other, with no barrier between them, beside Open MPI and Gloo.

    python benchmarks/backtoback.py --json back-to-back.json --plot back-to-back.png

Each rank writes its input before each call and waits for nobody but in the calls themselves, as a program does that
broadcasts one batch after another: a root that need not wait runs ahead of the ranks that receive. Time is that of the
loop, writing included, on the slowest rank, over its calls. Contenders are interleaved in the same processes, so that
ratios hold better than times; Open MPI is told to yield the processor. Gloo takes part where torch can be imported.

ahead   broadcast of 64 to 512 KiB, over two ranks of one vendor and over two clusters of one rank each.
long    all_gather and all_to_all of 1 to 64 MiB over two clusters of two ranks each.

The exit status is 1 if a result was wrong, 2 if Open MPI was faster than promised.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean, median, quantiles
from typing import Any

import onehost

from hetcomm._cli import baselines
from hetcomm._cli.bench import parse_size
from hetcomm._cli.cases import sizes
from hetcomm._cli.measure import Benchmark
from hetcomm._cli.units import format_nbytes
from hetcomm.schedule.canvas import new_figure, save
from hetcomm.types import DataType, ReduceKind

FORMAT = "hetcomm back-to-back 1"
LEAST = 1.0
"""What is promised: the time of Open MPI over that of hetcomm, as the geometric mean over the sizes of a part."""


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, list[str], list[int], Benchmark]]:
    """Part, vendors, clusters and what is measured of each job."""
    first, second = options.vendors
    if "ahead" in options.parts:
        for part, vendors, clusters in (
            (f"2 {first}", [first] * 2, [0, 0]),
            ("2 ucx", ["ucx"] * 2, [0, 0]),
            (f"1 {first} + 1 {second}", [first, second], [0, 1]),
        ):
            steps = tuple(sizes(options.begin, options.end, 2, None))
            yield part, vendors, clusters, task_of("broadcast", steps, options.iters, options)
    if "long" in options.parts:
        for collective in ("all_gather", "all_to_all"):
            steps = tuple(sizes(1 << 20, options.longest, 4, None))
            task = task_of(collective, steps, max(3, options.iters // 2), options)
            yield f"2 {first} + 2 {second}", [first] * 2 + [second] * 2, [0, 0, 1, 1], task


def task_of(collective: str, steps: tuple[int, ...], iters: int, options: argparse.Namespace) -> Benchmark:
    """What the ranks of a job do."""
    return Benchmark(
        collective,
        steps,
        DataType.FLOAT32,
        ReduceKind.SUM,
        0,
        False,
        ("gloo", "mpi"),
        iters,
        options.warmup,
        check=True,
        ahead=True,
    )


def ratios(job: onehost.Job, baseline: str) -> dict[int, tuple[float, float, float]]:
    """By size, the time of the baseline over that of hetcomm, sample by sample: the quartiles."""
    samples = {(row["nbytes"], row["library"]): row["samples"] for row in job["rows"]}
    found = {}
    for (nbytes, library), theirs in samples.items():
        if library == baseline:
            pairs = zip(theirs, samples[nbytes, baselines.HETCOMM], strict=True)
            each = [other / mine for other, mine in pairs]
            low, _, high = quantiles(each, n=4)
            found[nbytes] = low, median(each), high
    return found


def verdicts(found: Sequence[onehost.Job]) -> list[dict[str, Any]]:
    """What was promised of each job, what was found, and whether that is as much."""
    table = []
    for job in found:
        there = ratios(job, "mpi")
        if there:
            value = geometric_mean(middle for _, middle, _ in there.values())
            promise = f"{job['part']}, {job['collective']}: geometric mean over mpi"
            table.append({"promise": promise, "least": LEAST, "found": value, "kept": value >= LEAST})
    return table


def lines(job: onehost.Job) -> Iterator[str]:
    """What a job found, as text."""
    yield from onehost.lines(job)
    for baseline in ("gloo", "mpi"):
        for nbytes, (low, middle, high) in ratios(job, baseline).items():
            name = f"{job['part']}, {job['collective']}"
            factor = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            yield f"{name:40} {format_nbytes(nbytes):>9}  {factor} times as fast as {baseline}"


def draw(found: Sequence[onehost.Job], path: Path) -> None:
    """Ratios against size, a panel for each job; bars are quartiles."""
    figure = new_figure(path, 3.6)
    axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axis, job in zip(axes, found, strict=True):
        for baseline in ("gloo", "mpi"):
            there = ratios(job, baseline)
            if there:
                middles = [middle for _, middle, _ in there.values()]
                spread = [[m - low for low, m, _ in there.values()], [high - m for _, m, high in there.values()]]
                colour = onehost.COLOURS[f"over {baseline}"]
                axis.errorbar(list(there), middles, yerr=spread, color=colour, marker=".", capsize=2)
        axis.axhline(1, color="black", linewidth=0.5)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(visible=True, alpha=0.3)
        axis.set_title(f"{job['collective']}\n{job['part']}", fontsize=8)
        axis.set_xlabel("size, bytes")
    axes[0].set_ylabel("times as fast")
    legend = {name: onehost.COLOURS[name] for name in ("over gloo", "over mpi")}
    save(figure, path, ("Calls one behind the other", "arrays written before each call, float32"), legend)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", default=["ahead", "long"], choices=["ahead", "long"], help="both unless given"
    )
    parser.add_argument("--vendors", nargs=2, default=["mpi", "oneccl"], help="of the two clusters (mpi oneccl)")
    parser.add_argument("--begin", type=parse_size, default=64 << 10, help="the shortest broadcast (64K)")
    parser.add_argument("--end", type=parse_size, default=512 << 10, help="the longest broadcast (512K)")
    parser.add_argument("--longest", type=parse_size, default=64 << 20, help="the longest of the long part (64M)")
    parser.add_argument("--iters", type=int, default=31, help="samples of each broadcast; the long part has half (31)")
    parser.add_argument("--warmup", type=int, default=5, help="calls of a block of warm-up (5)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each job (300)")
    parser.add_argument("--json", type=Path, help="write every sample to this file, after each job")
    parser.add_argument("--plot", type=Path, help="draw the ratios to this file (.png or .svg; needs matplotlib)")
    options = parser.parse_args(arguments)
    options.command = ["python", "benchmarks/backtoback.py", *(sys.argv[1:] if arguments is None else arguments)]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    found, status = onehost.carry_out(options, FORMAT, jobs(options), lines, verdicts)
    if options.plot is not None:
        draw(found, options.plot)
    return status


if __name__ == "__main__":
    sys.exit(main())
