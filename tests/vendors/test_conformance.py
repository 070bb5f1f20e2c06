"""Every built-in vendor passes the suite that other packages' vendors run."""

from __future__ import annotations

import pytest

from hetcomm.testing import run_ranks

from . import jobs
from .needs import require


# Three ranks by default: what is wrong with two is wrong with three as well, and odd numbers find more.
@pytest.mark.parametrize("nranks", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5))])
@pytest.mark.parametrize("name", ["mpi", "oneccl", pytest.param("gloo", marks=pytest.mark.gloo)])
def test_vendor_does_what_it_declares(name: str, nranks: int) -> None:
    launcher = require(name)
    cases = run_ranks(nranks, jobs.conformance, name, launcher=launcher, timeout=240)
    assert len(set(cases)) == 1
    assert cases[0] > 3000


@pytest.mark.parametrize("name", ["mpi", "oneccl"])
def test_one_rank_needs_no_library(name: str) -> None:
    assert run_ranks(1, jobs.conformance, name, launcher=require(name), timeout=120)[0] > 2000


def test_long_calls_of_mpi_are_cut_and_stay_right() -> None:
    require("mpi")
    assert run_ranks(3, jobs.conformance, "mpi", 700, timeout=240)[0] > 3000
