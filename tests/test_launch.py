"""Jobs as users start them, with whichever MPI this environment has: import orders, vendors, clusters."""

from __future__ import annotations

import sys

import numpy
import pytest

import hetcomm
from hetcomm.testing import run_ranks, this_rank

from .scripts import DEADLINE

pytestmark = pytest.mark.mpich


def job(order: str) -> tuple[int, int, float, list[str], int]:
    """Join, reduce, and say what this rank found, with the libraries imported in the given order."""
    assert "mpi4py" not in sys.modules
    if order == "mpi4py first":
        from mpi4py import MPI

        assert MPI.COMM_WORLD.size == this_rank().nranks
    with hetcomm.init() as comm:
        if order == "hetcomm first":
            from mpi4py import MPI

            assert MPI.COMM_WORLD.rank == comm.rank
        data = numpy.arange(1000.0) * (comm.rank + 1)
        comm.all_reduce(data)
        big = numpy.full(1 << 20, comm.rank, numpy.int32)
        comm.broadcast(big, root=comm.nranks - 1)
        sent = numpy.array([comm.statistics().bytes_between_clusters])
        comm.all_reduce(sent)
        vendors = [cluster.vendor for cluster in comm.topology.clusters]
        return comm.rank, int(big[-1]), float(data[-1]), vendors, int(sent[0])


@pytest.mark.parametrize("order", ["mpi4py first", "hetcomm first", "hetcomm alone"])
@pytest.mark.parametrize("vendors", [["mpi", "mpi", "ucx", "ucx"], ["mpi", "mpi"]], ids=["2+2", "2"])
def test_both_import_orders_join_the_same_job(order: str, vendors: list[str]) -> None:
    nranks, nclusters = len(vendors), len(set(vendors))
    results = run_ranks(nranks, job, order, vendors=vendors, timeout=DEADLINE)
    total = 999.0 * sum(range(1, nranks + 1))
    crossing = (nclusters - 1) * (2 * 8000 + (4 << 20))
    assert results == [(rank, nranks - 1, total, list(dict.fromkeys(vendors)), crossing) for rank in range(nranks)]


def colours() -> list[tuple[str, tuple[int, ...]]]:
    with hetcomm.init() as comm:
        comm.barrier()
        return [(cluster.vendor, tuple(cluster.ranks)) for cluster in comm.topology.clusters]


def test_clusters_of_one_vendor_are_told_apart_by_name() -> None:
    env = [{"HETCOMM_CLUSTER": name} for name in ("left", "right", "left")]
    results = run_ranks(3, colours, vendors=["mpi"] * 3, env=env, timeout=DEADLINE)
    assert results == [[("mpi", (0, 2)), ("mpi", (1,))]] * 3
