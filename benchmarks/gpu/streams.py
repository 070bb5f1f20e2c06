"""How long a call on device arrays keeps its caller while the stream is busy, and what the host can do meanwhile.

    python -m benchmarks.gpu.streams --json streams.json

Two ranks share the GPU, each a cluster of its own (vendor `nccl`). In each repetition a rank queues 5 ms of work on its
stream, then the writing of its array, then calls `all_reduce`, and queues a copy of the result right behind it: nothing
waits for anything. The time of the call is that of the host clock around it. From its return until the stream has come
to its end the rank counts in a Python loop; the promise that the host is free is judged by the count per second beside
that of the same loop without any communication, measured in the same process. The result is what the copy holds.

* The call returns in under 100 us: the median over all repetitions and ranks counts; the worst and the share below
  100 us are reported.
* The work was still going on when the call returned, in at least 90 % of them: else the figure would mean nothing, and
  the claim is not decided.
* The host is free: at least 80 % of the count it reaches without communication.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.jobs import run
from benchmarks.gpu.report import Claim, arguments, finish, share_within, size_text

LIMIT = 100e-6  # seconds that the call may take
FREE = 0.8  # of what the host can do without communication
BUSY = 0.9  # of the calls must return while the stream still works
QUEUED = 5e-3  # seconds of work on the stream
SIZES = (1 << 20, 64 << 20)
LINES = (
    "With 5 ms of work queued on the stream the call returns in under 100 us",
    "With 5 ms of work queued on the stream results are right",
    "With 5 ms of work queued on the stream the host is free meanwhile",
)


def count_until(done: Callable[[], bool], at_least: float = 0.0) -> tuple[int, float]:
    """Count in Python, asking now and then, until `done`, but for `at_least` seconds: the count, and the seconds."""
    count, start = 0, time.perf_counter()
    while True:
        for _ in range(2000):
            count += 1
        seconds = time.perf_counter() - start
        if done() and seconds >= at_least:
            return count, seconds


def measure(sizes: Sequence[int], repetitions: int) -> dict[str, Any]:
    """What a rank does; seconds of each call, counts per second, and whether the results were right."""
    import cupy

    import hetcomm
    from benchmarks.gpu.spin import Spinner
    from hetcomm.testing import this_rank

    group = this_rank()
    found: dict[str, Any] = {"sizes": {}}
    with hetcomm.init() as comm, cupy.cuda.Stream(non_blocking=True) as stream:
        spin = Spinner()
        spin(QUEUED)
        idle_count, idle_seconds = count_until(lambda: stream.done, at_least=0.2)
        found["count_per_second_alone"] = idle_count / idle_seconds
        for nbytes in sizes:
            array = cupy.zeros(nbytes // 4, cupy.float32)
            seen = cupy.zeros_like(array)
            calls, early, rates, after, right = [], [], [], [], True
            for turn in range(-2, repetitions):  # the first two make the plan and warm up
                array.fill(-1)
                stream.synchronize()
                group.barrier()
                spin(QUEUED)
                array.fill(turn + comm.rank)
                start = time.perf_counter()
                comm.all_reduce(array)
                call = time.perf_counter() - start
                busy = not stream.done
                cupy.copyto(seen, array)
                count, seconds = count_until(lambda: stream.done)
                if turn >= 0:
                    calls.append(call)
                    early.append(busy)
                    rates.append(count / seconds)
                    after.append(seconds)
                right &= bool((seen == 2 * turn + 1).all())
            found["sizes"][nbytes] = {
                "call_seconds": calls, "still_busy": early, "count_per_second": rates, "seconds_after_return": after,
                "right": right,
            }  # fmt: skip
    return found


def judge(ranks: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The three claims, from what the ranks measured."""
    measured = [each for rank in ranks for each in rank["sizes"].values()]
    calls = [call for each in measured for call in each["call_seconds"]]
    middle = statistics.median(calls)
    figure = f"median {middle * 1e6:.0f} us, worst {max(calls) * 1e6:.0f} us, {share_within(calls, LIMIT):.0%} in time"
    busy = statistics.fmean(each for one in measured for each in one["still_busy"])
    if busy < BUSY:
        returned = Claim(LINES[0], figure, None, f"the stream was idle at the return of {1 - busy:.0%} of the calls")
    else:
        returned = Claim(LINES[0], figure, middle < LIMIT)
    right = all(each["right"] for each in measured)
    shares = [
        statistics.median(each["count_per_second"]) / rank["count_per_second_alone"]
        for rank in ranks
        for each in rank["sizes"].values()
    ]
    sizes = ", ".join(size_text(int(nbytes)) for nbytes in ranks[0]["sizes"])
    free = f"counts at {min(shares):.0%} of its pace alone, at least"
    return [
        returned,
        Claim(LINES[1], f"{len(calls)} calls at {sizes}", right, "" if right else "wrong sums were read"),
        Claim(LINES[2], free, min(shares) >= FREE),
    ]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="bytes of the arrays")
    parser.add_argument("--repetitions", type=int, default=50, help="calls per size (50)")
    parser.add_argument("--seconds", type=float, default=60.0, help="what the two processes may take (60)")
    options = parser.parse_args()
    asked = options.sizes, options.repetitions
    ranks = run(measure, *asked, vendors=("nccl", "nccl"), clusters=("a", "b"), seconds=options.seconds)
    return finish(options.json, judge(ranks), {"ranks": ranks})


if __name__ == "__main__":
    sys.exit(main())
