"""How the 64 bits of a message's tag are used.

=======  ==================================================================
bits     meaning
=======  ==================================================================
63 - 48  context: which communicator
47 - 46  3: a message of a program. Then
45 - 29  source: the sender's rank within the context
28 - 21  channel
20 - 13  number of the run mod 2^8
12 - 0   check: what the ranks must agree on
=======  ==================================================================

=======  ==================================================================
47 - 44  9: point-to-point, 10: control, 11: the transport's own. Then
43 - 24  source: the sender's rank within the context (0 for control)
23 - 0   point-to-point: the user's tag; control: 0
=======  ==================================================================

A transport matches tags only, so the sender is part of them. Control messages leave the sender out and name it
inside, so that one posted receive takes those of all ranks. A context is used by disjoint groups at most, and
no process is in two groups of one context, so tags never meet. Eight bits of the number of a run are enough: of one
communicator at most `WINDOW` runs are under way at once. The check bits (`Ledger.begin`) tell plans apart: ranks
whose calls differ, now or at any time before, never take each other's messages.

Bit 47 is set in all of them: the tags without it belong to whoever shares a UCP worker with hetcomm.
"""

from __future__ import annotations

from hetcomm.errors import UsageError

__all__ = [
    "MAX_CHANNEL",
    "MAX_CONTEXT",
    "MAX_PLANS",
    "MAX_RANKS",
    "MAX_USER_TAG",
    "TOKENS",
    "WINDOW",
    "Contexts",
    "collective",
    "contexts_on",
    "control",
    "point_to_point",
    "run",
]

MAX_CONTEXT = (1 << 16) - 1
MAX_RANKS = 1 << 17
MAX_CHANNEL = (1 << 8) - 3
TOKENS = MAX_CHANNEL + 1
"""The channel of tokens before the calls on a home communicator; the next is that for a border communicator."""
MAX_USER_TAG = (1 << 24) - 1
MAX_PLANS = (1 << 13) - 1
"""Plans of one communicator that have numbers, from 1 on."""
WINDOW = 1 << 7
"""Runs of one communicator that may be under way at once: half of what tags tell apart."""

_COLLECTIVE = 3
_POINT_TO_POINT = 9
_CONTROL = 10


def collective(context: int, source: int, channel: int = 0) -> int:
    """The tag of a message of a program, but for what `run` gives."""
    return context << 48 | _COLLECTIVE << 46 | source << 29 | channel << 21


def run(number: int, check: int) -> int:
    """What one run sets in the tags of its messages."""
    return (number & 0xFF) << 13 | check


def point_to_point(context: int, source: int, tag: int = 0) -> int:
    """The tag of a message of `Communicator.send`."""
    return context << 48 | _POINT_TO_POINT << 44 | source << 24 | tag


def control(context: int) -> int:
    """The tag of all control messages of a communicator."""
    return context << 48 | _CONTROL << 44


class Contexts:
    """Hands out the contexts of one process; those of a group are agreed upon by its ranks.

    Each rank proposes its own next number, the highest is taken by all, and all go on above it.
    """

    def __init__(self) -> None:
        self._next = 0

    @property
    def proposal(self) -> int:
        """The lowest context this process can take."""
        return self._next

    def take(self, agreed: int, count: int = 1) -> int:
        """Take `count` contexts from `agreed` on, the highest of all proposals.

        Raises:
            UsageError: They have run out.
        """
        if agreed + count - 1 > MAX_CONTEXT:
            raise UsageError(
                f"this process has made {agreed} communicators, and {MAX_CONTEXT + 1} is the most there can be",
                remedy="Split once and keep the communicator instead of splitting again and again.",
            )
        self._next = agreed + count
        return agreed


def contexts_on(worker: int) -> Contexts:
    """The contexts of this process on the UCP worker at address `worker`, which outlives the communicators on it.

    They go on where those of the last `hetcomm.init` on it ended, so that a message left over from then meets nobody.
    """
    return _adopted.setdefault(worker, Contexts())


_adopted: dict[int, Contexts] = {}
