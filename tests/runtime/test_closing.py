"""How ranks part: the state machine under every order of frames, and communicators closed in different orders."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hetcomm
from hetcomm.agreement.closing import Closing
from hetcomm.agreement.control import Frame
from hetcomm.communicator import Communicator
from hetcomm.testing import run_ranks, this_rank

from ..scripts import DEADLINE, PATIENCE
from .threads import clusters, run_threads

KINDS = ("parts", "parts of parts", "jobs")


class Wire:
    """Frames on their way between the ends of one communicator; those from one rank to another stay in order."""

    def __init__(self, nranks: int) -> None:
        self._ways: dict[tuple[int, int], list[Frame]] = {}
        self.nranks = nranks
        self.differences: list[tuple[int, str]] = []
        self.ends = [Closing(rank, nranks, self._sender(rank), self._disagree) for rank in range(nranks)]

    def _disagree(self, call: int, text: str) -> None:
        self.differences.append((call, text))

    def _sender(self, source: int) -> object:
        def send(frame: Frame, ranks: Iterable[int]) -> None:
            for rank in ranks:
                self._ways.setdefault((source, rank), []).append(Frame.unpack(frame.pack(), self.nranks))

        return send

    def deliver(self, draw: random.Random) -> bool:
        """Let one frame arrive; whether there was any."""
        ways = [way for way, frames in self._ways.items() if frames]
        if not ways:
            return False
        way = draw.choice(ways)
        self.ends[way[1]].record(self._ways[way].pop(0))
        return True


@given(st.integers(1, 5), st.randoms(use_true_random=False), st.data())
def test_all_ranks_learn_the_same_and_nobody_is_said_to_wait_who_does_not(
    nranks: int, draw: random.Random, data: st.DataObject
) -> None:
    wire = Wire(nranks)
    tired = data.draw(st.sets(st.integers(0, nranks - 1)))
    outstanding = data.draw(st.lists(st.integers(-2, 2), min_size=nranks, max_size=nranks))
    todo = [("announce", rank) for rank in range(nranks)]
    waits = dict.fromkeys(range(nranks), False)
    while True:
        if todo and draw.random() < 0.4:
            what, rank = todo.pop(draw.randrange(len(todo)))
            if what == "announce":
                wire.ends[rank].announce(7, 123, "barrier", outstanding[rank])
                waits[rank] = True
                if rank in tired:
                    todo.append(("defer", rank))
            elif wire.ends[rank].together is None and wire.ends[rank].defer():
                waits[rank] = False
        elif not wire.deliver(draw) and not todo:
            break
        for rank, end in enumerate(wire.ends):
            if end.together and nranks > 1:
                assert all(waits.values()), f"rank {rank} was told that all wait"
    verdicts = {end.together for end in wire.ends}
    assert len(verdicts) == 1
    assert None not in verdicts
    if not tired:
        assert verdicts == {True}
    assert {end.clean for end in wire.ends} == {sum(outstanding) == 0}
    assert not wire.differences


@given(st.integers(2, 5), st.randoms(use_true_random=False), st.data())
def test_ranks_that_have_called_different_things_do_not_part(
    nranks: int, draw: random.Random, data: st.DataObject
) -> None:
    """Another number of calls, or as many of which one differs: rank 0 finds it, and nobody is told all is well."""
    wire = Wire(nranks)
    odd = data.draw(st.integers(0, nranks - 1))
    calls, chain = data.draw(st.sampled_from([(6, 123), (8, 123), (7, 124)]))
    for rank in draw.sample(range(nranks), nranks):
        mine = (calls, chain, "reduce") if rank == odd else (7, 123, "barrier")
        wire.ends[rank].announce(*mine, 0)
    while wire.deliver(draw):
        pass
    assert all(end.together is None and not end.clean for end in wire.ends)
    ((call, text),) = wire.differences
    assert call == min(calls, 7) - 1
    assert "barrier" in text
    assert "reduce" in text


def test_parts_closed_in_different_orders_by_threads() -> None:
    def job(comm: Communicator) -> tuple[float, int]:
        parts = [comm.split(0) for _ in range(3)]
        works = []
        for part in parts:
            assert part is not None
            part.barrier()
            works.append(part.all_reduce(np.ones(2000), async_op=True))
        order = parts[comm.rank :] + parts[: comm.rank]
        begun = time.monotonic()
        for part in order:
            assert part is not None
            part.close()
        took = time.monotonic() - begun
        for work in works:
            assert work is not None
            work.wait()
        array = np.ones(3)
        comm.all_reduce(array)
        return took, int(array[0])

    for took, total in run_threads(clusters(2, 1), job):
        assert took < 30
        assert total == 3


def close_in_every_way() -> dict[str, list[object]]:
    return {kind: close_in_turns(kind) for kind in KINDS}


def close_in_turns(kind: str) -> list[object]:
    """Close three communicators, each rank from another one on; how long that took, and whether the rest is well."""
    root = hetcomm.init()
    me = this_rank()
    if kind == "parts":
        comms = [root.split(0) for _ in range(3)]
    elif kind == "parts of parts":
        part = root.split(0)
        assert part is not None
        comms = [part, part.split(0), root.split(0)]
    else:
        comms = [hetcomm.init() for _ in range(3)]
    for comm in comms:
        assert comm is not None
        comm.all_reduce(np.ones(10))
        if kind != "jobs":
            comm.all_reduce(np.ones(1000), async_op=True)
    begun = time.monotonic()
    for comm in comms[root.rank :] + comms[: root.rank]:
        assert comm is not None
        comm.close()
    took = time.monotonic() - begun
    array = np.ones(4)
    root.all_reduce(array)
    me.barrier()
    begun = time.monotonic()
    root.close()
    return [took < 30, time.monotonic() - begun < 30, array[0]]


@pytest.mark.parametrize(
    "vendors",
    [
        pytest.param(["mpi", "mpi", "oneccl"], id="mpi+mpi+oneccl"),
        pytest.param(["gloo", "gloo", "ucx"], id="gloo+gloo+ucx", marks=[pytest.mark.slow, pytest.mark.gloo]),
    ],
)
def test_communicators_closed_in_different_orders(vendors: list[str]) -> None:
    found = run_ranks(3, close_in_every_way, vendors=vendors, env=PATIENCE, timeout=DEADLINE)
    assert found == [{kind: [True, True, 3.0] for kind in KINDS}] * 3


def use_and_close_later() -> list[object]:
    """A rank that comes late to a close: the others go on, and it is told if it calls something there."""
    root = hetcomm.init()
    part = root.split(0)
    assert part is not None
    part.barrier()
    error: Exception | None = None
    begun = time.monotonic()
    if root.rank == 1:
        time.sleep(1.5)
        try:
            part.all_reduce(np.ones(3))
        except hetcomm.HetcommError as caught:
            error = caught
    part.close()
    took = time.monotonic() - begun
    root.barrier()
    root.close()
    return [type(error).__name__, took < 30]


def test_a_rank_that_comes_late_is_told_that_the_others_have_closed() -> None:
    found = run_ranks(3, use_and_close_later, vendors=["mpi", "mpi", "ucx"], env=PATIENCE, timeout=DEADLINE)
    assert found == [["NoneType", True], ["DepartedError", True], ["NoneType", True]]
