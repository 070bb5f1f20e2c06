"""Arguments whose inspection raises something of its own: a typed error on every rank, and the communicator goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm.agreement.agreement import REFUSALS
from hetcomm.agreement.control import Frame, Subject
from hetcomm.communicator import Communicator
from hetcomm.errors import HetcommError, PlanMismatchError, UsageError
from hetcomm.works.refusals import refusal, typed

from .threads import clusters, run_threads, works

NRANKS = 3
TOPOLOGY = clusters(2, 1)
SECONDS = 5.0  # of the deadline of run_threads, 30: whoever is not told waits for that

RAISED = (ZeroDivisionError("none today"), RecursionError("deep"), MemoryError(), KeyError("x"), RuntimeError("a\nb"))


class Raising:
    """Every way to look at it raises `error`."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def _raise(self, *_: object, **__: object) -> Any:
        raise self._error

    __index__ = __float__ = __len__ = __iter__ = __bool__ = __eq__ = __repr__ = _raise
    __hash__ = None  # type: ignore[assignment]
    __dlpack__ = __array__ = _raise
    dtype = shape = ptr = __array_interface__ = __cuda_array_interface__ = __cuda_stream__ = property(_raise)


def arguments(rank: int) -> dict[str, tuple[tuple[str, object], ...]]:
    """For each collective method its arguments, all of them good."""
    block, blocks, counts = np.ones(2), np.ones(2 * NRANKS), (2,) * NRANKS
    out, wide = np.ones(2), np.ones(2 * NRANKS)
    return {
        "all_reduce": (("in_array", block), ("out_array", out), ("op", "sum")),
        "reduce": (("in_array", block), ("out_array", out), ("root", rank), ("op", "sum")),
        "broadcast": (("in_out_array", block), ("root", 0)),
        "all_gather": (("in_array", block), ("out_array", wide), ("count", 2)),
        "reduce_scatter": (("in_array", blocks), ("out_array", out), ("count", 2), ("op", "sum")),
        "gather": (("in_array", block), ("out_array", wide), ("root", rank)),
        "scatter": (("in_array", blocks), ("out_array", out), ("root", rank)),
        "all_to_all": (("in_array", blocks), ("out_array", wide)),
        "all_gather_v": (("in_array", block), ("out_array", wide), ("counts", counts), ("displs", (0, 2, 4))),
        "reduce_scatter_v": (
            ("in_array", blocks),
            ("out_array", out),
            ("counts", counts),
            ("op", "sum"),
            ("displs", (0, 2, 4)),
        ),
        "gather_v": (
            ("in_array", block),
            ("out_array", wide),
            ("counts", counts),
            ("root", rank),
            ("displs", (0, 2, 4)),
        ),
        "scatter_v": (
            ("in_array", blocks),
            ("out_array", out),
            ("counts", counts),
            ("root", rank),
            ("displs", (0, 2, 4)),
        ),
        "all_to_all_v": (
            ("in_array", blocks),
            ("out_array", wide),
            ("in_counts", counts),
            ("out_counts", counts),
            ("in_displs", (0, 2, 4)),
            ("out_displs", (0, 2, 4)),
        ),
        "barrier": (),
        "split": (("color", 0), ("key", 0)),
    }


def attempt(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


FORMS = [(method, "") for method in arguments(0)] + [(name, "_init") for name in arguments(0) if name != "split"]


@pytest.mark.parametrize(("method", "form"), FORMS, ids=[method + form for method, form in FORMS])
def test_whatever_an_argument_raises_is_a_typed_error_on_every_rank(method: str, form: str) -> None:
    """Each argument in turn, and each of the options of all methods; every kind of exception."""

    def job(comm: Communicator) -> list[str]:
        wrong = []
        given = arguments(comm.rank)[method]
        options = () if method == "split" else ("timeout",) if form else ("timeout", "async_op")
        for turn, place in enumerate([name for name, _ in given] + list(options)):
            culprit, raised = turn % NRANKS, RAISED[turn % len(RAISED)]
            call = dict(given)
            if comm.rank == culprit:
                call[place] = Raising(raised)
                error = attempt(lambda call=call: getattr(comm, method + form)(**call))
            else:
                error = attempt(lambda: comm.all_reduce(np.ones(2)))
            if not isinstance(error, UsageError) or culprit not in (comm.rank, error.peer):
                wrong.append(f"{place} on rank {culprit}: {error!r}")
            elif comm.rank == culprit and error.__cause__ is not raised and not isinstance(raised, RuntimeError):
                wrong.append(f"{place}: the cause is {error.__cause__!r}")
            if not works(comm):
                wrong.append(f"after {place}")
        return wrong

    assert run_threads(TOPOLOGY, job, timeout=SECONDS) == [[]] * NRANKS


ODD: dict[str, Callable[[Communicator], object]] = {
    "a root that is a 0-d float array": lambda c: c.broadcast(np.ones(2), np.array(1.0)),
    "a root of two elements": lambda c: c.broadcast(np.ones(2), np.array([0, 1])),
    "a count of two elements": lambda c: c.all_gather(np.ones(1), np.ones(3), np.array([3, 3])),
    "a count that is no integer": lambda c: c.all_gather(np.ones(1), np.ones(3), 1.0),
    "a color that is a 0-d float array": lambda c: c.split(np.array(1.0)),
    "a key of two elements": lambda c: c.split(0, np.array([1, 2])),
    "a key that is text": lambda c: c.split(0, "1"),
    "a released memoryview": lambda c: c.all_reduce(released()),
    "a factor that is text": lambda c: c.all_reduce(np.ones(2), op=hetcomm.premul_sum("2")),
    "a factor of two elements": lambda c: c.all_reduce(np.ones(2), op=hetcomm.premul_sum(np.ones(2))),
    "a factor beyond all floats": lambda c: c.all_reduce(np.ones(2), op=hetcomm.premul_sum(-(10**400))),
    "a factor beyond all complex numbers": lambda c: c.reduce(np.ones(2, complex), op=hetcomm.premul_sum(10**400)),
    "a factor that raises": lambda c: c.all_reduce(np.ones(2), op=hetcomm.premul_sum(Raising(MemoryError()))),
    "a factor that integers lack": lambda c: c.all_reduce(np.ones(2, int), op=hetcomm.premul_sum(np.float32(0.5))),
    "a timeout that is text": lambda c: c.all_reduce(np.ones(2), timeout="60"),
    "a timeout without end": lambda c: c.barrier(timeout=float("nan")),
    "a timeout that no float holds": lambda c: c.barrier(timeout=10**400),
    "a timeout of two elements": lambda c: c.barrier(timeout=np.ones(2)),
    "an async_op of two elements": lambda c: c.all_reduce(np.ones(2), async_op=np.ones(2)),
    "a name that is no text": lambda c: c.use_schedule("\udcff\0"),
    "a schedule that is none": lambda c: c.use_schedule(3.5),
}


def released() -> memoryview:
    view = memoryview(bytearray(16))
    view.release()
    return view


@pytest.mark.parametrize("name", ODD)
def test_what_only_looks_like_an_argument_is_refused_on_every_rank(name: str) -> None:
    def job(comm: Communicator) -> tuple[Exception | None, bool]:
        error = attempt(lambda: ODD[name](comm) if comm.rank == 1 else comm.all_reduce(np.ones(2)))
        return error, works(comm)

    for error, usable in run_threads(TOPOLOGY, job, timeout=SECONDS):
        assert isinstance(error, REFUSALS)
        assert not isinstance(error, hetcomm.CollectiveTimeoutError)
        assert usable


def test_integers_of_every_type_and_size_are_integers() -> None:
    def job(comm: Communicator) -> list[float]:
        found = []
        kinds: tuple[Callable[[int], Any], ...] = (int, np.int8, np.uint64, np.array)
        for kind in kinds:
            array = np.full(2, float(comm.rank))
            comm.broadcast(array, root=kind(2))
            comm.all_gather(np.ones(1), np.ones(NRANKS), count=kind(1))
            comm.all_gather_v(np.ones(1), np.ones(NRANKS), [kind(1)] * NRANKS)
            work = comm.send(np.ones(1), kind(comm.rank), tag=kind(3), async_op=True)
            comm.recv(np.ones(1), kind(comm.rank), tag=kind(3), async_op=True).wait()
            work.wait()
            found.append(array[0])
        for color, key in ((True, None), (np.array(-7), np.int8(-comm.rank)), (10**5000, 10**5000 - comm.rank)):
            child = comm.split(color, key)
            found.append(child.rank + child.nranks)
            child.close()
        return found

    for rank, found in enumerate(run_threads(TOPOLOGY, job)):
        assert found == [2.0] * 4 + [rank + 3, 2 - rank + 3, 2 - rank + 3]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_refused_factor_breaks_nothing_though_the_plan_is_known(grouped: bool) -> None:
    def job(comm: Communicator) -> tuple[list[Exception | None], bool]:
        def reduce(factor: object) -> None:
            with comm.group() if grouped else nullcontext():
                comm.all_reduce(np.ones(3), op=hetcomm.premul_sum(factor))

        reduce(2)
        return [attempt(lambda: reduce("x" if comm.rank == 1 else 1)) for _ in range(3)], works(comm)

    for errors, usable in run_threads(TOPOLOGY, job, timeout=SECONDS):
        assert [type(error) for error in errors] == [UsageError] * 3
        assert usable


def test_a_message_of_unusable_arguments_is_refused_here_alone() -> None:
    def job(comm: Communicator) -> list[str]:
        wrong = []
        good: dict[str, Any] = {"array": np.ones(1), "peer": 0, "tag": 1, "timeout": None, "async_op": True}
        for place in good:
            error = attempt(lambda place=place: comm.send(**(good | {place: Raising(KeyError("x"))})))
            if type(error) is not UsageError:
                wrong.append(f"{place}: {error!r}")
        return wrong if works(comm) else ["unusable"]

    assert run_threads(TOPOLOGY, job) == [[]] * NRANKS


def test_a_peer_is_asked_for_its_number_once() -> None:
    class Growing:
        value = -1

        def __index__(self) -> int:
            self.value += 1
            return self.value

    def job(comm: Communicator) -> float:
        array = np.zeros(1)
        work = comm.recv(array, comm.rank, async_op=True)
        peer, root = Growing(), Growing()
        peer.value += comm.rank
        comm.send(np.ones(1), peer, async_op=True).wait()
        work.wait()
        comm.broadcast(array, root=root)
        return float(array[0])

    assert run_threads(TOPOLOGY, job) == [1.0] * NRANKS


def test_a_group_in_which_a_call_was_refused_does_not_start() -> None:
    """Not even if the block goes on: the others wait for all of it."""

    def job(comm: Communicator) -> tuple[Exception | None, Exception | None, bool]:
        inner: list[Exception | None] = []

        def grouped() -> None:
            with comm.group():
                array = np.ones(2)[::-1] if comm.rank == 0 else np.ones(2)
                inner.append(attempt(lambda: comm.all_reduce(array)))

        return attempt(grouped), inner[0], works(comm)

    for rank, (error, inner, usable) in enumerate(run_threads(TOPOLOGY, job, timeout=SECONDS)):
        assert type(error) is UsageError
        assert type(inner) is (UsageError if rank == 0 else type(None))
        assert usable


def test_an_interrupted_check_is_told_and_goes_on() -> None:
    class Interrupted:
        def __index__(self) -> int:
            raise KeyboardInterrupt

    def job(comm: Communicator) -> tuple[BaseException | None, bool]:
        found: BaseException | None = None
        try:
            comm.broadcast(np.ones(2), root=Interrupted() if comm.rank == 1 else 0)
        except (HetcommError, KeyboardInterrupt) as error:
            found = error
        return found, works(comm)

    for rank, (error, usable) in enumerate(run_threads(TOPOLOGY, job, timeout=SECONDS)):
        assert type(error) is (KeyboardInterrupt if rank == 1 else UsageError)
        assert "KeyboardInterrupt" in repr(error)
        assert usable


def test_explain_refuses_as_the_call_would() -> None:
    def job(comm: Communicator) -> Exception | None:
        return attempt(lambda: comm.explain("broadcast", np.ones(2), Raising(ZeroDivisionError())))

    assert {type(error) for error in run_threads(TOPOLOGY, job)} == {UsageError}


def test_an_error_without_a_text_is_described_all_the_same() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    assert str(typed(Silent(), "looking", 1)) == "[rank 1] looking raised Silent: its __str__ raised ValueError"
    assert typed(MemoryError(), "looking").message == "looking raised MemoryError"
    mismatch = PlanMismatchError("two plans", rank=1)
    assert typed(mismatch, "looking") is mismatch
    told = refusal(mismatch, "looking", 1)
    assert type(told) is UsageError
    assert "looking raised PlanMismatchError: two plans" in told.message


def test_a_text_that_is_no_unicode_travels() -> None:
    frame = Frame(Subject.REFUSED, 1, 0, text="file \udcff")
    assert Frame.unpack(frame.pack(), 3).text == "file \\udcff"


def test_the_limit_of_digits_is_no_limit() -> None:
    assert sys.get_int_max_str_digits() < 5000  # so that the colors above were beyond it
