"""Groups: calls that are made one after another and started together.

A group's collectives are one call: the ranks compare all of them at once, and one that is refused anywhere keeps every
part of the group from starting, its messages included. A group of messages alone is no collective.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hetcomm.agreement.tickets import Intent
from hetcomm.errors import HetcommError, UsageError
from hetcomm.works.engine import Engine
from hetcomm.works.refusals import refusal
from hetcomm.works.work import MessageWork, Work

__all__ = ["Queue", "group"]


@dataclass(frozen=True, slots=True)
class _Entry:
    work: Work
    intent: Intent | None  # None: messages
    waited: bool


class Queue:
    """The calls of a group whose block has not ended.

    Attributes:
        is_collective: Whether a collective was called, or tried.
        refused: Why one was refused here, so that no part of the group may start; None: none was.
    """

    def __init__(self) -> None:
        self.is_collective = False
        self.refused: HetcommError | None = None
        self._always = False
        self._entries: list[_Entry] = []

    def add(self, work: Work, intent: Intent | None, *, waited: bool, always: bool = False) -> None:
        """Queue a call; with `waited` the end of the group waits for it; `always` as for `Agreement.open`."""
        self.is_collective |= intent is not None
        self._always |= always
        self._entries.append(_Entry(work, intent, waited))

    def run(self, engine: Engine) -> None:
        """Start everything, and wait for what is to be waited for.

        Raises:
            HetcommError: The first that went wrong.
        """
        messages = [entry.work for entry in self._entries if isinstance(entry.work, MessageWork)]
        intents = [entry.intent for entry in self._entries if entry.intent is not None]
        collectives = [entry.work for entry in self._entries if entry.intent is not None]
        works: list[Work] = []
        if messages:
            works.append(_Burst(engine, messages))
        engine.submit([*works, *messages, *collectives], _together(intents), background=True, always=self._always)
        if works and intents and not works[0].over:
            engine.finish(works[0])  # a message that is sent later must not overtake these
        first: HetcommError | None = None
        for entry in self._entries:
            if entry.waited and entry.work.order is not None:
                engine.leave(entry.work)
            elif entry.waited:
                try:
                    engine.finish(entry.work)
                except HetcommError as error:
                    first = first or error
        if first is not None:
            raise first

    def drop(self, engine: Engine, error: BaseException) -> None:
        """The block ended with an exception: start nothing, and tell the others if they wait for it."""
        why = f"its group ended with {type(error).__name__}"
        for entry in self._entries:
            entry.work.end(UsageError(f"{entry.work.name} was not started: {why}", rank=engine.rank))
        if self.is_collective and not engine.unusable:
            engine.agreement.refuse(refusal(error, "its group", engine.rank))


class _Burst(Work):
    """All messages of a group at once, receives first; over when they are posted."""

    __slots__ = ("_works",)

    def __init__(self, engine: Engine, works: Sequence[MessageWork]) -> None:
        super().__init__(engine, "group", max(work.seconds for work in works))
        self._works = works

    def begin(self) -> bool:
        """Post everything, once all arrays are ready."""
        if not self._engine.permits(self.ticket) or not all(work.due for work in self._works):
            return False
        for sends in (False, True):
            for work in self._works:
                work.post(sends=sends)
        self.begun = True
        self._engine.end(self, None)
        return True

    def advance(self) -> bool:
        """Nothing is left to do."""
        return True


@contextmanager
def group(engine: Engine) -> Iterator[None]:
    """The block of `Communicator.group`."""
    engine.enter()
    engine.settle()
    if engine.group is not None:  # the outermost block starts everything
        yield
        return
    queue = Queue()
    engine.group, engine.ledger.is_slow = queue, True
    try:
        yield
        if queue.refused is not None:  # and the block went on
            raise queue.refused
    except BaseException as error:
        with engine.lock:
            queue.drop(engine, error)
        raise
    finally:
        engine.group, engine.ledger.is_slow = None, engine.unusable or engine.threaded
    engine.check_usable()
    with engine.lock:
        queue.run(engine)


def _together(intents: Sequence[Intent]) -> Intent | None:
    """What the ranks compare of all collectives of a group."""
    if len(intents) < 2:
        return intents[0] if intents else None
    return Intent.of(f"a group of {len(intents)} collectives: {'; '.join(intent.text for intent in intents)}", *intents)
