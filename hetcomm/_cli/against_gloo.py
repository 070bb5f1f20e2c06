"""The baseline `gloo`: PyTorch's Gloo over all ranks, on tensors that are the arrays.

Its backend is called directly; the functions of `torch.distributed` around it would only add to its times. Gloo adds in
place, so out of place its time has a copy, as in any program that uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

import hetcomm
from hetcomm._cli.cases import SEND_RECV, Arrays, Case
from hetcomm._cli.contenders import Bound, output
from hetcomm._cli.patterns import Array
from hetcomm.schedule.spec import Family
from hetcomm.types import DataType, ReduceKind
from hetcomm.vendors import gloo_wiring, registry

__all__ = ["Gloo"]

_OPS = {
    ReduceKind.SUM: "SUM",
    ReduceKind.PROD: "PRODUCT",
    ReduceKind.MIN: "MIN",
    ReduceKind.MAX: "MAX",
    ReduceKind.BAND: "BAND",
    ReduceKind.BOR: "BOR",
    ReduceKind.BXOR: "BXOR",
}
_REDUCED = {
    DataType.INT8: "int8",
    DataType.UINT8: "uint8",
    DataType.INT32: "int32",
    DataType.INT64: "int64",
    DataType.FLOAT16: "float16",
    DataType.BFLOAT16: "bfloat16",
    DataType.FLOAT32: "float32",
    DataType.FLOAT64: "float64",
}


class Gloo:
    """A `ProcessGroupGloo`; collective to make.

    Raises:
        VendorError: The ranks cannot connect.
    """

    def __init__(self, comm: hetcomm.Communicator) -> None:
        self._torch = gloo_wiring.load()
        self._c10d = self._torch.distributed.distributed_c10d
        self._torch.set_num_threads(1)
        self._connection = gloo_wiring.connect(comm._parts.group)
        self._rank, self._nranks = comm.rank, comm.nranks

    @staticmethod
    def problem(comm: hetcomm.Communicator) -> str:
        """Why it cannot take part in this job; '' if it can."""
        state = registry.vendor("gloo").availability()
        return "" if state.usable else state.reason

    def refusal(self, case: Case) -> str | None:
        """What PyTorch's Gloo lacks."""
        if case.op is not None and case.op not in _OPS:
            return f"Gloo has no op '{case.op.value}'"
        if case.op is not None and case.dtype not in _REDUCED:
            return f"Gloo reduces no {case.dtype.value}"
        if case.collective is not None and case.collective.kind.row.family is Family.SCAN:
            return f"Gloo has no {case.name}"
        if case.in_place and case.name == "all_to_all":
            return "Gloo's all_to_all has no in-place form"
        if case.name == SEND_RECV and case.nranks == 1:
            return "Gloo sends nothing to itself"
        return None

    def bind(self, case: Case, arrays: Arrays) -> Bound:
        """The backend's method, and the wait for what it starts."""
        source, target = arrays.of(case)
        if case.in_place:
            source = self._own_part(case, arrays)
        reads, writes = case.takes_part(self._rank)
        ins = self._tensor(source, case) if reads else None
        outs = self._tensor(arrays.output(case) if case.in_place else target, case) if writes else None
        result = output(case, arrays, self._rank)
        return Bound(self._call(case, source, target, ins, outs), result)

    def _own_part(self, case: Case, arrays: Arrays) -> Array:
        """The input of an in-place call."""
        buffer, collective = arrays.of(case)[1], case.collective
        if collective is None:
            return buffer
        offset = collective.in_offset(self._rank)
        return buffer[offset : offset + collective.in_count(self._rank)] if case.takes_part(self._rank)[0] else buffer

    def _tensor(self, array: Array, case: Case) -> Any:
        """The array as a tensor: of its own type where it is reduced, of bytes where it is moved."""
        raw = self._torch.from_numpy(array.view(numpy.uint8))
        return raw if case.op is None else raw.view(getattr(self._torch, _REDUCED[case.dtype]))

    def _call(self, case: Case, source: Array, target: Array, ins: Any, outs: Any) -> Callable[[], Any]:
        backend, n = self._connection.backend, self._nranks
        match case.name:
            case "all_reduce":
                options = self._options("Allreduce", case)
                return _copied(source, target, case, lambda: backend.allreduce([outs], options).wait())
            case "reduce":
                return self._reduce(case, source, target, ins, outs)
            case "broadcast":
                options, both = self._options("Broadcast", case), self._tensor(target, case)
                return lambda: backend.broadcast([both], options).wait()
            case "all_gather":
                options = self._options("Allgather", case)
                return lambda: backend._allgather_base(outs, ins, options).wait()
            case "reduce_scatter":
                options = self._options("ReduceScatter", case)
                return lambda: backend._reduce_scatter_base(outs, ins, options).wait()
            case "gather":
                options, parts = self._options("Gather", case), [] if outs is None else [list(outs.chunk(n))]
                return lambda: backend.gather(parts, [ins], options).wait()
            case "scatter":
                options, parts = self._options("Scatter", case), [] if ins is None else [list(ins.chunk(n))]
                return lambda: backend.scatter([outs], parts, options).wait()
            case "all_to_all":
                options = self._options("AllToAll", case)
                return lambda: backend.alltoall_base(outs, ins, [], [], options).wait()
            case _:
                return self._send_recv(ins, outs)

    def _reduce(self, case: Case, source: Array, target: Array, ins: Any, outs: Any) -> Callable[[], Any]:
        """Partial results end up in the tensors of all ranks, so what is no output is a copy."""
        backend, options = self._connection.backend, self._options("Reduce", case)
        if case.in_place:
            return lambda: backend.reduce([ins], options).wait()
        if outs is None:
            target = numpy.empty_like(source)
            outs = self._tensor(target, case)
        return _copied(source, target, case, lambda: backend.reduce([outs], options).wait())

    def _send_recv(self, ins: Any, outs: Any) -> Callable[[], Any]:
        backend, after, before = self._connection.backend, (self._rank + 1), (self._rank - 1)

        def call() -> None:
            sent = backend.send([ins], after % self._nranks, 0)
            backend.recv([outs], before % self._nranks, 0).wait()
            sent.wait()

        return call

    def _options(self, name: str, case: Case) -> Any:
        options = getattr(self._c10d, f"{name}Options")()
        if case.op is not None:
            options.reduceOp = getattr(self._c10d.ReduceOp, _OPS[case.op])
        if case.root is not None:
            options.rootRank = case.root
        return options

    def settle(self) -> None:
        """Nothing: Gloo has a thread that moves what others need."""

    def close(self) -> None:
        """Destroy it when all ranks do."""
        self._connection.close()


def _copied(source: Array, target: Array, case: Case, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call, after a copy of the input to where it is replaced by the result."""
    if case.in_place:
        return call

    def both() -> None:
        numpy.copyto(target, source)
        call()

    return both
