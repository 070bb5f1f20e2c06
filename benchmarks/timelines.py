"""Simulated and measured timelines of one plan, above each other on one time axis, with the error of the simulation.

    python benchmarks/timelines.py --json timelines.json --pictures timelines    # timelines-64KiB.png and so on

Four ranks, two driven by MPI and two by oneCCL (`--vendors`), make an all_reduce of float32 that crosses between the
two clusters, once for each of `--sizes`.

* Measured: `Communicator.trace` records when each rank ran which step. The clocks of the ranks are compared by messages
  that go back and forth, half of the fastest round trip each way. Of `--repeat` calls, each after a barrier, the
  picture shows the one of median length, from the first start to the last end on any rank.
* Simulated: `hetcomm.schedule.simulate` runs the same plan. What steps cost is measured by the same ranks before: calls
  of each vendor, both clusters at once; exchanges between clusters, all border ranks at once and both ways; copies.
  Straight lines are fitted to the medians, relative errors counting alike. The CPU time of a step is what makes the
  simulation of an all_reduce of 8 bytes take as long as that call does. Nothing is fitted at the sizes shown.

Buffers that are measured lie in 64 MiB which are walked through, as those of a long vector are. Where ranks share
cores, what runs at the same time slows each other down, which the simulation does not know: with two ranks to a core
expect tens of per cent of error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from contenders import machine

SIZES = (64 << 10, 4 << 20, 64 << 20)
CALLS = ("reduce_scatter", "all_gather", "all_reduce", "reduce", "broadcast")
MEASURED = (256, 4 << 10, 64 << 10, 512 << 10, 2 << 20)  # bytes of the vector
ROOM = 64 << 20  # bytes that are walked through
SAMPLES = 15


def median_seconds(run: Callable[[int], Any], barrier: Callable[[], Any], nbytes: int) -> float:
    """The median time of `run`, which gets the number of the call, each after a barrier."""
    samples = []
    for number in range(SAMPLES + 2):
        barrier()
        begin = time.perf_counter()
        run(number * nbytes)
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples[2:])


def offset_to_first(comm: Any) -> float:
    """What to add to this rank's clock to get that of rank 0; collective."""
    best, offset, token = float("inf"), 0.0, np.zeros(1)
    for peer in range(1, comm.nranks):
        for _ in range(50):
            if comm.rank == 0:
                comm.recv(token, peer)
                token[0] = time.perf_counter()
                comm.send(token, peer)
            elif comm.rank == peer:
                begin = time.perf_counter()
                comm.send(token, 0)
                comm.recv(token, 0)
                end = time.perf_counter()
                if end - begin < best:
                    best, offset = end - begin, float(token[0]) - (begin + end) / 2
        comm.barrier()
    return offset


def call_times(home: Any, barrier: Callable[[], Any]) -> dict[str, list[tuple[float, float]]]:
    """(bytes of the vector, seconds) of each collective of this rank's vendor."""
    room, other = np.zeros(ROOM // 4, np.float32), np.zeros(ROOM // 4, np.float32)
    n = home.nranks

    def at(array: Any, start: int, count: int) -> Any:
        begin = start // 4 % (len(array) - count)
        return array[begin : begin + count]

    found: dict[str, list[tuple[float, float]]] = {}
    for name in CALLS:
        for nbytes in MEASURED:
            count = nbytes // 4 // n * n
            runs: dict[str, Callable[[int], Any]] = {
                "reduce_scatter": lambda k, c=count: home.reduce_scatter(at(room, k, c), at(other, k, c // n)),
                "all_gather": lambda k, c=count: home.all_gather(None, at(other, k, c)),
                "all_reduce": lambda k, c=count: home.all_reduce(at(room, k, c), at(other, k, c)),
                "reduce": lambda k, c=count: home.reduce(at(room, k, c), at(other, k, c), 0),
                "broadcast": lambda k, c=count: home.broadcast(at(room, k, c), 0),
            }
            found.setdefault(name, []).append((4.0 * count, median_seconds(runs[name], barrier, nbytes)))
    return found


def exchange_times(across: Any, barrier: Callable[[], Any]) -> list[tuple[float, float]]:
    """(bytes, seconds) of a message to the other cluster while one of equal length comes from there."""
    room = np.zeros(ROOM // 4, np.float32)
    found = []
    for nbytes in MEASURED:
        count = nbytes // 4

        def run(start: int, count: int = count) -> None:
            begin = start // 4 % (len(room) - 2 * count)
            across.all_gather(room[begin : begin + 2 * count])  # in place: one message each way, and nothing else

        found.append((4.0 * count, median_seconds(run, barrier, 2 * nbytes)))
    return found


def copy_times(barrier: Callable[[], Any]) -> dict[str, list[tuple[float, float]]]:
    """(bytes, seconds) of local copies and additions."""
    source, target = np.ones(ROOM // 4, np.float32), np.zeros(ROOM // 4, np.float32)
    found: dict[str, list[tuple[float, float]]] = {"copy": [], "reduce": []}
    for nbytes in MEASURED:
        count = nbytes // 4

        def part(array: Any, start: int, count: int = count) -> Any:
            begin = start // 4 % (len(array) - count)
            return array[begin : begin + count]

        def copy(start: int) -> None:
            np.copyto(part(target, start), part(source, start))

        def add(start: int) -> None:
            np.add(part(target, start), part(source, start), out=part(target, start))

        found["copy"].append((float(nbytes), median_seconds(copy, barrier, nbytes)))
        found["reduce"].append((float(nbytes), median_seconds(add, barrier, nbytes)))
    return found


def rank_main(sizes: Sequence[int], repeat: int) -> dict[str, Any]:
    """What one rank measures."""
    import hetcomm

    with hetcomm.init() as comm:
        here = comm.topology.cluster_index(comm.rank)
        place = list(comm.topology.clusters[here].ranks).index(comm.rank)
        home, across = comm.split(here), comm.split(place)
        assert home is not None
        assert across is not None
        found: dict[str, Any] = {
            "topology": comm.topology.to_toml(),
            "calls": call_times(home, comm.barrier),
            "exchange": exchange_times(across, comm.barrier),
            **copy_times(comm.barrier),
            "runs": {},
        }
        offset = offset_to_first(comm)
        for nbytes in (8, *sizes):
            given, got = np.ones(nbytes // 4, np.float32), np.zeros(nbytes // 4, np.float32)
            comm.all_reduce(given, got)
            runs = []
            for _ in range(repeat):
                comm.barrier()
                with comm.trace() as trace:
                    comm.all_reduce(given, got)
                spans = trace.timeline.spans
                runs.append([(s.rank, s.index, s.label, s.start + offset, s.end + offset) for s in spans])
            assert (got == comm.nranks).all()
            found["runs"][nbytes] = runs
        return found


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """alpha and beta of `seconds = alpha + beta bytes`, neither negative; relative errors count alike."""
    nbytes, seconds = np.array(points).T
    rows = np.stack([1 / seconds, nbytes / seconds], axis=1)
    alpha, beta = np.linalg.lstsq(rows, np.ones(len(points)), rcond=None)[0]
    if alpha < 0:
        return 0.0, float((nbytes / seconds).sum() / ((nbytes / seconds) ** 2).sum())
    return float(alpha), max(float(beta), 1e-15)


def slowest(results: Sequence[dict[str, Any]], pick: Callable[[dict[str, Any]], Any]) -> list[tuple[float, float]]:
    """Of what several ranks have measured in common, the longest time for each number of bytes."""
    return [(points[0][0], max(seconds for _, seconds in points)) for points in zip(*map(pick, results), strict=True)]


def calibration(results: Sequence[dict[str, Any]], topology: Any) -> tuple[Any, Any]:
    """A calibration from what the ranks have measured, and the topology with the uplinks as measured."""
    from hetcomm.schedule.collective import Collective, CollectiveKind
    from hetcomm.topology.costs import Calibration, CallCost, Line, volume
    from hetcomm.types import DataType, ReduceKind

    calls = []
    for cluster in topology.clusters:
        members = [results[rank] for rank in cluster.ranks]
        for name in CALLS:
            kind, n = CollectiveKind(name), len(cluster)
            points = []
            for nbytes, seconds in slowest(members, lambda found, name=name: found["calls"][name]):
                count = int(nbytes) // 4 // (n if kind.has_blocks else 1)
                op, root = ReduceKind.SUM if kind.reduces else None, 0 if kind.has_root else None
                points.append((volume(Collective(kind, n, count, DataType.FLOAT32, op, root)), seconds))
            alpha, beta = line(points)
            calls.append(CallCost(cluster.vendor, kind, alpha=alpha, beta=beta))
    latency, per_byte = line(slowest(results, lambda found: found["exchange"]))
    evened = []
    for cluster in topology.clusters:
        links = [replace(up, bandwidth_out=1 / per_byte, bandwidth_in=1 / per_byte) for up in cluster.uplinks]
        evened.append(replace(cluster, uplinks=tuple(replace(up, latency=latency) for up in links)))
    measured = Calibration(
        tuple(calls),
        message=Line(latency, per_byte),
        copy=Line(*line(slowest(results, lambda found: found["copy"]))),
        reduce=Line(*line(slowest(results, lambda found: found["reduce"]))),
        overhead=0.0,
        machine=f"{platform.node()}, {len(os.sched_getaffinity(0))} cores",
    )
    return measured, replace(topology, clusters=tuple(evened))


def simulated(nbytes: int, topology: Any, costs: Any) -> Any:
    """The timeline that the simulation expects of an all_reduce."""
    from hetcomm.schedule.collective import Collective, CollectiveKind
    from hetcomm.schedule.simulate import simulate
    from hetcomm.topology import select
    from hetcomm.types import DataType, ReduceKind

    what = Collective(CollectiveKind.ALL_REDUCE, topology.nranks, nbytes // 4, DataType.FLOAT32, ReduceKind.SUM)
    return simulate(select.schedule(what, topology), costs)


def with_overhead(measured: Any, topology: Any, seconds: float) -> Any:
    """The calibration whose overhead makes an all_reduce of 8 bytes take `seconds`; none if it takes longer anyway."""
    from hetcomm.topology.costs import costs_of

    low, high = 0.0, seconds
    for _ in range(30):
        middle = (low + high) / 2
        tried = replace(measured, overhead=middle)
        if simulated(8, topology, costs_of(topology, tried)).duration > seconds:
            high = middle
        else:
            low = middle
    return replace(measured, overhead=low)


def median_run(results: Sequence[dict[str, Any]], nbytes: int) -> tuple[Any, list[float]]:
    """The timeline of median length over all ranks, and the lengths of all."""
    from hetcomm.schedule.timeline import Span, Timeline

    timelines = [
        Timeline.merge([Timeline(tuple(Span(*span) for span in spans)) for spans in runs])
        for runs in zip(*(found["runs"][nbytes] for found in results), strict=True)
    ]
    timelines.sort(key=lambda timeline: timeline.duration)
    return timelines[len(timelines) // 2], [timeline.duration for timeline in timelines]


def size_text(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vendors", nargs="+", default=["mpi", "mpi", "oneccl", "oneccl"], help="of each rank")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes of the vector")
    parser.add_argument("--repeat", type=int, default=15, help="calls of each size (15)")
    parser.add_argument("--json", help="write calibration, times and errors to this file")
    parser.add_argument("--pictures", help="draw to this path with the size and .png behind it (needs matplotlib)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    from hetcomm.testing import run_ranks
    from hetcomm.topology.costs import costs_of
    from hetcomm.topology.model import Topology

    about = machine()
    print(json.dumps(about))
    results = run_ranks(
        len(options.vendors), rank_main, tuple(options.sizes), options.repeat, vendors=options.vendors, timeout=300
    )
    found, topology = calibration(results, Topology.from_toml(results[0]["topology"]))
    shortest, _ = median_run(results, 8)
    found = with_overhead(found, topology, shortest.duration)
    costs = costs_of(topology, found)
    clusters = {cluster.name: tuple(cluster.ranks) for cluster in topology.clusters}
    rows = {}
    print(f"\n{'vector':>8}{'simulated ms':>14}{'measured ms':>13}{'error':>9}   all calls, ms")
    for nbytes in options.sizes:
        expected = simulated(nbytes, topology, costs)
        seen, lengths = median_run(results, nbytes)
        error = expected.duration / seen.duration - 1
        span = f"{lengths[0] * 1e3:.3f} to {lengths[-1] * 1e3:.3f}"
        print(
            f"{size_text(nbytes):>8}{expected.duration * 1e3:>14.3f}{seen.duration * 1e3:>13.3f}{error:>9.1%}   {span}"
        )
        rows[str(nbytes)] = {
            "simulated": expected.duration,
            "measured": lengths,
            "median": seen.duration,
            "error": error,
        }
        if options.pictures:
            from hetcomm.schedule.draw import compare

            file = f"{options.pictures}-{size_text(nbytes).replace(' ', '')}.png"
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            compare(expected, seen, file, clusters=clusters, title=f"all_reduce of {size_text(nbytes)}, 2+2 ranks")
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": about, "calibration": found.to_json(), "topology": topology.to_toml(), "sizes": rows}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
