"""Any collective, on up to 8 clusters of up to 12 ranks: proved, and exactly the least between clusters.

Short scans of clusters that take turns more than eight times are the exception: at most twice the least. 1,000 seeded
cases, 100 in each of 10 tests, so that they run side by side, and 2,500 with --slow. The nightly profile draws 100,000
at random:

    HYPOTHESIS_PROFILE=nightly pytest tests/topology/test_everything.py
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcomm._conformance.strategies import collectives, topologies
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Schedule, Send
from hetcomm.schedule.verify import verify
from hetcomm.topology import bounds
from hetcomm.topology.model import Topology
from hetcomm.topology.select import schedule
from hetcomm.topology.tuning import RULES, Tuning

from .volume import wanted

CASES = max(100, settings.default.max_examples if settings.default is not None else 0)
TUNINGS = [
    RULES,
    Tuning(few_steps_bytes=64, chunk_bytes=512, max_chunks=3),
    Tuning(many_clusters=1),
    Tuning(inline_bytes=0),
    Tuning(few_steps_bytes=64, chunk_bytes=512, max_chunks=3, local_reduction=True),
]
"""The rules; short vectors cut like long ones; few clusters planned like many."""


def check_uplinks(collective: Collective, topology: Topology, whole: Schedule) -> None:
    """Every border rank sends and receives its uplink's share of what its cluster does, within an element a slice."""
    moved = bounds.traffic(whole.programs, topology)
    slices = [[0, 0] for _ in topology.clusters]
    for program in whole.programs:
        here = topology.cluster_index(program.rank)
        for step in program.steps:
            if isinstance(step, Send) and topology.cluster_index(step.peer) != here:
                slices[here][0] += 1
                slices[topology.cluster_index(step.peer)][1] += 1
    for index, cluster in enumerate(topology.clusters):
        ways = (
            (moved.out_of[index], moved.sent, [uplink.bandwidth_out for uplink in cluster.uplinks]),
            (moved.into[index], moved.received, [uplink.bandwidth_in for uplink in cluster.uplinks]),
        )
        for most, (total, by_rank, speeds) in zip(slices[index], ways, strict=True):
            assert sum(by_rank.get(rank, 0) for rank in cluster.border) == total
            for rank, speed in zip(cluster.border, speeds, strict=True):
                fair = total * speed / math.fsum(speeds)
                assert abs(by_rank.get(rank, 0) - fair) <= most * collective.dtype.itemsize


@pytest.mark.parametrize("kind", list(CollectiveKind), ids=lambda kind: kind.value)
@settings(max_examples=CASES)
@given(data=st.data())
def test_it_is_proved_and_moves_the_least(kind: CollectiveKind, data: st.DataObject) -> None:
    most = data.draw(st.sampled_from([1, 2, 2, 3, 3, 4, 12]))
    topology = data.draw(topologies(max_clusters=8, max_ranks=most))
    collective = data.draw(collectives(topology.nranks, kind=kind))
    tuning = data.draw(st.sampled_from(TUNINGS))
    whole = schedule(collective, topology, tuning)
    verify(whole)
    assert bounds.traffic(whole.programs, topology).total == wanted(collective, topology, tuning)
    if len(topology.clusters) > 1 and tuning is not TUNINGS[2]:
        check_uplinks(collective, topology, whole)
