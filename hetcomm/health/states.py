"""What a rank can be to another one, and what makes it so: a table, and nothing that looks at anything.

A rank that is suspected or stopped may come back: the job goes on as if nothing had been. Dead is for good, and so is
left; a rank that has left does not die any more.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from types import MappingProxyType

__all__ = ["TRANSITIONS", "Sign", "State", "after"]


class State(enum.Enum):
    """What a rank is."""

    ALIVE = "alive"
    SUSPECTED = "suspected"  # nothing has been heard of it for a while, or of what connects it
    STOPPED = "stopped"  # its process is there, and does not run
    LEFT = "left"  # in good faith: it takes part in nothing more
    DEAD = "dead"  # ended, or declared so


class Sign(enum.Enum):
    """What is seen or heard of it."""

    HEARD = "heard"  # it runs, and can be reached both ways
    SILENT = "silent"  # for longer than it should be
    HALTED = "halted"  # SIGSTOP, or a debugger
    GOODBYE = "goodbye"
    ENDED = "ended"  # its process has
    EXPIRED = "expired"  # it has been silent for so long that it counts as dead
    CONDEMNED = "condemned"  # another rank says that it is dead, or it says so of this one


_FINAL = dict.fromkeys((Sign.ENDED, Sign.EXPIRED, Sign.CONDEMNED), State.DEAD)
_LIVING = {
    Sign.HEARD: State.ALIVE,
    Sign.SILENT: State.SUSPECTED,
    Sign.HALTED: State.STOPPED,
    Sign.GOODBYE: State.LEFT,
    **_FINAL,
}

TRANSITIONS = MappingProxyType(
    {
        State.ALIVE: _LIVING,
        State.SUSPECTED: _LIVING,
        State.STOPPED: {**_LIVING, Sign.SILENT: State.STOPPED},  # of course it is
        State.LEFT: dict.fromkeys(Sign, State.LEFT),
        State.DEAD: dict.fromkeys(Sign, State.DEAD),
    }
)
"""What follows from each sign in each state; every pair is there."""


def after(state: State, signs: Iterable[Sign]) -> State:
    """What a rank is after some signs."""
    for sign in signs:
        state = TRANSITIONS[state][sign]
    return state
