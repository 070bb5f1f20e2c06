"""Flat plans are proved for every number of ranks, and send what their table says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.strategies import collectives
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Schedule, Send, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.topology import flat
from hetcomm.types import DataType, ReduceKind

KINDS = pytest.mark.parametrize("kind", list(CollectiveKind), ids=lambda kind: kind.value)
SIZES = pytest.mark.parametrize("nranks", [2, 3, 4, 5, 7, 8, 12])


def flat_schedule(collective: Collective) -> Schedule:
    return Schedule(collective, tuple(flat.plan(collective, rank) for rank in range(collective.nranks)), {})


def make(kind: CollectiveKind, nranks: int, count: int, root: int = 0) -> Collective:
    op = ReduceKind.PROD if kind.reduces else None
    return Collective(kind, nranks, count, DataType.FLOAT32, op, root if kind.has_root else None)


@KINDS
@given(data=st.data())
def test_schedules_are_proved(kind: CollectiveKind, data: st.DataObject) -> None:
    nranks = data.draw(st.integers(1, 17))
    collective = data.draw(collectives(nranks, kind=kind))
    in_place = data.draw(st.lists(st.booleans(), min_size=nranks, max_size=nranks))
    programs = tuple(flat.plan(collective.with_in_place(here), rank) for rank, here in enumerate(in_place))
    assert not any(isinstance(step, VendorCall) for program in programs for step in program.steps)
    verify(Schedule(collective, programs, {}))


@KINDS
@SIZES
def test_large_messages_send_the_fewest_bytes(kind: CollectiveKind, nranks: int) -> None:
    count = nranks * 10000
    programs = flat_schedule(make(kind, nranks, count, root=1)).programs
    sent = [sum(step.src.count for step in program.steps if isinstance(step, Send)) for program in programs]
    others = (nranks - 1) * count // nranks
    match kind:
        case CollectiveKind.ALL_REDUCE:
            assert sent == [2 * others] * nranks
        case CollectiveKind.REDUCE:
            assert sent == [others if rank == 1 else count for rank in range(nranks)]
        case CollectiveKind.BROADCAST:
            assert sent[1] == 2 * others
            assert max(sent[:1] + sent[2:]) <= others
        case CollectiveKind.ALL_GATHER | CollectiveKind.REDUCE_SCATTER:
            assert sent == [(nranks - 1) * count] * nranks


@KINDS
@SIZES
def test_small_messages_take_few_rounds(kind: CollectiveKind, nranks: int) -> None:
    proof = verify(flat_schedule(make(kind, nranks, 3, root=nranks - 1)))
    logarithm = (nranks - 1).bit_length()
    power = nranks & (nranks - 1) == 0
    match kind:
        case CollectiveKind.ALL_REDUCE:
            assert proof.rounds == logarithm + (not power)
        case CollectiveKind.REDUCE | CollectiveKind.BROADCAST | CollectiveKind.ALL_GATHER:
            assert proof.rounds <= logarithm
        case CollectiveKind.REDUCE_SCATTER:
            assert proof.rounds == 1
