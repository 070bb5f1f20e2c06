"""What the methods of a communicator promise, on threads: places, sizes, None, messages, split, looking inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm.communicator import Communicator
from hetcomm.errors import TransportError, UsageError

from .runtime.threads import clusters, run_threads

TOPOLOGY = clusters(2, 1)


def test_communicators_are_made_by_init_and_split_only() -> None:
    with pytest.raises(UsageError, match=r"hetcomm\.init"):
        Communicator(None)  # type: ignore[arg-type]


def test_in_place_forms() -> None:
    def job(comm: Communicator) -> None:
        rank, n = comm.rank, comm.nranks
        block = np.arange(4) + 10 * rank
        gathered = np.concatenate([np.arange(4) + 10 * r for r in range(n)])
        whole = np.zeros(4 * n, int)
        comm.all_gather(block, whole)
        assert (whole == gathered).all()
        for form in ("in_array", "out_array", "aliased"):
            whole = np.zeros(4 * n, int)
            mine = whole[4 * rank : 4 * rank + 4]
            mine[:] = block
            if form == "in_array":
                comm.all_gather(whole)
            else:
                comm.all_gather(None if form == "out_array" else mine, whole, count=4)
            assert (whole == gathered).all(), form
        for form in ("separate", "in place", "aliased"):
            source = np.arange(2 * n) * (rank + 1)
            mine = source[2 * rank : 2 * rank + 2]
            out = np.zeros(2, int) if form == "separate" else mine
            comm.reduce_scatter(source, None if form == "in place" else out)
            assert (out == (np.arange(2 * n) * 6)[2 * rank : 2 * rank + 2]).all(), form
        one = np.full((2, 2), rank + 1.0)
        comm.all_reduce(one, one, "prod")
        assert (one == 6).all()

    run_threads(TOPOLOGY, job)


@pytest.mark.parametrize("nranks", [1, 3])
def test_logical_ops_give_0_and_1_in_every_form(nranks: int) -> None:
    def job(comm: Communicator) -> None:
        given = np.array([0, 6, -2, 5, 0, 256]) * (comm.rank != 1)
        for op, expected in (("land", [0, 1, 1, 1, 0, 1]), ("lor", [0, 1, 1, 1, 0, 1]), ("lxor", [0, 1, 1, 1, 0, 1])):
            wanted = np.array(expected) * (0 if nranks == 3 and op in ("land", "lxor") else 1)
            array, out = given.copy(), np.full(6, 9)
            comm.all_reduce(array, out, op)
            assert out.tolist() == wanted.tolist(), op
            assert array.tolist() == given.tolist()
            comm.all_reduce(array, op=op)
            assert array.tolist() == wanted.tolist(), op
            comm.reduce(given, out if comm.rank == 0 else None, 0, op)
            assert out.tolist() == wanted.tolist(), op
            own = wanted.reshape(nranks, -1)[comm.rank]
            block = np.full(6 // nranks, 9)
            comm.reduce_scatter(given, block, op=op)
            assert block.tolist() == own.tolist(), op
            counts, apart = [6 // nranks] * nranks, np.full(12, 9)
            displs = [2 * rank * counts[0] for rank in range(nranks)]
            for rank, displ in enumerate(displs):
                apart[displ : displ + counts[0]] = given.reshape(nranks, -1)[rank]
            comm.reduce_scatter_v(apart, block, counts, op, displs)
            assert block.tolist() == own.tolist(), op

    run_threads(clusters(*[1] * nranks), job)


def test_ranks_need_no_buffer_they_do_not_use() -> None:
    def job(comm: Communicator) -> None:
        source = np.full(3, comm.rank)
        out = np.zeros(3, int) if comm.rank == 2 else None
        comm.reduce(source, out, root=2, op="max")
        assert (source == comm.rank).all(), "the input of a reduction with an output is not changed"
        assert out is None or (out == 2).all()
        comm.reduce(source, root=np.int64(1), op=hetcomm.premul_sum(comm.rank))
        assert (source == (0 + 1 + 4 if comm.rank == 1 else comm.rank)).all()
        text = bytearray(b"hello" if comm.rank == 0 else 5)
        comm.broadcast(bytes(text) if comm.rank == 0 else text, root=0)
        assert bytes(text) == b"hello"

    run_threads(TOPOLOGY, job)


def test_nothing_can_be_communicated() -> None:
    def job(comm: Communicator) -> None:
        empty = np.zeros(0)
        comm.all_reduce(empty)
        comm.all_reduce(empty, np.zeros(0))
        comm.all_gather(empty, np.zeros(0))
        comm.reduce_scatter(empty)
        comm.broadcast(empty, root=1)
        assert comm.statistics().bytes_between_clusters == 0

    run_threads(TOPOLOGY, job)


def test_messages_and_their_mistakes() -> None:
    def job(comm: Communicator) -> None:
        if comm.rank == 0:
            comm.send(np.arange(3), 2, tag=5)
            comm.send(np.arange(4), 2, tag=4)
            comm.send(b"xyz", 2)
            for peer, tag, argument in ((0, 0, "peer"), (3, 0, "peer"), (-1, 0, "peer"), (1, 1 << 24, "tag")):
                with pytest.raises(UsageError, match=argument):
                    comm.send(np.zeros(1), peer, tag=tag)
            with pytest.raises(UsageError, match="'array' is not C-contiguous"):
                comm.send(np.zeros(4)[::2], 1)
        if comm.rank == 2:
            four, three = np.zeros(4, int), np.zeros(3, int)
            comm.recv(four, 0, tag=4)
            comm.recv(three, 0, tag=5)
            assert (four.tolist(), three.tolist()) == ([0, 1, 2, 3], [0, 1, 2])
            with pytest.raises(TransportError, match="rank 0 has 3 bytes, but argument 'out_array' 4") as caught:
                comm.recv(bytearray(4), 0)
            assert (caught.value.rank, caught.value.peer) == (2, 0)
            with pytest.raises(UsageError, match="read-only"):
                comm.recv(bytes(4), 0)
        comm.barrier()
        assert comm.statistics().bytes_between_clusters >= (3 * 8 + 4 * 8 + 3 if comm.rank == 0 else 0)

    run_threads(TOPOLOGY, job)


def test_split() -> None:
    def job(comm: Communicator) -> Any:
        part = comm.split(comm.rank // 2, key=-comm.rank)
        assert part is not None
        array = np.array([comm.rank])
        part.all_reduce(array)
        comm.all_reduce(np.zeros(2))  # both go on side by side
        nobody = comm.split(None)
        assert nobody is None
        again = part.split(0)
        assert again is not None
        again.barrier()
        return part.rank, part.nranks, int(array[0]), [tuple(c.ranks) for c in part.topology.clusters], again, part

    results = run_threads(clusters(1, 3), job)
    assert [result[:4] for result in results] == [
        (1, 2, 1, [(1,), (0,)]),
        (0, 2, 1, [(1,), (0,)]),
        (1, 2, 5, [(0, 1)]),
        (0, 2, 5, [(0, 1)]),
    ]
    assert all(result[4].closed and result[5].closed for result in results), "closing the first closes its parts"


def test_explain_and_trace() -> None:
    def job(comm: Communicator) -> Any:
        array = np.ones(64, "f4")
        explained = comm.explain("all_reduce", array, op="max")
        with comm.trace() as trace:
            comm.all_reduce(array, op="max")
            with pytest.raises(UsageError, match="active already"), comm.trace():
                pass
        with pytest.raises(UsageError, match="no collective 'barrier'"):
            comm.explain("barrier")
        with pytest.raises(UsageError, match="all_to_all_v cannot be explained by one rank"):
            comm.explain("all_to_all_v", array)
        with pytest.raises(UsageError, match="gather_v needs counts"):
            comm.explain("gather_v", array, None)
        with pytest.raises(UsageError, match="broadcast takes in_out_array, root"):
            comm.explain("broadcast", array, 0, 1)
        assert comm.explain("scatter", array, array[:16].copy(), root=comm.rank).collective.root == comm.rank
        return explained, trace.timeline, comm.statistics()

    results = run_threads(clusters(2, 2), job)
    for rank, (explained, timeline, statistics) in enumerate(results):
        assert explained.program.rank == rank
        assert explained.bytes_between_clusters == explained.least_bytes_between_clusters == 2 * 64 * 4
        assert f"steps of rank {rank}" in str(explained)
        assert "vendor " in str(explained)
        assert sorted(span.index for span in timeline.spans) == list(range(len(explained.program.steps)))
        assert (statistics.calls, statistics.plans) == (1, 2)
    assert sum(statistics.bytes_between_clusters for *_, statistics in results) == 2 * 64 * 4


def test_device_arrays_are_refused_by_vendors_that_take_none() -> None:
    class OnDevice:
        def __init__(self) -> None:
            self.__cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (4096, False), "version": 3}

    def job(comm: Communicator) -> None:
        with pytest.raises(UsageError, match="cuda memory, (but vendor 'ucx' of this rank|which the UCX)"):
            comm.all_reduce(OnDevice())
        with pytest.raises(UsageError, match="cuda memory"):
            comm.all_to_all(OnDevice())
        if comm.rank == 0:
            with pytest.raises(TransportError, match="cuda memory, which the UCX in use cannot reach"):
                comm.send(OnDevice(), 1)

    run_threads(TOPOLOGY, job)
