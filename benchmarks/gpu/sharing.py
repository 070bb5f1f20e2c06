"""NCCL with two ranks on one GPU: a border reduction that NCCL itself makes, as the trace of the call shows it.

    python -m benchmarks.gpu.sharing --json sharing.json

NCCL lets ranks share a GPU from 2.30.3 on, with `NCCL_MULTI_RANK_GPU_ENABLE=1`. Four ranks on one GPU form two clusters
of two; an all_reduce then crosses between them, and each cluster adds what came from the other by one call of NCCL over
its border communicator. The trace of each rank must name that call, and the sums must be right. With an older NCCL the
claim says which one there is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.jobs import run
from benchmarks.gpu.report import Claim, arguments, finish, version_of

OLDEST = (2, 30, 3)
LINES = ("NCCL with two ranks on one GPU: border reduction by NCCL itself, shown in the trace",)
REDUCING = ("reduce_scatter", "all_reduce", "reduce")


def measure(count: int) -> dict[str, Any]:
    """What a rank does: one traced call after one that makes the plan."""
    import cupy

    import hetcomm

    with hetcomm.init() as comm:
        array = cupy.full(count, comm.rank + 1, cupy.float32)
        comm.all_reduce(array)
        array.fill(comm.rank + 1)
        with comm.trace() as trace:
            work = comm.all_reduce(array, async_op=True)
            assert work is not None  # with async_op there is one
            work.synchronize()
        right = bool((array == sum(range(1, comm.nranks + 1))).all())
        return {"right": right, "steps": [span.label for span in trace.timeline.spans]}


def border_calls(steps: Sequence[str]) -> list[str]:
    """The steps that are reductions of NCCL over a border communicator."""
    found = []
    for step in steps:
        words = step.split()
        if words[0] == "vendor" and words[1].startswith("border:nccl") and words[2] in REDUCING:
            found.append(step)
    return found


def judge(ranks: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The claim, from the traces of all ranks."""
    calls = [border_calls(rank["steps"]) for rank in ranks]
    lacking = [rank for rank, found in enumerate(calls) if not found]
    right = all(rank["right"] for rank in ranks)
    figure = next((found[0] for found in calls if found), "no such step")
    why = "the sums are wrong" if not right else f"no such step on ranks {lacking}" if lacking else ""
    return [Claim(LINES[0], figure, right and not lacking, why)]


def main() -> int:
    from hetcomm.vendors.registry import vendor

    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=1 << 22, help="elements of the arrays (4194304)")
    parser.add_argument("--seconds", type=float, default=45.0, help="what the ranks may take (45)")
    options = parser.parse_args()
    state = vendor("nccl").availability()
    version = version_of(state.version)
    results: dict[str, Any] = {"nccl": state.version}
    if not state.usable:
        claims = [Claim(LINES[0], why=f"{state.reason}. {state.remedy}")]
    elif version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        claims = [Claim(LINES[0], f"NCCL {state.version}", why=f"this NCCL is older than {oldest}")]
    else:
        results["ranks"] = run(
            measure,
            options.count,
            vendors=("nccl",) * 4,
            clusters=("a", "a", "b", "b"),
            seconds=options.seconds,
            env={"NCCL_MULTI_RANK_GPU_ENABLE": "1"},
        )
        claims = judge(results["ranks"])
    return finish(options.json, claims, results)


if __name__ == "__main__":
    sys.exit(main())
