"""What the ranks of a benchmark do.

For each size every contender gets the same buffers, is checked, and warms up. Then it goes round: in each round every
contender makes some calls, one behind the other without a barrier between them, and the round after begins with
the next contender, so that a busy moment of the machine meets all of them. A *sample* is the time of such a block over
its calls, on the slowest rank; a block has as many calls as take some milliseconds. The first call of a block, which
finds the caches as another contender has left them, and the barriers are not timed. The last thing is another check.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import hetcomm
from hetcomm._cli import baselines
from hetcomm._cli.cases import Arrays, Case, touch
from hetcomm._cli.contenders import Bound, Contender
from hetcomm._cli.jobs import Tick, left
from hetcomm._cli.report import Report, Row
from hetcomm.errors import HetcommError, VendorError
from hetcomm.job import detect
from hetcomm.transport.library import load_library
from hetcomm.types import DataType, ReduceKind

__all__ = ["Benchmark"]

_BLOCK = 5e-3  # seconds that the calls of a sample take, unless one takes longer: more than a slice of the scheduler
_LOOKS = 3  # blocks of warm-up
_MOST_CALLS = 1000


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What is measured; the task of the ranks.

    Attributes:
        name: The collective; one of `hetcomm._cli.cases.NAMES`.
        sizes: In bytes.
        dtype: Of the elements.
        op: The reduction, where there is one.
        root: The root, where there is one.
        in_place: Whether input and output are one buffer.
        versus: The baselines.
        iters: Samples of each contender at each size.
        warmup: Calls of a block of warm-up, of which there are three.
        check: Whether results are checked.
        shared: Whether the buffers of all contenders are memory that the ranks of a host share.
        touched: Whether ranks write their inputs and read their outputs before each call, outside of its time, as
            programs do. Else what nobody touches stays in the caches where the call before left it.
        ahead: Whether ranks write their inputs before each call within its time, and never wait for one another between
            calls: a root that need not wait runs ahead of the others.
    """

    name: str
    sizes: tuple[int, ...]
    dtype: DataType
    op: ReduceKind
    root: int
    in_place: bool
    versus: tuple[str, ...]
    iters: int
    warmup: int
    check: bool
    shared: bool = False
    touched: bool = False
    ahead: bool = False

    def case(self, nranks: int, nbytes: int) -> Case:
        """The case of one size; raises as `Case.of`."""
        return Case.of(self.name, nranks, nbytes, self.dtype, self.op, self.root, self.in_place)

    def run(self, comm: hetcomm.Communicator, deadline: float, tick: Tick) -> Report:
        """Measure on `comm`, with nothing else under way on it. Collective.

        Raises:
            UsageError: There is no such root, form or op, or not enough memory.
            CollectiveTimeoutError: The deadline passed.
            VendorError, TransportError, PeerFailureError: Something failed; the communicator can only be closed.
        """
        load = os.getloadavg()[0]  # before there is more of it
        cases = [self.case(comm.nranks, nbytes) for nbytes in self.sizes]
        arrays = _arrays(cases, comm, self.shared)
        rows: list[Row] = []
        with baselines.opened(self.versus, comm, cases[0]) as (contenders, left_out):
            for number, case in enumerate(cases):
                tick(number / len(cases))
                rows += _Match(self, comm, deadline, contenders, case, arrays).rows()
        return Report(
            collective=self.name,
            nranks=comm.nranks,
            clusters=tuple((each.name, each.vendor, tuple(each.ranks)) for each in comm.topology.clusters),
            dtype=self.dtype.value,
            op=cases[0].op.value if cases[0].op is not None else None,
            root=cases[0].root,
            in_place=cases[0].in_place,
            checked=self.check,
            shared=self.shared,
            touched=self.touched,
            ahead=self.ahead,
            warmup=self.warmup,
            left_out=left_out,
            machine={
                "host": platform.node(),
                "system": platform.platform(),
                "cores": os.cpu_count() or 0,
                "load": load,
            },
            versions=_versions(comm),
            rows=tuple(rows),
        )


def _arrays(cases: list[Case], comm: hetcomm.Communicator, shared: bool) -> Arrays:
    """The buffers of this rank; an error is raised on all of them."""
    group, arrays, problem = comm._parts.group, None, None
    hosts = group.all_gather(detect.host().encode())
    try:
        arrays = Arrays(cases, comm.rank, hosts.count(detect.host().encode()), shared)
    except HetcommError as error:
        problem = error
    detect.exchange(group, b"", problem, "the benchmark")
    assert arrays is not None  # else it was raised
    return arrays


class _Match:
    """All contenders at one size."""

    def __init__(
        self,
        benchmark: Benchmark,
        comm: hetcomm.Communicator,
        deadline: float,
        contenders: Mapping[str, Contender],
        case: Case,
        arrays: Arrays,
    ) -> None:
        self._benchmark, self._comm, self._deadline = benchmark, comm, deadline
        self._contenders, self._case, self._arrays = contenders, case, arrays

    def rows(self) -> list[Row]:
        """One row for each contender, the same on all ranks."""
        iters, check = self._benchmark.iters, self._benchmark.check
        bound = {name: each.bind(self._case, self._arrays) for name, each in self._contenders.items()}
        wrong = {name: self._wrong(name, each) if check else 0 for name, each in bound.items()}
        calls = {name: self._warm_up(name, each) for name, each in bound.items()}
        samples: dict[str, list[float]] = {name: [] for name in bound}
        names = list(bound)
        for number in range(iters):
            first = number % len(names)
            for name in (*names[first:], *names[:first]):
                samples[name].append(self._block(name, bound[name], calls[name], before=1))
        for name, each in bound.items():
            wrong[name] = max(wrong[name], self._wrong(name, each) if check else 0)
            each.release()
        return self._together(calls, samples, wrong)

    def _together(self, calls: dict[str, int], samples: dict[str, list[float]], wrong: dict[str, int]) -> list[Row]:
        """The slowest rank of each sample, and the wrong elements of all ranks."""
        answers = [json.loads(answer) for answer in self._all_gather([samples, wrong])]
        rows = []
        for name in samples:
            seconds = tuple(max(each) for each in zip(*(times[name] for times, _ in answers), strict=True))
            faults = sum(found[name] for _, found in answers) if self._benchmark.check else None
            case = self._case
            rows.append(Row(name, case.nbytes, case.count, case.bus_factor, calls[name], seconds, faults))
        return rows

    def _all_gather(self, payload: object) -> list[bytes]:
        return list(self._comm._parts.group.all_gather(json.dumps(payload).encode()))

    def _block(self, name: str, bound: Bound, calls: int, before: int = 0) -> float:
        """Seconds of a call, out of `calls` of them, after those `before` that do not count."""
        call, seconds = bound.call, 0.0
        try:
            for _ in range(before):
                call()
            source, target = bound.touched or self._arrays.touched(self._case)
            writes = self._benchmark.ahead and self._case.takes_part(self._comm.rank)[0]
            for _ in range(calls if self._benchmark.touched else 1):
                if self._benchmark.touched:
                    touch(source, target)
                self._align()
                begin = time.perf_counter()
                for _ in range(1 if self._benchmark.touched else calls):
                    if writes:
                        touch(source, source[:0])
                    call()
                seconds += (time.perf_counter() - begin) / calls
            self._contenders[name].settle()
        except RuntimeError as error:  # what mpi4py and PyTorch raise
            if isinstance(error, HetcommError):
                raise
            raise VendorError(f"{name} failed in {self._case.name}: {error}", rank=self._comm.rank) from error
        return seconds

    def _align(self) -> None:
        self._comm.barrier(timeout=left(self._deadline, self._comm.rank))

    def _warm_up(self, name: str, bound: Bound) -> int:
        """Make the calls that do not count; how many a sample then has, the same on all ranks."""
        calls = max(1, self._benchmark.warmup)
        fastest = min(self._block(name, bound, calls) for _ in range(_LOOKS))
        slowest = max(json.loads(answer) for answer in self._all_gather(fastest))
        return max(1, min(_MOST_CALLS, int(_BLOCK / slowest)))

    def _wrong(self, name: str, bound: Bound) -> int:
        """Call it once on fresh buffers; how many elements of this rank's result are wrong."""
        self._arrays.fill(self._case)
        bound.refresh()
        self._block(name, bound, 1)
        return 0 if bound.result is None else self._arrays.wrong(self._case, bound.result)


def _machine(load: float) -> dict[str, str | int | float]:
    return {"host": platform.node(), "system": platform.platform(), "cores": os.cpu_count() or 0, "load": load}


def _versions(comm: hetcomm.Communicator) -> dict[str, str]:
    """Of what takes part, as far as it is loaded."""
    found = {"python": platform.python_version(), "ucx": str(load_library(comm._parts.job.config))}
    for package in ("hetcomm", "numpy", "mpi4py", "torch", "oneccl-cpu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None:
        found["mpi"] = mpi.Get_library_version().replace("\0", "").splitlines()[0].split(",")[0].strip()
    return found
