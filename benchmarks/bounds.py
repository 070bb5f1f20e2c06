"""Simulated time of hetcomm's plans beside the least time that the uplinks allow, over many random uplink mixes.

    python benchmarks/bounds.py --json bounds.json --plot bounds.png       # 1,000 mixes, half an hour or more
    python benchmarks/bounds.py --mixes 20 --collectives all_reduce broadcast
    python benchmarks/bounds.py --only 17                                  # one mix, with its topology

What is compared. Mix number k follows from `--seed` and k alone: 2 to 8 clusters of 1 to 3 ranks, uplinks of 1 to 100
GB/s (uniform). Half of the mixes have one border rank in each cluster, the others 1 to all of its ranks; in 3 of 10
mixes each uplink's two directions differ. Latencies are 5 us. S is `--bytes`: the vector (all_reduce, reduce,
broadcast), the input of a rank (reduce_scatter), all blocks together (all_gather, gather, scatter); in an all_to_all
each rank sends S in all. Roots are random.

Each plan is the one that `hetcomm.topology.select` gives the job, simulated by `hetcomm.schedule.simulate` with the
calibration `IDEAL`: what happens inside a cluster costs nothing, so that what is seen is how well the uplinks are
used. The bound is `hetcomm.topology.bounds.least_time`: bandwidths alone, no latency. No plan can beat it.

For all_reduce the table also prices, on the same mixes and in the same simulator: the exchange that FlagCX makes
(home reduction, then S to every other cluster, then home broadcast, one after another), one ring over all ranks, and
hetcomm's own plan with shares as if all uplinks were equal.

A run that was broken off goes on where it was with the same `--json` file and `--resume`; with other `--collectives`
it adds those, and `--again` prices some anew, after a planner has changed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines import BASELINES

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.simulate import makespan
from hetcomm.topology import select
from hetcomm.topology.bounds import least_time
from hetcomm.topology.costs import IDEAL, costs_of
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import DataType, ReduceKind

PROMISE = 1.05  # times the bound
GB = 1e9
KINDS = tuple(kind.value for kind in CollectiveKind)


def topology(seed: int, mix: int) -> Topology:
    """Mix number `mix`."""
    dice = random.Random(f"{seed}/{mix}")
    several, skewed = dice.random() < 0.5, dice.random() < 0.3
    clusters, first = [], 0
    for number in range(dice.randint(2, 8)):
        nranks = dice.randint(1, 3)
        uplinks = []
        for rank in range(first, first + (dice.randint(1, nranks) if several else 1)):
            out = dice.uniform(1, 100) * GB
            uplinks.append(Uplink(rank, out, dice.uniform(1, 100) * GB if skewed else out))
        clusters.append(Cluster(f"cluster{number}", "mpi", range(first, first + nranks), tuple(uplinks)))
        first += nranks
    return Topology(tuple(clusters))


def collective(kind: CollectiveKind, nbytes: int, there: Topology, root: int) -> Collective:
    """A collective of `nbytes` bytes over all ranks, rounded down to whole blocks."""
    count = nbytes // 4 // (there.nranks if kind.has_blocks else 1)
    op = ReduceKind.SUM if kind.reduces else None
    return Collective(kind, there.nranks, count, DataType.FLOAT32, op, root if kind.has_root else None)


def price(asked: tuple[int, int, int, tuple[str, ...]]) -> dict[str, Any]:
    """What one mix costs: seconds, by collective, of the bound, of hetcomm's plan, and of the baselines."""
    seed, mix, nbytes, names = asked
    there = topology(seed, mix)
    costs = costs_of(there, IDEAL)
    root = random.Random(f"{seed}/{mix}/root").randrange(there.nranks)
    rows = {}
    for name in names:
        what = collective(CollectiveKind(name), nbytes, there, root)
        begin = time.perf_counter()
        row = {"bound": least_time(what, there), "hetcomm": makespan(select.schedule(what, there), costs)}
        if what.kind is CollectiveKind.ALL_REDUCE:
            row |= {baseline: makespan(plan(what, there), costs) for baseline, plan in BASELINES.items()}
        rows[name] = row | {"took": time.perf_counter() - begin}
    clusters = [
        {
            "ranks": len(cluster),
            "uplinks_GB/s": [[up.bandwidth_out / GB, up.bandwidth_in / GB] for up in cluster.uplinks],
        }
        for cluster in there.clusters
    ]
    return {"mix": mix, "root": root, "clusters": clusters, "seconds": rows}


def machine() -> dict[str, Any]:
    """What the plans were made with."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def ratios(found: Sequence[dict[str, Any]], name: str, plan: str = "hetcomm") -> list[float]:
    """Times over the bound, by mix."""
    return [mix["seconds"][name][plan] / mix["seconds"][name]["bound"] for mix in found]


def print_table(found: Sequence[dict[str, Any]], names: Sequence[str]) -> bool:
    """The table and the worst mixes; whether the promise holds for all."""
    print(f"\nsimulated time over the bound, {len(found)} mixes")
    print(f"{'':>16}  {'plan':<26}{'median':>9}{'95 %':>9}{'worst':>9}{'in mix':>8}{'above ' + str(PROMISE):>12}")
    holds = True
    for name in names:
        for plan in ("hetcomm", *(BASELINES if name == "all_reduce" else ())):
            values = ratios(found, name, plan)
            worst, above = max(values), sum(value > PROMISE for value in values)
            place = sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]
            where = found[values.index(worst)]["mix"]
            middle = statistics.median(values)
            print(f"{name:>16}  {plan:<26}{middle:>9.4f}{place:>9.4f}{worst:>9.4f}{where:>8}{above:>12}")
            holds = holds and (plan != "hetcomm" or not above)
    print(f"\nhetcomm: at most {PROMISE} times the bound in every mix: {'holds' if holds else 'FAILS'}")
    return holds


def print_mix(mix: dict[str, Any]) -> None:
    """One mix, as one can read it."""
    print(f"\nmix {mix['mix']}, root {mix['root']}")
    for number, cluster in enumerate(mix["clusters"]):
        links = ", ".join(f"{out:.1f} out {into:.1f} in" for out, into in cluster["uplinks_GB/s"])
        print(f"  cluster {number}: {cluster['ranks']} ranks, uplinks in GB/s: {links}")
    for name, row in mix["seconds"].items():
        others = "  ".join(f"{plan} {row[plan] / row['bound']:.4f}" for plan in row if plan not in ("bound", "took"))
        print(f"  {name}: bound {1e3 * row['bound']:.3f} ms; over it: {others}")


def plot(found: Sequence[dict[str, Any]], names: Sequence[str], file: str) -> None:
    """Left: how many mixes are within which factor of the bound; right: the baselines of all_reduce."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999"]
    panels = [("hetcomm's plans", [(name, name, "hetcomm") for name in names])]
    if "all_reduce" in names:
        panels.append(("all_reduce", [(plan, "all_reduce", plan) for plan in ("hetcomm", *BASELINES)]))
    figure = Figure(figsize=(6.2 * len(panels), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (label, name, plan), colour in zip(lines, colours, strict=False):
            values = sorted(ratios(found, name, plan))
            share = [(rank + 1) / len(values) for rank in range(len(values))]
            axis.plot(values, share, label=f"{label} (worst {values[-1]:.3f})", color=colour, drawstyle="steps-post")
        axis.axvline(PROMISE, color="black", linewidth=0.8, linestyle="--")
        axis.set_title(f"{title}, {len(found)} uplink mixes", fontsize=10)
        axis.set_xlabel("simulated time / bound")
        axis.set_ylabel("share of the mixes")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.axes[-1].set_xscale("log" if len(panels) > 1 else "linear")
    figure.savefig(file, dpi=140)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--collectives", nargs="+", default=KINDS, choices=KINDS, help="which; all unless given")
    parser.add_argument("--bytes", type=int, default=1 << 30, help="S (1 GiB)")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", type=int, help="the number of the one mix to show")
    parser.add_argument("--resume", action="store_true", help="go on with what the --json file holds")
    parser.add_argument("--again", nargs="+", default=(), choices=KINDS, help="price these again in spite of --resume")
    parser.add_argument("--json", help="write every mix and its prices to this file, now and then also on the way")
    parser.add_argument("--plot", help="draw the picture to this file (.png or .svg; needs matplotlib)")
    return parser.parse_args(arguments)


def kept(options: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """The mixes that an earlier run has priced, if it was asked the same, without what is to be priced again."""
    if not options.resume or not options.json or not Path(options.json).exists():
        return {}
    report = json.loads(Path(options.json).read_text())
    for name in ("seed", "bytes"):
        if report["options"][name] != getattr(options, name):
            raise SystemExit(f"{options.json} was written with another --{name}")
    found = {mix["mix"]: mix for mix in report["mixes"] if mix["mix"] < options.mixes}
    for mix in found.values():
        mix["seconds"] = {name: row for name, row in mix["seconds"].items() if name not in options.again}
    return found


def save(found: dict[int, dict[str, Any]], options: argparse.Namespace) -> None:
    if options.json:
        asked = {name: getattr(options, name) for name in ("mixes", "bytes", "seed")}
        mixes = [found[number] for number in sorted(found)]
        report = {"machine": machine(), "options": asked, "mixes": mixes}
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        partial = Path(f"{options.json}.partial")
        partial.write_text(json.dumps(report) + "\n")
        partial.replace(options.json)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.collectives = tuple(options.collectives)
    if options.only is not None:
        print_mix(price((options.seed, options.only, options.bytes, options.collectives)))
        return 0
    found = kept(options)
    asked = []
    for number in range(options.mixes):
        rows = found.get(number, {}).get("seconds", {})
        missing = tuple(name for name in options.collectives if name not in rows)
        if missing:
            asked.append((options.seed, number, options.bytes, missing))
    saved = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for mix in pool.imap_unordered(price, asked):
            found.setdefault(mix["mix"], mix)["seconds"] |= mix["seconds"]
            if sys.stderr.isatty():
                print(f"\r{len(found)} of {options.mixes} mixes", end="", file=sys.stderr)
            if time.monotonic() > saved + 20:
                save(found, options)
                saved = time.monotonic()
    save(found, options)
    mixes = [found[number] for number in sorted(found)]
    options.collectives = tuple(name for name in KINDS if all(name in mix["seconds"] for mix in mixes))
    holds = print_table(mixes, options.collectives)
    for name in options.collectives:
        values = ratios(mixes, name)
        print_mix(mixes[values.index(max(values))]) if max(values) > PROMISE else None
    if options.plot:
        plot(mixes, options.collectives, options.plot)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
