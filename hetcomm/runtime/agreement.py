"""Agreement on calls: misuse never hangs, and every rank gets the error.

Every collective call on a communicator has a number. The rules:

* A plan that this communicator has not run before is compared before any step runs: each rank sends its fingerprint to
  rank 0, which answers all of them. A plan that has been run before costs nothing.
* A rank whose arguments are refused tells all others (`refuse`); they raise the same error in that call.
* A rank that waits long sends its plan to the others. Whoever has another plan for that call number raises and
  says so to everyone: a plan may be cached on some ranks and new to others.
* After a call that failed on all ranks, each tells rank 0 whether it had begun to move data. If none had, the
  communicator goes on; the answer is waited for in the next call, so a refusal raises at once.
* A rank that leaves says so; whoever needs it in a later call raises.

Frames are only recorded where they arrive (`_record`); they raise where the process waits (`_check`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from hetcomm.errors import (
    CollectiveTimeoutError,
    HetcommError,
    PeerFailureError,
    PlanMismatchError,
    TopologyError,
    TransportError,
    UsageError,
    VendorError,
)
from hetcomm.runtime.control import Frame, Mailbox, Subject
from hetcomm.runtime.waiting import Progress, wait

__all__ = ["REFUSALS", "Agreement", "Intent"]

_HISTORY = 1024  # calls whose plans are remembered
_FIRST_NOTE = 0.05  # seconds of waiting after which a rank tells the others what it waits in

_DIAGNOSIS = 0.2  # seconds in which the others may say what they run, before an error of the wire is raised

REFUSALS: tuple[type[HetcommError], ...] = (UsageError, VendorError, TopologyError, TransportError)
"""What a rank may raise about its own arguments before it takes part in a call."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a rank wants to run: 16 bytes that are equal where the plans are, and a line of text for people."""

    fingerprint: bytes
    text: str


class Agreement:
    """The state of one rank of one communicator.

    Attributes:
        broken: Why no further call is possible, or None.
    """

    def __init__(self, moving: Progress, mailbox: Mailbox) -> None:
        self.broken: str | None = None
        self._mailbox = mailbox
        self._moving = moving
        self._rank, self._nranks = mailbox.rank, mailbox.nranks
        self._next = 0
        self._history: deque[Intent | None] = deque(maxlen=_HISTORY)  # up to call `_next - 1`; None: refused
        self._comparing = False
        self._moved = False  # whether call `_next - 1` may have moved data
        self._verified: set[bytes] = set()
        self._alarm = False  # whether something was recorded that `_check` must look at
        self._failed: set[int] = set()  # calls that failed on all ranks and have been raised here
        self._refusals: dict[int, Frame] = {}
        self._mismatches: dict[int, Frame] = {}
        self._plans: dict[int, dict[int, Frame]] = {}
        self._approved: set[int] = set()
        self._gone: dict[int, Frame] = {}
        self._heard: set[int] = set()  # who has told its plan, while `diagnose` asks
        self._unsettled: list[int] = []
        self._reports: dict[int, dict[int, bool]] = {}
        self._answered: set[int] = set()
        self._settled: dict[int, bool] = {}
        self._closing: dict[int, Frame] = {}  # at rank 0
        self._closed = False
        self._leaving = False  # takes part in nothing more
        self._gone_out = False  # has told so
        self._last_raised: HetcommError | None = None

    @property
    def next_call(self) -> int:
        """The number that the next call will have."""
        return self._next

    # ---- calls

    def begin(self, intent: Intent, deadline: float, *, always: bool = False) -> int:
        """Begin the next call and return its number; data may be moved from now on.

        With `always` the plans are compared even if they were before: for calls that do not go through the transport.

        Raises:
            PlanMismatchError: Another rank has another plan.
            UsageError, VendorError, TransportError: Another rank's arguments were refused.
            CollectiveTimeoutError: Some rank did not show up in time.
            PeerFailureError: A rank has left.
        """
        call = self._next
        if self._nranks == 1:
            self._next += 1
            return call
        if self._unsettled:
            self._settle(deadline)
        self._history.append(intent)
        self._next += 1
        self._moved = False
        if always or intent.fingerprint not in self._verified:
            self._compare(call, intent, deadline)
        else:
            self.poll_and_check()
        self._moved = True
        return call

    def refuse(self, error: HetcommError) -> None:
        """This rank's arguments for the next call were refused: tell the others, and count the call."""
        call = self._next
        self._next += 1
        if self._nranks == 1:
            return
        self._history.append(None)
        kind = next(number for number, known in enumerate(REFUSALS) if isinstance(error, known))
        text = error.message if error.remedy is None else f"{error.message.rstrip('.')}. {error.remedy}"
        self._mailbox.send(Frame(Subject.REFUSED, self._rank, call, kind, text=text), self._mailbox.others())
        self._fail(call, moved=False)

    def watch(self) -> Callable[[float, float], None]:
        """What a wait inside a call does now and then: look at the mailbox and, ever more rarely, tell the others."""
        due = _FIRST_NOTE

        def idle(_: float, waited: float) -> None:
            nonlocal due
            self._poll()
            if self._alarm:
                self._check()
            if waited >= due:
                due *= 2
                self._send_note()

        return idle

    def poll_and_check(self) -> None:
        """Look at the mailbox once.

        Raises:
            HetcommError: As `begin`, for the current call.
        """
        self._poll()
        if self._alarm:
            self._check()

    def diagnose(self, error: HetcommError) -> HetcommError:
        """The misuse behind an error of the wire, the peer or a vendor in the current call, or `error` itself.

        When ranks run different plans, what is seen first may be a message of the wrong length, or a peer that has
        raised and gone. So the plans are compared, as far as the others answer at once.
        """
        if self._nranks == 1 or error is self._last_raised or not isinstance(error, (TransportError, VendorError)):
            return error
        call = self._next - 1
        self._heard.clear()
        self._send_note(ask=True)

        def answered() -> bool:
            self.poll_and_check()
            return len(self._heard) == self._nranks - 1

        try:
            wait(self._moving, answered, time.monotonic() + _DIAGNOSIS)
        except HetcommError as better:
            return error if isinstance(better, PeerFailureError) and better.collective != call else better
        return error

    def is_settling(self, error: BaseException) -> bool:
        """Whether `error` is one that all ranks raise for a call, after which the communicator may live on."""
        return error is self._last_raised

    # ---- leaving

    def leave(self, why: str, *, this_call: bool = False) -> None:
        """Tell the others that this rank takes part in nothing more, from its next call on or from the current one.

        Telling it again does nothing.
        """
        if self._gone_out:
            return
        self._leaving = self._gone_out = True
        call = self._next - 1 if this_call else self._next
        self._mailbox.send(Frame(Subject.GONE, self._rank, max(call, 0), text=why), self._mailbox.others())

    def close(self, seconds: float) -> bool:
        """Wait until every rank has called this; False if one left otherwise or `seconds` passed."""
        if self._nranks == 1:
            return True
        self._leaving = True
        frame = Frame(Subject.CLOSING, self._rank, self._next, text="closed it")
        if self._rank == 0:
            self._record(frame)
        else:
            self._mailbox.send(frame, (0,))

        def over() -> bool:
            self._poll()
            return self._closed or bool(self._gone)

        return wait(self._moving, over, time.monotonic() + seconds) and self._closed

    # ---- what frames do

    def _poll(self) -> None:
        while (frame := self._mailbox.receive()) is not None:
            self._record(frame)

    def _record(self, frame: Frame) -> None:
        call = frame.call
        match frame.subject:
            case Subject.PLAN | Subject.NOTE:
                if self._leaving and call >= self._next:
                    answer = Frame(Subject.GONE, self._rank, self._next, text="closed it")
                    self._mailbox.send(answer, (frame.source,))
                elif call not in self._failed:
                    self._plans.setdefault(call, {})[frame.source] = frame
                self._heard.add(frame.source)
                if frame.subject is Subject.NOTE and frame.flag and (mine := self._intent_of(call)) is not None:
                    note = Frame(Subject.NOTE, self._rank, call, 0, mine.fingerprint, mine.text)
                    self._mailbox.send(note, (frame.source,))
            case Subject.VERDICT:
                if frame.flag:
                    self._approved.add(call)
                else:
                    self._mismatches.setdefault(call, frame)
            case Subject.REFUSED:
                self._refusals.setdefault(call, frame)
            case Subject.SETTLE:
                self._count_report(call, frame.source, bool(frame.flag))
            case Subject.SETTLED:
                self._settled[call] = bool(frame.flag)
            case Subject.GONE:
                self._gone.setdefault(frame.source, frame)
            case Subject.CLOSING:
                self._closing[frame.source] = frame
                if len(self._closing) == self._nranks:
                    self._closed = True
                    self._mailbox.send(Frame(Subject.CLOSED, self._rank, self._next), self._mailbox.others())
            case Subject.CLOSED:
                self._closed = True
        self._alarm = True

    def _check(self) -> None:
        """Raise if what was recorded makes the current call, or one before it, impossible."""
        current = self._next - 1
        for call in [call for call in self._refusals if call <= current]:
            frame = self._refusals.pop(call)
            if call not in self._failed:
                self._raise_refusal(frame)
        for call in [call for call in self._mismatches if call <= current]:
            frame = self._mismatches.pop(call)
            if call not in self._failed:
                self._raise_mismatch(call, frame.text)
        for call in [call for call in self._plans if call <= current]:
            self._check_plans(call)
        for frame in (*self._gone.values(), *self._closing.values()):
            if frame.call <= current:
                raise PeerFailureError(
                    f"rank {frame.source} has left the communicator before it did call {current}: it {frame.text}",
                    rank=self._rank,
                    peer=frame.source,
                    collective=current,
                    remedy="Close this communicator. All ranks must make the same calls.",
                )
        self._alarm = bool(self._refusals or self._mismatches or self._gone or self._closing or self._plans)

    def _check_plans(self, call: int) -> None:
        mine = self._intent_of(call)
        if mine is not None and call not in self._failed:
            for source, frame in self._plans[call].items():
                if frame.fingerprint != mine.fingerprint:
                    text = f"rank {self._rank} calls {mine.text}, but rank {source} calls {frame.text}"
                    self._mailbox.send(Frame(Subject.VERDICT, self._rank, call, 0, text=text), self._mailbox.others())
                    self._raise_mismatch(call, text)
            if self._comparing and call == self._next - 1:
                return
            asking = [source for source, frame in self._plans[call].items() if frame.subject is Subject.PLAN]
            self._mailbox.send(Frame(Subject.VERDICT, self._rank, call, 1), asking)
        del self._plans[call]

    def _intent_of(self, call: int) -> Intent | None:
        """What this rank runs, or ran, as that call; None if it refused it, forgot it, or has yet to come to it."""
        index = len(self._history) - (self._next - call)
        return self._history[index] if 0 <= index < len(self._history) else None

    def _send_note(self, *, ask: bool = False) -> None:
        """Tell the others the plan of the current call; with `ask`, they answer with theirs."""
        mine = self._history[-1] if self._history else None
        if mine is not None:
            frame = Frame(Subject.NOTE, self._rank, self._next - 1, int(ask), mine.fingerprint, mine.text)
            self._mailbox.send(frame, self._mailbox.others())

    # ---- comparing a plan that is new

    def _compare(self, call: int, intent: Intent, deadline: float) -> None:
        self._comparing = True  # before anything is looked at: plans of this call must be kept until all are here
        if self._rank != 0:
            self._mailbox.send(Frame(Subject.PLAN, self._rank, call, 0, intent.fingerprint, intent.text), (0,))

        def agreed() -> bool:
            self.poll_and_check()
            if self._rank != 0:
                return call in self._approved
            return len(self._plans.get(call, ())) == self._nranks - 1

        try:
            if not wait(self._moving, agreed, deadline, self.watch()):
                raise self._lateness(call, intent)
        finally:
            self._comparing = False
            self._plans.pop(call, None)
            self._approved.discard(call)
        if self._rank == 0:
            self._mailbox.send(Frame(Subject.VERDICT, 0, call, 1), self._mailbox.others())
        self._verified.add(intent.fingerprint)

    def _lateness(self, call: int, intent: Intent) -> CollectiveTimeoutError:
        if self._rank == 0:
            missing = sorted(set(self._mailbox.others()) - set(self._plans.get(call, ())))
            who = f"ranks {', '.join(map(str, missing[:8]))}{', ...' if len(missing) > 8 else ''}"
            peer = missing[0]
        else:
            who, peer = "rank 0", 0
        return CollectiveTimeoutError(
            f"waited in vain for {who} to agree on {intent.text}",
            rank=self._rank,
            peer=peer,
            collective=call,
            remedy="See whether all ranks are alive and make the same calls; HETCOMM_TIMEOUT sets the limit.",
        )

    # ---- calls that failed on all ranks

    def _raise_refusal(self, frame: Frame) -> NoReturn:
        usable = self._fail(frame.call, self._moved if frame.call == self._next - 1 else True)
        self._last_raised = REFUSALS[frame.flag](
            f"rank {frame.source} refused this call: {frame.text}"
            + ("" if usable else " (Other ranks had begun: this communicator can only be closed.)"),
            rank=self._rank,
            peer=frame.source,
            collective=frame.call,
        )
        raise self._last_raised

    def _raise_mismatch(self, call: int, text: str) -> NoReturn:
        usable = self._fail(call, self._moved if call == self._next - 1 else True)
        self._last_raised = PlanMismatchError(
            f"the ranks disagree on call {call}: {text}",
            rank=self._rank,
            collective=call,
            remedy="All ranks must make the same calls in the same order, with equal counts, dtypes, ops and roots."
            + ("" if usable else " Data had moved: this communicator can only be closed."),
        )
        raise self._last_raised

    def _fail(self, call: int, moved: bool) -> bool:
        """The call failed on all ranks: report whether it moved data here, and return whether it did not."""
        self._failed.add(call)
        self._plans.pop(call, None)
        self._unsettled.append(call)
        if self._rank == 0:
            self._count_report(call, 0, moved)
        else:
            self._mailbox.send(Frame(Subject.SETTLE, self._rank, call, int(moved)), (0,))
        if moved:
            self.broken = f"call {call} failed when data had already moved"
        return not moved

    def _count_report(self, call: int, source: int, moved: bool) -> None:
        """Rank 0: answer once one rank has moved data, since it then asks no more, or once none has."""
        if call in self._answered:
            return
        reports = self._reports.setdefault(call, {})
        reports[source] = moved
        if moved or len(reports) == self._nranks:
            del self._reports[call]
            self._answered.add(call)
            self._settled[call] = moved
            self._mailbox.send(Frame(Subject.SETTLED, self._rank, call, int(moved)), self._mailbox.others())

    def _settle(self, deadline: float) -> None:
        """Wait until it is known whether the communicator survived the calls that failed on all ranks."""

        def settled() -> bool:
            self._poll()
            return 0 in self._gone or all(call in self._settled for call in self._unsettled)

        done = wait(self._moving, settled, deadline)
        if not done or not all(call in self._settled for call in self._unsettled):
            raise CollectiveTimeoutError(
                f"some rank did not say how call {self._unsettled[0]}, which was refused, went there",
                rank=self._rank,
                collective=self._unsettled[0],
                remedy="Catch the error on every rank or on none, and close this communicator.",
            )
        moved = [call for call in self._unsettled if self._settled.pop(call)]
        self._unsettled.clear()
        if moved:
            self.broken = f"other ranks had begun call {moved[0]} when it was refused"
            self._last_raised = TransportError(
                f"this communicator is unusable: {self.broken}",
                rank=self._rank,
                collective=moved[0],
                remedy="Close it and make a new one.",
            )
            raise self._last_raised
