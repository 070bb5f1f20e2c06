"""What is under way on one communicator, and how it ends: works that fail do so together.

A work that fails stops all others of its communicator: first nothing touches an array any more, then the ranks find out
whether they disagree, then every work gets its error. Works of other communicators go on. A communicator that is broken
by misuse is so on all ranks, which know it from the agreement; of anything else they are told.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from hetcomm.errors import HetcommError, PeerFailureError, TransportError, UsageError
from hetcomm.runtime.agreement import Ticket
from hetcomm.runtime.work import MessageWork, Work

if TYPE_CHECKING:
    from hetcomm.runtime.wiring import Parts

__all__ = ["UnderWay"]


class UnderWay:
    """The works of one rank of one communicator.

    Args:
        parts: What the communicator consists of.

    Attributes:
        rank: This process's number.
        owner: The process that made the communicator; its forked children have none.
        agreement: See there.
        unusable: Whether the communicator is closed or broken.
        lock: Keeps the progress thread out of the works.
        ledger: Counts; and whether no short way may be taken.
        pending: Works that are submitted and have not begun, in order.
        unraised: What went wrong with a call that nobody waits for, and is for the next call.
        unposted: Messages whose arrays a device is still working on, in order, and those behind them.
    """

    def __init__(self, parts: Parts) -> None:
        self.rank = parts.group.rank
        self.owner = os.getpid()
        self.agreement = parts.agreement
        self.ledger = parts.ledger
        self.unusable = self.ledger.detour = False
        self.pending: deque[Work] = deque()
        self.unposted: deque[Work] = deque()
        self._background: deque[Work] = deque()  # those that the pump moves
        self._current: Work | None = None  # the one that a blocking call waits for
        self._parts = parts
        self._closed = False
        self.unraised: Exception | None = None
        self.lock: AbstractContextManager[Any] = parts.job.pump.lock
        self._halted = False  # broken, or about to be: nothing moves any more

    def check_usable(self) -> None:
        """Refuse any call on a communicator that is closed or broken.

        Raises:
            UsageError: It is closed, or another process's.
            TransportError: It is broken.
        """
        if not self.unusable:
            return
        self.check_owner()
        if self._closed:
            raise UsageError(
                "this communicator is closed", remedy="Make a new one with hetcomm.init().", rank=self.rank
            )
        with self._parts.job.pump.lock:  # the progress thread may be about to find out why
            self.settle()
            raise self._unusable_error() from self.agreement.cause

    @property
    def is_foreign(self) -> bool:
        """Whether this process is a forked child of the communicator's."""
        return self.unusable and os.getpid() != self.owner

    def check_owner(self) -> None:
        """Refuse whatever a forked child does with its parent's communicator.

        Raises:
            UsageError: This is such a child.
        """
        if self.is_foreign:
            raise UsageError(
                f"this communicator is that of process {self.owner}, of which this process, {os.getpid()}, is a forked "
                "child: it has no communicator",
                remedy="Call hetcomm.init after the fork, in each process that is to be a rank; or start the child "
                "with os.execv, subprocess or multiprocessing's 'spawn', and let its parent communicate.",
                rank=self.rank,
            )

    def disown(self) -> None:
        """This process is a forked child: refuse everything; locks may be held by threads that it does not have."""
        self.unusable = self.ledger.detour = True
        self.lock = self._parts.job.pump.lock = threading.RLock()

    def settle(self) -> None:
        """Raise what went wrong with a call on device arrays after it had returned, once.

        Raises:
            HetcommError: As the call would have, had it waited.
        """
        error, self.unraised = self.unraised, None
        if error is not None:
            raise error

    def end(self, work: Work, error: Exception | None) -> None:
        """A work is over; nothing of it touches an array any more."""
        if work.over:
            return
        work.end(error)
        if error is not None and not work.attended:
            self.unraised = self.unraised or error
        ticket = work.ticket
        if ticket is not None:
            ticket.works -= 1
            if not ticket.works:
                self.agreement.over(ticket)
        if error is None:
            self.ledger.calls += work.counts

    def entomb(self, *owners: object) -> None:
        """Keep alive what the transport would not let go of."""
        self._parts.executors[0].entomb(*owners)

    def _works(self) -> list[Work]:
        """All works that are not over, once each."""
        current = () if self._current is None else (self._current,)
        found = {id(work): work for work in (*current, *self._background, *self.pending) if not work.over}
        return list(found.values())

    def _deliver(self) -> None:
        """Give works the errors that the agreement has found for their calls."""
        failed, self.agreement.failed = self.agreement.failed, []
        if self._halted:
            return
        left = next((ticket.error for ticket in failed if isinstance(ticket.error, PeerFailureError)), None)
        if self.agreement.broken is not None:
            self._halt()
        elif left is not None:
            self._break(left)
        else:
            tickets = set(map(id, failed))
            for work in self._works():
                if work.ticket is not None and id(work.ticket) in tickets:
                    self.end(work, _again(work.ticket.error))

    def _fail(self, work: Work, error: Exception) -> None:
        """A work has failed: stop everything, see whether misuse is behind it, and give every work its error."""
        if self._halted:
            return
        if self._closed and isinstance(work, MessageWork):  # its peer may have closed first: that breaks nothing more
            work.abort()
            self.end(work, error)
            return
        self._stop()
        better = error
        if work.ticket is not None and isinstance(error, HetcommError):
            found = self.agreement.diagnose(work.ticket, error)
            if found is not error:
                better = _again(found)
                better.__cause__ = error
        self._break(better, work)

    def _interrupted(self, work: Work, error: BaseException) -> None:
        """The wait for a work was interrupted: a message is taken back, a collective is the end."""
        if isinstance(work, MessageWork) and work.begun and not self._halted:
            work.abort()
            what = f"{work.name} was given up: {type(error).__name__} interrupted the wait for it"
            self.end(work, TransportError(what, rank=self.rank))
        else:
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """An interruption, or a fault of hetcomm's own, hit this communicator: it is unusable; the others are told."""
        if self.agreement.broken is None:
            self._break(error)

    def abandon(self, why: str) -> None:
        """Stop everything and leave the others, who are told why unless they have been."""
        if self.agreement.broken is None:
            self.agreement.broken = f"this rank {why}"
        self.agreement.leave(why)
        if not self._halted:
            self._halt()

    def _break(self, error: BaseException, work: Work | None = None) -> None:
        """The communicator is broken by `error`, which is that of `work`; unless all know, the others are told."""
        if self.agreement.broken is None:
            self.agreement.broken = f"{type(error).__name__}: {error}".removesuffix(": ")
            why = error.message if isinstance(error, HetcommError) else str(error)
            self.agreement.leave(f"failed with {type(error).__name__}: {why}".removesuffix(": "))
        if work is not None and isinstance(error, Exception):
            self.end(work, error)
        self._halt()

    def _halt(self) -> None:
        """Stop everything for good, and end all works with an error."""
        self._stop()
        self._parts.abort()
        for work in self._works():
            ticket = work.ticket
            self.end(work, self.ending(ticket))
        self.pending.clear()
        self.unposted.clear()
        self._background.clear()

    def ending(self, ticket: Ticket | None = None) -> HetcommError:
        """What a work of a communicator that is broken ends with."""
        error = (ticket.error if ticket is not None else None) or self.agreement.cause
        return self._unusable_error() if error is None else _again(error)

    def _stop(self) -> None:
        """Nothing touches an array any more when this returns, and nothing is started."""
        self.unusable = self.ledger.detour = self._halted = True
        self._settle_express()
        works = [work for work in (*self._background, *self.pending) if not work.over]
        if self._current is not None and not self._current.over and self._current not in works:
            works.append(self._current)
        for work in works:  # in order: on its stream, the beginning of one may stand behind the end of the one before
            work.abort()
            if work.order is not None:
                work.order.release()
        self._parts.abort_executions()

    def _settle_express(self) -> None:
        """Let what the express way has under way become works."""
        raise NotImplementedError

    def _unusable_error(self) -> TransportError:
        return TransportError(
            f"this communicator is unusable: {self.agreement.broken}",
            remedy="Close it and make a new one.",
            rank=self.rank,
        )


def _again(error: HetcommError | None) -> HetcommError:
    """The same error as an exception of its own: works that share one are waited for apart."""
    assert error is not None  # a ticket in `failed` has one
    return type(error)(
        error.message,
        remedy=error.remedy,
        rank=error.rank,
        peer=error.peer,
        collective=error.collective,
        step=error.step,
    )
