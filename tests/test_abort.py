"""`Communicator.abort` from another thread ends whatever call is blocked, and the other ranks learn who has left."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests import abort_jobs as jobs

from .ranks import once, run_in_turn
from .scripts import PATIENCE
from .vendors.needs import require


@pytest.mark.parametrize("name", jobs.CALLS)
def test_a_blocked_call_ends(name: str) -> None:
    _check(*_told(("mpi", "ucx"), jobs.CALLS, 1000)[name])


@pytest.mark.parametrize("vendor", ["mpi", "oneccl", pytest.param("gloo", marks=[pytest.mark.slow, pytest.mark.gloo])])
def test_a_vendors_call_ends(vendor: str) -> None:
    name = "known all_reduce"
    _check(*_told((vendor, vendor), (name,), 300_000, "0")[name])


@once
def _told(
    vendors: tuple[str, str], names: tuple[str, ...], count: int, inline: str | None = None
) -> dict[str, list[Any]]:
    """What both ranks are told, by the call that is blocked."""
    for vendor in dict.fromkeys(vendors):
        require(vendor)
    env = PATIENCE if inline is None else PATIENCE | {"HETCOMM_INLINE_BYTES": inline}
    return run_in_turn(2, {name: partial(jobs.blocked, name, count) for name in names}, vendors=vendors, env=env)


def _check(first: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    kind, text, _, seconds, same = first
    assert kind == "TransportError", text
    assert "aborted it" in text
    assert seconds < 30
    assert same
    kind, text, ranks, seconds, same = other
    assert (kind, ranks) == ("PeerFailureError", [0]), text
    assert "it aborted it" in text
    assert seconds < 30
    assert same
