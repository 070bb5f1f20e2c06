"""Misuse raises the right error on every rank, before data moves, and leaves the communicator in the state promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hetcomm.communicator import Communicator, Work
from hetcomm.errors import (
    CollectiveTimeoutError,
    DepartedError,
    HetcommError,
    PeerFailureError,
    PlanMismatchError,
    TransportError,
    UsageError,
)

from .threads import caught, clusters, run_threads, works

TOPOLOGY = clusters(2, 1)
NRANKS = 3


BAD_ARGUMENTS: dict[str, tuple[Callable[[Communicator], object], str, str]] = {
    "strided": (lambda c: c.all_reduce(np.zeros(10)[::2]), "in_array", "contiguous"),
    "read-only": (lambda c: c.all_reduce(np.frombuffer(bytes(8))), "in_array", "writable"),
    "object": (lambda c: c.all_reduce(np.array([object()])), "in_array", "numbers"),
    "sum of bool": (lambda c: c.all_reduce(np.zeros(3, bool)), "count", "lor"),
    "bits of floats": (lambda c: c.all_reduce(np.zeros(3), op="band"), "integers", "view"),
    "minloc": (lambda c: c.all_reduce(np.zeros(3), op="minloc"), "pairs", "numpy.where"),
    "byte-swapped": (lambda c: c.all_reduce(np.zeros(3, ">f8")), "in_array", "newbyteorder"),
    "no array": (lambda c: c.all_reduce([1, 2, 3]), "in_array", "NumPy"),
    "string op": (lambda c: c.all_reduce(np.zeros(3), op="median"), "op", "'sum'"),
    "complex min": (lambda c: c.all_reduce(np.zeros(3, complex), op="min"), "complex", "absolute"),
    "dtypes": (lambda c: c.all_reduce(np.zeros(3), np.zeros(3, "f4")), "out_array", "one dtype"),
    "sizes": (lambda c: c.all_reduce(np.zeros(3), np.zeros(4)), "out_array", "must have 3"),
    "root": (lambda c: c.broadcast(np.zeros(3), root=NRANKS), "root", "0 to 2"),
    "negative root": (lambda c: c.reduce(np.zeros(3), root=-1), "root", "0 to 2"),
    "blocks": (lambda c: c.reduce_scatter(np.zeros(4)), "in_array", "multiple of the 3"),
    "gathered": (lambda c: c.all_gather(np.zeros(4), np.zeros(13)), "out_array", "multiple of the 3"),
    "count": (lambda c: c.all_gather(np.zeros(4), np.zeros(12), count=3), "count", "Leave it out"),
    "timeout": (lambda c: c.all_reduce(np.zeros(4), timeout=-1), "timeout", "positive"),
    "in the background": (lambda c: c.all_reduce(np.zeros(10)[::2], async_op=True), "in_array", "contiguous"),
    "gather root": (lambda c: c.gather(np.zeros(2), np.zeros(6), root=7), "root", "0 to 2"),
    "scatter size": (lambda c: c.scatter(np.zeros(4), np.zeros(1), root=c.rank), "in_array", "multiple of the 3"),
    "all_to_all size": (lambda c: c.all_to_all(np.zeros(5)), "in_array", "multiple of the 3"),
    "counts": (lambda c: c.all_gather_v(np.zeros(1), np.zeros(3), [1, 1]), "counts", "one for each rank"),
    "negative count": (lambda c: c.reduce_scatter_v(np.zeros(3), np.zeros(1), [1, -1, 3]), "counts", "numbers of"),
    "displs": (lambda c: c.all_gather_v(np.zeros(1), np.zeros(9), [1, 1, 1], [0, 0, 2]), "displs", "Leave room"),
    "too small": (lambda c: c.gather_v(np.zeros(2), np.zeros(5), [2, 2, 2], root=c.rank), "out_array", "must have 6"),
    "part": (lambda c: c.scatter_v(np.zeros(6), np.zeros(3), [2, 2, 2], root=c.rank), "out_array", "must have 2"),
    "splits": (lambda c: c.all_to_all_v(np.zeros(3), np.zeros(3), [1, 1, 1], [1, 1, -1]), "out_counts", "numbers of"),
    "exchange": (lambda c: c.all_to_all_v(np.zeros(3), np.zeros(2), [1] * 3, [1] * 3), "out_array", "must have 3"),
    "persistent": (lambda c: c.all_reduce_init(np.zeros(3), op="median"), "op", "'sum'"),
    "grouped split": (lambda c: in_group(c, lambda: c.split(0)), "split", "before the group"),
    "grouped": (lambda c: in_group(c, lambda: c.broadcast(np.zeros(3), root=5)), "root", "0 to 2"),
    "group": (lambda c: in_group(c, lambda: (c.barrier(), c.barrier(), 1 / 0)), "ZeroDivisionError", "division"),
}


def in_group(comm: Communicator, call: Callable[[], object]) -> None:
    try:
        with comm.group():
            call()
    except ZeroDivisionError as error:
        raise UsageError(f"here it was ZeroDivisionError: {error}", rank=comm.rank) from error


def overlapping(comm: Communicator) -> None:
    buffer = np.zeros(10)
    comm.all_reduce(buffer[:6], buffer[4:])


BAD_ARGUMENTS["overlap"] = (overlapping, "overlap", "share no element")


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
@pytest.mark.parametrize("culprits", [(1,), (0,), (0, 1, 2)], ids=str)
def test_refused_arguments_are_raised_on_every_rank(name: str, culprits: tuple[int, ...]) -> None:
    bad, argument, remedy = BAD_ARGUMENTS[name]

    def job(comm: Communicator) -> tuple[HetcommError | None, bool]:
        good = np.ones(4)
        error = caught(lambda: bad(comm) if comm.rank in culprits else comm.all_reduce(good))
        return error, bool((good == 1).all()) and works(comm)

    for rank, (error, usable) in enumerate(run_threads(TOPOLOGY, job)):
        assert type(error) is UsageError, (rank, error)
        assert argument in str(error)
        assert remedy in str(error)
        assert error.rank == rank
        if rank not in culprits:
            assert error.peer in culprits
            assert f"rank {error.peer} refused" in str(error)
        assert usable, "nothing had moved, so the next call works"


@pytest.mark.parametrize("begun", [False, True])
def test_all_ranks_agree_whether_a_refused_call_had_begun(begun: bool) -> None:
    comms: dict[int, Communicator] = {}

    def job(comm: Communicator) -> tuple[HetcommError | None, HetcommError | None]:
        comms[comm.rank] = comm
        assert works(comm)  # now the plan is cached, so ranks begin without asking
        first = comms[0]._parts.agreement
        while (
            begun
            and comm.rank == 2
            and not (comms[0]._ledger.next_call == 2 and 1 in first._open and first._open[1].begun)
        ):
            pass
        array = np.zeros(10)[::2] if comm.rank == 2 else np.zeros(5)
        return caught(lambda: comm.all_reduce(array)), caught(lambda: comm.barrier())

    results = run_threads(TOPOLOGY, job)
    for rank, (first, second) in enumerate(results):
        assert type(first) is UsageError, rank
        assert "rank 2" in str(first)
        assert type(second) is type(results[0][1]), rank
        assert second is None or (type(second) is TransportError and "unusable" in str(second))
        assert not begun or second is not None


DISAGREEMENTS: dict[str, Callable[[Communicator, bool], object]] = {
    "count": lambda c, odd: c.all_reduce(np.zeros(5 if odd else 6)),
    "dtype": lambda c, odd: c.all_reduce(np.zeros(6, "f4" if odd else "f8")),
    "op": lambda c, odd: c.all_reduce(np.zeros(6), op="max" if odd else "min"),
    "root": lambda c, odd: c.broadcast(np.zeros(6), root=int(odd)),
    "kind": lambda c, odd: c.barrier() if odd else c.all_reduce(np.zeros(6)),
    "split": lambda c, odd: c.split(0) if odd else c.all_reduce(np.zeros(6)),
    "gather or scatter": lambda c, odd: (
        (c.gather if odd else c.scatter)(np.zeros(6), np.zeros(18 if odd else 2), 0)
        if c.rank == 0
        else (c.gather(np.zeros(6)) if odd else c.scatter(None, np.zeros(2)))
    ),
    "gather root": lambda c, odd: c.gather(np.zeros(2), np.zeros(6), root=1 + odd),
    "counts": lambda c, odd: c.all_gather_v(np.zeros(2 - odd), np.zeros(6 - 3 * odd), [2 - odd] * 3),
    "dtype of all_to_all_v": lambda c, odd: c.all_to_all_v(
        np.zeros(3, "f4" if odd else "f8"), np.zeros(3, "f4" if odd else "f8"), [1] * 3, [1] * 3
    ),
    "in the background": lambda c, odd: waited(c.all_reduce(np.zeros(5 if odd else 6), async_op=True)),
    "persistent": lambda c, odd: c.all_reduce_init(np.zeros(6)) if odd else c.all_reduce(np.zeros(6)),
    "group": lambda c, odd: in_group(c, lambda: [c.all_reduce(np.zeros(6)) for _ in range(2 + odd)]),
    "order in a group": lambda c, odd: in_group(
        c, lambda: [c.broadcast(np.zeros(6), root) for root in ((0, 1) if odd else (1, 0))]
    ),
}


def waited(work: Work | None) -> None:
    assert work is not None
    work.wait()


@pytest.mark.parametrize("name", DISAGREEMENTS)
@pytest.mark.parametrize("odd", range(NRANKS))
def test_new_plans_that_differ_are_found_before_data_moves(name: str, odd: int) -> None:
    def job(comm: Communicator) -> tuple[HetcommError | None, bool]:
        return caught(lambda: DISAGREEMENTS[name](comm, comm.rank == odd)), works(comm)

    for rank, (error, usable) in enumerate(run_threads(TOPOLOGY, job)):
        assert type(error) is PlanMismatchError, (rank, error)
        assert f"rank {odd}" in str(error)
        assert error.rank == rank
        assert usable


@pytest.mark.parametrize("odd", range(NRANKS))
@pytest.mark.parametrize("cached", ["all", "odd", "even"])
def test_plans_that_are_cached_somewhere_are_compared_too(odd: int, cached: str) -> None:
    def job(comm: Communicator) -> HetcommError | None:
        if cached in ("all", "odd"):
            comm.all_reduce(np.zeros(2000))
        if cached in ("all", "even"):
            comm.all_reduce(np.zeros(3000))
        return caught(lambda: comm.all_reduce(np.zeros(2000 if comm.rank == odd else 3000)))

    for rank, error in enumerate(run_threads(TOPOLOGY, job, eager_nbytes=64)):
        assert type(error) is PlanMismatchError, (rank, error)
        assert "2000" in str(error)
        assert "3000" in str(error)


def test_a_rank_that_leaves_is_named() -> None:
    def job(comm: Communicator) -> HetcommError | None:
        comm.barrier()
        if comm.rank == 1:
            with pytest.raises(ZeroDivisionError), comm:
                _ = 1 // 0
            return None
        return caught(lambda: comm.all_reduce(np.zeros(3)))

    errors = run_threads(TOPOLOGY, job)
    for rank in (0, 2):
        assert type(errors[rank]) is PeerFailureError
        assert "has left" in str(errors[rank])
    assert any("ZeroDivisionError" in str(errors[rank]) for rank in (0, 2))


@pytest.mark.parametrize("closer", range(NRANKS))
def test_closing_early_is_noticed_by_those_who_go_on(closer: int) -> None:
    def job(comm: Communicator) -> Any:
        comm.barrier()
        return caught(comm.close if comm.rank == closer else comm.barrier)

    for rank, error in enumerate(run_threads(TOPOLOGY, job)):
        if rank == closer:
            assert error is None
            continue
        assert type(error) is DepartedError, (rank, error)
        assert error.ranks == {closer}
        assert "barrier max 1 x uint8 (algorithm mutual all_reduce, topology" in str(error)
        assert f"rank {closer} closes" in str(error)


def test_a_timeout_names_what_is_missing_and_ends_the_communicator() -> None:
    def job(comm: Communicator) -> Any:
        comm.barrier()
        if comm.rank == 1:
            return caught(comm.close)
        first = caught(lambda: comm.barrier(timeout=0.3))
        return first, caught(lambda: comm.barrier())

    # Rank 1 leaves only when its thread closes, so the others meet their deadline or its farewell, whichever is first.
    results = run_threads(TOPOLOGY, job)
    for rank in (0, 2):
        first, second = results[rank]
        assert isinstance(first, (CollectiveTimeoutError, DepartedError))
        assert type(second) is TransportError
    assert results[1] is None


def test_use_after_close_is_refused_and_closing_twice_does_nothing() -> None:
    def job(comm: Communicator) -> HetcommError | None:
        comm.close()
        comm.close()
        assert comm.closed
        return caught(lambda: comm.barrier())

    for error in run_threads(TOPOLOGY, job):
        assert type(error) is UsageError
        assert "closed" in str(error)


@pytest.mark.parametrize("late", range(NRANKS))
def test_closing_waits_for_a_rank_that_is_still_busy(late: int) -> None:
    """A rank that hears of the others' closing before it closes itself does not take them for gone."""
    waiting: set[int] = set()

    def job(comm: Communicator) -> bool:
        comm.barrier()
        agreement = comm._parts.agreement
        if comm.rank == late:
            while len(waiting) < NRANKS - 1 or (comm.rank == 0 and len(agreement.closing.frames) < NRANKS - 1):
                comm._parts.job.transport.progress()
                agreement.poll()
        else:
            waiting.add(comm.rank)
        comm.close()
        return bool(agreement.closing.together)

    assert run_threads(TOPOLOGY, job, close=False) == [True] * NRANKS
