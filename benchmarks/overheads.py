"""What hetcomm adds to what it stands on: to a vendor's call, to a request that is started, and to a message.

    python benchmarks/overheads.py --json overheads.json

Two ranks on this machine. Everything that is compared is measured in one process, in turns, so that a busy moment hits
all of it; the figure is the median of the differences in turn.

* Vendor: all_reduce in a job of one cluster, beside the same call on the vendor's library, which is started and polled
  without hetcomm's plans and agreement (`hetcomm bench --vs vendor`). 8 B and 16 MiB, for each of `--vendors`.
* Start: `Request.start` of a persistent all_reduce of 8 bytes in two clusters of the vendor `ucx`, alone: the wait
  for its end is not timed. Beside it a method that does nothing; what is between is all of start, the posting of its
  messages included.
* Message: half a round trip of 8 bytes with `Communicator.send` and `recv`, beside the same with UCX alone, posted
  and waited for by hetcomm's binding without its communicator, and beside UCX's own `ucx_perftest`, where it is found.

The limits that are printed beside the figures are what hetcomm promises.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
from p2p import perftest, perftest_numbers

import hetcomm
from hetcomm._cli.jobs import start_ranks
from hetcomm._cli.measure import Benchmark
from hetcomm.errors import HetcommError
from hetcomm.testing import run_ranks
from hetcomm.transport.ucx import UcxTransport
from hetcomm.types import DataType, ReduceKind

FORMAT = "hetcomm overheads 1"
SMALL, LARGE = 8, 16 << 20
CALLS = 1000  # in a turn
STARTS = 200
TIMEOUT = 120.0  # seconds for each job
LIMITS = {"call, us": 2.0, "call, %": 2.0, "start, us": 1.0, "message, us": 1.9}


def one_cluster(vendor: str, iters: int) -> dict[str, Any]:
    """A call of a job of one cluster, and the vendor's own."""
    found: dict[str, Any] = {}
    for nbytes in (SMALL, LARGE):
        task = Benchmark(
            "all_reduce", (nbytes,), DataType.FLOAT32, ReduceKind.SUM, 0, False, ("vendor",), iters, 5, check=True
        )
        report = start_ranks(task, [vendor] * 2, [0, 0], TIMEOUT)
        ours, raw = (report.of(name)[0].samples for name in ("hetcomm", "vendor"))
        more = statistics.median(mine - its for mine, its in zip(ours, raw, strict=True))
        found[str(nbytes)] = {
            "hetcomm": statistics.median(ours),
            "vendor": statistics.median(raw),
            "difference": more,
            "part": more / statistics.median(raw),
            "samples": {"hetcomm": ours, "vendor": raw},
        }
    return found


class Empty:
    """Has a method that does nothing."""

    def nothing(self) -> None:
        """Do nothing."""


def ranks(turns: int) -> dict[str, list[float]]:
    """What each rank does; the target of `run_ranks`. Seconds of each turn."""
    with hetcomm.init() as comm:
        found = starts(comm, turns)
        comm.barrier()
        found |= messages(comm, turns)
        comm.barrier()
    return found


def starts(comm: hetcomm.Communicator, turns: int) -> dict[str, list[float]]:
    """A start alone, and nothing."""
    source = numpy.ones(SMALL // 4, numpy.float32)
    clock = time.perf_counter
    found: dict[str, list[float]] = {"start": [], "nothing": []}
    with comm.all_reduce_init(source, numpy.empty_like(source)) as request:
        start, wait, nothing = request.start, request.wait, Empty().nothing
        for turn in range(turns + 1):
            comm.barrier()
            for name, call in (("start", start), ("nothing", nothing)):
                each = []
                for _ in range(STARTS):
                    begin = clock()
                    call()
                    each.append(clock() - begin)
                    wait()
                if turn:
                    found[name].append(statistics.median(each))
    return found


def messages(comm: hetcomm.Communicator, turns: int) -> dict[str, list[float]]:
    """Half a round trip, by the communicator and by UCX alone."""
    peer, array, clock = 1 - comm.rank, numpy.zeros(SMALL, numpy.uint8), time.perf_counter
    transport = UcxTransport()
    transport.connect(peer, comm._parts.group.all_gather(transport.address)[peer])
    address, nbytes, wait = array.ctypes.data, array.nbytes, transport.wait

    def raw(order: Sequence[Callable[..., Any]]) -> None:
        for post in order:
            wait([post(address, nbytes, peer, 1)], TIMEOUT)

    def ours(order: Sequence[Callable[..., Any]]) -> None:
        for call in order:
            call(array, peer)

    def way(first: Any, second: Any) -> tuple[Any, Any]:
        return (first, second) if comm.rank == 0 else (second, first)

    contenders = {
        "hetcomm": (ours, way(comm.send, comm.recv)),
        "ucx": (raw, way(transport.send, transport.recv)),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, (call, order) in contenders.items():
            comm.barrier()
            begin = clock()
            for _ in range(CALLS):
                call(order)
            if turn:
                found[name].append((clock() - begin) / CALLS / 2)
    comm.barrier()
    transport.close()
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything; times in seconds."""
    found: dict[str, Any] = {"call": {}, "left_out": {}}
    for vendor in options.vendors:
        try:
            found["call"][vendor] = one_cluster(vendor, options.iters)
        except HetcommError as error:
            found["left_out"][vendor] = str(error)
    env = [{"HETCOMM_CLUSTER": str(rank)} for rank in range(2)]
    both = run_ranks(2, ranks, options.iters, vendors=["ucx"] * 2, env=env, timeout=TIMEOUT)
    mine = both[0]
    pairs = zip(mine["start"], mine["nothing"], strict=True)
    found["start"] = {
        "start": statistics.median(mine["start"]),
        "nothing": statistics.median(mine["nothing"]),
        "difference": statistics.median(start - nothing for start, nothing in pairs),
    }
    found["message"] = {
        "hetcomm": statistics.median(mine["hetcomm"]),
        "ucx": statistics.median(mine["ucx"]),
        "least": {"hetcomm": min(mine["hetcomm"]), "ucx": min(mine["ucx"])},
    }
    if perftest() is not None:
        rounds = [perftest_numbers("tag_lat", SMALL, 20_000)[0] for _ in range(3)]
        found["message"]["ucx_perftest"] = statistics.median(rounds)
    found["samples"] = both
    return found


def table(found: dict[str, Any]) -> bool:
    """Print the figures beside what is promised; whether all of it holds."""
    lines: list[tuple[str, float, float, str]] = []
    for vendor, sizes in found["call"].items():
        small, large = sizes[str(SMALL)], sizes[str(LARGE)]
        about = f"{small['hetcomm'] * 1e6:.2f} us; raw {small['vendor'] * 1e6:.2f} us"
        lines.append((f"{vendor}: 8 B over the raw call, us", small["difference"] * 1e6, LIMITS["call, us"], about))
        about = f"{large['hetcomm'] * 1e3:.2f} ms; raw {large['vendor'] * 1e3:.2f} ms"
        lines.append((f"{vendor}: 16 MiB over the raw call, %", large["part"] * 100, LIMITS["call, %"], about))
    start, message = found["start"], found["message"]
    about = f"a method that does nothing: {start['nothing'] * 1e6:.2f} us"
    lines.append(("persistent start, us", start["difference"] * 1e6, LIMITS["start, us"], about))
    about = f"UCX alone {message['ucx'] * 1e6:.2f} us"
    if "ucx_perftest" in message:
        about += f"; ucx_perftest {message['ucx_perftest'] * 1e6:.2f} us"
    lines.append(("send and recv of 8 B, us", message["hetcomm"] * 1e6, LIMITS["message, us"], about))
    for what, value, limit, about in lines:
        print(f"{what:36}{value:8.2f}  at most {limit:g}: {'yes' if value <= limit else 'NO':4} ({about})")
    for vendor, reason in found["left_out"].items():
        print(f"{vendor} is left out: {reason}")
    return all(value <= limit for _, value, limit, _ in lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vendors", nargs="+", default=["mpi", "oneccl"], help="of the job of one cluster")
    parser.add_argument("--iters", type=int, default=40, help="turns of each measurement (40)")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    found = measure(options)
    holds = table(found)
    if options.json is not None:
        command = ["python", "benchmarks/overheads.py", *(sys.argv[1:] if arguments is None else arguments)]
        about = {"format": FORMAT, "command": command, "python": platform.python_version()}
        options.json.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
