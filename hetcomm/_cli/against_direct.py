"""The baseline `direct`: an all_reduce of ranks that all map each other's arrays, as near to the memory as Python gets.

Input and output of each rank lie in memory shared by all ranks of the host. Each rank reduces its part of the vector
straight from all inputs into all outputs, in pieces that stay in a cache, between two barriers made of flags. No
library can do that with the arrays of a program, which nobody else maps: it is a bound to compare with.
"""

from __future__ import annotations

import mmap
import os
import platform
import time
from collections.abc import Callable

import numpy

import hetcomm
from hetcomm._cli.cases import Arrays, Case
from hetcomm._cli.contenders import Bound
from hetcomm._cli.patterns import Array
from hetcomm.errors import CollectiveTimeoutError
from hetcomm.types import COMBINING, DataType

__all__ = ["Direct"]

_FUNCTIONS = {kind: getattr(numpy, kind.ufunc) for kind in COMBINING}
_PIECE = 128 << 10  # bytes: those of an output and of two inputs are in a second-level cache at one time
_SPINS = 100  # looks at the flags before the processor is offered to others
_LOOKS = 1 << 12  # between two looks at the clock
_LINE = 64  # bytes of a flag


class Direct:
    """Ranks of one host with memory in common; collective to make."""

    def __init__(self, comm: hetcomm.Communicator) -> None:
        self._group, self._rank, self._nranks = comm._parts.group, comm.rank, comm.nranks
        self._timeout = comm._parts.job.config.timeout
        self._turn = 0
        self._flags = [each.view(numpy.int64) for each in self._shared(_LINE)]

    @staticmethod
    def problem(comm: hetcomm.Communicator) -> str:
        """Why it cannot take part in this job; '' if it can."""
        clusters = comm.topology.clusters
        if not all(each.hosts for each in clusters) or len({host for each in clusters for host in each.hosts}) > 1:
            return "the ranks are not known to be on one host"
        if not hasattr(os, "memfd_create") or platform.machine() != "x86_64":
            return "flags in shared memory need Linux, and the order in which x86 processors write"
        return ""

    def refusal(self, case: Case) -> str | None:
        """It is an all_reduce of what NumPy adds."""
        if case.name != "all_reduce" or case.op not in _FUNCTIONS or case.dtype is DataType.BFLOAT16:
            return "direct access is a baseline for an all_reduce of types and ops that NumPy has"
        if case.op.is_logical and case.nranks == 1:
            return "direct access copies what a single rank has"
        return None

    def bind(self, case: Case, arrays: Arrays) -> Bound:
        """Make the shared arrays, and copy this rank's input there now and whenever it is another."""
        source, target = arrays.of(case)
        outs = [each.view(target.dtype) for each in self._shared(case.nbytes)]
        ins = outs if case.in_place else [each.view(target.dtype) for each in self._shared(case.nbytes)]

        def refresh() -> None:
            outs[self._rank][:] = target
            if not case.in_place:
                ins[self._rank][:] = source

        refresh()
        mine = outs[self._rank]
        return Bound(self._all_reduce(case, ins, outs), mine, refresh=refresh, touched=(ins[self._rank], mine))

    def _all_reduce(self, case: Case, ins: list[Array], outs: list[Array]) -> Callable[[], None]:
        """The call, with everything cut into pieces beforehand."""
        assert case.op is not None  # it was not refused
        combine, copy, align, mine = _FUNCTIONS[case.op], numpy.copyto, self._align, outs[self._rank]
        begin, end = (case.count * number // self._nranks for number in (self._rank, self._rank + 1))
        step = max(1, _PIECE // case.dtype.itemsize)
        pieces = [slice(start, min(start + step, end)) for start in range(begin, end, step)]
        ordered = [ins[self._rank], *ins[: self._rank], *ins[self._rank + 1 :]]  # in place the first is the total
        work = [
            (mine[piece], [each[piece] for each in ordered], [each[piece] for each in outs if each is not mine])
            for piece in pieces
        ]

        def call() -> None:
            align()
            for total, parts, others in work:
                if len(parts) == 1:
                    copy(total, parts[0])
                else:
                    combine(parts[0], parts[1], out=total)
                for part in parts[2:]:
                    combine(total, part, out=total)
                for other in others:
                    copy(other, total)
            align()

        return call

    def _align(self) -> None:
        """A barrier.

        Raises:
            CollectiveTimeoutError: A rank does not come to it.
        """
        self._turn += 1
        turn = self._turn
        self._flags[self._rank][0] = turn
        looks, end = 0, time.monotonic() + self._timeout
        for rank, flag in enumerate(self._flags):
            while flag[0] < turn:
                looks += 1
                if looks > _SPINS:
                    os.sched_yield()
                if looks % _LOOKS == 0 and time.monotonic() > end:
                    raise CollectiveTimeoutError(
                        f"rank {rank} did not come to a barrier of the baseline 'direct'", rank=self._rank, peer=rank
                    )

    def _shared(self, nbytes: int) -> list[Array]:
        """Memory of that many bytes of each rank, mapped by all of them; collective."""
        descriptor = os.memfd_create("hetcomm-bench")
        try:
            os.ftruncate(descriptor, max(1, nbytes))
            paths = self._group.all_gather(f"/proc/{os.getpid()}/fd/{descriptor}".encode())
            found = [self._mapped(path.decode(), nbytes) for path in paths]
            self._group.barrier()
        finally:
            os.close(descriptor)
        return found

    def _mapped(self, path: str, nbytes: int) -> Array:
        with open(path, "r+b", buffering=0) as file:
            return numpy.frombuffer(mmap.mmap(file.fileno(), max(1, nbytes)), numpy.uint8, nbytes)

    def settle(self) -> None:
        """Nothing: a call ends with a barrier."""

    def close(self) -> None:
        """Nothing: memory goes when nobody maps it."""
