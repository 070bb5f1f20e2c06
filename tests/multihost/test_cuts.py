"""A link between two hosts that is cut in the middle of calls: the right values or a typed error, and never a hang.

HETCOMM_LAB=path/to/hosts.sh pytest tests/multihost/test_cuts.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from . import cuts

LAB = os.environ.get("HETCOMM_LAB")
pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(not LAB, reason="HETCOMM_LAB does not name a script that makes hosts"),
]
EVERY = {0, 1, 2, 3}


@pytest.fixture(scope="module")
def hosts() -> Iterator[cuts.Lab]:
    assert LAB is not None
    with cuts.lab(LAB) as made:
        yield made


def finished(outcome: cuts.Outcome, ranks: set[int] = EVERY) -> None:
    assert set(outcome.told) == ranks, (outcome.told, outcome.output)
    assert all(told["wrong"] == 0 for told in outcome.told.values()), outcome.told


@pytest.mark.parametrize("case", ["0.5", "one-way 0.5", "stop 4"])
def test_what_is_over_in_time_was_nothing(hosts: cuts.Lab, case: str) -> None:
    """A rank that is stopped is alive for longer than one that is cut off: its host answers."""
    outcome = cuts.run(hosts, case)
    finished(outcome)
    assert outcome.errors() == dict.fromkeys(range(4)), outcome.errors()


@pytest.mark.parametrize("count", [10, 1_000_000])
@pytest.mark.parametrize("case", ["4", "one-way 4", pytest.param("30", marks=pytest.mark.slow), "one-way 30"])
def test_who_is_cut_off_is_named_on_both_sides(hosts: cuts.Lab, case: str, count: int) -> None:
    outcome = cuts.run(hosts, case, count=count)
    finished(outcome)
    for rank, error in outcome.errors().items():
        assert error is not None, outcome.told
        kind, ranks, text = error
        assert kind == "PeerFailureError", (rank, error)
        assert ranks == ([2, 3] if rank < 2 else [0, 1]), (rank, error)
        assert "on host h2" in text if rank < 2 else "on host h1" in text
        assert outcome.told[rank]["left"] == ([0, 1] if rank < 2 else [2, 3]), "who goes on on its side"
    assert max(outcome.seconds) < 15, "no limit but a generous one"


def test_who_dies_on_the_other_host_is_named(hosts: cuts.Lab) -> None:
    outcome = cuts.run(hosts, "kill")
    finished(outcome, {0, 1, 2})
    for rank, error in outcome.errors().items():
        assert error is not None, outcome.told
        assert error[:2] == ["PeerFailureError", [3]] or error[:2] == ("PeerFailureError", [3]), (rank, error)
        assert outcome.told[rank]["left"] == [0, 1, 2]
