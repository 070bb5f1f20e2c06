"""What planning costs in large jobs, and what proving and simulating a whole schedule costs.

    python benchmarks/scale.py --json scale.json --plot scale.png

What is measured, on one core:

* Programs. The median time in which one rank's program is planned (`hetcomm.topology.select.plan`, its cache passed
  by), over `--repeats` collectives that differ in their count, with the topology loaded; the steps of the program; and
  the bytes it keeps and needs at most (tracemalloc, in a run of its own). Jobs of 100 to 1,000,000 ranks in clusters of
  `--size`, all of them border ranks or `--border` of them; the first rank (which is the root), the second, the last
  rank of a cluster in the middle, and the last of all; the table shows the worst of them. Vectors have 4 MiB, blocks
  4 KiB.
* Topologies. The time to make one, and to load it from TOML.
* Schedules. The time to plan all programs of a job, to prove them (`verify`), and to simulate them on the topology's
  uplinks, with the memory of the process after each.

gather, scatter and all_to_all cannot be planned in constant time: the root of the first two talks to every cluster, and
hands out or takes in every block; in the third every rank has a block for every other. Jobs in which that takes longer
than `--limit` seconds for one program are left out for larger ones, and the table says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import sys
import time
import timeit
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.simulate import makespan
from hetcomm.schedule.steps import Program, Schedule
from hetcomm.schedule.verify import verify
from hetcomm.topology import bounds
from hetcomm.topology.costs import costs_of
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.select import plan
from hetcomm.types import DataType, ReduceKind

VECTOR, BLOCK = 1 << 20, 1 << 10  # elements of 4 bytes
ROLES = ("first", "second", "last of a cluster", "last")
GOAL = 1e-3  # seconds for one program of 100,000 ranks in 1,000 clusters


@dataclass(frozen=True)
class Planned:
    """One rank's programs of one collective in one job; times in seconds."""

    kind: str
    nranks: int
    nclusters: int
    nborder: int
    rank: int
    role: str
    median: float
    least: float
    steps: int
    kept_bytes: int
    peak_bytes: int
    algorithm: str


@dataclass(frozen=True)
class Proved:
    """One whole schedule; times in seconds, memory of the process in bytes."""

    kind: str
    nranks: int
    nclusters: int
    steps: int
    plan: float
    verify: float
    simulate: float
    makespan: float
    least_time: float
    memory: int


def job(nclusters: int, size: int, nborder: int) -> Topology:
    """Clusters of `size` consecutive ranks, of which the first `nborder` have equal uplinks."""
    return Topology(
        tuple(
            Cluster(f"c{first}", "mpi", range(first, first + size), tuple(map(Uplink, range(first, first + nborder))))
            for first in range(0, nclusters * size, size)
        )
    )


def collective(kind: CollectiveKind, nranks: int, more: int = 0) -> Collective:
    """The collective that is planned; `more` elements make it another one."""
    count = (BLOCK if kind.has_blocks else VECTOR) + more
    op = ReduceKind.SUM if kind.reduces else None
    return Collective(kind, nranks, count, DataType.FLOAT32, op, 0 if kind.has_root else None)


def program(what: Collective, topology: Topology, rank: int) -> Program:
    """A program that is planned anew."""
    return plan.__wrapped__(what, topology, rank)


def measure_program(
    kind: CollectiveKind, topology: Topology, rank: int, role: str, repeats: int, limit: float
) -> Planned:
    """Times first, memory in a run of its own: tracing makes it slower."""
    times: list[float] = []
    began = time.perf_counter()
    for more in range(repeats):
        what = collective(kind, topology.nranks, more)
        start = time.perf_counter()
        program(what, topology, rank)
        times.append(time.perf_counter() - start)
        if time.perf_counter() - began > limit:
            break
    what = collective(kind, topology.nranks)
    gc.collect()
    tracemalloc.start()
    kept = program(what, topology, rank)
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Planned(
        kind.value,
        topology.nranks,
        len(topology.clusters),
        len(topology.clusters[0].border),
        rank,
        role,
        statistics.median(times),
        min(times),
        len(kept.steps),
        current,
        peak,
        kept.algorithm,
    )


def measure_programs(
    shapes: Sequence[tuple[int, int, int]], kinds: Sequence[CollectiveKind], repeats: int, limit: float
) -> tuple[list[Planned], list[dict[str, Any]], list[str]]:
    """All programs, what each topology costs, and what is left out because a smaller job took too long."""
    found: list[Planned] = []
    topologies: list[dict[str, Any]] = []
    left_out: list[str] = []
    slow: set[tuple[CollectiveKind, str, bool]] = set()
    for nclusters, size, nborder in shapes:
        start = time.perf_counter()
        topology = job(nclusters, size, nborder)
        made = time.perf_counter() - start
        topologies.append({"nranks": topology.nranks, "nclusters": nclusters, "nborder": nborder, "make": made})
        middle = topology.clusters[nclusters // 2].ranks[-1]
        roles = dict(zip(ROLES, (0, 1, middle, topology.nranks - 1), strict=True))
        for kind in kinds:
            skipped = [role for role in roles if (kind, role, nborder == size) in slow]
            if skipped:
                left_out.append(
                    f"{kind.value} in {topology.nranks:,} ranks, {nborder} border ranks a cluster: {', '.join(skipped)}"
                )
            for role, rank in roles.items():
                if role in skipped:
                    continue
                print(f"{topology.nranks} ranks, {nborder} border ranks: {kind.value}, {role} rank", file=sys.stderr)
                one = measure_program(kind, topology, rank, role, repeats, limit)
                found.append(one)
                if one.median > limit:
                    slow.add((kind, role, nborder == size))
    return found, topologies, left_out


def measure_load(nclusters: int, size: int) -> dict[str, Any]:
    """Loading a topology from TOML."""
    text = job(nclusters, size, size).to_toml()
    start = time.perf_counter()
    Topology.from_toml(text)
    return {"nranks": nclusters * size, "bytes": len(text), "load": time.perf_counter() - start}


def measure_schedule(kind: CollectiveKind, nclusters: int, size: int) -> Proved:
    """All programs of a job, proved and simulated."""
    topology = job(nclusters, size, size)
    what = collective(kind, topology.nranks)
    times = [time.perf_counter()]
    programs = tuple(program(what, topology, rank) for rank in range(topology.nranks))
    whole = Schedule(what, programs, topology.communicators())
    times.append(time.perf_counter())
    proof = verify(whole)
    times.append(time.perf_counter())
    seconds = makespan(whole, costs_of(topology))
    times.append(time.perf_counter())
    if bounds.traffic(programs, topology).total != bounds.least_total(what, topology):
        raise RuntimeError(f"{kind.value} of {topology.nranks} ranks moves more than the least")
    planning, proving, simulating = (after - before for before, after in pairwise(times))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    least = bounds.least_time(what, topology)
    return Proved(
        kind.value, topology.nranks, nclusters, proof.steps, planning, proving, simulating, seconds, least, memory
    )


def machine() -> dict[str, Any]:
    """What the numbers were taken on; `loop` says how fast one core was just then."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "loop": min(timeit.repeat(lambda: sum(range(10**6)), number=1, repeat=10)),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def worst(planned: Sequence[Planned]) -> dict[tuple[str, int, bool], Planned]:
    """The slowest rank, by collective, ranks and whether all ranks are border ranks; none where one is left out."""
    found: dict[tuple[str, int, bool], list[Planned]] = {}
    for each in planned:
        key = each.kind, each.nranks, each.nborder * each.nclusters == each.nranks
        found.setdefault(key, []).append(each)
    return {key: max(ranks, key=lambda one: one.median) for key, ranks in found.items() if len(ranks) == len(ROLES)}


def print_tables(planned: Sequence[Planned], proved: Sequence[Proved], left_out: Sequence[str]) -> None:
    slowest = worst(planned)
    sizes = sorted({nranks for _, nranks, _ in slowest})
    for every in (True, False):
        rows = [kind for kind in dict.fromkeys(each.kind for each in planned) if (kind, sizes[0], every) in slowest]
        if not rows:
            continue
        print(f"\none program, {'all ranks' if every else 'some ranks'} border ranks: median ms / steps / KiB kept")
        print(f"{'ranks':>16}" + "".join(f"{nranks:>22,}" for nranks in sizes))
        for kind in rows:
            row = [slowest.get((kind, nranks, every)) for nranks in sizes]
            cells = [f"{x.median * 1e3:.3f} / {x.steps} / {x.kept_bytes >> 10}" if x else "left out" for x in row]
            print(f"{kind:>16}" + "".join(f"{cell:>22}" for cell in cells))
    if proved:
        print("\nwhole schedules, seconds to plan + verify + simulate; simulated ms (least the uplinks allow)")
    for each in proved:
        took = f"{each.plan:.1f} + {each.verify:.1f} + {each.simulate:.1f} s"
        print(
            f"{each.kind:>16} {each.nranks:>7,} ranks {each.steps:>9,} steps {took:>22} {each.makespan * 1e3:>8.2f} ms "
            f"({each.least_time * 1e3:.2f}), {each.memory >> 20} MiB"
        )
    for text in left_out:
        print(f"left out, since a smaller job took longer than the limit: {text} rank")
    goal = [x for x in slowest.values() if x.nranks == 100_000 and x.kind not in ("gather", "scatter", "all_to_all")]
    for one in goal:
        print(
            f"{one.kind} in {one.nranks:,} ranks, {one.nborder} border ranks a cluster: {one.median * 1e3:.3f} ms "
            f"at its slowest rank; promised is {GOAL * 1e3:g} ms: {'holds' if one.median <= GOAL else 'FAILS'}"
        )


def plot(planned: Sequence[Planned], proved: Sequence[Proved], file: str, about: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), constrained_layout=True)
    slowest = worst(planned)
    colors: dict[str, Any] = {}
    for kind in dict.fromkeys(each.kind for each in planned):
        line = sorted((x for (k, _, every), x in slowest.items() if k == kind and every), key=lambda x: x.nranks)
        sizes = [each.nranks for each in line]
        (drawn,) = axes[0].plot(sizes, [each.median * 1e3 for each in line], marker="o", markersize=3, label=kind)
        colors[kind] = drawn.get_color()
        axes[1].plot(sizes, [each.kept_bytes / 1024 for each in line], marker="o", markersize=3, color=colors[kind])
    axes[0].set_title("one program, ms")
    axes[1].set_title("one program, KiB")
    axes[0].axhline(GOAL * 1e3, color="gray", linestyle=":")
    for kind in dict.fromkeys(each.kind for each in proved):
        whole = [each for each in proved if each.kind == kind]
        total = [each.plan + each.verify + each.simulate for each in whole]
        axes[2].plot(
            [each.nranks for each in whole], total, marker="o", markersize=3, label=kind, color=colors.get(kind)
        )
    axes[2].set_title("whole schedule planned, proved and simulated, s")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("ranks")
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"slowest of four ranks, clusters of border ranks; Python {about['python']}, one of {about['cores']} cores, "
        f"load {about['load_before']:.1f}",
        fontsize=9,
    )
    figure.savefig(file, dpi=140)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [kind.value for kind in CollectiveKind]
    parser.add_argument("--kinds", nargs="+", choices=every, default=every, help="collectives to plan")
    parser.add_argument("--size", type=int, default=100, help="ranks in a cluster (100)")
    parser.add_argument("--border", type=int, default=8, help="border ranks where not all are (8)")
    parser.add_argument(
        "--clusters", type=int, nargs="+", default=[1, 10, 100, 1000, 10000], help="clusters of the jobs"
    )
    parser.add_argument("--repeats", type=int, default=51, help="programs in a median (51)")
    parser.add_argument(
        "--limit", type=float, default=0.25, help="seconds for one program before larger jobs are left out"
    )
    parser.add_argument(
        "--schedules", nargs="*", default=["64x16", "64x32", "64x64"], help="clusters x ranks of the schedules to prove"
    )
    parser.add_argument(
        "--schedule-kinds", nargs="+", choices=every, default=["all_reduce", "all_gather"], help="of these schedules"
    )
    parser.add_argument("--json", help="write all numbers with the machine to this file")
    parser.add_argument("--plot", help="draw the picture to this file (.png or .svg; needs matplotlib)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    about = machine()
    print(json.dumps(about))
    kinds = [CollectiveKind(name) for name in options.kinds]
    shapes = [(n, options.size, border) for n in options.clusters for border in (options.size, options.border)]
    planned, topologies, left_out = measure_programs(shapes, kinds, options.repeats, options.limit)
    loaded = measure_load(1000, 100)
    proved: list[Proved] = []
    for shape in options.schedules:
        nclusters, _, size = shape.partition("x")
        for name in options.schedule_kinds:
            print(f"schedule of {shape}: {name}", file=sys.stderr)
            proved.append(measure_schedule(CollectiveKind(name), int(nclusters), int(size)))
    print_tables(planned, proved, left_out)
    print(
        f"a topology of {loaded['nranks']:,} ranks is loaded from {loaded['bytes']:,} bytes in {loaded['load']:.1f} s"
    )
    for path in filter(None, (options.json, options.plot)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    if options.json:
        report = {
            "machine": about,
            "options": vars(options),
            "programs": [asdict(each) for each in planned],
            "topologies": topologies,
            "load": loaded,
            "schedules": [asdict(each) for each in proved],
            "left_out": left_out,
        }
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(planned, proved, options.plot, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
