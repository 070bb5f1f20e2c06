"""256 MiB from one process to another that shares its GPU, beside a plain copy inside the GPU, in one run.

    python -m benchmarks.gpu.p2p --json p2p.json

Two processes with CuPy arrays. They take turns, `--rounds` times: first one process copies device memory to device
memory and the other is idle, then messages go. Host clock, median over all samples:

* one at a time: half of a round trip (send and receive on one side, receive and send on the other, the host waiting for
  the stream after each round trip), against one copy for which the host waits;
* in a row: the time of `--window` messages from the first send until the answer to the last has come, against as many
  copies with one wait at the end.

What arrived is compared with what was sent, element by element, in every round. Beside them stands `ucx_perftest`,
UCX's own benchmark in C, on CUDA memory (`tag_lat`, which sends one at a time, and `tag_bw`), run once before and once
after. It is no part of the claims. Which lanes UCX took is in the report.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.jobs import run
from benchmarks.gpu.report import Claim, arguments, finish, size_text
from benchmarks.p2p import perftest, perftest_numbers

SHARE = 0.8  # of a plain copy's bandwidth
WAYS = ("one at a time", "in a row")
LINES = tuple(f"P2P of 256 MiB, {way}: at least 80 % of a plain device copy" for way in WAYS)
PINGS = 10  # round trips, and copies, per sample


def timed(count: int, work: Callable[[], Any]) -> float:
    """Seconds per item of `count` items that `work` does."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / count


def measure(nbytes: int, rounds: int, window: int) -> dict[str, Any]:
    """What a rank does; samples in seconds per message or copy, from rank 0."""
    import cupy

    import hetcomm
    from hetcomm.testing import this_rank

    group = this_rank()
    samples: dict[str, dict[str, list[float]]] = {way: {"copy": [], "message": []} for way in WAYS}
    arrived = True
    with hetcomm.init() as comm, cupy.cuda.Stream(non_blocking=True) as stream:
        there = 1 - comm.rank
        source = cupy.zeros(nbytes // 4, cupy.int32)
        targets = [cupy.zeros_like(source) for _ in range(min(window, 4))]
        answer = cupy.zeros(2, cupy.int32)

        def copy(number: int) -> None:
            cupy.cuda.runtime.memcpyAsync(
                targets[number % len(targets)].data.ptr,
                source.data.ptr,
                nbytes,
                cupy.cuda.runtime.memcpyDeviceToDevice,
                stream.ptr,
            )

        def copies(*, wait: bool) -> None:
            for number in range(PINGS if wait else window):
                copy(number)
                if wait:
                    stream.synchronize()
            stream.synchronize()

        def pings() -> None:
            for number in range(PINGS):
                target = targets[number % len(targets)]
                if comm.rank == 0:
                    comm.send(source, there)
                    comm.recv(target, there)
                else:
                    comm.recv(target, there)
                    comm.send(source, there)
                stream.synchronize()

        def row() -> None:
            if comm.rank == 0:
                works = [comm.send(source, there, async_op=True) for _ in range(window)]
            else:
                works = [comm.recv(targets[k % len(targets)], there, async_op=True) for k in range(window)]
            for work in works:
                assert work is not None  # with async_op there is one
                work.wait()
            if comm.rank == 0:
                comm.recv(answer, there, tag=1)
            else:
                comm.send(answer, there, tag=1)
            stream.synchronize()

        for turn in range(-1, rounds):  # the first one warms up
            found = {}
            for way, copying, sending, per_sample in (
                (WAYS[0], lambda: copies(wait=True), pings, PINGS),
                (WAYS[1], lambda: copies(wait=False), row, window),
            ):
                value = 10 * turn + WAYS.index(way)
                source.fill(1000 * value + comm.rank)
                stream.synchronize()
                group.barrier()
                copied = timed(per_sample, copying) if comm.rank == 0 else 0.0
                group.barrier()
                messages = 2 * per_sample if sending is pings else per_sample
                found[way] = copied, timed(messages, sending)
                if sending is pings or comm.rank == 1:
                    arrived &= all(bool((target == 1000 * value + there).all()) for target in targets)
            for way, (copied, sent) in found.items():
                if turn >= 0:
                    samples[way]["copy"].append(copied)
                    samples[way]["message"].append(sent)
        lanes = comm._parts.job.transport.lanes()  # type: ignore[attr-defined]
    return {"samples": samples, "arrived": arrived, "lanes": lanes}


def judge(nbytes: int, samples: dict[str, dict[str, list[float]]], arrived: bool) -> list[Claim]:
    """Both claims, from seconds per copy and per message."""
    claims = []
    for line, way in zip(LINES, WAYS, strict=True):
        copy, message = (statistics.median(samples[way][which]) for which in ("copy", "message"))
        figure = f"{copy / message:.0%} ({nbytes / message * 1e-9:.0f} of {nbytes / copy * 1e-9:.0f} GB/s)"
        enough = copy / message >= SHARE
        claims.append(Claim(line, figure, enough and arrived, "" if arrived else "wrong data arrived"))
    return claims


def raw_ucx(nbytes: int) -> dict[str, float] | str:
    """ucx_perftest on CUDA memory: seconds per message of both ways, or why there are none."""
    if perftest() is None:
        return "no ucx_perftest"
    try:
        latency, _ = perftest_numbers("tag_lat", nbytes, 50, ("-m", "cuda"))
        _, bandwidth = perftest_numbers("tag_bw", nbytes, 50, ("-m", "cuda"))
    except (OSError, RuntimeError, ValueError, IndexError, subprocess.SubprocessError) as error:
        return f"failed: {error}"
    return {WAYS[0]: latency, WAYS[1]: nbytes / bandwidth}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--nbytes", type=int, default=256 << 20, help="bytes of a message (256 MiB)")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each kind (9)")
    parser.add_argument("--window", type=int, default=16, help="messages in a row (16)")
    parser.add_argument("--seconds", type=float, default=60.0, help="what the two processes may take (60)")
    options = parser.parse_args()
    ucx = [raw_ucx(options.nbytes)]
    ranks = run(
        measure,
        options.nbytes,
        options.rounds,
        options.window,
        vendors=("ucx", "ucx"),
        clusters=("a", "b"),
        seconds=options.seconds,
    )
    ucx.append(raw_ucx(options.nbytes))
    found = ranks[0]
    claims = judge(options.nbytes, found["samples"], all(rank["arrived"] for rank in ranks))
    print(f"{size_text(options.nbytes)} over {found['lanes']}")
    for each in ucx:
        if isinstance(each, str):
            print(f"ucx_perftest: {each}")
        else:
            rates = [f"{way} {options.nbytes / seconds * 1e-9:.0f} GB/s" for way, seconds in each.items()]
            print(f"ucx_perftest: {', '.join(rates)}")
    return finish(options.json, claims, {"nbytes": options.nbytes, "ranks": ranks, "ucx_perftest": ucx})


if __name__ == "__main__":
    sys.exit(main())
