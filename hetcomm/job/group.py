"""What the groups that exchange small payloads have in common: how they are divided, and how they wait.

There is one of the bootstrap's before there is a transport (`hetcomm.job.bootstrap`), and then those over the transport
(`hetcomm.job.connected`). Payloads are bytes, never pickles. Every wait has a deadline, and moves the rest of the
process meanwhile.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, TransportError, UsageError, numbers
from hetcomm.vendors.base import Group
from hetcomm.waiting.waiting import process_pump, wait

__all__ = ["JobGroup", "MessageGroup", "SoloGroup", "WaitingGroup", "pack", "unpack"]

_LOOK_EVERY = 0.05  # seconds between two looks at who has died


class JobGroup(Group, Protocol):
    """A group that can be divided."""

    def subgroup(self, ranks: Sequence[int]) -> JobGroup:
        """The group of `ranks` of this one, in that order; exchanges nothing, and only they may call it."""
        ...

    def failure(self, ended: Collection[int]) -> PeerFailureError:
        """The error for ranks of this group that have ended, with what is known of how."""
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
        wait(process_pump(), test, math.inf)

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        return [payload]

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        return payload or b""

    def barrier(self) -> None:
        return None

    def subgroup(self, ranks: Sequence[int]) -> JobGroup:
        return self

    def failure(self, ended: Collection[int]) -> PeerFailureError:
        raise AssertionError("a rank that is alone waits for nobody")

    def close(self) -> None:
        return None


class WaitingGroup:
    """A group of several processes: how it waits, and what it says of those that have ended.

    Args:
        rank: This process's number in the group.
        ranks: The group, as ranks of the job.
        timeout: Seconds every exchange may take.
    """

    def __init__(self, rank: int, ranks: Sequence[int], timeout: float) -> None:
        self._rank = rank
        self._ranks = tuple(ranks)
        self._timeout = timeout
        self._moving = process_pump()

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

    def wait(self, test: Callable[[], bool], what: str) -> None:
        """Return when `test()` is true: see `Group.wait`.

        Raises:
            CollectiveTimeoutError, PeerFailureError: See there.
        """
        if not self._wait(test, time.monotonic() + self._timeout):
            raise CollectiveTimeoutError(
                f"{what}, which takes all ranks, and it did not end within {self._timeout:g} s",
                rank=self.rank,
                remedy="See whether all ranks live and have come to it; HETCOMM_TIMEOUT sets the limit.",
            )

    def failure(self, ended: Collection[int]) -> PeerFailureError:
        """The error for ranks of this group that have ended."""
        return PeerFailureError(
            f"rank {numbers(ended)} {'has' if len(ended) == 1 else 'have'} ended while a communicator was set up",
            rank=self.rank,
            ranks=ended,
            origin=self.rank,
            remedy="Look at the output of those ranks for why they ended.",
        )

    def _ended(self) -> Collection[int]:
        """The ranks of the job that are known to have ended."""
        return ()

    def _wait(self, test: Callable[[], bool], deadline: float) -> bool:
        """Whether `test` came true before the deadline; everything of this process moves meanwhile.

        Raises:
            PeerFailureError: A rank of this group has ended, and what it has sent does not make `test` true.
        """
        look_at, known = 0.0, frozenset[int]()

        def look(now: float) -> None:
            nonlocal look_at, known
            self._moving.lock.rest()
            if now < look_at:
                return
            look_at = now + _LOOK_EVERY
            ended = self._ended()
            here = frozenset(rank for rank, number in enumerate(self._ranks) if number in ended)
            if here & known and not test():
                raise self.failure(here)
            known = here

        with self._moving.lock:  # another thread may wait in a group, too: a vendor's library calls back
            return wait(self._moving, test, deadline, look)

    def _late(self, missing: Collection[int]) -> CollectiveTimeoutError:
        """The error where ranks of this group have not come in time."""
        who = f"rank {numbers(missing)}" if missing else "a rank"
        return CollectiveTimeoutError(
            f"{who} did not take part in setting up a communicator within {self._timeout:g} s",
            rank=self.rank,
            ranks=missing,
            remedy="All ranks must call hetcomm.init and Communicator.split alike; HETCOMM_TIMEOUT sets the limit.",
        )


class MessageGroup(WaitingGroup):
    """A group whose exchanges are messages from one rank to another: to rank 0, and down a binomial tree."""

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        """Everybody's payload, in rank order.

        Raises:
            CollectiveTimeoutError: A rank did not take part in time; `peer` names it.
            PeerFailureError: A rank has ended.
        """
        deadline = time.monotonic() + self._timeout
        if self.rank != 0:
            self._send(payload, 0, deadline)
            parts = unpack(self._spread(None, 0, deadline))
            if len(parts) != self.nranks:
                raise TransportError(f"rank 0 has sent {len(parts)} payloads of {self.nranks}", rank=self.rank, peer=0)
            return parts
        parts = [payload, *(self._receive(rank, deadline) for rank in range(1, self.nranks))]
        self._spread(pack(parts), 0, deadline)
        return parts

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        """The payload of `root`; errors as `all_gather`.

        Raises:
            UsageError: This is the root, and it passes None.
        """
        return self._spread(payload if root == self.rank else None, root, time.monotonic() + self._timeout)

    def barrier(self) -> None:
        """Return when every rank has called it; errors as `all_gather`."""
        self.all_gather(b"")

    def _spread(self, payload: bytes | None, root: int, deadline: float) -> bytes:
        """Broadcast down a binomial tree."""
        place = (self.rank - root) % self.nranks
        mask = 1
        while mask < self.nranks:
            if place & mask:
                payload = self._receive((place - mask + root) % self.nranks, deadline)
                break
            mask <<= 1
        if payload is None:
            raise UsageError(f"rank {root} broadcasts, so it must pass a payload", rank=self.rank)
        mask >>= 1
        while mask:
            if place + mask < self.nranks:
                self._send(payload, (place + mask + root) % self.nranks, deadline)
            mask >>= 1
        return payload

    def _send(self, payload: bytes, rank: int, deadline: float) -> None:
        raise NotImplementedError

    def _receive(self, rank: int, deadline: float) -> bytes:
        raise NotImplementedError


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
