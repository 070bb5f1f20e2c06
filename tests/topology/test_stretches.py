"""The rank order in stretches, and the exchanges that make prefixes of their sums."""

from __future__ import annotations

import pytest

from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.stretches import MOST_CHAINED, Exchange, depth, exchanges, needed, rank_order

SIZES = pytest.mark.parametrize("count", [*range(1, 40), 64, 100, 129])


def every(count: int) -> list[Exchange]:
    return sorted({each for number in range(count) for each in exchanges(count, number)})


def topology_of(*ranks: tuple[int, ...]) -> Topology:
    return Topology(tuple(Cluster(f"c{n}", "mpi", mine, (Uplink(mine[0]),)) for n, mine in enumerate(ranks)))


@SIZES
def test_what_a_stretch_gets_is_all_before_it_once(count: int) -> None:
    held = [(number, number + 1) for number in range(count)]
    for each in every(count):
        (start, stop), (first, end) = held[each.source], held[each.target]
        assert stop == first
        held[each.target] = start, end
    assert held == [(0, number + 1) for number in range(count)]


@SIZES
def test_few_exchanges_or_few_turns(count: int) -> None:
    found, latest = every(count), [0] * count
    for each in found:
        latest[each.target] = max(latest[each.target], latest[each.source]) + 1
    assert max(latest) <= depth(count)
    if count <= MOST_CHAINED:
        assert len(found) == count - 1
    else:
        assert len(found) < 2 * (count - 1)
        assert depth(count) < 2 * count.bit_length()


def test_each_stretch_knows_its_own_exchanges() -> None:
    for count in (5, 23):
        for number in range(count):
            mine = [each for each in every(count) if number in (each.source, each.target)]
            assert sorted(exchanges(count, number)) == mine


def test_stretches_of_clusters_that_take_turns() -> None:
    order = rank_order(topology_of((0, 3, 4), (1, 2), (5,)))
    assert [(s.start, s.stop, s.cluster) for s in order.stretches] == [(0, 1, 0), (1, 3, 1), (3, 5, 0), (5, 6, 2)]
    assert order.of_cluster == ((0, 2), (1,), (3,))
    assert order.longest == 2
    assert [order.number(rank) for rank in range(6)] == [0, 1, 1, 2, 2, 3]


def test_what_must_cross() -> None:
    assert needed(topology_of((0, 1), (2, 3))) == ([1, 0], [0, 1])
    assert needed(topology_of((0, 2), (1, 3))) == ([2, 1], [1, 2])
    assert needed(topology_of((2, 3), (0, 1, 4))) == ([1, 1], [1, 1])
