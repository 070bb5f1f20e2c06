"""How the 64 bits of a message's tag are used.

=======  ==================================================================
bits     meaning
=======  ==================================================================
63 - 48  context: which communicator, or which vendor's sub-communicator
47 - 44  class: 8 collective, 9 point-to-point, 10 control; 15 is the transport's
43 - 24  source: the sender's rank within the context (0 for control)
23 - 0   collective: call number mod 2^16, then 8 bits of channel;
         point-to-point: the user's tag; control: 0
=======  ==================================================================

A transport matches tags only, so the sender is part of them. Control messages leave the sender out and name it
inside, so that one posted receive takes those of all ranks. A context is used by disjoint groups at most, and
no process is in two groups of one context, so tags never meet. Sixteen bits of the call number are enough: two calls
65,536 apart can never be under way between the same two ranks, because each run of a program waits for its messages.

Bit 47 is set in all of them: the tags without it belong to whoever shares a UCP worker with hetcomm.
"""

from __future__ import annotations

from hetcomm.errors import UsageError

__all__ = [
    "MAX_CHANNEL",
    "MAX_CONTEXT",
    "MAX_RANKS",
    "MAX_USER_TAG",
    "Contexts",
    "collective",
    "contexts_on",
    "control",
    "point_to_point",
]

MAX_CONTEXT = (1 << 16) - 1
MAX_RANKS = 1 << 20
MAX_CHANNEL = (1 << 8) - 1
MAX_USER_TAG = (1 << 24) - 1

_COLLECTIVE = 8
_POINT_TO_POINT = 9
_CONTROL = 10


def collective(context: int, source: int, call: int, channel: int = 0) -> int:
    """The tag of a message of a program."""
    return context << 48 | _COLLECTIVE << 44 | source << 24 | (call & 0xFFFF) << 8 | channel


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
