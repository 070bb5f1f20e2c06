"""How the 64 bits of a message's tag are used.

=======  ==================================================================
bits     meaning
=======  ==================================================================
63 - 48  context: which communicator, or which vendor's sub-communicator
47 - 44  class: 8 collective, 9 point-to-point, 10 control; 15 is the transport's
43 - 24  source: the sender's rank within the context
23 - 0   collective: call number mod 2^16, then 8 bits of channel;
         point-to-point: the user's tag
43 - 0   control: the communicator's serial number
=======  ==================================================================

A transport matches tags only, so the sender is part of them. Control messages leave the sender out and name it
inside, so that one posted receive takes those of all ranks. A context is used by disjoint groups at most at a time, and
no process is in two groups of one context, so tags never meet. Sixteen bits of the call number are enough: two calls
65,536 apart can never be under way between the same two ranks, because each run of a program waits for its messages.

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
    "MAX_RANKS",
    "MAX_USER_TAG",
    "PER_COMMUNICATOR",
    "Contexts",
    "collective",
    "contexts_on",
    "control",
    "point_to_point",
]

PER_COMMUNICATOR = 3  # its own, and one each for the home and the border group of a `ucx` cluster
MAX_CONTEXT = (1 << 16) - 1
MAX_COMMUNICATORS = (MAX_CONTEXT + 1) // PER_COMMUNICATOR
MAX_RANKS = 1 << 20
MAX_CHANNEL = (1 << 8) - 1
MAX_USER_TAG = (1 << 24) - 1

_COLLECTIVE = 8
_POINT_TO_POINT = 9
_CONTROL = 10

_MAX_SERIAL = (1 << 44) - 1
_SERIAL = struct.Struct("<Q")


def collective(context: int, source: int, call: int, channel: int = 0) -> int:
    """The tag of a message of a program."""
    return context << 48 | _COLLECTIVE << 44 | source << 24 | (call & 0xFFFF) << 8 | channel


def point_to_point(context: int, source: int, tag: int = 0) -> int:
    """The tag of a message of `Communicator.send`."""
    return context << 48 | _POINT_TO_POINT << 44 | source << 24 | tag


def control(context: int, serial: int) -> int:
    """The tag of all control messages of a communicator."""
    return context << 48 | _CONTROL << 44 | serial & _MAX_SERIAL


class Contexts:
    """Hands out the contexts of one process; those of a group are agreed upon by its ranks.

    Each communicator takes `PER_COMMUNICATOR` contexts in a row. Each rank proposes those that are free on it, and all
    take the lowest that are free on every rank. A rank gives them back when it knows that no message of theirs is left
    anywhere, or never, and then the others cannot use them with it either.
    """

    def __init__(self) -> None:
        self._used = 0  # bit i: the contexts from i * PER_COMMUNICATOR on
        self._serial = 0

    def __len__(self) -> int:
        """How many communicators have contexts here."""
        return self._used.bit_count()

    @property
    def proposal(self) -> bytes:
        """What this process can take, for `take` on all ranks of a group."""
        return _SERIAL.pack(self._serial) + self._used.to_bytes((self._used.bit_length() + 7) // 8, "little")

    def take(self, proposals: Sequence[bytes]) -> tuple[int, int]:
        """Take contexts for a communicator of the ranks whose proposals these are.

        Returns:
            The first of the contexts, and a serial number that none of these ranks has had before.

        Raises:
            UsageError: There are none that are free on all of them.
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
        return number * PER_COMMUNICATOR, serial

    def give_back(self, context: int) -> None:
        """No message of the communicator that took contexts from `context` on is left on its way to any rank."""
        self._used &= ~(1 << context // PER_COMMUNICATOR)


def contexts_on(worker: int) -> Contexts:
    """The contexts of this process on the UCP worker at address `worker`, which outlives the communicators on it.

    What the last `hetcomm.init` on it did not give back stays taken, so that a message left over meets nobody.
    """
    return _adopted.setdefault(worker, Contexts())


_adopted: dict[int, Contexts] = {}
