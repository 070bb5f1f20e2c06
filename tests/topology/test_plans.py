"""Every schedule the planners make is proved, and moves the least there can be between clusters."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hetcomm._conformance.reference import numpy_dtype, reference, run_schedule
from hetcomm._conformance.strategies import collectives, topologies
from hetcomm.errors import TopologyError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import CommRole, Program, Recv, Schedule, Send, Step, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.topology import bounds
from hetcomm.topology.bounds import traffic
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.select import plan, schedule, why
from hetcomm.types import DataType, ReduceKind

KINDS = pytest.mark.parametrize("kind", list(CollectiveKind), ids=lambda kind: kind.value)


def clusters_of(*sizes: int, border: int | None = None) -> Topology:
    """Clusters of consecutive ranks with equal uplinks at their first `border` ranks, or at all."""
    found, first = [], 0
    for number, size in enumerate(sizes):
        ranks = range(first, first + size)
        found.append(Cluster(f"c{number}", "mpi", ranks, tuple(Uplink(rank) for rank in ranks[: border or size])))
        first += size
    return Topology(tuple(found))


def outside(step: Step) -> object:
    """What other ranks see of a step."""
    match step:
        case Send():
            return "send", step.peer, step.channel, step.src.count
        case Recv():
            return "recv", step.peer, step.channel, step.dst.count
        case VendorCall():
            return step.comm, step.collective.with_in_place(False)
    return None


@KINDS
@given(data=st.data())
def test_schedules_are_proved_and_move_the_least(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(topologies())
    collective = data.draw(collectives(topology.nranks, kind=kind))
    in_place = data.draw(st.lists(st.booleans(), min_size=topology.nranks, max_size=topology.nranks))
    programs = tuple(plan(collective.with_in_place(here), topology, rank) for rank, here in enumerate(in_place))
    verify(Schedule(collective, programs, topology.communicators()))
    moved = traffic(programs, topology)
    assert moved.total == bounds.least_total(collective, topology)
    least = (*bounds.least_out(collective, topology), *bounds.least_in(collective, topology))
    for moved_here, least_here in zip((*moved.out_of, *moved.into), least, strict=True):
        assert moved_here >= least_here
    assert "between clusters" in why(collective, topology) or len(topology.clusters) == 1 or not collective.count


@KINDS
@given(data=st.data())
def test_what_other_ranks_see_does_not_depend_on_in_place(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(topologies(max_clusters=3))
    collective = data.draw(collectives(topology.nranks, kind=kind))
    for rank in range(topology.nranks):
        apart = [outside(step) for step in plan(collective, topology, rank).steps]
        at_once = [outside(step) for step in plan(collective.with_in_place(True), topology, rank).steps]
        assert list(filter(None, apart)) == list(filter(None, at_once))


@KINDS
@given(data=st.data())
def test_border_ranks_share_the_traffic_by_their_uplinks(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(topologies(min_clusters=2))
    collective = data.draw(collectives(topology.nranks, kind=kind))
    moved = traffic(schedule(collective, topology).programs, topology)
    nclusters, itemsize = len(topology.clusters), collective.dtype.itemsize
    for index, cluster in enumerate(topology.clusters):
        slack = 2 * nclusters * len(cluster) * itemsize  # one division's rounding for each cluster, both ways
        ways = (
            (moved.out_of[index], moved.sent, {up.rank: up.bandwidth_out for up in cluster.uplinks}),
            (moved.into[index], moved.received, {up.rank: up.bandwidth_in for up in cluster.uplinks}),
        )
        for total, by_rank, bandwidths in ways:
            assert sum(by_rank.get(rank, 0) for rank in bandwidths) == total  # no other rank takes part
            for rank, bandwidth in bandwidths.items():
                fair = total * bandwidth / math.fsum(bandwidths.values())
                assert abs(by_rank.get(rank, 0) - fair) <= slack + 1e-5 * total


@given(topology=topologies(min_clusters=2), count=st.integers(6, 1 << 18))
def test_remote_partials_are_added_on_the_border_communicator(topology: Topology, count: int) -> None:
    collective = Collective(CollectiveKind.ALL_REDUCE, topology.nranks, count, DataType.FLOAT64, ReduceKind.SUM)
    for rank in range(topology.nranks):
        cluster, program = topology.cluster_of(rank), plan(collective, topology, rank)
        calls = [step for step in program.steps if isinstance(step, VendorCall)]
        on_border = [call for call in calls if call.comm == cluster.border_id]
        assert bool(on_border) == (len(cluster.border) > 1 and rank in cluster.border)
        assert all(call.collective.kind.reduces for call in on_border)
        received = sum(isinstance(step, Recv) and step.channel == 0 for step in program.steps)
        assert len(cluster.border) > 1 or not received or not on_border


@pytest.mark.parametrize("kind", [CollectiveKind.BROADCAST, CollectiveKind.REDUCE], ids=lambda kind: kind.value)
@given(data=st.data())
def test_long_vectors_cross_the_roots_uplinks_once(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(topologies(min_clusters=2))
    root = data.draw(st.integers(0, topology.nranks - 1))
    op = ReduceKind.AVG if kind.reduces else None
    collective = Collective(kind, topology.nranks, data.draw(st.integers(1 << 14, 1 << 20)), DataType.FLOAT32, op, root)
    moved = traffic(schedule(collective, topology).programs, topology)
    if kind is CollectiveKind.BROADCAST:
        assert moved.out_of[topology.cluster_index(root)] == bounds.vector_bytes(collective)
        assert moved.into == bounds.least_in(collective, topology)
    else:
        assert moved.into[topology.cluster_index(root)] == bounds.vector_bytes(collective)
        assert moved.out_of == bounds.least_out(collective, topology)


@given(data=st.data())
def test_clusters_own_equal_parts(data: st.DataObject) -> None:
    topology = data.draw(topologies(min_clusters=2))
    count = data.draw(st.integers(1 << 16, 1 << 20))
    collective = Collective(CollectiveKind.ALL_REDUCE, topology.nranks, count, DataType.INT8, ReduceKind.MAX)
    moved = traffic(schedule(collective, topology).programs, topology)
    nclusters = len(topology.clusters)
    fair = 2 * (nclusters - 1) * count / nclusters
    for moved_here in (*moved.out_of, *moved.into):
        assert abs(moved_here - fair) <= 0.07 * fair


@KINDS
@pytest.mark.parametrize(
    "topology",
    [
        clusters_of(2, 2),
        clusters_of(2, 2, border=1),
        clusters_of(1, 3),
        clusters_of(3, 1, 2),
        clusters_of(2, 2, 2, 2, 2),
        clusters_of(5, 5, border=3),
    ],
    ids=["2+2", "2+2 with one border rank", "1+3", "3+1+2", "more clusters than border ranks", "3 of 5 border"],
)
def test_numbers_come_out_right(kind: CollectiveKind, topology: Topology) -> None:
    ops = list(ReduceKind) if kind.reduces else [None]
    for seed, op in enumerate(ops):
        for count in (1, 5, 37):
            root = topology.nranks - 1 if kind.has_root else None
            collective = Collective(kind, topology.nranks, count, DataType.INT32, op, root)
            rng = numpy.random.default_rng(seed)
            inputs = [
                rng.integers(-9, 9, n).astype(numpy_dtype(collective.dtype)) if n else None
                for n in map(collective.in_count, range(topology.nranks))
            ]
            factors = [2 + rank for rank in range(topology.nranks)]
            expected = reference(collective, inputs, factors)
            found = run_schedule(schedule(collective.with_in_place(seed % 2 == 1), topology), inputs, factors, seed)
            for one, other in zip(expected, found, strict=True):
                numpy.testing.assert_array_equal(one, other)


def test_equal_clusters_of_border_ranks_take_whole_vendor_calls() -> None:
    topology = clusters_of(2, 2)
    collective = Collective(CollectiveKind.ALL_REDUCE, 4, 1 << 20, DataType.FLOAT32, ReduceKind.SUM)
    program = plan(collective, topology, 0)
    kinds = [(s.comm.role, s.collective.kind) for s in program.steps if isinstance(s, VendorCall)]
    scatter, gather = CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_GATHER
    assert kinds == [
        (CommRole.HOME, scatter),
        (CommRole.HOME, scatter),
        (CommRole.BORDER, scatter),
        (CommRole.HOME, gather),
        (CommRole.HOME, gather),
    ]
    assert program.scratch_count == 1 << 19
    assert len(program.steps) == len(kinds) + 4  # a partial and a result, sent and received: no copy, no fill


@KINDS
@pytest.mark.parametrize("count", [(1 << 31) + 1, 1 << 33, 1 << 63], ids=["2^31+1", "2^33", "2^63"])
def test_counts_beyond_any_fixed_width_are_planned_and_proved(kind: CollectiveKind, count: int) -> None:
    topology = clusters_of(3, 1, 2)
    op, root = ReduceKind.AVG if kind.reduces else None, 4 if kind.has_root else None
    collective = Collective(kind, 6, count, DataType.INT8, op, root)
    whole = schedule(collective, topology)
    verify(whole)
    assert traffic(whole.programs, topology).total == bounds.least_total(collective, topology)


def test_one_cluster_is_one_vendor_call() -> None:
    topology = clusters_of(3)
    for kind in CollectiveKind:
        op = ReduceKind.MAX if kind.reduces else None
        collective = Collective(kind, 3, 8, DataType.INT16, op, 1 if kind.has_root else None)
        for rank in range(3):
            program: Program = plan(collective, topology, rank)
            assert [type(step) for step in program.steps] == [VendorCall]
            assert program.scratch_count == 0


def test_another_number_of_ranks_is_refused() -> None:
    collective = Collective(CollectiveKind.BROADCAST, 3, 8, DataType.INT16, root=0)
    with pytest.raises(TopologyError, match="over 3 ranks, but the topology has 4"):
        plan(collective, clusters_of(2, 2), 0)
    with pytest.raises(TopologyError, match="rank 3 is not a rank"):
        plan(collective, clusters_of(2, 1), 3)
    with pytest.raises(TopologyError, match="over 3 ranks"):
        why(collective, clusters_of(2, 2))


@given(data=st.data())
def test_plans_are_kept(data: st.DataObject) -> None:
    topology = data.draw(topologies())
    collective = data.draw(collectives(topology.nranks))
    same = Topology(topology.clusters)
    assume(same is not topology)
    assert plan(collective, topology, 0) is plan(collective, same, 0)
