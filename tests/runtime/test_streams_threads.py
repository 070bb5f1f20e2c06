"""Whole communicators on fake devices in one process: for each rank a thread, and a progress thread beside it."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hetcomm import communicator
from hetcomm._conformance.fake_vendor import FakeGroup
from hetcomm.communicator import Communicator
from hetcomm.devices import Devices
from hetcomm.errors import CollectiveTimeoutError, HetcommError, PeerFailureError, VendorError
from hetcomm.execution.tags import Contexts
from hetcomm.job.job import Job
from hetcomm.job.wiring import wire
from hetcomm.schedule.steps import VendorCall
from hetcomm.testing import FakeDevice, FakeStreamVendor, WatchedTransport
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.transport.inproc import InprocNetwork
from hetcomm.types import Config, MemoryKind, ReduceKind
from hetcomm.vendors import registry
from hetcomm.waiting.waiting import Pump

from .threads import Meeting, ThreadGroup

DEADLINE = 30.0
TOPOLOGY = Topology(
    (
        Cluster("a", "fake", range(3), (Uplink(0), Uplink(1))),
        Cluster("b", "ucx", range(3, 5), (Uplink(3), Uplink(4))),
    )
)


def run_on_devices(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[Communicator, FakeDevice], Any], seed: int = 0
) -> list[Any]:
    """`function(communicator, device)` on every rank; the results in rank order. A thread's error is raised here."""
    topology, real = TOPOLOGY, registry.vendor
    local, meeting = threading.local(), Meeting()
    network = InprocNetwork(topology.nranks, seed=seed, eager_nbytes=256)
    fake = FakeStreamVendor(lambda: local.device)
    monkeypatch.setattr(registry, "vendor", lambda name: fake if name == "fake" else real(name))
    results: list[Any] = [None] * topology.nranks
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        local.device = device = FakeDevice(seed + rank, background=True)
        try:
            devices = Devices()
            devices.opened[MemoryKind.CUDA] = device
            transport = WatchedTransport(network.transports[rank], device)
            group = ThreadGroup(meeting, tuple(range(topology.nranks)), rank, defaultdict(int))
            job = Job(
                Config(timeout=DEADLINE), transport, group, topology, Contexts(), Pump(transport), devices=devices
            )
            parts = wire(job, group, range(topology.nranks), topology)
            with Communicator(parts, _token=communicator._TOKEN) as comm:
                results[rank] = function(comm, device)
            assert not device.violations, "\n".join(map(str, device.violations[:5]))
            assert device.closed_gates == 0
        except BaseException as error:
            errors.append(error)
        finally:
            device.close()

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(topology.nranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("seed", range(3))
def test_calls_follow_one_another_on_several_streams(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result is the input of the next call, on another stream, ordered by events; the host waits at the end."""

    def body(comm: Communicator, device: FakeDevice) -> Any:
        streams = [device.open_stream() for _ in range(3)]
        array = device.array(np.zeros(300, "i8"))
        array.put(np.arange(300) + comm.rank, streams[0])
        for stream, following in itertools.pairwise(streams * 2):
            comm.all_reduce(array, stream=stream)
            device.follow(following, device.record(stream))
        return array.get(following), following

    results = run_on_devices(monkeypatch, body, seed)
    expected = np.stack([np.arange(300) + rank for rank in range(5)])
    for _ in range(5):
        expected[:] = expected.sum(axis=0)
    for got, _ in results:
        assert np.array_equal(got, expected[0])


def test_a_reduction_that_a_vendor_of_devices_lacks_is_made_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = dataclasses.replace(FakeStreamVendor.capabilities, ops=frozenset({ReduceKind.SUM}))
    monkeypatch.setattr(FakeStreamVendor, "capabilities", sums)

    def body(comm: Communicator, device: FakeDevice) -> Any:
        stream, found = device.open_stream(), {}
        for op in ("sum", "bxor", "land"):
            array = device.array(np.zeros(300, "i4"))
            array.put(np.arange(300) >> comm.rank, stream)
            steps = comm.explain("all_reduce", array, op=op).program.steps
            comm.all_reduce(array, op=op, stream=stream)
            found[op] = array.get(stream), any(isinstance(step, VendorCall) for step in steps)
        return found

    inputs = np.stack([np.arange(300) >> rank for rank in range(5)])
    for rank, found in enumerate(run_on_devices(monkeypatch, body)):
        for op, (got, calls_vendor) in found.items():
            assert np.array_equal(got, getattr(np, ReduceKind(op).ufunc).reduce(inputs)), (rank, op)
            assert calls_vendor == (op == "sum" and TOPOLOGY.cluster_of(rank).vendor == "fake"), (rank, op)


def test_what_a_vendor_reports_later_opens_all_gates_and_is_raised_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups: list[FakeGroup] = []
    called = threading.Barrier(TOPOLOGY.nranks)
    make = FakeGroup.__init__

    def remember(self: FakeGroup, *args: Any) -> None:
        make(self, *args)
        groups.append(self)

    monkeypatch.setattr(FakeGroup, "__init__", remember)

    def body(comm: Communicator, device: FakeDevice) -> Any:
        array = device.array(np.ones(3000, "f4"))
        comm.all_reduce(array)
        array.get()
        held = device.obstacle(0)  # no call begins, so none can end, before all ranks have returned from theirs
        comm.all_reduce(array)
        array.put(5)
        called.wait()
        groups[0].failure = VendorError("the fabric is on fire")
        called.wait()
        held.remove()
        assert (array.get() == 5).all()
        with pytest.raises(HetcommError) as raised:
            while True:
                comm.all_reduce(device.array(np.ones(3, "f4")), stream=device.open_stream())
        return type(raised.value)

    assert VendorError in run_on_devices(monkeypatch, body)


def test_a_stream_that_never_comes_to_a_call_is_an_error_of_whoever_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def body(comm: Communicator, device: FakeDevice) -> None:
        array = device.array(np.ones(3, "f4"))
        held = device.obstacle(0)
        work = comm.all_reduce(array, async_op=True)
        assert work is not None
        with pytest.raises((CollectiveTimeoutError, PeerFailureError)):
            work.synchronize(0.3)
        held.remove()

    run_on_devices(monkeypatch, body)
