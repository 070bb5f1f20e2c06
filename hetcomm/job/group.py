"""What the groups of all bootstraps have in common: how they are divided, and how they wait.

A group exchanges a few small payloads between ranks before there is a transport. Payloads are bytes, never pickles.
Every wait has a deadline, and moves the rest of the process meanwhile.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, TransportError, numbers
from hetcomm.vendors.base import Group

__all__ = ["Attendance", "JobGroup", "SoloGroup", "WaitingGroup", "pack", "poll", "unpack"]

_YIELDING = 0.005  # seconds of polling before sleeping in between
_SLEEP = 200e-6
_LOOK_EVERY = 0.05  # seconds between two looks at who has died


class JobGroup(Group, Protocol):
    """A group that can be divided."""

    def attend(self, progress: Callable[[], object], ended: Callable[[], Collection[int]]) -> None:
        """From now on let `progress` move the process while this group, or one divided from it, waits.

        `ended` are the ranks of the job that are known to have died.
        """
        ...

    def subgroup(self, ranks: Sequence[int]) -> JobGroup:
        """The group of `ranks` of this one, in that order; exchanges nothing, and only they may call it."""
        ...

    def close(self) -> None:
        """Release what this group and those divided from it share; exchanges nothing."""
        ...


class SoloGroup:
    """One rank alone."""

    @property
    def rank(self) -> int:
        return 0

    @property
    def nranks(self) -> int:
        return 1

    @property
    def timeout(self) -> float:
        return math.inf

    def wait(self, test: Callable[[], bool], what: str) -> None:
        while not test():
            time.sleep(_SLEEP)

    def attend(self, progress: Callable[[], object], ended: Callable[[], Collection[int]]) -> None:
        return None

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        return [payload]

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        return payload or b""

    def barrier(self) -> None:
        return None

    def subgroup(self, ranks: Sequence[int]) -> JobGroup:
        return self

    def close(self) -> None:
        return None


@dataclass(slots=True)
class Attendance:
    """What the groups of a job know of the rest of the process: see `JobGroup.attend`."""

    progress: Callable[[], object] = lambda: None
    ended: Callable[[], Collection[int]] = frozenset


class WaitingGroup:
    """A group of several processes: what it knows of them, and how it waits.

    Args:
        rank: This process's number in the group.
        ranks: The group, as ranks of the job.
        timeout: Seconds every exchange may take.
        attendance: Shared by all groups of the job.
    """

    def __init__(self, rank: int, ranks: Sequence[int], timeout: float, attendance: Attendance | None = None) -> None:
        self._rank = rank
        self._ranks = tuple(ranks)
        self._timeout = timeout
        self._attendance = Attendance() if attendance is None else attendance

    @property
    def rank(self) -> int:
        """This process's number in the group."""
        return self._rank

    @property
    def nranks(self) -> int:
        return len(self._ranks)

    @property
    def timeout(self) -> float:
        """Seconds every exchange may take."""
        return self._timeout

    def attend(self, progress: Callable[[], object], ended: Callable[[], Collection[int]]) -> None:
        """What moves the process, and who has died: see `JobGroup.attend`."""
        self._attendance.progress, self._attendance.ended = progress, ended

    def wait(self, test: Callable[[], bool], what: str) -> None:
        """Return when `test()` is true: see `Group.wait`.

        Raises:
            CollectiveTimeoutError, PeerFailureError: See there.
        """
        if not self._poll(test, time.monotonic() + self._timeout):
            raise CollectiveTimeoutError(
                f"{what}, which takes all ranks, and it did not end within {self._timeout:g} s",
                rank=self.rank,
                remedy="See whether all ranks live and have come to it; HETCOMM_TIMEOUT sets the limit.",
            )

    def _dead(self) -> Collection[int]:
        """The ranks of the job that are known to have ended."""
        return self._attendance.ended()

    def _gone(self, ended: Collection[int]) -> PeerFailureError:
        """The error for ranks of this group that have ended."""
        return PeerFailureError(
            f"rank {numbers(ended)} {'has' if len(ended) == 1 else 'have'} ended while a communicator was set up",
            rank=self.rank,
            ranks=ended,
            origin=self.rank,
            remedy="Look at the output of those ranks for why they ended.",
        )

    def _poll(self, test: Callable[[], bool], deadline: float) -> bool:
        """Whether `test` came true before the deadline; everything else of this process moves meanwhile.

        Raises:
            PeerFailureError: A rank of this group has died, and what it has sent does not make `test` true.
        """
        progress, look_at, known = self._attendance.progress, time.monotonic() + _LOOK_EVERY, frozenset[int]()

        def moving() -> bool:
            nonlocal look_at, known
            if test():
                return True
            progress()
            if time.monotonic() < look_at:
                return False
            look_at = time.monotonic() + _LOOK_EVERY
            dead = self._dead()
            ended = frozenset(rank for rank, number in enumerate(self._ranks) if number in dead) if dead else known
            if ended & known and not test():
                raise self._gone(ended)
            known = ended
            return False

        return poll(moving, deadline)


def poll(test: Callable[[], bool], deadline: float) -> bool:
    """Whether `test` came true before the deadline; the processor is given away in between."""
    begun = time.monotonic()
    while not test():
        now = time.monotonic()
        if now > deadline:
            return bool(test())
        if now - begun < _YIELDING:
            os.sched_yield()
        else:
            time.sleep(_SLEEP)
    return True


def pack(parts: Sequence[bytes]) -> bytes:
    """Some payloads as one: their number, their lengths, and they themselves."""
    header = struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts))
    return header + b"".join(parts)


def unpack(packed: bytes) -> list[bytes]:
    """What `pack` was given.

    Raises:
        TransportError: It did not write that; nothing is believed that the length does not bear out.
    """
    (count,) = struct.unpack_from("<I", packed) if len(packed) >= 4 else (0,)
    at = 4 + 8 * count
    if at > len(packed):
        raise TransportError(f"a bootstrap message of {len(packed)} bytes cannot have {count} parts")
    lengths, parts = struct.unpack_from(f"<{count}Q", packed, 4), []
    if at + sum(lengths) != len(packed):
        raise TransportError(f"a bootstrap message of {len(packed)} bytes should have {at + sum(lengths)}")
    for length in lengths:
        parts.append(packed[at : at + length])
        at += length
    return parts
