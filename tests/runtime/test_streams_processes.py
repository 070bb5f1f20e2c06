"""Calls on device arrays in real processes: they return at once, keep the order of streams, and never hang."""

from __future__ import annotations

import pytest

from hetcomm.testing import run_ranks

from ..scripts import DEADLINE
from . import device_jobs

JOBS = {
    "streams+ucx": ("fake", "fake", "ucx", "ucx"),
    "streams+host": ("fake", "fake", "mpi", "mpi"),
}


@pytest.fixture(scope="module", params=JOBS)
def failures(request: pytest.FixtureRequest) -> dict[str, str]:
    """What went wrong in one job, by scenario: all of them run in one start of the ranks."""
    roles = JOBS[request.param]
    results = run_ranks(len(roles), device_jobs.run, roles, timeout=DEADLINE)
    return {
        name: "\n".join(f"--- rank {rank} ---\n{said[name]}" for rank, said in enumerate(results) if name in said)
        for name in {name for said in results for name in said}
    }


@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in device_jobs.SCENARIOS])
def test_calls_keep_the_order_of_streams(failures: dict[str, str], scenario: str) -> None:
    assert scenario not in failures, failures[scenario]
