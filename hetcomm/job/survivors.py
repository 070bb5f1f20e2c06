"""A communicator of those that are left: its ranks agree on who goes on, and make one, until that went well on all.

Who dies meanwhile is found out in the next round (`hetcomm.agreement.survival`): nobody takes a communicator for made
before all have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from hetcomm.agreement.survival import Decision
from hetcomm.errors import CollectiveTimeoutError, HetcommError, PeerFailureError, TransportError, numbers
from hetcomm.job.connected import SHRINKING, ConnectedGroup
from hetcomm.job.detect import restrict
from hetcomm.job.wiring import Parts, wire
from hetcomm.waiting.waiting import wait

__all__ = ["rewire"]


def rewire(parts: Parts, ended: Callable[[], Collection[int]], seconds: float) -> Parts:
    """The parts of a communicator of the ranks of a broken one that are left; collective over these.

    Args:
        parts: Those of the broken one.
        ended: Its ranks that have ended or cannot be reached any more, by now.
        seconds: How long the others may take to come.

    Raises:
        CollectiveTimeoutError: Some live and did not come; `ranks` are those that this rank has waited for.
        PeerFailureError: The others take this rank for lost.
        HetcommError: On every rank alike, if on any something else went wrong.
    """
    made: Parts | None = None
    failure: HetcommError | None = None
    members: list[int] | None = None
    survival, peers = parts.agreement.survival, parts.peers
    number = 0
    try:
        while True:
            decision = _decide(parts, number, failure is None, ended, time.monotonic() + seconds)
            going = [rank for rank in range(len(peers)) if rank not in decision.lost]
            if going == members and decision.well and made is not None:
                wired, made = made, None
                return wired
            if going == members:
                raise failure or TransportError("a rank that is left could not make a communicator")
            _discard(made)
            made, members, failure = None, going, None
            group = parts.group.subgroup(going)
            if isinstance(group, ConnectedGroup):
                group = group.within(parts.context, SHRINKING + number)
            try:
                made = wire(parts.job, group, [peers[rank] for rank in going], restrict(parts.topology, going))
            except HetcommError as error:
                failure = error
                if isinstance(error, PeerFailureError):
                    survival.lose({going[rank] for rank in error.ranks})
            number += 1
    except BaseException:
        survival.stay_out()
        raise
    finally:
        _discard(made)


def _decide(parts: Parts, number: int, well: bool, ended: Callable[[], Collection[int]], deadline: float) -> Decision:
    """How a round ends."""
    agreement, rank = parts.agreement, parts.group.rank
    survival = agreement.survival

    def decided() -> bool:
        agreement.poll()
        survival.lose(ended())
        return survival.decision(number) is not None

    def look(now: float) -> None:
        parts.job.pump.lock.rest()
        parts.job.health.look(now)

    survival.begin(number, well=well)
    if not wait(parts.job.pump, decided, deadline, look):
        missing = survival.missing(number)
        raise CollectiveTimeoutError(
            f"rank {numbers(missing)} neither ended nor came to shrink this communicator",
            rank=rank,
            ranks=missing,
            remedy="All ranks that are left must call shrink, or close the communicator; timeout sets the limit.",
        )
    decision = survival.decision(number)
    assert decision is not None  # or it would not have been waited for
    if rank in decision.lost:
        raise PeerFailureError(
            "the other ranks take this one for lost, and go on without it", rank=rank, origin=min(decision.lost)
        )
    return decision


def _discard(parts: Parts | None) -> None:
    """Release what not all ranks have made."""
    if parts is not None:
        parts.abort(0.0)
        parts.close()
