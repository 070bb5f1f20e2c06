"""Where the other ranks are: which calls they have come to, asked for when a call fails and noted by the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from hetcomm._ext import ucp
from hetcomm.agreement.control import Frame, Subject
from hetcomm.health.whereabouts import Answer

__all__ = ["RollCall"]

_FROM_ALL = frozenset({"all_reduce", "all_gather", "all_to_all", "reduce_scatter", "barrier", "split"})
_BACK = 8  # calls


class RollCall:
    """What one rank of a communicator has heard of the others' calls.

    Args:
        rank: This one.
        ledger: What counts its calls.
        send: Sends a frame to some ranks.
        completed: How many of its calls are over, in order.

    Attributes:
        answers: The latest of each rank that has said anything.
        needs: The ranks whose messages this one waits for, which it says when it is asked.
    """

    def __init__(
        self,
        rank: int,
        ledger: ucp.Ledger,
        send: Callable[[Frame, Iterable[int]], object],
        completed: Callable[[], int],
    ) -> None:
        self.answers: dict[int, Answer] = {}
        self.needs: Callable[[], Collection[int]] = tuple
        self._rank = rank
        self._ledger = ledger
        self._send = send
        self._completed = completed

    def ask(self, ranks: Iterable[int]) -> None:
        """Ask where ranks are; what they have answered before is stale from now on."""
        asked = list(ranks)
        for rank in asked:
            old = self.answers.get(rank)
            if old is not None:
                self.answers[rank] = Answer(old.called, old.completed, old.last, now=False)
        self._send(Frame(Subject.WHERE, self._rank, self._ledger.next_call), asked)

    def has_answered(self, rank: int) -> bool:
        """Whether a rank has, since it was asked."""
        return rank in self.answers and self.answers[rank].now

    def known(self, rank: int) -> tuple[int, str]:
        """How many calls a rank has made at least, and the last of these as text.

        Beside what it has said: this rank has completed some that need something of all.
        """
        answer = self.answers.get(rank, Answer(0, now=False))
        if answer.now:
            return answer.called, answer.last
        completed = self._completed()
        for call in range(completed - 1, max(answer.called, completed - _BACK) - 1, -1):
            intent = self._ledger.intent_of(call)
            if intent is not None and intent.text.split(" ")[0] in _FROM_ALL and " 0 x " not in intent.text:
                return call + 1, intent.text
        return answer.called, answer.last

    def hint(self, frame: Frame) -> None:
        """A rank has told its plan for a call: it has come to that, and all calls before."""
        old = self.answers.get(frame.source)
        if old is None or old.called <= frame.call:
            self.answers[frame.source] = Answer(frame.call + 1, frame.call, frame.text, now=False)

    def record(self, frame: Frame) -> None:
        """A rank asks, or answers."""
        if frame.subject is Subject.HERE:
            self.answers[frame.source] = Answer(frame.call, max(0, frame.number), frame.text, frame.ranks)
            return
        called = self._ledger.next_call
        last = self._ledger.intent_of(called - 1)
        text = "" if last is None else last.text
        needs = frozenset(self.needs()) - {self._rank}
        answer = Frame(Subject.HERE, self._rank, called, text=text, ranks=needs, number=self._completed())
        self._send(answer, (frame.source,))
