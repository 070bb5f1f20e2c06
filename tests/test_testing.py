"""`run_ranks` itself: results in order, tracebacks of every rank, one deadline, and nothing left behind."""

from __future__ import annotations

import os
import signal

import pytest

from hetcomm.errors import PeerFailureError, UsageError
from hetcomm.job.launcher import Launcher, variables
from hetcomm.testing import RanksFailed, run_ranks, this_rank

LAUNCHERS = ["spawn", "mpirun"]


def everything(extra: str) -> tuple[int, int, list[bytes], bytes, str]:
    group = this_rank()
    vendor = os.environ.get("HETCOMM_VENDOR", "")
    gathered = list(group.all_gather(vendor.encode() * (group.rank + 1)))
    group.barrier()
    last = group.broadcast(b"last" if group.rank == group.nranks - 1 else None, root=group.nranks - 1)
    return group.rank, group.nranks, gathered, last, extra + os.environ.get("COLOUR", "")


def world() -> tuple[int, int]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def fails_on_odd_ranks() -> str:
    if this_rank().rank % 2:
        raise ValueError(f"rank {this_rank().rank} is odd")
    return "even"


def first_dies() -> str:
    if this_rank().rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        this_rank().barrier()
    except PeerFailureError as error:
        return str(error)
    return "the barrier was completed"


def never_ends() -> None:
    this_rank().all_gather(str(os.getpid()).encode())
    signal.pause()


def returns_what_cannot_be_pickled() -> object:
    return lambda: None


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_results_come_in_rank_order(launcher: str) -> None:
    results = run_ranks(
        3, everything, "x", launcher=launcher, vendors=["a", None, "b"], env=[{}, {"COLOUR": "red"}, {"COLOUR": "blue"}]
    )
    gathered = [b"a", b"", b"bbb"]
    assert results == [
        (0, 3, gathered, b"last", "x"),
        (1, 3, gathered, b"last", "xred"),
        (2, 3, gathered, b"last", "xblue"),
    ]


def launched() -> str | None:
    found = Launcher.from_environ()
    return None if found is None else found.name


def test_a_job_that_a_rank_starts_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(1, 2, "127.0.0.1:9", "ab").items():
        monkeypatch.setenv(name, value)
    assert launched() == "hetcomm run"
    assert run_ranks(1, launched, launcher="spawn") == [None]


def test_mpi_numbers_the_ranks_the_same_way() -> None:
    assert run_ranks(4, world) == [(rank, 4) for rank in range(4)]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_failed_rank_shows_its_traceback(launcher: str) -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(4, fails_on_odd_ranks, launcher=launcher)
    assert {1, 3} <= set(caught.value.failures)
    for rank in (1, 3):
        assert f"ValueError: rank {rank} is odd" in caught.value.failures[rank]
        assert "in fails_on_odd_ranks" in str(caught.value)
    assert caught.value.results == {0: "even", 2: "even"}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_survivors_of_a_dead_rank_are_told(launcher: str) -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(2, first_dies, launcher=launcher, recovery=True)
    assert caught.value.failures == {0: "it ended without a result"}
    assert "rank 0 ended" in caught.value.results[1]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_hang_ends_at_the_deadline_and_shows_where(launcher: str) -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(2, never_ends, launcher=launcher, timeout=4.0)
    assert set(caught.value.failures) == {0, 1}
    assert "in never_ends" in caught.value.output


def test_a_result_that_cannot_be_sent_is_an_error_of_that_rank() -> None:
    with pytest.raises(RanksFailed, match="pickle"):
        run_ranks(1, returns_what_cannot_be_pickled, launcher="spawn")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"nranks": 0}, "less than one"),
        ({"nranks": 2, "vendors": ["mpi"]}, "once for each"),
        ({"nranks": 2, "env": [{}]}, "once for each"),
        ({"nranks": 1, "launcher": "ssh"}, "neither"),
        ({"nranks": 1, "target": lambda: None}, "top level"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(kwargs: dict[str, object], message: str) -> None:
    arguments = {"target": world, **kwargs}
    with pytest.raises(UsageError, match=message):
        run_ranks(**arguments)  # type: ignore[arg-type]


def test_a_process_outside_has_no_rank() -> None:
    with pytest.raises(UsageError, match="no rank"):
        this_rank()
