"""Plans in rounds round the clusters: proved, at the least volume, and as few rounds as they say."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcomm._conformance.reference import reference, run_schedule
from hetcomm._conformance.strategies import counts, ops_and_dtypes, topologies
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Program, Recv, Schedule, Send, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.topology import bounds, circulant
from hetcomm.topology.bounds import traffic
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import DataType, ReduceKind

from .wide import grid, wide_topologies

KINDS = (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_GATHER)


@st.composite
def collectives(draw: st.DrawFn, nranks: int) -> Collective:
    """Of the three kinds, uniform or with counts."""
    kind = draw(st.sampled_from(KINDS))
    op, dtype = draw(ops_and_dtypes())
    each = None
    if kind is not CollectiveKind.ALL_REDUCE and draw(st.booleans()):
        some = draw(st.lists(st.sampled_from([0, 1, 2, 31, 1009]), min_size=1, max_size=7))
        each = tuple(some[rank % len(some)] for rank in range(nranks))
    count = draw(counts(nranks)) if each is None else sum(each)
    return Collective(kind, nranks, count, dtype, op if kind.reduces else None, counts=each)


def schedule(collective: Collective, topology: Topology, in_place: tuple[bool, ...] = (False,)) -> Schedule:
    programs = tuple(
        circulant.plan(collective.with_in_place(in_place[rank % len(in_place)]), topology, rank)
        for rank in range(topology.nranks)
    )
    return Schedule(collective, programs, topology.communicators())


def check(whole: Schedule, topology: Topology) -> None:
    verify(whole)
    moved = traffic(whole.programs, topology)
    assert moved.total == bounds.least_total(whole.collective, topology)
    border = {rank for cluster in topology.clusters for rank in cluster.border}
    assert moved.sent.keys() | moved.received.keys() <= border


@given(data=st.data())
def test_few_clusters(data: st.DataObject) -> None:
    topology = data.draw(wide_topologies())
    in_place = tuple(data.draw(st.lists(st.booleans(), min_size=1, max_size=5)))
    check(schedule(data.draw(collectives(topology.nranks)), topology, in_place), topology)


@settings(max_examples=12)
@given(data=st.data())
def test_many_clusters(data: st.DataObject) -> None:
    topology = data.draw(wide_topologies(min_clusters=33, max_clusters=70))
    check(schedule(data.draw(collectives(topology.nranks)), topology), topology)


@settings(max_examples=30)
@given(data=st.data())
def test_scattered_ranks_fit_an_all_reduce_only(data: st.DataObject) -> None:
    topology = data.draw(topologies(min_clusters=2))
    op, dtype = data.draw(ops_and_dtypes())
    collective = Collective(CollectiveKind.ALL_REDUCE, topology.nranks, data.draw(counts(topology.nranks)), dtype, op)
    assert circulant.fits(collective, topology)
    check(schedule(collective, topology), topology)
    gather = Collective(CollectiveKind.ALL_GATHER, topology.nranks, 5, dtype)
    consecutive = all(isinstance(cluster.ranks, range) for cluster in topology.clusters)
    assert circulant.fits(gather, topology) == consecutive
    if not consecutive:
        with pytest.raises(ValueError, match="not consecutive"):
            circulant.plan(gather, topology, 0)


def test_what_does_not_fit_is_refused() -> None:
    broadcast = Collective(CollectiveKind.BROADCAST, 4, 8, DataType.INT8, root=0)
    assert not circulant.fits(broadcast, grid(2, 2))
    with pytest.raises(ValueError, match="no circulant plan for broadcast"):
        circulant.plan(broadcast, grid(2, 2), 0)
    assert not circulant.fits(Collective(CollectiveKind.ALL_GATHER, 4, 8, DataType.INT8), grid(1, 4))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
@settings(max_examples=5)
@given(topology=wide_topologies(max_clusters=6, max_ranks=3), count=st.integers(0, 40), seed=st.integers(0, 99))
def test_numbers_are_right(kind: CollectiveKind, topology: Topology, count: int, seed: int) -> None:
    op = ReduceKind.SUM if kind.reduces else None
    collective = Collective(kind, topology.nranks, count, DataType.INT32, op)
    inputs = [numpy.arange(collective.in_count(rank), dtype="i4") % 7 + rank for rank in range(topology.nranks)]
    found = run_schedule(schedule(collective, topology), list(inputs), order_seed=seed)
    for mine, right in zip(found, reference(collective, list(inputs)), strict=True):
        assert (mine is None) == (right is None)
        if mine is not None and right is not None:
            numpy.testing.assert_array_equal(mine, right)


@pytest.mark.parametrize("nclusters", [2, 3, 5, 8, 31, 64, 1000])
def test_rounds(nclusters: int) -> None:
    found = list(circulant.rounds(nclusters))
    assert len(found) == math.ceil(math.log2(nclusters))
    assert sum(nregions for _, nregions in found) == nclusters - 1
    assert found[-1] == (1, 1)


@pytest.mark.parametrize("border", [None, 1, 2], ids=["rails", "one border rank", "two border ranks"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_a_round_is_one_message_between_two_clusters(kind: CollectiveKind, border: int | None) -> None:
    topology = grid(37, 4, border)
    count = 1 << 20 if kind is CollectiveKind.ALL_REDUCE else 1 << 10
    collective = Collective(kind, 148, count, DataType.INT64, ReduceKind.MAX if kind.reduces else None)
    rounds = math.ceil(math.log2(37)) * (2 if kind is CollectiveKind.ALL_REDUCE else 1)
    for rank in (0, 18 * 4, 36 * 4):
        program = circulant.plan(collective, topology, rank)
        between = [
            type(step)
            for step in program.steps
            if isinstance(step, (Send, Recv)) and topology.cluster_index(step.peer) != topology.cluster_index(rank)
        ]
        # Elements left over by a division are the last border rank's, and may be a message of their own.
        assert rounds <= between.count(Send) <= rounds * (1 if border in (None, 1) else 2)
        assert rounds <= between.count(Recv) <= rounds * (1 if border in (None, 1) else 2)


def test_on_rails_a_cluster_hands_nothing_on() -> None:
    collective = Collective(CollectiveKind.ALL_REDUCE, 40 * 4, 1 << 16, DataType.FLOAT32, ReduceKind.SUM)
    program: Program = circulant.plan(collective, grid(40, 4), 7)
    calls = [step.collective.kind for step in program.steps if isinstance(step, VendorCall)]
    assert calls == [CollectiveKind.REDUCE_SCATTER] * 7 + [CollectiveKind.ALL_GATHER]
    assert {step.peer % 4 for step in program.steps if isinstance(step, Recv)} == {2, 3}


@settings(max_examples=30)
@given(topology=wide_topologies(max_clusters=9), count=st.integers(1 << 14, 1 << 16))
def test_border_ranks_share_the_traffic_by_their_uplinks(topology: Topology, count: int) -> None:
    collective = Collective(CollectiveKind.ALL_REDUCE, topology.nranks, count, DataType.INT8, ReduceKind.SUM)
    moved = traffic(schedule(collective, topology).programs, topology)
    for index, cluster in enumerate(topology.clusters):
        messages = 4 * math.ceil(math.log2(len(topology.clusters))) * len(cluster.border)
        fair_out = math.fsum(uplink.bandwidth_out for uplink in cluster.uplinks)
        for uplink in cluster.uplinks:
            fair = moved.out_of[index] * uplink.bandwidth_out / fair_out
            assert abs(moved.sent.get(uplink.rank, 0) - fair) <= messages


def test_unequal_directions_are_told_apart() -> None:
    slow_in = (Uplink(0, 3e9, 1e9), Uplink(1, 1e9, 3e9))
    clusters = (Cluster("a", "mpi", range(2), slow_in), Cluster("b", "mpi", (2,), (Uplink(2),)))
    topology = Topology((*clusters, Cluster("c", "mpi", (3,), (Uplink(3),))))
    collective = Collective(CollectiveKind.ALL_REDUCE, 4, 12000, DataType.INT8, ReduceKind.SUM)
    whole = schedule(collective, topology)
    check(whole, topology)
    moved = traffic(whole.programs, topology)
    assert (moved.sent[0], moved.sent[1]) == pytest.approx((12000, 4000), abs=8)
    assert (moved.received[0], moved.received[1]) == pytest.approx((4000, 12000), abs=8)
