"""No plan takes more scratch than the formula that people are given, and there are plans that take half of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.strategies import collectives, passed_by, topologies
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.topology.inline import inline
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.scratch import most_scratch
from hetcomm.topology.select import plan
from hetcomm.topology.tuning import RULES, Tuning
from hetcomm.types import DataType, ReduceKind

TUNINGS = (
    RULES,
    Tuning(few_steps_bytes=64, chunk_bytes=512, max_chunks=3),
    Tuning(few_steps_bytes=64, chunk_bytes=512, max_chunks=6, local_reduction=True),
    Tuning(few_steps_bytes=64, chunk_bytes=512, many_clusters=2),
    Tuning(local_reduction=True, direct_exchange=True),
)


@given(data=st.data())
def test_no_plan_takes_more_than_the_formula(data: st.DataObject) -> None:
    topology = data.draw(topologies(max_clusters=8, max_ranks=6))
    collective = data.draw(collectives(topology.nranks))
    tuning, written_out = data.draw(st.sampled_from(TUNINGS)), data.draw(st.booleans())
    for rank in range(topology.nranks):
        mine = data.draw(passed_by(collective, rank)) if rank < 2 else collective
        program = plan(mine, topology, rank, tuning)
        if written_out:
            program = inline(program, topology.communicators_of(topology.cluster_of(rank)))
        assert program.scratch_count <= most_scratch(mine, topology, rank, tuning, written_out=written_out)


@pytest.mark.parametrize(
    ("kind", "nclusters"),
    [
        (CollectiveKind.ALL_REDUCE, 4),
        (CollectiveKind.ALL_REDUCE, 8),
        (CollectiveKind.REDUCE, 4),
        (CollectiveKind.REDUCE, 8),
        (CollectiveKind.REDUCE_SCATTER, 2),
        (CollectiveKind.ALL_GATHER, 2),
        (CollectiveKind.GATHER, 8),
        (CollectiveKind.SCATTER, 8),
        (CollectiveKind.ALL_TO_ALL, 2),
    ],
)
def test_the_formula_is_not_twice_what_the_worst_plan_takes(kind: CollectiveKind, nclusters: int) -> None:
    # The ranks of each cluster are scattered, and one of them has the uplink; the first cluster has most bandwidth.
    clusters = [
        Cluster(f"c{number}", "mpi", tuple(range(number, 4 * nclusters, nclusters)), (Uplink(number, 1e9, 1e9),))
        for number in range(1, nclusters)
    ]
    clusters.insert(0, Cluster("c0", "mpi", tuple(range(0, 4 * nclusters, nclusters)), (Uplink(0, 1e12, 1e12),)))
    topology = Topology(tuple(clusters))
    count = (1 << 22) // (topology.nranks if kind.has_blocks else 1)
    op, root = ReduceKind.SUM if kind.reduces else None, 0 if kind.has_root else None
    collective = Collective(kind, topology.nranks, count, DataType.FLOAT32, op, root, in_place=True)
    programs = [plan(collective, topology, rank) for rank in range(topology.nranks)]
    taken, most = max((program.scratch_count, most_scratch(collective, topology, program.rank)) for program in programs)
    assert taken <= most <= 2 * taken
