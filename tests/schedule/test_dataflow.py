"""What steps touch, what follows for their order, and how steps of several ranks find one another."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.errors import ScheduleError
from hetcomm.schedule.dataflow import Order, accesses, consumers, dependencies, match, vendor_groups
from hetcomm.schedule.intervals import IntervalMap
from hetcomm.schedule.steps import (
    Buffer,
    CommId,
    CommRole,
    Copy,
    Fill,
    Program,
    Recv,
    Reduce,
    Send,
    Slice,
    Step,
    VendorCall,
)
from hetcomm.types import ReduceKind

from .handmade import IN, OUT, SCRATCH, WORLD, build, collective, examples

SUM = ReduceKind.SUM
A, B, BOTH = Slice(OUT, 0, 4), Slice(OUT, 4, 4), Slice(OUT, 0, 8)
SPARE, EMPTY = Slice(SCRATCH, 0, 4), Slice(OUT, 2, 0)


@pytest.mark.parametrize(
    ("step", "reads", "writes"),
    [
        (Send(A, 1), [A], []),
        (Recv(A, 1), [], [A]),
        (Copy(A, B), [A], [B]),
        (Fill(A, SUM), [], [A]),
        (Reduce(A, B, SUM), [B, A], [B]),
        (Send(EMPTY, 1), [], []),
        (Copy(EMPTY, EMPTY), [], []),
    ],
)
def test_accesses(step: Step, reads: list[Slice], writes: list[Slice]) -> None:
    assert accesses(step) == (tuple(reads), tuple(writes))


@pytest.mark.parametrize(
    ("kind", "root", "rank", "reads", "writes"),
    [
        ("all_reduce", None, 1, [BOTH], [BOTH]),
        ("reduce_scatter", None, 1, [BOTH], [BOTH]),
        ("all_gather", None, 1, [B], [BOTH]),
        ("all_gather", None, None, [BOTH], [BOTH]),
        ("reduce", 0, 0, [BOTH], [BOTH]),
        ("reduce", 0, 1, [BOTH], []),
        ("reduce", 0, None, [BOTH], [BOTH]),
        ("broadcast", 0, 0, [BOTH], []),
        ("broadcast", 0, 1, [], [BOTH]),
        ("broadcast", 0, None, [BOTH], [BOTH]),
    ],
)
def test_accesses_of_vendor_calls_in_place(
    kind: str, root: int | None, rank: int | None, reads: list[Slice], writes: list[Slice]
) -> None:
    count = 4 if kind in ("all_gather", "reduce_scatter") else 8
    op = "sum" if kind in ("all_reduce", "reduce", "reduce_scatter") else None
    what = collective(kind, 2, count, op, root=root, in_place=True)
    assert accesses(VendorCall(WORLD, what, None, BOTH), rank) == (tuple(reads), tuple(writes))


def test_accesses_of_vendor_calls_on_two_buffers() -> None:
    what = collective("reduce", 2, 4, "sum", root=0)
    assert accesses(VendorCall(WORLD, what, SPARE, A)) == ((SPARE,), (A,))
    assert accesses(VendorCall(WORLD, what, SPARE, None)) == ((SPARE,), ())
    assert accesses(VendorCall(WORLD, collective("broadcast", 2, 4, root=0), None, A)) == ((), (A,))


def orders(*steps: Step) -> tuple[Order, ...]:
    return dependencies(Program(0, collective("all_reduce", 2, 8, "sum"), steps, 8))


def test_steps_on_different_elements_are_free() -> None:
    assert orders(Fill(A, SUM), Fill(B, SUM), Send(A, 1), Send(B, 1, 1)) == (
        Order(),
        Order(),
        Order(complete=(0,)),
        Order(complete=(1,)),
    )


def test_each_conflict_orders() -> None:
    fill, send, read = Fill(A, SUM), Send(A, 1), Copy(A, SPARE)
    assert orders(fill, send)[1].complete == (0,)  # read after write
    assert orders(send, fill)[1].complete == (0,)  # write after read
    assert orders(fill, fill)[1].complete == (0,)  # write after write
    assert orders(send, read)[1].complete == ()
    assert orders(fill, send, read, fill)[3].complete == (1, 2)  # the first fill is waited for by both
    assert orders(Fill(BOTH, SUM), Fill(A, SUM), Send(BOTH, 1))[2].complete == (1,)  # 1 has waited for 0


def test_channels_and_vendor_calls_are_started_in_order() -> None:
    call = VendorCall(WORLD, collective("broadcast", 2, 4, root=0), None, A)
    other = VendorCall(CommId("left", CommRole.BORDER), collective("broadcast", 2, 4, root=0), None, B)
    found = orders(Send(A, 1), Recv(B, 1), Send(A, 1, 7), Send(A, 1), call, other, Recv(B, 1))
    assert found[2] == Order()
    assert found[3] == Order(started=(0,))
    assert found[4] == Order(complete=(0, 2, 3))
    assert found[5] == Order(complete=(1,), started=(4,))
    assert found[6] == Order(complete=(5,), started=(1,))
    assert orders(call, call)[1] == Order(complete=(0,))  # waiting for its end is waiting for its start


def test_knowing_the_rank_allows_more_overlap() -> None:
    what = collective("broadcast", 2, 8, root=0, in_place=True)
    program = Program(0, what, (Send(A, 1), VendorCall(WORLD, what, None, BOTH)))
    assert dependencies(program)[1].complete == (0,)
    assert dependencies(program, {WORLD: 0})[1].complete == ()
    assert dependencies(program, {WORLD: 1})[1].complete == (0,)


slices = st.builds(
    Slice,
    st.sampled_from([OUT, SCRATCH]),
    st.integers(0, 12),
    st.integers(0, 6),
)


@st.composite
def local_steps(draw: st.DrawFn) -> Step:
    kind = draw(st.sampled_from(["send", "recv", "copy", "fill"]))
    if kind == "send":
        return Send(draw(slices), 1, draw(st.integers(0, 2)))
    if kind == "recv":
        return Recv(draw(slices), 1, draw(st.integers(0, 2)))
    if kind == "fill":
        return Fill(draw(slices), SUM)
    part = draw(slices)
    return Copy(Slice(IN, part.offset, part.count), part)


@given(st.lists(local_steps(), max_size=25))
def test_dependencies_order_exactly_the_conflicts(steps: list[Step]) -> None:
    found = orders(*steps)
    before: list[set[int]] = []
    for index, order in enumerate(found):
        assert all(wait < index for wait in order.complete + order.started)
        assert not set(order.complete) & set(order.started)
        before.append({index}.union(*(before[wait] for wait in order.complete)))
    for index, step in enumerate(steps):
        reads, writes = accesses(step)
        direct = set()
        for earlier in range(index):
            earlier_reads, earlier_writes = accesses(steps[earlier])
            pairs = [(a, b) for a in earlier_writes for b in reads + writes]
            pairs += [(a, b) for a in earlier_reads for b in writes]
            if any(a.overlaps(b) for a, b in pairs):
                assert earlier in before[index]
                direct.add(earlier)
        assert set(found[index].complete) <= direct


def test_dependencies_of_many_steps_stay_few() -> None:
    steps: list[Step] = []
    for chunk in range(2000):
        part = Slice(OUT, chunk * 8, 8)
        steps += [Recv(part, 1), Send(part, 2)]
    program = Program(0, collective("all_reduce", 3, 16000, "sum"), tuple(steps))
    found = dependencies(program)
    assert sum(len(order.complete) + len(order.started) for order in found) == 2000 + 2 * 1999


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(1, 8), st.integers(0, 3)), max_size=30))
def test_interval_map_is_an_array(writes: list[tuple[int, int, int]]) -> None:
    array, held = [9] * 30, IntervalMap(30, 9)
    for start, count, value in writes:
        array[start : start + count] = [value] * count
        held.assign(start, start + count, value)
        for low, high in ((0, 30), (start, start + count), (start // 2, start + 1)):
            bounds, values = held.runs(low, high)
            runs = zip(pairwise(bounds), values, strict=True)
            assert [each for (a, b), each in runs for _ in range(a, b)] == array[low:high]
            assert (bounds[0], bounds[-1]) == (low, high)
            assert all(one != other for one, other in pairwise(values))


GIVEN = Slice(IN, 0, 4)


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([Recv(A, 1), Reduce(GIVEN, A, SUM)], {0: 1}),
        ([Recv(SPARE, 1), Reduce(SPARE, A, SUM)], {0: 1}),
        ([Recv(SPARE, 1), Reduce(GIVEN, SPARE, SUM), Send(SPARE, 1)], {0: 1}),
        ([Recv(SPARE, 1), Reduce(SPARE, A, SUM), Recv(SPARE, 1), Reduce(SPARE, A, SUM)], {0: 1, 2: 3}),
        ([Recv(B, 1), Reduce(B, A, SUM)], {}),  # the user sees B
        ([Recv(SPARE, 1), Send(SPARE, 2), Reduce(SPARE, A, SUM)], {}),
        ([Recv(SPARE, 1), Reduce(SPARE, A, SUM), Copy(SPARE, B)], {}),
        ([Recv(SPARE, 1), Reduce(SPARE, A, SUM), Recv(Slice(SCRATCH, 0, 2), 1), Send(SPARE, 1)], {}),
        ([Recv(BOTH, 1), Reduce(GIVEN, A, SUM)], {}),  # a part of the message
        ([Recv(A, 1), Recv(Slice(OUT, 0, 2), 1), Reduce(GIVEN, A, SUM)], {}),
        ([Recv(A, 1), Copy(A, B)], {}),
        ([Recv(A, 1)], {}),
    ],
    ids=repr,
)
def test_what_a_reduction_alone_needs_is_found(steps: list[Step], found: dict[int, int]) -> None:
    assert consumers(Program(0, collective("all_reduce", 2, 8, "sum"), tuple(steps), 8)) == found


def test_match_is_first_in_first_out_per_channel() -> None:
    what = collective("broadcast", 2, 8, root=0)
    steps = [[Send(A, 1), Send(B, 1, 1), Send(B, 1)], [Recv(B, 0, 1), Recv(A, 0), Recv(B, 0)]]
    partners = match(build(what, steps))
    assert partners == {(0, 0): (1, 1), (1, 1): (0, 0), (0, 1): (1, 0), (1, 0): (0, 1), (0, 2): (1, 2), (1, 2): (0, 2)}


def test_match_and_groups_cover_every_step_that_needs_others() -> None:
    for schedule in examples(4, 5, "sum", 1, False):
        partners, groups = match(schedule), vendor_groups(schedule)
        members = [step for group in groups.values() for step in group]
        assert len(set(members)) == len(members)
        for program in schedule.programs:
            for index, step in enumerate(program.steps):
                here = (program.rank, index)
                assert (here in partners) == isinstance(step, (Send, Recv))
                assert (here in members) == isinstance(step, VendorCall)
        assert all(partners[partners[step]] == step for step in partners)


def test_match_names_the_step_without_partner() -> None:
    what = collective("broadcast", 2, 8, root=0)
    with pytest.raises(ScheduleError, match=r"step 1 \(send out\[4:8\] to 1\)"):
        match(build(what, [[Send(A, 1), Send(B, 1)], [Recv(A, 0)]]))
    with pytest.raises(ScheduleError, match=r"rank 1, step 0 \(recv out\[0:4\] from 0 on channel 2\)"):
        match(build(what, [[], [Recv(A, 0, 2)]]))


def test_vendor_groups_refuse_strangers() -> None:
    what = collective("all_reduce", 1, 4, "sum")
    call = VendorCall(WORLD, what, Slice(Buffer.IN, 0, 4), A)
    with pytest.raises(ScheduleError, match="no member"):
        vendor_groups(build(collective("all_reduce", 2, 4, "sum"), [[], [call]], 0, {WORLD: (0,)}))
    with pytest.raises(ScheduleError, match="does not list"):
        vendor_groups(build(collective("all_reduce", 2, 4, "sum"), [[], [call]]))
