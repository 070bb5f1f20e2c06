"""`Communicator.abort` from another thread ends whatever call is blocked, and the other ranks learn who has left."""

from __future__ import annotations

import pytest

from hetcomm.testing import run_ranks
from tests import abort_jobs as jobs

from .vendors.needs import require

ENV = {"HETCOMM_TIMEOUT": "30"}


@pytest.mark.parametrize("name", jobs.CALLS)
def test_a_blocked_call_ends(name: str) -> None:
    _check(name, ("mpi", "ucx"), {}, 1000)


@pytest.mark.parametrize("vendor", ["mpi", "oneccl", pytest.param("gloo", marks=pytest.mark.gloo)])
def test_a_vendors_call_ends(vendor: str) -> None:
    _check("known all_reduce", (vendor, vendor), {"HETCOMM_INLINE_BYTES": "0"}, 300_000)


def _check(name: str, vendors: tuple[str, str], env: dict[str, str], count: int) -> None:
    for vendor in dict.fromkeys(vendors):
        require(vendor)
    told = run_ranks(2, jobs.blocked, name, count, vendors=vendors, env={**ENV, **env}, timeout=60)
    kind, text, _, seconds, same = told[0]
    assert kind == "TransportError", text
    assert "aborted it" in text
    assert seconds < 10
    assert same
    kind, text, ranks, seconds, same = told[1]
    assert (kind, ranks) == ("PeerFailureError", [0]), text
    assert "it aborted it" in text
    assert seconds < 10
    assert same
