"""Time of collectives over slow links between hosts: hetcomm, Gloo and Open MPI beside the least there can be.

    HETCOMM_LAB=path/to/hosts.sh python benchmarks/links.py --json links.json --plot links.png
    python benchmarks/links.py --settings 10+10 --hosts node1 node2 --interface eth0

The first line runs on hosts that a script makes on this machine, and whose links it slows down (as root;
`benchmarks/lab.py` says what the script must know), the second on real ones, whose links are taken as they are. Needs
hetcomm, mpi4py with the Open MPI wheel, and for Gloo a Python that has torch (`--gloo-python`). What is not there is
left out, and said.

A setting is a rate for each host, in Gbit/s, both ways. Every host has `--ranks` ranks, host memory, float32, and is
one cluster of hetcomm's, whose ranks all have an uplink of an equal part of that rate; the topology says so, and
nothing else about hetcomm is set. S is `--bytes`: the vector (all_reduce, broadcast), the input of a rank
(reduce_scatter), the gathered output (all_gather).

The bound is that of `docs/design.md` (`hetcomm.topology.bounds.least_time`), for an all_reduce
max(S / min B, 2(C-1) S / sum B), with B what a link carries of payload. The shaper counts frames of Ethernet without
preamble and checksum: 1514 bytes, of which 1448 are payload of TCP. So B is 1448/1514 of the rate, 119.6 MB/s at
1 Gbit/s. "/ bare rate" in the table is over a bound in which headers take nothing. The shaper lets a burst of 256 KB
pass at once, 0.4 % of 64 MiB.

Contenders take turns, `--rounds` times, a job each; of every job the first call makes connections and is not counted,
the `--repeat` others count, each after a barrier, with the time of the slowest rank. Figures are medians of all these.
Values are checked. Gloo's reductions are in place, so its time includes a copy, some 10 ms of 64 MiB.

Open MPI runs with `mpi_yield_when_idle`, as is fair where ranks share cores: as it comes (its module `han`), as `han`
in its simple form, as `tuned` with its own rules, and with each of the algorithms that `tuned` can be told to use. All
of them have a turn in the first round, in the following ones those within half again of the best.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders import absent, add_options, case, heard, join, machine, report, say, start

COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast")
SETTINGS = ("1+1", "1+2+4")
PROMISES = {  # by hosts: times the bound at most; times faster than Gloo and than the best of Open MPI at least
    2: {"bound": 1.05, "Gloo": 1.4, "Open MPI": 0.97},
    3: {"bound": 1.10, "Gloo": 1.4, "Open MPI": 1.2},
}
PAYLOAD = 1448 / 1514  # of a frame of Ethernet as the kernel counts it: IP, TCP and its timestamps take 66 bytes
TUNED = {  # how many algorithms Open MPI's `tuned` has, and what it calls the collective
    "all_reduce": (6, "allreduce"),
    "reduce_scatter": (4, "reduce_scatter_block"),
    "all_gather": (7, "allgather"),
    "broadcast": (9, "bcast"),
}
KEPT = 1.5  # times the best of Open MPI's algorithms, in the first round

Results = dict[str, dict[str, dict[str, dict[str, Any]]]]  # by setting, collective, contender


def rank_main(asked: dict[str, Any]) -> None:
    """What each rank runs: it writes a line for every collective."""
    job = join(asked)
    for name in asked["collectives"]:
        try:
            run, is_right = case(job, name, asked["bytes"])
            seconds = []
            for _ in range(asked["repeat"] + 1):
                job.barrier()
                begin = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - begin)
            row = {"seconds": seconds[1:], "right": is_right()}
        except (AttributeError, NotImplementedError, RuntimeError) as error:  # it has no such collective
            row = {"missing": f"{type(error).__name__}: {error}".splitlines()[0]}
        say(row | {"collective": name, "rank": job.rank})
    job.close()


def rates(setting: str) -> list[float]:
    """The rate of each host of a setting, in Gbit/s.

    Raises:
        ValueError: One of them is not a positive number.
    """
    found = [float(part) for part in setting.split("+")]
    if not all(rate > 0 for rate in found):
        raise ValueError(f"a rate in {setting!r} is not positive")
    return found


def topology_of(setting: str, nranks: int, vendors: Sequence[str]) -> Any:
    """The hosts of a setting as clusters of `nranks` ranks, with uplinks that carry what a link does of payload."""
    from hetcomm.topology.model import Cluster, Topology, Uplink

    clusters = []
    for host, rate in enumerate(rates(setting)):
        ranks = range(host * nranks, (host + 1) * nranks)
        speed = rate * 1e9 / 8 * PAYLOAD / nranks
        uplinks = tuple(Uplink(rank, speed, speed) for rank in ranks)
        clusters.append(Cluster(f"host{host}", vendors[host % len(vendors)], ranks, uplinks))
    return Topology(tuple(clusters))


def bound(name: str, nbytes: int, topology: Any) -> float:
    """The least seconds that the uplinks of a topology allow."""
    from hetcomm.schedule.collective import Collective, CollectiveKind
    from hetcomm.topology.bounds import least_time
    from hetcomm.types import DataType, ReduceKind

    kind = CollectiveKind(name)
    count = nbytes // 4 // (topology.nranks if kind.has_blocks else 1)
    op, root = ReduceKind.SUM if kind.reduces else None, 0 if kind.has_root else None
    return least_time(Collective(kind, topology.nranks, count, DataType.FLOAT32, op, root), topology)


def variants(contender: str, collectives: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str], Sequence[str]]]:
    """(name, environment, collectives) of what runs for a contender."""
    yield contender, {}, collectives
    if contender != "Open MPI":
        return
    prefix = "OMPI_MCA_coll"
    simple = {f"{prefix}_han_use_simple_{TUNED[name][1].removesuffix('_block')}": "true" for name in collectives}
    yield "Open MPI han simple", simple, collectives
    yield "Open MPI tuned", {prefix: "^han"}, collectives
    for number in range(1, 1 + max(TUNED[name][0] for name in collectives)):
        having = [name for name in collectives if number <= TUNED[name][0]]
        chosen = {f"{prefix}_tuned_{TUNED[name][1]}_algorithm": str(number) for name in having}
        yield f"Open MPI tuned {number}", {prefix: "^han", f"{prefix}_tuned_use_dynamic_rules": "1", **chosen}, having


def gathered(output: str, name: str, nranks: int, end: str) -> dict[str, Any]:
    """What the ranks have said about one collective: for each call the time of the slowest; `end`: of the job."""
    rows = heard(output, name)
    missing = sorted({row["missing"] for row in rows if "missing" in row})
    if missing or len(rows) < nranks:
        return {"missing": missing[0] if missing else f"no word from all ranks, {end}"}
    calls = zip(*(row["seconds"] for row in rows), strict=True)
    return {"seconds": [max(call) for call in calls], "right": all(row["right"] for row in rows)}


def add(row: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Put what one more job has found into the row of a contender."""
    if "missing" in found:
        row.setdefault("missing", found["missing"])
        return
    row.setdefault("seconds", []).extend(found["seconds"])
    row["right"] = row.get("right", True) and found["right"]
    row["median"] = statistics.median(row["seconds"])


def best_of_mpi(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The name of Open MPI's fastest way among the rows of one collective."""
    measured = [name for name, row in rows.items() if name.startswith("Open MPI") and "median" in row]
    return min(measured, key=lambda name: rows[name]["median"], default=None)


def is_hopeless(variant: str, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a way of Open MPI's is so slow that it needs no further turn."""
    best = best_of_mpi(rows)
    if not variant.startswith("Open MPI") or variant not in rows or best is None:
        return False
    return float(rows[variant].get("median", "inf")) > KEPT * float(rows[best]["median"])


def run_setting(site: Any, setting: str, options: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of all contenders, by collective."""
    topology = topology_of(setting, options.ranks, options.vendors)
    per_host = [options.ranks] * len(topology.clusters)
    rows: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in options.collectives}
    for turn in range(options.rounds):
        for contender in options.contenders:
            for variant, environ, able in variants(contender, options.collectives):
                names = [name for name in able if not (turn and is_hopeless(variant, rows[name]))]
                if not names:
                    continue
                load = os.getloadavg()[0]
                asked = {"contender": contender, "collectives": names, "topology": topology.to_toml()}
                output, end = start(site, __file__, per_host, asked, options, environ)
                for name in names:
                    found = gathered(output, name, topology.nranks, end)
                    row = rows[name].setdefault(variant, {"load": []})
                    row["load"].append(load)
                    add(row, found)
                    times = " ".join(f"{seconds * 1e3:.0f}" for seconds in found.get("seconds", ()))
                    said = f"{setting}: {variant}, {name}: {times or found['missing']}   load {load:.1f}"
                    print(said, file=sys.stderr, flush=True)
                if contender == "hetcomm" and not any("seconds" in rows[name][variant] for name in names):
                    raise RuntimeError(f"{end}: {output[-2000:]}")
    return rows


def judge(nhosts: int, least: float, rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, float, float, bool]]:
    """(what, figure, promise, whether it holds) of an all_reduce."""
    found, promise = [], PROMISES.get(nhosts, {})
    ours, best = rows.get("hetcomm", {}).get("median"), best_of_mpi(rows)
    if ours is None or not promise:
        return []
    found.append(("times the bound, at most", ours / least, promise["bound"], ours <= promise["bound"] * least))
    for name, other in (("Gloo", "Gloo"), ("Open MPI", best)):
        theirs = rows.get(other or "", {}).get("median")
        if theirs is not None:
            found.append(
                (f"times as fast as {other}, at least", theirs / ours, promise[name], theirs / ours >= promise[name])
            )
    return found


def print_tables(results: Results, bounds: Mapping[str, Mapping[str, float]]) -> bool:
    """The tables and the verdicts; whether everything that was promised holds."""
    holds = True
    for setting, collectives in results.items():
        for name, rows in collectives.items():
            least = bounds[setting][name]
            print(
                f"\n{name}, hosts at {setting} Gbit/s: bound {least * 1e3:.0f} ms, {least * PAYLOAD * 1e3:.0f} ms if "
                "headers took nothing"
            )
            print(f"{'contender':<24}{'ms':>8}{'min':>8}{'max':>8}{'/ bound':>9}{'/ bare rate':>13}  calls  values")
            for contender, row in rows.items():
                if "median" not in row:
                    print(f"{contender:<24}left out: {row['missing'][:80]}")
                    holds = holds and contender != "hetcomm"
                    continue
                times = [1e3 * seconds for seconds in (row["median"], min(row["seconds"]), max(row["seconds"]))]
                ratio = row["median"] / least
                columns = "".join(f"{each:>8.0f}" for each in times)
                right = "right" if row["right"] else "WRONG"
                calls = len(row["seconds"])
                print(f"{contender:<24}{columns}{ratio:>9.3f}{ratio / PAYLOAD:>13.3f}{calls:>7}  {right}")
                holds = holds and (row["right"] or contender != "hetcomm")
            if name == "all_reduce":
                for what, figure, promise, kept in judge(len(rates(setting)), least, rows):
                    print(f"hetcomm: {figure:.3f} {what} {promise:g}: {'holds' if kept else 'FAILS'}")
                    holds = holds and kept
    return holds


def plot(results: Results, bounds: Mapping[str, Mapping[str, float]], file: str) -> None:
    """Bars of times over the bound, a panel for each setting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {"hetcomm": "#0072B2", "Open MPI": "#E69F00", "Gloo": "#009E73"}
    figure = Figure(figsize=(5 * len(results), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, (setting, collectives) in zip(panels, results.items(), strict=True):
        for place, (name, rows) in enumerate(collectives.items()):
            shown = {"hetcomm": "hetcomm", "Open MPI": best_of_mpi(rows), "Gloo": "Gloo"}
            for turn, (contender, colour) in enumerate(colours.items()):
                row = rows.get(shown[contender] or "", {})
                if "median" in row:
                    height = row["median"] / bounds[setting][name]
                    bar = axis.bar(place + 0.27 * (turn - 1), height, 0.25, color=colour)
                    axis.bar_label(bar, [f"{height:.2f}"], fontsize=7)
        for contender, colour in colours.items():
            axis.bar(0, 0, color=colour, label=contender + (", its best" if contender == "Open MPI" else ""))
        axis.axhline(1.0, color="black", linewidth=0.8, linestyle="--", label="bound")
        axis.set_xticks(range(len(collectives)), list(collectives), fontsize=8)
        axis.set_title(f"hosts at {setting.replace('+', ', ')} Gbit/s", fontsize=10)
        axis.legend(frameon=False, fontsize=8)
    figure.supylabel("time / bound", fontsize=9)
    figure.savefig(file, dpi=140)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, COLLECTIVES, ("all_reduce",))
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="the rates of the hosts, such as 1+2+4")
    parser.add_argument("--ranks", type=int, default=2, help="on each host (2)")
    parser.add_argument("--vendors", nargs="+", default=["mpi"], help="of hetcomm's clusters, in turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (3)")
    parser.add_argument("--repeat", type=int, default=4, help="calls that count in each turn (4)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.rank:
        rank_main(json.loads(options.rank))
        return 0
    from lab import site

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are taken down on the way out
    about, failures = machine(), absent(options)
    print(json.dumps(about))
    options.contenders = [name for name in options.contenders if name not in failures]
    results: Results = {}
    bounds: dict[str, dict[str, float]] = {}
    for setting in options.settings:
        topology = topology_of(setting, options.ranks, options.vendors)
        bounds[setting] = {name: bound(name, options.bytes, topology) for name in options.collectives}
        with site(len(rates(setting)), options.lab, options.hosts) as there:
            for number, rate in enumerate(rates(setting), 1):
                there.shape(number, rate)
            results[setting] = run_setting(there, setting, options)
    holds = print_tables(results, bounds)
    for name, reason in failures.items():
        print(f"left out: {name}: {reason}")
    report(options, __file__, machine=about, left_out=failures, bounds=bounds, results=results)
    if options.plot:
        Path(options.plot).parent.mkdir(parents=True, exist_ok=True)
        plot(results, bounds, options.plot)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
