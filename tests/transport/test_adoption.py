"""A UCP worker shared with its owner: through `hetcomm.init(worker=...)`, with UCXX or with a worker made by hand."""

from __future__ import annotations

import asyncio
import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

import hetcomm
from hetcomm._ext import ucp
from hetcomm.errors import HetcommError, TransportError, UsageError
from hetcomm.execution import tags
from hetcomm.testing import run_ranks, this_rank
from hetcomm.transport.adoption import endpoint_of, handle_of
from hetcomm.transport.ucx import UcxTransport, is_shared
from tests.transport.foreign import AM, MULTI, SERIALIZED, SINGLE, TAG, ForeignWorker

from ..scripts import DEADLINE

PATIENCE = 60.0
OTHERS_TAGS = (0, 1 << 8, 1 << 44, 1 << 48)  # what hetcomm's would be without bit 47

needs_ucxx = pytest.mark.skipif(
    importlib.util.find_spec("ucxx") is None, reason="UCXX is not installed (pip install 'hetcomm[ucxx]')"
)


# ---- with UCXX


class Ring:
    """UCXX messages around a job, on a UCXX worker of each rank: rank r sends to r + 1."""

    def __init__(self, threaded: bool, handling: bool = False) -> None:
        from ucxx._lib import libucxx
        from ucxx._lib.arr import Array

        group = this_rank()
        self._api, self._array, self._threaded = libucxx, Array, threaded
        self.worker = libucxx.UCXWorker(libucxx.UCXContext())
        if threaded:
            self.worker.start_progress_thread(polling_mode=False, epoll_timeout=1)
        addresses = map(libucxx.UCXAddress.create_from_buffer, group.all_gather(bytes(self.worker.address)))
        following = list(addresses)[(group.rank + 1) % group.nranks]
        self.endpoint = self.worker.create_endpoint_from_worker_address(following, endpoint_error_handling=handling)

    def start(self, array: Any, tag: int) -> Any:
        """Send `array` on and receive the one of the rank before; `finish` returns that."""
        target = numpy.zeros_like(array)
        receive = self.worker.tag_recv(self._array(target), tag=self._api.UCXXTag(tag))
        send = self.endpoint.tag_send(self._array(array), tag=self._api.UCXXTag(tag))
        return target, (receive, send), array

    def finish(self, started: Any) -> Any:
        target, requests, _ = started
        while not all(request.completed for request in requests):
            if not self._threaded:
                self.worker.progress()
        for request in requests:
            request.check_error()
        return target

    def close(self) -> None:
        this_rank().barrier()
        self.endpoint.close_blocking()
        if self._threaded:
            self.worker.stop_progress_thread()


def interleaved(ring: Ring, comm: hetcomm.Communicator) -> list[float]:
    """UCXX messages under way while collectives and messages of hetcomm's are, on one worker."""
    rank, nranks, sums = comm.rank, comm.nranks, []
    before = (rank - 1) % nranks
    for count in (1, 1000, 200_000):
        values = numpy.arange(count, dtype=numpy.float64) + rank
        started = [ring.start(values * k, tag) for k, tag in enumerate(OTHERS_TAGS)]
        total = values.copy()
        work = comm.all_reduce(total, async_op=True)
        for k, item in enumerate(started):
            assert (ring.finish(item) == (numpy.arange(count) + before) * k).all()
        assert work is not None
        work.wait()
        assert (total == nranks * numpy.arange(count) + nranks * (nranks - 1) / 2).all()
        gathered = numpy.zeros(nranks * count)
        comm.all_gather(values, gathered)
        assert (gathered.reshape(nranks, count) == numpy.arange(count) + numpy.arange(nranks)[:, None]).all()
        comm.send_recv(values, total, (rank + 1) % nranks, before)
        sums.append(float(total.sum()))
    return sums


def shared_program() -> list[Any]:
    """The second communicator of the same worker comes after the first; UCXX's messages go on after both.

    On every other rank a thread of UCXX's progresses the worker.
    """
    ring = Ring(threaded=this_rank().rank % 2 == 1)
    seen: list[Any] = []
    for _ in range(2):
        with hetcomm.init(worker=ring.worker) as comm:
            seen.append(interleaved(ring, comm))
    after = ring.finish(ring.start(numpy.full(50_000, float(comm.rank)), 7))
    ring.close()
    return [*seen, [float(after[0]), float(after[-1])]]


@needs_ucxx
def test_ucxx_and_hetcomm_share_a_worker() -> None:
    results = run_ranks(4, shared_program, vendors=["mpi", "mpi", "ucx", "ucx"], timeout=DEADLINE)
    for rank, result in enumerate(results):
        before = (rank - 1) % 4
        sums = [float((numpy.arange(count) + before).sum()) for count in (1, 1000, 200_000)]
        assert result == [sums, sums, [before, before]]


async def exchanged_meanwhile(mode: str) -> list[Any]:
    """The asyncio interface of UCXX on the worker that hetcomm is given as a number, then by an endpoint."""
    import ucxx

    group = this_rank()
    ucxx.init(progress_mode=mode)
    address = group.all_gather(bytes(ucxx.get_worker_address()))[1 - group.rank]
    seen: list[Any] = []
    mine, other = numpy.full(200_000, float(group.rank)), numpy.zeros(200_000)
    with hetcomm.init(worker=ucxx.get_ucp_worker()) as comm:
        endpoint = await ucxx.create_endpoint_from_worker_address(ucxx.get_ucx_address_from_buffer(address))
        values = numpy.arange(200_000.0)
        work = comm.all_reduce(values, async_op=True)
        await asyncio.gather(endpoint.send(mine, 5, force_tag=True), endpoint.recv(other, 5, force_tag=True))
        assert work is not None
        work.wait()
        assert (values == 2 * numpy.arange(200_000)).all()
        seen.append(float(other.mean()))
    group.barrier()
    await asyncio.gather(endpoint.send(mine, 5, force_tag=True), endpoint.recv(other, 5, force_tag=True))
    with hetcomm.init(worker=endpoint) as comm:
        comm.all_reduce(mine)
        seen.append(float(mine.mean()))
    group.barrier()
    await endpoint.close()
    return seen


def with_asyncio(mode: str) -> list[Any]:
    import ucxx

    seen = asyncio.run(exchanged_meanwhile(mode))
    ucxx.reset()
    return seen


@needs_ucxx
@pytest.mark.parametrize(
    "mode",
    ["thread", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("thread-polling", "polling", "blocking"))],
)
def test_the_asyncio_interface_of_ucxx_shares_its_worker(mode: str) -> None:
    assert run_ranks(2, with_asyncio, mode, vendors=["mpi", "ucx"], timeout=DEADLINE) == [[1.0, 1.0], [0.0, 1.0]]


def over_endpoints() -> list[Any]:
    """Two ranks send over UCXX's endpoints; a third, which shares nothing, takes part."""
    rank = this_rank().rank
    seen: list[Any] = []
    if rank < 2:
        from ucxx._lib import libucxx

        worker = libucxx.UCXWorker(libucxx.UCXContext())
        addresses = this_rank().all_gather(bytes(worker.address))
        address = libucxx.UCXAddress.create_from_buffer(addresses[1 - rank])
        endpoint = worker.create_endpoint_from_worker_address(address, endpoint_error_handling=True)
        settings: dict[str, Any] = {"worker": endpoint, "endpoints": {1 - rank: endpoint}}
    else:
        settings = {}
        this_rank().all_gather(b"")
    for _ in range(2):
        with hetcomm.init(**settings) as comm:
            values = numpy.arange(200_000.0) + rank
            comm.all_reduce(values)
            seen.append(float(values[1]))
    if rank < 2:
        seen.append(endpoint.alive)
    this_rank().barrier()
    return seen


@needs_ucxx
def test_endpoints_of_ucxx_are_used_and_stay() -> None:
    assert run_ranks(3, over_endpoints, vendors=["mpi", "ucx", "ucx"], timeout=DEADLINE) == [
        [6.0, 6.0, True],
        [6.0, 6.0, True],
        [6.0, 6.0],
    ]


# ---- without it


def partly_shared() -> list[Any]:
    """Ranks 0 and 1 share workers, rank 2 has its own; then one rank after another gives something unusable."""
    rank = this_rank().rank
    worker = ForeignWorker() if rank < 2 else None
    seen: list[Any] = []
    for _ in range(3):
        with hetcomm.init(worker=worker) as comm:
            values = numpy.arange(100_000.0) + rank
            comm.all_reduce(values)
            half = comm.split(comm.rank % 2)
            assert half is not None
            one = numpy.ones(1)
            half.all_reduce(one)
            seen.append((float(values[1]), float(one[0])))
    endpoints = {1: 64} if rank == 0 else None
    for given in ({"worker": object() if rank == 1 else worker}, {"worker": worker, "endpoints": endpoints}):
        with pytest.raises(UsageError) as caught:
            hetcomm.init(**given)  # type: ignore[arg-type]
        seen.append(str(caught.value))
    if worker is not None:
        worker.progress()
        worker.close()
    return seen


def test_some_ranks_share_their_workers_and_all_hear_of_a_bad_one() -> None:
    for rank, result in enumerate(run_ranks(3, partly_shared, vendors=["mpi", "ucx", "ucx"], timeout=DEADLINE)):
        *sums, bad_worker, bad_endpoint = result
        assert sums == [(6.0, 1.0 if rank == 1 else 2.0)] * 3
        assert "failed on rank 1: argument 'worker' (object) is no UCP worker. Pass a worker of UCXX" in bad_worker
        assert "failed on rank 0: argument 'endpoints' has a int for rank 1, which is no endpoint" in bad_endpoint


@pytest.fixture
def owner() -> Any:
    worker = ForeignWorker()
    yield worker
    worker.close()


def test_a_running_worker_is_shared_and_left_alone(owner: ForeignWorker) -> None:
    other = UcxTransport()
    for round in range(3):
        guest = UcxTransport(worker=owner)
        assert guest.handle == owner.handle
        assert is_shared(guest.address)
        assert guest.library.origin == "adopted"
        assert guest.fileno() == -1
        guest.connect(1, other.address)
        if not round:
            other.connect(0, guest.address)
        array = numpy.zeros(5, dtype=numpy.uint8)
        request = other.recv(array.ctypes.data, 5, 0, 3)
        guest.send_buffer(b"guest", 1, 3, PATIENCE)
        other.wait([request], PATIENCE)
        assert array.tobytes() == b"guest"
        guest.recv(array.ctypes.data, 5, 1, 9)
        guest.close()
        guest.close()
        assert guest.closed
    owner.progress()
    other.close()


def test_a_worker_destroyed_by_its_owner_is_not_touched_again() -> None:
    owner = ForeignWorker()
    guest = UcxTransport(worker=owner)
    guest.connect(0, guest.address)
    array = numpy.zeros(5, dtype=numpy.uint8)
    request = guest.recv(array.ctypes.data, 5, 0, 3)
    owner.close()
    guest.close()
    with pytest.raises(TransportError, match="transport was closed"):
        request.test()
    with pytest.raises(TransportError, match="closed"):
        guest.progress()


@pytest.mark.parametrize("mode", [SINGLE, SERIALIZED])
def test_a_worker_for_one_thread_is_refused(mode: int) -> None:
    owner = ForeignWorker(mode=mode)
    with pytest.raises(UsageError, match=r"'worker' is a UCP worker for one thread.*UCS_THREAD_MODE_MULTI"):
        UcxTransport(worker=owner)
    owner.close()


def test_a_worker_without_tagged_messages_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    owner = ForeignWorker(features=AM)
    with pytest.raises(UsageError, match=r"'worker' is a UCP worker that delivers no tagged messages.*FEATURE_TAG"):
        UcxTransport(worker=owner)
    owner.close()
    assert "no handler installed" in "".join(capfd.readouterr())  # UCX's own words for what it drops


def test_a_worker_without_wakeup_is_waited_for() -> None:
    owner = ForeignWorker(features=TAG, mode=MULTI)
    guest = UcxTransport(worker=owner)
    guest.connect(0, guest.address)
    with pytest.raises(HetcommError, match="in vain"):
        guest.recv_buffer(bytearray(1), 0, 5, 0.01)
    assert not guest.watch(0.001)
    guest.close()
    owner.close()


@pytest.mark.parametrize("given", [0, -8, 8, 2**70, True, 1.5, "worker", object(), SimpleNamespace(handle=0)])
def test_what_is_no_worker_is_named(owner: ForeignWorker, given: object) -> None:
    with pytest.raises(UsageError, match=rf"'worker' \({type(given).__name__}\) .*UCP worker.*Pass a worker of UCXX"):
        handle_of(given)


def test_workers_are_found_under_all_their_names(owner: ForeignWorker) -> None:
    handle = owner.handle
    for given in (
        owner,
        handle,
        SimpleNamespace(handle=1, worker_handle=handle),
        SimpleNamespace(handle=1, worker=owner),
        SimpleNamespace(ucp_worker=handle),
        SimpleNamespace(get_ucp_worker=lambda: handle),
    ):
        assert handle_of(given) == handle
    with pytest.raises(UsageError, match="is no UCP worker"):
        handle_of(SimpleNamespace(handle=handle, cuda_support=True))


def test_endpoints_of_other_workers_are_named(owner: ForeignWorker) -> None:
    handle = owner.handle
    assert endpoint_of(1, SimpleNamespace(handle=handle + 8, worker_handle=handle), handle) == handle + 8
    with pytest.raises(UsageError, match="for rank 3, which is none of 'worker'"):
        endpoint_of(3, SimpleNamespace(handle=handle + 8, worker_handle=handle + 16), handle)
    with pytest.raises(UsageError, match=r"'endpoints' \(dict\) needs 'worker'"):
        UcxTransport(endpoints={1: 64})


def test_bit_47_is_hetcomms() -> None:
    for tag in (
        tags.collective(0, 0) | tags.run(0, 0),
        tags.collective(tags.MAX_CONTEXT, tags.MAX_RANKS - 1, tags.TOKENS + 1) | tags.run(0xFFFF, tags.MAX_PLANS),
        tags.point_to_point(0, 0),
        tags.point_to_point(tags.MAX_CONTEXT, tags.MAX_RANKS - 1, tags.MAX_USER_TAG),
        tags.control(0, 0),
        tags.control(tags.MAX_CONTEXT, 1 << 60),
    ):
        assert tag >> 47 & 1
        assert tag < 1 << 64
    assert tags.contexts_on(64) is tags.contexts_on(64)
    assert ucp.SHARED != b""
