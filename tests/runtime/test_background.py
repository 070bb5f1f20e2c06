"""What works, groups and persistent requests promise beyond the numbers: independence, errors, and how they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hetcomm.communicator import Communicator, Request, Work
from hetcomm.errors import (
    CollectiveTimeoutError,
    HetcommError,
    PeerFailureError,
    PlanMismatchError,
    TransportError,
    UsageError,
)
from hetcomm.execution import tags
from hetcomm.works import engine

from .threads import caught, clusters, run_threads

TOPOLOGY = clusters(2, 1)
NRANKS = 3


def begun(work: Work | None) -> Work:
    assert work is not None
    return work


def usable(comm: Communicator) -> bool:
    array = np.full(5, comm.rank + 1.0)
    comm.all_reduce(array)
    return bool((array == NRANKS * (NRANKS + 1) / 2).all())


# ---- independence


def test_a_call_in_the_background_waits_for_no_rank() -> None:
    """Though its plan is new and must be compared: rank 0 calls it before a message without which nobody goes on."""

    def job(comm: Communicator) -> None:
        total, token = np.full(7, comm.rank), np.zeros(1)
        if comm.rank == 0:
            work = begun(comm.all_reduce(total, async_op=True))
            assert not work.done()
            comm.send(token, 1)
            comm.send(token, 2)
            work.wait()
        else:
            comm.recv(token, 0)
            comm.all_reduce(total)
        assert (total == 3).all()

    run_threads(TOPOLOGY, job)


def test_communicators_go_on_side_by_side_in_any_order() -> None:
    def job(comm: Communicator) -> None:
        parts = [comm.split(0, key=comm.rank), comm.split(0, key=-comm.rank), comm]
        arrays = [np.full(300, comm.rank + 1.0) for _ in parts]
        works = [None] * len(parts)
        order = [(number + comm.rank) % len(parts) for number in range(len(parts))]
        for number in order:
            part = parts[number]
            assert part is not None
            works[number] = part.all_reduce(arrays[number], async_op=True)
        for number in reversed(order):
            begun(works[number]).wait()
        assert all((array == 6).all() for array in arrays)

    run_threads(TOPOLOGY, job)


@pytest.mark.parametrize("window", [1, 3, tags.WINDOW])
def test_many_works_may_be_under_way(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """However many: no two that tags cannot tell apart move at once, and the rest wait for their turn."""
    monkeypatch.setattr(tags, "WINDOW", window)

    def job(comm: Communicator) -> None:
        arrays = [np.full(20 + number % 3, comm.rank + number) for number in range(300)]
        works = [begun(comm.all_reduce(array, async_op=True)) for array in arrays]
        if comm.rank == 1:
            works.reverse()
        for work in works:
            work.wait()
        assert all((array == 3 * number + 3).all() for number, array in enumerate(arrays))
        assert comm.statistics().calls == len(arrays)

    run_threads(TOPOLOGY, job, seed=1)


def test_blocking_messages_move_what_is_in_the_background() -> None:
    """A rank waits for its work before it sends; the other, blocked in the receive, is needed for that work."""

    def job(comm: Communicator) -> None:
        total, token = np.full(2000, comm.rank), np.zeros(1)
        work = begun(comm.all_reduce(total, async_op=True))
        if comm.rank == 0:
            work.wait()
            comm.send(token, 1)
            comm.send(token, 2)
        else:
            comm.recv(token, 0)
        work.wait()
        assert (total == 3).all()

    run_threads(TOPOLOGY, job, eager_nbytes=16)


def test_what_is_dropped_goes_on_and_close_waits_for_it() -> None:
    results = [np.full(1000, rank) for rank in range(NRANKS)]
    messages = [np.full(1000, -1) for _ in range(NRANKS)]

    def job(comm: Communicator) -> None:
        comm.all_reduce(results[comm.rank], async_op=True)
        comm.send(np.full(1000, comm.rank), (comm.rank + 1) % NRANKS, async_op=True)
        comm.recv(messages[comm.rank], (comm.rank - 1) % NRANKS, async_op=True)

    run_threads(TOPOLOGY, job, eager_nbytes=16)
    for rank in range(NRANKS):
        assert (results[rank] == 3).all()
        assert (messages[rank] == (rank - 1) % NRANKS).all()


def test_messages_that_nobody_takes_are_given_up_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_QUIET", 0.05)
    kept: list[Work] = []

    def job(comm: Communicator) -> None:
        if comm.rank == 0:
            kept.append(begun(comm.recv(np.zeros(3), 1, async_op=True)))
            kept.append(begun(comm.send(np.zeros(1000), 1, async_op=True)))

    run_threads(TOPOLOGY, job, eager_nbytes=16)
    for work in kept:
        assert work.done()
        with pytest.raises(TransportError, match="the communicator was closed|is gone"):
            work.wait()


# ---- errors


def test_a_refused_call_in_the_background_spares_the_others() -> None:
    def job(comm: Communicator) -> tuple[HetcommError | None, HetcommError | None]:
        before, after = np.ones(4), np.ones(6)
        first = begun(comm.all_reduce(before, async_op=True))
        bad: Any = np.zeros(10)[::2] if comm.rank == 1 else np.zeros(5)
        refused = caught(lambda: begun(comm.all_reduce(bad, async_op=True)).wait())
        second = begun(comm.all_reduce(after, async_op=True))
        first.wait()
        second.wait()
        assert (before == 3).all()
        assert (after == 3).all()
        return refused, refused if comm.rank == 1 else None

    for rank, (error, _) in enumerate(run_threads(TOPOLOGY, job)):
        assert type(error) is UsageError, rank
        assert "not C-contiguous" in str(error)


def test_plans_that_are_cached_and_differ_end_every_work() -> None:
    def job(comm: Communicator) -> list[HetcommError | None]:
        comm.all_reduce(np.zeros(2000))
        comm.all_reduce(np.zeros(3000))
        arrays = [np.zeros(3000), np.zeros(2000 if comm.rank == 1 else 3000)]
        works = [begun(comm.all_reduce(array, async_op=True)) for array in arrays]
        errors = [caught(work.wait) for work in reversed(works)]
        assert all(
            work.done() and work.exception() is error for work, error in zip(reversed(works), errors, strict=True)
        )
        errors.append(caught(comm.barrier))
        return errors

    for rank, (*errors, later) in enumerate(run_threads(TOPOLOGY, job, eager_nbytes=64)):
        assert type(errors[0]) is PlanMismatchError, (rank, errors)
        assert "2000" in str(errors[0])
        assert "3000" in str(errors[0])
        assert errors[1] is None or isinstance(errors[1], (PlanMismatchError, TransportError)), "it may be over by then"
        assert type(later) is TransportError


def test_a_late_work_ends_all_works_of_its_communicator_and_no_other() -> None:
    def job(comm: Communicator) -> Any:
        part = comm.split(0)
        assert part is not None
        part.barrier()
        if comm.rank == 1:
            assert usable(comm)
            return None
        array = np.zeros(600)
        works = [begun(part.all_reduce(array, async_op=True)) for _ in range(3)]
        late = caught(lambda: works[1].wait(timeout=0.3))
        before = array.copy()
        rest = [caught(works[number].wait) for number in (0, 2)]
        assert usable(comm)
        assert (array == before).all()
        return late, rest, caught(part.barrier)

    results = run_threads(TOPOLOGY, job)
    for rank in (0, 2):
        late, rest, later = results[rank]
        # The other late rank may have given up first, and told so.
        assert isinstance(late, (CollectiveTimeoutError, PeerFailureError)), late
        assert all(isinstance(error, TransportError) for error in rest)
        assert type(later) is TransportError
    assert any("agree on" in str(results[rank][0]) or "waits for" in str(results[rank][0]) for rank in (0, 2))


def test_a_rank_that_leaves_fails_the_works_that_need_it() -> None:
    def job(comm: Communicator) -> Any:
        if comm.rank == 1:
            with pytest.raises(ZeroDivisionError), comm:
                _ = 1 // 0
            return None
        works = [begun(comm.all_reduce(np.zeros(5), async_op=True)) for _ in range(2)]
        return [caught(work.wait) for work in works]

    results = run_threads(TOPOLOGY, job)
    for rank in (0, 2):
        assert all(isinstance(error, TransportError) for error in results[rank])
        assert any(type(error) is PeerFailureError for error in results[rank])


def test_an_interruption_goes_to_the_caller_and_ends_the_communicator(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(comm: Communicator) -> Any:
        comm.barrier()
        if comm.rank:
            return caught(lambda: comm.all_reduce(np.zeros(5)))
        pump = comm._parts.job.pump
        work = begun(comm.all_reduce(np.zeros(5), async_op=True))

        def interrupted() -> bool:
            del pump.__dict__["progress"]
            raise KeyboardInterrupt

        pump.progress = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            work.wait()
        assert work.done()
        assert type(caught(work.wait)) is TransportError
        return caught(comm.barrier)

    for rank, error in enumerate(run_threads(TOPOLOGY, job)):
        assert type(error) is (PeerFailureError if rank else TransportError), (rank, error)


def test_counts_that_contradict_one_another_are_refused_alike_on_every_rank() -> None:
    def job(comm: Communicator) -> list[str]:
        found = []
        for call in (comm.all_to_all_v, comm.all_to_all_v_init):
            out = np.zeros(4 if comm.rank == 2 else 3)
            counts = [1, 2, 1] if comm.rank == 2 else [1, 1, 1]
            error = caught(lambda call=call, out=out, counts=counts: call(np.zeros(3), out, [1, 1, 1], counts))
            assert type(error) is UsageError
            found.append(str(error))
            assert usable(comm)
        return found

    results = run_threads(TOPOLOGY, job)
    assert all(result == results[0] for result in results)
    assert "in_counts of rank 1 has 1 elements for rank 2, but out_counts of rank 2 has 2 from rank 1" in results[0][0]


# ---- groups


def test_groups_merge_and_hold_messages_to_oneself() -> None:
    def job(comm: Communicator) -> None:
        rank = comm.rank
        mine, theirs, own, total = np.full(500, rank), np.zeros(500, int), np.zeros(1), np.full(3, rank)
        with comm.group():
            for peer in range(NRANKS):
                assert comm.send(mine, peer, tag=1) is None
            with comm.group():
                work = begun(comm.all_reduce(total, async_op=True))
            assert comm.recv(own, rank) is None
            comm.send(np.full(1, rank + 0.5), rank)
            assert not work.done()
            with pytest.raises(UsageError, match="group has not ended"):
                work.wait()
            slots = [np.zeros(500, int) for _ in range(NRANKS)]
            for peer in reversed(range(NRANKS)):
                comm.recv(slots[peer], peer, tag=1)
        assert all((slot == peer).all() for peer, slot in enumerate(slots))
        assert own[0] == rank + 0.5
        work.wait()
        assert (total == 3).all()
        with comm.group():
            pass
        with comm.group():  # messages alone concern the ranks they are between
            if rank == 0:
                comm.send(mine, 1)
            if rank == 1:
                comm.recv(theirs, 0)

    run_threads(TOPOLOGY, job, eager_nbytes=16)


def test_an_exception_in_a_group_starts_nothing_anywhere() -> None:
    def job(comm: Communicator) -> HetcommError | None:
        array, got = np.ones(3), np.zeros(3)
        kept: list[Work] = []

        def block() -> None:
            with comm.group():
                comm.send(np.ones(3), (comm.rank + 1) % NRANKS)
                comm.recv(got, (comm.rank - 1) % NRANKS)
                kept.append(begun(comm.all_reduce(array, async_op=True)))
                if comm.rank == 1:
                    raise ZeroDivisionError

        if comm.rank == 1:
            with pytest.raises(ZeroDivisionError):
                block()
            error = None
        else:
            error = caught(block)
        assert kept[0].done()
        assert type(kept[0].exception()) is UsageError
        assert (array == 1).all()
        assert (got == 0).all()
        comm.send_recv(np.full(3, 7.0), got, (comm.rank + 1) % NRANKS, (comm.rank - 1) % NRANKS)
        assert (got == 7).all(), "the group's messages were never sent"
        assert usable(comm)
        return error

    for rank, error in enumerate(run_threads(TOPOLOGY, job)):
        assert error is None if rank == 1 else "its group raised ZeroDivisionError" in str(error)


def test_messages_of_a_group_that_are_wrong_leave_it_usable() -> None:
    def job(comm: Communicator) -> None:
        def block() -> None:
            with comm.group():
                comm.send_recv(np.zeros(4), np.zeros(3), comm.rank)
                comm.send_recv(np.zeros(5), five, comm.rank)

        five = np.ones(5)
        error = caught(block)
        assert type(error) is TransportError
        assert (five == 0).all()
        with pytest.raises(UsageError, match="'source'"):
            comm.send_recv(np.zeros(1), np.zeros(1), 0, 9)
        with pytest.raises(UsageError, match="overlap"):
            comm.send_recv(five[:3], five[2:], 0)
        with pytest.raises(UsageError, match="send_recv"):
            comm.send(five, comm.rank)
        assert usable(comm)

    run_threads(TOPOLOGY, job)


# ---- persistent requests


def test_requests_are_agreed_upon_once_and_run_often() -> None:
    def job(comm: Communicator) -> Any:
        array, out = np.zeros(40), np.zeros(40)
        blocks = np.zeros(NRANKS)
        with (
            comm.all_reduce_init(array, out) as sums,
            comm.all_gather_init(np.full(1, comm.rank), None) if False else (comm.barrier_init()) as gate,
        ):
            plans = comm.statistics().plans
            assert sums.done()
            for turn in range(5):
                array[:] = turn + comm.rank
                sums.start()
                gate.start()
                gate.wait()
                sums.wait()
                sums.wait()
                assert (out == 3 * turn + 3).all()
            with comm.group():
                sums.start()
                comm.all_reduce(blocks)
            while not sums.done():
                pass
            sums.wait()
            assert comm.statistics().plans == plans + 1
            sums.start()
            again = caught(sums.start)
            sums.wait()
        closed = caught(sums.start)
        assert usable(comm)
        return again, closed, repr(sums)

    for rank, (again, closed, shown) in enumerate(run_threads(TOPOLOGY, job)):
        assert type(again) is type(closed) is UsageError, rank
        assert "wait() before the next start()" in str(again)
        assert "is closed" in str(closed)
        assert shown == "<hetcomm.Request of all_reduce, closed>"


def test_starting_twice_on_one_rank_is_raised_on_every_rank() -> None:
    def job(comm: Communicator) -> HetcommError | None:
        request: Request = comm.all_reduce_init(np.zeros(6))
        request.start()
        if comm.rank == 0:
            error = caught(request.start)
            request.wait()
        else:
            request.wait()
            error = caught(lambda: (request.start(), request.wait()))
        return error

    for rank, error in enumerate(run_threads(TOPOLOGY, job)):
        assert type(error) is UsageError, (rank, error)
        assert "was started and has not been waited for" in str(error)
