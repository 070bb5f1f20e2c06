"""Who is missing where a call waits: from what the ranks answer and what they are, without looking at anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hetcomm.health.states import State

__all__ = ["Answer", "Whereabouts", "missing"]


@dataclass(frozen=True, slots=True)
class Answer:
    """Where a rank is, as it says itself.

    Attributes:
        called: How many collectives it has called on the communicator.
        completed: How many of them were over, in the order of their calls.
        last: The last that it has called, as text.
        needs: The ranks that it waits for a message of or to.
        now: Whether it has answered when asked, and not just said so by the way.
    """

    called: int
    completed: int = 0
    last: str = ""
    needs: frozenset[int] = frozenset()
    now: bool = True


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What is known of a rank that an error is about.

    Attributes:
        rank: It, in the communicator.
        host: Its host; '' if it is not known.
        state: 'alive', 'suspected', 'stopped', 'left' or 'dead'.
        called: How many collectives it has called on the communicator, at least; None if it has not said.
        completed: How many of them were over on it, which it has said when it was asked; None: it has not answered.
        last: The last of those that it has called, as text; '' if it has not said.
        place: The host and the process, as text.
        condition: The state as text, with why it is so.
    """

    rank: int
    host: str = ""
    state: str = State.ALIVE.value
    called: int | None = None
    completed: int | None = None
    last: str = ""
    place: str = ""
    condition: str = ""

    def __str__(self) -> str:
        name = f"rank {self.rank} {self.place}".rstrip()
        parts = [f"is {self.condition}"] if self.state != State.ALIVE.value else []
        if self.called == 0:
            parts.append("has made no call")
        elif self.called is not None:
            said = self.completed is not None
            last = f"{'has made' if said else 'is known to have made'} call {self.called - 1} last"
            parts.append(f"{last}, {self.last}" if self.last else last)
            if self.completed is not None and self.completed < self.called - 1:
                parts.append(f"and waits in call {self.completed}")
        if self.completed is None and self.state == State.ALIVE.value:
            parts.append("does not answer, since it is busy with something else")
        return f"{name} {', '.join(parts)}" if parts else name


def missing(
    call: int,
    others: Collection[int],
    answers: Mapping[int, Answer],
    states: Mapping[int, State],
    needs: Collection[int],
) -> frozenset[int]:
    """The ranks that a call waits for.

    Certain are those that say that they have not come to it, and those that cannot answer, since they do not run or
    cannot be reached. If there are none, it is those of whom nothing is known: of them the ones that somebody needs a
    message of, if there are such, for the others may have done their part and compute.

    Args:
        call: Its number.
        others: All ranks but this one that have not left.
        answers: What they have said.
        states: What they are.
        needs: The ranks that this one waits for a message of or to.
    """
    silent = {rank for rank in others if rank not in answers or not answers[rank].now}
    absent = {rank for rank in others if rank not in silent and answers[rank].called <= call}
    halted = {rank for rank in silent if states.get(rank, State.ALIVE) is not State.ALIVE}
    if absent | halted:
        return frozenset(absent | halted)
    unknown = {rank for rank in silent if rank not in answers or answers[rank].called <= call}
    needed = set(needs).union(*(answer.needs for answer in answers.values()))
    return frozenset(unknown & needed or unknown)
