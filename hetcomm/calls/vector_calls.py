"""The same as `hetcomm.calls.calls` for the vector forms, whose blocks differ in length.

`counts` are needed on every rank, since each plans the whole exchange from them. Displacements say where the blocks of
this rank's own array lie: blocks that are written must not overlap, and the array may be longer than they reach;
without displacements it has exactly the sum of the counts. An array of no element may be None, unless the rank passes
no other: its dtype would not be known. What is between blocks is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from hetcomm.calls.arguments import (
    Call,
    check_factor_of,
    check_integers,
    check_op,
    check_root,
    check_same_kind,
    missing,
    refuse_overlap,
    unless_in_place,
    vector_collective,
    wrong_size,
)
from hetcomm.calls.buffers import memory
from hetcomm.errors import UsageError
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.types import DataType, Memory, ReduceOp

__all__ = [
    "ExchangeArrays",
    "all_gather_v",
    "all_to_all_v",
    "exchange_arrays",
    "gather_v",
    "reduce_scatter_v",
    "scatter_v",
    "splits",
]


def all_gather_v(in_array: Any, out_array: Any, counts: Any, displs: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.all_gather_v`; in place, the one array may be passed as either."""
    blocks = _blocks(_counts(counts, rank, nranks), displs, "displs", rank, written=True)
    if out_array is None:
        whole = _whole(in_array, "in_array", blocks, rank, writable=True)
        return _gathering(CollectiveKind.ALL_GATHER, None, whole, blocks, None, rank)
    whole = _whole(out_array, "out_array", blocks, rank, writable=True)
    return _gathering(CollectiveKind.ALL_GATHER, in_array, whole, blocks, None, rank)


def gather_v(in_array: Any, out_array: Any, counts: Any, root: Any, displs: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.gather_v`; `out_array` and `displs` are ignored on ranks other than the root.

    At the root, the call is in place if `in_array` is None or the root's block of `out_array`.
    """
    root = check_root(root, rank, nranks)
    parsed = _counts(counts, rank, nranks)
    kind = CollectiveKind.GATHER
    if rank != root:
        src = _part(in_array, "in_array", parsed[rank], rank, writable=False)
        return Call(vector_collective(kind, nranks, parsed, src.dtype, root=root, rank=rank), src, None)
    blocks = _blocks(parsed, displs, "displs", rank, written=True)
    if out_array is not None:
        whole = _whole(out_array, "out_array", blocks, rank, writable=True)
        return _gathering(kind, in_array, whole, blocks, root, rank)
    if blocks.extent:
        remedy = f"Pass an array of {blocks.extent} elements; in place, leave in_array out instead."
        raise missing("out_array", "this rank is the root, which gets all blocks", remedy, rank)
    src = _part(in_array, "in_array", 0, rank, writable=False)
    return Call(vector_collective(kind, nranks, parsed, src.dtype, root=root, rank=rank), src, None)


def reduce_scatter_v(in_array: Any, out_array: Any, counts: Any, op: Any, displs: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.reduce_scatter_v`; in place, this rank's block of the one array is the output.

    A rank whose block is empty may leave `out_array` out; its input is only read then.
    """
    blocks = _blocks(_counts(counts, rank, nranks), displs, "displs", rank, written=False)
    return _scattering(CollectiveKind.REDUCE_SCATTER, in_array, out_array, blocks, check_op(op, rank), None, rank)


def scatter_v(in_array: Any, out_array: Any, counts: Any, root: Any, displs: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.scatter_v`; `in_array` and `displs` are ignored on ranks other than the root.

    At the root, the call is in place if `out_array` is None or the root's block of `in_array`, which is only read.
    """
    root = check_root(root, rank, nranks)
    parsed = _counts(counts, rank, nranks)
    kind = CollectiveKind.SCATTER
    if rank != root:
        dst = _part(out_array, "out_array", parsed[rank], rank, writable=True)
        return Call(vector_collective(kind, nranks, parsed, dst.dtype, root=root, rank=rank), None, dst)
    return _scattering(
        kind, in_array, out_array, _blocks(parsed, displs, "displs", rank, written=False), None, root, rank
    )


def splits(in_counts: Any, out_counts: Any, rank: int, nranks: int) -> tuple[int, ...]:
    """What a rank tells all others before an all_to_all_v: what it has for each rank, then what it awaits from each."""
    return (
        *check_integers(in_counts, "in_counts", rank, nranks),
        *check_integers(out_counts, "out_counts", rank, nranks),
    )


@dataclass(frozen=True, slots=True)
class ExchangeArrays:
    """The arrays of one rank's all_to_all_v, as far as it can check them before any other has told its counts.

    Attributes:
        source, target: Input and output; not both are None.
        dtype: Theirs.
        in_displs, out_displs: Where the blocks in them begin; None: one behind the other.
    """

    source: Memory | None
    target: Memory | None
    dtype: DataType
    in_displs: tuple[int, ...] | None
    out_displs: tuple[int, ...] | None


def all_to_all_v(arrays: ExchangeArrays, gathered: Sequence[Sequence[int]], rank: int, nranks: int) -> Call:
    """The call of `Communicator.all_to_all_v`, which has no in-place form; `gathered` holds the `splits` of each rank.

    Raises:
        UsageError: With one text on every rank, if two ranks differ in what one has for the other.
    """
    collective = vector_collective(
        CollectiveKind.ALL_TO_ALL,
        nranks,
        _agreed(gathered, nranks),
        arrays.dtype,
        rank=rank,
        in_displs=arrays.in_displs,
        out_displs=arrays.out_displs,
    )
    return Call(collective, arrays.source, arrays.target)


def exchange_arrays(
    in_array: Any, out_array: Any, said: Sequence[int], in_displs: Any, out_displs: Any, rank: int, nranks: int
) -> ExchangeArrays:
    """What this rank alone can check of an all_to_all_v.

    Args:
        in_array, out_array, in_displs, out_displs: As for `Communicator.all_to_all_v`.
        said: This rank's `splits`.
        rank, nranks: As everywhere here.
    """
    sent = _blocks(tuple(said[:nranks]), in_displs, "in_displs", rank, written=False)
    received = _blocks(tuple(said[nranks:]), out_displs, "out_displs", rank, written=True)
    if out_array is None and received.extent:
        remedy = f"Pass an array of {received.extent} elements: all_to_all_v has no in-place form."
        raise missing("out_array", "this rank receives elements", remedy, rank)
    if in_array is None and out_array is None:
        raise _unknown_dtype("in_array", rank)
    src = dst = None
    if in_array is not None or sent.extent:
        src = _whole(in_array, "in_array", sent, rank, writable=False)
    if out_array is not None:
        dst = _whole(out_array, "out_array", received, rank, writable=True)
    if src is not None and dst is not None:
        check_same_kind(src, dst, rank)
        refuse_overlap(src, dst, "since all_to_all_v has no in-place form", rank)
    one = src if src is not None else dst
    assert one is not None  # refused above
    return ExchangeArrays(src, dst, one.dtype, sent.displs, received.displs)


def _gathering(
    kind: CollectiveKind, in_array: Any, whole: Memory, blocks: _Blocks, root: int | None, rank: int
) -> Call:
    """A call on a rank that gets all blocks into `whole`."""
    src = None
    if in_array is not None:
        src = _part(in_array, "in_array", blocks.counts[rank], rank, writable=False)
        check_same_kind(src, whole, rank)
        src = unless_in_place(src, whole, blocks.offset(rank), rank)
    collective = vector_collective(
        kind,
        len(blocks.counts),
        blocks.counts,
        whole.dtype,
        rank=rank,
        root=root,
        in_place=src is None,
        out_displs=blocks.displs,
    )
    return Call(collective, src, whole)


def _scattering(
    kind: CollectiveKind,
    in_array: Any,
    out_array: Any,
    blocks: _Blocks,
    op: ReduceOp | None,
    root: int | None,
    rank: int,
) -> Call:
    """A call on a rank that has all blocks."""
    count = blocks.counts[rank]
    in_place = out_array is None and count > 0
    whole = dst = None
    if in_array is not None or blocks.extent or out_array is None:
        whole = _whole(in_array, "in_array", blocks, rank, writable=in_place and op is not None)
    if out_array is not None:
        dst = _part(out_array, "out_array", count, rank, writable=True)
    if whole is not None and dst is not None:
        check_same_kind(whole, dst, rank)
        in_place = unless_in_place(dst, whole, blocks.offset(rank), rank) is None
    one = whole if whole is not None else dst
    assert one is not None  # without out_array, in_array was needed
    collective = vector_collective(
        kind,
        len(blocks.counts),
        blocks.counts,
        one.dtype,
        rank=rank,
        op=op,
        root=root,
        in_place=in_place,
        in_displs=blocks.displs,
    )
    factor = None if op is None else check_factor_of(op, one.dtype, rank)
    return Call(collective, None, whole, factor) if in_place else Call(collective, whole, dst, factor)


# ---- counts and displacements


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Where the blocks of one array lie.

    Attributes:
        counts: Elements of each.
        displs: Where each begins; None: one behind the other. Of empty blocks, 0.
        extent: Elements up to the end of the last.
        exact: The array must have so many, no more.
    """

    counts: tuple[int, ...]
    displs: tuple[int, ...] | None
    extent: int
    exact: bool

    def offset(self, number: int) -> int:
        """Where block `number` begins."""
        return sum(self.counts[:number]) if self.displs is None else self.displs[number]


def _counts(counts: Any, rank: int, nranks: int) -> tuple[int, ...]:
    if counts is None:
        why = "every rank needs the counts of all ranks: each plans the whole exchange from them"
        raise missing("counts", why, f"Pass the same {nranks} integers on every rank.", rank)
    return check_integers(counts, "counts", rank, nranks)


def _blocks(counts: tuple[int, ...], displs: Any, argument: str, rank: int, *, written: bool) -> _Blocks:
    if displs is None:
        return _Blocks(counts, None, sum(counts), exact=True)
    given = check_integers(displs, argument, rank, len(counts))
    runs = sorted((given[number], count, number) for number, count in enumerate(counts) if count)
    if written:
        for (start, count, number), (after, _, other) in pairwise(runs):
            if start + count > after:
                raise UsageError(
                    f"argument {argument!r} makes the blocks of ranks {number} and {other} overlap: one is elements "
                    f"{start} to {start + count}, the other begins at {after}",
                    remedy="Leave room for counts[r] elements from displs[r] on, for each rank r.",
                    rank=rank,
                )
    offsets = accumulate(counts, initial=0)
    packed = all(not count or displ == offset for count, displ, offset in zip(counts, given, offsets, strict=False))
    placed = None if packed else tuple(displ if count else 0 for displ, count in zip(given, counts, strict=True))
    return _Blocks(counts, placed, max((start + count for start, count, _ in runs), default=0), exact=False)


def _agreed(gathered: Sequence[Sequence[int]], nranks: int) -> tuple[int, ...]:
    """The counts of all pairs, which both ranks of each pair have stated alike."""
    for source, said in enumerate(gathered):
        has = tuple(said[:nranks])
        awaited = tuple(others[nranks + source] for others in gathered)
        if has != awaited:
            target = next(number for number in range(nranks) if has[number] != awaited[number])
            raise UsageError(
                f"in_counts of rank {source} has {has[target]} elements for rank {target}, but out_counts of rank "
                f"{target} has {awaited[target]} from rank {source}",
                remedy=f"Make in_counts[{target}] of rank {source} equal to out_counts[{source}] of rank {target}.",
            )
    return tuple(count for said in gathered for count in said[:nranks])


# ---- arrays


def _whole(array: Any, argument: str, blocks: _Blocks, rank: int, *, writable: bool) -> Memory:
    """The memory of an array made of blocks, up to the end of the last."""
    if array is None:
        if not blocks.extent:
            raise _unknown_dtype(argument, rank)
        raise missing(argument, "it has the blocks of all ranks", f"Pass an array of {blocks.extent} elements.", rank)
    found = memory(array, argument=argument, rank=rank, writable=writable)
    if found.count < blocks.extent or (blocks.exact and found.count > blocks.extent):
        wanted = (
            f"{blocks.extent}, the sum of the counts" if blocks.exact else f"{blocks.extent} or more for its blocks"
        )
        raise wrong_size(argument, found.count, wanted, rank)
    return found.part(0, blocks.extent)


def _part(array: Any, argument: str, count: int, rank: int, *, writable: bool) -> Memory:
    """The memory of an array that is this rank's block, its only array if it is None."""
    if array is None:
        if not count:
            raise _unknown_dtype(argument, rank)
        raise missing(argument, f"counts has {count} for this rank", f"Pass an array of {count} elements.", rank)
    found = memory(array, argument=argument, rank=rank, writable=writable)
    if found.count != count:
        raise wrong_size(argument, found.count, f"{count}, as counts has for this rank", rank)
    return found


def _unknown_dtype(argument: str, rank: int) -> UsageError:
    return missing(
        argument,
        "this rank passes no other array, so its dtype is not known",
        "Pass an empty array of the dtype that the other ranks pass.",
        rank,
    )
