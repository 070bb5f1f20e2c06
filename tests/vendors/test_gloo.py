"""What is particular to Gloo: it shares the process with PyTorch's own groups, and listens where it is told to."""

from __future__ import annotations

import pytest

from hetcomm.testing import RanksFailed, run_ranks

from ..scripts import DEADLINE
from . import jobs
from .needs import require

pytestmark = pytest.mark.gloo


def test_the_default_process_group_of_the_program_goes_on_working() -> None:
    results = run_ranks(2, jobs.beside_a_process_group, launcher=require("gloo"), timeout=DEADLINE)
    assert results == [{"ours": [3.0] * 5, "default": [3.0] * 5, "again": [30.0], "alone": False}] * 2


def test_calls_keep_their_order_when_many_are_under_way_over_two_interfaces() -> None:
    env = {"GLOO_SOCKET_IFNAME": "lo,lo"}
    assert run_ranks(3, jobs.many_under_way, "gloo", launcher=require("gloo"), env=env, timeout=DEADLINE) == [120] * 3


def test_a_wrong_interface_and_a_dead_rank_are_errors_of_the_others() -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(2, jobs.unlucky, launcher=require("gloo"), recovery=True, timeout=DEADLINE)
    misnamed, died = caught.value.results[0]
    assert misnamed.startswith("vendor 'gloo' failed on rank 1 of its cluster: Gloo failed in using GLOO_SOCKET_IFNAME")
    assert "nowhere0" in misnamed
    assert died.startswith("Gloo failed in")
