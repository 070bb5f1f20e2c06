"""The fake device keeps the order it promises and no other, and finds what is done without waiting."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.calls.buffers import memory
from hetcomm.errors import DeviceError, VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.testing import FakeDevice, FakeGroup, WatchedTransport, reference
from hetcomm.transport.inproc import InprocNetwork
from hetcomm.types import DataType, MemoryKind, ReduceKind

SEEDS = range(30)


def drain(*devices: FakeDevice) -> None:
    """Let the devices work until nothing is queued."""
    for _ in range(10_000):
        if all(device.idle() for device in devices):
            return
        for device in devices:
            device.step()
    raise AssertionError("; ".join(device.describe() for device in devices))


# ---- order


@given(st.integers(0, 1 << 16), st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_order_within_a_stream_is_kept_whatever_the_timing(seed: int, where: list[int]) -> None:
    device = FakeDevice(seed)
    streams = [0, *(device.open_stream() for _ in range(3))]
    happened: list[tuple[int, int]] = []
    for number, index in enumerate(where):
        device.queue(streams[index], lambda entry=(index, number): happened.append(entry))
    assert happened == [], "nothing is done when it is queued"
    drain(device)
    for index in range(4):
        numbers = [number for stream, number in happened if stream == index]
        assert numbers == [number for number, stream in enumerate(where) if stream == index]


def test_streams_overtake_one_another() -> None:
    def order(seed: int) -> tuple[int, ...]:
        device, happened = FakeDevice(seed), []
        for number in range(3):
            device.queue(device.open_stream(), lambda number=number: happened.append(number))
        drain(device)
        return tuple(happened)

    assert len({order(seed) for seed in SEEDS}) == 6, "every order comes"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_follows_an_event_comes_after_it(seed: int) -> None:
    device, happened = FakeDevice(seed), []
    one, other = device.open_stream(), device.open_stream()
    device.delay(one, 20)
    device.queue(one, lambda: happened.append("before"))
    device.follow(other, device.record(one))
    device.queue(other, lambda: happened.append("after"))
    drain(device)
    assert happened == ["before", "after"]


def test_the_host_learns_of_events_late_and_out_of_order() -> None:
    latest, reversed_once = 0, False
    for seed in SEEDS:
        device = FakeDevice(seed)
        first, second = (device.record(device.open_stream()) for _ in range(2))
        looks = [next(look for look in range(99) if event.done()) for event in (first, second)]
        assert first.done(), "once fired, it stays so"
        latest = max(latest, *looks)
        reversed_once |= looks[0] > looks[1]
    assert latest >= 5
    assert reversed_once


@pytest.mark.parametrize("seed", SEEDS)
def test_an_event_never_fires_early(seed: int) -> None:
    device, happened = FakeDevice(seed), []
    stream = device.open_stream()
    device.delay(stream, 10)
    device.queue(stream, lambda: happened.append(1))
    event = device.record(stream)
    device.queue(stream, lambda: None)
    while not event.done():
        device.step()
    assert happened == [1]


def test_c_code_can_ask_for_events() -> None:
    device = FakeDevice(1)
    query = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(device.query)
    obstacle, event = device.obstacle(0), device.record(0)
    assert query(event.handle) == 1
    obstacle.remove()
    drain(device)
    assert [query(event.handle) for _ in range(10)][-1] == 0


def test_a_gate_holds_what_is_queued_after_it_until_it_is_opened_once() -> None:
    device, happened = FakeDevice(1), []
    stream = device.open_stream()
    gate = device.gate()
    assert device.closed_gates == 1
    device.queue(stream, lambda: happened.append("before"))
    gate.hold(stream)
    device.queue(stream, lambda: happened.append("after"))
    for _ in range(200):
        device.step()
    assert happened == ["before"]
    assert not device.idle()
    gate.open()
    gate.open()
    drain(device)
    assert happened == ["before", "after"]
    assert device.closed_gates == 0


def test_an_obstacle_holds_its_stream_until_it_is_removed() -> None:
    device = FakeDevice(1)
    array, obstacle = device.array(np.zeros(3)), device.obstacle(0)
    array.put(7)
    seen = array.snapshot()
    for _ in range(200):
        device.step()
    assert not seen.done
    obstacle.remove()
    device.synchronize(0)
    assert seen.done
    assert (seen.values == 7).all()


def test_a_wait_that_nothing_can_end_is_an_error_and_no_hang() -> None:
    device = FakeDevice(1)
    device.gate().hold(0)
    with pytest.raises(DeviceError, match="waits for ever.*hold of a gate"):
        device.synchronize(0)


def test_a_thread_works_in_the_background() -> None:
    device = FakeDevice(3, background=True)
    array, gate = device.array(np.zeros(4)), device.gate()
    gate.hold(0)
    array.put(1)
    threading.Timer(0.01, gate.open).start()
    assert (array.get() == 1).all()
    device.close()


# ---- memory and arithmetic


def test_an_array_states_its_memory_as_device_libraries_do() -> None:
    device = FakeDevice()
    array = device.array(np.arange(6, dtype="i4").reshape(2, 3))
    found = memory(array, argument="a", rank=0, writable=True)
    assert (found.count, found.dtype, found.kind) == (6, DataType.INT32, MemoryKind.CUDA)
    assert found.address % 256 == 0
    assert device.owns(found.address)
    assert not device.owns(np.zeros(1).ctypes.data)
    assert device.stream_of(array) == 0
    with device.on(device.open_stream()) as stream:
        assert device.stream_of(array) == stream
        assert array.__cuda_array_interface__["stream"] == stream
    half = device.array(np.ones(2, ml_dtypes.bfloat16))
    assert memory(half, argument="a", rank=0, writable=True).dtype is DataType.BFLOAT16


def test_arithmetic_is_that_of_the_host_in_stream_order() -> None:
    device = FakeDevice(5)
    source, target = device.array(np.array([3, -7, 5], "i2")), device.array(np.array([1, 2, 3], "i2"))
    src, dst = source.memory, target.memory
    device.reduce(src, dst, ReduceKind.SUM, 0)
    added = target.snapshot()
    device.multiply(dst, dst, 3, 0)
    device.average(dst, dst, 2, 0)
    averaged = target.snapshot()
    device.fill(dst, ReduceKind.MIN, 0)
    filled = target.snapshot()
    device.copy(src, dst, 0)
    assert target.get().tolist() == [3, -7, 5]
    assert added.values.tolist() == [4, -5, 8]
    assert averaged.values.tolist() == [6, -7, 12]
    assert filled.values.tolist() == [32767] * 3
    assert device.violations == []
    assert (DataType.INT16, ReduceKind.SUM) in device.unprepared
    device.prepare(DataType.INT16, ReduceKind.MIN)
    device.unprepared.clear()
    device.fill(dst, ReduceKind.MIN, 0)
    assert not device.unprepared


# ---- what is refused


def misuses() -> dict[str, Callable[[FakeDevice], Any]]:
    host = memory(np.zeros(4), argument="h", rank=0, writable=True)
    return {
        "a stream that is none": lambda device: device.record(5),
        "a closed stream": lambda device: (
            (stream := device.open_stream(), device.close_stream(stream)) and device.record(stream)
        ),
        "another device's event": lambda device: device.follow(0, FakeDevice().record(0)),
        "the host's memory": lambda device: device.copy(host, host, 0),
        "a captured stream": lambda device: device.captured.add(0) or device.gate().hold(0),
    }


@pytest.mark.parametrize("what", misuses())
def test_misuse_is_an_error(what: str) -> None:
    with pytest.raises(DeviceError):
        misuses()[what](FakeDevice())


def test_a_thread_must_make_it_its_current_device() -> None:
    device, raised = FakeDevice(), []

    def body() -> None:
        try:
            device.record(0)
        except DeviceError:
            raised.append(True)
        device.use()
        device.record(0)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert raised == [True]


# ---- races


def posted(seed: int, how: str) -> FakeDevice:
    """A message is sent of what a stream is about to write; `how` says what the sender waits for."""
    device = FakeDevice(seed)
    network = InprocNetwork(2, seed=seed, eager_nbytes=0)
    transport = WatchedTransport(network.transports[0], device)
    array = device.array(np.zeros(8))
    device.delay(0, 5)
    array.put(1)
    event = device.record(0)
    while how == "the event" and not event.done():
        device.step()
    if how == "a few steps":
        for _ in range(3):
            device.step()
    got = np.zeros(8)
    request = transport.send(array.address, 64, 1, 9)
    other = network.transports[1].recv(got.ctypes.data, 64, 0, 9)
    while not (request.test() and other.test()):
        device.step()
        transport.progress()
        network.transports[1].progress()
    drain(device)
    if how == "the event":
        assert (got == 1).all()
    return device


@pytest.mark.parametrize("seed", SEEDS)
def test_a_send_after_its_event_is_no_race(seed: int) -> None:
    assert posted(seed, "the event").violations == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_send_without_waiting_is_found_for_every_seed(seed: int) -> None:
    found = posted(seed, "nothing").violations
    assert found
    assert "message to peer 1" in str(found[0])
    assert "the user's write writes" in str(found[0])


def test_a_send_after_a_guess_is_found_for_some_seed() -> None:
    assert any(posted(seed, "a few steps").violations for seed in SEEDS)


@pytest.mark.parametrize("orders", [True, False])
def test_streams_that_share_bytes_must_be_ordered(orders: bool) -> None:
    found = []
    for seed in SEEDS:
        device = FakeDevice(seed)
        array, copy = device.array(np.zeros(4)), device.array(np.zeros(4))
        other = device.open_stream()
        array.put(1, 0)
        if orders:
            device.follow(other, device.record(0))
        device.copy(array.memory, copy.memory, other)
        drain(device)
        found.append(bool(device.violations))
        assert device.violations or (copy.get() == 1).all()
    assert found == [not orders] * len(SEEDS)


def test_what_a_gate_holds_back_is_no_race_until_it_is_open() -> None:
    device = FakeDevice(2)
    array, gate = device.array(np.zeros(4)), device.gate()
    gate.hold(0)
    array.put(1)
    device.follow(other := device.open_stream(), device.record(0))
    array.put(2, other)
    device.touch(array.address, 32, True, "a message")
    assert device.violations == []
    gate.open()
    device.touch(array.address, 32, True, "a message")
    assert len(device.violations) == 2, "both streams could write now"


def test_an_obstacle_hides_no_race() -> None:
    device = FakeDevice(2)
    array = device.array(np.zeros(4))
    device.obstacle(0)
    array.put(1)
    device.touch(array.address + 8, 8, False, "a message")
    (found,) = device.violations
    assert (found.start, found.stop) == (array.address + 8, array.address + 16)
    array.snapshot()
    device.touch(array.address + 32, 8, True, "what lies behind it")
    assert len(device.violations) == 1


def test_work_during_a_message_is_found() -> None:
    device = FakeDevice(2)
    array, gate = device.array(np.zeros(4)), device.gate()
    gate.hold(0)
    array.snapshot()
    watch = device.watch(array.address, 8, True, "a message")
    gate.open()  # before the message is over
    drain(device)
    assert len(device.violations) == 1
    watch.over()
    device.touch(array.address, 8, True, "another message")
    assert len(device.violations) == 1


def test_memory_given_back_too_early_is_found() -> None:
    device = FakeDevice(2)
    array = device.array(np.zeros(4))
    scratch = device.allocate(32)
    part = scratch.part(0, 32)
    device.copy(array.memory, type(array.memory)(part.address, 4, DataType.FLOAT64, MemoryKind.CUDA), 0)
    del scratch
    device.step()
    assert device.violations == [], "a part of it keeps it alive"
    device.copy(array.memory, type(array.memory)(part.address, 4, DataType.FLOAT64, MemoryKind.CUDA), 0)
    del part
    gc.collect()
    device.step()
    assert "given it back" in str(device.violations[0])
    done = device.array(np.zeros(4))
    address = done.address
    drain(device)
    found = len(device.violations)
    del done
    assert not device.owns(address)
    assert len(device.violations) == found, "nothing was queued on it"


# ---- vendors


def members(nranks: int, seed: int) -> tuple[FakeGroup, list[FakeDevice], list[Any]]:
    group = FakeGroup(nranks, seed)
    devices = [FakeDevice(seed + rank) for rank in range(nranks)]
    return group, devices, [group.communicator(rank, device) for rank, device in enumerate(devices)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER, CollectiveKind.BROADCAST])
def test_a_vendors_call_is_done_when_all_ranks_have_come_to_it(kind: CollectiveKind, seed: int) -> None:
    _, devices, comms = members(3, seed)
    op, root = ReduceKind.MAX if kind.reduces else None, 1 if kind.has_root else None
    collective = Collective(kind, 3, 5, DataType.FLOAT32, op, root)
    inputs = [np.arange(5, dtype="f4") * rank for rank in range(3)]
    sources = [device.array(np.zeros(5, "f4")) for device in devices]
    targets = [device.array(np.zeros(collective.out_count(rank), "f4")) for rank, device in enumerate(devices)]
    seen = []
    for rank, comm in enumerate(comms):
        sources[rank].put(inputs[rank])
        comm.enqueue(collective, sources[rank].memory if collective.in_count(rank) else None, targets[rank].memory, 0)
        seen.append(targets[rank].snapshot())
    for _ in range(300):
        devices[0].step()
        devices[2].step()
    assert not seen[0].done, "rank 1 has not come to it"
    drain(*devices)
    for rank, wanted in enumerate(reference(collective, inputs)):
        assert np.array_equal(seen[rank].values, wanted)
        assert devices[rank].violations == []


def test_ranks_that_queue_in_different_orders_block_one_another() -> None:
    devices = [FakeDevice(rank) for rank in range(2)]
    groups = [FakeGroup(2), FakeGroup(2)]
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 4, DataType.INT32, ReduceKind.SUM, in_place=True)
    arrays = [[device.array(np.ones(4, "i4")) for _ in groups] for device in devices]
    for rank, device in enumerate(devices):
        for number in (0, 1) if rank == 0 else (1, 0):
            groups[number].communicator(rank, device).enqueue(collective, None, arrays[rank][number].memory, 0)
    with pytest.raises(AssertionError, match="the vendor's all_reduce, then the vendor's all_reduce"):
        drain(*devices)


def test_ranks_that_queue_different_calls_get_an_error() -> None:
    group, devices, comms = members(2, 0)
    for rank, comm in enumerate(comms):
        collective = Collective(CollectiveKind.ALL_REDUCE, 2, 4 + rank, DataType.INT32, ReduceKind.SUM, in_place=True)
        comm.enqueue(collective, None, devices[rank].array(np.ones(4 + rank, "i4")).memory, 0)
    for device in devices * 50:
        device.step()
    with pytest.raises(VendorError, match="different calls"):
        comms[0].progress()
    assert group.failure is not None


def test_after_an_abort_streams_go_on_and_nothing_is_written() -> None:
    _, devices, comms = members(2, 0)
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 4, DataType.INT32, ReduceKind.SUM, in_place=True)
    arrays = [device.array(np.full(4, 3, "i4")) for device in devices]
    comms[0].enqueue(collective, None, arrays[0].memory, 0)
    for _ in range(50):
        devices[0].step()
    comms[0].abort()
    drain(devices[0])
    comms[1].enqueue(collective, None, arrays[1].memory, 0)
    for _ in range(50):
        devices[1].step()
    assert not devices[1].idle(), "it waits for a rank that has gone"
    assert (arrays[0].get() == 3).all()
    with pytest.raises(VendorError, match="aborted"):
        comms[0].enqueue(collective, None, arrays[0].memory, 0)
