"""What `InprocNetwork` offers beyond the protocol: failures, delays, and how it exposes code that leans on luck."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, TransportError, UsageError
from hetcomm.transport.inproc import InprocNetwork
from hetcomm.types import MemoryKind


def memory(content: bytes) -> tuple[ctypes.Array[ctypes.c_char], int]:
    buffer = ctypes.create_string_buffer(content, max(1, len(content)))
    return buffer, ctypes.addressof(buffer)


def test_a_failed_rank_fails_what_names_it() -> None:
    network = InprocNetwork(3)
    first, second, third = network.transports
    room, address = memory(bytes(8))
    from_dead, from_alive = first.recv(address, 8, 1, 1), first.recv(address, 8, 2, 2)
    network.fail(1)
    with pytest.raises(PeerFailureError, match="peer 1 is gone") as caught:
        first.wait([from_alive, from_dead], 1.0)
    assert caught.value.peer == 1
    with pytest.raises(TransportError, match="cancelled"):
        from_alive.test()
    with pytest.raises(PeerFailureError):
        first.send(address, 8, 1, 3).test()
    with pytest.raises(TransportError, match="made to fail"):
        second.progress()
    request = first.recv(address, 8, 2, 4)
    source, at = memory(b"alive ok")
    third.send(at, 8, 0, 4)
    first.wait([request], 1.0)
    assert room.raw == b"alive ok"


def test_what_a_failed_rank_had_sent_eagerly_arrives_and_the_rest_does_not() -> None:
    network = InprocNetwork(2, seed=1, eager_nbytes=8)
    first, second = network.transports
    small, small_at = memory(b"eager 8b")
    large, large_at = memory(b"x" * 9)
    second.send(small_at, 8, 0, 1)
    second.send(large_at, 9, 0, 2)
    network.fail(1)
    room, address = memory(bytes(9))
    first.wait([first.recv(address, 8, 1, 1)], 1.0)
    assert room.raw[:8] == b"eager 8b"
    with pytest.raises(PeerFailureError):
        first.wait([first.recv(address, 9, 1, 2)], 1.0)


def test_a_long_send_waits_for_its_receive() -> None:
    first, second = InprocNetwork(2, eager_nbytes=8).transports
    large, large_at = memory(b"x" * 9)
    request = first.send(large_at, 9, 1, 1)
    second.progress()
    assert request.test() is False
    with pytest.raises(CollectiveTimeoutError):
        first.flush(0.0)
    room, address = memory(bytes(9))
    second.wait([second.recv(address, 9, 0, 1)], 1.0)
    assert request.test() is True
    assert room.raw == b"x" * 9
    first.flush(0.0)


@given(seed=st.integers(0, 1 << 16), tags=st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_delays_keep_the_order_of_each_tag(seed: int, tags: list[int]) -> None:
    first, second = InprocNetwork(2, seed=seed).transports
    kept = []
    for index, tag in enumerate(tags):
        source, at = memory(bytes([index]))
        kept.append(source)
        first.send(at, 1, 1, tag)
    rooms = [memory(b"\xff") for _ in tags]
    requests = [second.recv(at, 1, 0, tag) for (_, at), tag in zip(rooms, tags, strict=True)]
    second.wait(requests, 10.0)
    assert [room.raw[0] for room, _ in rooms] == list(range(len(tags)))


def test_delays_reorder_different_tags_for_some_seed() -> None:
    def arrivals(seed: int) -> list[int]:
        first, second = InprocNetwork(2, seed=seed).transports
        room, at = memory(bytes(1))
        requests = [second.recv(at, 1, 0, tag) for tag in range(6)]
        for tag in range(6):
            first.send(at, 1, 1, tag)
        seen: list[int] = []
        while len(seen) < len(requests):
            second.progress()
            seen += [tag for tag, request in enumerate(requests) if tag not in seen and request.test()]
        return seen

    orders = {tuple(arrivals(seed)) for seed in range(20)}
    assert len(orders) > 10


def test_only_host_memory() -> None:
    transport = InprocNetwork(1).transports[0]
    assert [transport.supports(kind) for kind in MemoryKind] == [kind is MemoryKind.HOST for kind in MemoryKind]


def test_misuse_is_named() -> None:
    transport = InprocNetwork(2).transports[0]
    with pytest.raises(UsageError, match="peer 7 is not connected"):
        transport.send(0, 0, 7, 0)
    with pytest.raises(UsageError, match="not of an inproc network"):
        transport.connect(7, b"nonsense")
    with pytest.raises(UsageError, match="connected already"):
        transport.connect(0, b"inproc:1")
    transport.connect(0, b"inproc:0")
