"""How much scratch memory calls take, beside the formula.

    python benchmarks/scratch.py --json scratch.json

Four ranks in two clusters make each collective on `--bytes`, some times in a row on a communicator of its own. The most
scratch memory that was alive at one time on any rank is put beside `hetcomm.topology.scratch.most_scratch`. The limit
is the formula, rounded up to a power of two as the pool of scratch memory does, twice: one block is kept for calls
that have been made before, one for others.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hetcomm
from hetcomm._cli.bench import parse_size
from hetcomm._cli.cases import Arrays, Case
from hetcomm._cli.contenders import Hetcomm
from hetcomm.execution.scratch import ScratchPool
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.testing import run_ranks
from hetcomm.topology.scratch import most_scratch
from hetcomm.topology.tuning import on
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind

FORMAT = "hetcomm scratch 1"


class Watch:
    """Counts the bytes of scratch memory that are alive in this process, while it is used as a context manager."""

    def __init__(self) -> None:
        self.alive = self.peak = 0
        self._known: set[int] = set()
        self._borrow = ScratchPool.borrow

    def __enter__(self) -> Watch:
        watch, original = self, self._borrow

        def borrow(pool: ScratchPool, nbytes: int, kind: MemoryKind) -> Memory:
            memory = original(pool, nbytes, kind)
            buffer: Any = memory.owner
            if id(buffer) not in watch._known:
                watch._known.add(id(buffer))
                watch.alive += memory.nbytes
                watch.peak = max(watch.peak, watch.alive)
                weakref.finalize(buffer, watch._gone, id(buffer), memory.nbytes)
            return memory

        setattr(ScratchPool, "borrow", borrow)  # noqa: B010 (a method, which mypy does not let be assigned to)
        return self

    def _gone(self, buffer: int, nbytes: int) -> None:
        self._known.discard(buffer)
        self.alive -= nbytes

    def __exit__(self, *_: object) -> None:
        setattr(ScratchPool, "borrow", self._borrow)  # noqa: B010


def ranks(nbytes: int) -> dict[str, dict[str, int]]:
    """What each rank has alive at most, and may have, by collective; the target of `run_ranks`."""
    found: dict[str, dict[str, int]] = {}
    with hetcomm.init() as comm:
        for kind in CollectiveKind:
            case = Case.of(kind.value, comm.nranks, nbytes, DataType.FLOAT32, ReduceKind.SUM, 0, False)
            arrays = Arrays([case], comm.rank, comm.nranks)
            arrays.fill(case)
            part = comm.split(0)
            assert part is not None  # it has a colour
            with part, Watch() as watch:
                bound = Hetcomm(part).bind(case, arrays)
                for _ in range(4):
                    bound.call()
                part.barrier()
            assert case.collective is not None  # all of them have one
            most = most_scratch(case.collective, comm.topology, comm.rank, on(comm.topology), written_out=True)
            block = 1 << max(most * case.dtype.itemsize - 1, 63).bit_length()
            found[kind.value] = {"most": watch.peak, "formula": most * case.dtype.itemsize, "limit": 2 * block}
    return found


def table(found: Sequence[dict[str, dict[str, int]]]) -> bool:
    """Print the worst rank of each collective; whether all are within their limits."""
    print(f"{'collective':16}{'scratch, KiB':>14}{'formula, KiB':>14}{'limit, KiB':>12}")
    for name in found[0]:
        worst = max((each[name] for each in found), key=lambda row: row["most"] / row["limit"])
        print(f"{name:16}{worst['most'] >> 10:14}{worst['formula'] >> 10:14}{worst['limit'] >> 10:12}")
    return all(row["most"] <= row["limit"] for each in found for row in each.values())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=parse_size, default=16 << 20, help="of each collective (16M)")
    parser.add_argument("--vendor", default="ucx", help="of both clusters (ucx)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds all of it may take (120)")
    parser.add_argument("--json", type=Path, help="write the figures of all ranks to this file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    env = [{"HETCOMM_CLUSTER": str(rank // 2)} for rank in range(4)]
    found = run_ranks(4, ranks, options.bytes, vendors=[options.vendor] * 4, env=env, timeout=options.timeout)
    holds = table(found)
    if options.json is not None:
        command = ["python", "benchmarks/scratch.py", *(sys.argv[1:] if arguments is None else arguments)]
        about = {"format": FORMAT, "command": command, "python": platform.python_version(), "vendor": options.vendor}
        options.json.write_text(json.dumps({**about, "ranks": found}, indent=1) + "\n", encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
