"""Calls that are made again take the fast path: the same results, the same errors."""

from __future__ import annotations

import pytest

from hetcomm.testing import run_ranks
from tests import fast_path_jobs as jobs

ENV = {"HETCOMM_TIMEOUT": "40"}
JOBS = {"1+1": ("mpi", "ucx"), "2+2": ("mpi", "mpi", "ucx", "ucx"), "3": ("ucx",) * 3, "2 of mpi": ("mpi", "mpi")}


@pytest.mark.parametrize("name", ["1+1", "2+2", "3", pytest.param("2 of mpi", marks=pytest.mark.slow)])
def test_every_collective_again_and_again(name: str) -> None:
    vendors = JOBS[name]
    for wrong, calls in run_ranks(len(vendors), jobs.matrix, vendors=vendors, env=ENV, timeout=120):
        assert wrong == []
        assert calls == jobs.ROUNDS * 12 * (3 * len(jobs.DTYPES) + 1)


def test_vendors_are_called_again_and_again() -> None:
    env = {**ENV, "HETCOMM_INLINE_BYTES": "0"}
    for wrong, _ in run_ranks(2, jobs.matrix, vendors=("mpi", "mpi"), env=env, timeout=120):
        assert wrong == []


def test_what_is_refused_is_refused_after_a_call_like_it() -> None:
    for rank, found in enumerate(run_ranks(2, jobs.bad_arguments, vendors=("ucx", "mpi"), env=ENV, timeout=60)):
        assert found.pop("read") == "0.0", rank
        assert {name: text for name, text in found.items() if not text.startswith("UsageError")} == {}


def test_ranks_that_make_different_calls_are_told() -> None:
    for first, second in run_ranks(4, jobs.disagreement, vendors=JOBS["2+2"], env=ENV, timeout=60):
        assert first.startswith("PlanMismatchError")
        assert second.startswith("TransportError")


def test_the_others_are_told_when_a_rank_leaves() -> None:
    found = run_ranks(3, jobs.a_rank_leaves, vendors=JOBS["3"], env=ENV, timeout=60)
    assert found[1] == "none"
    for text in (found[0], found[2]):
        assert text.startswith("DepartedError")
        assert "rank 1 closes the communicator" in text


def test_a_rank_may_be_late() -> None:
    assert run_ranks(2, jobs.late_rank, vendors=("ucx", "mpi"), env=ENV, timeout=60) == [16.0, 16.0]


def test_requests_works_messages_groups_and_recordings_beside_it() -> None:
    for wrong in run_ranks(4, jobs.side_by_side, vendors=JOBS["2+2"], env=ENV, timeout=60):
        assert wrong == []


def test_messages_both_ways() -> None:
    for wrong in run_ranks(4, jobs.ring, vendors=JOBS["2+2"], env=ENV, timeout=60):
        assert wrong == []


def test_tags_come_round() -> None:
    assert run_ranks(2, jobs.many_calls, vendors=("ucx", "mpi"), env=ENV, timeout=60) == [(0, 70_000)] * 2
