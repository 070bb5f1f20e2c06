"""All_reduce of short vectors over two clusters: proved, with one message after another between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.dataflow import dependencies
from hetcomm.schedule.steps import Recv
from hetcomm.schedule.verify import verify
from hetcomm.topology import bounds, mutual
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.select import schedule
from hetcomm.topology.tuning import RULES, Tuning
from hetcomm.types import DataType, ReduceKind


def two_clusters(first: int, second: int, border: int) -> Topology:
    ranks = range(first), range(first, first + second)
    return Topology(
        tuple(
            Cluster(f"c{number}", "mpi", of, tuple(Uplink(rank) for rank in of[:border]))
            for number, of in enumerate(ranks)
        )
    )


@given(data=st.data())
def test_it_is_proved_and_moves_the_least(data: st.DataObject) -> None:
    sizes = [data.draw(st.integers(1, 5)) for _ in range(2)]
    topology = two_clusters(*sizes, border=data.draw(st.integers(1, 5)))
    op = data.draw(st.sampled_from(list(ReduceKind)))
    in_place = data.draw(st.booleans())
    count = data.draw(st.integers(1, 40))
    collective = Collective(CollectiveKind.ALL_REDUCE, topology.nranks, count, DataType.INT32, op, in_place=in_place)
    assert mutual.fits(collective, topology, RULES)
    whole = schedule(collective, topology)
    assert {program.algorithm for program in whole.programs} == {"mutual all_reduce"}
    verify(whole)
    assert bounds.traffic(whole.programs, topology).total == bounds.least_total(collective, topology)


def test_two_ranks_wait_for_one_message() -> None:
    topology = two_clusters(1, 1, 1)
    collective = Collective(CollectiveKind.ALL_REDUCE, 2, 2, DataType.FLOAT32, ReduceKind.SUM)
    for program in schedule(collective, topology).programs:
        assert sum(isinstance(step, Recv) for step in program.steps) == 1
        for step, order in zip(program.steps, dependencies(program), strict=True):
            assert not isinstance(step, Recv) or not order.complete, "it can be posted at once"


def test_long_vectors_and_vectors_whose_vendors_are_called_have_hubs() -> None:
    topology = two_clusters(2, 2, 2)
    for count, tuning in ((1 << 20, RULES), (2, Tuning(inline_bytes=0))):
        collective = Collective(CollectiveKind.ALL_REDUCE, 4, count, DataType.FLOAT32, ReduceKind.SUM)
        assert not mutual.fits(collective, topology, tuning)
