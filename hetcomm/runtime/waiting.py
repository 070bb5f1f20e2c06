"""The one loop in which a process waits: spin, then yield the processor, then sleep, until done or too late.

Vendors are polled and the transport is progressed by whoever waits, so a wait costs the other work nothing. Ranks may
outnumber the cores: after a short spin every turn gives the processor away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from hetcomm.transport.base import Transport
from hetcomm.vendors.base import VendorCommunicator

__all__ = ["Progress", "Pump", "wait"]

_SPINS: Final = 20  # turns before the first look at the clock: some tens of microseconds
_YIELDING: Final = 0.02  # seconds of yielding before the first sleep
_SLEEP: Final = 50e-6  # seconds
_DROWSY: Final = 1.0  # seconds after which sleeps grow
_LONG_SLEEP: Final = 1e-3

_VENDOR_TURNS: Final = 16  # idle turns between two looks at the vendors

_sched_yield = os.sched_yield


class Progress(Protocol):
    """Something that moves when it is asked to."""

    def progress(self) -> bool:
        """Move without waiting; whether anything happened."""
        ...


class Pump:
    """All that a process of a job must keep moving whatever it waits for: its transport, and now and then its vendors.

    A vendor's library may hold back what another rank still needs though its own call is complete here, and would
    move it at its next call only: a rank that waits for something else would stop the others.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._vendors: tuple[VendorCommunicator, ...] = ()
        self._idle_turns = 0

    def add(self, communicators: Iterable[VendorCommunicator]) -> None:
        """Keep these moving from now on."""
        self._vendors += tuple(communicators)

    def remove(self, communicators: Iterable[VendorCommunicator]) -> None:
        """These are aborted or closed."""
        gone = set(map(id, communicators))
        self._vendors = tuple(kept for kept in self._vendors if id(kept) not in gone)

    def progress(self) -> bool:
        """Move messages, and in every so many idle turns the vendors; whether a message moved."""
        if self._transport.progress():
            return True
        self._idle_turns += 1
        if self._idle_turns % _VENDOR_TURNS == 0:
            self.progress_vendors()
        return False

    def progress_vendors(self) -> None:
        """Move the vendors only."""
        for communicator in self._vendors:
            communicator.progress()


def wait(
    moving: Progress,
    test: Callable[[], bool],
    deadline: float,
    idle: Callable[[float, float], None] | None = None,
) -> bool:
    """Progress `moving` until `test()` is true.

    Args:
        moving: What is progressed, a `Pump` or a transport.
        test: What is waited for; it polls and raises what goes wrong.
        deadline: On the clock of `time.monotonic`.
        idle: Called now and then with the time and the seconds waited so far, after the first spin; what it raises
            ends the wait.

    Returns:
        False if the deadline passed first.
    """
    progress = moving.progress
    turns = 0
    while turns < _SPINS:
        if test():
            return True
        progress()
        turns += 1
    begun = now = time.monotonic()
    while True:
        moved = progress()
        if test():
            return True
        turns += 1
        if moved and turns & 63:
            continue
        now = time.monotonic()
        if idle is not None:
            idle(now, now - begun)
        if now >= deadline:
            return test()
        if now - begun < _YIELDING or moved:
            _sched_yield()
        else:
            time.sleep(_SLEEP if now - begun < _DROWSY else _LONG_SLEEP)
