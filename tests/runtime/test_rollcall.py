"""Where the others are: what they say when asked, what they have said by the way, and what follows from calls."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from hetcomm._ext import ucp
from hetcomm.agreement.control import Frame, Subject
from hetcomm.agreement.rollcall import RollCall
from hetcomm.agreement.tickets import Intent
from hetcomm.communicator import Communicator
from hetcomm.errors import CollectiveTimeoutError, HetcommError

from .threads import clusters, run_threads


class Wire:
    """Two roll calls that hear each other."""

    def __init__(self) -> None:
        self.ledgers = [ucp.Ledger(), ucp.Ledger()]
        self.completed = [0, 0]
        self.rolls = [RollCall(rank, self.ledgers[rank], self._send, self._done(rank)) for rank in range(2)]

    def _done(self, rank: int):  # type: ignore[no-untyped-def]
        return lambda: self.completed[rank]

    def _send(self, frame: Frame, ranks) -> None:  # type: ignore[no-untyped-def]
        for rank in ranks:
            self.rolls[rank].record(Frame.unpack(frame.pack(), 2))


def test_who_is_asked_says_where_it_is() -> None:
    wire = Wire()
    first = wire.rolls[0]
    assert first.known(1) == (0, "")
    wire.ledgers[1].count(Intent.of("barrier"))
    wire.ledgers[1].count(Intent.of("broadcast 3"))
    wire.completed[1] = 1
    wire.rolls[1].needs = lambda: [0]
    first.ask([1])
    assert first.has_answered(1)
    assert first.known(1) == (2, "broadcast 3")
    assert first.answers[1].completed == 1
    assert first.answers[1].needs == {0}


def test_what_is_told_by_the_way_counts_until_more_is_known() -> None:
    wire = Wire()
    first = wire.rolls[0]
    first.hint(Frame(Subject.NOTE, 1, 3, text="broadcast"))
    first.hint(Frame(Subject.NOTE, 1, 2, text="an older one"))
    assert first.known(1) == (4, "broadcast")
    assert not first.has_answered(1)
    for text in ("all_reduce a", "all_reduce b", "all_reduce c", "all_reduce d", "all_reduce e", "broadcast f"):
        wire.ledgers[0].count(Intent.of(text))
    wire.completed[0] = 6
    assert first.known(1) == (5, "all_reduce e"), "which this rank has completed, so that one has come to it"
    wire.completed[0] = 4
    assert first.known(1) == (4, "broadcast")


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("new", [False, True])
def test_who_does_not_come_is_named_by_all(victim: int, new: bool) -> None:
    """Whether the plan has to be agreed on first or is known."""

    def job(comm: Communicator) -> HetcommError | None:
        array = np.ones(8)
        if not new:
            comm.all_reduce(array)
        comm.barrier()
        if comm.rank == victim:
            threading.Event().wait(2.5)  # it computes
            return None
        try:
            comm.all_reduce(array, timeout=0.5)
        except HetcommError as error:
            return error
        return None

    for rank, error in enumerate(run_threads(clusters(2, 1), job)):
        if rank == victim:
            continue
        assert isinstance(error, CollectiveTimeoutError), (rank, error)
        assert error.ranks == {victim}, (rank, error)
        for each in error.whereabouts:
            assert each.rank == victim
            assert each.called == (1 if new else 2)
            assert "barrier" in each.last
