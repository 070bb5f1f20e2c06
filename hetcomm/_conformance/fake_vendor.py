"""Vendors whose calls a fake device does in the order of its streams, as NCCL's are done by a GPU.

A call stands at the head of its stream until all ranks of its communicator have come to theirs: ranks that queue their
calls in different orders block one another for good, which `FakeDevice.synchronize` and any deadline show.
All ranks are in one process here; `hetcomm._conformance.hosted_vendor` is for processes.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

from hetcomm._conformance.fake_device import FakeDevice
from hetcomm._conformance.fake_streams import Op
from hetcomm._conformance.hazards import Access
from hetcomm._conformance.reference import reference
from hetcomm.calls import buffers
from hetcomm.errors import VendorError
from hetcomm.schedule import dataflow
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Buffer, CommId, CommRole, Slice, VendorCall
from hetcomm.types import COMBINING, DataType, Memory, MemoryKind
from hetcomm.vendors.base import (
    COLLECTIVES,
    Availability,
    Capabilities,
    Group,
    Operation,
)

__all__ = [
    "CAPABILITIES",
    "FakeGroup",
    "FakeStreamCommunicator",
    "FakeStreamVendor",
    "QueuedCall",
    "StreamsOnly",
    "touches",
]

CAPABILITIES = Capabilities(
    memory=frozenset({MemoryKind.CUDA}),
    collectives=COLLECTIVES,
    dtypes=frozenset(DataType),
    ops=frozenset(COMBINING),
    streams=True,
)
_MOST_LATE = 3  # looks that a call takes once all ranks have come to it


class QueuedCall(Op):
    """One rank's part of a collective; `over` when it is complete, or given up."""

    def __init__(self, rank: int, collective: Collective, src: Memory | None, dst: Memory | None) -> None:
        name = f"the vendor's {collective.kind.value}"
        super().__init__(name, touches(name, rank, collective, src, dst))
        self.rank = rank
        self.collective = collective
        # Whoever queues it must keep the memory alive, so the work itself does not.
        self.src, self.dst = (_plain(memory) for memory in (src, dst))
        self.over = False
        self.late = 0

    def look(self) -> bool:
        """Whether it is over."""
        if self.over:
            self.late -= 1
        return self.over and self.late < 0


class _JoinedCall(QueuedCall):
    """Computed by the last rank whose stream comes to it."""

    def __init__(self, group: FakeGroup, number: int, rank: int, *call: Any) -> None:
        super().__init__(rank, *call)
        self.number = number
        self._group = group
        self._joined = False

    def look(self) -> bool:
        """Take part, if it does not yet; whether all have."""
        if not self._joined:
            self._joined = True
            self._group.join(self)
        return super().look()


class FakeGroup:
    """What the members of one communicator share; all are in this process.

    Args:
        nranks: How many they are.
        seed: Of how long calls take.

    Attributes:
        failure: What every member's `progress` raises; None: nothing.
    """

    def __init__(self, nranks: int, seed: int = 0) -> None:
        self.nranks = nranks
        self.failure: VendorError | None = None
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._waiting: dict[int, list[_JoinedCall]] = {}

    def communicator(self, rank: int, device: FakeDevice) -> FakeStreamCommunicator:
        """That of one rank, whose memory is on `device`."""
        return FakeStreamCommunicator(self, rank, device)

    def join(self, call: _JoinedCall) -> None:
        """A rank's stream has come to its part of a call; the last one computes it for all."""
        with self._lock:
            if self.failure is not None:
                return
            members = self._waiting.setdefault(call.number, [])
            members.append(call)
            if len(members) == self.nranks:
                self._compute(sorted(self._waiting.pop(call.number), key=lambda member: member.rank))

    def leave(self, call: _JoinedCall) -> None:
        """It is given up: if it was not computed, it never will be."""
        with self._lock:
            if call in self._waiting.get(call.number, ()):
                self._waiting[call.number].remove(call)
            call.over = True

    def _compute(self, members: list[_JoinedCall]) -> None:
        collective = members[0].collective.agreed()
        if any(member.collective.agreed() != collective for member in members):
            said = "; ".join(f"rank {member.rank}: {member.collective}" for member in members)
            self.failure = VendorError(f"the ranks queued different calls as number {members[0].number}: {said}")
            return
        inputs = []
        for member in members:
            src, mine, rank = member.src, member.collective, member.rank
            if mine.in_place and member.dst is not None:
                src = member.dst.part(mine.in_offset(rank), mine.in_count(rank))
            inputs.append(buffers.view(src).copy() if src is not None else None)
        for member, output in zip(members, reference(collective, inputs), strict=True):
            mine, rank, dst = member.collective, member.rank, member.dst
            if output is not None and dst is not None:
                buffers.view(dst.part(mine.out_offset(rank), mine.out_count(rank)))[:] = output
            member.late = self._random.randint(0, _MOST_LATE)
            member.over = True


class StreamsOnly:
    """What both kinds of communicators have in common."""

    def __init__(self, rank: int, nranks: int, device: FakeDevice) -> None:
        self.rank = rank
        self.nranks = nranks
        self._device = device
        self._aborted = False

    def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        """Refuse it: it has no calls on host memory.

        Raises:
            VendorError: Always.
        """
        raise VendorError("a fake stream vendor has no calls but those on streams", rank=self.rank)

    def _check(self, collective: Collective, memories: tuple[Memory | None, ...]) -> None:
        if self._aborted:
            raise VendorError("the communicator is aborted", rank=self.rank)
        kind = next((memory.kind for memory in memories if memory is not None), MemoryKind.CUDA)
        refusal = CAPABILITIES.refusal(collective, kind)
        if refusal is not None or collective.nranks != self.nranks:
            raise VendorError(refusal or f"{collective} on {self.nranks} ranks", rank=self.rank)


class FakeStreamCommunicator(StreamsOnly):
    """A `hetcomm.vendors.base.StreamCommunicator` among ranks of one process."""

    def __init__(self, group: FakeGroup, rank: int, device: FakeDevice) -> None:
        super().__init__(rank, group.nranks, device)
        self._group = group
        self._calls: list[_JoinedCall] = []

    def enqueue(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None, stream: int) -> None:
        """Queue a call; calls are matched by their order on each rank.

        Raises:
            VendorError: It takes no such call, or is aborted.
        """
        self._check(collective, (in_memory, out_memory))
        call = _JoinedCall(self._group, len(self._calls), self.rank, collective, in_memory, out_memory)
        self._device.push(stream, call)
        self._calls.append(call)

    def progress(self) -> None:
        """Raise what went wrong.

        Raises:
            VendorError: The group has failed.
        """
        if self._group.failure is not None and not self._aborted:
            raise VendorError(self._group.failure.message, rank=self.rank)

    def abort(self) -> None:
        """Give up what is queued: streams pass it, and nothing is written."""
        self._aborted = True
        for call in self._calls:
            self._group.leave(call)
        self._device.notify()

    def drain(self, seconds: float) -> bool:
        """Nothing is written after an abort."""
        return True

    def close(self) -> None:
        """Give up what is queued."""
        self.abort()


class FakeStreamVendor:
    """The vendor whose communicators are `FakeStreamCommunicator`, for ranks that are threads of one process.

    Args:
        device: Tells that of the calling rank.
    """

    name = "fake"
    capabilities = CAPABILITIES

    _groups: dict[int, FakeGroup] = {}  # noqa: RUF012  # shared by the vendors of all ranks
    _numbers = itertools.count()

    def __init__(self, device: Callable[[], FakeDevice]) -> None:
        self._device = device

    def availability(self) -> Availability:
        """Always usable."""
        return Availability(True, version="fake")

    def create(self, group: Group) -> FakeStreamCommunicator:
        """The communicator of one rank."""
        said = b""
        if group.rank == 0:
            number = next(self._numbers)
            self._groups[number] = FakeGroup(group.nranks, number)
            said = str(number).encode()
        number = int(group.broadcast(said))
        made = self._groups[number].communicator(group.rank, self._device())
        group.barrier()
        self._groups.pop(number, None)
        return made


def touches(who: str, rank: int, collective: Collective, src: Memory | None, dst: Memory | None) -> tuple[Access, ...]:
    """What a rank's part of a vendor's call reads and writes."""
    comm = CommId("", CommRole.HOME)
    step = VendorCall(comm, collective, _whole(Buffer.IN, src), _whole(Buffer.OUT, dst))
    memories = {Buffer.IN: src, Buffer.OUT: dst}
    found = []
    for slices, write in zip(dataflow.accesses(step, rank), (False, True), strict=True):
        for part in slices:
            memory = memories[part.buffer]
            assert memory is not None  # or there were no slice of it
            there = memory.part(part.offset, part.count)
            found.append(Access(there.address, there.address + there.nbytes, write, who))
    return tuple(found)


def _whole(buffer: Buffer, memory: Memory | None) -> Slice | None:
    return None if memory is None else Slice(buffer, 0, memory.count)


def _plain(memory: Memory | None) -> Memory | None:
    return None if memory is None else Memory(memory.address, memory.count, memory.dtype)
