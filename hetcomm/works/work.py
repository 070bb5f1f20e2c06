"""Calls under way: what `Work` is to users, and the kinds of it that the engine moves.

A work is *submitted*, *begins* when the ranks agree on it and all earlier calls of its communicator have begun, and is
*over*, with or without an error. `hetcomm.works.engine` decides when; here stands what each kind does then. While it
is under way it keeps its arrays alive, and the engine keeps the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hetcomm.agreement.tickets import Ticket
from hetcomm.calls.calls import Call
from hetcomm.devices.base import Event
from hetcomm.errors import CollectiveTimeoutError, HetcommError, UsageError
from hetcomm.execution.execution import Execution, collect
from hetcomm.execution.streams import Ordering
from hetcomm.transport.base import Request
from hetcomm.types import Memory

if TYPE_CHECKING:
    from hetcomm.plans.plans import Plan
    from hetcomm.works.engine import Engine
    from hetcomm.works.pointtopoint import PointToPoint

__all__ = ["CollectiveWork", "ExchangeWork", "Message", "MessageWork", "Milestone", "Work"]


_LAST_MESSAGES = 0.2  # seconds in which what a rank sent before it left may still arrive


class Work:
    """A call that goes on while its caller does something else; what a call with `async_op=True` returns.

    It moves whenever this process waits in hetcomm for anything: another work, a blocking call, `done()`. Works may be
    waited for in any order. One that is dropped without being waited for still goes on: its arrays stay alive, and
    `Communicator.close` waits for it. When one fails its communicator is unusable and all its other works fail too,
    unless the error is a `UsageError` after which it stays usable, or a message had the wrong length. A work belongs to
    the thread of its communicator.

    On device arrays it also moves while nobody waits. `wait` then lets the current stream wait, not the host.
    """

    __slots__ = ("_engine", "_error", "_over", "_seconds", "attended", "begun", "name", "order", "submitted", "ticket")
    counts = 0  # how many collective calls it is

    def __init__(self, engine: Engine, name: str, seconds: float, order: Ordering | None = None) -> None:
        self.name = name
        self.order = order
        self.attended = True  # or nobody has it, so that its error is for the next call
        self.ticket: Ticket | None = None
        self.submitted = False
        self.begun = False
        self._engine = engine
        self._seconds = seconds
        self._over = False
        self._error: Exception | None = None

    def wait(self, timeout: float | None = None) -> None:
        """Return when it is over: the output is there, and the input may be changed again.

        With device arrays it returns at once: what is queued on the current stream of the arrays' library from now on
        comes after it. It raises what has gone wrong so far; later errors are raised by `synchronize`.

        Args:
            timeout: Seconds this may take; those of the call unless given. They count from here. Of no effect with
                device arrays.

        Raises:
            UsageError: The arguments were refused on another rank, or the ranks' counts contradict one another, as with
                the blocking call; or the work is part of a group that has not ended.
            CollectiveTimeoutError: It is not over in time. As after a blocking call the output is undefined, but no
                longer written to, and the communicator can only be closed; `done` asks without that risk.
            PlanMismatchError, PeerFailureError, VendorError, TransportError: As raised by the blocking call.
        """
        self._engine.refuse_in_between()
        with self._engine.lock:
            if self.order is None:
                self._engine.finish(self, timeout)
            else:
                self._engine.follow(self)

    def synchronize(self, timeout: float | None = None) -> None:
        """Let the host wait until it is over; with host arrays the same as `wait`, errors included."""
        self._engine.refuse_in_between()
        with self._engine.lock:
            self._engine.finish(self, timeout)

    def done(self) -> bool:
        """Whether it is over, well or not; moves everything along, but never waits, and raises no error of the work."""
        if not self._over and not self._engine.lock.mine:  # else it has interrupted what moves everything
            with self._engine.lock:
                self._engine.turn()
        return self._over

    def exception(self) -> Exception | None:
        """Why it failed; None while it is under way, and if it went well."""
        return self._error

    def __repr__(self) -> str:
        state = "under way" if self.begun else "waiting for its turn" if self.submitted else "not started"
        if self._over:
            state = "done" if self._error is None else f"failed with {type(self._error).__name__}"
        call = f", call {self.ticket.call}" if self.ticket is not None else ""
        return f"<hetcomm.Work {self.name}{call}, {state}>"

    # ---- for the engine

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self._over

    @property
    def seconds(self) -> float:
        """What a wait for it may take."""
        return self._seconds

    def step(self) -> bool:
        """Move it, and what must begin before it; whether it is over."""
        engine = self._engine
        if engine.pending or engine.unposted:
            engine.begin()
        return engine.move(self)

    def begin(self) -> bool:
        """Start it, if it may be started now; whether the calls after it may begin."""
        raise NotImplementedError

    def advance(self) -> bool:
        """Move it along, once it has begun; whether it is done. What it raises is the end of the communicator."""
        raise NotImplementedError

    def end(self, error: Exception | None) -> None:
        """It is over: let go of everything."""
        self._over = True
        self._error = error
        if self.order is not None:
            self.order.release()

    def events(self) -> Sequence[Event]:
        """What it waits for on a device."""
        return ()

    def peers(self) -> set[int]:
        """The ranks that it waits for a message of or to, as far as it knows."""
        return set()

    def abort(self) -> None:
        """Stop what the executors do not know of, so that nothing touches the arrays any more."""

    def late(self, seconds: float) -> HetcommError:
        """What to raise when a wait took too long: a `CollectiveTimeoutError` that says what it waits for."""
        what, peer = self._engine.blocked_on(self)
        return CollectiveTimeoutError(
            f"{self.name} did not complete within {seconds:g} s; it waits for: {what}",
            rank=self._engine.rank,
            peer=peer,
            collective=None if self.ticket is None else self.ticket.call,
            remedy="See whether all ranks live and make the same calls; HETCOMM_TIMEOUT or timeout= sets the limit.",
        )


class Milestone(Work):
    """All ranks have come to this call; nothing moves."""

    __slots__ = ()

    def begin(self) -> bool:
        """It is over as it begins."""
        if not self._engine.permits(self.ticket):
            return False
        self.begun = True
        self._engine.end(self, None)
        return True

    def advance(self) -> bool:
        """Nothing is left to do."""
        return True


class CollectiveWork(Work):
    """A collective with a plan."""

    __slots__ = ("_call", "_operation", "_plan", "number")
    counts = 1

    def __init__(
        self, engine: Engine, name: str, plan: Plan, call: Call, seconds: float, order: Ordering | None = None
    ) -> None:
        super().__init__(engine, name, seconds, order)
        self.number = 0  # of its last run
        self._plan: Plan | None = plan
        self._call: Call | None = call
        self._operation: Execution | None = None

    def begin(self) -> bool:
        """Start its program."""
        plan, call = self._plan, self._call
        assert plan is not None  # only `end` lets go of them
        assert call is not None
        if not self._engine.admits(self):
            return False
        self.begun = True
        self._operation = operation = self._engine.run(self, plan, call)
        if self.order is not None:
            self.order.exit = operation.exit
        return True

    def resume(self, operation: Execution) -> None:
        """It was begun without this object, by `operation`."""
        self.submitted = self.begun = True
        self._operation = operation

    def advance(self) -> bool:
        """Move it along."""
        operation, plan = self._operation, self._plan
        if operation is None or plan is None:
            return False
        if not (operation.press() if self._engine.waits_for(self) else operation.test()):
            return False
        self._engine.account(plan)
        return True

    def abort(self) -> None:
        """Stop its program."""
        if self._operation is not None:
            self._operation.abort()

    def peers(self) -> set[int]:
        """Those of the messages of its program that are under way."""
        return set() if self._operation is None else self._operation.peers()

    def contradiction(self) -> tuple[int, int] | None:
        """As for its program."""
        return None if self._operation is None else self._operation.contradiction()

    def end(self, error: Exception | None) -> None:
        """It is over."""
        super().end(error)
        self._plan = self._call = self._operation = None

    def events(self) -> Sequence[Event]:
        """What its program waits for on a device."""
        return () if self._operation is None else self._operation.events()

    def late(self, seconds: float) -> HetcommError:
        """What to raise when a wait took too long: the steps it waits for."""
        error = super().late(seconds)
        operation = self._operation
        if operation is None:
            return error
        meant = "" if self.ticket is None else f" ({self.ticket.intent.text})"
        return CollectiveTimeoutError(
            f"{self.name}{meant} did not complete within {seconds:g} s; it waits for: {operation.waiting_for()}",
            rank=error.rank,
            collective=error.collective,
            step=operation.active_step,
            remedy=error.remedy,
        )


class ExchangeWork(CollectiveWork):
    """An all_to_all_v: first all ranks tell one another their counts, then the data moves; all of it is one call.

    Args:
        engine, name, seconds: As for every work.
        plan, call: Of the all_gather of the counts.
        then: Makes the plan and the call of the exchange, once the counts are gathered. A `UsageError` it raises is
            raised on all ranks alike, and the communicator stays usable.
    """

    __slots__ = ("_then",)

    def __init__(
        self,
        engine: Engine,
        name: str,
        plan: Plan,
        call: Call,
        then: Callable[[], tuple[Plan, Call]],
        seconds: float,
        order: Ordering | None = None,
    ) -> None:
        super().__init__(engine, name, plan, call, seconds, order)
        self._then: Callable[[], tuple[Plan, Call]] | None = then

    def begin(self) -> bool:
        """Start the gathering and, once that is done, the exchange, before which no later call may begin."""
        then = self._then
        if then is not None:
            if (not self.begun and not super().begin()) or not super().advance():
                return False
            self._then = self._operation = None
            try:
                self._plan, self._call = then()
            except UsageError as error:
                self._engine.end(self, error)
                return True
        return super().begin()

    def advance(self) -> bool:
        """Move the exchange along; the gathering is moved by `begin`."""
        return self._then is None and super().advance()

    def end(self, error: Exception | None) -> None:
        """It is over."""
        super().end(error)
        self._then = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message to or from `peer`, whose arguments are checked."""

    memory: Memory
    peer: int
    tag: int
    is_send: bool


class MessageWork(Work):
    """One message, or one each way; it is over when both have gone and come."""

    __slots__ = ("_departed_at", "_failure", "_messages", "_points", "_requests")

    def __init__(
        self,
        engine: Engine,
        points: PointToPoint,
        name: str,
        messages: Sequence[Message],
        seconds: float,
        order: Ordering | None = None,
    ) -> None:
        super().__init__(engine, name, seconds, order)
        self._points = points
        self._messages = tuple(messages)
        self._requests: list[tuple[Message, Request]] = []
        self._failure: HetcommError | None = None
        self._departed_at = 0.0  # when it was first seen that a peer has left; 0: none has

    def begin(self) -> bool:
        """Post everything, receives first, unless a group has done so, or the arrays are not ready yet."""
        if self.begun:
            return True
        if not self.due:
            return False
        self.post(sends=False)
        self.post(sends=True)
        return True

    def resume(self, requests: Sequence[tuple[Message, Request]]) -> None:
        """It was posted without this object."""
        self.submitted = self.begun = True
        self._requests = list(requests)

    def events(self) -> Sequence[Event]:
        """The point of its stream at which it may be posted."""
        return () if self.begun or self.order is None else (self.order.entry,)

    @property
    def due(self) -> bool:
        """Whether the device has come to this call."""
        return self.order is None or self.order.entry.done()

    def post(self, *, sends: bool) -> None:
        """Post its receives or, after these, its sends."""
        self.begun = sends
        for message in self._messages:
            if message.is_send is sends:
                self._requests.append((message, self._points.post(message)))

    def advance(self) -> bool:
        """Collect what has gone or come."""
        while self._requests:
            message, request = self._requests[-1]
            try:
                if not request.test():
                    self._look_for_departure(message.peer)
                    return False
                self._points.account(message, request)
            except HetcommError as error:
                told = self._points.explain(error, message.peer)
                if self._points.is_fatal(error):
                    raise told from error
                told.__cause__ = error
                self._failure = self._failure or told
            self._requests.pop()
        if self._failure is not None:
            self._engine.end(self, self._failure)
        return True

    def _look_for_departure(self, peer: int) -> None:
        """Fail if the peer has left, a little after that is known: what it has sent before may still arrive.

        Raises:
            PeerFailureError: It has.
        """
        departure = self._engine.agreement.departure(peer)
        if departure is None:
            return
        now = time.monotonic()
        self._departed_at = self._departed_at or now
        if now - self._departed_at > _LAST_MESSAGES:
            raise departure

    def peers(self) -> set[int]:
        """Whom it waits for."""
        return {message.peer for message, _ in self._requests}

    def end(self, error: Exception | None) -> None:
        """It is over."""
        super().end(error)
        self._messages = ()
        self._requests = []

    def abort(self) -> None:
        """Take back what has not gone or come."""
        pending = [request for _, request in self._requests]
        if pending and not collect(self._points.transport, pending):
            self._engine.keep_until_close(pending, self._messages)
        self._requests = []

    def late(self, seconds: float) -> HetcommError:
        """What to raise when a wait took too long."""
        if not self.begun:
            if self.due:
                return super().late(seconds)
            what = f"{self.name} did not begin within {seconds:g} s: its stream has not come to it"
            return CollectiveTimeoutError(what, rank=self._engine.rank, remedy="See what is queued on the stream.")
        message = self._requests[-1][0]
        what = "be taken" if message.is_send else "arrive"
        error = CollectiveTimeoutError(f"the message did not {what} within {seconds:g} s")
        return self._points.explain(error, message.peer)
