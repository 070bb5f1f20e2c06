"""Programs that the UCX binding runs by itself give what NumPy gives, and fail as all others do."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.reference import average, numpy_dtype, scaled
from hetcomm.calls.buffers import memory
from hetcomm.errors import TransportError
from hetcomm.execution.execution import Execution
from hetcomm.execution.executor import Executor
from hetcomm.execution.native import NativeExecution
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Buffer, Copy, Fill, Program, Recv, Reduce, Scale, Send, Slice
from hetcomm.testing import reference, strategies
from hetcomm.topology import flat
from hetcomm.transport.ucx import UcxTransport
from hetcomm.types import COMBINING, DataType, ReduceKind, has_meaning

from .invoke import equal, inputs_of, invocation
from .test_executor import exchange

NRANKS = 4
REDUCED = [(dtype, op) for dtype in DataType for op in COMBINING if has_meaning(op, dtype)]


@pytest.fixture(scope="module")
def executors() -> Iterator[list[Executor]]:
    """Some ranks in one process, over real UCX."""
    transports = [UcxTransport() for _ in range(NRANKS)]
    for transport in transports:
        for peer, other in enumerate(transports):
            transport.connect(peer, other.address)
    yield [Executor(transport, range(NRANKS), rank, 3, {}) for rank, transport in enumerate(transports)]
    for transport in transports:
        transport.close()


def finish(executors: list[Executor], executions: list[Execution], seed: int = 0) -> None:
    """Test all in random order until they are done."""
    rng, end = random.Random(seed), time.monotonic() + 100
    while left := [execution for execution in executions if not execution.test()]:
        assert time.monotonic() < end, "; ".join(execution.waiting_for() for execution in left)
        rng.shuffle(executions)
        for executor in executors:
            executor.transport.progress()
        if rng.random() < 0.2:
            left[0].press()


@given(st.data())
def test_any_collective_of_messages_gives_what_numpy_gives(executors: list[Executor], data: st.DataObject) -> None:
    calls = []
    for _ in range(data.draw(st.sampled_from([1, 1, 3]))):
        collective = data.draw(strategies.collectives(NRANKS))
        calls.append((collective, [data.draw(strategies.passed_by(collective, rank)) for rank in range(NRANKS)]))
    seed = data.draw(st.integers(0, 1000))  # nothing is drawn once anything is started: the ranks are used again
    made: list[Any] = []
    executions: list[Execution] = []
    for number, (collective, forms) in enumerate(calls):
        inputs = inputs_of(collective, number)
        premul = collective.op is ReduceKind.PREMUL_SUM
        factors = [1 + rank % 2 for rank in range(NRANKS)]
        expected = reference(collective, inputs, factors if premul else None)
        for rank, executor in enumerate(executors):
            mine = invocation(forms[rank], rank, inputs[rank])
            src = memory(mine.source, argument="i", rank=rank, writable=False) if not mine.mine.in_place else None
            dst = memory(mine.target, argument="o", rank=rank, writable=True)
            program = flat.plan(mine.mine, rank)
            executions.append(executor.start(program, src, dst, factors[rank] if premul else None))
            assert isinstance(executions[-1], NativeExecution)
            made.append((mine, expected[rank]))
    finish(executors, executions, seed)
    for mine, wanted in made:
        assert equal(mine.output(), wanted), (mine, wanted)
        assert mine.damage() is None, mine


@pytest.mark.parametrize(("dtype", "op"), REDUCED, ids=lambda value: value.value)
def test_every_reduction_is_that_of_numpy(executors: list[Executor], dtype: DataType, op: ReduceKind) -> None:
    """All bytes there are, so that integers wrap around, and NaN, infinities and zeros of both signs meet."""
    count, rng = 4001, np.random.default_rng(7)
    source = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(numpy_dtype(dtype))
    target = rng.permutation(source)
    if dtype.is_inexact:
        specials = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], numpy_dtype(dtype))
        source[:36], target[:36] = np.repeat(specials, 6), np.tile(specials, 6)
    with np.errstate(all="ignore"):
        wanted = getattr(np, op.ufunc)(target, source).astype(source.dtype)
    step = Reduce(Slice(Buffer.IN, 0, count), Slice(Buffer.OUT, 0, count), op)
    collective = Collective(CollectiveKind.ALL_REDUCE, NRANKS, count, dtype, op)
    src = memory(source, argument="i", rank=0, writable=False)
    dst = memory(target, argument="o", rank=0, writable=True)
    execution = executors[0].start(Program(0, collective, (step,)), src, dst)
    assert isinstance(execution, NativeExecution)
    assert execution.test()
    with np.errstate(all="ignore"):
        there = wanted == wanted
        assert np.array_equal(target == target, there), "NaN is where NumPy has it"
    assert target[there].tobytes() == wanted[there].tobytes()


@pytest.mark.parametrize(
    "dtype", [each for each in DataType if each is not DataType.BOOL], ids=lambda value: value.value
)
def test_what_is_scaled_and_filled_is_what_numpy_makes(executors: list[Executor], dtype: DataType) -> None:
    """A rank that fills a third of its output, scales its input into another and averages the last in place."""
    count, factor = 33, 3 + 4j if dtype.is_complex else -3 if dtype.is_integer else 0.3
    source = np.arange(count).astype(numpy_dtype(dtype))
    target = np.resize(source[::-1], 3 * count)
    whole, thirds = Slice(Buffer.IN, 0, count), [Slice(Buffer.OUT, each * count, count) for each in range(3)]
    steps = (
        Fill(thirds[0], ReduceKind.PROD),
        Copy(whole, thirds[1], Scale.FACTOR),
        Copy(thirds[2], thirds[2], Scale.AVERAGE),
    )
    collective = Collective(CollectiveKind.ALL_REDUCE, NRANKS, count, dtype, ReduceKind.PREMUL_SUM)
    src = memory(source, argument="i", rank=0, writable=False)
    dst = memory(target, argument="o", rank=0, writable=True)
    averaged = average(target[2 * count :], NRANKS)
    for passed in (None, factor):  # without one it is multiplied by one
        target[2 * count :] = source[::-1]
        execution = executors[0].start(Program(0, collective, steps), src, dst, passed)
        assert isinstance(execution, NativeExecution)
        assert execution.test()
        wanted = [np.ones_like(source), scaled(source, 1 if passed is None else passed), averaged]
        assert target.tobytes() == np.concatenate(wanted).tobytes()


@pytest.mark.parametrize("wrong", [(3, 5), (5, 3)], ids=["shorter", "longer"])
def test_a_message_of_another_length_is_an_error_that_names_its_step(wrong: tuple[int, int]) -> None:
    transports = [UcxTransport() for _ in range(2)]
    for transport in transports:
        for peer, other in enumerate(transports):
            transport.connect(peer, other.address)
    pair = [Executor(transport, range(2), rank, 3, {}) for rank, transport in enumerate(transports)]
    arrays = [memory(np.zeros(8), argument="b", rank=0, writable=True) for _ in range(4)]
    mine = pair[0].start(exchange(0, (4, wrong[0])), arrays[0], arrays[1])
    others = pair[1].start(exchange(1, (wrong[1], 4)), arrays[2], arrays[3])
    with pytest.raises(TransportError, match="longer|received") as caught:
        finish(pair, [mine])
    assert caught.value.peer == 1
    with pytest.raises(TransportError, match="longer|received"):
        mine.test()
    others.abort()
    assert others.test()
    for transport in transports:
        transport.close()


def test_what_is_aborted_touches_nothing_any_more(executors: list[Executor]) -> None:
    arrays = [np.zeros(1 << 18) for _ in range(2)]
    total = Collective(CollectiveKind.ALL_REDUCE, NRANKS, 1 << 18, DataType.FLOAT64, ReduceKind.SUM)
    steps = (Recv(Slice(Buffer.OUT, 0, 1 << 18), 1), Copy(Slice(Buffer.OUT, 0, 4), Slice(Buffer.OUT, 8, 4)))
    target = memory(arrays[0], argument="o", rank=0, writable=True)
    execution = executors[0].start(Program(0, total, steps), None, target)
    assert not execution.test()
    assert execution.waiting_for() == "recv out[0:262144] from 1"
    assert execution.active_step == "recv out[0:262144] from 1"
    execution.abort()
    assert execution.test()
    sent = memory(np.ones(1 << 18), argument="i", rank=1, writable=False)
    late = executors[1].start(Program(1, total, (Send(Slice(Buffer.IN, 0, 1 << 18), 0),)), sent, target)
    for _ in range(1000):
        for executor in executors:
            executor.transport.progress()
    late.abort()
    assert not arrays[0].any()
