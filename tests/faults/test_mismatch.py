"""Ranks whose calls disagree are all told and use no wrong value; ranks whose calls agree never are.

`FAULT_PROGRAMS` is how many programs of either kind are run, 150 unless set; 10,000 at night. What a program that fails
did is in the message, with the command that runs it again.
"""

from __future__ import annotations

import math
import os

import pytest

from ..vendors.needs import require_all
from .campaign import BAD, run_job
from .programs import BLOCK, job_of

PROGRAMS = int(os.environ.get("FAULT_PROGRAMS", "150"))
JOBS = max(6, math.ceil(PROGRAMS / BLOCK))
BLOCKS = [range(job * BLOCK, job * BLOCK + math.ceil(PROGRAMS / JOBS)) for job in range(JOBS)]
"""The seeds of each job: of unlike jobs, however few programs there are."""

NOT_NAMED = {"left", "other", "unnamed"}
"""Every rank got a typed error in time, but one that does not name both calls. Hardly any is left; which kinds there
are, and how soon ranks are told, is what `campaign` prints."""


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_ranks_that_disagree_are_told_and_others_never(seeds: range) -> None:
    job = job_of(seeds.start)
    require_all(job.vendors)
    verdicts = run_job(job, seeds, seeds)
    right = [verdict for verdict in verdicts if verdict.program.mutation is None]
    changed = [verdict for verdict in verdicts if verdict.program.mutation is not None]
    assert len(right) == len(changed) == len(seeds)
    failed = [each for each in right if each.kind != "right"]
    failed += [each for each in changed if each.kind in BAD - NOT_NAMED]
    assert not failed, "\n\n".join([f"{len(failed)} of {len(verdicts)} programs", *map(str, failed)])
    unnamed = [each for each in changed if each.kind in NOT_NAMED]
    assert len(unnamed) <= math.ceil(len(changed) * 0.02), "\n\n".join(
        [f"{len(unnamed)} do not name both sides", *map(str, unnamed)]
    )
