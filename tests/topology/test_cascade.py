"""Broadcast and reduce on trees of clusters: proved, at the least volume, and the trees are what they say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcomm._conformance.strategies import ops_and_dtypes, topologies
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Schedule
from hetcomm.schedule.verify import verify
from hetcomm.topology import bounds, cascade
from hetcomm.topology.bounds import traffic
from hetcomm.topology.cascade import Twin
from hetcomm.topology.model import Topology
from hetcomm.types import DataType, ReduceKind

from .wide import grid, wide_topologies

KINDS = pytest.mark.parametrize("kind", [CollectiveKind.BROADCAST, CollectiveKind.REDUCE], ids=lambda kind: kind.value)
COUNTS = st.one_of(st.sampled_from([0, 1, 97, 10007]), st.integers(1 << 14, 1 << 20))


def schedule(collective: Collective, topology: Topology, in_place: tuple[bool, ...] = (False,)) -> Schedule:
    programs = tuple(
        cascade.plan(collective.with_in_place(in_place[rank % len(in_place)]), topology, rank)
        for rank in range(topology.nranks)
    )
    return Schedule(collective, programs, topology.communicators())


def check(whole: Schedule, topology: Topology) -> None:
    assert cascade.fits(whole.collective, topology)
    verify(whole)
    moved = traffic(whole.programs, topology)
    assert moved.total == bounds.least_total(whole.collective, topology)
    border = {rank for cluster in topology.clusters for rank in cluster.border}
    assert moved.sent.keys() | moved.received.keys() <= border


@KINDS
@settings(max_examples=50)
@given(data=st.data())
def test_few_clusters(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(st.one_of(topologies(min_clusters=2), wide_topologies()))
    op, dtype = data.draw(ops_and_dtypes())
    root = data.draw(st.integers(0, topology.nranks - 1))
    collective = Collective(kind, topology.nranks, data.draw(COUNTS), dtype, op if kind.reduces else None, root)
    in_place = tuple(data.draw(st.lists(st.booleans(), min_size=1, max_size=5)))
    check(schedule(collective, topology, in_place), topology)


@KINDS
@settings(max_examples=6)
@given(data=st.data())
def test_many_clusters(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(wide_topologies(min_clusters=33, max_clusters=70))
    root = data.draw(st.integers(0, topology.nranks - 1))
    op = ReduceKind.AVG if kind.reduces else None
    collective = Collective(kind, topology.nranks, data.draw(COUNTS), DataType.INT16, op, root)
    check(schedule(collective, topology), topology)


@KINDS
def test_long_vectors_pass_no_uplink_more_than_once_each_way(kind: CollectiveKind) -> None:
    topology = grid(20, 2)
    op = ReduceKind.SUM if kind.reduces else None
    collective = Collective(kind, 40, 1 << 16, DataType.INT64, op, 5)
    moved = traffic(schedule(collective, topology).programs, topology)
    assert max(*moved.out_of, *moved.into) <= bounds.vector_bytes(collective)


def test_what_does_not_fit_is_refused() -> None:
    gather = Collective(CollectiveKind.ALL_GATHER, 4, 8, DataType.INT8)
    assert not cascade.fits(gather, grid(2, 2))
    with pytest.raises(ValueError, match="no plan on trees for all_gather"):
        cascade.plan(gather, grid(2, 2), 0)


@pytest.mark.parametrize("nclusters", [2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 32, 33, 100])
def test_twin_trees(nclusters: int) -> None:
    for root in {0, 1, nclusters - 1}:
        inner: list[set[int]] = []
        for side in (0, 1):
            tree = Twin(nclusters, root, side)
            assert tree.depth(root) == 0
            children = {cluster: list(tree.children(cluster)) for cluster in range(nclusters)}
            assert sorted(child for found in children.values() for child in found) == sorted(
                set(range(nclusters)) - {root}
            )
            for cluster, found in children.items():
                assert all(tree.parent(child) == cluster for child in found)
                assert all(tree.depth(child) == tree.depth(cluster) + 1 <= tree.height for child in found)
            assert len(children[root]) == 1
            assert max(map(len, children.values())) <= 2
            inner.append({cluster for cluster, found in children.items() if found} - {root})
        assert not inner[0] & inner[1]
