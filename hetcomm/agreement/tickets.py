"""What a rank means to call, and an open call."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hetcomm.errors import HetcommError

__all__ = ["Intent", "Ticket"]


@dataclass(frozen=True, slots=True)
class Intent:
    """What a rank wants to run: 16 bytes that are equal where the plans are, and a line of text for people."""

    fingerprint: bytes
    text: str

    @classmethod
    def of(cls, text: str, *parts: Intent) -> Intent:
        """What is meant by `text` and the parts, in their order; only the text is shown."""
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        for part in parts:
            digest.update(part.fingerprint)
        return cls(digest.digest(), text)


class Ticket:
    """One open call.

    Attributes:
        call: Its number.
        check: What the tags of its messages hold, once it has begun.
        intent: What this rank runs.
        always: Whether the plans are compared though they have been before.
        begun: Whether data may be moved; set by `Agreement.ready`.
        error: Why the call fails on all ranks, or None.
        works: How many works of this rank it consists of that are not over; the engine counts.
    """

    __slots__ = ("always", "begun", "call", "check", "error", "intent", "works")

    def __init__(self, call: int, intent: Intent, always: bool) -> None:
        self.call = call
        self.intent = intent
        self.always = always
        self.begun = False
        self.check = 0
        self.error: HetcommError | None = None
        self.works = 1
