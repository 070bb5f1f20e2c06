"""Plans of one cluster: proved, and as few vendor calls as can be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.strategies import collectives, topologies
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Copy, Program, Schedule, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.topology import home
from hetcomm.topology.model import Cluster, Topology
from hetcomm.types import DataType, ReduceKind

from .forms import own_forms, vector_forms

KINDS = pytest.mark.parametrize("kind", list(CollectiveKind), ids=lambda kind: kind.value)
BY_VENDOR = (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER)
IN_ORDER = Topology((Cluster("a", "mpi", range(4)),))
SHUFFLED = Topology((Cluster("a", "mpi", (2, 0, 3, 1)),))


def vector_form(kind: CollectiveKind, counts: tuple[int, ...]) -> Collective:
    return Collective(
        kind, len(counts), sum(counts), DataType.FLOAT32, ReduceKind.SUM if kind.reduces else None, counts=counts
    )


def calls(program: Program) -> list[CollectiveKind]:
    return [step.collective.kind for step in program.steps if isinstance(step, VendorCall)]


@KINDS
@given(data=st.data())
def test_schedules_are_proved(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(topologies(max_clusters=1, max_ranks=12))
    vector = kind.has_blocks and data.draw(st.booleans())
    nranks = topology.nranks
    collective = data.draw(vector_forms(nranks, kind) if vector else collectives(nranks, kind=kind, vector=False))
    forms = data.draw(own_forms(collective))
    programs = tuple(home.plan(form, topology, rank) for rank, form in enumerate(forms))
    verify(Schedule(collective, programs, topology.communicators()))


@pytest.mark.parametrize("topology", [IN_ORDER, SHUFFLED], ids=["in order", "shuffled"])
@pytest.mark.parametrize("kind", BY_VENDOR, ids=lambda kind: kind.value)
def test_equal_counts_are_one_vendor_call(kind: CollectiveKind, topology: Topology) -> None:
    vector, usual = vector_form(kind, (9, 9, 9, 9)), vector_form(kind, (36,))
    usual = Collective(kind, 4, 9, usual.dtype, usual.op)
    for rank in range(4):
        program = home.plan(vector, topology, rank)
        assert program.steps == home.plan(usual, topology, rank).steps
        assert calls(program) == [kind]


@pytest.mark.parametrize("kind", BY_VENDOR, ids=lambda kind: kind.value)
def test_a_few_unequal_elements_are_one_vendor_call(kind: CollectiveKind) -> None:
    for rank in range(4):
        assert len(calls(home.plan(vector_form(kind, (9, 0, 7, 2)), IN_ORDER, rank))) == 1


@pytest.mark.parametrize("kind", BY_VENDOR, ids=lambda kind: kind.value)
def test_many_unequal_elements_are_a_vendor_call_for_each_block_without_scratch(kind: CollectiveKind) -> None:
    for rank in range(4):
        program = home.plan(vector_form(kind, (90000, 0, 70000, 20000)), IN_ORDER, rank)
        wanted = CollectiveKind.REDUCE if kind.reduces else CollectiveKind.BROADCAST
        assert calls(program) == [wanted] * 3
        assert program.scratch_count == 0
        assert sum(isinstance(step, Copy) for step in program.steps) <= 1


@pytest.mark.parametrize("kind", [CollectiveKind.GATHER, CollectiveKind.SCATTER, CollectiveKind.ALL_TO_ALL])
def test_what_vendors_lack_is_messages(kind: CollectiveKind) -> None:
    collective = Collective(kind, 4, 9, DataType.FLOAT32, root=2 if kind.has_root else None)
    programs = [home.plan(collective, SHUFFLED, rank) for rank in range(4)]
    assert not any(map(calls, programs))
    assert sum(map(len, (program.steps for program in programs))) > 0
