"""Every built-in vendor passes the suite that other packages' vendors run."""

from __future__ import annotations

import pytest

from hetcomm.testing import run_ranks

from ..scripts import DEADLINE
from . import jobs
from .needs import require

LIBRARIES = pytest.mark.parametrize("name", ["mpi", "oneccl", pytest.param("gloo", marks=pytest.mark.gloo)])


# Three ranks: what is wrong with two is wrong with three as well, and odd numbers find more.
@LIBRARIES
def test_vendor_does_what_it_declares(name: str) -> None:
    """Every collective, dtype and op, with some of the counts, roots and places."""
    cases = run_ranks(3, jobs.conformance, name, None, 8, launcher=require(name), timeout=DEADLINE)
    assert len(set(cases)) == 1
    assert cases[0] > 600


@pytest.mark.slow
@pytest.mark.parametrize("nranks", [2, 3, 5])
@LIBRARIES
def test_vendor_does_all_that_it_declares(name: str, nranks: int) -> None:
    cases = run_ranks(nranks, jobs.conformance, name, launcher=require(name), timeout=DEADLINE)
    assert len(set(cases)) == 1
    assert cases[0] > 3000


@pytest.mark.parametrize("name", ["mpi", "oneccl"])
def test_one_rank_needs_no_library(name: str) -> None:
    assert run_ranks(1, jobs.conformance, name, launcher=require(name), timeout=DEADLINE)[0] > 2000


def test_long_calls_of_mpi_are_cut_and_stay_right() -> None:
    require("mpi")
    assert run_ranks(3, jobs.conformance, "mpi", 700, 4, timeout=DEADLINE)[0] > 400
