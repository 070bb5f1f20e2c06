"""What the ranks of `test_fast_path` do: the same calls again and again, so that they take the fast path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import hetcomm
from hetcomm.errors import HetcommError

DTYPES = ["int8", "uint16", "int32", "uint64", "float16", "float32", "float64", "complex64", ml_dtypes.bfloat16]
ROUNDS = 4
Array = Any


def data(rank: int, count: int, dtype: Any, turn: int) -> Array:
    """Small whole numbers, so that every order of additions gives the same."""
    return ((np.arange(count) * 3 + rank * 5 + turn) % 7 + 1).astype(dtype)


def every_call(comm: hetcomm.Communicator, count: int, dtype: Any, wrong: list[str]) -> None:
    """Each collective, in place and not, several times on the same arrays with other values."""
    me, n = comm.rank, comm.nranks
    whole, other, block, other_block = (np.empty(size, dtype) for size in (n * count, n * count, count, count))

    def check(name: str, got: Array, wanted: Array) -> None:
        if not np.array_equal(got.astype("c16"), np.asarray(wanted).astype("c16")):
            wrong.append(f"rank {me}: {name} of {count} x {np.dtype(dtype)}, round {turn}: {got} instead of {wanted}")

    for turn in range(ROUNDS):
        root = turn % n
        given = [data(rank, n * count, dtype, turn) for rank in range(n)]
        parts = [each.reshape(n, count) for each in given]
        total = np.sum([each.astype("c16") for each in given], axis=0)
        total = total.real.astype(dtype) if np.dtype(dtype).kind != "c" else total.astype(dtype)
        highest = np.max([each.astype("f8") for each in given], axis=0) if np.dtype(dtype).kind != "c" else total
        op = "max" if np.dtype(dtype).kind != "c" else "sum"
        whole[:] = given[me]
        comm.all_reduce(whole, other)
        check("all_reduce", other, total)
        comm.all_reduce(whole, None, op)
        check("all_reduce in place", whole, highest)
        whole[:] = given[me]
        comm.reduce(whole, other, root)
        if me == root:
            check("reduce", other, total)
        comm.broadcast(whole, root)
        check("broadcast", whole, given[root])
        block[:] = parts[me][0]
        comm.all_gather(block, other)
        firsts = np.concatenate([each[0] for each in parts])
        check("all_gather", other, firsts)
        other[:] = 0
        other[me * count : (me + 1) * count] = block
        comm.all_gather(other[me * count : (me + 1) * count], other)
        check("all_gather in place", other, firsts)
        whole[:] = given[me]
        comm.reduce_scatter(whole, other_block)
        check("reduce_scatter", other_block, total.reshape(n, count)[me])
        comm.gather(block, other if me == root else None, root)
        if me == root:
            check("gather", other, firsts)
        comm.scatter(whole if me == root else None, other_block, root)
        check("scatter", other_block, parts[root][me])
        comm.all_to_all(whole, other)
        check("all_to_all", other, np.concatenate([each[me] for each in parts]))
        comm.all_to_all(whole)
        check("all_to_all in place", whole, other)
        comm.barrier()


def matrix() -> tuple[list[str], int]:
    """All of it; what was wrong, and how many calls."""
    wrong: list[str] = []
    with hetcomm.init() as comm:
        for dtype in DTYPES:
            for count in (1, 3, 1000):
                every_call(comm, count, dtype, wrong)
        every_call(comm, 70_000, "float32", wrong)
        return wrong, comm.statistics().calls


def caught(call: Callable[[], object]) -> str:
    """The error of a call, or 'none'."""
    try:
        call()
    except HetcommError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def bad_arguments() -> dict[str, str]:
    """What is refused though a call much like it is known."""
    found = {}
    with hetcomm.init() as comm:
        a, b = np.ones(4 * comm.nranks), np.zeros(4 * comm.nranks)
        fixed = np.zeros(4 * comm.nranks)
        fixed.flags.writeable = False
        long = np.zeros(8 * comm.nranks)
        for _ in range(3):
            comm.all_reduce(a, b)
        calls: dict[str, Callable[[], object]] = {
            "read-only": lambda: comm.all_reduce(a, fixed),
            "strided": lambda: comm.all_reduce(long[::2], b),
            "overlapping": lambda: comm.all_reduce(long[: 4 * comm.nranks], long[1 : 4 * comm.nranks + 1]),
            "another dtype": lambda: comm.all_reduce(a, b.astype("f4")),
            "another length": lambda: comm.all_reduce(a, b[:-1]),
            "another op": lambda: comm.all_reduce(a, b, "median"),
            "no array": lambda: comm.all_reduce(a, [1, 2]),
            "no root": lambda: comm.broadcast(a, comm.nranks),
        }
        for name, call in calls.items():
            found[name] = caught(call)
            comm.all_reduce(a, b)
            if b[0] != comm.nranks:
                found[name] = f"the next call gives {b[0]}"
        for _ in range(2):
            comm.all_reduce(fixed, b)  # it is only read
        found["read"] = str(b[0])
    return found


def disagreement() -> tuple[str, str]:
    """One rank makes another call, which all of them know; then nothing works any more, and all are told so."""
    with hetcomm.init() as comm:
        one, two = np.ones(10), np.ones(20)
        for _ in range(3):
            comm.all_reduce(one)
            comm.all_reduce(two)
        first = caught(lambda: comm.all_reduce(two if comm.rank == 1 else one))
        return first, caught(lambda: comm.all_reduce(one))


def a_rank_leaves() -> str:
    """What the others get in a call that rank 1 does not make."""
    with hetcomm.init() as comm:
        array = np.ones(10)
        for _ in range(3):
            comm.all_reduce(array)
        return caught(comm.close if comm.rank == 1 else lambda: comm.all_reduce(array))


def late_rank() -> float:
    """Rank 0 comes half a second late to a call that is known."""
    import time

    with hetcomm.init() as comm:
        array = np.ones(10)
        for _ in range(3):
            comm.all_reduce(array)
        if comm.rank == 0:
            time.sleep(0.5)
        comm.all_reduce(array)
        return float(array[0])


def side_by_side() -> list[str]:
    """Persistent calls, works, messages, groups, a second communicator and a recording, one among the other."""
    wrong = []
    with hetcomm.init() as comm:
        me, n = comm.rank, comm.nranks
        half = comm.split(me % 2)
        assert half is not None
        a, b, c, d, small = (np.zeros(6) for _ in range(5))
        first, second = comm.all_reduce_init(a, b), half.all_reduce_init(c, d)
        total = n * (n + 1) // 2
        mine = sum(rank + 1 for rank in range(n) if rank % 2 == me % 2)

        def expect(what: str, got: Array, wanted: float) -> None:
            if not (got == wanted).all():
                wrong.append(f"rank {me}, round {turn}: {what}: {got} instead of {wanted}")

        for turn in range(12):
            a[:], c[:], small[:], b[:], d[:] = me + 1, me + 1, me + 1, 0, 0
            order = (first, second) if (me + turn) % 2 else (second, first)
            for request in order:
                request.start()
            if turn % 3 == 0:
                comm.all_reduce(small)
                expect("a call beside requests", small, total)
            if turn % 4 == 1:
                half.barrier()
            if turn % 5 == 2:
                got = np.zeros(1)
                comm.send_recv(np.full(1, float(me)), got, (me + 1) % n, (me - 1) % n)
                expect("a message beside requests", got, (me - 1) % n)
            if turn % 6 == 3:
                small[:] = me + 1
                work = half.all_reduce(small, async_op=True)
                assert work is not None
                work.wait()
                expect("a work beside requests", small, mine)
            if turn % 4 == 2:
                while not first.done():
                    pass
            for request in order[::-1]:
                request.wait()
            expect("the first request", b, total)
            expect("the second request", d, mine)
            small[:] = me + 1
            with comm.group():
                comm.all_reduce(small)
                half.barrier()
            expect("a group", small, total)
            with comm.trace() as trace:
                comm.all_reduce(a, b)
            if not trace.timeline.spans:
                wrong.append("nothing was recorded")
        first.start()
        if "has not been waited for" not in caught(first.start):
            wrong.append("a second start was not refused")
        first.wait()
        first.start()
        first.close()
        first.wait()
        expect("a request that was closed under way", b, total)
    return wrong


def ring() -> list[str]:
    """Messages both ways, which match those of `send` and `recv`; and what is refused or goes wrong with them."""
    wrong = []
    with hetcomm.init() as comm:
        me, n = comm.rank, comm.nranks
        after, before = (me + 1) % n, (me - 1) % n
        for count in (0, 1, 3000, 500_000):
            given, got = np.full(count, float(me)), np.full(count, -1.0)
            for turn in range(3):
                comm.send_recv(given, got, after, before, tag=turn)
                if not (got == before).all():
                    wrong.append(f"rank {me}: {count} elements in round {turn}: {got}")
        if me == 0:
            comm.send_recv(np.ones(2), got[:2], 1)
        elif me == 1:
            comm.recv(got[:2], 0)
            comm.send(np.full(2, 5.0), 0)
        if me == 0 and not (got[:2] == 5).all():
            wrong.append(f"send and recv gave {got[:2]}")
        line = np.zeros(8)
        fixed = line.copy()
        fixed.flags.writeable = False
        refused = {
            "overlap": lambda: comm.send_recv(line[:5], line[3:8], after, before),
            "read-only": lambda: comm.send_recv(line, fixed, after, before),
            "strided": lambda: comm.send_recv(line[::2], fixed[::2], after, before),
            "no rank": lambda: comm.send_recv(line, line.copy(), n, before),
            "no tag": lambda: comm.send_recv(line, line.copy(), after, before, tag=-1),
        }
        wrong += [f"{what}: {text}" for what, call in refused.items() if "UsageError" not in (text := caught(call))]
        comm.barrier()
        text = caught(lambda: comm.send_recv(line[: 3 + me % 2], np.zeros(4), after, before))
        if before % 2 == 0 and "TransportError" not in text:
            wrong.append(f"rank {me} got a shorter message: {text}")
        itself = np.zeros(3)
        comm.send_recv(np.full(3, float(me)), itself, me)
        if not (itself == me).all():
            wrong.append(f"rank {me} got {itself} from itself")
    return wrong


def many_calls() -> tuple[float, int]:
    """More calls than the tags of messages tell apart."""
    with hetcomm.init() as comm:
        array, total = np.ones(1, np.int64), np.zeros(1, np.int64)
        found = 0
        for _ in range(70_000):
            comm.all_reduce(array, total)
            found += int(total[0] != comm.nranks)
        return found, comm.statistics().calls
