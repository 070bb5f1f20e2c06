"""all_reduce of device arrays between two processes that share a GPU, against Gloo on the same arrays in the same run.

    python -m benchmarks.gpu.all_reduce --json all_reduce.json --plot all_reduce.png

Two ranks, each a cluster of its own (vendor `nccl`), float32 sums in place, 1 MiB to 1 GiB. The same two processes also
form a group of `torch.distributed` with the backend Gloo, as somebody without hetcomm would who cannot use NCCL. Each
contender gets the same memory: a PyTorch tensor, which hetcomm takes as it is.

The contenders take turns. A sample is one call after a barrier, until the host has seen the stream come to its end, and
counts what the slower rank took; the figure of a size is the median. Before each sample the array is filled anew, and
the sum is compared after it, element by element. Bandwidth is bytes of the array over time; 1 GB/s is 10^9 bytes per
second. There are fewer samples where Gloo takes long: `--samples` at most, and after the third no new round of a size
once `--patience` seconds are over.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import run
from benchmarks.gpu.report import Claim, arguments, finish, geometric_mean, gpu, size_text

TIMES = 19  # as fast as Gloo
FROM = 16 << 20
SIZES = tuple(1 << exponent for exponent in range(20, 31))
LINES = (
    "all_reduce, 16 MiB to 1 GiB: at least 19 x Gloo's bandwidth at every size",
    "all_reduce, 1 MiB to 1 GiB: geometric mean over Gloo, and the picture",
)
Seconds = Mapping[str, Mapping[int, Sequence[float]]]
"""Samples by contender and size in bytes."""


def measure(sizes: Sequence[int], samples: int, patience: float, store: str) -> dict[str, Any]:
    """What a rank does; seconds of each sample, the slower rank's, the same on both."""
    import torch
    import torch.distributed as dist

    import hetcomm
    from hetcomm.testing import this_rank

    group = this_rank()
    found: dict[str, dict[int, list[float]]] = {"hetcomm": {}, "Gloo": {}}
    wrong: list[str] = []
    with hetcomm.init() as comm:
        dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=comm.rank, world_size=2)
        stream = torch.cuda.Stream()
        calls = {"hetcomm": comm.all_reduce, "Gloo": dist.all_reduce}
        with torch.cuda.stream(stream):
            for nbytes in sizes:
                array = torch.empty(nbytes // 4, dtype=torch.float32, device="cuda")
                end = time.monotonic() + patience
                for turn in range(-1, samples):  # the first one warms up
                    for name, call in calls.items():
                        array.fill_(turn + comm.rank)
                        stream.synchronize()
                        group.barrier()
                        start = time.perf_counter()
                        call(array)
                        stream.synchronize()
                        mine = time.perf_counter() - start
                        slower = max(map(float, group.all_gather(str(mine).encode())))
                        if turn >= 0:
                            found[name].setdefault(nbytes, []).append(slower)
                        if not bool((array == 2 * turn + 1).all()):
                            wrong.append(f"{name} at {size_text(nbytes)}, turn {turn}")
                    late = time.monotonic() > end and turn >= 2
                    if b"late" in group.all_gather(b"late" if late else b""):
                        break
                del array
        dist.destroy_process_group()
        vendors = [cluster.vendor for cluster in comm.topology.clusters]
    return {"seconds": found, "wrong": wrong, "vendors": vendors}


def ratios(seconds: Seconds) -> dict[int, float]:
    """How many times Gloo's bandwidth hetcomm's is, by size; of the sizes that both have."""
    ours, theirs = seconds["hetcomm"], seconds["Gloo"]
    return {n: statistics.median(theirs[n]) / statistics.median(ours[n]) for n in sorted(ours) if n in theirs}


def judge(seconds: Seconds, wrong: Sequence[str], sizes: Sequence[int] = SIZES) -> list[Claim]:
    """Both claims; a size of `sizes` without figures leaves the first open."""
    times = ratios(seconds)
    large = {nbytes: times[nbytes] for nbytes in sizes if nbytes >= FROM and nbytes in times}
    missing = [size_text(nbytes) for nbytes in sizes if nbytes >= FROM and nbytes not in times]
    why = f"wrong sums: {', '.join(wrong[:3])}" if wrong else ""
    if not large:
        first = Claim(LINES[0], why="no size of 16 MiB or more was measured")
    else:
        worst = min(large, key=large.__getitem__)
        figure = f"{large[worst]:.1f} x at least, at {size_text(worst)}"
        if missing and not wrong and large[worst] >= TIMES:
            first = Claim(LINES[0], figure, None, f"no figures at {', '.join(missing)}")
        else:
            first = Claim(LINES[0], figure, large[worst] >= TIMES and not wrong, why)
    mean = geometric_mean(times.values())
    if math.isnan(mean):
        return [first, Claim(LINES[1], why="nothing was measured")]
    return [first, Claim(LINES[1], f"{mean:.1f} x over {len(times)} sizes", not wrong, why)]


def table(seconds: Seconds) -> str:
    """Bandwidth of both in GB/s and the ratio, one line for each size."""
    lines = [f"{'':>10}{'hetcomm':>12}{'Gloo':>12}{'ratio':>10}{'samples':>10}   GB/s"]
    for nbytes, times in ratios(seconds).items():
        rates = [nbytes / statistics.median(seconds[name][nbytes]) * 1e-9 for name in ("hetcomm", "Gloo")]
        count = len(seconds["hetcomm"][nbytes])
        lines.append(f"{size_text(nbytes):>10}{rates[0]:>12.2f}{rates[1]:>12.2f}{times:>9.1f}x{count:>10}")
    return "\n".join(lines)


def plot(seconds: Seconds, path: str, device: str) -> None:
    """Bandwidth over size with the band of all samples, and below it the ratio with the promise."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, constrained_layout=True)
    for name, measured in seconds.items():
        sizes = sorted(measured)
        rates = [[nbytes / sample * 1e-9 for sample in measured[nbytes]] for nbytes in sizes]
        (line,) = upper.plot(sizes, [statistics.median(each) for each in rates], marker="o", markersize=3, label=name)
        upper.fill_between(sizes, list(map(min, rates)), list(map(max, rates)), alpha=0.15, color=line.get_color())
    times = ratios(seconds)
    lower.plot(list(times), list(times.values()), marker="o", markersize=3, color="black")
    lower.plot([FROM, SIZES[-1]], [TIMES, TIMES], linestyle="--", color="tab:red", label=f"promised: {TIMES} x")
    upper.set_ylabel("bytes of the array over time, GB/s")
    lower.set_ylabel("hetcomm's bandwidth over Gloo's")
    lower.set_xlabel("array, bytes")
    for axis in (upper, lower):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.suptitle(f"all_reduce, float32 sum, two processes sharing one {device or 'GPU'}", fontsize=10)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--plot", help="draw the picture to this file (.png or .svg; needs matplotlib)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="bytes of the arrays")
    parser.add_argument("--samples", type=int, default=15, help="samples of each contender and size, at most (15)")
    parser.add_argument("--patience", type=float, default=6.0, help="seconds after which a size gets no new round (6)")
    parser.add_argument("--seconds", type=float, default=100.0, help="what the two processes may take (100)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = options.sizes, options.samples, options.patience, str(Path(folder, "store"))
        ranks = run(measure, *asked, vendors=("nccl", "nccl"), clusters=("a", "b"), seconds=options.seconds)
    seconds, wrong = ranks[0]["seconds"], sorted({text for rank in ranks for text in rank["wrong"]})
    print(table(seconds))
    if options.plot:
        Path(options.plot).parent.mkdir(parents=True, exist_ok=True)
        plot(seconds, options.plot, gpu().get("name", ""))
    return finish(options.json, judge(seconds, wrong), {**ranks[0], "wrong": wrong, "ratios": ratios(seconds)})


if __name__ == "__main__":
    sys.exit(main())
