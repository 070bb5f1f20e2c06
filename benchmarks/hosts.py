"""Bytes that collectives put on the wire between hosts: hetcomm, Open MPI and Gloo beside the least there can be.

    HETCOMM_LAB=path/to/hosts.sh python benchmarks/hosts.py --json hosts.json --plot hosts.png
    python benchmarks/hosts.py --hosts node1 node2 node3 --interface eth0

The first line runs on hosts that a script makes on this machine (as root; `benchmarks/lab.py` says what the script
must know), the second on real ones. Needs hetcomm, mpi4py with the Open MPI wheel, and for Gloo an environment with
torch, which may be another one (`--gloo-python`). What is not there is left out, and said.

What is measured. Three hosts, 2+2+2 and 1+2+3 ranks, host memory, float32. Each host is one cluster of hetcomm's,
driven by the vendors of `--vendors` in turn. All ranks run one collective `--repeat` times in a row, between two
readings of the byte counters of all hosts' interfaces, which barriers and a short pause enclose. S is `--bytes`: the
vector (all_reduce, broadcast), the input of a rank (reduce_scatter), the gathered output (all_gather), what each rank
sends in all, itself included (all_to_all). A run before the first reading makes connections and plans. All values are
checked after that run and after the last one.

What is counted. Bytes that the kernel's interfaces have sent, of all hosts together, divided by the repetitions:
payload with the headers of Ethernet, IP and TCP, acknowledgements, retransmissions, and whatever else the job and the
barriers send. Nothing is subtracted. A frame is counted as it is handed to the interface, so behind segmentation
offload (as on a veth pair) 64 KiB of payload have one set of headers; on a card without it headers add some 4 %.
"wire" in the table is that count over the least bytes that must cross between clusters
(`hetcomm.topology.bounds.least_total`); "out" is the most that a single host sends, in units of S. "planned" is what
hetcomm's plan says it sends, over the same bound. Times are those of the slowest rank, the mean of the repetitions;
Gloo's reductions are in place, so its time includes a copy.

Open MPI is one flat call on COMM_WORLD with `mpi_yield_when_idle`, as is fair where ranks share cores.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contenders import Job, absent, add_options, case, heard, join, machine, report, say, start

COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all")
LAYOUTS = ("2+2+2", "1+2+3")
PROMISE = 1.02  # times the least bytes
PAUSE = 0.1  # seconds around a reading, so that late acknowledgements are on the right side of it


def counters(interface: str) -> tuple[int, int]:
    """Bytes this host has received and sent: of one interface, or of all but the loopback if it is ''."""
    received = sent = 0
    for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = line.partition(":")
        if name.strip() == interface or (not interface and name.strip() != "lo"):
            received, sent = received + int(numbers.split()[0]), sent + int(numbers.split()[8])
    return received, sent


def reading(job: Job, interface: str) -> tuple[int, int]:
    """The counters while nobody sends anything."""
    job.barrier()
    time.sleep(PAUSE)
    found = counters(interface)
    time.sleep(PAUSE)
    job.barrier()
    return found


def measure(job: Job, name: str, nbytes: int, repeat: int, interface: str) -> dict[str, Any]:
    """One row of the table, as this rank sees it."""
    run, is_right = case(job, name, nbytes)
    run()
    right = is_right()
    before, planned = reading(job, interface), job.planned()
    begin = time.perf_counter()
    for _ in range(repeat):
        run()
    seconds = (time.perf_counter() - begin) / repeat
    planned = job.planned() - planned
    after = reading(job, interface)
    return {
        "received": (after[0] - before[0]) / repeat,
        "sent": (after[1] - before[1]) / repeat,
        "planned": planned / repeat,
        "seconds": seconds,
        "right": right and is_right(),
    }


def rank_main(asked: dict[str, Any]) -> None:
    """What each rank runs: it writes a line for every collective."""
    job = join(asked)
    for name in asked["collectives"]:
        try:
            row = measure(job, name, asked["bytes"], asked["repeat"], asked["interface"])
        except (AttributeError, NotImplementedError, RuntimeError) as error:  # it has no such collective
            row = {"missing": f"{type(error).__name__}: {error}".splitlines()[0]}
        say(row | {"collective": name, "rank": job.rank})
    job.close()


def gather(output: str, name: str, hosts: Sequence[int], end: str) -> dict[str, Any]:
    """What the ranks have said about one collective, put together; `end` is how the job ended."""
    rows = heard(output, name)
    missing = sorted({row["missing"] for row in rows if "missing" in row})
    if missing or len(rows) < len(hosts):
        return {"missing": missing[0] if missing else f"no word from all ranks, {end}"}
    first = [hosts.index(host) for host in sorted(set(hosts))]  # every rank of a host reads the same counters
    return {
        "sent": [rows[rank]["sent"] for rank in first],
        "received": [rows[rank]["received"] for rank in first],
        "planned": sum(row["planned"] for row in rows),
        "seconds": max(row["seconds"] for row in rows),
        "right": all(row["right"] for row in rows),
    }


def least_bytes(name: str, hosts: Sequence[int], nbytes: int) -> int:
    """The least bytes between the hosts, in all."""
    from hetcomm.schedule.collective import Collective, CollectiveKind
    from hetcomm.topology.bounds import least_total
    from hetcomm.topology.model import Cluster, Topology, Uplink
    from hetcomm.types import DataType, ReduceKind

    kind, nranks = CollectiveKind(name), len(hosts)
    count = nbytes // 4 if name in ("all_reduce", "broadcast") else nbytes // 4 // nranks
    clusters = []
    for host in sorted(set(hosts)):
        ranks = [rank for rank in range(nranks) if hosts[rank] == host]
        clusters.append(Cluster(f"host{host}", "mpi", ranks, tuple(map(Uplink, ranks))))
    op, root = ReduceKind.SUM if kind.reduces else None, 0 if kind.has_root else None
    return least_total(Collective(kind, nranks, count, DataType.FLOAT32, op, root), Topology(tuple(clusters)))


def run_contender(site: Any, contender: str, layout: str, options: argparse.Namespace) -> dict[str, Any]:
    """The rows of one contender on one layout, by collective."""
    per_host = [int(part) for part in layout.split("+")]
    hosts = [host for host, ranks in enumerate(per_host) for _ in range(ranks)]
    output, end = start(site, __file__, per_host, {"contender": contender}, options)
    found = {name: gather(output, name, hosts, end) for name in options.collectives}
    if not any("sent" in row for row in found.values()):
        raise RuntimeError(f"{end}: {output[-2000:]}")
    for name, row in found.items():
        if "sent" in row:
            least = least_bytes(name, hosts, options.bytes)
            row |= {"least": least, "wire": sum(row["sent"]) / least, "out": max(row["sent"]) / options.bytes}
            row["planned"] = row["planned"] / least if contender == "hetcomm" else None
    return found


Results = dict[str, dict[str, dict[str, dict[str, Any]]]]  # by layout, collective, contender


def print_tables(results: Results, options: argparse.Namespace) -> bool:
    """The tables and the verdict; whether everything that was promised holds."""
    holds = True
    for layout, rows in results.items():
        print(
            f"\n{layout} ranks, S = {options.bytes / (1 << 20):g} MiB: bytes between hosts over the least there can be"
        )
        print(f"{'':>16}{'least':>9}  {'contender':<12}{'wire':>8}{'planned':>9}{'out':>8}{'ms':>9}  values")
        for name, found in rows.items():
            for contender, row in found.items():
                if "missing" in row:
                    print(f"{name:>16}{'':>9}  {contender:<12}left out: {row['missing'][:70]}")
                    holds = holds and contender != "hetcomm"
                    continue
                planned = f"{row['planned']:>9.4f}" if row["planned"] is not None else " " * 9
                print(
                    f"{name:>16}{row['least'] / options.bytes:>7.2f} S  {contender:<12}{row['wire']:>8.4f}{planned}"
                    f"{row['out']:>6.2f} S{row['seconds'] * 1e3:>9.1f}  {'right' if row['right'] else 'WRONG'}"
                )
                if contender == "hetcomm":
                    holds = holds and row["right"] and row["wire"] <= PROMISE
    print(f"\nhetcomm: at most {PROMISE} times the least bytes on the wire: {'holds' if holds else 'FAILS'}")
    return holds


def plot(results: Results, file: str) -> None:
    """Bars of bytes over the least, a panel for each layout."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {"hetcomm": "#0072B2", "Open MPI": "#E69F00", "Gloo": "#009E73"}
    figure = Figure(figsize=(6 * len(results), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, (layout, rows) in zip(panels, results.items(), strict=True):
        for turn, (contender, colour) in enumerate(colours.items()):
            for place, found in enumerate(rows.values()):
                row = found.get(contender, {})
                if "wire" in row:
                    bar = axis.bar(place + 0.27 * (turn - 1), row["wire"], 0.25, color=colour)
                    axis.bar_label(bar, [f"{row['wire']:.2f}"], fontsize=7)
        for contender, colour in colours.items():
            axis.bar(0, 0, color=colour, label=contender)
        axis.axhline(1.0, color="black", linewidth=0.8, linestyle="--", label="least")
        axis.set_xticks(range(len(rows)), list(rows), fontsize=8)
        axis.set_title(f"{layout} ranks on three hosts")
        axis.legend(frameon=False, fontsize=8)
    figure.supylabel("bytes between hosts / least", fontsize=9)
    figure.savefig(file, dpi=140)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, COLLECTIVES, COLLECTIVES)
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, help="ranks on each host, such as 2+2+2")
    parser.add_argument("--vendors", nargs="+", default=["mpi", "oneccl"], help="of hetcomm's clusters, in turn")
    parser.add_argument("--repeat", type=int, default=3, help="calls between two readings (3)")
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
    results: Results = {}
    nhosts = max(layout.count("+") + 1 for layout in options.layouts)
    with site(nhosts, options.lab, options.hosts) as there:
        for layout in options.layouts:
            rows = results.setdefault(layout, {name: {} for name in options.collectives})
            for contender in options.contenders:
                if contender in failures:
                    continue
                print(f"{layout}: {contender}", file=sys.stderr)
                try:
                    found = run_contender(there, contender, layout, options)
                except (OSError, RuntimeError) as error:
                    found = {name: {"missing": f"failed: {error}"} for name in options.collectives}
                    print(error, file=sys.stderr)
                for name, row in found.items():
                    rows[name][contender] = row
    holds = print_tables(results, options)
    for name, reason in failures.items():
        print(f"left out: {name}: {reason}")
    report(options, __file__, machine=about, left_out=failures, results=results)
    if options.plot:
        Path(options.plot).parent.mkdir(parents=True, exist_ok=True)
        plot(results, options.plot)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
