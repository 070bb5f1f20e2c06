"""One row for each collective: what a rank passes, what it gets, and what follows from that for everybody else.

`CollectiveKind` is where a collective begins; planners, verifier, reference, benchmarks and tests read its rows. What
its method takes is in `hetcomm.calls.spec`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from hetcomm.types import ReduceKind

__all__ = ["CollectiveKind", "Family", "Row", "Shape", "Sources"]


class Shape(enum.Enum):
    """What an input or an output consists of."""

    VECTOR = "vector"
    BLOCK = "block"
    """That of this rank."""
    BLOCKS = "blocks"
    """One for each rank."""


class Sources(enum.Enum):
    """Whose inputs an element of the output of rank r combines."""

    ONE = "one"
    """No one's but the root's, or that of the rank that the block is from: nothing is combined."""
    ALL = "all"
    UP_TO = "up to"
    """Those of ranks 0 to r."""
    BEFORE = "before"
    """Those of ranks 0 to r - 1."""


class Family(enum.Enum):
    """Collectives whose plans have one shape."""

    VENDOR = "vendor"
    """What every vendor's library offers: calls of it inside clusters, hubs between them."""
    EXCHANGE = "exchange"
    """Blocks from rank to rank, put together on their way between clusters."""
    SCAN = "scan"
    """A prefix that goes from run to run of the rank order."""


@dataclass(frozen=True, slots=True)
class Row:
    """What there is to know about a collective.

    Attributes:
        family: Which planners it has.
        passes: What a rank passes.
        gets: What a rank gets.
        sources: Whose inputs are combined in it.
        passed_by_root: Only the root passes something.
        got_by_root: Only the root gets something.
        mpi: The method of mpi4py that does the same.
        bus_factor: busbw over algbw for so many ranks, as nccl-tests has it.
        averages: The op avg has a meaning, where others have.
    """

    family: Family
    passes: Shape
    gets: Shape
    sources: Sources
    mpi: str
    bus_factor: Callable[[int], float]
    passed_by_root: bool = False
    got_by_root: bool = False
    averages: bool = True


def _once(nranks: int) -> float:
    return 1.0


def _other_blocks(nranks: int) -> float:
    return (nranks - 1) / nranks


def _there_and_back(nranks: int) -> float:
    return 2 * (nranks - 1) / nranks


_VECTOR, _BLOCK, _BLOCKS = Shape.VECTOR, Shape.BLOCK, Shape.BLOCKS
_VENDOR, _EXCHANGE, _SCAN = Family.VENDOR, Family.EXCHANGE, Family.SCAN


class CollectiveKind(enum.Enum):
    """The collectives there are; a vector form is a collective of the same kind with `counts`."""

    ALL_REDUCE = "all_reduce"
    REDUCE = "reduce"
    BROADCAST = "broadcast"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    GATHER = "gather"
    SCATTER = "scatter"
    ALL_TO_ALL = "all_to_all"
    SCAN = "scan"
    EXSCAN = "exscan"

    @property
    def row(self) -> Row:
        """Everything about it."""
        return _ROWS[self._value_]

    @property
    def reduces(self) -> bool:
        """Whether it combines elements of several ranks."""
        return self.row.sources is not Sources.ONE

    @property
    def has_root(self) -> bool:
        """Whether one rank is special."""
        return self.row.passed_by_root or self.row.got_by_root

    @property
    def has_blocks(self) -> bool:
        """Whether its vectors are made of blocks, so that it has a vector form."""
        return self.row.passes is not Shape.VECTOR

    @property
    def has_pairs(self) -> bool:
        """Whether there is a block for each pair of ranks."""
        return self.row.passes is self.row.gets is Shape.BLOCKS

    @property
    def is_same_everywhere(self) -> bool:
        """Whether every rank gets the same output."""
        row = self.row
        shared = row.gets is Shape.VECTOR or (row.gets is Shape.BLOCKS and row.passes is Shape.BLOCK)
        return shared and row.sources in (Sources.ONE, Sources.ALL) and not row.got_by_root

    @property
    def ops(self) -> tuple[ReduceKind | None, ...]:
        """The reductions it takes; None alone where it reduces nothing."""
        if not self.reduces:
            return (None,)
        return tuple(op for op in ReduceKind if op is not ReduceKind.AVG or self.row.averages)


_ROWS: dict[str, Row] = {
    "all_reduce": Row(_VENDOR, _VECTOR, _VECTOR, Sources.ALL, "Allreduce", _there_and_back),
    "reduce": Row(_VENDOR, _VECTOR, _VECTOR, Sources.ALL, "Reduce", _once, got_by_root=True),
    "broadcast": Row(_VENDOR, _VECTOR, _VECTOR, Sources.ONE, "Bcast", _once, passed_by_root=True),
    "all_gather": Row(_VENDOR, _BLOCK, _BLOCKS, Sources.ONE, "Allgather", _other_blocks),
    "reduce_scatter": Row(_VENDOR, _BLOCKS, _BLOCK, Sources.ALL, "Reduce_scatter_block", _other_blocks),
    "gather": Row(_EXCHANGE, _BLOCK, _BLOCKS, Sources.ONE, "Gather", _other_blocks, got_by_root=True),
    "scatter": Row(_EXCHANGE, _BLOCKS, _BLOCK, Sources.ONE, "Scatter", _other_blocks, passed_by_root=True),
    "all_to_all": Row(_EXCHANGE, _BLOCKS, _BLOCKS, Sources.ONE, "Alltoall", _other_blocks),
    "scan": Row(_SCAN, _VECTOR, _VECTOR, Sources.UP_TO, "Scan", _once, averages=False),
    "exscan": Row(_SCAN, _VECTOR, _VECTOR, Sources.BEFORE, "Exscan", _once, averages=False),
}
