"""From the arguments of a call to the `Collective` it means, with its memory; every argument is checked here.

Whatever is wrong is a `UsageError` that names rank, argument and remedy. Nothing has been sent then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hetcomm.errors import UsageError
from hetcomm.runtime.buffers import memory, overlap
from hetcomm.runtime.local import check_factor
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import Memory, Number, PremulSum, ReduceOp

__all__ = ["Call", "all_gather", "all_reduce", "broadcast", "check_timeout", "reduce", "reduce_scatter"]

_KEPT = 4096
_COLLECTIVES: dict[tuple[int, int, int, int, int, int | None, bool], Collective] = {}


@dataclass(frozen=True, slots=True)
class Call:
    """One rank's call. In place, `out_memory` is the one buffer and `in_memory` is None."""

    collective: Collective
    in_memory: Memory | None
    out_memory: Memory | None
    factor: Number | None = None


def all_reduce(in_array: Any, out_array: Any, op: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.all_reduce`."""
    src, dst = _pair(in_array, out_array, rank)
    return _reduction(CollectiveKind.ALL_REDUCE, src, dst, op, None, rank, nranks)


def reduce(in_array: Any, out_array: Any, root: Any, op: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.reduce`; only the root has an output."""
    root = _root(root, rank, nranks)
    if rank == root:
        src, dst = _pair(in_array, out_array, rank)
    else:
        src, dst = memory(in_array, argument="in_array", rank=rank, writable=False), None
    return _reduction(CollectiveKind.REDUCE, src, dst, op, root, rank, nranks)


def broadcast(in_out_array: Any, root: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.broadcast`; the root's array is only read."""
    root = _root(root, rank, nranks)
    one = memory(in_out_array, argument="in_out_array", rank=rank, writable=rank != root)
    return Call(_collective(CollectiveKind.BROADCAST, nranks, one.count, one, None, root, True, rank), None, one)


def all_gather(in_array: Any, out_array: Any, count: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.all_gather`; in place, the one array may be passed as either."""
    src = None
    if out_array is None or in_array is None:
        name = "in_array" if out_array is None else "out_array"
        whole = memory(in_array if out_array is None else out_array, argument=name, rank=rank, writable=True)
    else:
        name = "out_array"
        src = memory(in_array, argument="in_array", rank=rank, writable=False)
        whole = memory(out_array, argument="out_array", rank=rank, writable=True)
        _same_kind(src, whole, rank)
    block = _block(whole, name, nranks, rank)
    if src is not None and src.count != block:
        raise _wrong_size("in_array", src.count, f"{block}: out_array has {whole.count} for {nranks} ranks", rank)
    _check_count(count, block, rank)
    src = _unless_in_place(src, whole, rank * block, rank)
    return Call(_collective(CollectiveKind.ALL_GATHER, nranks, block, whole, None, None, src is None, rank), src, whole)


def reduce_scatter(in_array: Any, out_array: Any, count: Any, op: Any, rank: int, nranks: int) -> Call:
    """The call of `Communicator.reduce_scatter`; in place, this rank's block of the one array is the output."""
    if out_array is None:
        whole = memory(in_array, argument="in_array", rank=rank, writable=True)
        block, in_place, dst = _block(whole, "in_array", nranks, rank), True, whole
    else:
        whole = memory(in_array, argument="in_array", rank=rank, writable=False)
        dst = memory(out_array, argument="out_array", rank=rank, writable=True)
        _same_kind(whole, dst, rank)
        block = _block(whole, "in_array", nranks, rank)
        if dst.count != block:
            raise _wrong_size("out_array", dst.count, f"{block}: in_array has {whole.count} for {nranks} ranks", rank)
        in_place = _unless_in_place(dst, whole, rank * block, rank) is None
    _check_count(count, block, rank)
    parsed = _op(op, rank)
    factor = _factor(parsed, whole, rank)
    kind = CollectiveKind.REDUCE_SCATTER
    collective = _collective(kind, nranks, block, whole, parsed, None, in_place, rank)
    return Call(collective, None if in_place else whole, whole if in_place else dst, factor)


def check_timeout(timeout: Any, default: float, rank: int) -> float:
    """Seconds a call may take."""
    if timeout is None:
        return default
    if not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
        raise UsageError(f"argument 'timeout' is {timeout!r}", remedy="Pass a positive number of seconds.", rank=rank)
    return float(timeout)


def _pair(in_array: Any, out_array: Any, rank: int) -> tuple[Memory | None, Memory]:
    """Input and output of equal length; no input if they are one."""
    if out_array is None:
        return None, memory(in_array, argument="in_array", rank=rank, writable=True)
    src = memory(in_array, argument="in_array", rank=rank, writable=False)
    dst = memory(out_array, argument="out_array", rank=rank, writable=True)
    _same_kind(src, dst, rank)
    if src.count != dst.count:
        raise _wrong_size("out_array", dst.count, f"{src.count}, as in_array has", rank)
    return _unless_in_place(src, dst, 0, rank), dst


def _reduction(
    kind: CollectiveKind, src: Memory | None, dst: Memory | None, op: Any, root: int | None, rank: int, nranks: int
) -> Call:
    one = src if src is not None else dst
    if one is None:
        raise UsageError(f"{kind.value} needs an array", remedy="Pass in_array.", rank=rank)
    parsed = _op(op, rank)
    factor = _factor(parsed, one, rank)
    collective = _collective(kind, nranks, one.count, one, parsed, root, src is None, rank)
    return Call(collective, src, dst, factor)


def _collective(
    kind: CollectiveKind,
    nranks: int,
    count: int,
    one: Memory,
    op: ReduceOp | None,
    root: int | None,
    in_place: bool,
    rank: int,
) -> Collective:
    """The collective; equal arguments give the identical object, so that plans are found by identity."""
    reduction = None if op is None else op.kind
    key = (id(kind), nranks, count, id(one.dtype), id(reduction), root, in_place)  # members of enums are never freed
    found = _COLLECTIVES.get(key)
    if found is None:
        try:
            found = Collective(kind, nranks, count, one.dtype, reduction, root, in_place)
        except UsageError as error:
            raise UsageError(error.message, remedy=error.remedy, rank=rank) from error
        if len(_COLLECTIVES) >= _KEPT:
            _COLLECTIVES.clear()
        _COLLECTIVES[key] = found
    return found


def _op(op: Any, rank: int) -> ReduceOp:
    if isinstance(op, ReduceOp):
        return op
    try:
        return ReduceOp.parse(op)
    except UsageError as error:
        raise UsageError(f"argument 'op': {error.message}", remedy=error.remedy, rank=rank) from error


def _factor(op: ReduceOp, one: Memory, rank: int) -> Number | None:
    if not isinstance(op, PremulSum):
        return None
    check_factor(op.factor, one.dtype, rank)
    return op.factor


def _root(root: Any, rank: int, nranks: int) -> int:
    try:
        number = root.__index__()
    except AttributeError:
        number = -1
    if isinstance(root, bool) or not 0 <= number < nranks:
        raise UsageError(
            f"argument 'root' is {root!r}, which is not a rank of this communicator",
            remedy=f"Use a root from 0 to {nranks - 1}.",
            rank=rank,
        )
    return int(number)


def _block(whole: Memory, name: str, nranks: int, rank: int) -> int:
    if whole.count % nranks:
        raise _wrong_size(name, whole.count, f"a multiple of the {nranks} ranks", rank)
    return whole.count // nranks


def _check_count(count: Any, block: int, rank: int) -> None:
    if count is not None and count != block:
        raise UsageError(
            f"argument 'count' is {count!r}, but the arrays hold {block} elements for each rank",
            remedy="Leave it out, or pass arrays of that size.",
            rank=rank,
        )


def _same_kind(src: Memory, dst: Memory, rank: int) -> None:
    if src.dtype is not dst.dtype:
        raise UsageError(
            f"argument 'out_array' is of dtype {dst.dtype.value}, but 'in_array' of {src.dtype.value}",
            remedy="Pass arrays of one dtype.",
            rank=rank,
        )
    if src.kind is not dst.kind:
        raise UsageError(
            f"argument 'out_array' is in {dst.kind.value} memory, but 'in_array' in {src.kind.value} memory",
            remedy="Pass arrays in the same memory.",
            rank=rank,
        )


def _unless_in_place(part: Memory | None, whole: Memory, offset: int, rank: int) -> Memory | None:
    """`part`, or None if it is `whole` from element `offset` on; any other overlap is refused."""
    if part is None:
        return None
    if part.count and part.kind is whole.kind and part.address == whole.address + offset * whole.dtype.itemsize:
        return None
    if overlap(part, whole):
        raise UsageError(
            "arguments 'in_array' and 'out_array' overlap in memory",
            remedy="Pass arrays that share no element, or call it in place: without out_array.",
            rank=rank,
        )
    return part


def _wrong_size(name: str, count: int, wanted: str, rank: int) -> UsageError:
    return UsageError(
        f"argument {name!r} has {count} elements",
        remedy=f"It must have {wanted}.",
        rank=rank,
    )
