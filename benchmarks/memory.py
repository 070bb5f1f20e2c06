"""Whether memory grows with the number of calls: two ranks in two clusters make 100,000 calls of each kind.

    python benchmarks/memory.py --json memory.json

After a warm-up, each kind of call is made `--calls` times (the last two less often), and at five points of the
way both ranks note, after a garbage collection: the pages in memory (RSS), the blocks that Python has allocated and the
objects its collector knows, and the messages that hetcomm has under way. Then a tenth as many calls are made under
tracemalloc, and what they left behind is counted in bytes. A kind passes if, on each rank, between the first point and
the last RSS grows by less than `PAGES` bytes, Python's blocks by less than one in 200 calls (`BLOCKS_PER_CALL` of the
last two), and no message is left under way. The kinds:

==================  ===================================================================================================
small               all_reduce of 8 bytes
mixed               five collectives, out of place and in place, of 16 sizes up to 256 KiB
persistent          start and wait of one request
async               all_reduce with `async_op`, eight under way at once
send_recv           send_recv of 8 bytes and of 16 KiB
new                 all_reduce of a length that has not been seen before: plans are made and dropped (of these calls
                    tracemalloc also counts the plans that are kept, but not those that they have replaced)
refused             a call whose arguments one rank refuses, which is raised on both and leaves the communicator usable
==================  ===================================================================================================
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy

import hetcomm
from hetcomm.errors import UsageError
from hetcomm.testing import run_ranks
from hetcomm.transport.ucx import UcxTransport

FORMAT = "hetcomm memory 1"
POINTS = 5
PAGES = 1 << 20  # bytes; the allocators of Python, C and UCX take and give back more than this at a time
BLOCKS_PER_CALL = {"new": 1.1, "refused": 2.1}
"""Blocks of Python's that a call may leave: what is remembered of a plan, or of a refusal; of the other kinds 0.005."""

MOST_CALLS = {"new": 8192, "refused": 10_000}
"""Kinds of which fewer calls are made."""

WARM_UP = {"new": 8192}
"""Calls before the first point, where 5,000 are too few: a cache is emptied every 4,096 new calls."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one rank holds.

    Attributes:
        calls: Made so far.
        rss: Bytes of memory.
        blocks: That Python has allocated.
        objects: That its collector knows.
        under_way: Messages.
    """

    calls: int
    rss: int
    blocks: int
    objects: int
    under_way: int


def here(comm: hetcomm.Communicator, calls: int) -> Point:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    transport = comm._parts.job.transport
    assert isinstance(transport, UcxTransport)  # the only one that jobs have
    under_way = transport.statistics()["inflight"]
    return Point(calls, pages * resource.getpagesize(), sys.getallocatedblocks(), len(gc.get_objects()), under_way)


# ---- the calls


def small(comm: hetcomm.Communicator) -> Callable[[int], None]:
    array = numpy.ones(2, numpy.float32)
    return lambda number: void(comm.all_reduce(array, op="max"))


def mixed(comm: hetcomm.Communicator) -> Callable[[int], None]:
    sizes = [2 << power for power in range(16)]
    ones, twos = numpy.ones(1 << 16, numpy.float32), numpy.ones(1 << 17, numpy.float32)

    def call(number: int) -> None:
        count, kind = sizes[number % 16], number % 7
        if kind == 0:
            comm.all_reduce(ones[:count], twos[:count], op="max")
        elif kind == 1:
            comm.all_reduce(ones[:count], op="min")
        elif kind == 2:
            comm.broadcast(ones[:count], root=number & 1)
        elif kind == 3:
            comm.all_gather(ones[:count], twos[: 2 * count])
        elif kind == 4:
            comm.reduce_scatter(ones[:count], twos[: count // 2], op="max")
        elif kind == 5:
            comm.all_to_all(ones[:count], twos[:count])
        else:
            comm.all_to_all(ones[:count])

    return call


def persistent(comm: hetcomm.Communicator) -> Callable[[int], None]:
    request = comm.all_reduce_init(numpy.ones(2, numpy.float32), op="max")

    def call(number: int) -> None:
        request.start()
        request.wait()

    return call


def background(comm: hetcomm.Communicator) -> Callable[[int], None]:
    arrays = [numpy.ones(2 << index, numpy.float32) for index in range(8)]
    works: list[Any] = []

    def call(number: int) -> None:
        works.append(comm.all_reduce(arrays[number % 8], op="max", async_op=True))
        if len(works) == 8:
            for work in works:
                work.wait()
            works.clear()

    return call


def messages(comm: hetcomm.Communicator) -> Callable[[int], None]:
    peer = 1 - comm.rank
    ones, twos = numpy.ones(1 << 12, numpy.float32), numpy.ones(1 << 12, numpy.float32)

    def call(number: int) -> None:
        count = 2 if number & 1 else 1 << 12
        comm.send_recv(ones[:count], twos[:count], peer, peer)

    return call


def new(comm: hetcomm.Communicator) -> Callable[[int], None]:
    array = numpy.ones(1 << 16, numpy.uint8)  # all of them short: plans of one shape
    lengths = iter(range(1, len(array)))
    return lambda number: void(comm.all_reduce(array[: next(lengths)], op="max"))


def refused(comm: hetcomm.Communicator) -> Callable[[int], None]:
    array = numpy.ones(4, numpy.int64)  # no such call ever begins: after one that has, the communicator is lost

    def call(number: int) -> None:
        try:
            comm.all_reduce(array[:: 1 + (number & 1 == comm.rank)], op="max")
        except UsageError:
            return
        raise RuntimeError("a strided array was taken")

    return call


def void(result: object) -> None:
    """Drop what a call returns."""


KINDS = {
    "small": small,
    "mixed": mixed,
    "persistent": persistent,
    "async": background,
    "send_recv": messages,
    "new": new,
    "refused": refused,
}


def ranks(kinds: Sequence[str], calls: int) -> dict[str, Any]:
    """What one rank does and finds; the target of `run_ranks`."""
    found: dict[str, Any] = {}
    with hetcomm.init() as comm:
        for name in kinds:
            began = time.perf_counter()
            call, number = KINDS[name](comm), 0
            points: list[Point] = []
            wanted = min(calls, MOST_CALLS.get(name, calls))

            def until(end: int, call: Callable[[int], None] = call) -> None:
                nonlocal number
                while number < end:
                    call(number)
                    number += 1

            until(WARM_UP.get(name, 5000))
            first = number
            for point in range(POINTS + 1):
                until(first + wanted * point // POINTS)
                comm.barrier()
                points.append(here(comm, number - first))
            found[name] = {"points": [asdict(point) for point in points], "traced": traced(comm, until, wanted, number)}
            found[name]["seconds"] = time.perf_counter() - began
    return found


def traced(comm: hetcomm.Communicator, until: Callable[[int], None], wanted: int, number: int) -> dict[str, Any]:
    """Bytes that a tenth of the calls left behind, and which lines of Python took most of them."""
    tracemalloc.start()
    until(number + wanted // 50)
    comm.barrier()
    gc.collect()
    before = tracemalloc.take_snapshot()
    start = tracemalloc.get_traced_memory()[0]
    until(number + wanted // 50 + wanted // 10)
    comm.barrier()
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] - start
    lines = tracemalloc.take_snapshot().compare_to(before, "lineno")
    tracemalloc.stop()
    grown = [line for line in lines if line.size_diff > wanted // 100]
    shown = {f"{_inside(line.traceback[0].filename)}:{line.traceback[0].lineno}": line.size_diff for line in grown[:5]}
    return {"calls": wanted // 10, "bytes": kept, "lines": shown}


def _inside(file: str) -> str:
    """A file's place in its package."""
    parts = Path(file).parts
    return "/".join(parts[parts.index("hetcomm") :]) if "hetcomm" in parts else parts[-1]


# ---- what it means


def faults(name: str, found: dict[str, Any]) -> list[str]:
    """Why kind `name` does not pass on one rank."""
    first, last = (Point(**found["points"][place]) for place in (0, -1))
    calls = last.calls - first.calls
    said = []
    if last.rss - first.rss >= PAGES:
        said.append(f"RSS grew by {last.rss - first.rss} bytes")
    if last.blocks - first.blocks >= BLOCKS_PER_CALL.get(name, 0.005) * calls:
        said.append(f"Python's blocks grew by {last.blocks - first.blocks}")
    if last.under_way > first.under_way:
        said.append(f"{last.under_way} messages are under way")
    return said


def table(found: Sequence[dict[str, Any]]) -> bool:
    """Print what was found; whether every kind passes."""
    print(f"{'kind':12}{'rank':>5}{'calls':>8}{'RSS, KiB':>22}{'blocks':>20}{'objects':>18}{'traced':>16}{'s':>7}")
    holds = True
    for name in found[0]:
        for rank, each in enumerate(found):
            first, last = (Point(**each[name]["points"][place]) for place in (0, -1))
            left = each[name]["traced"]
            print(
                f"{name:12}{rank:5}{last.calls:8}"
                f"{f'{first.rss >> 10} +{(last.rss - first.rss) >> 10}':>22}"
                f"{f'{first.blocks} {last.blocks - first.blocks:+}':>20}"
                f"{f'{first.objects} {last.objects - first.objects:+}':>18}"
                f"{left['bytes'] / left['calls']:>11.2f} B/c{each[name]['seconds']:7.1f}"
            )
            for fault in faults(name, each[name]):
                holds = False
                print(f"    GROWS: {fault}; {left['lines']}")
    return holds


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000, help="of each kind (100000)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="which; all unless given")
    parser.add_argument("--vendor", default="ucx", help="of both clusters (ucx)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds all of it may take (600)")
    parser.add_argument("--json", type=Path, help="write every point to this file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    env = [{"HETCOMM_CLUSTER": str(rank)} for rank in range(2)]
    found = run_ranks(
        2, ranks, options.kinds, options.calls, vendors=[options.vendor] * 2, env=env, timeout=options.timeout
    )
    holds = table(found)
    if options.json is not None:
        command = ["python", "benchmarks/memory.py", *(sys.argv[1:] if arguments is None else arguments)]
        about = {"format": FORMAT, "command": command, "python": platform.python_version(), "vendor": options.vendor}
        options.json.write_text(json.dumps({**about, "ranks": found}, indent=1) + "\n", encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
