"""From the arguments of a call to the `Collective` it means, with its memory; every argument is checked here.

Each function has the name of a method of `Communicator`; it takes that method's arguments in order, then this rank and
the number of ranks. Whatever is wrong is a `UsageError` that names rank, argument and remedy. Nothing has been sent
then. The vector forms are in `hetcomm.calls.vector_calls`.
"""

from __future__ import annotations

from typing import Any

from hetcomm.calls.arguments import (
    Call,
    check_factor_of,
    check_integer,
    check_op,
    check_root,
    check_same_kind,
    check_timeout,
    missing,
    uniform_collective,
    unless_in_place,
    wrong_size,
)
from hetcomm.calls.buffers import memory
from hetcomm.calls.vector_calls import (
    ExchangeArrays,
    all_gather_v,
    all_to_all_v,
    exchange_arrays,
    gather_v,
    reduce_scatter_v,
    scatter_v,
    splits,
)
from hetcomm.errors import UsageError
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.types import Memory

__all__ = [
    "Call",
    "ExchangeArrays",
    "all_gather",
    "all_gather_v",
    "all_reduce",
    "all_to_all",
    "all_to_all_v",
    "broadcast",
    "check_timeout",
    "exchange_arrays",
    "exscan",
    "gather",
    "gather_v",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_v",
    "scan",
    "scatter",
    "scatter_v",
    "splits",
]


def all_reduce(in_array: Any, out_array: Any, op: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.all_reduce`."""
    src, dst = _pair(in_array, out_array, rank)
    return _reduction(CollectiveKind.ALL_REDUCE, src, dst, dst, op, None, rank, nranks)


def reduce(in_array: Any, out_array: Any, root: Any, op: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.reduce`; only the root has an output."""
    root = check_root(root, rank, nranks)
    if rank == root:
        src, dst = _pair(in_array, out_array, rank)
        return _reduction(CollectiveKind.REDUCE, src, dst, dst, op, root, rank, nranks)
    one = memory(in_array, argument="in_array", rank=rank, writable=False)
    return _reduction(CollectiveKind.REDUCE, one, None, one, op, root, rank, nranks)


def broadcast(in_out_array: Any, root: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.broadcast`; the root's array is only read."""
    root = check_root(root, rank, nranks)
    one = memory(in_out_array, argument="in_out_array", rank=rank, writable=rank != root)
    kind = CollectiveKind.BROADCAST
    return Call(uniform_collective(kind, nranks, one.count, one, None, root, True, rank), None, one)


def all_gather(in_array: Any, out_array: Any, count: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.all_gather`; in place, the one array may be passed as either."""
    if out_array is None:
        whole = memory(in_array, argument="in_array", rank=rank, writable=True)
        return _gathering(CollectiveKind.ALL_GATHER, None, whole, "in_array", count, None, rank, nranks)
    whole = memory(out_array, argument="out_array", rank=rank, writable=True)
    return _gathering(CollectiveKind.ALL_GATHER, in_array, whole, "out_array", count, None, rank, nranks)


def gather(in_array: Any, out_array: Any, root: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.gather`; `out_array` is ignored on ranks other than the root.

    At the root, the call is in place if `in_array` is None or the root's block of `out_array`.
    """
    root = check_root(root, rank, nranks)
    if rank != root:
        one = memory(in_array, argument="in_array", rank=rank, writable=False)
        kind = CollectiveKind.GATHER
        return Call(uniform_collective(kind, nranks, one.count, one, None, root, False, rank), one, None)
    if out_array is None:
        remedy = f"Pass an array for the blocks of all {nranks} ranks; in place, leave in_array out instead."
        raise missing("out_array", "this rank is the root, which gets all blocks", remedy, rank)
    whole = memory(out_array, argument="out_array", rank=rank, writable=True)
    return _gathering(CollectiveKind.GATHER, in_array, whole, "out_array", None, root, rank, nranks)


def reduce_scatter(in_array: Any, out_array: Any, count: Any, op: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.reduce_scatter`; in place, this rank's block of the one array is the output."""
    whole = memory(in_array, argument="in_array", rank=rank, writable=out_array is None)
    block, dst = _scattered(whole, out_array, rank, nranks)
    _check_count(count, block, rank)
    parsed = check_op(op, rank)
    factor = check_factor_of(parsed, whole.dtype, rank)
    kind = CollectiveKind.REDUCE_SCATTER
    collective = uniform_collective(kind, nranks, block, whole, parsed, None, dst is None, rank)
    return Call(collective, None, whole, factor) if dst is None else Call(collective, whole, dst, factor)


def scatter(in_array: Any, out_array: Any, root: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.scatter`; `in_array` is ignored on ranks other than the root, where it is only read.

    At the root, the call is in place if `out_array` is None or the root's block of `in_array`.
    """
    root = check_root(root, rank, nranks)
    kind = CollectiveKind.SCATTER
    if rank != root:
        one = memory(out_array, argument="out_array", rank=rank, writable=True)
        return Call(uniform_collective(kind, nranks, one.count, one, None, root, False, rank), None, one)
    whole = memory(in_array, argument="in_array", rank=rank, writable=False)
    block, dst = _scattered(whole, out_array, rank, nranks)
    collective = uniform_collective(kind, nranks, block, whole, None, root, dst is None, rank)
    return Call(collective, None, whole) if dst is None else Call(collective, whole, dst)


def all_to_all(in_array: Any, out_array: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.all_to_all`; in place, the output replaces the input."""
    src, dst = _pair(in_array, out_array, rank)
    block = _block(dst, "in_array", nranks, rank)
    kind = CollectiveKind.ALL_TO_ALL
    return Call(uniform_collective(kind, nranks, block, dst, None, None, src is None, rank), src, dst)


def scan(in_array: Any, out_array: Any, op: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.scan`."""
    src, dst = _pair(in_array, out_array, rank)
    return _reduction(CollectiveKind.SCAN, src, dst, dst, op, None, rank, nranks)


def exscan(in_array: Any, out_array: Any, op: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.exscan`."""
    src, dst = _pair(in_array, out_array, rank)
    return _reduction(CollectiveKind.EXSCAN, src, dst, dst, op, None, rank, nranks)


def _pair(in_array: Any, out_array: Any, rank: int) -> tuple[Memory | None, Memory]:
    """Input and output of equal length; no input if they are one."""
    if out_array is None:
        return None, memory(in_array, argument="in_array", rank=rank, writable=True)
    src = memory(in_array, argument="in_array", rank=rank, writable=False)
    dst = memory(out_array, argument="out_array", rank=rank, writable=True)
    check_same_kind(src, dst, rank)
    if src.count != dst.count:
        raise wrong_size("out_array", dst.count, f"{src.count}, as in_array has", rank)
    return unless_in_place(src, dst, 0, rank), dst


def _reduction(
    kind: CollectiveKind,
    src: Memory | None,
    dst: Memory | None,
    one: Memory,
    op: Any,
    root: int | None,
    rank: int,
    nranks: int,
) -> Call:
    parsed = check_op(op, rank)
    factor = check_factor_of(parsed, one.dtype, rank)
    return Call(uniform_collective(kind, nranks, one.count, one, parsed, root, src is None, rank), src, dst, factor)


def _gathering(
    kind: CollectiveKind,
    in_array: Any,
    whole: Memory,
    name: str,
    count: Any,
    root: int | None,
    rank: int,
    nranks: int,
) -> Call:
    """A call on a rank that gets all blocks into `whole`, which was passed as `name`."""
    block = _block(whole, name, nranks, rank)
    src = None
    if in_array is not None:
        src = memory(in_array, argument="in_array", rank=rank, writable=False)
        check_same_kind(src, whole, rank)
        if src.count != block:
            raise wrong_size("in_array", src.count, f"{block}: out_array has {whole.count} for {nranks} ranks", rank)
        src = unless_in_place(src, whole, rank * block, rank)
    _check_count(count, block, rank)
    return Call(uniform_collective(kind, nranks, block, whole, None, root, src is None, rank), src, whole)


def _scattered(whole: Memory, out_array: Any, rank: int, nranks: int) -> tuple[int, Memory | None]:
    """Elements of a block of `whole`, and the output of a rank that has all blocks; None: in place."""
    block = _block(whole, "in_array", nranks, rank)
    if out_array is None:
        return block, None
    dst = memory(out_array, argument="out_array", rank=rank, writable=True)
    check_same_kind(whole, dst, rank)
    if dst.count != block:
        raise wrong_size("out_array", dst.count, f"{block}: in_array has {whole.count} for {nranks} ranks", rank)
    return block, unless_in_place(dst, whole, rank * block, rank)


def _block(whole: Memory, name: str, nranks: int, rank: int) -> int:
    if whole.count % nranks:
        raise wrong_size(name, whole.count, f"a multiple of the {nranks} ranks", rank)
    return whole.count // nranks


def _check_count(count: Any, block: int, rank: int) -> None:
    if count is not None and check_integer("count", count, rank) != block:
        raise UsageError(
            f"argument 'count' is {count!r}, but the arrays hold {block} elements for each rank",
            remedy="Leave it out, or pass arrays of that size.",
            rank=rank,
        )
