"""Who is behind a call that fails: ranks that have died, that are missing, or that have called something else.

A vendor's library says at best that a connection ended, the transport that a message did not come. What is raised names
the ranks that have caused it, and nobody else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, TypeVar

from hetcomm.errors import (
    CollectiveTimeoutError,
    HetcommError,
    PeerFailureError,
    PlanMismatchError,
    TransportError,
    VendorError,
    numbers,
)
from hetcomm.health.whereabouts import Whereabouts, missing
from hetcomm.works.work import MessageWork, Work

if TYPE_CHECKING:
    from hetcomm.job.wiring import Parts

__all__ = ["Inquest"]

_MOMENT = 0.02  # seconds without another death after which no more are waited for,
_MOMENT_APART = 0.1  # the same where one has been cut off, since others may have to tell of the rest,
_DEATH = 0.5  # unless a process has been killed, and has so long to end
_SHOWN = 8  # ranks of which an error says more

_E = TypeVar("_E", bound=HetcommError)


class Inquest:
    """Looks into the failures of one rank of one communicator.

    Args:
        parts: What the communicator consists of.
    """

    def __init__(self, parts: Parts) -> None:
        self._rank = parts.group.rank
        self._peers = parts.peers
        self._job = parts.job
        self._agreement = parts.agreement

    # ---- the dead

    def ended(self) -> frozenset[int]:
        """The ranks whose processes are known to have ended, or that cannot be reached any more."""
        failed = self._job.transport.failed_peers()
        if not failed:
            return failed
        return frozenset(rank for rank, peer in enumerate(self._peers) if peer in failed and rank != self._rank)

    def died(self) -> frozenset[int]:
        """Those of them that have not left before they ended; what they said before is read first."""
        ended = self.ended()
        if ended:
            self._agreement.poll()
        return ended - self._agreement.gone()

    def _dead(self) -> frozenset[int]:
        """The same with all that die in this moment."""
        dead = self.died()
        transport = self._job.transport
        moment = _MOMENT_APART if any(map(self._is_cut_off, dead)) else _MOMENT
        now = time.monotonic()
        until, latest = now + moment, now + _DEATH
        while dead and (now < until or (now < latest and transport.dying_peers())):
            transport.progress()
            os.sched_yield()
            more = self.died()
            now = time.monotonic()
            if more != dead:
                dead, until = more, now + moment
        return dead

    def _is_cut_off(self, rank: int) -> bool:
        return self._job.health.is_cut_off(self._peers[rank])

    def end_of(self, ended: frozenset[int], what: str, error: HetcommError | None = None) -> PeerFailureError:
        """The error of calls that need ranks which have ended, or are cut off."""
        if all(map(self._is_cut_off, ended)):
            how = "cannot be reached any more"
        else:
            how = f"{'has' if len(ended) == 1 else 'have'} ended"
        return PeerFailureError(
            f"rank {numbers(ended)} {how}: {what}",
            rank=self._rank,
            ranks=ended,
            origin=self._rank,
            collective=None if error is None else error.collective,
            step=None if error is None else error.step,
            remedy="Close this communicator, or shrink it to go on without them; their output may say why they ended.",
        )

    # ---- what to raise

    def misuse_behind(self, work: Work, error: HetcommError) -> HetcommError:
        """The misuse behind an error, or `error` itself; nobody is asked where a rank has died."""
        if work.ticket is None:
            return error
        self._agreement.poll()
        if isinstance(error, PeerFailureError) and self.died():
            return work.ticket.error or self._agreement.cause or error
        return self._agreement.diagnose(work.ticket, error)

    def blame(self, error: HetcommError) -> HetcommError:
        """What to raise for an error that a rank which has ended may have caused: one that names it.

        A vendor's library says at best that a connection ended, be it that of a rank that has left and said so. A rank
        that leaves names those that it knows of.
        """
        if not isinstance(error, (VendorError, PeerFailureError)) or isinstance(error, PlanMismatchError):
            return error
        self._agreement.poll()
        dead = self._dead()
        self._job.died.update(self._peers[rank] for rank in dead)
        if dead:
            return self._located(self.end_of(dead | self._agreement.blamed(), error.message, error))
        gone = self._agreement.gone()
        if isinstance(error, VendorError) or (error.ranks and error.ranks <= gone):
            return self._agreement.desertion(error.ranks) or error
        return self._located(error) if isinstance(error, PeerFailureError) else error

    def in_own_numbers(self, error: HetcommError) -> HetcommError:
        """An error of the transport, which numbers the ranks of the job, in terms of this communicator's ranks."""
        if not isinstance(error, TransportError) or error.rank is not None:
            return error
        own = {peer: rank for rank, peer in enumerate(self._peers)}
        ranks = {own[peer] for peer in error.ranks if peer in own}
        message = error.message
        if ranks != error.ranks:
            message = f"{message} (rank {numbers(error.ranks)} of the job is rank {numbers(ranks)} here)"
        return error.again(message=message, rank=self._rank, ranks=ranks)

    # ---- the missing

    def missed(self, work: Work, error: HetcommError, needs: Collection[int]) -> HetcommError:
        """An error of a wait that took too long, with the ranks that it waited for in vain.

        Args:
            work: What was waited for; the other ranks have been asked about it.
            error: As raised; if it is of another kind it stays as it is.
            needs: The ranks whose messages the work waited for.
        """
        if not isinstance(error, CollectiveTimeoutError):
            return error
        if isinstance(work, MessageWork):
            self._agreement.locate(error.ranks)
            return self._located(error)
        if work.ticket is None:
            return error
        others = frozenset(range(len(self._peers))) - {self._rank} - self._agreement.gone()
        states = {rank: self._job.health.state(self._peers[rank]) for rank in others}
        if not work.begun and self._rank != 0:  # it waits for word of rank 0
            needs = {*needs, *error.ranks}
        ranks = missing(work.ticket.call, others, self._agreement.roll.answers, states, needs)
        if not ranks:
            return error
        return self._located(error.again(ranks=ranks), "it misses ")

    def _located(self, error: _E, intro: str = "") -> _E:
        """An error with what is known of its ranks."""
        if error.whereabouts:
            return error
        found = tuple(map(self._whereabouts, sorted(error.ranks)))
        told = [str(each) for each in found if each.called is not None or each.place or intro]
        if not told:
            return error
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        return error.again(message=f"{error.message}; {intro}{'; '.join(told[:_SHOWN])}{more}", whereabouts=found)

    def _whereabouts(self, rank: int) -> Whereabouts:
        health, roll, peer = self._job.health, self._agreement.roll, self._peers[rank]
        called, last = roll.known(rank)
        said = roll.has_answered(rank)
        return Whereabouts(
            rank,
            health.host(peer),
            health.state(peer).value,
            called if said or called else None,
            roll.answers[rank].completed if said else None,
            last,
            health.place(peer),
            health.condition(peer),
        )
