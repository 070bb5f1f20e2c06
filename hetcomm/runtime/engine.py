"""What moves a communicator's works: they begin in order and go on side by side.

The rules:

* Works begin in the order of their calls, which is the same on all ranks: one begins when the ranks agree on it
  (`hetcomm.runtime.agreement`) and all before it have begun. Messages begin at once, unless they are grouped with
  collectives. Nothing of this waits, so a call with `async_op=True` returns at once whatever the other ranks do.
* Whoever waits moves everything: `finish` moves the work that is waited for, the pump all that is in the background,
  on every communicator of the job.
* A call on device arrays returns when it is in line; nobody waits for it but the device. The job then has a thread that
  moves works while the user's does something else (`hetcomm.runtime.progress`); whatever a call does to an engine, it
  does under `lock`.
* An interruption (Ctrl-C) goes to the caller; whatever communicator it hit is unusable.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy

from hetcomm._ext import ucp
from hetcomm.devices.base import Event
from hetcomm.errors import HetcommError, TransportError, UsageError
from hetcomm.runtime.agreement import Intent, Ticket
from hetcomm.runtime.calls import Call, check_timeout
from hetcomm.runtime.closing import Parting
from hetcomm.runtime.native import fits
from hetcomm.runtime.plans import Plan
from hetcomm.runtime.scratch import kind_of
from hetcomm.runtime.underway import UnderWay
from hetcomm.runtime.waiting import wait
from hetcomm.runtime.work import CollectiveWork, MessageWork, Milestone, Work
from hetcomm.transport.base import Request
from hetcomm.types import Memory, MemoryKind
from hetcomm.vendors.base import Operation

if TYPE_CHECKING:
    from hetcomm.runtime.grouping import Queue
    from hetcomm.runtime.wiring import Parts

__all__ = ["KINDS", "Engine"]

KINDS = {
    name: number
    for number, name in enumerate(
        (
            "all_reduce",
            "reduce",
            "broadcast",
            "all_gather",
            "reduce_scatter",
            "gather",
            "scatter",
            "all_to_all",
            "barrier",
        )
    )
}
"""What the express way calls the methods that may take it."""

_PER_TURN = 8  # works in the background that one turn of a wait moves: the oldest, and as many of the others
_SECONDS_PER_TURN = 20e-6  # for either
_LOOK_TURNS = 16  # turns in the background between two looks at the mailbox
_WINDOW = 1 << 15  # runs of programs between the oldest under way and the newest: half of what tags tell apart
_QUIET = 1.0  # seconds without any movement after which messages that nobody takes are given up at the end


class Engine(UnderWay):
    """Starts and moves the works of one rank of one communicator.

    Args:
        parts: What the communicator consists of.

    Attributes:
        group: Where calls are queued inside `Communicator.group`, or None.
        express: The express way for calls that have been made before; None if the transport has none.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.group: Queue | None = None
        self._executor = parts.executors[0]
        self._pump = parts.job.pump
        self._timeout = parts.job.config.timeout
        self._turns = 0
        self._cursor = 0  # where in the background the last turn ended
        self._window_end = _WINDOW
        self._pump.add(self)
        self.express = self._open_express()

    def _open_express(self) -> ucp.Express | None:
        mailbox = self._parts.mailbox
        if not hasattr(self._parts.job.transport, "script") or not isinstance(mailbox.incoming, ucp.Request | None):
            return None

        def borrow(nbytes: int) -> Memory:
            return self._executor.scratch.borrow(nbytes, MemoryKind.HOST)

        quiet = self._pump.active, self.agreement.unsettled
        express = ucp.Express(self.ledger, quiet, numpy.ndarray, Memory, borrow, self.take_over)

        def posted(request: Request | None) -> None:
            express.incoming = request

        posted(mailbox.incoming)
        mailbox.posted = posted
        return express

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
                self._current = works[0]
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

    def agree(self, intent: Intent, *, always: bool = False) -> None:
        """Return when all ranks have come to a call that moves nothing; `always` as for `Agreement.open`.

        Raises:
            HetcommError: As `finish`.
        """
        work = Milestone(self, intent.text, self._timeout)
        self.submit((work,), intent, background=False, always=always)
        self.finish(work)

    # ---- the express way

    def detour(self) -> None:
        """No short way may be taken from now on."""
        self.ledger.detour = True

    def learn(self, name: str, plan: Plan, call: Call, args: Sequence[Any]) -> None:
        """A call has gone well: let the next one like it take the express way, if it is one for that.

        `args` is what the method was passed, arrays first.
        """
        if self.express is not None and call.factor is None and self._is_express(plan, call):
            a, *rest = args
            b = rest.pop(0) if name != "broadcast" else None
            first, second = (*rest, None, None)[:2]
            self.express.learn(plan, KINDS[name], a, b, first, second, call.in_memory, call.out_memory)

    def forget(self) -> None:
        """Calls mean something else from now on."""
        if self.express is not None:
            self.express.forget()

    def stand(self, plan: Plan, call: Call) -> ucp.Standing | None:
        """The express way of a persistent call; None if it is no call for that."""
        if self.express is None or call.factor is not None or not self._is_express(plan, call):
            return None
        return self.express.stand(plan, call.in_memory, call.out_memory)

    def _is_express(self, plan: Plan, call: Call) -> bool:
        if not self.agreement.knows(plan.intent) or kind_of(call.out_memory, call.in_memory) is not MemoryKind.HOST:
            return False
        return plan.direct is not None or (
            self._executor.script(plan.bound) is not None and fits(plan.bound, call.in_memory, call.out_memory)
        )

    def take_over(
        self,
        plan: Plan,
        source: tuple[int, int, Any] | None,
        target: tuple[int, int, Any] | None,
        operation: Any,
        scratch: Memory | None,
        error: BaseException | None,
        attended: bool,
    ) -> Work:
        """Go on with a call that the express way has begun.

        Args:
            plan: What it runs.
            source, target: Address, count and array of its input and output.
            operation: The run of a script, or a vendor's operation; None if that could not be started.
            scratch: What the run has borrowed.
            error: What went wrong with it.
            attended: Whether the caller waits, so that this returns when it is over.

        Raises:
            HetcommError: As `finish`, if attended.
        """
        dtype = plan.bound.dtype

        def memory(of: tuple[int, int, Any] | None) -> Memory | None:
            return None if of is None else Memory(of[0], of[1], dtype, MemoryKind.HOST, of[2])

        call = Call(plan.collective, memory(source), memory(target))
        work = CollectiveWork(self, plan.name, plan, call, self._timeout)
        work.ticket = self.agreement.resume(plan.intent)
        work.weight = self.ledger.weight - 1
        if plan.direct is None:
            operation = self._executor.resume(
                plan.bound, self.ledger.runs - 1, call, operation, work.ticket.call, scratch
            )
        work.resume(operation)
        if attended:
            self._current = work
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
            raise error
        if attended:
            self.finish(work)
        return work

    def _settle_express(self) -> None:
        if self.express is not None:
            self.express.settle()

    # ---- waiting

    def finish(self, work: Work, timeout: float | None = None) -> None:
        """Wait until a work is over.

        Raises:
            UsageError: It is in a group that has not ended, or `timeout` is no time.
            HetcommError: What went wrong with it.
        """
        if not work.over:
            self.check_owner()
            seconds = work.seconds if timeout is None else check_timeout(timeout, work.seconds, self.rank)
            self._check_submitted(work)
            self._current = work
            try:
                if not work.step() and not wait(self._pump, work.step, time.monotonic() + seconds, self.look):
                    self._fail(work, work.late(seconds))
            except BaseException as error:
                self._interrupted(work, error)
                raise
            finally:
                self._current = None
        self._tidy()
        failure = work.exception()
        if failure is not None:
            raise failure

    def follow(self, work: Work) -> None:
        """Let the current stream wait for a work on device arrays.

        Raises:
            UsageError: It is in a group that has not ended.
            HetcommError: What has gone wrong with it so far.
        """
        failure = work.exception()
        if failure is not None:
            raise failure
        if not work.over:
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

    def look(self, now: float) -> None:
        """Look at what the others say, and tell them what this rank waits in, if it does so for long."""
        self._poll()
        self.agreement.remind(now)

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
        """Forget the works in the background that are over; without any, the express way is free again."""
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
            if work is not self._current and not self.move(work) and time.perf_counter() > until:
                return

    def events(self) -> list[Event]:
        """What the works in the background wait for on a device."""
        return [event for work in islice(self._background, 2 * _PER_TURN) for event in work.events()]

    def progress_vendors(self) -> None:
        """Move the vendors' communicators."""
        if self._halted:
            return
        for communicator in self._parts.vendor_communicators:
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
        return work is self._current and not self._background

    def permits(self, ticket: Ticket | None) -> bool:
        """Whether the call may begin now."""
        return ticket is None or self.agreement.ready(ticket)

    def admits(self, work: CollectiveWork, plan: Plan) -> bool:
        """Whether the collective may begin now: the ranks agree, and its tags are not those of one under way."""
        weight = plan.weight
        ledger = self.ledger
        if ledger.weight + weight > self._window_end:
            oldest = min(
                (each.weight for each in self._works() if isinstance(each, CollectiveWork) and each.begun),
                default=ledger.weight,
            )
            self._window_end = oldest + max(_WINDOW, weight)
            if ledger.weight + weight > self._window_end:
                return False
        if work.ticket is None or not self.agreement.ready(work.ticket):
            return False
        work.weight = ledger.weight
        ledger.weight += weight
        return True

    def run(self, work: Work, plan: Plan, call: Call) -> Operation:
        """Start a plan."""
        number = self.ledger.runs
        self.ledger.runs += 1
        executor, direct, ticket = self._executor, plan.direct, work.ticket
        if direct is not None and work.order is None and not executor.calls_due and executor.spans is None:
            return direct.start(call.collective, call.in_memory, call.out_memory)
        about = number if ticket is None else ticket.call
        return executor.run(plan.bound, number, call.in_memory, call.out_memory, call.factor, about, work.order)

    def account(self, plan: Plan) -> None:
        """A plan has been run."""
        self.ledger.sent += plan.sent

    def hindrance(self, work: Work) -> tuple[str, int | None]:
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

    def close(self, seconds: float, patience: float) -> Parting:
        """Wait until all works are over and all ranks have called this, if the communicator is not broken by then.

        Messages that still move then have as long as they move. For the other ranks it waits no longer than `patience`
        seconds: what is LATER is polled by whoever waits.
        """
        parting = Parting.LOST
        self.unusable = self.ledger.detour = self._closed = True  # for new calls
        deadline = time.monotonic() + seconds
        try:
            self._settle_express()
            if (
                self.agreement.broken is None
                and wait(self._pump, self._idle, deadline, self.look)
                and self.agreement.broken is None
            ):
                parting = self.agreement.close(max(0.0, deadline - time.monotonic()), patience)
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

    def _idle(self) -> bool:
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
