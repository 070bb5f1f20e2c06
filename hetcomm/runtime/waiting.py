"""The one loop in which a process waits: spin, then yield the processor, then sleep, until done or too late.

Vendors are polled and the transport is progressed by whoever waits, so a wait costs the other work nothing. Ranks may
outnumber the cores: after a short spin every turn gives the processor away, and sleeps get longer, since looking costs
time that ranks with something to do could use.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from hetcomm.devices.base import Event
from hetcomm.transport.base import Transport

__all__ = ["PARTING", "Mover", "Progress", "Pump", "wait"]

_SPINS: Final = 2  # turns before the first look at the clock and the first yield: some microseconds
_YIELDING: Final = 0.02  # seconds of yielding before the first sleep
_SLEEP: Final = 50e-6  # seconds, the shortest
_LONG_SLEEP: Final = 1e-3
_PATIENCE: Final = 0.01  # of the time waited so far: what a sleep may add to it

_VENDOR_TURNS: Final = 16  # idle turns between two looks at the vendors

PARTING: list[tuple[int, Callable[[], object]]] = []
"""What looks at communicators of this process that are closed, but not yet on all ranks; and in which thread."""

_sched_yield = os.sched_yield


class Progress(Protocol):
    """Something that moves when it is asked to."""

    def progress(self) -> bool:
        """Move without waiting; whether anything happened."""
        ...


class Mover(Protocol):
    """What goes on in the background of a communicator; nothing of it raises but an interruption of the process.

    Attributes:
        lock: The pump's.
    """

    lock: AbstractContextManager[Any]

    def detour(self) -> None:
        """From now on no short way may be taken, which takes no lock."""
        ...

    def advance(self) -> None:
        """Move the calls that nobody waits for."""
        ...

    def events(self) -> Sequence[Event]:
        """What these calls wait for on a device."""
        ...

    def progress_vendors(self) -> None:
        """Move the vendors' communicators."""
        ...


class Pump:
    """All that a process of a job must keep moving whatever it waits for: its transport, the calls in the background of
    all its communicators, and now and then its vendors.

    A vendor's library may hold back what another rank still needs though its own call is complete here, and would
    move it at its next call only: a rank that waits for something else would stop the others.

    Attributes:
        active: The communicators with calls in the background.
        lock: Held by whoever moves anything; reentrant.
        threaded: Whether a thread of hetcomm's own moves it too (`hetcomm.runtime.progress`).
        roused: What that thread waits for when there is nothing in the background.
        query: How it asks for events of the device (`Device.query`).
    """

    def __init__(self, transport: Transport) -> None:
        self.active: list[Mover] = []
        self.lock: AbstractContextManager[Any] = threading.RLock()
        self.threaded = False
        self.roused = threading.Event()
        self.query = 0
        self._transport = transport
        self._movers: tuple[Mover, ...] = ()
        self._idle_turns = 0
        self._advancing = False

    def add(self, mover: Mover) -> None:
        """Keep the vendors of a communicator moving from now on."""
        self._movers += (mover,)
        mover.lock = self.lock
        if self.threaded:
            mover.detour()

    def remove(self, mover: Mover) -> None:
        """It is aborted or closed."""
        self._movers = tuple(kept for kept in self._movers if kept is not mover)
        self.rest(mover)

    def rouse(self, mover: Mover) -> None:
        """It has calls in the background."""
        if mover not in self.active:
            self.active.append(mover)
            self.roused.set()

    def rest(self, mover: Mover) -> None:
        """It has none any more."""
        if mover in self.active:
            self.active.remove(mover)

    def progress(self) -> bool:
        """Move messages and calls, and in every so many idle turns the vendors; whether a message moved."""
        moved = self._transport.progress()
        if self.active and not self._advancing:
            self._advancing = True  # a call that fails may wait for word from the others, which comes back here
            try:
                for mover in tuple(self.active):
                    mover.advance()
            finally:
                self._advancing = False
        if moved:
            return True
        self._idle_turns += 1
        if self._idle_turns % _VENDOR_TURNS == 0:
            self.progress_vendors()
            if PARTING and not self._advancing:
                self._advancing = True
                try:
                    for thread, look in tuple(PARTING):
                        if thread == threading.get_ident():
                            look()
                finally:
                    self._advancing = False
        return False

    def share(self, lock: AbstractContextManager[Any], query: int) -> None:
        """From now on another thread moves it too, under `lock`, and asks a device for events by `query`."""
        self.lock = lock
        self.threaded = True
        self.query = query
        for mover in self._movers:
            mover.lock = lock
            mover.detour()

    def watch(self, seconds: float) -> bool:
        """Wait in the transport, without the GIL, until something happens; whether something did."""
        events: list[int] = []
        if self.query:
            events = [event.handle for mover in self.active for event in mover.events()]
        return self._transport.watch(seconds, self.query, events)

    def progress_vendors(self) -> None:
        """Move the vendors only."""
        for mover in self._movers:
            mover.progress_vendors()


def wait(
    moving: Progress,
    test: Callable[[], bool],
    deadline: float,
    idle: Callable[[float], None] | None = None,
) -> bool:
    """Progress `moving` until `test()` is true.

    Args:
        moving: What is progressed, a `Pump` or a transport.
        test: What is waited for; it polls and raises what goes wrong.
        deadline: On the clock of `time.monotonic`.
        idle: Called now and then with the time, after the first spin; what it raises ends the wait.

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
            idle(now)
        if now >= deadline:
            return test()
        if now - begun < _YIELDING or moved:
            _sched_yield()
        else:
            time.sleep(min(_LONG_SLEEP, max(_SLEEP, _PATIENCE * (now - begun))))
