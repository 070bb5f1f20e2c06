"""Programs whose vendor calls are written out mean what they meant, and move as much between clusters."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Buffer, CommId, CommRole, Program, Schedule, Slice, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.testing import strategies
from hetcomm.topology.bounds import traffic
from hetcomm.topology.costs import Calibration, CallCost, Line
from hetcomm.topology.inline import inline
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.pricing import best
from hetcomm.topology.select import schedule
from hetcomm.types import DataType, ReduceKind


@settings(max_examples=150)
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
