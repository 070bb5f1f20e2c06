"""Heartbeats are mutual, span every pair of hosts, and are few where ranks are many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetcomm.health.partners import MESH, partners

placed = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(lambda homes: [f"h{home}" for home in homes])


@given(placed, st.sampled_from([0, 5, MESH]))
def test_they_are_mutual_and_join_all(homes: list[str], mesh: int) -> None:
    found = {rank: partners(homes, rank, mesh) for rank in range(len(homes))}
    for rank, others in found.items():
        assert rank not in others
        assert all(rank in found[other] for other in others)
        if len(set(homes)) > 1:
            assert {homes[other] for other in others} | {homes[rank]} == set(homes)
        else:
            assert not others
    reached, new = {0}, {0}
    while new:
        new = {other for rank in new for other in found[rank]} - reached
        reached |= new
    assert reached == (set(range(len(homes))) if len(set(homes)) > 1 else {0})


@given(placed)
def test_in_small_jobs_everybody_elsewhere_is_one(homes: list[str]) -> None:
    for rank, home in enumerate(homes):
        assert partners(homes, rank, 60) == [other for other, place in enumerate(homes) if place != home]


def test_in_large_jobs_they_are_few() -> None:
    homes = [f"h{rank // 8}" for rank in range(1000)]
    assert max(len(partners(homes, rank)) for rank in range(0, 1000, 7)) == 124 + 5
