"""The executor runs random schedules over a hostile network, with a late vendor, and gets NumPy's results."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.calls.buffers import memory, view
from hetcomm.errors import PeerFailureError, TransportError
from hetcomm.execution.execution import Execution
from hetcomm.execution.executor import Executor
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Buffer, Copy, Program, Recv, Send, Slice
from hetcomm.schedule.timeline import Span
from hetcomm.testing import reference, strategies
from hetcomm.topology import select
from hetcomm.topology.model import Topology
from hetcomm.transport.inproc import InprocNetwork
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind

from .invoke import Invocation, equal, inputs_of, invocation


class FakeCommunicator:
    """A vendor's communicator over ranks of one process: the last member to start a call computes it for all."""

    def __init__(self, shared: FakeGroup, rank: int) -> None:
        self.rank = rank
        self.nranks = shared.nranks
        self._shared = shared
        self._calls = 0
        self.aborted = False

    def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> FakeOperation:
        number = self._calls
        self._calls += 1
        return self._shared.join(number, self.rank, collective, in_memory, out_memory)

    def abort(self) -> None:
        self.aborted = True

    def drain(self, seconds: float) -> bool:
        return True

    def close(self) -> None:
        pass


class FakeOperation:
    """Complete some tests after its call was computed."""

    def __init__(self, delay: int) -> None:
        self.computed = False
        self._delay = delay

    def test(self) -> bool:
        if self.computed:
            self._delay -= 1
        return self.computed and self._delay < 0


class FakeGroup:
    """What the members of a fake communicator share."""

    def __init__(self, nranks: int, rng: random.Random) -> None:
        self.nranks = nranks
        self._rng = rng
        self._waiting: dict[int, dict[int, tuple[Any, ...]]] = {}

    def join(self, number: int, rank: int, *call: Any) -> FakeOperation:
        operation = FakeOperation(self._rng.randint(0, 3))
        members = self._waiting.setdefault(number, {})
        members[rank] = (*call, operation)
        if len(members) == self.nranks:
            self._compute(self._waiting.pop(number))
        return operation

    def _compute(self, members: dict[int, tuple[Any, ...]]) -> None:
        inputs: list[Any] = []
        for rank in range(self.nranks):
            collective, src, dst, _ = members[rank]
            if collective.in_place and dst is not None:
                src = dst.part(collective.in_offset(rank), collective.in_count(rank))
            inputs.append(view(src).copy() if src is not None else None)
        assert len({members[rank][0].with_in_place(False) for rank in range(self.nranks)}) == 1
        for rank, output in enumerate(reference(members[0][0], inputs)):
            collective, _, dst, operation = members[rank]
            if output is not None and dst is not None:
                view(dst.part(collective.out_offset(rank), collective.out_count(rank)))[:] = output
            operation.computed = True


class Ranks:
    """An executor for each rank of a topology, run in turns by one thread."""

    def __init__(self, topology: Topology, seed: int, eager_nbytes: int = 64) -> None:
        rng = random.Random(seed)
        self.network = InprocNetwork(topology.nranks, seed=seed, max_delay=5, eager_nbytes=eager_nbytes)
        self.rng = rng
        mine: list[dict[Any, Any]] = [{} for _ in range(topology.nranks)]
        for comm, members in topology.communicators().items():
            group = FakeGroup(len(members), rng)
            for number, rank in enumerate(members):
                mine[rank][comm] = FakeCommunicator(group, number)
        self.executors = [
            Executor(self.network.transports[rank], range(topology.nranks), rank, 7, mine[rank])
            for rank in range(topology.nranks)
        ]

    def finish(self, executions: list[Execution]) -> None:
        """Test the executions of all ranks in random order until they are done."""
        for _ in range(100_000):
            left = [execution for execution in executions if not execution.test()]
            if not left:
                return
            self.rng.shuffle(executions)
            for transport in self.network.transports:
                transport.progress()
        raise AssertionError("; ".join(execution.waiting_for() for execution in left))


def run_collectives(topology: Topology, calls: Sequence[Sequence[Collective]], seed: int) -> None:
    """Run several collectives at once; each is given as every rank passes it."""
    ranks = Ranks(topology, seed)
    executions: list[Execution] = []
    made: list[tuple[Invocation, Any]] = []
    for number, forms in enumerate(calls):
        agreed = forms[0].agreed()
        inputs = inputs_of(agreed, seed + number)
        factors = [1 + rank % 2 for rank in range(topology.nranks)]
        premul = agreed.op is ReduceKind.PREMUL_SUM
        expected = reference(agreed, inputs, factors if premul else None)
        for rank, executor in enumerate(ranks.executors):
            mine = invocation(forms[rank], rank, inputs[rank])
            src = memory(mine.source, argument="i", rank=rank, writable=False) if not mine.mine.in_place else None
            dst = memory(mine.target, argument="o", rank=rank, writable=True)
            program = select.plan(mine.mine, topology, rank)
            executions.append(executor.start(program, src, dst, factors[rank] if premul else None))
            made.append((mine, expected[rank]))
    ranks.finish(executions)
    for mine, wanted in made:
        assert equal(mine.output(), wanted), (mine, wanted)
        assert mine.damage() is None, mine


@given(st.data())
def test_random_schedules_side_by_side_give_what_numpy_gives(data: st.DataObject) -> None:
    """Whatever finishes first, vendor calls come in one order on all ranks: a `FakeGroup` takes no other."""
    topology = data.draw(strategies.topologies(max_clusters=4, max_ranks=4))
    calls = []
    for _ in range(data.draw(st.sampled_from([1, 1, 1, 2, 5]))):
        collective = data.draw(strategies.collectives(topology.nranks))
        if collective.counts is None and collective.count > 2000:
            collective = replace(collective, count=1009)
        calls.append([data.draw(strategies.passed_by(collective, rank)) for rank in range(topology.nranks)])
    run_collectives(topology, calls, data.draw(st.integers(0, 1 << 16)))


def two_ranks() -> Topology:
    from .threads import clusters

    return clusters(1, 1)


def exchange(rank: int, counts: tuple[int, int]) -> Program:
    """Each rank sends `counts[rank]` elements and receives as many as it expects."""
    total = Collective(CollectiveKind.ALL_REDUCE, 2, 8, DataType.FLOAT64, ReduceKind.SUM)
    steps = (
        Recv(Slice(Buffer.OUT, 0, counts[1]), 1 - rank),
        Send(Slice(Buffer.IN, 0, counts[0]), 1 - rank),
        Copy(Slice(Buffer.IN, 7, 1), Slice(Buffer.OUT, 7, 1)),
    )
    return Program(rank, total, steps)


@pytest.mark.parametrize("wrong", [(3, 5), (5, 3)], ids=["shorter", "longer"])
def test_a_message_of_another_length_is_an_error_and_nothing_is_written_later(wrong: tuple[int, int]) -> None:
    ranks = Ranks(two_ranks(), 0)
    source, target = np.ones(8), np.zeros(8)
    src = memory(source, argument="i", rank=0, writable=False)
    dst = memory(target, argument="o", rank=0, writable=True)
    mine = ranks.executors[0].start(exchange(0, (4, wrong[0])), src, dst)
    others = ranks.executors[1].start(
        exchange(1, (wrong[1], 4)), src, memory(np.zeros(8), argument="o", rank=1, writable=True)
    )
    with pytest.raises(TransportError, match="longer|received"):
        ranks.finish([mine])
    others.abort()
    with pytest.raises(TransportError, match="longer|received"):
        mine.test()  # it is over, but never taken for complete
    assert others.test()


def test_after_a_peer_died_the_array_is_left_alone() -> None:
    ranks = Ranks(two_ranks(), 0)
    source, target = np.ones(8), np.zeros(8)
    src = memory(source, argument="i", rank=0, writable=False)
    dst = memory(target, argument="o", rank=0, writable=True)
    mine = ranks.executors[0].start(exchange(0, (4, 4)), src, dst)
    assert "recv out[0:4] from 1" in mine.waiting_for()
    ranks.network.fail(1)
    with pytest.raises(PeerFailureError):
        ranks.finish([mine])
    assert not any(ranks.network.transports[0]._posted.values()), "no receive is left that could write"
    assert (target[:4] == 0).all()


def test_spans_cover_every_step_once() -> None:
    topology = two_ranks()
    ranks = Ranks(topology, 3)
    spans: list[Span] = []
    ranks.executors[0].spans = spans
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 100, DataType.INT32, ReduceKind.SUM, in_place=True)
    executions = []
    for rank, executor in enumerate(ranks.executors):
        buffer = memory(np.ones(100, "i4"), argument="b", rank=rank, writable=True)
        executions.append(executor.start(select.plan(collective, topology, rank), None, buffer))
    ranks.finish(executions)
    steps = select.plan(collective, topology, 0).steps
    assert sorted(span.index for span in spans) == list(range(len(steps)))
    assert all(span.rank == 0 and span.start <= span.end for span in spans)


def test_scratch_is_used_again() -> None:
    executor = Ranks(two_ranks(), 0).executors[0]
    first = executor.scratch.borrow(1000, MemoryKind.HOST)
    executor.scratch.give_back(first)
    assert executor.scratch.borrow(900, MemoryKind.HOST) is first
    assert executor.scratch.borrow(900, MemoryKind.HOST) is not first
