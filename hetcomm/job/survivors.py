"""A communicator of those that are left: its ranks agree on who goes on, and make one, until that went well on all.

Who dies meanwhile is found out in the next round (`hetcomm.agreement.survival`): nobody takes a communicator for made
before all have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from hetcomm.agreement.survival import Decision
from hetcomm.agreement.tickets import Intent
from hetcomm.errors import HetcommError, PeerFailureError, TransportError
from hetcomm.job.connected import SHRINKING, ConnectedGroup
from hetcomm.job.detect import restrict
from hetcomm.job.wiring import Parts, wire
from hetcomm.waiting.waiting import wait

__all__ = ["rewire"]

_MORE = 1.0  # seconds that ranks get to agree when one has not come in time


def rewire(parts: Parts, ended: Callable[[], Collection[int]], seconds: float) -> Parts:
    """The parts of a communicator of the ranks of a broken one that are left; collective over these.

    Args:
        parts: Those of the broken one.
        ended: Its ranks that have ended or cannot be reached any more, by now.
        seconds: How long the others may take to come; who has not by then is left out.

    Raises:
        PeerFailureError: The others have left this rank out.
        HetcommError: On every rank alike, if on any something else went wrong.
    """
    made: Parts | None = None
    failure: HetcommError | None = None
    members: list[int] = []
    survival, peers = parts.agreement.survival, parts.peers
    number = 0
    try:
        while True:
            decision = _decide(
                parts, number, b"" if made is None else Intent.of(str(members)).fingerprint, ended, seconds
            )
            going = [rank for rank in range(len(peers)) if rank not in decision.lost]
            if going == members and decision.well and made is not None:
                wired, made = made, None
                return _with_group(wired, parts.group.timeout)
            if going == members:
                raise failure or TransportError("a rank that is left could not make a communicator")
            _discard(made)
            made, members, failure = None, going, None
            group = parts.group.subgroup(going)
            if isinstance(group, ConnectedGroup):
                group = group.within(parts.context, SHRINKING + number, min(seconds, group.timeout))
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


def _decide(parts: Parts, number: int, made: bytes, ended: Callable[[], Collection[int]], seconds: float) -> Decision:
    """How a round ends.

    A leader waits so many seconds for the others. They wait as long for it to come, and then a little longer than it
    will wait itself.

    Raises:
        PeerFailureError: The others have left this rank out.
    """
    agreement, survival = parts.agreement, parts.agreement.survival

    def over() -> bool:
        return survival.is_left_out or survival.decision(number) is not None

    def anything_new() -> bool:
        agreement.poll()
        survival.lose(ended())
        return over() or survival.leader(number) != leader

    def look(now: float) -> None:
        parts.job.pump.lock.rest()
        parts.job.health.look(now)

    survival.begin(number, made)
    begun = time.monotonic()
    while not over():
        leader = survival.leader(number)
        rank, has_come = leader
        if rank == parts.group.rank or not has_come:
            until = max(begun + seconds, time.monotonic() + _MORE)
        else:
            until = time.monotonic() + seconds + _MORE
        if not wait(parts.job.pump, anything_new, until, look):
            survival.lose(survival.missing(number))  # they live, but do not come: the others go on, and they are told
    if survival.is_left_out:
        raise PeerFailureError(
            "the other ranks go on without this one: it could not be reached, or did not come to shrink in time",
            rank=parts.group.rank,
            remedy="Close this communicator; a larger timeout of shrink waits longer.",
        )
    decision = survival.decision(number)
    assert decision is not None  # or it would be waited for
    return decision


def _with_group(made: Parts, seconds: float) -> Parts:
    """The same, whose group has so long for what comes later."""
    group = made.group
    return (
        replace(made, group=group.within(made.context, timeout=seconds)) if isinstance(group, ConnectedGroup) else made
    )


def _discard(parts: Parts | None) -> None:
    """Release what not all ranks have made."""
    if parts is not None:
        parts.abort(0.0)
        parts.close()
