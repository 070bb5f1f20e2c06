"""The baseline `mpi`: the flat call of mpi4py on `MPI.COMM_WORLD`, buffers passed as arrays.

With more ranks than cores Open MPI needs `--mca mpi_yield_when_idle 1` to show what it can do; ranks that this command
starts have it.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy

import hetcomm
from hetcomm._cli.cases import SEND_RECV, Arrays, Case
from hetcomm._cli.contenders import Bound
from hetcomm._cli.patterns import Array
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.types import COMBINING, DataType

__all__ = ["Mpi"]

_NOT_OF_MPI = (DataType.FLOAT16, DataType.BFLOAT16)


class Mpi:
    """mpi4py's upper-case methods."""

    def __init__(self, comm: hetcomm.Communicator) -> None:
        from mpi4py import MPI

        self._mpi, self._comm, self._rank = MPI, MPI.COMM_WORLD, comm.rank

    @staticmethod
    def problem(comm: hetcomm.Communicator) -> str:
        """Why it cannot take part in this job; '' if it can."""
        if find_spec("mpi4py") is None:
            return "mpi4py is not installed"
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
            return "the job was not started by an MPI launcher"
        world = mpi.COMM_WORLD
        if (world.Get_rank(), world.Get_size()) != (comm.rank, comm.nranks):
            return "the ranks of the job are not those of MPI.COMM_WORLD"
        return ""

    def refusal(self, case: Case) -> str | None:
        """Reductions that MPI lacks."""
        if case.op is not None and case.op not in COMBINING:
            return f"MPI has no op '{case.op.value}'"
        if case.op is not None and case.dtype is DataType.BOOL and not case.op.is_logical:
            return f"MPI has no op '{case.op.value}' of bool"
        if case.op is not None and case.op.is_logical and case.nranks == 1:
            return "MPI copies what a single rank has"
        if case.op is not None and case.dtype in _NOT_OF_MPI:
            return f"MPI has no type {case.dtype.value}"
        return None

    def bind(self, case: Case, arrays: Arrays) -> Bound:
        """The method with its arguments."""
        source, target = (_known(array) for array in arrays.of(case))
        reads, writes = case.takes_part(self._rank)
        op = [getattr(self._mpi, case.op.name)] if case.op is not None else []
        root = [case.root] if case.root is not None else []
        if case.name == SEND_RECV:
            after, before = (self._rank + 1) % case.nranks, (self._rank - 1) % case.nranks
            return Bound(partial(self._comm.Sendrecv, source, after, 0, target, before, 0), arrays.output(case))
        if case.name == "broadcast":
            return Bound(partial(self._comm.Bcast, target, *root), arrays.output(case))
        if case.in_place:
            ends = self._in_place(case, target)
        else:
            ends = (source if reads else None, target if writes else None)
        undefined = case.name == CollectiveKind.EXSCAN.value and self._rank == 0
        result = arrays.output(case) if writes and not undefined else None
        if case.name == "reduce_scatter" and case.in_place:  # MPI's result is the first block on every rank
            result = arrays.of(case)[1][: case.count]
        return Bound(partial(getattr(self._comm, CollectiveKind(case.name).row.mpi), *ends, *op, *root), result)

    def _in_place(self, case: Case, buffer: Array) -> tuple[Any, Any]:
        here = case.root is None or case.root == self._rank
        if case.name == "scatter":
            return (buffer, self._mpi.IN_PLACE) if here else (None, buffer)
        return (self._mpi.IN_PLACE, buffer) if here else (buffer, None)

    def settle(self) -> None:
        """A barrier of MPI's, in which it moves everything along."""
        self._comm.Barrier()

    def close(self) -> None:
        """Nothing was made."""


def _known(array: Array) -> Array:
    """The same memory with a type that MPI moves."""
    return array.view(numpy.uint16) if array.dtype.itemsize == 2 and array.dtype.kind not in "biu" else array
