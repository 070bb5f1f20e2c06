"""Calls that are made again take the fast path: the same results, the same errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests import fast_path_jobs as jobs

from .ranks import once, run_in_turn
from .scripts import PATIENCE

JOBS = {"1+1": ("ucx", "mpi"), "2+2": ("mpi", "mpi", "ucx", "ucx"), "3": ("ucx",) * 3, "2 of mpi": ("mpi", "mpi")}
TARGETS: dict[str, list[Callable[[], Any]]] = {
    "1+1": [jobs.matrix, jobs.bad_arguments, jobs.late_rank, jobs.many_calls],
    "2+2": [jobs.matrix, jobs.side_by_side, jobs.ring, jobs.disagreement],
    "3": [jobs.matrix, jobs.a_rank_leaves],
    "2 of mpi": [jobs.matrix],
}


@once
def told(job: str) -> dict[str, list[Any]]:
    """What the targets of a job return, by their names."""
    targets = {target.__name__: target for target in TARGETS[job]}
    return run_in_turn(len(JOBS[job]), targets, vendors=JOBS[job], env=PATIENCE)


@pytest.mark.parametrize("name", ["1+1", "2+2", "3", pytest.param("2 of mpi", marks=pytest.mark.slow)])
def test_every_collective_again_and_again(name: str) -> None:
    for wrong, calls in told(name)["matrix"]:
        assert wrong == []
        assert calls == jobs.ROUNDS * 12 * (3 * len(jobs.DTYPES) + 1)


def test_vendors_are_called_again_and_again() -> None:
    env = {**PATIENCE, "HETCOMM_INLINE_BYTES": "0"}
    for wrong, _ in run_in_turn(2, {"matrix": jobs.matrix}, vendors=("mpi", "mpi"), env=env)["matrix"]:
        assert wrong == []


def test_what_is_refused_is_refused_after_a_call_like_it() -> None:
    for rank, found in enumerate(told("1+1")["bad_arguments"]):
        assert found["read"] == "0.0", rank
        refused = {name: text for name, text in found.items() if name != "read"}
        assert {name: text for name, text in refused.items() if not text.startswith("UsageError")} == {}


def test_ranks_that_make_different_calls_are_told() -> None:
    for first, second in told("2+2")["disagreement"]:
        assert first.startswith("PlanMismatchError")
        assert second.startswith("TransportError")


def test_the_others_are_told_when_a_rank_leaves() -> None:
    found = told("3")["a_rank_leaves"]
    assert found[1] == "none"
    for text in (found[0], found[2]):
        assert text.startswith("DepartedError")
        assert "rank 1 closes the communicator" in text


def test_a_rank_may_be_late() -> None:
    assert told("1+1")["late_rank"] == [16.0, 16.0]


def test_requests_works_messages_groups_and_recordings_beside_it() -> None:
    for wrong in told("2+2")["side_by_side"]:
        assert wrong == []


def test_messages_both_ways() -> None:
    for wrong in told("2+2")["ring"]:
        assert wrong == []


def test_tags_come_round() -> None:
    assert told("1+1")["many_calls"] == [(0, 70_000)] * 2
