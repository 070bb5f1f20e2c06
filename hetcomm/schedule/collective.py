"""What a collective means, once, for planners, verifier, vendors and tests alike.

A `Collective` says what every rank passes and what every rank gets. Its meaning is `Collective.meaning`: for
each part of a rank's output, whose inputs are combined there. That one function is the postcondition of a
schedule, the meaning of a vendor call inside a schedule, and the oracle of the tests.

Counts and offsets are in elements. `count` is the length of the vector for all_reduce, reduce and broadcast,
and the length of one rank's block for the collectives that gather or scatter.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hetcomm.errors import UsageError
from hetcomm.types import DataType, ReduceKind, identity

__all__ = ["Collective", "CollectiveKind", "Part"]


class CollectiveKind(enum.Enum):
    """The collectives there are."""

    ALL_REDUCE = "all_reduce"
    REDUCE = "reduce"
    BROADCAST = "broadcast"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"

    @property
    def reduces(self) -> bool:
        """Whether it combines elements of several ranks."""
        return self in (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE, CollectiveKind.REDUCE_SCATTER)

    @property
    def has_root(self) -> bool:
        """Whether one rank is special."""
        return self in (CollectiveKind.REDUCE, CollectiveKind.BROADCAST)


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a rank's output: elements `offset` to `offset + count` combine, for each of `sources`, the same
    number of elements of that rank's input from `source_offset` on."""

    offset: int
    count: int
    sources: range
    source_offset: int


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective operation over `nranks` ranks.

    Attributes:
        kind: Which.
        nranks: How many ranks take part.
        count: Elements of the vector (all_reduce, reduce, broadcast) or of one rank's block (the others).
        dtype: Element type.
        op: The reduction, where `kind` reduces. The factors of `PREMUL_SUM` are given when it is run.
        root: The special rank, where there is one.
        in_place: Input and output are one buffer, as long as the longer of the two: the all_gather's input lies at
            its rank's block of the output, and the reduce_scatter's output at its rank's block of the input.

    Raises:
        UsageError: The fields contradict one another; the message names the field.
    """

    kind: CollectiveKind
    nranks: int
    count: int
    dtype: DataType
    op: ReduceKind | None = None
    root: int | None = None
    in_place: bool = False

    def __post_init__(self) -> None:
        name = self.kind.value
        if self.nranks < 1:
            raise UsageError(f"nranks {self.nranks} is less than one")
        if self.count < 0:
            raise UsageError(f"count {self.count} of {name} is negative")
        if self.kind.reduces != (self.op is not None):
            raise UsageError(f"{name} {'needs an' if self.kind.reduces else 'takes no'} op")
        if self.op is not None:
            identity(self.op, self.dtype)  # raises where the op has no meaning for the dtype
        if self.kind.has_root != (self.root is not None):
            raise UsageError(f"{name} {'needs a' if self.kind.has_root else 'takes no'} root")
        if self.root is not None and not 0 <= self.root < self.nranks:
            raise UsageError(
                f"root {self.root} is not a rank of this communicator",
                remedy=f"Use a root from 0 to {self.nranks - 1}.",
            )

    def in_count(self, rank: int) -> int:
        """Elements of the input that `rank` passes (0: it passes none)."""
        if self.kind is CollectiveKind.BROADCAST:
            return self.count if rank == self.root else 0
        return self.nranks * self.count if self.kind is CollectiveKind.REDUCE_SCATTER else self.count

    def out_count(self, rank: int) -> int:
        """Elements of the output that `rank` gets (0: it gets none)."""
        if self.kind is CollectiveKind.REDUCE:
            return self.count if rank == self.root else 0
        return self.nranks * self.count if self.kind is CollectiveKind.ALL_GATHER else self.count

    def in_offset(self, rank: int) -> int:
        """Where in the one buffer of an in-place call the input of `rank` begins; 0 otherwise."""
        return rank * self.count if self.in_place and self.kind is CollectiveKind.ALL_GATHER else 0

    def out_offset(self, rank: int) -> int:
        """Where in the one buffer of an in-place call the output of `rank` begins; 0 otherwise."""
        return rank * self.count if self.in_place and self.kind is CollectiveKind.REDUCE_SCATTER else 0

    def buffer_count(self, rank: int) -> int:
        """Elements of the one buffer that `rank` passes in place."""
        return max(self.in_count(rank), self.out_count(rank))

    def meaning(self, rank: int) -> Iterator[Part]:
        """What the output of `rank` holds afterwards, as parts in ascending order that cover it.

        A source is combined exactly once in each part. `AVG` then divides by `nranks`; `PREMUL_SUM` has multiplied each
        source by its own factor first.
        """
        match self.kind:
            case CollectiveKind.ALL_GATHER:
                for source in range(self.nranks):
                    yield Part(source * self.count, self.count, range(source, source + 1), 0)
            case CollectiveKind.REDUCE_SCATTER:
                yield Part(0, self.count, range(self.nranks), rank * self.count)
            case CollectiveKind.BROADCAST:
                root = self.root or 0
                yield Part(0, self.count, range(root, root + 1), 0)
            case CollectiveKind.ALL_REDUCE | CollectiveKind.REDUCE:
                if self.out_count(rank):
                    yield Part(0, self.count, range(self.nranks), 0)

    def with_in_place(self, in_place: bool) -> Collective:
        """The same collective on one buffer, or on two."""
        return replace(self, in_place=in_place)
