"""The part of a communicator that all libraries for host memory share.

A library's own file only says how one plain collective is started and how its communicator is released. Here a call
is checked, sent through a detour where the library is wrong (`hetcomm.vendors.compose`), cut into pieces where it is
longer than the library counts, and its memory is kept alive until the library is done with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from hetcomm.errors import HetcommError, VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import Memory, MemoryKind
from hetcomm.vendors import compose
from hetcomm.vendors.base import Capabilities, Operation

__all__ = ["HostCommunicator", "Library", "pieces"]

_UNFINISHED: list[object] = []
"""What libraries may still write to after an abort: it must live as long as the process."""

_YIELDING = 5e-3  # seconds of polling before sleeping in between
_SLEEP = 200e-6


class Library(Protocol):
    """One library's communicator, as thin as it can be; every failure it reports is a `VendorError`."""

    def start(
        self, collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None
    ) -> Operation:
        """Start a collective of at least one element over at least two ranks that needs neither detour nor cutting."""
        ...

    def progress(self) -> None:
        """Send off what it may have held back; never blocks."""
        ...

    def release(self) -> None:
        """Free it; nothing is under way."""
        ...

    def abandon(self) -> None:
        """Forget it without waiting for anything; something may be under way."""
        ...

    def interrupt(self) -> None:
        """After `abandon`, make what is under way end soon, if the library can do that; never blocks."""
        ...


class Done:
    """An operation that was complete when it began."""

    def test(self) -> bool:
        """True."""
        return True


class HostCommunicator:
    """A `VendorCommunicator` over host memory.

    Args:
        vendor: Its vendor's name, for messages.
        capabilities: What the vendor declares; what it calls composed goes through `hetcomm.vendors.compose`.
        rank: This process's number in it.
        nranks: How many ranks it has.
        library: The foreign communicator; None where there is one rank only.
        limit: The most elements that one buffer of one call may have, in all; None: any.
    """

    def __init__(
        self,
        vendor: str,
        capabilities: Capabilities,
        rank: int,
        nranks: int,
        library: Library | None,
        *,
        limit: int | None = None,
    ) -> None:
        self._vendor = vendor
        self._capabilities = capabilities
        self._rank = rank
        self._nranks = nranks
        self._library = library
        self._limit = limit
        self._running: set[_Running] = set()
        self._left: list[_Running] = []  # what an abort has left under way
        self._abandoned: Library | None = None
        self._state = "open"

    @property
    def rank(self) -> int:
        """This process's number in it."""
        return self._rank

    @property
    def nranks(self) -> int:
        """How many ranks it has."""
        return self._nranks

    def __repr__(self) -> str:
        return f"<{self._vendor} communicator, rank {self._rank} of {self._nranks}, {self._state}>"

    def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        """Start a collective: see `VendorCommunicator.start`.

        Raises:
            VendorError: The communicator is closed or aborted, the vendor does not take this collective, a memory does
                not fit it, or the library reported a failure. Only after the last is it unusable.
        """
        if self._state != "open":
            raise self._error(f"the communicator is {self._state}", "Make a new one.")
        self._check(collective, in_memory, out_memory)
        if not collective.count:
            return Done()
        if self._library is None:
            source = compose.input_of(collective, 0, in_memory, out_memory)
            target = compose.output_of(collective, 0, out_memory)
            if source is not None and target is not None:
                compose.alone(collective, source, target)
            return Done()
        try:
            running = _Running(self, self._begin(collective, in_memory, out_memory), (in_memory, out_memory))
        except BaseException:
            self._fail()
            raise
        self._running.add(running)
        return running

    def progress(self) -> None:
        """Move along what other ranks still need: see `VendorCommunicator.progress`.

        Raises:
            VendorError: The library reported a failure.
        """
        if self._library is not None:
            self._library.progress()

    def abort(self) -> None:
        """Give up on what is under way, at once: see `VendorCommunicator.abort`."""
        self._fail()

    def drain(self, seconds: float) -> bool:
        """Wait until the library has let go of the memory: see `VendorCommunicator.drain`."""
        left, begun = self._left, time.monotonic()
        abandoned, self._abandoned = self._abandoned, None
        if left and abandoned is not None:
            abandoned.interrupt()
        while left:
            left[:] = [running for running in left if not running.has_ended()]
            waited = time.monotonic() - begun
            if not left or waited > seconds:
                break
            if waited < _YIELDING:
                os.sched_yield()
            else:
                time.sleep(_SLEEP)
        if not left:
            _UNFINISHED[:] = [other for other in _UNFINISHED if other is not left]
        return not left

    def close(self) -> None:
        """Release it; collective, unless something is still under way or it was aborted. Again: does nothing."""
        if self._state == "closed":
            return
        if self._running:
            self._fail()
        was_open = self._state == "open"
        self._state = "closed"
        library, self._library = self._library, None
        if was_open and library is not None:
            library.release()

    def _begin(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        if collective.op is not None and (collective.dtype, collective.op) in self._capabilities.composed:
            return compose.start(collective, self._rank, in_memory, out_memory, self._begin)
        return self._native(collective, in_memory, out_memory)

    def _native(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        library = self._library
        assert library is not None  # `start` has looked
        if self._limit is None or collective.buffer_count(self._rank) <= self._limit:
            return library.start(collective, self._rank, in_memory, out_memory)
        return _All(
            [
                library.start(piece, self._rank, src, dst)
                for piece, src, dst in pieces(collective, self._rank, in_memory, out_memory, self._limit)
            ]
        )

    def _check(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> None:
        if collective.nranks != self._nranks:
            raise self._error(f"a collective over {collective.nranks} ranks on a communicator of {self._nranks}")
        kind = next((m.kind for m in (in_memory, out_memory) if m is not None), MemoryKind.HOST)
        refusal = self._capabilities.refusal(collective, kind)
        if refusal is not None:
            raise self._error(refusal, "Use another vendor for these ranks.")
        if collective.in_place:
            wanted = (0, collective.buffer_count(self._rank))
        else:
            wanted = (collective.in_count(self._rank), collective.out_count(self._rank))
        for name, memory, count in zip(("input", "output"), (in_memory, out_memory), wanted, strict=True):
            if count and (memory is None or memory.count != count or memory.dtype is not collective.dtype):
                got = "none" if memory is None else f"{memory.count} of {memory.dtype.value}"
                raise self._error(f"the {name} must be {count} elements of {collective.dtype.value}, not {got}")

    def _fail(self) -> None:
        if self._state != "open":
            return
        self._state = "aborted"
        self._left = list(self._running)
        if self._left:
            _UNFINISHED.append(self._left)
        self._running = set()
        self._abandoned, self._library = self._library, None
        if self._abandoned is not None:
            self._abandoned.abandon()

    def _error(self, message: str, remedy: str | None = None) -> VendorError:
        return VendorError(f"vendor {self._vendor!r}: {message}", remedy=remedy, rank=self._rank)


class _Running:
    """A started operation and the memory it works on."""

    def __init__(
        self, communicator: HostCommunicator, operation: Operation, memories: tuple[Memory | None, ...]
    ) -> None:
        self._communicator = communicator
        self._operation = operation
        self._memories = memories
        self._complete = False

    def test(self) -> bool:
        if self._complete:
            return True
        communicator = self._communicator
        if self not in communicator._running:
            raise communicator._error(f"the communicator was {communicator._state} while this was under way")
        try:
            self._complete = self._operation.test()
        except HetcommError:
            communicator._fail()
            raise
        if self._complete:
            communicator._running.discard(self)
            self._memories = ()
        return self._complete

    def has_ended(self) -> bool:
        """Whether the library is done with it, well or not, after an abort."""
        try:
            self._complete = self._complete or self._operation.test()
        except HetcommError:  # its cause has been raised, or was the abort
            return True
        return self._complete


class _All:
    """Several operations as one."""

    def __init__(self, operations: list[Operation]) -> None:
        self._left = operations

    def test(self) -> bool:
        self._left = [operation for operation in self._left if not operation.test()]
        return not self._left


def pieces(
    collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None, limit: int
) -> Iterator[tuple[Collective, Memory | None, Memory | None]]:
    """Cut a collective into ones of at most `limit` elements, the same on all ranks, each on contiguous memory.

    The vector of an all_reduce, reduce or broadcast is cut as it is. An all_gather becomes broadcasts of the blocks, a
    reduce_scatter reductions to the owner of each block.
    """
    runs = [(offset, min(limit, collective.count - offset)) for offset in range(0, collective.count, limit)]
    match collective.kind:
        case CollectiveKind.ALL_GATHER:
            assert out_memory is not None  # every rank gets all blocks
            source = compose.input_of(collective, rank, in_memory, out_memory)
            if source is not None:
                compose.copy(source, out_memory.part(rank * collective.count, collective.count))
            for root in range(collective.nranks):
                for offset, count in runs:
                    part = replace(collective, kind=CollectiveKind.BROADCAST, count=count, root=root, in_place=True)
                    yield part, None, out_memory.part(root * collective.count + offset, count)
        case CollectiveKind.REDUCE_SCATTER:
            source = compose.input_of(collective, rank, in_memory, out_memory)
            target = compose.output_of(collective, rank, out_memory)
            assert source is not None  # every rank has both
            assert target is not None
            for root in range(collective.nranks):
                for offset, count in runs:
                    part = replace(collective, kind=CollectiveKind.REDUCE, count=count, root=root)
                    src = source.part(root * collective.count + offset, count)
                    dst = target.part(offset, count) if rank == root else None
                    yield (part, None, src) if part.in_place else (part, src, dst)
        case _:
            for offset, count in runs:
                yield (
                    replace(collective, count=count),
                    in_memory.part(offset, count) if in_memory is not None else None,
                    out_memory.part(offset, count) if out_memory is not None else None,
                )
