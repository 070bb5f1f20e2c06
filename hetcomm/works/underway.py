"""What is under way on one communicator, and how it ends: works that fail do so together.

A work that fails stops all others of its communicator: first nothing touches an array any more, then the ranks find out
whether they disagree, then every work gets its error. Works of other communicators go on. A communicator that is broken
by misuse is so on all ranks, which know it from the agreement; of anything else they are told.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import TYPE_CHECKING

from hetcomm.agreement.tickets import Ticket
from hetcomm.errors import (
    CollectiveTimeoutError,
    HetcommError,
    PeerFailureError,
    PlanMismatchError,
    TransportError,
    UsageError,
    numbers,
)
from hetcomm.transport.base import Transport
from hetcomm.works.inquest import Inquest
from hetcomm.works.work import MessageWork, Work

if TYPE_CHECKING:
    from hetcomm.job.wiring import Parts

__all__ = ["UnderWay"]

_log = logging.getLogger(__name__)

_WATCH_EVERY = 0.02  # seconds
_PATIENCE = 1.0  # seconds that libraries get to finish what cannot be taken back from them,
_PATIENCE_WITH_THE_DEAD = 0.1  # and where that needs a rank which has died
_SHOWN = 8  # calls that an error names


class UnderWay:
    """The works of one rank of one communicator.

    Args:
        parts: What the communicator consists of.

    Attributes:
        rank: This process's number.
        owner: The process that made the communicator; its forked children have none.
        agreement: See there.
        unusable: Whether the communicator is closed or broken.
        ledger: Counts; and whether the fast path may not be taken.
        pending: Works that are submitted and have not begun, in order.
        unraised: What went wrong with a call that nobody waits for, and is for the next call.
        told: Whether a call has raised why the communicator is broken.
        unposted: Messages whose arrays a device is still working on, in order, and those behind them.
    """

    def __init__(self, parts: Parts) -> None:
        self.rank = parts.group.rank
        self.owner = os.getpid()
        self.agreement = parts.agreement
        self.ledger = parts.ledger
        self.unusable = self.ledger.is_slow = False
        self.pending: deque[Work] = deque()
        self.unposted: deque[Work] = deque()
        self._background: deque[Work] = deque()  # those that the pump moves
        self._awaited: list[Work] = []  # those that blocking calls wait for: one, unless threads share it
        self._parts = parts
        self._closed = False
        self.instead = "Make a new one with hetcomm.init()."  # of this one, when it is closed
        self.unraised: Exception | None = None
        self.told = False
        self.lock = parts.job.pump.lock
        self._inquest = Inquest(parts)
        self._needs: frozenset[int] = frozenset()  # whose messages it waited for when it stopped
        self.agreement.roll.needs = self._needed
        self._halted = False  # broken, or about to be: nothing moves any more
        self._watch_at = 0.0
        self._known_ended: frozenset[int] = frozenset()  # as `watch` saw it last
        self._reason: HetcommError | None = None  # the error that broke it, if this rank found it

    def enter(self) -> None:
        """Refuse any call on a communicator that is closed or broken, and one in the middle of another.

        Raises:
            UsageError: It is closed; or a signal handler, or a callback, makes a call of hetcomm's that has interrupted
                one of hetcomm's.
            TransportError: It is broken.
        """
        self.refuse_in_between()
        self.check_usable()

    def refuse_in_between(self) -> None:
        """Refuse what a signal handler, or a callback, wants in the middle of a call.

        Raises:
            UsageError: There is one.
        """
        if self.lock.mine:
            raise UsageError(
                "hetcomm was called in the middle of another of its calls, as by a signal handler",
                remedy="Let the handler set a flag, and make the call when the one that it interrupted has returned.",
                rank=self.rank,
            )

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
            raise UsageError("this communicator is closed", remedy=self.instead, rank=self.rank)
        with self.lock:  # the progress thread may be about to find out why
            self.settle()
            reason = self.agreement.cause or self._reason
            if reason is not None and not self.told:
                self.told = True
                raise reason.again()
            self.told = True
            raise self._unusable_error() from reason

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
        self.unusable = self.ledger.is_slow = True
        self.lock.open()

    def settle(self) -> None:
        """Raise what went wrong with a call on device arrays after it had returned, once.

        Raises:
            HetcommError: As the call would have, had it waited.
        """
        error, self.unraised = self.unraised, None
        if error is not None:
            self.told = True
            raise error

    def tell(self) -> None:
        """Raise why the ranks have called different things, if no call has raised anything since.

        Raises:
            HetcommError: As a call would have.
        """
        cause = self.agreement.cause
        if cause is not None and not self.told:
            self.told = True
            raise cause.again()

    def end(self, work: Work, error: Exception | None) -> None:
        """A work is over; nothing of it touches an array any more."""
        if work.over:
            return
        if isinstance(error, HetcommError):
            error = self._with_unmet(work, error)
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

    def unmet(self, transport: Transport) -> list[tuple[int, str]]:
        """See `Mover.unmet`."""
        if transport is not self._parts.job.transport:
            return []
        ranks = numbers(self._parts.peers)
        return [
            (self._parts.peers[rank], f"call {call} of the communicator of ranks {ranks} of the job, {text}")
            for rank, call, text in self.agreement.unmet()
        ]

    def _with_unmet(self, work: Work, error: HetcommError) -> HetcommError:
        """What to raise where a rank that a work needs waits, or has waited, for this one elsewhere.

        For a message that may be in a collective of this communicator; for a collective in another communicator only,
        since in this one it has come through this call, and is ahead.
        """
        if not isinstance(error, CollectiveTimeoutError | PeerFailureError):
            return error
        unmet = self._parts.job.pump.unmet(self._parts.job.transport, None if work.ticket is None else self)
        waiting = {rank: unmet[peer] for rank, peer in enumerate(self._parts.peers) if peer in unmet}
        if isinstance(error, PeerFailureError):
            waiting = {rank: call for rank, call in waiting.items() if rank in error.ranks}
        if not waiting:
            return error
        calls = "; ".join(
            f"rank {rank} waits for rank {self.rank} to make {call}" for rank, call in sorted(waiting.items())[:_SHOWN]
        )
        if isinstance(error, CollectiveTimeoutError):
            return error.again(message=f"{error.message}; meanwhile {calls}", ranks=waiting)
        if isinstance(error, PlanMismatchError):  # it names both sides
            return error.again(message=f"{error.message}; meanwhile {calls}")
        mine = work.name if work.ticket is None else f"{work.ticket.intent.text}, call {work.ticket.call} here"
        return PlanMismatchError(
            f"the ranks disagree on what to call: rank {self.rank} waits in {mine}, but {calls} ({error.message})",
            rank=self.rank,
            ranks=waiting,
            collective=error.collective,
            remedy="All ranks must make the same calls, on the same communicators, in the same order.",
        )

    def keep_until_close(self, *owners: object) -> None:
        """Keep alive what the transport would not let go of."""
        self._parts.executor.keep_until_close(*owners)

    def _works(self) -> list[Work]:
        """All works that are not over, once each."""
        works = {id(work): work for work in (*self._awaited, *self._background, *self.pending) if not work.over}
        return list(works.values())

    def _deliver(self) -> None:
        """Give works the errors that the agreement has found for their calls."""
        failed, self.agreement.failed = self.agreement.failed, []
        if self._halted:
            return
        left = next((ticket.error for ticket in failed if isinstance(ticket.error, PeerFailureError)), None)
        if self.agreement.broken is not None:
            self._reason = self._reason or next((ticket.error for ticket in failed), None)
            self._halt()
        elif left is not None:
            self._break(self._inquest.blame(left))
        else:
            tickets = set(map(id, failed))
            for work in self._works():
                if work.ticket is not None and id(work.ticket) in tickets:
                    assert work.ticket.error is not None  # or it would not be in `failed`
                    self.end(work, work.ticket.error.again())

    def _fail(self, work: Work, error: Exception) -> None:
        """A work has failed: stop everything, see whether misuse is behind it, and give every work its error."""
        if self._halted:
            return
        if self._closed and isinstance(work, MessageWork):  # its peer may have closed first: that breaks nothing more
            work.abort()
            self.end(work, error)
            return
        needs = self._needs = self._needed()
        self._stop()
        better = error
        if isinstance(error, HetcommError):
            cause = self._inquest.misuse_behind(work, error)
            better = self._inquest.blame(self._inquest.in_own_numbers(error) if cause is error else cause.again())
            if cause is error:
                better = self._inquest.missed(work, better, needs)
            if work.ticket is not None and better.collective is None:
                better = better.again(collective=work.ticket.call)
            if better is not error:
                better.__cause__ = error
        self._break(better, work)

    def _needed(self) -> frozenset[int]:
        """The ranks whose messages its works wait for, or did when it stopped."""
        return self._needs.union(*(work.peers() for work in self._works()))

    def ended(self) -> frozenset[int]:
        """The ranks whose processes are known to have ended, or that cannot be reached any more."""
        return self._inquest.ended()

    def watch(self, now: float) -> None:
        """Let a collective fail that waits, a little after a rank of the communicator has ended.

        What has arrived from it is taken first: the call may not need it any more.
        """
        if now < self._watch_at:
            return
        self._watch_at = now + _WATCH_EVERY
        self._parts.job.health.look(now)
        ended, known = self._inquest.ended(), self._known_ended
        self._known_ended = ended
        work = next((work for work in self._works() if not isinstance(work, MessageWork)), None)
        if ended & known and work is not None and not self._halted:
            self._fail(work, self._inquest.end_of(ended, f"{work.name} needs it"))

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

    def lose(self, error: HetcommError) -> HetcommError:
        """A message that is no work has failed, which is the end of the communicator; what to raise."""
        with self.lock:
            if self._halted:
                return self.ending()
            self._stop()
            better = self._inquest.blame(error)
            self._break(better)
            self.told = True
            return better

    def abandon(self, how: str, error: BaseException | None = None) -> None:
        """Stop everything and leave the others, who are told how and because of what unless they have been."""
        if self.agreement.broken is None:
            self.agreement.broken = f"this rank {how}"
        self.agreement.leave(how, error)
        if not self._halted:
            self._halt()

    def _break(self, error: BaseException, work: Work | None = None) -> None:
        """The communicator is broken by `error`, which is that of `work`; unless all know, the others are told."""
        if self.agreement.broken is None:
            self.agreement.broken = f"{type(error).__name__}: {error}".removesuffix(": ")
            if isinstance(error, HetcommError):
                self._reason = error
            if isinstance(error, PeerFailureError | CollectiveTimeoutError):
                self.agreement.leave("failed", error, error.ranks, error.origin)
            else:
                self.agreement.leave("failed", error)
        if work is not None and isinstance(error, Exception):
            self.end(work, error)
        self._halt()

    def _halt(self) -> None:
        """Stop everything for good, and end all works with an error."""
        self._stop()
        try:
            held = self._parts.abort(
                _PATIENCE_WITH_THE_DEAD if self._inquest.ended() or self.agreement.blamed() else _PATIENCE
            )
            if held:
                what = f"{', '.join(held)} may still write to the arrays of calls that failed"
                _log.warning("[rank %d] %s; they are kept alive as long as the process", self.rank, what)
                self.agreement.broken = f"{self.agreement.broken} ({what})"
        finally:
            for work in self._works():
                ticket = work.ticket
                self.end(work, self.ending(ticket))
            self.pending.clear()
            self.unposted.clear()
            self._background.clear()

    def ending(self, ticket: Ticket | None = None) -> HetcommError:
        """What a work of a communicator that is broken ends with."""
        error = (ticket.error if ticket is not None else None) or self.agreement.cause or self._reason
        return self._unusable_error() if error is None else error.again()

    def _stop(self) -> None:
        """Nothing touches an array any more when this returns, and nothing is started."""
        self.unusable = self.ledger.is_slow = self._halted = True
        self._settle_fast_path()
        works = [work for work in (*self._background, *self.pending) if not work.over]
        works += (work for work in self._awaited if not work.over and work not in works)
        for work in works:  # in order: on its stream, the beginning of one may stand behind the end of the one before
            work.abort()
            if work.order is not None:
                work.order.release()
        self._parts.executor.abort()

    def _settle_fast_path(self) -> None:
        """Let what the fast path has under way become works."""
        raise NotImplementedError

    def _unusable_error(self) -> TransportError:
        return TransportError(
            f"this communicator is unusable: {self.agreement.broken}",
            remedy="Close it and make a new one.",
            rank=self.rank,
        )
