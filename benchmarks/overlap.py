"""What the pipeline is worth: an all_reduce whose home and border phases overlap beside one that does them in turn.

    HETCOMM_LAB=path/to/hosts.sh python benchmarks/overlap.py --json overlap.json --plot overlap.png

Runs on two hosts that a script makes on this machine (as root; `benchmarks/lab.py` says what the script must know).
Needs hetcomm and mpi4py with the Open MPI wheel.

Each host has `--ranks` ranks and one link, so one border rank, and is one cluster of hetcomm's; host memory, float32, S
is `--bytes`. The link is slowed down until the phases are equally long: the home phase alone is timed on both hosts at
once, the link gets the rate at which S takes as long, and after every round the rate follows the home phase. Timed are,
in turn:

==============  ========================================================================================
home            the home phase alone: the vendor's reduce to the border rank and its broadcast from it
border          the border phase alone: an all_reduce of S between the two border ranks
three calls     home reduce, all_reduce between the border ranks, home broadcast, as three calls
sequential      hetcomm's plan with one chunk (`Tuning.max_chunks`), by `Communicator.use_schedule`
pipelined       hetcomm's all_reduce as it comes, in chunks that overlap
==============  ========================================================================================

Each call comes after a barrier, its time is that of the slowest rank; figures are medians over the last round, in which
nothing is tuned. "cpu" is processor time of all ranks over time and cores: overlapping hides waiting, and cannot hide
work, so phases that keep all cores busy by themselves gain nothing from it. That is why there is one link to several
ranks here: on a machine of two cores, TCP alone uses more than one at the rate of a home phase of two ranks. Values are
checked.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from contenders import add_site_options, heard, launch, machine, report, say
from links import PAYLOAD

PROMISE = 0.65  # of the sequential one's time
EQUAL = 1.25  # times the shorter phase the longer one may take
WAYS = ("home", "border", "three calls", "sequential", "pipelined")
NHOSTS = 2


def cluster_topology(nranks: int, vendor: str, rate: float) -> Any:
    """Two hosts of `nranks` ranks, of which the first has an uplink of `rate` Gbit/s."""
    from hetcomm.topology.model import Cluster, Topology, Uplink

    speed = rate * 1e9 / 8 * PAYLOAD
    firsts = [host * nranks for host in range(NHOSTS)]
    return Topology(
        tuple(
            Cluster(f"host{host}", vendor, range(first, first + nranks), (Uplink(first, speed, speed),))
            for host, first in enumerate(firsts)
        )
    )


def one_chunk(topology: Any, count: int) -> Any:
    """hetcomm's plan of an all_reduce of `count` float32 without a pipeline."""
    from hetcomm.schedule.collective import Collective, CollectiveKind
    from hetcomm.topology import select
    from hetcomm.topology.tuning import on
    from hetcomm.types import DataType, ReduceKind

    what = Collective(CollectiveKind.ALL_REDUCE, topology.nranks, count, DataType.FLOAT32, ReduceKind.SUM)
    return select.schedule(what, topology, replace(on(topology), max_chunks=1))


def rank_main(asked: Mapping[str, Any]) -> None:
    """What each rank runs: it writes a line for every way."""
    import hetcomm

    topology = hetcomm.Topology.from_toml(asked["topology"])
    count, nranks = asked["bytes"] // 4, topology.nranks // NHOSTS
    with hetcomm.init(topology=topology) as comm:
        is_border = comm.rank % nranks == 0
        home, across = comm.split(comm.rank // nranks), comm.split(0 if is_border else None)
        alone = comm.split(0)
        assert home is not None
        assert alone is not None
        alone.use_schedule(one_chunk(topology, count))
        given, got = np.full(count, comm.rank + 1.0, np.float32), np.zeros(count, np.float32)
        partial = np.zeros((2, count), np.float32)

        def border() -> None:
            if across is not None:
                across.all_reduce(partial[0], partial[1])

        def home_reduce() -> None:
            home.reduce(given, partial[0], root=0)

        def home_phase() -> None:
            home_reduce()
            home.broadcast(got, 0)

        def three_calls() -> None:
            home_reduce()
            border()
            if is_border:
                got[:] = partial[1]
            home.broadcast(got, 0)

        ways: dict[str, Callable[[], Any]] = {
            "home": home_phase,
            "border": border,
            "three calls": three_calls,
            "sequential": lambda: alone.all_reduce(given, got),
            "pipelined": lambda: comm.all_reduce(given, got),
        }
        seconds: dict[str, list[float]] = {name: [] for name in asked["ways"]}
        cpu: dict[str, list[float]] = {name: [] for name in asked["ways"]}
        right = dict.fromkeys(asked["ways"], True)
        for turn in range(asked["repeat"] + 1):
            for name in asked["ways"]:
                comm.barrier()
                used, begin = time.process_time(), time.perf_counter()
                ways[name]()
                taken = time.perf_counter() - begin
                if turn:  # the first makes connections and plans
                    seconds[name].append(taken)
                    cpu[name].append(time.process_time() - used)
                if name not in ("home", "border"):
                    right[name] = right[name] and bool((got == sum(range(comm.nranks + 1))).all())
                    got[:] = 0
        for name in asked["ways"]:
            row = {"seconds": seconds[name], "cpu": cpu[name], "right": right[name]}
            say(row | {"collective": name, "rank": comm.rank})


def gathered(output: str, name: str, nranks: int, end: str) -> dict[str, Any]:
    """What the ranks have said about one way: for each call the time of the slowest, and processor time of all.

    Raises:
        RuntimeError: Not all of them have said anything; `end` says how the job ended.
    """
    rows = heard(output, name)
    if len(rows) < nranks:
        raise RuntimeError(f"no word of {name} from all ranks, {end}: {output[-2000:]}")
    calls = [max(call) for call in zip(*(row["seconds"] for row in rows), strict=True)]
    return {
        "seconds": calls,
        "median": statistics.median(calls),
        "cpu": statistics.median(sum(call) for call in zip(*(row["cpu"] for row in rows), strict=True)),
        "right": all(row["right"] for row in rows),
    }


def rate_for(nbytes: int, seconds: float) -> float:
    """Gbit/s of frames at which `nbytes` of payload take `seconds`."""
    return nbytes * 8 / PAYLOAD / seconds / 1e9


def run_round(
    site: Any, rate: float, ways: Sequence[str], repeat: int, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """What one job finds, by way."""
    topology = cluster_topology(options.ranks, options.vendor, rate)
    asked = {"topology": topology.to_toml(), "bytes": options.bytes, "ways": ways, "repeat": repeat}
    output, end = launch(site, __file__, [options.ranks] * NHOSTS, asked, options.timeout)
    found = {name: gathered(output, name, topology.nranks, end) for name in ways}
    times = ", ".join(f"{name} {row['median'] * 1e3:.0f}" for name, row in found.items())
    print(f"{rate:.2f} Gbit/s: {times} ms   load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return found


def print_table(rate: float, rows: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> bool:
    """The table and the verdict; whether everything that was promised holds."""
    cores, size = len(os.sched_getaffinity(0)), options.bytes / (1 << 20)
    print(f"\nall_reduce of {size:g} MiB, 2 hosts of {options.ranks} ranks, links of {rate:.2f} Gbit/s")
    print(f"{'':<14}{'ms':>8}{'min':>8}{'max':>8}{'cpu':>7}{'/ sequential':>14}  values")
    last = rows["sequential"]["median"]
    for name, row in rows.items():
        times = "".join(f"{1e3 * t:>8.0f}" for t in (row["median"], min(row["seconds"]), max(row["seconds"])))
        right = "" if name in ("home", "border") else "right" if row["right"] else "WRONG"
        print(f"{name:<14}{times}{row['cpu'] / row['median'] / cores:>7.0%}{row['median'] / last:>14.3f}  {right}")
    ours, home, border = (rows[name]["median"] for name in ("pipelined", "home", "border"))
    equal = max(home, border) <= EQUAL * min(home, border)
    kept = equal and ours <= PROMISE * last
    print(f"home / border: {home / border:.2f}; pipelined / (home + border): {ours / (home + border):.3f}")
    if not equal:
        print("the phases are not equally long: the machine was busier in one round than in another; run it again")
    print(f"pipelined / three calls: {ours / rows['three calls']['median']:.3f}")
    print(f"pipelined / sequential: {ours / last:.3f}, at most {PROMISE}: {'holds' if kept else 'FAILS'}")
    return kept and all(row["right"] for row in rows.values())


def plot(rate: float, rows: Mapping[str, Mapping[str, Any]], file: str) -> None:
    """Bars of the times, the phases alone on top of each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    home, border = 1e3 * rows["home"]["median"], 1e3 * rows["border"]["median"]
    axis.barh(0, home, color="#0072B2", label="home phase")
    axis.barh(0, border, left=home, color="#E69F00", label="border phase")
    for place, name in enumerate(WAYS[2:], 1):
        bar = axis.barh(place, 1e3 * rows[name]["median"], color="#555555")
        axis.bar_label(bar, [f"{1e3 * rows[name]['median']:.0f} ms"], fontsize=8, padding=3)
    axis.set_yticks(range(4), ["phases alone", *WAYS[2:]], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_xlabel(f"ms, links of {rate:.2f} Gbit/s", fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=140)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_site_options(parser)
    parser.add_argument("--ranks", type=int, default=4, help="on each host (4)")
    parser.add_argument("--vendor", default="mpi", help="of both clusters")
    parser.add_argument("--rounds", type=int, default=2, help="of tuning the rate, before the one that counts (2)")
    parser.add_argument("--repeat", type=int, default=7, help="calls of each way that count (7)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.rank:
        rank_main(json.loads(options.rank))
        return 0
    from lab import site

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are taken down on the way out
    about = machine()
    print(json.dumps(about))
    rate = 1.0
    with site(NHOSTS, options.lab) as there:
        for last in [*[False] * options.rounds, True]:
            for number in range(1, NHOSTS + 1):
                there.shape(number, rate)
            rows = run_round(there, rate, WAYS if last else WAYS[:2], options.repeat if last else 5, options)
            used, rate = rate, rate if last else rate_for(options.bytes, rows["home"]["median"])
    holds = print_table(used, rows, options)
    report(options, __file__, machine=about, rate_gbits=used, results=rows)
    if options.plot:
        Path(options.plot).parent.mkdir(parents=True, exist_ok=True)
        plot(used, rows, options.plot)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
