"""A rank that is stopped is noticed; if it goes on in time nothing else happens, if not it is named."""

from __future__ import annotations

import logging
import socket

import pytest

from hetcomm.testing import run_ranks

from . import stops

MIXES = {"mpi and oneccl": ("mpi mpi oneccl oneccl", 0), "ucx": ("ucx ucx ucx ucx", None)}


def env(inline: int | None) -> dict[str, str]:
    return {} if inline is None else {"HETCOMM_INLINE_BYTES": str(inline)}


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("count", [10, pytest.param(300_000, marks=pytest.mark.slow)])
def test_who_goes_on_in_time_was_never_dead(name: str, count: int) -> None:
    vendors, inline = MIXES[name]
    told = run_ranks(4, stops.go_on, 2, 1.2, count, vendors=vendors.split(), env=env(inline), timeout=60)
    assert [each["wrong"] for each in told] == [0] * 4
    for rank in (0, 1, 3):
        said = told[rank]["said"]
        warnings = [text for level, text in said if level == logging.WARNING]
        assert len(warnings) == 1, said
        assert f"[rank {rank}] rank 2 on host {socket.gethostname()} (process " in warnings[0]
        assert ") is stopped; " in warnings[0]
        assert any("rank 2 goes on" in text for _, text in said), said


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("how", ["stopped", "busy", "elsewhere"])
def test_who_does_not_come_is_named(name: str, how: str) -> None:
    if (name, how) == ("ucx", "busy"):
        pytest.skip("as with the other mix")
    vendors, inline = MIXES[name]
    told = run_ranks(4, stops.wait_in_vain, 2, 10, how, vendors=vendors.split(), env=env(inline), timeout=60)
    for rank in (0, 1, 3):
        kind, ranks, text = told[rank]["error"]
        assert kind == "CollectiveTimeoutError", text
        assert ranks == [2], text
        assert "[rank" in text
        assert told[rank]["seconds"] < stops.TIMEOUT + 10, "no limit but a generous one"
        ((who, state, called, host, last),) = told[rank]["whereabouts"] or [(2, None, None, None, None)]
        if state is None:  # told by another rank, which had asked
            continue
        assert who == 2
        assert host == socket.gethostname()
        assert state == ("stopped" if how == "stopped" else "alive"), text
        assert called == 5, text
        assert "all_reduce" in last, text
    if how == "stopped":
        said = [each for rank in (0, 1, 3) for each in told[rank]["said"]]
        assert any("stopped" in text for _, level, text in said if level == logging.WARNING)
