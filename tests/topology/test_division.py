"""Divisions that are asked for single shares say the same as a list of all shares."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hetcomm.topology.division import Division, arriving, blocks, leaving
from hetcomm.topology.model import Cluster, Uplink

from .wide import grid


@st.composite
def divisions(draw: st.DrawFn) -> Division:
    nmembers = draw(st.integers(1, 9))
    members = draw(st.permutations(range(nmembers)))
    weights: tuple[int, ...] = ()
    if draw(st.booleans()):
        each = draw(st.lists(st.sampled_from([1, 2, 1 << 40, 1 << 52]), min_size=nmembers, max_size=nmembers))
        weights = tuple(sum(each[:k]) for k in range(nmembers + 1))
    return Division(members, draw(st.integers(0, 200)), weights, draw(st.integers(0, nmembers - 1)))


@given(division=divisions(), data=st.data())
def test_shares_are_found_without_listing_them(division: Division, data: st.DataObject) -> None:
    nmembers = len(division.members)
    listed = [division.share((number + division.turn) % nmembers) for number in range(nmembers)]
    assert listed[0][0] == 0
    assert listed[-1][1] == division.count
    assert all(one[1] == other[0] for one, other in pairwise(listed))
    start = data.draw(st.integers(0, division.count))
    stop = data.draw(st.integers(start, division.count))
    wanted = [
        (max(start, a), min(stop, b), division.members[(number + division.turn) % nmembers])
        for number, (a, b) in enumerate(listed)
        if max(start, a) < min(stop, b)
    ]
    assert list(division.between(start, stop)) == wanted


@given(speeds=st.lists(st.floats(1e6, 1e12), min_size=1, max_size=8), count=st.integers(0, 1 << 40))
def test_shares_are_in_proportion_to_the_uplinks(speeds: list[float], count: int) -> None:
    cluster = Cluster("a", "mpi", range(8), tuple(Uplink(rank, speed) for rank, speed in enumerate(speeds)))
    for number, speed in enumerate(speeds):
        start, stop = leaving(cluster, count).share(number)
        slack = len(speeds) if cluster.is_even else 2 + count * 1e-14
        assert abs(stop - start - count * speed / math.fsum(speeds)) <= slack + 1e-9
        start, stop = arriving(cluster, count).share(number)
        assert abs(stop - start - count / len(speeds)) <= slack


def test_equal_uplinks_leave_the_rest_to_the_last() -> None:
    cluster = grid(1, 4).clusters[0]
    assert [leaving(cluster, 11).share(number) for number in range(4)] == [(0, 2), (2, 4), (4, 6), (6, 11)]
    assert [leaving(cluster, 3).share(number) for number in range(4)] == [(0, 0), (0, 0), (0, 0), (0, 3)]


def test_blocks_may_be_empty() -> None:
    division = blocks(range(4, 8), (0, 3, 3, 10, 10))
    assert [division.share(number) for number in range(4)] == [(0, 3), (3, 3), (3, 10), (10, 10)]
    assert list(division.between(2, 9)) == [(2, 3, 4), (3, 9, 6)]
    assert list(blocks(range(2), (0, 0, 0)).between(0, 0)) == []
