"""What a collective costs as the work grows: with more ranks, and with more bytes, beside Gloo and Open MPI.

    python benchmarks/growth.py all_reduce --json growth.json --plot growth.png

For each number of ranks (2, 4, 8 and 16; `--ranks`) a job of two clusters of equal size is started on this machine, and
all sizes (8 B to 64 MiB; `--sizes`) are measured in it as `hetcomm bench` does: the same buffers, results checked,
contenders interleaved in the same processes, a sample being the time of a block of calls on the slowest rank. Open MPI
is told to yield the processor, as it must be where ranks outnumber the cores.

A job that would begin after `--limit` seconds is left out, and one that is under way then is given up; the JSON says
so. With `--resume` the jobs that the JSON file has are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hetcomm._cli import baselines, report
from hetcomm._cli.bandwidths import COLOURS
from hetcomm._cli.bench import parse_size
from hetcomm._cli.cases import NAMES
from hetcomm._cli.jobs import start_ranks
from hetcomm._cli.measure import Benchmark
from hetcomm._cli.units import format_nbytes
from hetcomm.errors import HetcommError
from hetcomm.schedule.canvas import new_figure, save
from hetcomm.transport.library import load_library
from hetcomm.types import DataType, ReduceKind

FORMAT = "hetcomm growth 1"
LARGE = 1 << 20  # bytes from which a call takes long enough that fewer samples do
LEAST = 5.0  # seconds without which no job is begun
Job = dict[str, Any]
"""A report of `hetcomm bench` as JSON, or `nranks`, `sizes` and `left_out_because`."""


def measure(options: argparse.Namespace, nranks: int, sizes: tuple[int, ...], iters: int, timeout: float) -> Job:
    """One job."""
    task = Benchmark(
        options.collective, sizes, DataType.FLOAT32, ReduceKind.SUM, 0, False, options.vs, iters, 1, check=True
    )
    clusters = [rank * 2 // nranks for rank in range(nranks)]
    try:
        found = start_ranks(task, [options.vendor] * nranks, clusters, timeout)
    except HetcommError as error:
        return {"nranks": nranks, "sizes": sizes, "left_out_because": str(error)}
    made = report.as_json(found, options.command)
    made["versions"]["ucx"] = load_library().version  # without its place on this machine
    return made


def measured(job: Job, sizes: Sequence[int]) -> bool:
    """Whether a job of an earlier run has all these sizes."""
    return set(sizes) <= {row["nbytes"] for row in job.get("rows", ())}


def jobs(options: argparse.Namespace) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Ranks, sizes and samples of each job, those of small sizes first."""
    for few in (True, False):
        sizes = tuple(size for size in options.sizes if (size < LARGE) == few)
        for nranks in options.ranks:
            if sizes:
                yield nranks, sizes, options.iters if few else max(3, options.iters // 4)


def line(job: Job) -> str:
    """What a job found, as text."""
    if "rows" not in job:
        return f"{job['nranks']} ranks: left out: {job['left_out_because']}"
    by_size: dict[int, dict[str, float]] = {}
    for row in job["rows"]:
        by_size.setdefault(row["nbytes"], {})[row["library"]] = row["time"]
    lines = []
    for nbytes, times in by_size.items():
        shown = "  ".join(f"{name} {seconds * 1e6:.1f} us" for name, seconds in times.items())
        lines.append(f"{job['nranks']:3} ranks {format_nbytes(nbytes):>9}  {shown}")
    return "\n".join(lines)


def points(found: Sequence[Job]) -> dict[tuple[int, str], dict[int, float]]:
    """Median seconds by (size, library) and then by ranks."""
    table: dict[tuple[int, str], dict[int, float]] = {}
    for job in found:
        for row in job.get("rows", ()):
            table.setdefault((row["nbytes"], row["library"]), {})[job["nranks"]] = row["time"]
    return table


def draw(found: Sequence[Job], options: argparse.Namespace) -> None:
    """Above, time against size, a panel for each number of ranks; below, time against ranks, one for some sizes."""
    table = points(found)
    sizes = sorted({size for size, _ in table})
    libraries = [name for name in COLOURS if any(library == name for _, library in table)]
    ranks = sorted({nranks for row in table.values() for nranks in row})
    shown = sizes[:: max(1, -(-(len(sizes) - 1) // (len(ranks) - 1)))][: len(ranks) - 1] if len(ranks) > 1 else []
    shown.append(sizes[-1])
    figure = new_figure(options.plot, 7.5)
    axes = figure.subplots(2, len(ranks), squeeze=False, sharey=True)
    for axis, nranks in zip(axes[0], ranks, strict=True):
        for library in libraries:
            there = [size for size in sizes if nranks in table.get((size, library), ())]
            times = [table[size, library][nranks] * 1e6 for size in there]
            axis.plot(there, times, color=COLOURS[library], marker=".")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("size, bytes")
        axis.set_title(f"{nranks} ranks", fontsize=10)
    for axis, size in zip(axes[1], shown, strict=False):
        for library in libraries:
            row = table.get((size, library), {})
            axis.plot(sorted(row), [row[nranks] * 1e6 for nranks in sorted(row)], color=COLOURS[library], marker=".")
        axis.set_xscale("log", base=2)
        axis.set_xticks(ranks, labels=[str(nranks) for nranks in ranks])
        axis.set_xlabel("ranks")
        axis.set_title(format_nbytes(size), fontsize=10)
    for axis in axes.flat:
        axis.set_yscale("log")
        axis.grid(visible=True, alpha=0.3)
    for first, *_ in axes:
        first.set_ylabel("median time, us")
    cores = f"{found[0]['machine']['cores']} cores"
    titles = (f"{options.collective} of float32", f"two clusters of {options.vendor}", cores)
    save(figure, options.plot, titles, {library: COLOURS[library] for library in libraries})


def kept(options: argparse.Namespace) -> list[Job]:
    """The jobs that an earlier run has measured, if it was asked for the same."""
    if not options.resume or options.json is None or not options.json.exists():
        return []
    before = json.loads(options.json.read_text(encoding="utf-8"))
    if (before["format"], before["collective"], before["vendor"]) != (FORMAT, options.collective, options.vendor):
        raise SystemExit(f"{options.json} was written for something else")
    return [job for job in before["jobs"] if "rows" in job]


def write(found: Sequence[Job], options: argparse.Namespace) -> None:
    """Write what there is so far."""
    if options.json is not None:
        about = {"format": FORMAT, "command": options.command, "collective": options.collective}
        text = json.dumps({**about, "vendor": options.vendor, "jobs": list(found)}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = [8, 64, 512, "4K", "32K", "256K", "1M", "4M", "16M", "64M"]
    parser.add_argument("collective", nargs="?", default="all_reduce", choices=NAMES, help="all_reduce unless given")
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4, 8, 16], help="in two clusters each (2 4 8 16)")
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[parse_size(str(step)) for step in steps])
    parser.add_argument("--vendor", default="ucx", help="of both clusters (ucx)")
    parser.add_argument("--vs", type=baselines.parse, default=("gloo", "mpi"), help="baselines (gloo,mpi)")
    parser.add_argument("--iters", type=int, default=16, help="samples of each size; a quarter from 1 MiB on (16)")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds for all jobs together (540)")
    parser.add_argument("--resume", action="store_true", help="go on with what the --json file holds")
    parser.add_argument("--json", type=Path, help="write every sample to this file, after each job")
    parser.add_argument("--plot", type=Path, help="draw the picture to this file (.png or .svg; needs matplotlib)")
    options = parser.parse_args(arguments)
    options.command = ["python", "benchmarks/growth.py", *(sys.argv[1:] if arguments is None else arguments)]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    found = kept(options)
    deadline = time.monotonic() + options.limit
    for nranks, sizes, iters in jobs(options):
        if any(job["nranks"] == nranks and measured(job, sizes) for job in found):
            continue
        left = deadline - time.monotonic()
        if left < LEAST:
            found.append({"nranks": nranks, "sizes": sizes, "left_out_because": f"{options.limit:g} s were over"})
        else:
            found.append(measure(options, nranks, sizes, iters, left))
        print(line(found[-1]), flush=True)
        write(found, options)
    if options.plot is not None:
        draw([job for job in found if "rows" in job], options)
    return 1 if any(row["wrong"] for job in found for row in job.get("rows", ())) else 0


if __name__ == "__main__":
    sys.exit(main())
