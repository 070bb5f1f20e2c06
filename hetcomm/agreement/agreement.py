"""Agreement on calls: misuse never hangs, and every rank gets the error.

Every collective call on a communicator has a number and a `Ticket`; several may be open at once. The rules:

* A plan that this communicator has not run before is compared before any step of its call runs: each rank sends its
  fingerprint to rank 0, which answers all of them. It then has a number, the same on all ranks, since calls begin in
  one order. A plan that has a number costs nothing: the tags of its messages hold what follows from the numbers of
  all calls begun so far, so ranks that differ in any of them do not take each other's messages (`Ledger.begin`).
* A rank whose arguments are refused tells all others (`refuse`); the same error becomes that of their call.
* A rank that waits long sends its plan of its oldest open call to the others. Whoever has another plan for that number
  says so to everyone: a plan may be cached on some ranks and new to others.
* After a call that failed on all ranks, each tells rank 0 whether it had begun to move data. If none had, the
  communicator goes on; the next call begins when that is known, so a refusal is raised at once.
* A rank that leaves says so; the calls that need it fail. Ranks that close it compare what they have called.

Nothing here waits but `diagnose` and `close`: whoever has an open call looks in now and then (`poll`), and a call
begins when `ready` says so. Frames are recorded where they arrive (`_record`), and become errors of tickets (`_check`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from hetcomm._ext import ucp
from hetcomm.agreement.closing import Closing, Parting
from hetcomm.agreement.control import Frame, Leaving, Mailbox, Subject, unreadable
from hetcomm.agreement.rollcall import RollCall
from hetcomm.agreement.survival import Survival
from hetcomm.agreement.tickets import Intent, Ticket
from hetcomm.errors import (
    CollectiveTimeoutError,
    DepartedError,
    DeviceError,
    HetcommError,
    PeerFailureError,
    PlanMismatchError,
    ScheduleError,
    TopologyError,
    TransportError,
    UsageError,
    VendorError,
    numbers,
)
from hetcomm.execution import tags
from hetcomm.waiting.waiting import Progress, wait

__all__ = ["REFUSALS", "Agreement"]

_log = logging.getLogger(__name__)

_FIRST_NOTE = 0.05  # seconds after which a rank tells the others which call it waits in

_ASK, _ANSWER = 1, 2  # flags of a note that wants an answer, and of that; others are sent unasked

_DIAGNOSIS = 0.2  # seconds in which the others may say what they run, before an error of the wire is raised
_ROLL_CALL = 0.5  # and where they are, before one of a wait that took too long: they may share a processor

_SHARED: dict[int, type[HetcommError]] = {
    Leaving.MISMATCH: PlanMismatchError,
    Leaving.LATE: CollectiveTimeoutError,
}  # by why a rank has left: what the others raise, too

REFUSALS: tuple[type[HetcommError], ...] = (
    UsageError,
    VendorError,
    TopologyError,
    TransportError,
    ScheduleError,
    DeviceError,
)
"""What a rank may raise about its own arguments before it takes part in a call."""


class Agreement:
    """The state of one rank of one communicator.

    Args:
        moving: What moves the mailbox's frames.
        mailbox: The communicator's.
        ledger: Where calls are counted, and an alarm is raised for who makes them.

    Attributes:
        broken: Why no further call is possible, or None.
        cause: The misuse that broke it, if it was one.
        closing: How the ranks part.
        survival: Who goes on when it is broken.
        roll: Which calls the others have come to.
        failed: Tickets that got an error and have not been dealt with; whoever does so empties it.
        unsettled: Calls that failed on all ranks and of which rank 0 has yet to tell how they went there.
    """

    def __init__(self, moving: Progress, mailbox: Mailbox, ledger: ucp.Ledger) -> None:
        self.broken: str | None = None
        self.cause: HetcommError | None = None
        self.failed: list[Ticket] = []
        self._mailbox = mailbox
        self._moving = moving
        self._rank, self._nranks = mailbox.rank, mailbox.nranks
        self._ledger = ledger
        self._open: dict[int, Ticket] = {}  # in the order of their numbers
        self._numbers: dict[bytes, int] = {}  # of plans, in the order in which they were compared
        self._meant: list[str] = [""]  # by number
        self._over_everywhere: set[int] = set()  # calls that failed on all ranks and have been dealt with here
        self._refusals: dict[int, Frame] = {}
        self._mismatches: dict[int, Frame] = {}
        self._plans: dict[int, dict[int, Frame]] = {}
        self._approved: set[int] = set()
        self._gone: dict[int, Frame] = {}
        self.unsettled: list[int] = []
        self._why_unsettled: dict[int, HetcommError] = {}
        self._reports: dict[int, dict[int, bool]] = {}
        self._answered: set[int] = set()
        self._settled: dict[int, bool] = {}
        self.closing = Closing(self._rank, self._nranks, mailbox.send, self._disagree)
        self.survival = Survival(self._rank, self._nranks, mailbox.send)
        self.roll = RollCall(self._rank, ledger, mailbox.send, lambda: next(iter(self._open), ledger.next_call))
        self._ended: Callable[[], Collection[int]] = tuple
        self._look_at = 0.0
        self._leaving = False  # takes part in nothing more
        self._gone_out = False  # has told so
        self._why = "closed it"
        self._why_kind: int = Leaving.CLOSED
        self._misuse: HetcommError | None = None  # the last in which ranks called different things
        self._watched = -1  # the oldest open call when `remind` looked last
        self._remind_at = 0.0
        self._remind_every = _FIRST_NOTE

    # ---- calls

    def open(self, intent: Intent, *, always: bool = False) -> Ticket:
        """Count the next call; it may begin once `ready` says so.

        With `always` the plans are compared even if they were before: for calls that do not go through the transport.
        """
        ticket = Ticket(self._ledger.next_call, intent, always)
        self._ledger.count(intent)
        if self._nranks == 1:
            return ticket
        self._open[ticket.call] = ticket
        if self._rank and (always or intent.fingerprint not in self._numbers):
            self._mailbox.send(Frame(Subject.PLAN, self._rank, ticket.call, 0, intent.fingerprint, intent.text), (0,))
        return ticket

    def resume(self, intent: Intent, call: int, check: int) -> Ticket:
        """The ticket of a call that was counted and has begun without one; no later call has a ticket yet."""
        ticket = Ticket(call, intent, always=False)
        ticket.begun, ticket.check = True, check
        if self._nranks > 1:
            self._open[call] = ticket
        return ticket

    def number(self, intent: Intent) -> int | None:
        """The number of a plan whose calls need not be compared any more; None if they must be."""
        return 0 if self._nranks == 1 else self._numbers.get(intent.fingerprint)

    def _number(self, intent: Intent) -> int:
        """The number of a plan that has been compared; 0: numbers have run out, and it must be each time."""
        number = self._numbers.get(intent.fingerprint)
        if number is None:
            if len(self._meant) > tags.MAX_PLANS:
                return 0
            number = self._numbers[intent.fingerprint] = len(self._meant)
            self._meant.append(intent.text)
        return number

    def refuse(self, error: HetcommError) -> None:
        """This rank's arguments for the next call were refused: tell the others, and count the call."""
        call = self._ledger.next_call
        self._ledger.count(None)
        if self._nranks == 1:
            return
        kind = next(number for number, known in enumerate(REFUSALS) if isinstance(error, known))
        text = error.message if error.remedy is None else f"{error.message.rstrip('.')}. {error.remedy}"
        self._mailbox.send(Frame(Subject.REFUSED, self._rank, call, kind, text=text), self._mailbox.others())
        self._report(call, moved=False)

    def ready(self, ticket: Ticket) -> bool:
        """Whether the call may move data from now on; calls must begin in the order of their numbers."""
        if ticket.begun:
            return True
        if self._nranks == 1:
            ticket.begun = True
            return True
        if self.broken is not None or ticket.error is not None or (self.unsettled and not self._settle()):
            return False
        call, fingerprint = ticket.call, ticket.intent.fingerprint
        if ticket.always or fingerprint not in self._numbers:
            if self._rank:
                if call not in self._approved:
                    return False
            else:
                if len(self._plans.get(call, ())) < self._nranks - 1:
                    return False
                del self._plans[call]
                self._mailbox.send(Frame(Subject.VERDICT, 0, call, 1), self._mailbox.others())
        self._approved.discard(call)
        ticket.begun = True
        ticket.check = self._ledger.begin(self._number(ticket.intent))
        if call in self._plans:  # ranks to which it is new, as it was here when they sent it
            self._check_plans(call)
        return ticket.error is None

    def trust(self, intent: Intent) -> None:
        """Count a plan as compared; all ranks have agreed to call this at the same point."""
        self._number(intent)

    def over(self, ticket: Ticket) -> None:
        """The call is over on this rank."""
        self._open.pop(ticket.call, None)

    # ---- looking in

    def poll(self) -> None:
        """Look at the mailbox; what is found there may give tickets an error, or break the communicator."""
        while (frame := self._mailbox.receive()) is not None:
            self._record(frame)
        if self._ledger.alarm:
            self._check()

    def remind(self, now: float) -> int | None:
        """Tell the others, ever more rarely, the plan of a call that stays the oldest open one; its number then."""
        oldest = next(iter(self._open), -1)
        if oldest != self._watched:
            self._watched, self._remind_every = oldest, _FIRST_NOTE
            self._remind_at = now + _FIRST_NOTE
        elif oldest >= 0 and now >= self._remind_at:
            self._remind_every *= 2
            self._remind_at = now + self._remind_every
            self._send_note(oldest)
            return oldest
        return None

    def contradict(self, call: int, source: int, check: int) -> None:
        """A message of `source` has come for this call, with other check bits than this rank's plan has."""
        ticket = self._open.get(call)
        if ticket is None or ticket.error is not None:
            return
        number = (check - ticket.check + self._numbers.get(ticket.intent.fingerprint, 0)) % (tags.MAX_PLANS + 1)
        meant = self._meant[number] if 0 < number < len(self._meant) else "something else, or has before"
        text = f"rank {self._rank} calls {ticket.intent.text}, but rank {source} calls {meant}"
        self._mailbox.send(Frame(Subject.VERDICT, self._rank, call, 0, text=text), self._mailbox.others())
        self._fail_mismatched(call, text)

    def diagnose(self, ticket: Ticket, error: HetcommError) -> HetcommError:
        """The misuse behind an error of the wire, the peer or a vendor in a call, or `error` itself.

        When ranks run different plans, what is seen first may be a message of the wrong length, or a peer that has
        raised and gone. So the plans are compared, as far as the others answer at once; those that have none for this
        call say where they are (`roll`).
        """
        if self._nranks == 1 or not isinstance(error, (TransportError, VendorError)):
            return error
        if ticket.error is None and ticket.call in self._open:
            self._send_note(ticket.call, ask=True)
            seconds = _ROLL_CALL if isinstance(error, CollectiveTimeoutError) else _DIAGNOSIS
            self._call_the_roll(self._mailbox.others(), lambda: ticket.error is not None, seconds)
        return ticket.error or self.cause or error

    def locate(self, ranks: Iterable[int]) -> None:
        """Ask some ranks where they are, and wait a moment for the answers, which are in `roll`."""
        self._call_the_roll(ranks, lambda: False, _ROLL_CALL)

    def _call_the_roll(self, ranks: Iterable[int], enough: Callable[[], bool], seconds: float) -> None:
        asked = [rank for rank in ranks if rank != self._rank and rank not in self._gone]
        self.roll.ask(asked)

        def answered() -> bool:
            self.poll()
            return enough() or all(self.roll.has_answered(rank) or rank in self._gone for rank in asked)

        wait(self._moving, answered, time.monotonic() + seconds)

    def lateness(self, ticket: Ticket) -> tuple[str, int | None]:
        """What a call that has not begun waits for, as text, and the rank that is missing, if it is one."""
        if self.unsettled:
            return f"word from all ranks on how call {self.unsettled[0]}, which was refused, went there", None
        if self._rank != 0:
            return f"rank 0 to agree on {ticket.intent.text}", 0
        missing = sorted(set(self._mailbox.others()) - set(self._plans.get(ticket.call, ())))
        who = f"ranks {', '.join(map(str, missing[:8]))}{', ...' if len(missing) > 8 else ''}"
        return f"{who} to agree on {ticket.intent.text}", missing[0] if missing else None

    def unmet(self) -> Iterator[tuple[int, int, str]]:
        """Calls that other ranks wait in and this one has not made: who, the call's number, and its plan as text."""
        for call, frames in self._plans.items():
            if call >= self._ledger.next_call:
                yield from ((source, call, frame.text) for source, frame in frames.items())

    # ---- leaving

    def leave(
        self,
        how: str,
        error: BaseException | None = None,
        blamed: frozenset[int] = frozenset(),
        origin: int | None = None,
    ) -> None:
        """Tell the others that this rank takes part in nothing more, its oldest open call included.

        Telling it again does nothing.

        Args:
            how: A clause without its subject.
            error: Why, if that is one; it may be that of another communicator.
            blamed: The ranks of this one because of which,
            origin: and the one that found out first.
        """
        if self._gone_out:
            return
        by_closing = self._leaving
        self._leaving = self._gone_out = True
        self._why = how if error is None else f"{how} with {type(error).__name__}: {_said(error)}".removesuffix(": ")
        self._why_kind = Leaving.CLOSED if by_closing else _leaving_after(error)
        call = next(iter(self._open), self._ledger.next_call)
        frame = Frame(Subject.GONE, self._rank, call, self._why_kind, text=self._why, ranks=blamed, origin=origin)
        self._mailbox.send(frame, self._mailbox.others())

    def close(
        self, seconds: float, patience: float, outstanding: int = 0, ended: Callable[[], Collection[int]] = tuple
    ) -> Parting:
        """Say that this rank has nothing more to call, and wait until all have, or `patience` seconds.

        With patience for all of `seconds`, it is not LATER but LOST what is not over by then.

        Args:
            seconds: How long this may take.
            patience: How long it may wait for ranks that have yet to call this.
            outstanding: How many messages this rank has sent, less those that it has received.
            ended: Which ranks have died; asked now and then.
        """
        self._leaving, self._ended = True, ended
        last = self._ledger.intent_of(self._ledger.next_call - 1)
        self.closing.announce(
            self._ledger.next_call, self._ledger.chain, "nothing" if last is None else last.text, outstanding
        )
        begun = time.monotonic()
        if patience < seconds and not wait(self._moving, self.parted, begun + patience) and self.closing.defer():
            return Parting.LATER
        wait(self._moving, self.parted, begun + seconds)
        return self.parting

    def parted(self) -> bool:
        """Whether it is known how the ranks part; looks at the mailbox, and now and then for ranks that have died."""
        self.poll()
        if self.closing.together is not None or self._gone or self.broken is not None:
            return True
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _FIRST_NOTE
        return bool(self._ended())

    @property
    def parting(self) -> Parting:
        """How they do, as far as is known."""
        if self.closing.together is None or self.broken is not None:
            return Parting.LOST
        return Parting.TOGETHER if self.closing.together else Parting.APART

    # ---- messages

    def ask(self, ranks: Iterable[int]) -> None:
        """This rank waits for messages from or to `ranks`: those that have left say so."""
        waiting = Frame(Subject.WAITING, self._rank, self._ledger.next_call)
        self._mailbox.send(waiting, [rank for rank in ranks if rank not in self._gone])

    def departure(self, rank: int) -> HetcommError | None:
        """Why no message of `rank` will come any more but what is on its way; None: it may."""
        frame = self._gone.get(rank)
        if frame is None:
            return None
        blamed = (frame.ranks - {self._rank}) or {rank}
        who = "" if rank in blamed else f"rank {numbers(blamed)} failed: "
        return PeerFailureError(
            f"{who}rank {rank} has left the communicator: it {frame.text}",
            rank=self._rank,
            ranks=blamed,
            origin=rank if frame.origin is None else frame.origin,
            remedy="Close this communicator. A rank must not leave before its messages have gone and come.",
        )

    # ---- what frames do

    def _record(self, frame: Frame) -> None:
        call = frame.call
        match frame.subject:
            case Subject.PLAN | Subject.NOTE:
                self.roll.hint(frame)
                if self._leaving and call >= self._ledger.next_call:
                    self._say_gone(frame.source)
                    self._go_alone(_departure(frame.source, frame.text, self._rank))
                elif call not in self._over_everywhere:
                    self._plans.setdefault(call, {})[frame.source] = frame
                if frame.subject is Subject.NOTE and frame.flag == _ASK and (mine := self._intent_of(call)) is not None:
                    note = Frame(Subject.NOTE, self._rank, call, _ANSWER, mine.fingerprint, mine.text)
                    self._mailbox.send(note, (frame.source,))
            case Subject.VERDICT:
                if not frame.flag and self._leaving and call >= self._ledger.next_call:
                    self._go_alone(frame.text)
                elif not frame.flag:
                    self._mismatches.setdefault(call, frame)
                elif call in self._open and not self._open[call].begun:
                    self._approved.add(call)
            case Subject.REFUSED:
                if frame.flag >= len(REFUSALS):
                    unreadable(f"it refuses call {call} for a reason without a name, {frame.flag}")
                self._refusals.setdefault(call, frame)
            case Subject.SETTLE:
                self._count_report(call, frame.source, bool(frame.flag))
            case Subject.SETTLED:
                self._settled[call] = bool(frame.flag)
            case Subject.GONE:
                self._gone.setdefault(frame.source, frame)
            case Subject.CLOSING | Subject.CLOSED | Subject.PARTING | Subject.PARTED:
                self.closing.record(frame)
            case Subject.JOIN | Subject.LEADING | Subject.DECIDED | Subject.ABSENT:
                self.survival.record(frame)
            case Subject.WHERE | Subject.HERE:
                self.roll.record(frame)
            case Subject.WAITING:
                if self._leaving:
                    self._say_gone(frame.source)
        self._ledger.alarm = True

    def _say_gone(self, rank: int) -> None:
        """Tell a rank that asks that this one takes part in nothing more."""
        frame = Frame(Subject.GONE, self._rank, self._ledger.next_call, self._why_kind, text=self._why)
        self._mailbox.send(frame, (rank,))

    def _disagree(self, call: int, text: str) -> None:
        """Rank 0: the ranks that close it have called different things."""
        self._mailbox.send(Frame(Subject.VERDICT, self._rank, call, 0, text=text), self._mailbox.others())
        self._fail_mismatched(call, text)

    def _go_alone(self, what: str) -> None:
        """This rank closes the communicator and gets a warning; another one goes on calling, and gets an error."""
        if self.broken is None:
            self.broken = what
            _log.warning("[rank %d] %s", self._rank, what)

    def _check(self) -> None:
        """Turn what was recorded of calls that have been made here into errors of their tickets."""
        for call in [call for call in self._refusals if call < self._ledger.next_call]:
            frame = self._refusals.pop(call)
            if call not in self._over_everywhere:
                self._fail_refused(frame)
        for call in [call for call in self._mismatches if call < self._ledger.next_call]:
            frame = self._mismatches.pop(call)
            if call not in self._over_everywhere:
                self._fail_mismatched(call, frame.text, frame.ranks)
        for call in [call for call in self._plans if call < self._ledger.next_call]:
            self._check_plans(call)
        if self.unsettled and self.broken is None:
            self._settle()
        if self.broken is None:  # else a rank that has left did so for the same reason
            for frame in (*self._gone.values(), *self.closing.frames.values()):
                if self.unsettled and frame.source and frame.call > self.unsettled[-1]:
                    continue  # it may have left because of what rank 0 has yet to tell
                for ticket in [each for each in self._open.values() if each.call >= frame.call]:
                    if ticket.error is None and (
                        frame.subject is Subject.CLOSING or (frame.flag == Leaving.CLOSED and not frame.ranks)
                    ):
                        self._report_departure(ticket, frame.source)
                    elif ticket.error is None:
                        self._fail_deserted(ticket, frame)
        self._ledger.alarm = bool(
            self._refusals or self._mismatches or self._gone or self.closing.frames or self._plans
        )

    def _check_plans(self, call: int) -> None:
        """Compare the plans that others have sent for a call; answer those who asked, unless it waits for the rest."""
        mine = self._intent_of(call)
        if mine is not None and call not in self._over_everywhere:
            for source, frame in self._plans[call].items():
                if frame.fingerprint != mine.fingerprint:
                    text = f"rank {self._rank} calls {mine.text}, but rank {source} calls {frame.text}"
                    self._mailbox.send(Frame(Subject.VERDICT, self._rank, call, 0, text=text), self._mailbox.others())
                    self._fail_mismatched(call, text)
                    return
            ticket = self._open.get(call)
            if self._rank == 0 and ticket is not None and not ticket.begun:
                return
            asking = [source for source, frame in self._plans[call].items() if frame.subject is Subject.PLAN]
            self._mailbox.send(Frame(Subject.VERDICT, self._rank, call, 1), asking)
        del self._plans[call]

    def _intent_of(self, call: int) -> Intent | None:
        """What this rank runs, or ran, as that call; None if it refused it, forgot it, or has yet to come to it."""
        ticket = self._open.get(call)
        if ticket is not None:
            return ticket.intent
        meant: Intent | None = self._ledger.intent_of(call)
        return meant

    def _send_note(self, call: int, *, ask: bool = False) -> None:
        """Tell the others the plan of an open call; with `ask`, they answer with theirs."""
        mine = self._open[call].intent
        frame = Frame(Subject.NOTE, self._rank, call, _ASK if ask else 0, mine.fingerprint, mine.text)
        self._mailbox.send(frame, self._mailbox.others())

    # ---- calls that fail on all ranks

    def _fail_refused(self, frame: Frame) -> None:
        usable = self._may_survive(frame.call)
        error = REFUSALS[frame.flag](
            f"rank {frame.source} refused this call: {frame.text}"
            + ("" if usable else " (Other ranks had begun: this communicator can only be closed.)"),
            rank=self._rank,
            peer=frame.source,
            collective=frame.call,
        )
        self._fail(frame.call, error)

    def _fail_mismatched(self, call: int, text: str, closers: frozenset[int] = frozenset()) -> None:
        usable = self._may_survive(call) and not closers
        error = (DepartedError if closers else PlanMismatchError)(
            f"the ranks disagree on call {call}: {text}",
            rank=self._rank,
            ranks=closers,
            collective=call,
            remedy="All ranks must make the same calls in the same order, with equal counts, dtypes, ops and roots."
            + ("" if usable else " Data had moved: this communicator can only be closed."),
        )
        self._misuse = error
        self._fail(call, error)
        if closers and self.broken is None:
            self.broken, self.cause = error.message, error

    def _report_departure(self, ticket: Ticket, closer: int) -> None:
        """A rank that the call needs has closed the communicator: all learn of it."""
        text = _departure(self._rank, ticket.intent.text, closer)
        ranks = frozenset((closer,))
        verdict = Frame(Subject.VERDICT, self._rank, ticket.call, 0, text=text, ranks=ranks)
        self._mailbox.send(verdict, self._mailbox.others())
        self._fail_mismatched(ticket.call, text, ranks)

    def _fail_deserted(self, ticket: Ticket, frame: Frame) -> None:
        """A rank that the call needs has left: that is the end of the communicator, but not on all ranks alike."""
        ticket.error = error = self._desertion(frame, ticket.call)
        self.failed.append(ticket)
        if not isinstance(error, PeerFailureError):
            self.broken = error.message
            if isinstance(error, PlanMismatchError):
                self.cause = error

    def _desertion(self, frame: Frame, call: int) -> HetcommError:
        """The error of a call that needs a rank which has left.

        It may have left because of others: then these are named, all that any rank has told of.
        """
        blamed = self.blamed()
        if self._misuse is not None and not blamed:  # it has left because of what this rank may not have raised yet
            return self._misuse.again(collective=call)
        what = f"rank {frame.source} has left the communicator before it did call {call}: it {frame.text}"
        kind = _SHARED.get(frame.flag, PeerFailureError)
        if kind is not PeerFailureError:
            blamed = frame.ranks - {self._rank}
        elif blamed and frame.source not in blamed:
            what = f"rank {numbers(blamed)} failed: {what}"
        return kind(
            what,
            rank=self._rank,
            ranks=blamed or {frame.source},
            origin=frame.source if frame.origin is None else frame.origin,
            collective=call,
            remedy="Close this communicator, or shrink it. All ranks must make the same calls.",
        )

    def gone(self) -> frozenset[int]:
        """The ranks that have said that they have left."""
        return frozenset(self._gone)

    def blamed(self) -> frozenset[int]:
        """The other ranks because of which some have left, as far as any has told."""
        return frozenset[int]().union(*(each.ranks for each in self._gone.values())) - {self._rank}

    def desertion(self, ranks: Collection[int] = ()) -> HetcommError | None:
        """The error of calls that fail because a rank has left, one of `ranks` if possible; None if none has."""
        frame = next((self._gone[rank] for rank in ranks if rank in self._gone), next(iter(self._gone.values()), None))
        return None if frame is None else self._desertion(frame, frame.call)

    def _may_survive(self, call: int) -> bool:
        ticket = self._open.get(call)
        return ticket is not None and not ticket.begun

    def _fail(self, call: int, error: HetcommError) -> None:
        """A call failed on all ranks: its ticket gets the error; if data had moved here, the communicator is broken."""
        moved = not self._may_survive(call)
        ticket = self._open.pop(call, None)
        if ticket is not None:
            ticket.error = error
            self.failed.append(ticket)
        if isinstance(error, PlanMismatchError):
            self._why_unsettled[call] = error
        self._report(call, moved)
        if moved and self.broken is None:
            self.broken = f"call {call} failed when data had already moved: {error.message}"
            self.cause = error

    def _report(self, call: int, moved: bool) -> None:
        """Say whether a call that failed on all ranks had moved data here."""
        self._over_everywhere.add(call)
        self._plans.pop(call, None)
        self.unsettled.append(call)
        if self._rank == 0:
            self._count_report(call, 0, moved)
        else:
            self._mailbox.send(Frame(Subject.SETTLE, self._rank, call, int(moved)), (0,))

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

    def _settle(self) -> bool:
        """Whether the communicator is known to have survived the calls that failed on all ranks."""
        moved = [call for call in self.unsettled if self._settled.get(call)]
        if moved and self.broken is None:
            self.broken = f"other ranks had begun call {moved[0]} when it was refused"
            self.cause = self._why_unsettled.get(moved[0])
        if moved or not all(call in self._settled for call in self.unsettled):
            return False
        for call in self.unsettled:
            del self._settled[call]
        self.unsettled.clear()
        self._why_unsettled.clear()
        return True


def _said(error: BaseException) -> str:
    return error.message if isinstance(error, HetcommError) else str(error)


def _leaving_after(error: BaseException | None) -> int:
    return next((why for why, kind in _SHARED.items() if isinstance(error, kind)), Leaving.FAILED)


def _departure(caller: int, call: str, closer: int) -> str:
    return f"rank {caller} calls {call}, but rank {closer} closes the communicator"
