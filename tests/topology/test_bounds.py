"""The table of least volumes, against hand-made numbers and against itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.strategies import collectives, topologies
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Buffer, Program, Send, Slice
from hetcomm.topology.bounds import least_in, least_out, least_total, traffic
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import DataType, ReduceKind

THREE = Topology(
    (
        Cluster("a", "mpi", range(3), (Uplink(0), Uplink(1))),
        Cluster("b", "ucx", range(3, 4), (Uplink(3),)),
        Cluster("c", "oneccl", range(4, 6), (Uplink(4),)),
    )
)


@pytest.mark.parametrize(
    ("kind", "total", "out", "into"),
    [
        (CollectiveKind.ALL_REDUCE, 4 * 40, (40, 40, 40), (40, 40, 40)),
        (CollectiveKind.REDUCE_SCATTER, 2 * 240, (120, 200, 160), (120, 40, 80)),
        (CollectiveKind.ALL_GATHER, 2 * 240, (120, 40, 80), (120, 200, 160)),
        (CollectiveKind.BROADCAST, 2 * 40, (0, 0, 40), (40, 40, 0)),
        (CollectiveKind.REDUCE, 2 * 40, (40, 40, 0), (0, 0, 40)),
        (CollectiveKind.SCAN, 2 * 40, (40, 40, 0), (0, 40, 40)),
        (CollectiveKind.EXSCAN, 2 * 40, (40, 40, 0), (0, 40, 40)),
    ],
)
def test_table(kind: CollectiveKind, total: int, out: tuple[int, ...], into: tuple[int, ...]) -> None:
    op = ReduceKind.SUM if kind.reduces else None
    collective = Collective(kind, 6, 10, DataType.FLOAT32, op, 5 if kind.has_root else None)
    assert least_total(collective, THREE) == total
    assert least_out(collective, THREE) == out
    assert least_in(collective, THREE) == into


@given(data=st.data())
def test_no_cluster_needs_more_than_all(data: st.DataObject) -> None:
    topology = data.draw(topologies())
    collective = data.draw(collectives(topology.nranks))
    total = least_total(collective, topology)
    assert sum(least_out(collective, topology)) <= total
    assert sum(least_in(collective, topology)) <= total
    assert len(topology.clusters) > 1 or total == 0


def test_only_messages_between_clusters_count() -> None:
    collective = Collective(CollectiveKind.BROADCAST, 6, 10, DataType.INT16, root=0)
    whole = Slice(Buffer.OUT, 0, 10)
    programs = [
        Program(0, collective, (Send(whole, 1), Send(whole, 3), Send(whole.part(2, 3), 4), Send(whole.part(0, 0), 5))),
        Program(4, collective, (Send(whole, 5), Send(whole.part(9, 1), 3))),
    ]
    found = traffic(programs, THREE)
    assert found.total == 28
    assert found.out_of == (26, 0, 2)
    assert found.into == (0, 22, 6)
    assert found.sent == {0: 26, 4: 2}
    assert found.received == {3: 22, 4: 6}
