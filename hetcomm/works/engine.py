"""What moves a communicator's works: they begin in order and go on side by side.

The rules:

* Works begin in the order of their calls, which is the same on all ranks: one begins when the ranks agree on it
  (`hetcomm.agreement.agreement`) and all before it have begun. Messages begin at once, unless they are grouped with
  collectives. Nothing of this waits, so a call with `async_op=True` returns at once whatever the other ranks do.
* Whoever waits moves everything: `finish` moves the work that is waited for, the pump all that is in the background,
  on every communicator of the job.
* A call on device arrays returns when it is in line; nobody waits for it but the device. The job then has a thread that
  moves works while the user's does something else (`hetcomm.waiting.progress`); whatever a call does to an engine, it
  does under `lock`.
* An interruption (Ctrl-C) goes to the caller; whatever communicator it hit is unusable.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy

from hetcomm._ext import ucp
from hetcomm.agreement.closing import Parting
from hetcomm.agreement.tickets import Intent, Ticket
from hetcomm.calls.calls import Call, check_timeout
from hetcomm.devices.base import Event
from hetcomm.errors import HetcommError, TransportError, UsageError
from hetcomm.execution import tags
from hetcomm.execution.execution import Execution
from hetcomm.execution.scratch import kind_of
from hetcomm.plans.plans import Plan
from hetcomm.transport.base import Request, ScriptRun
from hetcomm.types import Memory, MemoryKind, PremulSum, ReduceKind, ReduceOp
from hetcomm.waiting.waiting import wait
from hetcomm.works.underway import UnderWay
from hetcomm.works.work import CollectiveWork, Message, MessageWork, Milestone, Work

if TYPE_CHECKING:
    from hetcomm.job.wiring import Parts
    from hetcomm.works.grouping import Queue

__all__ = ["Engine"]

_PER_TURN = 8  # works in the background that one turn of a wait moves: the oldest, and as many of the others
_SECONDS_PER_TURN = 20e-6  # for either
_LOOK_TURNS = 16  # turns in the background between two looks at the mailbox
_FIXED = {ReduceOp, PremulSum, ReduceKind}  # types of arguments that never change, beside int and str
_ASK_EVERY = 0.1  # seconds
_QUIET = 1.0  # seconds without any movement after which messages that nobody takes are given up at the end


class Engine(UnderWay):
    """Starts and moves the works of one rank of one communicator.

    Args:
        parts: What the communicator consists of.

    Attributes:
        group: Where calls are queued inside `Communicator.group`, or None.
        fast_path: For calls that have been made before; None if the transport has none.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.group: Queue | None = None
        self._executor = parts.executor
        self._pump = parts.job.pump
        self._timeout = parts.job.config.timeout
        self._turns = 0
        self._ask_at = 0.0
        self._waited_for: set[MessageWork] = set()  # works of messages that were under way when last asked
        self._cursor = 0  # where in the background the last turn ended
        self._window: deque[CollectiveWork] = deque()  # begun and not known to be over, in the order of their runs
        self._pump.add(self)
        self.fast_path = self._open_fast_path()

    def _open_fast_path(self) -> ucp.FastPath | None:
        mailbox = self._parts.mailbox
        if not hasattr(self._parts.job.transport, "script") or not isinstance(mailbox.incoming, ucp.Request | None):
            return None

        def borrow(nbytes: int) -> Memory:
            return self._executor.scratch.borrow(nbytes, MemoryKind.HOST)

        quiet = self._pump.active, self.agreement.unsettled
        fast_path = ucp.FastPath(self.ledger, quiet, self.lock, numpy.ndarray, _FIXED, borrow, self.take_over)

        def posted(request: Request | None) -> None:
            fast_path.incoming = request

        posted(mailbox.incoming)
        mailbox.posted = posted
        return fast_path

    # ---- asking for works

    @property
    def threaded(self) -> bool:
        """Whether there is a progress thread."""
        return self._pump.threaded

    def seconds(self, timeout: float | None) -> float:
        """How long a call may take.

        Raises:
            UsageError: It is no time.
        """
        return self._timeout if timeout is None else check_timeout(timeout, self._timeout, self.rank)

    def refuse(self, error: HetcommError) -> None:
        """A collective call was refused here: tell the others, in a group when it ends."""
        if self.group is not None:
            self.group.is_collective = True
            self.group.refused = self.group.refused or error
        else:
            self.agreement.refuse(error)

    def launch(self, work: Work, intent: Intent | None, *, async_op: bool, always: bool = False) -> Work | None:
        """Submit a work and wait for it; with `async_op` return it at once, and in a group only queue it.

        Args:
            work: What to do.
            intent: What the ranks compare; None for messages, which are no collective.
            async_op: Whether the caller will wait. On device arrays nobody does, and the stream waits in place of the
                host.
            always: See `Agreement.open`.

        Raises:
            HetcommError: As `finish`.
        """
        if self.group is not None:
            self.group.add(work, intent, waited=not async_op, always=always)
            return work if async_op else None
        self.submit((work,), intent, background=async_op or work.order is not None, always=always)
        if async_op:
            return work
        if work.order is None:
            self.finish(work)
        else:
            self.leave(work)
        return None

    def leave(self, work: Work) -> None:
        """Let its stream wait for a work on device arrays; its error is for the next call."""
        assert work.order is not None  # or the host would wait
        work.attended = False
        if work.over:
            self.unraised = self.unraised or work.exception()
        work.order.hold()

    def submit(self, works: Sequence[Work], intent: Intent | None, *, background: bool, always: bool = False) -> None:
        """Put works in line, all of them one call, and begin what may begin.

        Args:
            works: In the order in which they begin.
            intent: What the ranks compare; None if there are only messages.
            background: Whether the pump moves them; else the caller waits for the only one.
            always: See `Agreement.open`.
        """
        self.check_usable()  # it may have failed, in the background, since the call began: nothing would open its gate
        try:
            self._settle_fast_path()  # its calls came before these
            ticket = None
            if intent is not None:
                ticket = self.agreement.open(intent, always=always)
                ticket.works = len(works)
            for work in works:
                work.ticket = ticket
                work.submitted = True
            if background:
                self._background.extend(works)
                self._pump.rouse(self)
            else:
                self._awaited.append(works[0])
            if ticket is None:
                for work in works:
                    if self.unposted or not self._start(work):
                        self.unposted.append(work)
            else:
                self.pending.extend(works)
                self.begin()
        except BaseException as error:
            self.give_up(error)
            raise

    def agree(self, intent: Intent, *, always: bool = False, seconds: float | None = None) -> None:
        """Return when all ranks have come to a call that moves nothing; `always` as for `Agreement.open`.

        It may take `seconds`; the communicator's unless given.

        Raises:
            HetcommError: As `finish`.
        """
        work = Milestone(self, intent.text, self._timeout if seconds is None else seconds)
        self.submit((work,), intent, background=False, always=always)
        self.finish(work)

    # ---- the fast path

    def slow_down(self) -> None:
        """The fast path may not be taken from now on."""
        self.ledger.is_slow = True

    def learn(self, key: int, plan: Plan, call: Call, args: tuple[Any, Any, Any, Any]) -> None:
        """A call has gone well: let the next one like it take the fast path, if it is one for that.

        `key` and `args` are as `CollectiveSpec` has them.
        """
        number = self._fast_number(plan, call)
        if number is not None and self.fast_path is not None:
            self.fast_path.learn(plan, number, key, *args, call.in_memory, call.out_memory)

    def forget(self) -> None:
        """Calls mean something else from now on."""
        if self.fast_path is not None:
            self.fast_path.forget()

    def pin(self, plan: Plan, call: Call) -> ucp.PinnedCall | None:
        """A persistent call on the fast path; None if it is none for that."""
        number = self._fast_number(plan, call)
        if number is None or self.fast_path is None:
            return None
        return self.fast_path.pin(plan, number, call.in_memory, call.out_memory)

    def _fast_number(self, plan: Plan, call: Call) -> int | None:
        """The number of a plan that may take the fast path; None if it may not. Nothing else decides that."""
        if self.fast_path is None or call.factor is not None:
            return None
        if kind_of(call.out_memory, call.in_memory) is not MemoryKind.HOST or self._executor.script(plan.bound) is None:
            return None
        return self.agreement.number(plan.intent) or (0 if self._parts.group.nranks == 1 else None)

    def take_over(
        self,
        plan: Plan,
        source: tuple[int, int, Any] | None,
        target: tuple[int, int, Any] | None,
        run: ScriptRun,
        scratch: Memory | None,
        error: BaseException | None,
        attended: bool,
    ) -> Work:
        """Go on with a call that the fast path has begun.

        Args:
            plan: What it runs.
            source, target: Address, count and array of its input and output.
            run: The run of its script.
            scratch: What the run has borrowed.
            error: What went wrong meanwhile.
            attended: Whether the caller waits, so that this returns when it is over.

        Raises:
            HetcommError: As `finish`, if attended.
        """
        dtype = plan.bound.dtype

        def memory(of: tuple[int, int, Any] | None) -> Memory | None:
            return None if of is None else Memory(of[0], of[1], dtype, MemoryKind.HOST, of[2])

        call = Call(plan.collective, memory(source), memory(target))
        work = CollectiveWork(self, plan.name, plan, call, self._timeout)
        work.ticket = self.agreement.resume(plan.intent, run.call, run.check)
        work.number = run.number
        self._window.append(work)
        work.resume(self._executor.resume(plan.bound, call, run, scratch))
        if attended:
            self._awaited.append(work)
        else:
            self._background.append(work)
            self._pump.rouse(self)
        if self._halted:
            work.abort()
            self.end(work, self.ending())
        elif isinstance(error, Exception):
            self._fail(work, error)
        elif error is not None:
            self._interrupted(work, error)
            self._rest(work)
            raise error
        if attended:
            self.finish(work)
        return work

    def go_on(self, work: MessageWork, requests: Sequence[tuple[Message, Request]]) -> None:
        """Wait for messages that were posted without a work.

        Raises:
            HetcommError: As `finish`.
        """
        work.resume(requests)
        self._awaited.append(work)
        if self._halted:
            work.abort()
            self.end(work, self.ending())
        self.finish(work)

    def _settle_fast_path(self) -> None:
        if self.fast_path is not None and self._pump.active:
            self.fast_path.settle()

    # ---- waiting

    def finish(self, work: Work, timeout: float | None = None) -> None:
        """Wait until a work is over.

        Raises:
            UsageError: It is in a group that has not ended, or `timeout` is no time.
            HetcommError: What went wrong with it.
        """
        if work.over:
            self._rest(work)
        else:
            self.check_owner()
            seconds = work.seconds if timeout is None else check_timeout(timeout, work.seconds, self.rank)
            self._check_submitted(work)
            if work not in self._awaited:
                self._awaited.append(work)
            try:
                if not work.step() and not wait(self._pump, work.step, time.monotonic() + seconds, self._idle_turn):
                    self._fail(work, work.late(seconds))
            except BaseException as error:
                self._interrupted(work, error)
                raise
            finally:
                self._rest(work)
        self._tidy()
        failure = work.exception()
        if failure is not None:
            self.told = True
            raise failure

    def _rest(self, work: Work) -> None:
        """Nobody waits for a work any more."""
        if work in self._awaited:
            self._awaited.remove(work)

    def follow(self, work: Work) -> None:
        """Let the current stream wait for a work on device arrays.

        Raises:
            UsageError: It is in a group that has not ended.
            HetcommError: What has gone wrong with it so far.
        """
        failure = work.exception()
        if failure is not None:
            raise failure
        if work.over:
            self._rest(work)
        else:
            self.check_owner()
            self._check_submitted(work)
            assert work.order is not None  # the caller has looked
            work.order.hold_current()

    def _check_submitted(self, work: Work) -> None:
        if not work.submitted:
            raise UsageError(
                f"{work.name} has not been started: its group has not ended",
                remedy="Wait for it after the group's block.",
                rank=self.rank,
            )

    def turn(self) -> None:
        """Move everything along once."""
        self.check_owner()
        try:
            self._pump.progress()
            self.look(time.monotonic())
        except BaseException as error:
            self.give_up(error)
            raise

    def _idle_turn(self, now: float) -> None:
        """Let another thread that wants to move things do so; then look.

        Only here: whatever else waits is in the middle of something.
        """
        self.lock.rest()
        self.look(now)

    def look(self, now: float) -> None:
        """Look at what the others say, and tell them what this rank waits in, if it does so for long."""
        self._poll()
        overdue = self.agreement.remind(now)
        if overdue is not None:
            self._look_for_contradiction(overdue)
        self.watch(now)
        if now >= self._ask_at:
            self._ask_at = now + _ASK_EVERY
            self._ask_peers()

    def _ask_peers(self) -> None:
        """Let the ranks that works have waited for say so if they have left."""
        works = {
            work
            for work in (*self._awaited, *islice(self._background, 2 * _PER_TURN))
            if isinstance(work, MessageWork) and work.begun and not work.over
        }
        late, self._waited_for = works & self._waited_for, works
        if late:
            self.agreement.ask(set().union(*(work.peers() for work in late)) - {self.rank})

    def _look_for_contradiction(self, call: int) -> None:
        """See whether what has come for a call is of another plan: a rank that makes it may not look at its mailbox."""
        for work in self._works():
            if isinstance(work, CollectiveWork) and work.ticket is not None and work.ticket.call == call:
                contradiction = work.contradiction()
                if contradiction is not None:
                    self.agreement.contradict(call, *contradiction)
                    self._poll()
                    return

    # ---- for the pump

    def advance(self) -> None:
        """Move the works in the background."""
        try:
            self._turns += 1
            if self._turns % _LOOK_TURNS == 0:
                self.look(time.monotonic())
            if self.pending or self.unposted:
                self.begin()
            works = self._background
            self._tidy()
            self._move_some(range(min(len(works), _PER_TURN)))  # in front is what the others wait for
            rest = len(works) - _PER_TURN
            if rest > 0:
                first, self._cursor = self._cursor, (self._cursor + _PER_TURN) % rest
                self._move_some(_PER_TURN + (first + step) % rest for step in range(min(rest, _PER_TURN)))
        except BaseException as error:
            self.give_up(error)
            raise

    def _tidy(self) -> None:
        """Forget the works in the background that are over; without any, the fast path is free again."""
        works = self._background
        while works and works[0].over:
            works.popleft()
        if not works:
            self._pump.rest(self)

    def _move_some(self, places: Iterable[int]) -> None:
        """Move the works at some places of the background, at least one of them, until a little time has passed.

        Asking a vendor may give the processor away, which takes long where ranks outnumber the cores.
        """
        until = time.perf_counter() + _SECONDS_PER_TURN
        for place in places:
            if self._halted:
                return
            work = self._background[place]
            if work not in self._awaited and not self.move(work) and time.perf_counter() > until:
                return

    def events(self) -> list[Event]:
        """What the works in the background wait for on a device."""
        return [event for work in islice(self._background, 2 * _PER_TURN) for event in work.events()]

    def attend(self) -> None:
        """Look at what the other ranks say, and move the vendors' communicators."""
        if self._halted:
            return
        try:
            self._poll()
        except HetcommError as error:
            self.give_up(error)
        self.move_vendors()

    def move_vendors(self) -> None:
        """Move the vendors' communicators."""
        if self._halted:
            return
        for communicator in self._parts.communicators.values():
            try:
                communicator.progress()
            except HetcommError as error:
                works = self._works()
                if works:
                    self._fail(works[0], error)
                else:
                    self.give_up(error)
                return

    # ---- for the works

    def waits_for(self, work: Work) -> bool:
        """Whether the user's thread waits for that work and nothing else."""
        return len(self._awaited) == 1 and work is self._awaited[0] and not self._background

    def permits(self, ticket: Ticket | None) -> bool:
        """Whether the call may begin now."""
        return ticket is None or self.agreement.ready(ticket)

    def admits(self, work: CollectiveWork) -> bool:
        """Whether the collective may begin now: the ranks agree, and its tags are not those of one under way."""
        window = self._window
        while window and window[0].over:
            window.popleft()
        if window and self.ledger.runs - window[0].number >= tags.WINDOW:
            return False
        return work.ticket is not None and self.agreement.ready(work.ticket)

    def run(self, work: CollectiveWork, plan: Plan, call: Call) -> Execution:
        """Start a plan; it has been admitted."""
        assert work.ticket is not None  # `admits` has looked
        number = work.number = self.ledger.runs
        self.ledger.runs += 1
        self._window.append(work)
        ticket, memories = work.ticket, (call.in_memory, call.out_memory)
        return self._executor.run(plan.bound, number, ticket.check, *memories, call.factor, ticket.call, work.order)

    def account(self, plan: Plan) -> None:
        """A plan has been run."""
        self.ledger.sent += plan.sent

    def blocked_on(self, work: Work) -> tuple[str, int | None]:
        """What a work that has not begun waits for, as text, and the rank that is missing, if it is one."""
        first = self.pending[0] if self.pending else work
        if first.ticket is None or first.ticket.begun:
            return "calls that were made before", None
        what, peer = self.agreement.lateness(first.ticket)
        if first.ticket is not work.ticket:
            what = f"{what} ({first.name}, call {first.ticket.call}, which was made before)"
        return what, peer

    # ---- how works begin and end

    def _start(self, work: Work) -> bool:
        """Let a work begin if it may; whether those after it may begin."""
        try:
            return work.over or work.begin()
        except Exception as error:  # noqa: BLE001  # raised by whoever waits for the work
            self._fail(work, error)
            return False

    def begin(self) -> None:
        """Let works begin, in order, as far as they may."""
        self._poll()
        pending = self.pending
        while not self._halted and pending and self._start(pending[0]):
            pending.popleft()
        while not self._halted and self.unposted and self._start(self.unposted[0]):
            self.unposted.popleft()
        if self.agreement.failed:
            self._deliver()

    def move(self, work: Work) -> bool:
        """Move a work that has begun; whether it is over."""
        if work.begun and not work.over and not self._halted:
            try:
                if work.advance():
                    self.end(work, None)
            except Exception as error:  # noqa: BLE001  # raised by whoever waits for the work
                self._fail(work, error)
        return work.over

    def _poll(self) -> None:
        agreement = self.agreement
        agreement.poll()
        if (agreement.failed or agreement.broken is not None) and not self._halted:
            self._deliver()

    # ---- the end

    def close(self, seconds: float, patience: float, outstanding: Callable[[], int] = lambda: 0) -> Parting:
        """Wait until all works are over and all ranks have called this, if the communicator is not broken by then.

        Messages that still move then have as long as they move. For the other ranks it waits no longer than `patience`
        seconds: what is LATER is polled by whoever waits. `outstanding` is as for `Agreement.close`.
        """
        parting = Parting.LOST
        self.unusable = self.ledger.is_slow = self._closed = True  # for new calls
        deadline = time.monotonic() + seconds
        try:
            self._settle_fast_path()
            if (
                self.agreement.broken is None
                and wait(self._pump, self._is_idle, deadline, self._idle_turn)
                and self.agreement.broken is None
            ):
                left = max(0.0, deadline - time.monotonic())
                parting = self.agreement.close(left, patience, outstanding(), self._inquest.ended)
            if parting is Parting.LOST:
                self.abandon("closed it without waiting")
            else:
                self._drain()
        except BaseException as error:
            self.give_up(error)
            raise
        finally:
            if parting is not Parting.LATER:
                self._pump.remove(self)
        return parting

    def end_later(self, deadline: float) -> Parting:
        """Come back to what was LATER: wait for what the other ranks have said since, then abandon it."""
        try:
            wait(self._pump, self.agreement.parted, deadline)
            parting = self.agreement.parting
            if parting is Parting.LOST:
                self.abandon("closed it without waiting")
        finally:
            self._pump.remove(self)
        return parting

    def _is_idle(self) -> bool:
        if self.pending or self.unposted:
            self.begin()
        return self.agreement.broken is not None or all(
            work.over or isinstance(work, MessageWork) for work in (*self._background, *self.pending)
        )

    def _drain(self) -> None:
        """Give messages in the background time as long as anything moves, then give them up."""
        quiet_since = time.monotonic()
        while any(not work.over for work in self._background):
            now = time.monotonic()
            if self._pump.progress():
                quiet_since = now
            elif now - quiet_since > _QUIET:
                break
        self._stop()
        for work in self._works():
            self.end(work, TransportError(f"{work.name} was given up: the communicator was closed", rank=self.rank))
