"""What a collective means, once, for planners, verifier, vendors and tests alike.

A `Collective` says what every rank passes and what every rank gets. Its meaning is `Collective.meaning`: for
each part of a rank's output, whose inputs are combined there. That one function is the postcondition of a
schedule, the meaning of a vendor call inside a schedule, and the oracle of the tests.

Counts and offsets are in elements. Vectors are whole, as in an all_reduce, or made of *blocks*, one for each rank
(all_to_all: one for each pair of ranks): `hetcomm.schedule.spec` says which. Blocks all have `count` elements, or in
the vector forms (MPI's v) the numbers in `counts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from hetcomm.errors import UsageError
from hetcomm.schedule.spec import CollectiveKind, Shape, Sources
from hetcomm.types import DataType, ReduceKind, identity

__all__ = ["Collective", "CollectiveKind", "Part"]


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a rank's output: elements `offset` to `offset + count` combine, for each of `sources`, the same
    number of elements of that rank's input from `source_offset` on. Of no sources they are the identity of the op."""

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
        count: Elements of the vector, or of one block where vectors are made of blocks; in a vector form the sum of
            `counts`.
        dtype: Element type.
        op: The reduction, where `kind` reduces. The factors of `PREMUL_SUM` are given when it is run.
        root: The special rank, where there is one.
        in_place: Input and output are one buffer, as long as the longer of the two. The input of an all_gather (and, at
            the root, of a gather) lies at its rank's block of the output, the output of a reduce_scatter (at the root,
            of a scatter) at its rank's block of the input; in an all_to_all the output replaces the input. A vector
            form of all_to_all has no in-place form.
        counts: Vector forms: elements of each block; one for each rank, for all_to_all one for each pair
            (source, target), at `source * nranks + target`.
        in_displs: Vector forms: where each block of *this rank's* input begins (reduce_scatter, at the root of a
            scatter, all_to_all); None: one behind the other. They concern this rank only, so ranks may differ in them.
        out_displs: The same for the output (all_gather, at the root of a gather, all_to_all). What lies between
            blocks is left alone.

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
    counts: tuple[int, ...] | None = None
    in_displs: tuple[int, ...] | None = None
    out_displs: tuple[int, ...] | None = None
    _offsets: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())

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
            if self.op is ReduceKind.AVG and not self.kind.row.averages:
                raise UsageError(
                    f"{name} takes no op 'avg': each rank combines another number of inputs",
                    remedy="Use 'sum', and divide by what each rank's own number is.",
                )
        if self.kind.has_root != (self.root is not None):
            raise UsageError(f"{name} {'needs a' if self.kind.has_root else 'takes no'} root")
        if self.root is not None and not 0 <= self.root < self.nranks:
            raise UsageError(
                f"root {self.root} is not a rank of this communicator",
                remedy=f"Use a root from 0 to {self.nranks - 1}.",
            )
        if self.counts is not None:
            self._check_counts(self.counts)
            object.__setattr__(self, "_offsets", (0, *accumulate(self.counts)))
        for displs, what in ((self.in_displs, "in_displs"), (self.out_displs, "out_displs")):
            if displs is not None:
                self._check_displs(displs, what)

    def _check_counts(self, counts: tuple[int, ...]) -> None:
        name, pairs = self.kind.value, self.kind.has_pairs
        if not self.kind.has_blocks:
            raise UsageError(f"{name} has no vector form, so it takes no counts")
        wanted = self.nranks**2 if pairs else self.nranks
        if len(counts) != wanted:
            raise UsageError(
                f"counts of {name} has {len(counts)} entries, not {wanted}",
                remedy=f"Give one for each {'pair of ranks' if pairs else 'rank'}.",
            )
        for number, count in enumerate(counts):
            if count < 0:
                raise UsageError(f"counts[{number}] of {name} is {count}, which is negative")
        if sum(counts) != self.count:
            raise UsageError(f"count {self.count} of {name} is not the sum of its counts, {sum(counts)}")
        if pairs and self.in_place:
            raise UsageError(f"{name} with counts has no in-place form", remedy="Pass two arrays.")

    def _check_displs(self, displs: tuple[int, ...], what: str) -> None:
        name = self.kind.value
        if self.counts is None:
            raise UsageError(f"{what} of {name} needs counts", remedy="Displacements are for the vector forms.")
        row = self.kind.row
        if (row.passes if what == "in_displs" else row.gets) is not Shape.BLOCKS:
            raise UsageError(f"{name} takes no {what}: there is only one block")
        if len(displs) != self.nranks:
            raise UsageError(
                f"{what} of {name} has {len(displs)} entries for {self.nranks} ranks", remedy="Give one for each rank."
            )
        for number, displ in enumerate(displs):
            if displ < 0:
                raise UsageError(f"{what}[{number}] of {name} is {displ}, which is negative")

    # ---- blocks

    def block_count(self, number: int) -> int:
        """Elements of the block of rank `number`; not for all_to_all."""
        return self.count if self.counts is None else self.counts[number]

    def block_offset(self, number: int) -> int:
        """Elements of all blocks before that of rank `number`, up to `nranks`; not for all_to_all."""
        return number * self.count if self.counts is None else self._offsets[number]

    def pair_count(self, source: int, target: int) -> int:
        """Elements that `source` has for `target` in an all_to_all."""
        return self.count if self.counts is None else self.counts[source * self.nranks + target]

    def sent_counts(self, source: int) -> Sequence[int]:
        """Elements that `source` has for each rank in an all_to_all."""
        if self.counts is None:
            return (self.count,) * self.nranks
        return self.counts[source * self.nranks : (source + 1) * self.nranks]

    def received_counts(self, target: int) -> Sequence[int]:
        """Elements that each rank has for `target` in an all_to_all."""
        return (self.count,) * self.nranks if self.counts is None else self.counts[target :: self.nranks]

    @property
    def total(self) -> int:
        """Elements of all blocks together (for all_to_all, of all pairs); of the vector, where there are no blocks."""
        if self.counts is not None or not self.kind.has_blocks:
            return self.count
        return self.count * self.nranks ** (2 if self.kind.has_pairs else 1)

    # ---- buffers

    def passes(self, rank: int) -> bool:
        """Whether `rank` has an input."""
        return rank == self.root or not self.kind.row.passed_by_root

    def gets(self, rank: int) -> bool:
        """Whether `rank` gets an output."""
        return rank == self.root or not self.kind.row.got_by_root

    def in_count(self, rank: int) -> int:
        """Elements of the input that `rank` passes, without gaps between blocks (0: it passes none)."""
        if not self.passes(rank):
            return 0
        if self.kind.has_pairs and self.counts is not None:
            return sum(self.sent_counts(rank))
        return self._count_of(self.kind.row.passes, rank)

    def out_count(self, rank: int) -> int:
        """Elements of the output that `rank` gets, without gaps between blocks (0: it gets none)."""
        if not self.gets(rank):
            return 0
        if self.kind.has_pairs and self.counts is not None:
            return sum(self.received_counts(rank))
        return self._count_of(self.kind.row.gets, rank)

    def _count_of(self, shape: Shape, rank: int) -> int:
        match shape:
            case Shape.VECTOR:
                return self.count
            case Shape.BLOCK:
                return self.block_count(rank)
            case Shape.BLOCKS:
                return self.count if self.counts is not None else self.count * self.nranks

    def in_blocks(self, rank: int) -> Iterator[tuple[int, int]]:
        """(where it begins in the input, elements) of each block of an input made of blocks, in rank order."""
        yield from self._blocks(rank, self.in_displs, of_input=True)

    def out_blocks(self, rank: int) -> Iterator[tuple[int, int]]:
        """The same for an output made of blocks."""
        yield from self._blocks(rank, self.out_displs, of_input=False)

    def _blocks(self, rank: int, displs: tuple[int, ...] | None, *, of_input: bool) -> Iterator[tuple[int, int]]:
        offset = 0
        for other in range(self.nranks):
            if self.kind.has_pairs:
                count = self.pair_count(rank, other) if of_input else self.pair_count(other, rank)
            else:
                count = self.block_count(other)
            yield offset if displs is None else displs[other], count
            offset += count

    def in_extent(self, rank: int) -> int:
        """Elements of the input buffer of `rank`: `in_count`, and the gaps between blocks."""
        count = self.in_count(rank)
        if self.in_displs is None or not count:
            return count
        return max(offset + count for offset, count in self.in_blocks(rank) if count)

    def out_extent(self, rank: int) -> int:
        """Elements of the output buffer of `rank`: `out_count`, and the gaps between blocks."""
        count = self.out_count(rank)
        if self.out_displs is None or not count:
            return count
        return max(offset + count for offset, count in self.out_blocks(rank) if count)

    def in_offset(self, rank: int) -> int:
        """Where in the one buffer of an in-place call the input of `rank` begins; 0 otherwise."""
        row = self.kind.row
        if not (self.in_place and row.passes is Shape.BLOCK and row.gets is Shape.BLOCKS and self.gets(rank)):
            return 0
        return self.block_offset(rank) if self.out_displs is None else self.out_displs[rank]

    def out_offset(self, rank: int) -> int:
        """Where in the one buffer of an in-place call the output of `rank` begins; 0 otherwise."""
        row = self.kind.row
        if not (self.in_place and row.passes is Shape.BLOCKS and row.gets is Shape.BLOCK and self.passes(rank)):
            return 0
        return self.block_offset(rank) if self.in_displs is None else self.in_displs[rank]

    def buffer_count(self, rank: int) -> int:
        """Elements of the one buffer that `rank` passes in place."""
        return max(self.in_extent(rank), self.out_extent(rank))

    # ---- meaning

    def meaning(self, rank: int) -> Iterator[Part]:
        """What the output of `rank` holds afterwards, as parts that cover it, empty ones included.

        The parts are in the order of the ranks, which is ascending unless `out_displs` says otherwise. A source is
        combined exactly once in each part. `AVG` then divides by `nranks`; `PREMUL_SUM` has multiplied each source by
        its own factor first. Offsets in an input count from its `in_offset`.
        """
        row = self.kind.row
        if not self.gets(rank):
            return
        if row.gets is Shape.BLOCKS:
            for source, (offset, count) in enumerate(self.out_blocks(rank)):
                yield Part(offset, count, range(source, source + 1), self._source_offset(source, rank))
        else:
            yield Part(0, self.out_count(rank), self.sources(rank), self._source_offset(self.root or 0, rank))

    def sources(self, rank: int) -> range:
        """Whose inputs are combined in the vector or the block that `rank` gets."""
        match self.kind.row.sources:
            case Sources.ONE:
                root = self.root or 0
                return range(root, root + 1)
            case Sources.ALL:
                return range(self.nranks)
            case Sources.UP_TO:
                return range(rank + 1)
            case Sources.BEFORE:
                return range(rank)

    def _source_offset(self, source: int, target: int) -> int:
        """Elements before the block for `target` in the input of `source`, packed: displacements are a rank's own."""
        if self.kind.row.passes is not Shape.BLOCKS:
            return 0
        if not self.kind.has_pairs:
            return self.block_offset(target)
        if self.counts is None:
            return target * self.count
        return self._offsets[source * self.nranks + target] - self._offsets[source * self.nranks]

    # ---- variants

    def with_in_place(self, in_place: bool) -> Collective:
        """The same collective on one buffer, or on two."""
        return replace(self, in_place=in_place)

    def agreed(self) -> Collective:
        """What all ranks must agree on: the same without `in_place` and displacements, which are each rank's own."""
        if not self.in_place and self.in_displs is None and self.out_displs is None:
            return self
        return replace(self, in_place=False, in_displs=None, out_displs=None)
