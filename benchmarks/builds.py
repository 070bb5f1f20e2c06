"""Two builds of hetcomm beside each other: does a change make anything slower?

    git worktree add ../before COMMIT && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/builds.py ../before --json builds.json

Jobs of either build are started by turns, since two cannot be in one process; the ratio of a size is that of the
medians over the starts of the medians over the blocks of calls, on the slowest rank. A virtual machine moves between
threads of one core and of two within minutes, so few starts tell little: the spread over the starts is noted, too.

The exit status is 1 if the geometric mean of the ratios, old time over new, is below 0.97, or one of them below 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from time import perf_counter
from typing import Any

import numpy as np

from hetcomm._ranks.launch import mpi_command

FORMAT = "hetcomm builds 1"
JOBS = {"2 ucx": ["ucx"] * 2, "2 mpi + 2 oneccl": ["mpi"] * 2 + ["oneccl"] * 2}
CALLS = ("all_reduce", "broadcast", "all_gather", "reduce_scatter", "all_to_all", "messages")
SIZES = (8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
LEAST_MEAN, LEAST = 0.97, 0.9
_BLOCK_SECONDS = 0.004
_BLOCKS = 25


def call_of(comm: Any, name: str, nbytes: int) -> Callable[[], Any]:
    """A call that moves vectors of so many bytes; of block collectives that is all blocks together."""
    n = comm.nranks
    count = max(nbytes // 4, 1)
    block = max(count // n, 1)
    whole, part = np.ones(count, np.float32), np.ones(block, np.float32)
    blocks, out = np.ones(n * block, np.float32), np.empty(n * block, np.float32)
    far = n // 2

    def messages() -> None:
        if comm.rank == 0:
            comm.send(whole, far)
            comm.recv(result, far)
        elif comm.rank == far:
            comm.recv(result, 0)
            comm.send(whole, 0)

    result = np.empty(count, np.float32)
    return {
        "all_reduce": lambda: comm.all_reduce(whole, result, op="max"),
        "broadcast": lambda: comm.broadcast(whole, root=0),
        "all_gather": lambda: comm.all_gather(part, out),
        "reduce_scatter": lambda: comm.reduce_scatter(blocks, part, op="max"),
        "all_to_all": lambda: comm.all_to_all(blocks, out),
        "messages": messages,
    }[name]


def measure(path: str, names: Sequence[str], sizes: Sequence[int]) -> None:
    """A rank's part; rank 0 writes seconds by call and size."""
    import hetcomm

    found: dict[str, dict[int, float]] = {name: {} for name in names}
    with hetcomm.init() as comm:
        for name in names:
            for nbytes in sizes:
                call = call_of(comm, name, nbytes)
                for _ in range(4):
                    call()
                comm.barrier()
                begun = perf_counter()
                call()
                call()
                took = np.array([(perf_counter() - begun) / 2])
                comm.all_reduce(took, op="max")
                calls = max(1, min(200, round(_BLOCK_SECONDS / took[0])))
                times = np.empty(_BLOCKS if took[0] * calls < 5 * _BLOCK_SECONDS else 9)
                for place in range(len(times)):
                    comm.barrier()
                    begun = perf_counter()
                    for _ in range(calls):
                        call()
                    times[place] = (perf_counter() - begun) / calls
                comm.all_reduce(times, op="max")
                found[name][nbytes] = median(times.tolist())
        if comm.rank == 0:
            Path(path).write_text(json.dumps(found))


def start(
    tree: Path, vendors: Sequence[str], names: Sequence[str], sizes: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Run one job with the hetcomm of a source tree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "times")
        argv = [sys.executable, __file__, "--rank", str(path), "--calls", *names, "--sizes", *map(str, sizes)]
        ranks = [({"HETCOMM_VENDOR": vendor}, argv) for vendor in vendors]
        env = {**os.environ, "PYTHONPATH": str(tree.resolve())}
        subprocess.run(mpi_command(ranks), env=env, cwd=folder, check=True, timeout=600)
        return json.loads(path.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path, help="source tree of the other build, built in place")
    parser.add_argument("--starts", type=int, default=6, help="of each build and job")
    parser.add_argument("--calls", nargs="*", default=CALLS, choices=CALLS)
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, help="bytes")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rank is not None:
        measure(args.rank, args.calls, args.sizes)
        return 0
    if args.other is None:
        parser.error("name the source tree of the other build")
    trees = {"old": args.other, "new": Path(__file__).resolve().parents[1]}
    rows, ratios = [], []
    for job, vendors in JOBS.items():
        times: dict[str, list[dict[str, dict[str, float]]]] = {"old": [], "new": []}
        for turn in range(args.starts):
            for build in ("old", "new") if turn % 2 == 0 else ("new", "old"):
                times[build].append(start(trees[build], vendors, args.calls, args.sizes))
        for name in args.calls:
            for nbytes in args.sizes:
                us = {build: [1e6 * each[name][str(nbytes)] for each in times[build]] for build in times}
                ratio = median(us["old"]) / median(us["new"])
                ratios.append(ratio)
                row = {"job": job, "call": name, "nbytes": nbytes, "ratio": round(ratio, 3)}
                row |= {
                    build: [round(least, 2), round(median(us[build]), 2), round(most, 2)]
                    for build in us
                    for least, most in [(min(us[build]), max(us[build]))]
                }
                rows.append(row)
                print(
                    f"{job:18} {name:15} {nbytes:10} B  old {median(us['old']):10.1f} us"
                    f"  new {median(us['new']):10.1f} us  {ratio:5.2f}",
                    flush=True,
                )
    mean, worst = geometric_mean(ratios), min(ratios)
    print(f"geometric mean {mean:.3f}, worst {worst:.3f}: old time over new")
    if args.json is not None:
        report = {
            "format": FORMAT,
            "command": ["benchmarks/builds.py", *(sys.argv[1:] if argv is None else argv)],
            "geometric mean": round(mean, 3),
            "worst": round(worst, 3),
            "least, median and most us over the starts": rows,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(mean < LEAST_MEAN or worst < LEAST)


if __name__ == "__main__":
    sys.exit(main())
