"""What closing gives back: contexts, memory, descriptors; and what is never used again."""

from __future__ import annotations

import gc
import os
import tracemalloc

import numpy as np
import pytest

import hetcomm
from hetcomm.errors import VendorError
from hetcomm.execution.tags import MAX_COMMUNICATORS
from hetcomm.testing import run_ranks
from hetcomm.vendors.base import VendorCommunicator
from hetcomm.vendors.host import HostCommunicator
from hetcomm.vendors.mpi import MpiVendor

from .scripts import DEADLINE, PATIENCE

ENV = PATIENCE
FLAT = 64 << 10  # bytes that the allocations of thousands of communicators may differ by


def split_and_close(comm: hetcomm.Communicator, times: int) -> None:
    for turn in range(times):
        child = comm.split(0 if turn % 2 else comm.rank % 2, -comm.rank)
        assert child is not None
        if turn % 10 == 0:
            array = np.ones(3)
            child.all_reduce(array)
            assert (array == child.nranks).all()
        child.close()


def growth(times: int) -> tuple[int, int, int, int]:
    """Contexts in use, and what memory, descriptors and communicators have grown by, in two equal numbers of rounds."""
    comm = hetcomm.init()
    split_and_close(comm, times // 10)
    tracemalloc.start()
    states = []
    for _ in range(2):
        split_and_close(comm, times)
        gc.collect()
        kept = sum(type(each) is hetcomm.Communicator for each in gc.get_objects())  # others may say what they are
        states.append((tracemalloc.get_traced_memory()[0], len(os.listdir("/proc/self/fd")), kept))
    tracemalloc.stop()
    used = len(comm._parts.job.contexts)
    comm.close()
    (memory, files, kept), (later, more_files, more_kept) = states
    return used, later - memory, more_files - files, more_kept - kept


def test_communicators_that_are_closed_cost_nothing_on_one_rank() -> None:
    ((used, memory, files, kept),) = run_ranks(1, growth, 600, env=ENV, timeout=DEADLINE)  # apart from other tests
    assert (used, files, kept) == (1, 0, 0)
    assert memory < FLAT


@pytest.mark.slow
def test_more_communicators_than_there_are_contexts_one_after_another() -> None:
    with hetcomm.init() as comm:
        for _ in range(MAX_COMMUNICATORS + 100):
            child = comm.split(0)
            assert child is not None
            child.close()


@pytest.mark.parametrize(
    "vendors",
    [
        "mpi mpi ucx ucx",
        pytest.param("oneccl oneccl", marks=pytest.mark.slow),
        pytest.param("gloo gloo", marks=[pytest.mark.slow, pytest.mark.gloo]),
    ],
)
def test_communicators_that_are_closed_cost_nothing(vendors: str) -> None:
    names = vendors.split()
    for used, memory, files, kept in run_ranks(len(names), growth, 20, vendors=names, env=ENV, timeout=DEADLINE):
        assert (used, files, kept) == (1, 0, 0)
        assert memory < FLAT


def use_again() -> list[int]:
    """The contexts of communicators that end in different ways, in turn."""
    contexts = []
    with hetcomm.init() as comm:

        def part() -> hetcomm.Communicator:
            child = comm.split(0)
            assert child is not None
            contexts.append(child._parts.context)
            return child

        part().close()
        messages = part()  # all of whose messages are received
        if messages.rank == 0:
            messages.send(np.ones(2), 1)
        else:
            messages.recv(np.ones(2), 0)
        messages.close()
        wasted = part()  # one of whose messages is not
        if wasted.rank == 0:
            wasted.send(np.full(2, 7.0), 1, tag=5)
        wasted.close()
        later = part()
        got = np.zeros(2)
        if later.rank == 0:
            later.send(np.full(2, 8.0), 1, tag=5)
        else:
            later.recv(got, 0, tag=5)
            assert (got == 8.0).all(), "a message of a communicator that was closed"
        later.close()
        broken = part()
        with pytest.raises(hetcomm.HetcommError):
            if broken.rank == 0:
                broken.all_reduce(np.zeros(3))
            else:
                broken.recv(np.zeros(3), 0, timeout=0.2)
        broken.close()
        part().close()
        part().close()
    return contexts


def test_contexts_are_used_again_only_if_nothing_is_left_of_them() -> None:
    assert run_ranks(2, use_again, vendors=["ucx", "mpi"], env=ENV, timeout=DEADLINE) == [[1, 1, 1, 2, 2, 3, 3]] * 2


def many_open(number: int) -> float:
    with hetcomm.init() as comm:
        children = [comm.split(0) for _ in range(number)]
        array = np.ones(1)
        for child in (children[0], children[-1]):
            assert child is not None
            child.all_reduce(array)
        return float(array[0])


def fail_to_split() -> tuple[int, int]:
    """Contexts in use before and after splits that fail on all ranks, since a vendor fails on one."""
    with hetcomm.init() as comm:
        before = len(comm._parts.job.contexts)
        create = MpiVendor.create
        for _ in range(3):
            MpiVendor.create = no_vendor if comm.rank == 1 else no_library  # type: ignore[method-assign]
            with pytest.raises(VendorError, match="failed on rank 1: it is out of order"):
                comm.split(0)
            MpiVendor.create = create  # type: ignore[method-assign]
        after = len(comm._parts.job.contexts)
        comm.barrier()
        return before, after


def no_vendor(*_: object) -> VendorCommunicator:
    raise VendorError("it is out of order")


def no_library(*_: object) -> VendorCommunicator:
    return HostCommunicator("mpi", MpiVendor.capabilities, 0, 1, None)


def test_splits_that_fail_cost_nothing() -> None:
    assert run_ranks(2, fail_to_split, vendors=["mpi", "mpi"], env=ENV, timeout=DEADLINE) == [(1, 1)] * 2


@pytest.mark.slow
def test_thousands_of_communicators_at_once() -> None:
    assert many_open(10_000) == 1.0
    assert run_ranks(2, many_open, 300, vendors=["ucx", "ucx"], env=ENV, timeout=DEADLINE) == [4.0] * 2
