"""Ranks are killed at random times, also while the others shrink: these agree on who is left, and their sums are right.

`FAULT_SHRINKS` is how many jobs there are, 3 unless set; `python -m tests.faults.shrinks` prints how soon, too.
"""

from __future__ import annotations

import os

import pytest

from ..vendors.needs import require_all
from .shrinks import job_of, run

JOBS = int(os.environ.get("FAULT_SHRINKS", "3"))


@pytest.mark.parametrize("seed", range(JOBS), ids=lambda seed: str(job_of(seed)))
def test_survivors_go_on(seed: int) -> None:
    job = job_of(seed)
    require_all(job.vendors)
    verdict = run(job)
    assert not [each for each in verdict.problems if "shared memory is left" not in each], str(verdict)
