"""The one loop in which a process waits: spin, then yield the processor, then sleep, until done or too late.

Vendors are polled and the transport is progressed by whoever waits, so a wait costs the other work nothing. Ranks may
outnumber the cores: after a short spin every turn gives the processor away, and sleeps get longer, since looking costs
time that ranks with something to do could use.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from hetcomm._ext import ucp
from hetcomm.devices.base import Event
from hetcomm.transport.base import Transport

__all__ = ["Mover", "Progress", "Pump", "process_pump", "start_anew", "wait"]

_SPINS: Final = 2  # turns before the first look at the clock and the first yield: some microseconds
_YIELDING: Final = 0.02  # seconds of yielding before the first sleep
_SLEEP: Final = 50e-6  # seconds, the shortest
_LONG_SLEEP: Final = 1e-3
_PATIENCE: Final = 0.01  # of the time waited so far: what a sleep may add to it

_VENDOR_TURNS: Final = 16  # idle turns between two looks at the vendors
_MOVERS_PER_TURN: Final = 64  # communicators whose vendors one look moves

_sched_yield = os.sched_yield


class Progress(Protocol):
    """Something that moves when it is asked to."""

    def progress(self) -> bool:
        """Move without waiting; whether anything happened."""
        ...


class Mover(Protocol):
    """What goes on in the background of a communicator; nothing of it raises but an interruption of the process."""

    def slow_down(self) -> None:
        """From now on the fast path may not be taken: a thread moves works too."""
        ...

    def advance(self) -> None:
        """Move the calls that nobody waits for."""
        ...

    def events(self) -> Sequence[Event]:
        """What these calls wait for on a device."""
        ...

    def attend(self) -> None:
        """Look at what the other ranks say, and move the vendors' communicators."""
        ...

    def move_vendors(self) -> None:
        """Move the vendors' communicators only: somebody is in the middle of a call of the transport."""
        ...

    def unmet(self, transport: Transport) -> Iterable[tuple[int, str]]:
        """Calls that other ranks wait in and this one has not made, if its messages go by that transport.

        Each is a peer's number there, and the call as text.
        """
        ...


class Pump:
    """All that a process must keep moving whatever it waits for: its transports, the calls in the background of all its
    communicators, and now and then its vendors.

    A vendor's library may hold back what another rank still needs though its own call is complete here, and would
    move it at its next call only: a rank that waits for something else would stop the others. There is one for the
    process (`process_pump`), whatever number of jobs it is part of.

    Attributes:
        active: What is in the background: communicators with such calls, and persistent calls on the fast path.
        parting: What looks at communicators that are closed, but not yet on all ranks.
        lock: Held by whoever moves anything. A thread that waits puts it down while another one wants it.
        roused: What that thread waits for when there is nothing in the background.
        query: How it asks for events of the device (`Device.query`).
    """

    def __init__(self, *transports: Transport) -> None:
        self.active: list[Mover] = []
        self.parting: list[Callable[[], object]] = []
        self.lock = ucp.Gate()
        self._threads = 0
        self.roused = threading.Event()
        self.query = 0
        self._transports = transports
        self._movers: OrderedDict[Mover, None] = OrderedDict()  # whose vendors are moved next comes first
        self._idle_turns = 0
        self._advancing = False

    def attach(self, transport: Transport) -> None:
        """Move a transport from now on."""
        self._transports += (transport,)

    def detach(self, transport: Transport) -> None:
        """It is closed, or about to be."""
        self._transports = tuple(kept for kept in self._transports if kept is not transport)

    def add(self, mover: Mover) -> None:
        """Keep the vendors of a communicator moving from now on."""
        self._movers[mover] = None
        if self.threaded:
            mover.slow_down()

    def remove(self, mover: Mover) -> None:
        """It is aborted or closed."""
        self._movers.pop(mover, None)
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
        moved = False
        for transport in self._transports:
            moved |= transport.progress()
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
            self.attend()
            if self.parting and not self._advancing:
                self._advancing = True
                try:
                    for look in tuple(self.parting):
                        look()
                finally:
                    self._advancing = False
        return False

    def share(self, query: int) -> None:
        """From now on a thread of hetcomm's own moves it too, and asks a device for events by `query`."""
        self._threads += 1
        self.query = query
        for mover in self._movers:
            mover.slow_down()

    def unshare(self) -> None:
        """That thread has ended."""
        self._threads -= 1

    @property
    def threaded(self) -> bool:
        """Whether a thread of hetcomm's own moves it too (`hetcomm.waiting.progress`)."""
        return self._threads > 0

    def watch(self, seconds: float) -> bool:
        """Wait in the transport, without the GIL, until something happens; whether something did.

        In several transports nobody can wait at once: then it only looks.
        """
        if len(self._transports) != 1:
            return self.progress()
        events: list[int] = []
        if self.query:
            events = [event.handle for mover in self.active for event in mover.events()]
        return self._transports[0].watch(seconds, self.query, events)

    def move_others(self, transport: Transport) -> None:
        """Move all that goes on without works: the vendors, and the transports but the one that somebody waits in."""
        for other in self._transports:
            if other is not transport:
                other.progress()
        for mover in self._some_movers():
            mover.move_vendors()

    def attend(self) -> None:
        """Look at what is said on the communicators, and move their vendors; on some of them if there are many."""
        for mover in self._some_movers():
            mover.attend()

    def unmet(self, transport: Transport, but: object = None) -> dict[int, str]:
        """By peer of that transport: a call that it waits in, and this process has not made; not one on `but`."""
        return {peer: call for mover in self._movers if mover is not but for peer, call in mover.unmet(transport)}

    def _some_movers(self) -> Iterator[Mover]:
        for _ in range(min(len(self._movers), _MOVERS_PER_TURN)):
            mover = next(iter(self._movers))
            self._movers.move_to_end(mover)
            yield mover


_process = [Pump()]


def process_pump() -> Pump:
    """What moves all that this process has in hetcomm."""
    return _process[-1]


def start_anew() -> None:
    """This process is a forked child: what its parent has is not its own."""
    _process[:] = [Pump()]


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
