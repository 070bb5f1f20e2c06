"""Persistent requests: a collective that is checked, agreed upon and planned once, and run many times."""

from __future__ import annotations

from collections.abc import Callable

from hetcomm._ext import ucp
from hetcomm.calls.calls import Call
from hetcomm.errors import UsageError
from hetcomm.execution.streams import Ordering
from hetcomm.plans.plans import Plan
from hetcomm.works.engine import Engine
from hetcomm.works.refusals import refusing
from hetcomm.works.work import CollectiveWork, Work

__all__ = ["Request"]


class Request:
    """A collective on fixed arrays; what the `_init` methods of a communicator return.

    Each run reads and writes the arrays as they are then. It keeps them alive until it is closed. `start` is a
    collective call: all ranks make it in the same order as their other calls on the communicator. As a context manager
    it closes itself.
    """

    __slots__ = ("_call", "_engine", "_name", "_order", "_pinned", "_plan", "_seconds", "_work")

    def __init__(
        self,
        engine: Engine,
        name: str,
        plan: Plan,
        call: Call,
        order: Callable[[], Ordering | None] | None,
        seconds: float,
        pinned: ucp.PinnedCall | None = None,
    ) -> None:
        self._engine = engine
        self._order = order
        self._name = name
        self._plan = plan
        self._call: Call | None = call
        self._seconds = seconds
        self._work: Work | None = None
        self._pinned = pinned

    def start(self) -> None:
        """Start a run; collective. It returns at once; inside a group the run starts when the group ends.

        Raises:
            UsageError: On every rank, if the run before has not been waited for or the request is closed on any; this
                run does not take place.
            TransportError: The communicator is unusable.
        """
        pinned = self._pinned
        if pinned is not None and pinned.start():
            return
        engine, call = self._engine, self._call
        engine.enter()
        with refusing(engine, f"start of {self._name}"):
            if engine.unraised is not None:
                engine.settle()
            if call is None or self._work is not None or (pinned is not None and pinned.busy):
                state = "is closed" if call is None else "was started and has not been waited for"
                remedy = "Make a new one." if call is None else "Call wait() before the next start()."
                raise UsageError(f"this request of {self._name} {state}", remedy=remedy, rank=engine.rank)
            order = None if self._order is None else self._order()
        with engine.lock:
            self._work = CollectiveWork(engine, self._name, self._plan, call, self._seconds, order)
            engine.launch(self._work, self._plan.intent, async_op=True)

    def wait(self, timeout: float | None = None) -> None:
        """Return when the run is over; at once if none is under way. It can then be started again.

        With device arrays it returns at once, as `Work.wait` does, and the next run comes after this one.

        Args:
            timeout: Seconds this may take; those given when it was made unless given here.

        Raises:
            UsageError, CollectiveTimeoutError, PlanMismatchError, PeerFailureError, VendorError, TransportError: As
                `Work.wait`.
        """
        pinned = self._pinned
        if self._engine.unusable:
            self._engine.check_owner()
        if pinned is not None and pinned.busy:
            if timeout is None and pinned.wait():
                return
            self._work = pinned.release()
        work = self._work
        if work is None:
            return
        try:
            work.wait(timeout)
        finally:
            if work.over or work.order is not None:
                work.attended = work.over
                self._work = None

    def done(self) -> bool:
        """Whether no run is under way; moves everything along, never waits."""
        pinned = self._pinned
        if self._engine.unusable:
            self._engine.check_owner()
        if pinned is not None and pinned.busy:
            if pinned.test():
                return True
            self._work = pinned.release()
        return self._work is None or self._work.done()

    def close(self) -> None:
        """Let go of the arrays; it cannot be started any more. Not collective. A run under way goes on to its end."""
        if self._engine.unusable:
            self._engine.check_owner()
        pinned, self._pinned = self._pinned, None
        if pinned is not None and pinned.busy:
            self._work = pinned.release()
        self._call = None

    def __enter__(self) -> Request:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not self._engine.is_foreign:  # what ends the block of a forked child is not to be hidden
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._call is None else "idle" if self._work is None else repr(self._work)
        return f"<hetcomm.Request of {self._name}, {state}>"
