"""What it costs to watch the other ranks: all_reduce with and without, in turns, in one job.

    python benchmarks/health.py --json health.json

The ranks are on this machine, where a job has no heartbeat. Here one is begun between all of them, as if each were on a
host of its own, and ended again, in turns; so is the look at stopped processes. Whatever else the machine does hits
both. The figure is the median of the quotients of neighbouring turns, with its quartiles; a quotient of the same thing
twice, measured in the same way, says how much of that is noise. What the heartbeat's threads take of the processors is
read from the kernel beside, and is no matter of noise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

import hetcomm
from hetcomm.health import heartbeat
from hetcomm.health.health import Health
from hetcomm.testing import run_ranks

FORMAT = "hetcomm health 1"
SIZES = (8, 64 << 20)
GOAL = 0.02
TIMEOUT = 900.0  # seconds of a job
SETTLING = 0.3  # seconds in which a heartbeat begins, or everything else goes on


class Watching:
    """What a rank does to watch the others, begun and ended at will; collective."""

    def __init__(self, comm: hetcomm.Communicator) -> None:
        parts = comm._parts
        self._group, self._job = parts.group, parts.job
        self._thread = ""

    def begin(self) -> None:
        """Watch."""
        before = set(os.listdir("/proc/self/task"))
        group, transport = self._group, self._job.transport
        homes = [f"host{rank}" for rank in range(group.nranks)]
        pulse = heartbeat.begin(group, homes, 60.0)
        transport.heed(pulse)
        self._job.health = Health(group.rank, homes, transport.processes(), pulse, transport.failed_peers)
        (self._thread,) = set(os.listdir("/proc/self/task")) - before

    def taken(self) -> float:
        """Seconds of a processor that the heartbeat has had so far."""
        return int(Path("/proc/self/task", self._thread, "schedstat").read_text().split()[0]) * 1e-9

    def end(self) -> None:
        """Do not."""
        self._job.transport.heed(None)
        self._job.health.close()
        self._job.health = Health()


def ranks(nbytes: int, calls: int, turns: int) -> dict[str, list[float]]:
    """What each rank does; the target of `run_ranks`. Seconds of each turn, by what goes on in it."""
    found: dict[str, list[float]] = {"with": [], "without": [], "again": []}
    part: list[float] = []
    with hetcomm.init() as comm:
        watching = Watching(comm)
        array = numpy.zeros(nbytes // 4, numpy.float32)
        for turn in range(turns + 1):
            order = ["with", "without", "again"]
            for name in order[turn % 3 :] + order[: turn % 3]:
                if name == "with":
                    watching.begin()
                time.sleep(SETTLING)
                comm.barrier()
                taken = watching.taken() if name == "with" else 0.0
                begun = time.perf_counter()
                for _ in range(calls):
                    comm.all_reduce(array)
                seconds = time.perf_counter() - begun
                if name == "with":
                    part.append((watching.taken() - taken) / seconds)
                comm.barrier()
                if name == "with":
                    watching.end()
                if turn:  # the first is for warming up
                    found[name].append(seconds / calls)
    return found | {"processor": part[1:]}


def compare(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """By how much the first is longer, turn by turn."""
    low, median, high = statistics.quantiles([a / b - 1 for a, b in zip(first, second, strict=True)], n=4)
    return {"median": median, "quartiles": [low, high]}  # type: ignore[dict-item]


def measure(nranks: int, nbytes: int, calls: int, turns: int) -> dict[str, Any]:
    """One row."""
    told = run_ranks(nranks, ranks, nbytes, calls, turns, vendors=["ucx"] * nranks, timeout=TIMEOUT)
    processor = statistics.median(each for rank in told for each in rank["processor"])
    names = ("with", "without", "again")
    slowest = {name: [max(each) for each in zip(*(rank[name] for rank in told), strict=True)] for name in names}
    return {
        "ranks": nranks,
        "nbytes": nbytes,
        "calls": calls,
        "turns": turns,
        "seconds": {name: statistics.median(each) for name, each in slowest.items()},
        "cost": compare(slowest["with"], slowest["without"]),
        "noise": compare(slowest["again"], slowest["without"]),
        "processor": processor,
        "samples": slowest,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 8])
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args(argv)
    rows = []
    for nranks in args.ranks:
        for nbytes in SIZES:
            calls = (50_000 if nranks <= (os.cpu_count() or 1) else 10_000) if nbytes == SIZES[0] else 4
            row = measure(nranks, nbytes, calls, args.turns)
            rows.append(row)
            low, high = row["cost"]["quartiles"]
            print(
                f"{nranks} ranks, {nbytes} B: {1e6 * row['seconds']['without']:.2f} us without, "
                f"{1e6 * row['seconds']['with']:.2f} us with: {100 * row['cost']['median']:+.2f} % "
                f"({100 * low:+.2f} to {100 * high:+.2f}); the same twice {100 * row['noise']['median']:+.2f} %; "
                f"the thread of a rank takes {100 * row['processor']:.3f} % of a processor; "
                f"goal {100 * GOAL:g} %",
                flush=True,
            )
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
    command = "python benchmarks/health.py " + " ".join(sys.argv[1:] if argv is None else argv)
    figures = {"format": FORMAT, "command": command.strip(), "machine": machine, "load": os.getloadavg(), "rows": rows}
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
