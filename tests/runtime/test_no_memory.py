"""Allocations that fail in the middle of a call: it raises, is never taken for done, and leaves its worker usable."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm.calls.buffers import memory
from hetcomm.errors import TransportError
from hetcomm.execution import tags
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Buffer, Program, Recv, Send, Slice
from hetcomm.testing import run_ranks
from hetcomm.types import DataType, ReduceKind

from ..scripts import DEADLINE
from .test_offers import connected

testcapi = pytest.importorskip("_testcapi", reason="this Python cannot make allocations fail")


def failing(nth: int, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises, if its allocation number `nth` fails."""
    gc.disable()  # what it calls would be in want of memory too
    testcapi.set_nomemory(nth, nth + 1)
    try:
        result = call()
    except BaseException as error:
        result = error
    finally:
        testcapi.remove_mem_hooks()
        gc.enable()
    return result


@pytest.mark.parametrize("sent", [300, 2000])
def test_a_message_of_the_wrong_length_is_never_taken_for_done(sent: int) -> None:
    expected, seen = 4000, []
    total = Collective(CollectiveKind.ALL_REDUCE, 2, expected, DataType.FLOAT64, ReduceKind.SUM)
    source, target = np.zeros(sent), np.zeros(expected)
    with connected(2) as executors:
        send = executors[0].bind(Program(0, total, (Send(Slice(Buffer.IN, 0, sent), 1),)))
        recv = executors[1].bind(Program(1, total, (Recv(Slice(Buffer.OUT, 0, expected), 0),)))
        script = executors[1].script(recv)
        assert script is not None
        for number in range(40):
            message = memory(source, argument="i", rank=0, writable=False)
            sender = executors[0].run(send, number, 0, message, None)
            for _ in range(20):
                for executor in executors:
                    executor.transport.progress()
            run = script.start(0, target.ctypes.data, 0, tags.run(number, 0), b"")
            result: Any = False
            while result is False:
                result = failing(number, lambda run=run: run.test(False))  # type: ignore[misc]
                executors[1].transport.progress()
            seen.append(result)
            for request in run.detach():
                request.cancel()
            sender.abort()
    assert all(isinstance(each, Exception) for each in seen), set(map(repr, seen))
    assert any(isinstance(each, MemoryError) for each in seen)
    assert isinstance(seen[-1], TransportError)
    assert "received" in str(seen[-1])


def starts() -> list[str]:
    """Start a persistent call in want of memory, again and again; how that went."""
    outcomes = []
    with hetcomm.init() as comm:
        given, got = np.arange(5.0), np.zeros(5)
        for number in range(30):
            got[:] = -1
            with comm.all_reduce_init(given, got) as request:
                pinned = request._pinned
                assert pinned is not None
                result = failing(number, pinned.start)
                outcomes.append(type(result).__name__ if isinstance(result, BaseException) else str(result))
                if result is not True:
                    assert not pinned.busy
                    request.start()
                request.wait()
            assert np.array_equal(got, given)
    return outcomes


def test_a_start_without_memory_leaves_the_communicator_usable() -> None:
    (outcomes,) = run_ranks(1, starts, vendors=["ucx"], timeout=DEADLINE)
    assert set(outcomes) == {"MemoryError", "True"}


def test_a_worker_without_memory_for_its_patrol_goes_on() -> None:
    with connected(2) as executors:
        transport = executors[0].transport
        results = [failing(0, transport.progress) for _ in range(600)]
        assert any(isinstance(result, MemoryError) for result in results)
        assert transport.progress() in (True, False)
