"""From a `Collective` to the call of a communicator that means it, for tests that draw or enumerate collectives."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import hetcomm
from hetcomm._conformance.reference import Array, numpy_dtype
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import ReduceKind

BITWISE = (ReduceKind.BAND, ReduceKind.BOR, ReduceKind.BXOR)
_UNTOUCHED = 0x5A  # every byte of what no call may write
_GUARD = 128  # elements before and behind each array that belong to nobody


@dataclass(frozen=True)
class Invocation:
    """One rank's call: `getattr(comm, name)(*args)`.

    Attributes:
        name: The method.
        args: Its arguments.
        mine: The collective as this rank passes it: in place or not, with its displacements.
        rank: Whose it is.
        source: The array that holds the input; in place, also the output.
        target: The array of the output.
        before: A copy of `source`.
    """

    name: str
    args: tuple[Any, ...]
    mine: Collective
    rank: int
    source: Array
    target: Array
    before: Array

    def output(self) -> Array | None:
        """What this rank has got, packed; None if it gets nothing."""
        runs = list(_output_runs(self.mine, self.rank))
        if not sum(count for _, count in runs):
            return None
        return np.concatenate([self.target[offset : offset + count] for offset, count in runs])

    def reset(self) -> None:
        """Make the arrays what they were before the call."""
        self.target.view(np.uint8)[:] = _UNTOUCHED
        self.source[:] = self.before

    def refill(self, packed: Array | None) -> None:
        """The same with another input, one block behind the other."""
        self.source.view(np.uint8)[:] = self.target.view(np.uint8)[:] = _UNTOUCHED
        _fill(self.source, self.mine, self.rank, packed)
        self.before[:] = self.source

    def damage(self) -> str | None:
        """What was written that must not be: the input of a call that is not in place, a gap between blocks, or what
        lies around the arrays."""
        for array in (self.source, self.target):
            around = np.concatenate([array.base[:_GUARD], array.base[len(array.base) - _GUARD :]])
            if (around.view(np.uint8) != _UNTOUCHED).any():
                return "what lies around an array has changed"
        if self.source is not self.target and self.source.tobytes() != self.before.tobytes():
            return "the input has changed"
        if self.mine.in_place or self.mine.out_displs is None:
            return None
        gaps = np.ones(len(self.target), bool)
        for offset, count in _output_runs(self.mine, self.rank):
            gaps[offset : offset + count] = False
        if (self.target[gaps].view(np.uint8) != _UNTOUCHED).any():
            return "a gap between blocks has changed"
        return None


def invocation(mine: Collective, rank: int, packed: Array | None, factor: int = 1) -> Invocation:
    """The call of `rank`, whose input is `packed`, one block behind the other."""
    if mine.kind is CollectiveKind.BROADCAST:
        mine = mine.with_in_place(True)  # there is no other form
    dtype = numpy_dtype(mine.dtype)
    length = mine.buffer_count(rank) if mine.in_place else mine.in_extent(rank)
    source = _untouched(length, dtype)
    target = source if mine.in_place else _untouched(mine.out_extent(rank), dtype)
    _fill(source, mine, rank, packed)
    name = mine.kind.value + ("_v" if mine.counts is not None else "")
    args = (*_arrays(mine, rank, source, target), *_others(mine, rank, factor))
    return Invocation(name, args, mine, rank, source, target, source.copy())


class InForm:
    """A communicator whose collectives are called plainly, in the background or as persistent requests, in turns."""

    def __init__(self, comm: Any, turn: int) -> None:
        self.rank = comm.rank
        self._comm, self._form = comm, ("plain", "background", "persistent")[turn % 3]

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any, **options: Any) -> None:
            if self._form == "plain":
                getattr(self._comm, name)(*args, **options)
            elif self._form == "background":
                getattr(self._comm, name)(*args, **options, async_op=True).wait()
            else:
                with getattr(self._comm, f"{name}_init")(*args, **options) as request:
                    request.start()
                    request.wait()

        return call


def share(whole: int, part: int, of: int) -> frozenset[int]:
    """Which of `whole` numbered cases a job runs, where `of` jobs share them.

    Drawn by a seed: what takes turns among the cases would go by the number of the job otherwise.
    """
    return frozenset(random.Random(whole).sample(range(whole), whole)[part::of])


def random_sums(comm: Any, *counts: int) -> dict[str, str]:
    """Digests of averages whose bits depend on the order of additions, which must be one order on all ranks."""
    found = {}
    for dtype in ("f2", "f4", "f8", "c8"):
        for count in counts:
            array = np.random.default_rng(comm.rank).standard_normal(count).astype(dtype)
            comm.all_reduce(array, op="avg")
            found[f"random {dtype} {count}"] = hashlib.sha256(array.tobytes()).hexdigest()
    return found


def equal(got: Array | None, wanted: Array | None) -> bool:
    """Whether two results are the same, NaN included; complex128 holds the small numbers of every float exactly."""
    if got is None or wanted is None:
        return got is wanted
    if got.dtype.kind in "biu":
        return np.array_equal(got, wanted)
    return np.array_equal(got.astype("c16"), wanted.astype("c16"), equal_nan=True)


def inputs_of(collective: Collective, seed: int, *, nans: bool = False) -> list[Array]:
    """Whole numbers small enough that every order of operations gives the same bits, for bitwise ops any integers, and
    for min and max some NaN."""
    rng = np.random.default_rng(seed)
    low = 1 if collective.op is ReduceKind.PROD else -2 if collective.dtype.is_signed else 0
    found = []
    for rank in range(collective.nranks):
        dtype, count = numpy_dtype(collective.dtype), collective.in_count(rank)
        array = rng.integers(low, 3, count).astype(dtype)
        if collective.op in BITWISE and collective.dtype.is_integer:
            array = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)
        if nans and collective.op in (ReduceKind.MIN, ReduceKind.MAX) and collective.dtype.is_inexact and rank == 1:
            array[::3] = np.nan
        found.append(array)
    return found


def _untouched(count: int, dtype: Any) -> Array:
    whole = np.empty(_GUARD + count + _GUARD, dtype)
    whole.view(np.uint8)[:] = _UNTOUCHED
    return whole[_GUARD : _GUARD + count]


def _fill(source: Array, mine: Collective, rank: int, packed: Array | None) -> None:
    at = 0
    for offset, count in _input_runs(mine, rank):
        assert packed is not None
        source[offset : offset + count] = packed[at : at + count]
        at += count


def _has_blocks(mine: Collective, rank: int, *, of_input: bool) -> bool:
    match mine.kind:
        case CollectiveKind.ALL_TO_ALL:
            return True
        case CollectiveKind.REDUCE_SCATTER:
            return of_input
        case CollectiveKind.SCATTER:
            return of_input and rank == mine.root
        case CollectiveKind.ALL_GATHER:
            return not of_input
        case CollectiveKind.GATHER:
            return not of_input and rank == mine.root
        case _:
            return False


def _input_runs(mine: Collective, rank: int) -> Iterator[tuple[int, int]]:
    if _has_blocks(mine, rank, of_input=True):
        yield from mine.in_blocks(rank)
    else:
        yield mine.in_offset(rank), mine.in_count(rank)


def _output_runs(mine: Collective, rank: int) -> Iterator[tuple[int, int]]:
    if _has_blocks(mine, rank, of_input=False):
        yield from mine.out_blocks(rank)
    else:
        yield mine.out_offset(rank), mine.out_count(rank)


def _arrays(mine: Collective, rank: int, source: Array, target: Array) -> tuple[Any, ...]:
    root = rank == mine.root
    match mine.kind:
        case CollectiveKind.BROADCAST:
            return (source,)
        case CollectiveKind.REDUCE:
            return source, target if root and not mine.in_place else None
        case CollectiveKind.ALL_GATHER:
            return (None, target) if mine.in_place else (source, target)
        case CollectiveKind.GATHER:
            if not root:
                return source, None
            return (None, target) if mine.in_place else (source, target)
        case CollectiveKind.SCATTER:
            if not root:
                return None, target
            return source, None if mine.in_place else target
        case _:
            return source, None if mine.in_place else target


def _others(mine: Collective, rank: int, factor: int) -> Sequence[Any]:
    kind, op = mine.kind, mine.op
    said = () if op is None else (hetcomm.premul_sum(factor) if op is ReduceKind.PREMUL_SUM else op.value,)
    root = () if mine.root is None else (mine.root,)
    if mine.counts is None:
        count = (None,) if kind is CollectiveKind.REDUCE_SCATTER else ()
        return *count, *root, *said
    if kind is CollectiveKind.ALL_TO_ALL:
        return mine.sent_counts(rank), mine.received_counts(rank), mine.in_displs, mine.out_displs
    return mine.counts, *root, *said, mine.in_displs or mine.out_displs
