"""The vendor `gloo`: Gloo, as PyTorch brings it, on host memory.

hetcomm makes `ProcessGroupGloo` objects of its own: PyTorch's default process group is neither needed nor touched. What
Gloo keeps in a store goes over the bootstrap's group, so no port is open that strangers could find. Each object has
a thread that runs its collectives in the order of the calls; here it is only looked whether they are done.

What is not left to the library, as tried with PyTorch 2.13:

* Types: it reduces int8, uint8, int32, int64, float32 and float64. Sums and products of uint32 and uint64 are those of
  the signed types, and everything that is only moved travels as bytes.
* min and max of floats: it compares with `<` and loses NaN.
* float16 and bfloat16: it rounds after each addition.
* Logical operations, which it lacks, and reductions of bool, which it takes for a byte: hetcomm's own messages do them.
* reduce_scatter: PyTorch makes it of an all_reduce, which moves twice as much, and completes it only for who waits in
  it. Here the ranks exchange blocks, and each combines its own in rank order.
* Out of place: PyTorch's all_reduce, reduce and broadcast take one array. The input is copied to the output first; a
  rank without output takes part in a reduce with a scratch copy, since partial results end up in it.
"""

from __future__ import annotations

import ctypes
import dataclasses
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind, has_meaning
from hetcomm.vendors import compose, gloo_wiring
from hetcomm.vendors.base import (
    COLLECTIVES,
    Availability,
    Capabilities,
    Group,
    Operation,
    VendorCommunicator,
)
from hetcomm.vendors.host import HostCommunicator

__all__ = ["GlooVendor"]

_NEVER = timedelta(days=7)  # calls have the executor's deadline

# As what elements are reduced, in PyTorch's names.
_DATATYPES = {
    DataType.INT8: "int8",
    DataType.UINT8: "uint8",
    DataType.INT32: "int32",
    DataType.UINT32: "int32",
    DataType.INT64: "int64",
    DataType.UINT64: "int64",
    DataType.FLOAT32: "float32",
    DataType.FLOAT64: "float64",
}
_OPS = {
    ReduceKind.SUM: "SUM",
    ReduceKind.PROD: "PRODUCT",
    ReduceKind.MIN: "MIN",
    ReduceKind.MAX: "MAX",
    ReduceKind.BAND: "BAND",
    ReduceKind.BOR: "BOR",
    ReduceKind.BXOR: "BXOR",
}
_ORDERING = (ReduceKind.MIN, ReduceKind.MAX)
_NOT_REDUCED = (DataType.INT16, DataType.UINT16, DataType.FLOAT16, DataType.BFLOAT16)
_NOT_COMPARED = (DataType.UINT32, DataType.UINT64, DataType.FLOAT32, DataType.FLOAT64)
_COMPLEX = (DataType.COMPLEX64, DataType.COMPLEX128)

_CAPABILITIES = Capabilities(
    memory=frozenset({MemoryKind.HOST}),
    collectives=COLLECTIVES,
    dtypes=frozenset(DataType),
    ops=frozenset(_OPS),
    refused=frozenset((DataType.BOOL, op) for op in _OPS),
    composed=frozenset(
        [
            *((dtype, op) for dtype in _NOT_REDUCED for op in _OPS if has_meaning(op, dtype)),
            *((dtype, op) for dtype in _NOT_COMPARED for op in _ORDERING),
            *((dtype, op) for dtype in _COMPLEX for op in (ReduceKind.SUM, ReduceKind.PROD)),
        ]
    ),
)


class GlooVendor:
    """Makes Gloo communicators; needs no MPI and no `torch.distributed.init_process_group`, only the group."""

    name = "gloo"
    capabilities = _CAPABILITIES

    def availability(self) -> Availability:
        """Whether PyTorch is installed; it is imported by `create` only."""
        if find_spec("torch") is None:
            reason = "PyTorch, which brings Gloo, is not installed"
            return Availability(False, reason=reason, remedy=gloo_wiring.INSTALL)
        try:
            return Availability(True, version=f"PyTorch {version('torch')}")
        except PackageNotFoundError:
            return Availability(True, version="PyTorch")

    def create(self, group: Group) -> VendorCommunicator:
        """A communicator over `group`; collective.

        It listens on the interfaces that `GLOO_SOCKET_IFNAME` names, with commas between them as many on each rank;
        otherwise on the loopback if all ranks are on one host, else on the interface that leads to the others.

        Raises:
            VendorError: On each rank alike where PyTorch is missing or lacks Gloo on one of them, or an interface
                cannot be used; on each rank for itself where they cannot connect.
        """
        if group.nranks == 1:
            return HostCommunicator(self.name, self.capabilities, 0, 1, None)
        library = _GlooLibrary(gloo_wiring.connect(group))
        return HostCommunicator(self.name, self.capabilities, group.rank, group.nranks, library)


class _GlooLibrary:
    """One `ProcessGroupGloo`."""

    def __init__(self, connection: gloo_wiring.Connection) -> None:
        self._connection = connection
        self._torch = torch = gloo_wiring.load()
        self._c10d = torch.distributed.distributed_c10d
        self._dtypes = {dtype: getattr(torch, name) for dtype, name in _DATATYPES.items()}
        self._ops = {op: getattr(self._c10d.ReduceOp, name) for op, name in _OPS.items()}
        self._spare: list[Memory] = []

    def start(
        self, collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None
    ) -> Operation:
        return gloo_wiring.call(lambda: self._start(collective, rank, in_memory, out_memory), collective.kind.value)

    def progress(self) -> None:
        """Nothing: it has a thread."""

    def release(self) -> None:
        """Let go when all ranks do: connections that end under a call are its failure."""
        gloo_wiring.call(self._connection.close, "closing a communicator")

    def abandon(self) -> None:
        """Destroying it would wait for what is under way: it is left to the process."""

    def interrupt(self) -> None:
        """Gloo cannot cancel a collective, but one whose connections end fails."""
        self._connection.cut()

    def _start(
        self, collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None
    ) -> Operation:
        source = compose.input_of(collective, rank, in_memory, out_memory)
        target = compose.output_of(collective, rank, out_memory)
        match collective.kind:
            case CollectiveKind.REDUCE_SCATTER:
                return self._reduce_scatter(collective, source, target)
            case CollectiveKind.REDUCE:
                return self._reduce(collective, source, target)
            case CollectiveKind.ALL_GATHER:
                return self._run("_allgather_base", "AllgatherOptions", self._bytes(target), self._bytes(source))
        if source is not None and target is not None:
            compose.copy(source, target)
        if collective.kind is CollectiveKind.BROADCAST:
            return self._run("broadcast", "BroadcastOptions", [self._bytes(target)], rootRank=collective.root)
        return self._run("allreduce", "AllreduceOptions", [self._elements(target)], reduceOp=self._op(collective))

    def _reduce(self, collective: Collective, source: Memory | None, target: Memory | None) -> Operation:
        assert source is not None  # every rank passes an input
        scratch = self._borrow(source) if target is None else target
        compose.copy(source, scratch)
        operation = self._run(
            "reduce",
            "ReduceOptions",
            [self._elements(scratch)],
            reduceOp=self._op(collective),
            rootRank=collective.root,
        )
        return operation if target is not None else compose.Then(operation, lambda: self._give_back(scratch))

    def _reduce_scatter(self, collective: Collective, source: Memory | None, target: Memory | None) -> Operation:
        assert source is not None  # every rank has both
        assert target is not None
        assert collective.op is not None
        combine = compose.NUMPY_REDUCTION[collective.op]
        blocks = self._borrow(source)
        operation = self._run("alltoall_base", "AllToAllOptions", self._bytes(blocks), self._bytes(source), [], [])

        def finish() -> None:
            first, *others = compose.as_array(blocks).reshape(collective.nranks, -1)
            out = compose.as_array(target)
            with np.errstate(all="ignore"):
                combine(first, others[0], out=out)
                for other in others[1:]:
                    combine(out, other, out=out)
            self._give_back(blocks)

        return compose.Then(operation, finish, blocks)

    def _run(self, name: str, options: str, *arguments: Any, **settings: Any) -> Operation:
        """Start the backend's method `name` with options of that type, set so."""
        chosen = getattr(self._c10d, options)()
        chosen.timeout = _NEVER
        for setting, value in settings.items():
            setattr(chosen, setting, value)
        return _Work(getattr(self._connection.backend, name)(*arguments, chosen))

    def _op(self, collective: Collective) -> Any:
        assert collective.op is not None  # it reduces
        return self._ops[collective.op]

    def _elements(self, memory: Memory | None) -> Any:
        """The memory as a tensor of the type it is reduced as."""
        assert memory is not None  # its rank has it
        return self._torch.frombuffer(_buffer(memory), dtype=self._dtypes[memory.dtype])

    def _bytes(self, memory: Memory | None) -> Any:
        """The memory as a tensor of bytes."""
        assert memory is not None  # its rank has it
        return self._torch.frombuffer(_buffer(memory), dtype=self._torch.uint8)

    def _borrow(self, like: Memory) -> Memory:
        """Scratch memory of that length and type; what was given back is used again, since new pages are slow."""
        for index, spare in enumerate(self._spare):
            if spare.count >= like.nbytes:
                del self._spare[index]
                break
        else:
            spare = compose.as_memory(np.empty(like.nbytes, np.uint8), DataType.UINT8)
        return dataclasses.replace(spare, count=like.count, dtype=like.dtype)

    def _give_back(self, memory: Memory) -> None:
        whole = compose.as_memory(memory.owner, DataType.UINT8)
        self._spare = [*self._spare, whole][-2:]


class _Work:
    """A call that Gloo's thread runs. It is looked at, never waited for."""

    __slots__ = ("_work",)

    def __init__(self, work: Any) -> None:
        self._work = work

    def test(self) -> bool:
        if self._work is not None and self._work.is_completed():
            gloo_wiring.call(self._work.wait, "a collective")  # is over, so this only raises what went wrong
            self._work = None
        return self._work is None


def _buffer(memory: Memory) -> Any:
    return (ctypes.c_char * memory.nbytes).from_address(memory.address)
