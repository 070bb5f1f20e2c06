"""Who may touch which bytes of a fake device's memory when: what `FakeDevice` finds races with.

Work on a stream has a place in the order of events: `Place.clock` tells, for each stream, the last piece of its work
that comes before. Two accesses of common bytes, one of them a write, are a race if neither comes before the other. What
a closed gate holds back is no part of a race: it happens after the host has opened the gate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hetcomm.types import Memory

__all__ = ["Access", "Place", "Violation", "accesses", "conflict"]


@dataclass(frozen=True, slots=True)
class Access:
    """`who` reads or writes the bytes from `start` up to `stop`."""

    start: int
    stop: int
    write: bool
    who: str

    def __str__(self) -> str:
        return f"{self.who} {'writes' if self.write else 'reads'} {self.start:#x}..{self.stop:#x}"


@dataclass(frozen=True, slots=True)
class Violation:
    """A race: `late` touched bytes that `early` was not done with.

    Attributes:
        late: The access that found them so.
        early: What is queued, or under way, on the same bytes.
        start, stop: The bytes that both touch.
    """

    late: Access
    early: Access
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.late} while {self.early} is not over: bytes {self.start:#x}..{self.stop:#x} are of both"


@dataclass(slots=True)
class Place:
    """Where a piece of work stands: number `sequence` of `stream`, after what `clock` says."""

    stream: int
    sequence: int
    clock: dict[int, int] = field(default_factory=dict)

    def after(self, other: Place) -> bool:
        """Whether it comes after `other` whatever the timing; so it does after itself."""
        return self.clock.get(other.stream, -1) >= other.sequence


def accesses(who: str, reads: tuple[Memory | None, ...], writes: tuple[Memory | None, ...]) -> tuple[Access, ...]:
    """What someone touches who reads and writes these memories."""
    return tuple(
        Access(memory.address, memory.address + memory.nbytes, write, who)
        for memories, write in ((reads, False), (writes, True))
        for memory in memories
        if memory is not None and memory.count
    )


def conflict(late: Access, early: Access) -> Violation | None:
    """The race between two accesses that are not ordered, if they are one."""
    start, stop = max(late.start, early.start), min(late.stop, early.stop)
    if start < stop and (late.write or early.write):
        return Violation(late, early, start, stop)
    return None
