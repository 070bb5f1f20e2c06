"""Every schedule the planners make is proved, and moves the least there can be between clusters."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hetcomm._conformance.reference import numpy_dtype, reference, run_schedule
from hetcomm._conformance.strategies import collectives, topologies
from hetcomm.errors import TopologyError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.simulate import makespan
from hetcomm.schedule.spec import Family
from hetcomm.schedule.steps import CommRole, Program, Recv, Reduce, Schedule, Send, Step, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.topology import bounds
from hetcomm.topology.bounds import traffic
from hetcomm.topology.costs import IDEAL, costs_of
from hetcomm.topology.hubs import bandwidths
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.select import plan, schedule, why
from hetcomm.topology.tuning import RULES, Tuning
from hetcomm.types import DataType, ReduceKind

from .volume import wanted

KINDS = pytest.mark.parametrize("kind", list(CollectiveKind), ids=lambda kind: kind.value)
HUB_KINDS = pytest.mark.parametrize(
    "kind",
    [kind for kind in CollectiveKind if kind.row.family is Family.VENDOR],
    ids=lambda kind: kind.value,
)
CALLING = Tuning(inline_bytes=0)
SHORT = Tuning(few_steps_bytes=64, chunk_bytes=512, max_chunks=3, inline_bytes=0)
"""Short vectors are cut like long ones."""


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
    tuning = data.draw(st.sampled_from([RULES, SHORT]))
    one_buffer = collective.kind is not CollectiveKind.ALL_TO_ALL or collective.counts is None
    in_place = [one_buffer and data.draw(st.booleans()) for _ in range(topology.nranks)]
    programs = tuple(plan(collective.with_in_place(on), topology, rank, tuning) for rank, on in enumerate(in_place))
    verify(Schedule(collective, programs, topology.communicators()))
    moved = traffic(programs, topology)
    assert moved.total == wanted(collective, topology, tuning)
    least = (*bounds.least_out(collective, topology), *bounds.least_in(collective, topology))
    for moved_here, least_here in zip((*moved.out_of, *moved.into), least, strict=True):
        assert moved_here >= least_here
    assert "between clusters" in why(collective, topology) or len(topology.clusters) == 1 or not collective.total


@KINDS
@given(data=st.data())
def test_what_other_ranks_see_does_not_depend_on_in_place(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(topologies(max_clusters=3))
    collective = data.draw(collectives(topology.nranks, kind=kind))
    assume(kind is not CollectiveKind.ALL_TO_ALL or collective.counts is None)
    for rank in range(topology.nranks):
        apart = [outside(step) for step in plan(collective.with_in_place(False), topology, rank, SHORT).steps]
        at_once = [outside(step) for step in plan(collective.with_in_place(True), topology, rank, SHORT).steps]
        assert list(filter(None, apart)) == list(filter(None, at_once))


@KINDS
@given(data=st.data())
def test_border_ranks_share_the_traffic_by_their_uplinks(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(topologies(min_clusters=2))
    collective = data.draw(collectives(topology.nranks, kind=kind))
    programs = schedule(collective, topology, SHORT).programs
    moved, itemsize = traffic(programs, topology), collective.dtype.itemsize
    sends = [
        (topology.cluster_index(program.rank), topology.cluster_index(step.peer))
        for program in programs
        for step in program.steps
        if isinstance(step, Send)
    ]
    for index, cluster in enumerate(topology.clusters):
        ways = (
            (moved.out_of[index], moved.sent, {up.rank: up.bandwidth_out for up in cluster.uplinks}, 0),
            (moved.into[index], moved.received, {up.rank: up.bandwidth_in for up in cluster.uplinks}, 1),
        )
        for total, by_rank, speeds, end in ways:
            assert sum(by_rank.get(rank, 0) for rank in speeds) == total  # no other rank takes part
            slices = sum(pair[end] == index != pair[1 - end] for pair in sends)  # at most: each is one message or more
            for rank, bandwidth in speeds.items():
                fair = total * bandwidth / math.fsum(speeds.values())
                assert abs(by_rank.get(rank, 0) - fair) <= slices * itemsize


@KINDS
@given(data=st.data())
def test_no_cluster_is_busier_than_the_least_time_allows(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(topologies(min_clusters=2, max_ranks=4))
    count = data.draw(st.integers(1 << 18, 1 << 20))
    op, root = ReduceKind.MAX if kind.reduces else None, topology.nranks - 1 if kind.has_root else None
    collective = Collective(kind, topology.nranks, count, DataType.INT8, op, root)
    moved = traffic(schedule(collective, topology, SHORT).programs, topology)
    seconds, width = bounds.least_time(collective, topology), bandwidths(topology)
    for nbytes, speed in zip((*moved.out_of, *moved.into), (*width.out, *width.into), strict=True):
        assert nbytes <= seconds * speed * 1.001 + 1000


@given(topology=topologies(min_clusters=2), count=st.integers(6, 1 << 12))
def test_remote_partials_are_added_on_the_border_communicator(topology: Topology, count: int) -> None:
    collective = Collective(CollectiveKind.ALL_REDUCE, topology.nranks, count, DataType.FLOAT64, ReduceKind.SUM)
    programs = schedule(collective, topology, SHORT).programs
    for cluster in topology.clusters:
        calls = {rank: [s for s in programs[rank].steps if isinstance(s, VendorCall)] for rank in cluster.ranks}
        on_border = {rank: [call for call in made if call.comm == cluster.border_id] for rank, made in calls.items()}
        assert all(call.collective.kind.reduces for made in on_border.values() for call in made)
        assert {len(made) for rank, made in on_border.items() if rank not in cluster.border} <= {0}
        assert len({len(on_border[rank]) for rank in cluster.border}) == 1
        reduces = any(isinstance(step, Reduce) for rank in cluster.ranks for step in programs[rank].steps)
        assert not reduces or len(cluster) == 1
    hub = bandwidths(topology).both.index(max(bandwidths(topology).both))
    if len(topology.clusters[hub].border) > 1:
        comm = topology.clusters[hub].border_id
        steps = programs[topology.clusters[hub].border[0]].steps
        assert any(isinstance(step, VendorCall) and step.comm == comm for step in steps)


@pytest.mark.parametrize("kind", [CollectiveKind.BROADCAST, CollectiveKind.REDUCE], ids=lambda kind: kind.value)
@given(data=st.data())
def test_long_vectors_cross_the_uplinks_of_equal_clusters_once(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = clusters_of(*data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=6)), border=1)
    root = data.draw(st.integers(0, topology.nranks - 1))
    op = ReduceKind.AVG if kind.reduces else None
    collective = Collective(kind, topology.nranks, data.draw(st.integers(1 << 14, 1 << 20)), DataType.FLOAT32, op, root)
    moved = traffic(schedule(collective, topology, SHORT).programs, topology)
    there, whole = topology.cluster_index(root), bounds.vector_bytes(collective)
    crossing = moved.out_of[there] if kind is CollectiveKind.BROADCAST else moved.into[there]
    assert whole <= crossing <= whole + 1000
    assert moved.into == bounds.least_in(collective, topology) or kind is CollectiveKind.REDUCE
    assert moved.out_of == bounds.least_out(collective, topology) or kind is CollectiveKind.BROADCAST


@HUB_KINDS
@given(data=st.data())
def test_an_element_enters_and_leaves_every_site_once(kind: CollectiveKind, data: st.DataObject) -> None:
    apart = data.draw(topologies(min_clusters=2))
    site = st.sampled_from(["", "a", "a/1", "a/2", "a/2/x", "b", "b/1"])
    topology = Topology(tuple(replace(cluster, site=data.draw(site)) for cluster in apart.clusters))
    collective = data.draw(collectives(topology.nranks, kind=kind))
    whole = schedule(collective, topology, SHORT)
    verify(whole)
    assert traffic(whole.programs, topology).total == bounds.least_total(collective, topology)
    for level in (1, 2):
        sites = [c.sites[:level] if len(c.sites) >= level else (c.name,) for c in topology.clusters]
        nbytes = sum(
            step.src.count * collective.dtype.itemsize
            for program in whole.programs
            for step in program.steps
            if isinstance(step, Send)
            and sites[topology.cluster_index(program.rank)] != sites[topology.cluster_index(step.peer)]
        )
        times = 2 if kind is CollectiveKind.ALL_REDUCE else 1
        assert nbytes == times * (len(set(sites)) - 1) * bounds.vector_bytes(collective)


@HUB_KINDS
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
    for seed, op in enumerate(kind.ops):
        some = ((1, 37), (5, 300))[(seed + len(topology.clusters)) % 2]
        for count in some if kind.reduces else (1, 5, 37, 300):
            root = topology.nranks - 1 if kind.has_root else None
            collective = Collective(kind, topology.nranks, count, DataType.INT32, op, root)
            rng = numpy.random.default_rng(seed)
            inputs = [
                rng.integers(-9, 9, n).astype(numpy_dtype(collective.dtype)) if n else None
                for n in map(collective.in_count, range(topology.nranks))
            ]
            factors = [2 + rank for rank in range(topology.nranks)]
            expected = reference(collective, inputs, factors)
            whole = schedule(collective.with_in_place(seed % 2 == 1), topology, SHORT)
            found = run_schedule(whole, inputs, factors, seed)
            for one, other in zip(expected, found, strict=True):
                numpy.testing.assert_array_equal(one, other)


def test_equal_clusters_of_border_ranks_take_whole_vendor_calls() -> None:
    topology = clusters_of(2, 2)
    collective = Collective(CollectiveKind.ALL_REDUCE, 4, 1 << 18, DataType.FLOAT32, ReduceKind.SUM)
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
    assert program.scratch_count == 1 << 17
    assert len(program.steps) == len(kinds) + 4  # a partial and a result, sent and received: no copy, no fill


def test_a_short_vector_has_one_hub() -> None:
    topology = clusters_of(2, 2)
    collective = Collective(CollectiveKind.ALL_REDUCE, 4, 1 << 10, DataType.FLOAT32, ReduceKind.SUM)
    kinds = [
        [
            (s.comm.role.value, s.collective.kind.value)
            for s in plan(collective, topology, rank, CALLING).steps
            if isinstance(s, VendorCall)
        ]
        for rank in (0, 2)
    ]
    assert kinds == [
        [("home", "reduce_scatter"), ("border", "reduce_scatter"), ("home", "all_gather")],
        [("home", "reduce_scatter"), ("home", "all_gather")],
    ]


def test_the_chunks_of_a_long_vector_overtake_one_another() -> None:
    topology, tuning = clusters_of(2, 2), Tuning(chunk_bytes=1 << 20)
    collective = Collective(CollectiveKind.ALL_REDUCE, 4, 4 << 20, DataType.FLOAT32, ReduceKind.SUM)
    whole = schedule(collective, topology, tuning)
    steps = whole.programs[0].steps
    border = [index for index, s in enumerate(steps) if isinstance(s, VendorCall) and s.comm.role is CommRole.BORDER]
    sends = [index for index, s in enumerate(steps) if isinstance(s, Send)]
    assert len(border) == 16
    assert sum(index < border[0] for index in sends) >= 3  # partials are on their way before the first is added
    assert whole.programs[0].scratch_count < collective.count // 4


def test_overlapped_halves_with_shares_by_bandwidth_reach_the_least_time() -> None:
    speeds = (1e9, 4e9, 4e9)
    topology = Topology(
        tuple(Cluster(f"c{rank}", "mpi", (rank,), (Uplink(rank, speed, speed),)) for rank, speed in enumerate(speeds))
    )
    collective = Collective(CollectiveKind.ALL_REDUCE, 3, 16 << 20, DataType.FLOAT32, ReduceKind.SUM)
    least, costs = bounds.least_time(collective, topology), costs_of(topology, IDEAL)
    assert least == pytest.approx((64 << 20) / 1e9)
    assert makespan(schedule(collective, topology), costs) < 1.05 * least
    assert makespan(schedule(collective, topology, Tuning(max_chunks=1)), costs) > 1.4 * least


@KINDS
@pytest.mark.parametrize("count", [(1 << 31) + 1, 1 << 33, 1 << 63], ids=["2^31+1", "2^33", "2^63"])
def test_counts_beyond_any_fixed_width_are_planned_and_proved(kind: CollectiveKind, count: int) -> None:
    topology = clusters_of(3, 1, 2)
    op, root = ReduceKind.AVG if ReduceKind.AVG in kind.ops else kind.ops[0], 4 if kind.has_root else None
    collective = Collective(kind, 6, count, DataType.INT8, op, root)
    whole = schedule(collective, topology, SHORT)
    verify(whole)
    assert traffic(whole.programs, topology).total == bounds.least_total(collective, topology)


@HUB_KINDS
def test_one_cluster_is_one_vendor_call(kind: CollectiveKind) -> None:
    topology = clusters_of(3)
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
