"""UCX between processes: values, buffers, what happens when a peer dies or a user is impatient."""

from __future__ import annotations

import gc
import os
import select
import signal
import threading
from typing import Any

import numpy
import pytest

from hetcomm._ext import ucp
from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, TransportError, UsageError
from hetcomm.testing import RanksFailed, run_ranks, this_rank
from hetcomm.transport.ucx import UcxTransport
from hetcomm.types import MemoryKind

from ..scripts import DEADLINE

PATIENCE = 60.0


def connected() -> UcxTransport:
    """The transport of this rank, connected with all ranks."""
    group = this_rank()
    transport = UcxTransport()
    for peer, address in enumerate(group.all_gather(transport.address)):
        transport.connect(peer, address)
    return transport


def spawn(nranks: int, target: Any, *args: Any) -> list[Any]:
    return run_ranks(nranks, target, *args, launcher="spawn", timeout=DEADLINE)


@pytest.fixture
def pair() -> Any:
    transports = [UcxTransport(), UcxTransport()]
    for transport in transports:
        for peer, other in enumerate(transports):
            transport.connect(peer, other.address)
    yield transports
    for transport in transports:
        transport.close()


# ---- two processes and more


def exchange() -> list[float]:
    group, transport = this_rank(), connected()
    sums = []
    for count in (0, 1, 1000, 30_000, 1_000_000):
        source = numpy.arange(count, dtype=numpy.float64) + group.rank
        targets = [numpy.full(count, -1.0) for _ in range(group.nranks)]
        requests = [
            *(transport.recv(t.ctypes.data, t.nbytes, peer, peer << 32 | count) for peer, t in enumerate(targets)),
            *(
                transport.send(source.ctypes.data, source.nbytes, peer, group.rank << 32 | count)
                for peer in range(group.nranks)
            ),
        ]
        transport.wait(requests, PATIENCE)
        for peer, target in enumerate(targets):
            assert (target == numpy.arange(count) + peer).all()
        sums.append(float(sum(target.sum() for target in targets)))
    transport.flush(PATIENCE)
    group.barrier()
    transport.close()
    return sums


def test_all_exchange_with_all() -> None:
    results = spawn(4, exchange)
    expected = [float(sum((numpy.arange(n) + r).sum() for r in range(4))) for n in (0, 1, 1000, 30_000, 1_000_000)]
    assert results == [expected] * 4


def ping_pong() -> tuple[int, list[str]]:
    group, transport = this_rank(), connected()
    other = 1 - group.rank
    array = numpy.zeros(4, dtype=numpy.int64)
    for _ in range(2000):
        if group.rank == 0:
            transport.send_buffer(array, other, 1, PATIENCE)
            assert transport.recv_buffer(array, other, 2, PATIENCE) == 32
        else:
            assert transport.recv_buffer(array, other, 1, PATIENCE) == 32
            array += 1
            transport.send_buffer(array, other, 2, PATIENCE)
    lanes = transport.lane_names()[other]
    group.barrier()
    transport.close()
    return int(array[0]), lanes


def test_buffers_go_back_and_forth_through_shared_memory() -> None:
    results = spawn(2, ping_pong)
    assert [count for count, _ in results] == [2000, 2000]
    for _, lanes in results:
        assert any(lane.startswith(("sysv", "posix", "cma", "xpmem")) for lane in lanes), lanes


def sleepy() -> bytes:
    """Rank 0 sleeps on the event descriptor while rank 1 waits for a signal from outside UCX."""
    group, transport = this_rank(), connected()
    memory = bytearray(3)
    if group.rank == 0:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        signal.signal(signal.SIGUSR1, lambda *_: group_ready.set())
        group_ready = threading.Event()
        with pytest.raises(CollectiveTimeoutError):
            transport.recv_buffer(bytearray(1), 1, 9, 0.6)
        assert group_ready.is_set()
        group.barrier()
        transport.recv_buffer(memory, 1, 1, PATIENCE)
    else:
        group.barrier()
        transport.send_buffer(b"abc", 0, 1, PATIENCE)
        memory[:] = b"abc"
    group.barrier()
    transport.close()
    return bytes(memory)


def test_a_sleeper_serves_signals_and_wakes_for_messages() -> None:
    assert spawn(2, sleepy) == [b"abc", b"abc"]


def outlive(mode: str, nbytes: int) -> list[str]:
    group, transport = this_rank(), connected()
    group.barrier()  # nobody dies while another is still connecting to it
    array = numpy.ones(nbytes, dtype=numpy.uint8)
    seen = []
    if group.rank == 1:
        if mode == "had sent":
            transport.send_buffer(array, 0, 1, PATIENCE)
        elif mode == "while sending":
            for _ in range(3):
                transport.send(array.ctypes.data, nbytes, 0, 1)
        if mode == "had sent":
            transport.recv_buffer(bytearray(2), 0, 3, PATIENCE)
        transport.send_buffer(b"now", 0, 2, PATIENCE)
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "had sent":
        target = numpy.zeros(nbytes, dtype=numpy.uint8)
        assert transport.recv_buffer(target, 1, 1, PATIENCE) == nbytes
        assert (target == 1).all()
        transport.send_buffer(b"go", 1, 3, PATIENCE)
    transport.recv_buffer(bytearray(3), 1, 2, PATIENCE)
    for action in (
        lambda: transport.recv_buffer(bytearray(8), 1, 8, PATIENCE),
        lambda: transport.wait([transport.recv(array.ctypes.data, nbytes, 1, 9)], PATIENCE),
        lambda: transport.send_buffer(array, 1, 9, PATIENCE),
        lambda: transport.wait([transport.send(array.ctypes.data, nbytes, 1, 9)], PATIENCE),
    ):
        with pytest.raises(PeerFailureError, match="peer 1 is gone") as caught:
            action()
        assert caught.value.peer == 1
        seen.append(type(caught.value).__name__)
    transport.flush(PATIENCE)
    memory = bytearray(4)
    request = transport.recv(array.ctypes.data, 4, 0, 7)
    transport.send_buffer(b"self", 0, 7, PATIENCE)
    transport.wait([request], PATIENCE)
    memory[:] = array[:4].tobytes()
    assert memory == b"self"
    transport.close()
    return seen


@pytest.mark.parametrize(
    ("mode", "nbytes"), [("idle", 8), ("had sent", 8), ("had sent", 2_000_000), ("while sending", 2_000_000)]
)
def test_a_killed_peer_is_named(mode: str, nbytes: int) -> None:
    with pytest.raises(RanksFailed) as caught:
        spawn(2, outlive, mode, nbytes)
    assert set(caught.value.failures) == {1}, caught.value
    assert caught.value.results == {0: ["PeerFailureError"] * 4}


def late_to_connect() -> str:
    group, transport = this_rank(), UcxTransport()
    addresses = group.all_gather(transport.address)
    pids = group.all_gather(str(os.getpid()).encode())
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ended = os.pidfd_open(int(pids[1]))
    assert select.select([ended], [], [], PATIENCE)[0]
    with pytest.raises(PeerFailureError, match="peer 1 .* has ended"):
        transport.connect(1, addresses[1])
    transport.close()
    return "named"


def test_a_peer_that_died_before_the_connection_is_named() -> None:
    with pytest.raises(RanksFailed) as caught:
        spawn(2, late_to_connect)
    assert caught.value.results == {0: "named"}, caught.value


def interrupted(how: str) -> str:
    group, transport = this_rank(), connected()
    memory = numpy.zeros(16, dtype=numpy.uint8)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pids = group.all_gather(str(os.getpid()).encode())
    if group.rank == 0:
        with pytest.raises(KeyboardInterrupt):
            transport.send_buffer(b"now", 1, 3, PATIENCE)
            if how == "recv_buffer":
                transport.recv_buffer(memory, 1, 1, 1000.0)
            else:
                transport.wait([transport.recv(memory.ctypes.data, 16, 1, 1)], 1000.0)
        assert transport.statistics()["inflight"] == 0
    else:
        transport.recv_buffer(bytearray(3), 0, 3, PATIENCE)
        os.kill(int(pids[0]), signal.SIGINT)
    group.barrier()
    if group.rank == 0:  # and the transport still works
        transport.recv_buffer(memory, 1, 2, PATIENCE)
    else:
        transport.send_buffer(bytes(range(16)), 0, 2, PATIENCE)
    group.barrier()
    transport.close()
    return memory.tobytes().hex()


@pytest.mark.parametrize("how", ["recv_buffer", "wait"])
def test_ctrl_c_leaves_a_blocked_receive(how: str) -> None:
    assert spawn(2, interrupted, how)[0] == bytes(range(16)).hex()


def crowd() -> int:
    """A ring of more processes than processors: everyone waits for its neighbour, many times."""
    group, transport = this_rank(), connected()
    token = numpy.zeros(1, dtype=numpy.int64)
    following, previous = (group.rank + 1) % group.nranks, (group.rank - 1) % group.nranks
    for _ in range(200):
        if group.rank == 0:
            transport.send_buffer(token, following, 1, PATIENCE)
            transport.recv_buffer(token, previous, 1, PATIENCE)
        else:
            transport.recv_buffer(token, previous, 1, PATIENCE)
            token += 1
            transport.send_buffer(token, following, 1, PATIENCE)
    group.barrier()
    transport.close()
    return int(token[0])


def test_more_processes_than_processors() -> None:
    results = spawn(5, crowd)
    assert results[0] == 200 * 4


# ---- one process


def test_buffers_of_every_kind(pair: Any) -> None:
    first, second = pair
    source = numpy.arange(12, dtype=numpy.complex128).reshape(3, 4)
    target = numpy.zeros((3, 4), dtype=numpy.complex128)
    for given in (source, memoryview(source), source.tobytes(), bytearray(source.tobytes())):
        target[:] = 0
        request = second.recv(target.ctypes.data, target.nbytes, 0, 1)
        first.send_buffer(given, 1, 1, PATIENCE)
        second.wait([request], PATIENCE)
        assert (target == source).all()
        assert request.nbytes == source.nbytes


def test_unusable_buffers_are_named(pair: Any) -> None:
    first, _ = pair
    array = numpy.zeros((4, 4))
    readonly = numpy.zeros(4)
    readonly.flags.writeable = False
    with pytest.raises(UsageError, match=r"given to send .*strides \(32, 16\).*not C-contiguous.*ascontiguousarray"):
        first.send_buffer(array[:, ::2], 1, 1, PATIENCE)
    with pytest.raises(UsageError, match=r"given to recv .*not C-contiguous"):
        first.recv_buffer(array.T[1:], 1, 1, PATIENCE)
    with pytest.raises(UsageError, match=r"given to recv .*writable"):
        first.recv_buffer(readonly, 1, 1, PATIENCE)
    with pytest.raises(UsageError, match=r"given to recv .*writable"):
        first.recv_buffer(b"constant", 1, 1, PATIENCE)
    with pytest.raises(UsageError, match=r"given to send \(list\) offers no buffer"):
        first.send_buffer([1, 2], 1, 1, PATIENCE)


def test_unknown_peers_and_addresses_are_named(pair: Any) -> None:
    first, second = pair
    with pytest.raises(UsageError, match="peer 9 is not connected"):
        first.send_buffer(b"x", 9, 1, PATIENCE)
    with pytest.raises(UsageError, match="peer 9 is not a UCX worker's"):
        first.connect(9, b"nonsense")
    with pytest.raises(UsageError, match="peer 1 is connected already"):
        first.connect(1, first.address)
    first.connect(1, second.address)


def test_an_unmet_wait_names_the_peer(pair: Any) -> None:
    first, _ = pair
    with pytest.raises(CollectiveTimeoutError, match=r"message from peer 1 \(tag 0x2a, 8 bytes\)") as caught:
        first.recv_buffer(bytearray(8), 1, 42, 0.01)
    assert caught.value.peer == 1
    assert first.statistics()["inflight"] == 0


def test_a_long_message_names_the_peer_and_the_length(pair: Any) -> None:
    first, second = pair
    second.send_buffer(bytes(9), 0, 1, PATIENCE)
    with pytest.raises(TransportError, match="from peer 1 .*longer than the 8 bytes"):
        first.recv_buffer(bytearray(8), 1, 1, PATIENCE)


def test_memory_in_flight_is_kept_alive(pair: Any) -> None:
    first, _ = pair

    class Array(numpy.ndarray):  # type: ignore[type-arg]
        pass

    freed = threading.Event()
    array = numpy.zeros(1_000_000, dtype=numpy.uint8).view(Array)
    threading_local = array
    import weakref

    weakref.finalize(threading_local, freed.set)
    request = first.recv(array.ctypes.data, array.nbytes, 1, 1, keep=array)
    del array, threading_local
    gc.collect()
    assert not freed.is_set()
    request.cancel()
    while first.progress():
        pass
    with pytest.raises(TransportError, match="cancelled"):
        request.test()
    gc.collect()
    assert freed.is_set()


def test_dropped_requests_are_collected(pair: Any) -> None:
    first, second = pair
    target = bytearray(8)
    array = numpy.frombuffer(target, dtype=numpy.uint8)
    for _ in range(3000):
        second.recv(array.ctypes.data, 8, 0, 1)
        first.send(array.ctypes.data, 8, 1, 1)
        second.progress()
    assert second.statistics()["inflight"] < 2500


def test_a_second_thread_is_refused(pair: Any) -> None:
    first, _ = pair
    refused: list[BaseException] = []

    def intrude(*_: Any) -> None:
        try:
            first.progress()
        except TransportError as error:
            refused.append(error)

    previous = signal.signal(signal.SIGALRM, intrude)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(CollectiveTimeoutError):
            first.recv_buffer(bytearray(1), 1, 1, 0.2)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert len(refused) == 1
    assert "one thread at a time" in str(refused[0])


def test_what_a_transport_says_about_itself(pair: Any) -> None:
    first, _ = pair
    assert first.supports(MemoryKind.HOST)
    assert first.lanes().startswith("peer 0: ")
    assert "UCP endpoint" in first.describe(1)
    assert first.fileno() >= 0
    assert first.unknown_options == ()
    assert "closed" not in repr(first)
    first.close()
    assert first.closed
    assert "closed" in repr(first)


def test_requests_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match=r"made by Worker\.send"):
        ucp.Request()


@pytest.mark.slow
def test_more_than_two_to_the_31_bytes(pair: Any) -> None:
    first, _ = pair
    nbytes = (1 << 31) + 4097
    source, target = numpy.zeros(nbytes, dtype=numpy.uint8), numpy.zeros(nbytes, dtype=numpy.uint8)
    source[:: 1 << 20] = numpy.arange(1, 2050) % 251 + 1
    first.wait(
        [first.send(source.ctypes.data, nbytes, 0, 1), first.recv(target.ctypes.data, nbytes, 0, 1)], 2 * PATIENCE
    )
    assert (source == target).all()


def test_a_wait_calls_the_companion(pair: Any) -> None:
    """It is what brings this wait to its end here."""
    first, second = pair
    turns: list[int] = []

    def companion() -> None:
        turns.append(1)
        if len(turns) == 3:
            second.send_buffer(b"abc", 0, 5, PATIENCE)

    first.companion = companion
    target = bytearray(3)
    assert first.recv_buffer(target, 1, 5, PATIENCE) == 3
    assert bytes(target) == b"abc"
    assert len(turns) >= 3


def test_what_the_companion_raises_ends_the_wait(pair: Any) -> None:
    def companion() -> None:
        raise ZeroDivisionError

    pair[0].companion = companion
    with pytest.raises(ZeroDivisionError):
        pair[0].recv_buffer(bytearray(3), 1, 5, PATIENCE)
    pair[0].companion = None
    pair[1].send_buffer(b"abc", 0, 6, PATIENCE)
    assert pair[0].recv_buffer(bytearray(3), 1, 6, PATIENCE) == 3
