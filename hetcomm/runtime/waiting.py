"""The one loop in which a process waits: spin, then yield the processor, then sleep, until done or too late.

Vendors are polled and the transport is progressed by whoever waits, so a wait costs the other work nothing. Ranks may
outnumber the cores: after a short spin every turn gives the processor away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from hetcomm.transport.base import Transport

__all__ = ["wait"]

_SPINS: Final = 50  # turns before the first look at the clock: some tens of microseconds
_YIELDING: Final = 0.02  # seconds of yielding before the first sleep
_SLEEP: Final = 50e-6  # seconds
_DROWSY: Final = 1.0  # seconds after which sleeps grow
_LONG_SLEEP: Final = 1e-3

_sched_yield = os.sched_yield


def wait(
    transport: Transport,
    test: Callable[[], bool],
    deadline: float,
    idle: Callable[[float, float], None] | None = None,
) -> bool:
    """Progress `transport` until `test()` is true.

    Args:
        transport: Whose messages are moved.
        test: What is waited for; it polls and raises what goes wrong.
        deadline: On the clock of `time.monotonic`.
        idle: Called now and then with the time and the seconds waited so far, after the first spin; what it raises
            ends the wait.

    Returns:
        False if the deadline passed first.
    """
    progress = transport.progress
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
