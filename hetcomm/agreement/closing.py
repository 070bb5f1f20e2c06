"""How the ranks of a communicator part: a state machine of one rank, which sends and is given frames.

Each rank tells rank 0 that it has nothing more to call, and what it has called. When all have, and have called the
same, rank 0 asks whether each still waits in `close`;
only if all do, what is collective about the end may follow at once. A rank that is tired of waiting goes on (`defer`),
since others may wait in the close of another communicator, and for it.

=========  ===================  =================================================
frame      from                 meaning
=========  ===================  =================================================
CLOSING    each rank to 0       I have nothing more to call; fingerprint: what I have
                                called, text: the last of it; number: messages I have
                                sent, less those I have received
CLOSED     0 to all             nobody has; do you wait? flag 1: every message that was
                                sent has been received
PARTING    each rank to 0       flag 1: I do, and now until PARTED; flag 0: no
PARTED     0 to all             flag 1: all do; flag 0: not all
=========  ===================  =================================================
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

from hetcomm.agreement.control import Frame, Subject

__all__ = ["Closing", "Parting"]


class Parting(enum.Enum):
    """How a communicator was closed."""

    TOGETHER = "all ranks are in close"
    APART = "all ranks have called close, and some have returned"
    LATER = "some ranks have yet to call close"
    LOST = "a rank has left otherwise, or the time was up"


class Closing:
    """The end of one communicator, as one rank sees it.

    Args:
        rank, nranks: This process's number and how many there are.
        send: Sends a frame to some ranks.
        disagree: Told by rank 0 of the first call in which ranks differ, and how, as text.

    Attributes:
        frames: At rank 0, who has nothing more to call.
        clean: Whether it is known that every message that was sent has been received.
        together: Whether all ranks wait in `close`; None until that is known.
    """

    def __init__(
        self,
        rank: int,
        nranks: int,
        send: Callable[[Frame, Iterable[int]], None],
        disagree: Callable[[int, str], object],
    ) -> None:
        self.frames: dict[int, Frame] = {}
        self.together: bool | None = True if nranks == 1 else None
        self._rank, self._nranks = rank, nranks
        self._send = send
        self._disagree = disagree
        self.clean = False
        self._waits = False
        self._answered = False
        self._answers: dict[int, bool] = {}

    def announce(self, call: int, chain: int, last: str, outstanding: int) -> None:
        """This rank has nothing more to call, from that call on, and waits.

        Args:
            call: The number of the call that it does not make.
            chain: What all that have made the same calls have in common (`Ledger.chain`).
            last: The last of its calls, as text.
            outstanding: How many messages it has sent, less those that it has received.
        """
        self._waits = True
        if self._nranks == 1:
            self.clean = outstanding == 0
            return
        calls = chain.to_bytes(16, "little")
        self._tell(Frame(Subject.CLOSING, self._rank, call, fingerprint=calls, text=last, number=outstanding))

    def defer(self) -> bool:
        """Stop waiting; False if this rank has said that it waits, so that it must."""
        if self._answered:
            return False
        self._waits = False
        self._answer()
        return True

    def record(self, frame: Frame) -> None:
        """Take in a frame; at rank 0 its own, too."""
        match frame.subject:
            case Subject.CLOSING:
                self.frames[frame.source] = frame
                if len(self.frames) == self._nranks and not self._differ():
                    self._tell_all(Subject.CLOSED, int(sum(each.number for each in self.frames.values()) == 0))
            case Subject.CLOSED:
                self.clean = bool(frame.flag)
                self._answer()
            case Subject.PARTING:
                self._answers[frame.source] = bool(frame.flag)
                if len(self._answers) == self._nranks:
                    self._tell_all(Subject.PARTED, int(all(self._answers.values())))
            case Subject.PARTED:
                self.together = bool(frame.flag)

    def _differ(self) -> bool:
        """Rank 0: whether the ranks have called different things."""
        mine = self.frames[0]
        for source, frame in self.frames.items():
            if (frame.call, frame.fingerprint) != (mine.call, mine.fingerprint):
                text = (
                    f"rank 0 closes it after {mine.call} calls, the last of which was {mine.text}, "
                    f"but rank {source} after {frame.call}, the last of which was {frame.text}"
                )
                self._disagree(max(0, min(mine.call, frame.call) - 1), text)
                return True
        return False

    def _answer(self) -> None:
        if not self._answered:
            self._answered = True
            self._tell(Frame(Subject.PARTING, self._rank, 0, int(self._waits)))

    def _tell(self, frame: Frame) -> None:
        if self._rank == 0:
            self.record(frame)
        else:
            self._send(frame, (0,))

    def _tell_all(self, subject: Subject, flag: int) -> None:
        frame = Frame(subject, 0, 0, flag)
        self._send(frame, range(1, self._nranks))
        self.record(frame)
