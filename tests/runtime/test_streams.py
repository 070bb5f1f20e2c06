"""The executor on fake devices: whatever the timing, no byte is touched before its time, and NumPy's results come."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.fake_streams import FakeEvent, FakeGate
from hetcomm.errors import HetcommError, VendorError
from hetcomm.execution.streams import Ordering
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.testing import FakeDevice, reference, strategies
from hetcomm.topology import select
from hetcomm.topology.model import Topology
from hetcomm.types import DataType, MemoryKind, ReduceKind

from .device_ranks import ROLES, DeviceRanks
from .invoke import equal, inputs_of, invocation
from .threads import clusters


def start_collectives(
    topology: Topology,
    roles: Sequence[str],
    calls: Sequence[Sequence[Collective]],
    seed: int,
    *,
    obstacles: bool = True,
) -> tuple[DeviceRanks, list[Any]]:
    """Call several collectives at once, each as every rank passes it; and what each gives each rank."""
    ranks = DeviceRanks(topology, roles, seed)
    ranks.with_obstacles = obstacles
    expected = []
    for number, forms in enumerate(calls):
        agreed = forms[0].agreed()
        inputs = inputs_of(agreed, seed + number)
        factors = [1 + rank % 2 for rank in range(topology.nranks)]
        premul = agreed.op is ReduceKind.PREMUL_SUM
        expected.append(reference(agreed, inputs, factors if premul else None))
        for rank in range(topology.nranks):
            ranks.call(number, invocation(forms[rank], rank, inputs[rank]), factors[rank] if premul else None)
    return ranks, expected


def run_collectives(
    topology: Topology, roles: Sequence[str], calls: Sequence[Sequence[Collective]], seed: int
) -> DeviceRanks:
    """Run several collectives at once; outputs must be right, inputs unchanged, and there is no race."""
    ranks, expected = start_collectives(topology, roles, calls, seed)
    ranks.finish()
    ranks.check()
    for rank, made in enumerate(ranks.calls):
        for call, wanted in zip(made, expected, strict=True):
            assert equal(call.output(), wanted[rank]), (call.mine.mine, rank)
            assert call.mine.damage() is None, (call.mine.mine, rank)
    return ranks


@st.composite
def several(draw: st.DrawFn, nranks: int) -> list[list[Collective]]:
    """From one to five collectives, as every rank passes them."""
    calls = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 5]))):
        collective = draw(strategies.collectives(nranks))
        if collective.counts is None and collective.count > 2000:
            collective = replace(collective, count=1009)
        calls.append([draw(strategies.passed_by(collective, rank)) for rank in range(nranks)])
    return calls


@given(st.data())
def test_any_schedule_with_any_timing_gives_what_numpy_gives(data: st.DataObject) -> None:
    topology = data.draw(strategies.topologies(max_clusters=4, max_ranks=4))
    roles = [data.draw(st.sampled_from(ROLES)) for _ in topology.clusters]
    run_collectives(topology, roles, data.draw(several(topology.nranks)), data.draw(st.integers(0, 1 << 16)))


def all_reduces(nranks: int, ncalls: int, count: int = 64) -> list[list[Collective]]:
    total = Collective(CollectiveKind.ALL_REDUCE, nranks, count, DataType.INT32, ReduceKind.SUM)
    return [[total.with_in_place(bool(number % 2))] * nranks for number in range(ncalls)]


# Cheap, but each of these has stopped an executor that puts everything on one stream.
@pytest.mark.parametrize("roles", [("streams", "host", "streams"), ("ucx", "started", "streams"), ("streams", "ucx")])
@pytest.mark.parametrize("seed", range(6))
def test_several_pipelined_calls_never_wait_for_one_another_in_a_circle(roles: tuple[str, ...], seed: int) -> None:
    topology = clusters(*(2 + (seed + number) % 3 for number in range(len(roles))))
    run_collectives(topology, roles, all_reduces(topology.nranks, 1 + seed % 4), seed)


@pytest.mark.parametrize("role", ["streams", "started", "ucx"])
@pytest.mark.parametrize("seed", range(3))
def test_calls_on_one_array_see_one_anothers_results(role: str, seed: int) -> None:
    """Every call works on what the one before it has left, and the user changes it in between, without any waiting."""
    topology = clusters(2, 1)
    ranks, rounds = DeviceRanks(topology, [role, "ucx"], seed), 4
    collective = Collective(CollectiveKind.ALL_REDUCE, 3, 40, DataType.INT64, ReduceKind.SUM, in_place=True)
    under_way, arrays = [], []
    for rank, executor in enumerate(ranks.executors):
        device = ranks.devices[rank]
        array = device.array(np.arange(40) + rank)
        bound = executor.bind(ranks.program(select.plan(collective, topology, rank)), MemoryKind.CUDA)
        orders, waiting = [], []
        for number in range(rounds):
            order = Ordering(device, 0, array.memory, rank)
            waiting.append((executor, bound, number, 0, None, array.memory, None, number, order))
            order.hold()
            view = array.memory
            device.multiply(view, view, 3, 0)
            orders.append(order)
        arrays.append(array)
        under_way.append((waiting, []))
    rng = random.Random(seed)
    for _ in range(40_000):
        rank = rng.randrange(3)
        ranks.network.transports[rank].progress()
        ranks.devices[rank].step()
        waiting, begun = under_way[rank]
        if waiting and rng.random() < 0.5:
            executor, *call = waiting.pop(0)
            begun.append((executor.run(*call), call[-1]))
        for execution, order in begun:
            if execution.test():
                order.release()
        if all(device.idle() for device in ranks.devices.values()):
            break
    ranks.check()
    expected = np.stack([np.arange(40) + rank for rank in range(3)])
    for _ in range(rounds):
        expected[:] = expected.sum(axis=0) * 3
    for rank, array in enumerate(arrays):
        assert np.array_equal(array.get(), expected[rank])


# ---- failures


def some_fault(ranks: DeviceRanks, seed: int) -> Callable[[], None]:
    """A vendor that fails, or a rank that dies."""
    if ranks.groups and seed % 2:
        return lambda: setattr(ranks.groups[0], "failure", VendorError("the fabric is on fire"))
    return lambda: ranks.network.fail(ranks.topology.nranks - 1)


@pytest.mark.parametrize("roles", [("streams", "host"), ("streams", "streams", "ucx"), ("started", "ucx")])
@pytest.mark.parametrize("seed", range(4))
def test_after_an_error_all_gates_open_and_nothing_writes_any_more(roles: tuple[str, ...], seed: int) -> None:
    topology = clusters(*(2 for _ in roles))
    ranks, _ = start_collectives(topology, roles, all_reduces(topology.nranks, 3, 500), seed, obstacles=False)
    fault = some_fault(ranks, seed)
    for number in range(20_000):
        if number == 30 * (1 + seed):
            fault()
        try:
            ranks.turn()
            for communicators in ranks.communicators:
                for communicator in communicators.values():
                    communicator.progress()
        except HetcommError:
            break
    else:
        raise AssertionError("nobody has seen the fault")
    ranks.stop()
    alive = [device for rank, device in ranks.devices.items() if rank not in ranks.network.dead]
    for device in alive:
        assert device.closed_gates == 0
        for _ in range(2000):
            device.step()
        assert device.idle(), device.describe()
        assert not device.violations, "\n".join(map(str, device.violations[:5]))
    for transport in ranks.network.transports:
        if transport.rank not in ranks.network.dead:
            for _ in range(50):
                transport.progress()
    arrays = [array for calls in ranks.calls for call in calls for array in call.arrays if array.device in alive]
    for array in arrays:
        assert not array.get().any(), "the user's zeros are the last that was written"
    for executor in ranks.executors:
        executor.close()


# ---- the suite finds what it is for


MUTANTS: dict[str, tuple[type, str, Any]] = {
    "the host takes every event for fired": (FakeEvent, "done", lambda self: True),
    "streams wait for no event": (FakeDevice, "follow", lambda self, stream, event: None),
    "users are not held": (FakeGate, "hold", lambda self, stream: None),
    "calls are over at once for users": (Ordering, "hold", lambda self, stream=None: None),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_order_does_not_go_unseen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTANTS[name])
    topology, found = clusters(2, 2), 0
    for seed in range(4):
        try:
            run_collectives(topology, ("streams", "streams"), all_reduces(4, 2), seed)
        except (AssertionError, HetcommError):
            found += 1
    assert found == 4
