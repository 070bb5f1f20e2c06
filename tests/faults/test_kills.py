"""Ranks are killed at random times: every survivor is told soon, and names exactly the dead.

`FAULT_KILLS` is how many runs there are, 6 unless set; `python -m tests.faults.kills` prints how soon, too.
"""

from __future__ import annotations

import os

import pytest

from ..vendors.needs import require_all
from .kills import BAD, case_of, run

RUNS = int(os.environ.get("FAULT_KILLS", "6"))


@pytest.mark.parametrize("seed", range(RUNS), ids=lambda seed: str(case_of(seed)))
def test_every_survivor_names_exactly_the_dead(seed: int) -> None:
    case = case_of(seed)
    require_all(case.vendors)
    verdict = run(case)
    assert verdict.kind not in BAD - {"left over"}, str(verdict)
