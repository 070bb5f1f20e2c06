"""Programs whose vendor calls are written out mean what they meant, and move as much between clusters."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Buffer, CommId, CommRole, Program, Schedule, Slice, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.testing import strategies
from hetcomm.topology import flat, ring
from hetcomm.topology.bounds import traffic
from hetcomm.topology.costs import Calibration, CallCost, Line
from hetcomm.topology.inline import inline
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.pricing import best
from hetcomm.topology.select import schedule
from hetcomm.topology.tuning import ON_ONE_HOST, RULES
from hetcomm.types import DataType, ReduceKind


@given(st.data())
def test_any_clusters_may_write_their_calls_out(data: st.DataObject) -> None:
    topology = data.draw(strategies.topologies(max_clusters=4, max_ranks=5))
    collective = data.draw(strategies.collectives(topology.nranks))
    if collective.counts is None and collective.count > 500:
        collective = replace(collective, count=499)
    whole = schedule(collective, topology)
    chosen = [data.draw(st.booleans()) for _ in topology.clusters]
    programs = tuple(
        inline(program, whole.communicators) if chosen[topology.cluster_index(program.rank)] else program
        for program in whole.programs
    )
    verify(Schedule(collective, programs, whole.communicators))
    assert traffic(programs, topology) == traffic(whole.programs, topology)
    for program in programs:
        if chosen[topology.cluster_index(program.rank)]:
            assert not any(isinstance(step, VendorCall) for step in program.steps)


@pytest.mark.parametrize("kind", list(CollectiveKind), ids=lambda kind: kind.value)
def test_long_vectors_in_many_pieces_are_proved(kind: CollectiveKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "SMALL_BYTES", 64)
    monkeypatch.setattr(ring, "PIECE_BYTES", 256)
    for sizes, in_place in (((3,), False), ((2, 2), False), ((3, 1), True), ((3, 4, 2), False)):
        ends = list(accumulate(sizes, initial=0))
        topology = Topology(
            tuple(
                Cluster(f"c{first}", "mpi", range(first, last), tuple(Uplink(rank) for rank in range(first, last)))
                for first, last in pairwise(ends)
            )
        )
        op, root = ReduceKind.SUM if kind.reduces else None, 1 if kind.has_root else None
        for count in (1003, 1200):
            collective = Collective(kind, ends[-1], count, DataType.FLOAT32, op, root, in_place=in_place)
            for tuning in (RULES, ON_ONE_HOST, replace(ON_ONE_HOST, few_steps_bytes=0, chunk_bytes=2000)):
                whole = schedule(collective, topology, tuning)
                programs = tuple(inline(program, whole.communicators) for program in whole.programs)
                verify(Schedule(collective, programs, whole.communicators))
                assert max((getattr(step, "channel", 0) for each in programs for step in each.steps), default=0) <= 255


def test_flat_programs_have_two_channels() -> None:
    for kind in CollectiveKind:
        op, root = ReduceKind.SUM if kind.reduces else None, 1 if kind.has_root else None
        for count in (3, 1 << 20):
            for step in flat.plan(Collective(kind, 3, count, DataType.FLOAT32, op, root), 2).steps:
                assert getattr(step, "channel", 0) in (0, 1)


def test_any_number_of_calls_shares_channels_and_scratch() -> None:
    comm = CommId("c", CommRole.HOME)
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 1, DataType.INT8, ReduceKind.SUM, in_place=True)
    call = VendorCall(comm, collective, None, Slice(Buffer.OUT, 0, 1))
    members = {comm: (0, 1)}
    scratch = inline(Program(0, collective, (call,)), members).scratch_count
    for ncalls in (1, 124, 125, 300):
        program = inline(Program(0, collective, (call,) * ncalls), members)
        assert not any(isinstance(step, VendorCall) for step in program.steps)
        assert max(getattr(step, "channel", 0) for step in program.steps) <= 255
        assert program.scratch_count <= 4 * scratch


@pytest.mark.parametrize(("alpha", "written_out"), [(1e-3, True), (0.0, False)])
def test_a_calibration_says_whether_it_is_done(alpha: float, written_out: bool) -> None:
    topology = Topology(
        tuple(Cluster(f"c{n}", "mpi", range(2 * n, 2 * n + 2), (Uplink(2 * n), Uplink(2 * n + 1))) for n in range(2))
    )
    call = CallCost(None, None, alpha=alpha)
    calibration = Calibration((call,), Line(1e-8), Line(1e-8), Line(1e-6), 1e-6, "a machine")
    collective = Collective(CollectiveKind.ALL_REDUCE, 4, 16, DataType.FLOAT32, ReduceKind.SUM)
    assert (best(collective, topology, calibration).inline_bytes > 0) is written_out
