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
47 - 44  9: point-to-point, 10: control, 11: the transport's own, 12: groups
         that make communicators. Then
43 - 24  point-to-point: source, the sender's rank within the context
23 - 0   and the user's tag
43 - 0   control: the communicator's serial number
43 - 24  groups: source, the sender's rank in the job
23 - 0   and 0 for the group of a communicator, or what tells others from it
=======  ==================================================================

A transport matches tags only, so the sender is part of them. Control messages leave the sender out and name it
inside, so that one posted receive takes those of all ranks. A context is used by disjoint groups at most at a time, and
no process is in two groups of one context, so tags never meet. Eight bits of the number of a run are enough: of one
communicator at most `WINDOW` runs are under way at once. The check bits (`Ledger.begin`) tell plans apart: ranks
whose calls differ, now or at any time before, never take each other's messages.

Contexts are used again, by whatever group comes next, once their communicator was closed and all of its messages have
been received: `Contexts` has the rules. What may still be on its way then is a control message that nobody needs any
more, hence the serial number, which two communicators of one process never share.

Bit 47 is set in all of them: the tags without it belong to whoever shares a UCP worker with hetcomm.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hetcomm.errors import UsageError

__all__ = [
    "MAX_CHANNEL",
    "MAX_COMMUNICATORS",
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
    "group",
    "point_to_point",
    "run",
]

MAX_CONTEXT = (1 << 16) - 1
MAX_COMMUNICATORS = MAX_CONTEXT + 1
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
_GROUP = 12

_MAX_SERIAL = (1 << 44) - 1
_SERIAL = struct.Struct("<Q")


def collective(context: int, source: int, channel: int = 0) -> int:
    """The tag of a message of a program, but for what `run` gives."""
    return context << 48 | _COLLECTIVE << 46 | source << 29 | channel << 21


def run(number: int, check: int) -> int:
    """What one run sets in the tags of its messages."""
    return (number & 0xFF) << 13 | check


def point_to_point(context: int, source: int, tag: int = 0) -> int:
    """The tag of a message of `Communicator.send`."""
    return context << 48 | _POINT_TO_POINT << 44 | source << 24 | tag


def control(context: int, serial: int) -> int:
    """The tag of all control messages of a communicator."""
    return context << 48 | _CONTROL << 44 | serial & _MAX_SERIAL


def group(context: int, source: int, which: int) -> int:
    """The tag of a message of a `JobGroup` over the transport; `source` is the sender's rank in the job."""
    return context << 48 | _GROUP << 44 | source << 24 | which


class Contexts:
    """Hands out the contexts of one process; those of a group are agreed upon by its ranks.

    Each rank proposes those that are free on it, and all take the lowest that is free on every rank. A rank gives it
    back when it knows that no message of it is left anywhere, or never: then the others cannot use it with it either.
    """

    def __init__(self) -> None:
        self._used = 0  # bit i: context i
        self._serial = 0

    def __len__(self) -> int:
        """How many communicators have contexts here."""
        return self._used.bit_count()

    @property
    def proposal(self) -> bytes:
        """What this process can take, for `take` on all ranks of a group."""
        return _SERIAL.pack(self._serial) + self._used.to_bytes((self._used.bit_length() + 7) // 8, "little")

    def take(self, proposals: Sequence[bytes]) -> tuple[int, int]:
        """Take a context for a communicator of the ranks whose proposals these are.

        Returns:
            The context, and a serial number that none of these ranks has had before.

        Raises:
            UsageError: There is none that is free on all of them.
        """
        used = serial = 0
        for proposal in proposals:
            serial = max(serial, *_SERIAL.unpack_from(proposal))
            used |= int.from_bytes(proposal[_SERIAL.size :], "little")
        lowest = ~used & (used + 1)
        number = lowest.bit_length() - 1
        if number >= MAX_COMMUNICATORS:
            raise UsageError(
                f"this process has {len(self)} communicators, and {MAX_COMMUNICATORS} is the most its ranks can have",
                remedy="Close those that are not needed. One that broke, or whose messages were not all received, "
                "counts even when it is closed.",
            )
        self._used |= lowest
        self._serial = serial + 1
        return number, serial

    def give_back(self, context: int) -> None:
        """No message of the communicator of `context` is left on its way to any rank."""
        self._used &= ~(1 << context)


def contexts_on(worker: int) -> Contexts:
    """The contexts of this process on the UCP worker at address `worker`, which outlives the communicators on it.

    What the last `hetcomm.init` on it did not give back stays taken, so that a message left over meets nobody.
    """
    return _adopted.setdefault(worker, Contexts())


_adopted: dict[int, Contexts] = {}
