"""Which copies the CUDA driver made during an all_reduce between two processes that share a GPU.

    python -m benchmarks.gpu.trace --json trace.json --chrome chrome.json

Each of the two ranks records the CUDA activity of its whole process with `torch.profiler` (CUPTI underneath, so that
what CuPy, UCX and NCCL do is in it too, from whatever thread), once around one all_reduce of each of `--sizes`. The
promise is that no copy is from host to device or from device to host.

A profiler that sees nothing would prove nothing. So each rank first records a copy to the device and one back, made
through CuPy; if these two are not in that recording, nothing is concluded from the others.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import run
from benchmarks.gpu.report import Claim, arguments, finish, size_text

SIZES = (1 << 10, 64 << 10, 1 << 20, 64 << 20, 256 << 20)
LINES = ("CUDA activity trace of an all_reduce lists no copy between host and device",)
THROUGH_HOST = ("HtoD", "DtoH", "HtoH", "HtoA", "AtoH")
ACTIVITY = ("gpu_memcpy", "gpu_memset", "kernel")  # categories of the profiler's events
_KIND = re.compile(r"Memcpy (\w+)")


def activity(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The events of a Chrome trace of `torch.profiler` that are the GPU's own work."""
    return [event for event in trace["traceEvents"] if event.get("cat") in ACTIVITY]


def copies(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How many copies of each kind (`HtoD`, `DtoH`, `DtoD`, `PtoP`, ...) there are, and of how many bytes."""
    counts: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for event in events:
        if event["cat"] == "gpu_memcpy":
            found = _KIND.search(event["name"])
            kind = found[1] if found else event["name"]
            counts[kind] += 1
            nbytes[kind] += int(event.get("args", {}).get("bytes", 0))
    return {kind: {"count": counts[kind], "bytes": nbytes[kind]} for kind in sorted(counts)}


def kernels(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How often each kernel ran, by the beginning of its name."""
    return dict(Counter(str(event["name"])[:80] for event in events if event["cat"] == "kernel"))


def record(work: Any, path: str) -> list[dict[str, Any]]:
    """The GPU's activity while `work()` runs and until the device is idle."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    profiler.export_chrome_trace(path)
    with open(path, encoding="utf-8") as file:
        return activity(json.load(file))


def there_and_back() -> None:
    """One copy from the host to the device and one back."""
    import cupy
    import numpy

    cupy.asarray(numpy.ones(1 << 18)).get()


def measure(sizes: Sequence[int]) -> dict[str, Any]:
    """What a rank does: the control, then one recording for each size."""
    import cupy
    import torch

    import hetcomm
    from hetcomm.testing import this_rank

    group = this_rank()
    found: dict[str, Any] = {"control": {}, "sizes": {}, "right": True, "events": []}
    with tempfile.TemporaryDirectory() as folder, hetcomm.init() as comm:
        path = str(Path(folder, "trace.json"))
        torch.cuda.init()
        record(there_and_back, path)  # the profiler's own start is slow
        found["control"] = copies(record(there_and_back, path))
        for nbytes in sizes:
            array = cupy.full(nbytes // 4, comm.rank + 1, cupy.float32)
            comm.all_reduce(array)  # makes the plan, maps the memory of the other process
            array.fill(comm.rank + 1)
            cupy.cuda.get_current_stream().synchronize()
            group.barrier()
            events = record(lambda array=array: comm.all_reduce(array), path)
            found["sizes"][nbytes] = {"copies": copies(events), "kernels": kernels(events)}
            found["events"] = events  # of the last size
            found["right"] &= bool((array == 3).all())
            group.barrier()
        found["rank"] = comm.rank
    return found


def judge(ranks: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The claim, from what the ranks recorded."""
    blind = [rank for rank, each in enumerate(ranks) if not {"HtoD", "DtoH"} <= set(each["control"])]
    if blind:
        return [Claim(LINES[0], why=f"the profiler of ranks {blind} does not even list copies made on purpose")]
    total: Counter[str] = Counter()
    silent, staged = [], []
    for rank, each in enumerate(ranks):
        for nbytes, recorded in each["sizes"].items():
            if not recorded["copies"] and not recorded["kernels"]:
                silent.append(f"{size_text(int(nbytes))} on rank {rank}")
            for kind, found in recorded["copies"].items():
                total[kind] += found["count"]
                if kind in THROUGH_HOST:
                    staged.append(f"{found['count']} {kind} at {size_text(int(nbytes))} on rank {rank}")
    sizes = ", ".join(size_text(int(nbytes)) for nbytes in ranks[0]["sizes"])
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(total.items())) or "no copies"
    figure = f"{listed} over {len(ranks)} ranks at {sizes}"
    if staged:
        return [Claim(LINES[0], figure, False, "; ".join(staged))]
    if silent:
        return [Claim(LINES[0], figure, None, f"no activity at all was recorded for {', '.join(silent)}")]
    right = all(each["right"] for each in ranks)
    return [Claim(LINES[0], figure, right, "" if right else "the sums are wrong")]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--chrome", help="write the GPU's activity in the last recording of rank 0, as a Chrome trace")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="bytes of the arrays")
    parser.add_argument("--seconds", type=float, default=90.0, help="what the two processes may take (90)")
    options = parser.parse_args()
    ranks = run(measure, options.sizes, vendors=("nccl", "nccl"), clusters=("a", "b"), seconds=options.seconds)
    events = [rank.pop("events") for rank in ranks]
    for rank, each in enumerate(ranks):
        for nbytes, recorded in each["sizes"].items():
            print(f"rank {rank}, {size_text(nbytes)}: copies {recorded['copies']}, kernels {recorded['kernels']}")
    if options.chrome:
        Path(options.chrome).write_text(json.dumps({"traceEvents": events[0]}) + "\n")
    return finish(options.json, judge(ranks), {"ranks": ranks})


if __name__ == "__main__":
    sys.exit(main())
