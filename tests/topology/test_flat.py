"""Flat plans are proved for every number of ranks, and send what their tables say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.strategies import collectives
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Schedule, Send, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.topology import flat, ring
from hetcomm.types import DataType, ReduceKind

from .forms import own_forms, vector_forms

KINDS = pytest.mark.parametrize("kind", list(CollectiveKind), ids=lambda kind: kind.value)
VECTOR_KINDS = pytest.mark.parametrize(
    "kind", [kind for kind in CollectiveKind if kind.has_blocks], ids=lambda kind: kind.value
)
SIZES = pytest.mark.parametrize("nranks", [2, 3, 4, 5, 7, 8, 12])


def flat_schedule(collective: Collective) -> Schedule:
    return Schedule(collective, tuple(flat.plan(collective, rank) for rank in range(collective.nranks)), {})


def make(kind: CollectiveKind, nranks: int, count: int, root: int = 0) -> Collective:
    op = ReduceKind.PROD if kind.reduces else None
    return Collective(kind, nranks, count, DataType.FLOAT32, op, root if kind.has_root else None)


def sent_by_rank(collective: Collective) -> list[int]:
    programs = flat_schedule(collective).programs
    return [sum(step.src.count for step in program.steps if isinstance(step, Send)) for program in programs]


def check(collective: Collective, forms: tuple[Collective, ...]) -> None:
    programs = tuple(flat.plan(form, rank) for rank, form in enumerate(forms))
    assert not any(isinstance(step, VendorCall) for program in programs for step in program.steps)
    verify(Schedule(collective, programs, {}))


@KINDS
@given(data=st.data())
def test_schedules_are_proved(kind: CollectiveKind, data: st.DataObject) -> None:
    collective = data.draw(collectives(data.draw(st.integers(1, 17)), kind=kind, vector=False))
    check(collective, data.draw(own_forms(collective)))


@VECTOR_KINDS
@given(data=st.data())
def test_vector_forms_are_proved(kind: CollectiveKind, data: st.DataObject) -> None:
    collective = data.draw(vector_forms(data.draw(st.integers(1, 12)), kind))
    check(collective, data.draw(own_forms(collective)))


@KINDS
@SIZES
def test_large_messages_send_the_fewest_bytes(kind: CollectiveKind, nranks: int) -> None:
    count = nranks * 10000
    sent = sent_by_rank(make(kind, nranks, count, root=1))
    others = (nranks - 1) * count // nranks
    match kind:
        case CollectiveKind.ALL_REDUCE:
            assert sent == [2 * others] * nranks
        case CollectiveKind.REDUCE:
            assert sent == [others if rank == 1 else count for rank in range(nranks)]
        case CollectiveKind.BROADCAST:
            assert sent[1] == 2 * others
            assert max(sent[:1] + sent[2:]) <= others
        case CollectiveKind.ALL_GATHER | CollectiveKind.REDUCE_SCATTER | CollectiveKind.ALL_TO_ALL:
            assert sent == [(nranks - 1) * count] * nranks
        case CollectiveKind.GATHER:
            assert sent == [count if rank != 1 else 0 for rank in range(nranks)]
        case CollectiveKind.SCATTER:
            assert sent == [(nranks - 1) * count if rank == 1 else 0 for rank in range(nranks)]


@VECTOR_KINDS
@SIZES
def test_large_vector_forms_send_the_fewest_bytes(kind: CollectiveKind, nranks: int) -> None:
    counts = tuple(10000 * (number % 5) for number in range(nranks ** (2 if kind is CollectiveKind.ALL_TO_ALL else 1)))
    op, root = ReduceKind.SUM if kind.reduces else None, 1 if kind.has_root else None
    collective = Collective(kind, nranks, sum(counts), DataType.FLOAT32, op, root, counts=counts)
    sent = sent_by_rank(collective)
    match kind:
        case CollectiveKind.ALL_GATHER:
            assert sent == [sum(counts) - counts[(rank + 1) % nranks] for rank in range(nranks)]
        case CollectiveKind.REDUCE_SCATTER:
            assert sent == [sum(counts) - counts[rank] for rank in range(nranks)]
        case CollectiveKind.ALL_TO_ALL:
            own = [collective.pair_count(rank, rank) for rank in range(nranks)]
            assert sent == [sum(collective.sent_counts(rank)) - own[rank] for rank in range(nranks)]
        case CollectiveKind.GATHER:
            assert sent == [counts[rank] if rank != 1 else 0 for rank in range(nranks)]
        case _:
            assert sent == [sum(counts) - counts[1] if rank == 1 else 0 for rank in range(nranks)]


@KINDS
@SIZES
def test_small_messages_take_few_rounds(kind: CollectiveKind, nranks: int) -> None:
    collective = make(kind, nranks, 3, root=nranks - 1)
    proof = verify(flat_schedule(collective))
    logarithm = (nranks - 1).bit_length()
    power = nranks & (nranks - 1) == 0
    match kind:
        case CollectiveKind.ALL_REDUCE:
            assert proof.rounds == logarithm + (not power)
        case CollectiveKind.REDUCE_SCATTER:
            assert proof.rounds == 1
        case CollectiveKind.ALL_TO_ALL:
            assert proof.rounds <= (logarithm if nranks >= 8 else 1)
            assert proof.messages == nranks * (logarithm if nranks >= 8 else nranks - 1)
        case _:
            assert proof.rounds <= logarithm
    if kind in (CollectiveKind.GATHER, CollectiveKind.SCATTER):
        assert proof.messages == nranks - 1
        assert max(sent_by_rank(collective)[:-1]) <= 3 * (nranks + 1) // 2 * logarithm


@pytest.mark.parametrize("in_place", [False, True])
def test_pairwise_all_to_all_takes_scratch_only_in_place(in_place: bool) -> None:
    collective = make(CollectiveKind.ALL_TO_ALL, 5, 10000).with_in_place(in_place)
    program = flat.plan(collective, 2)
    assert program.scratch_count == (50000 if in_place else 0)
    assert len(program.steps) == 9


@pytest.mark.parametrize("in_place", [False, True])
@KINDS
@pytest.mark.parametrize("nranks", [2, 3, 5])
def test_blocks_in_many_pieces_are_proved(
    kind: CollectiveKind, nranks: int, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring, "PIECE_BYTES", 4000)
    collective = make(kind, nranks, 5003 * (1 if kind.has_blocks else nranks), nranks - 1)
    check(collective, (collective.with_in_place(in_place),) * nranks)
    if kind.has_blocks:
        counts = tuple(9000 * (number % 3) + number for number in range(nranks))
        if kind is not CollectiveKind.ALL_TO_ALL:
            vector = replace(collective, count=sum(counts), counts=counts)
            check(vector, (vector.with_in_place(in_place),) * nranks)


@pytest.mark.parametrize("nranks", [2, 3, 8])
def test_rings_take_scratch_for_some_pieces_only(nranks: int) -> None:
    piece, block = ring.LONG_PIECE_BYTES // 4, 40 * ring.LONG_PIECE_BYTES // 4
    for kind, count in ((CollectiveKind.ALL_REDUCE, nranks * block), (CollectiveKind.REDUCE_SCATTER, block)):
        for in_place in (False, True):
            program = flat.plan(make(kind, nranks, count).with_in_place(in_place), 1)
            pieces = 2 * nranks if nranks > 2 else 2 * in_place
            assert program.scratch_count == pieces * piece
    assert len(program.steps) < 3 * ring.MOST_MESSAGES


def test_pieces_are_small_where_all_vectors_fit_a_cache() -> None:
    whole = make(CollectiveKind.ALL_REDUCE, 4, (4 << 20) // 4)
    for collective, pieces in ((whole, 4), (make(CollectiveKind.ALL_REDUCE, 4, (4 << 20) // 4 + 4), 2)):
        program = flat.plan(collective, 0)
        assert sum(isinstance(step, Send) for step in program.steps) == 2 * 3 * pieces
    part = flat.plan(make(CollectiveKind.ALL_REDUCE, 4, (1 << 20)), 0, make(CollectiveKind.ALL_REDUCE, 8, 16 << 20))
    assert sum(isinstance(step, Send) for step in part.steps) == 2 * 3


def test_a_rank_sends_a_bounded_number_of_pieces() -> None:
    program = flat.plan(make(CollectiveKind.ALL_REDUCE, 4, 1 << 36), 3)
    assert sum(isinstance(step, Send) for step in program.steps) == 2 * (ring.MOST_MESSAGES // 3) * 3


def test_equal_counts_are_planned_like_no_counts() -> None:
    for kind in CollectiveKind:
        if kind.has_blocks:
            usual = make(kind, 12, 3)
            nblocks = 144 if kind is CollectiveKind.ALL_TO_ALL else 12
            vector = Collective(kind, 12, 3 * nblocks, usual.dtype, usual.op, usual.root, counts=(3,) * nblocks)
            for rank in range(12):
                assert flat.plan(vector, rank).steps == flat.plan(usual, rank).steps
