"""The verifier accepts what is right and shows, for what is wrong, which element and which step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.strategies import collectives, passed_by
from hetcomm.errors import ScheduleError, UsageError
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.schedule.steps import CommId, CommRole, Copy, Fill, Recv, Reduce, Scale, Schedule, Send, Slice, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.topology import select
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import DataType, ReduceKind

from .handmade import (
    IN,
    OUT,
    SCRATCH,
    WORLD,
    bordered_all_reduce,
    build,
    check_numbers,
    collective,
    direct,
    examples,
    one_vendor_call,
    ring_all_reduce,
)

SUM = ReduceKind.SUM
PAIR = collective("all_reduce", 2, 8, "sum")
WHOLE = Slice(OUT, 0, 8)
SPARE = Slice(SCRATCH, 0, 8)
INPUT = Slice(IN, 0, 8)


def rejected(schedule: Schedule, *parts: str) -> ScheduleError:
    """The error of the verifier, whose message has all `parts` in it."""
    with pytest.raises(ScheduleError) as caught:
        verify(schedule)
    for part in parts:
        assert part in str(caught.value)
    return caught.value


OPS = ["sum", "prod", "min", "max", "avg", "premul_sum"]


@given(
    nranks=st.integers(1, 7),
    count=st.sampled_from([0, 1, 2, 5, 6, 7, 13, 70001]),
    op=st.sampled_from(OPS),
    root=st.integers(0, 6),
    in_place=st.booleans(),
)
def test_right_schedules_are_proved(nranks: int, count: int, op: str, root: int, in_place: bool) -> None:
    for schedule in examples(nranks, count, op, root % nranks, in_place):
        proof = verify(schedule)
        assert proof.steps == sum(len(program.steps) for program in schedule.programs)
        if count < 20:
            check_numbers(schedule, seeds=(0,))


BLOCK_KINDS = [kind for kind in CollectiveKind if kind.has_blocks]


@given(data=st.data(), nranks=st.integers(1, 6), kind=st.sampled_from(BLOCK_KINDS))
def test_vector_forms_and_displacements_are_proved(data: st.DataObject, nranks: int, kind: CollectiveKind) -> None:
    what = data.draw(collectives(nranks, kind=kind, vector=True))
    copied = what.op is ReduceKind.PREMUL_SUM or (nranks == 1 and what.op is not None and what.op.is_logical)
    op = SUM if copied else what.op
    what = replace(what, op=op, dtype=DataType.INT32)
    schedule = direct([data.draw(passed_by(what, rank)) for rank in range(nranks)])
    verify(schedule)
    check_numbers(schedule, seeds=(0,))


@pytest.mark.parametrize("op", ["land", "lor", "lxor"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_logical_op_of_one_rank_is_more_than_a_copy(op: str, in_place: bool) -> None:
    what = collective("all_reduce", 1, 8, op, in_place=in_place, dtype=DataType.INT32)
    steps = [] if in_place else [Copy(INPUT, WHOLE)]
    rejected(build(what, [steps]), "is not made 0 or 1")
    right = build(what, [[*steps, Fill(SPARE, ReduceKind(op)), Reduce(SPARE, WHOLE, ReduceKind(op))]], scratch=8)
    verify(right)
    check_numbers(right, seeds=(0,))
    other = ReduceKind.LAND if op != "land" else ReduceKind.LOR
    rejected(
        build(what, [[*steps, Fill(SPARE, other), Reduce(SPARE, WHOLE, other)]], scratch=8),
        f"under {other.value}, not {op}",
    )


def test_proof_counts_what_the_ring_does() -> None:
    proof = verify(ring_all_reduce(collective("all_reduce", 4, 400, "sum")))
    assert proof.messages == 4 * 6
    assert proof.vendor_calls == 0
    assert proof.moved == {(rank, (rank + 1) % 4): 600 for rank in range(4)}
    assert proof.rounds == 6
    assert proof.critical_path == 1 + 2 * 3 + 3


def test_proof_counts_what_border_reduction_does() -> None:
    proof = verify(bordered_all_reduce(collective("all_reduce", 6, 100, "avg")))
    assert proof.moved == {(0, 4): 50, (3, 1): 50, (0, 3): 50, (3, 0): 50}
    assert proof.vendor_calls == 2 * 4
    # home sum, halves to the other side, border sum, halves back, two broadcasts of which the first need not wait
    assert proof.rounds in (5, 6)


def test_adding_a_contribution_twice_is_rejected() -> None:
    steps = [
        [
            Copy(INPUT, WHOLE),
            Send(INPUT, 1 - r),
            Recv(SPARE, 1 - r),
            Reduce(SPARE, WHOLE, SUM),
            Reduce(SPARE, WHOLE, SUM),
        ]
        for r in (0, 1)
    ]
    error = rejected(
        build(PAIR, steps, 8),
        "counts the input of rank 1 more than once",
        "sum of in0[0], 2 x in1[0]",
        "sum of in0[0], in1[0]",
    )
    assert error.rank == 0
    assert error.step == "4 (reduce sum scratch[0:8] into out[0:8])"


def test_different_trees_on_two_ranks_are_rejected() -> None:
    steps = [[Copy(INPUT, WHOLE), Send(INPUT, 1 - r), Recv(SPARE, 1 - r), Reduce(SPARE, WHOLE, SUM)] for r in (0, 1)]
    error = rejected(build(PAIR, steps, 8), "element 0", "made in another way than on rank 0", "last bits")
    assert (error.rank, error.step) == (1, "3 (reduce sum scratch[0:8] into out[0:8])")


def test_two_calls_of_the_same_operands_are_not_bit_identical() -> None:
    left, right = CommId("left", CommRole.HOME), CommId("right", CommRole.HOME)
    what = collective("reduce", 2, 8, "sum", root=0)
    other = collective("reduce", 2, 8, "sum", root=1)
    steps = [
        [VendorCall(left, what, INPUT, WHOLE), VendorCall(right, other, INPUT, None)],
        [VendorCall(left, what, INPUT, None), VendorCall(right, other, INPUT, WHOLE)],
    ]
    rejected(build(PAIR, steps, 0, {left: (0, 1), right: (0, 1)}), "made in another way than on rank 0")


def test_elements_at_other_places_of_one_call_are_not_bit_identical() -> None:
    what = collective("reduce_scatter", 2, 8, "sum")
    twice = Slice(SCRATCH, 0, 16)
    steps = [
        [Copy(INPUT, SPARE), Copy(INPUT, Slice(SCRATCH, 8, 8)), VendorCall(WORLD, what, twice, WHOLE)] for _ in (0, 1)
    ]
    rejected(build(PAIR, steps, 16, {WORLD: (0, 1)}), "made in another way than on rank 0")


def test_two_rendezvous_sends_deadlock() -> None:
    # Each sends the buffer that it receives into next, which works with buffered messages only.
    steps = [[Copy(INPUT, WHOLE), Send(WHOLE, 1 - r), Recv(WHOLE, 1 - r)] for r in (0, 1)]
    error = rejected(
        build(collective("all_reduce", 2, 8, "sum"), steps, 8),
        "deadlock: rank 0 step 1 (send out[0:8] to 1), which waits for rank 1 step 2 (recv out[0:8] from 0), "
        "which waits for rank 1 step 1 (send out[0:8] to 0), which waits for rank 0 step 2",
    )
    assert (error.rank, error.step) == (0, "1 (send out[0:8] to 1)")


def test_receives_that_wait_for_each_other_deadlock() -> None:
    steps = [[Recv(SPARE, 1 - r), Copy(SPARE, WHOLE), Send(WHOLE, 1 - r)] for r in (0, 1)]
    rejected(build(PAIR, steps, 8), "deadlock", "rank 0 step 2", "rank 1 step 1", "rank 1 step 0")


def test_vendor_calls_issued_in_another_order_deadlock() -> None:
    left, right = CommId("left", CommRole.HOME), CommId("right", CommRole.HOME)
    calls = [VendorCall(comm, PAIR.with_in_place(True), None, WHOLE) for comm in (left, right)]
    schedule = build(PAIR, [[Copy(INPUT, WHOLE), *calls], [Copy(INPUT, WHOLE), *reversed(calls)]], 0)
    rejected(replace(schedule, communicators={left: (0, 1), right: (0, 1)}), "deadlock", "home:left", "home:right")


def test_mismatched_vendor_calls_are_rejected() -> None:
    good = one_vendor_call(PAIR)
    call = good.programs[1].steps[0]
    assert isinstance(call, VendorCall)

    def with_steps(*steps: VendorCall) -> Schedule:
        return replace(good, programs=(good.programs[0], replace(good.programs[1], steps=steps)))

    verify(with_steps(call))
    another_op = replace(call, collective=replace(PAIR, op=ReduceKind.PROD))
    rejected(with_steps(another_op), "meets another collective", "all_reduce sum 8 x float32")
    rejected(with_steps(), "rank 1 makes only 0")
    rejected(with_steps(call, call), "rank 0 makes only 1")
    rejected(with_steps(replace(call, comm=CommId("none", CommRole.HOME))), "home:none", "does not list")
    rejected(with_steps(replace(call, src=Slice(IN, 0, 7))), "src has 7 elements instead of 8")
    rejected(with_steps(replace(call, dst=None)), "dst has 0 elements instead of 8")
    rejected(with_steps(replace(call, src=WHOLE)), "overlap")
    rejected(with_steps(replace(call, collective=PAIR.with_in_place(True))), "in place, yet has a src")
    rejected(with_steps(replace(call, collective=replace(PAIR, dtype=DataType.INT8))), "works on int8")
    rejected(with_steps(replace(call, collective=replace(PAIR, nranks=3))), "is for 3 ranks")
    rejected(with_steps(replace(call, collective=replace(PAIR, op=ReduceKind.AVG))), "avg must be composed")
    rejected(replace(good, communicators={WORLD: (0, 0)}), "not distinct ranks")
    rejected(replace(good, communicators={WORLD: (0,)}), "for 2 ranks, home:world has 1")


def test_in_place_may_differ_between_the_members_of_a_call() -> None:
    here = PAIR.with_in_place(True)
    steps = [[VendorCall(WORLD, PAIR, INPUT, WHOLE)], [Copy(INPUT, WHOLE), VendorCall(WORLD, here, None, WHOLE)]]
    assert verify(build(PAIR, steps, 0, {WORLD: (0, 1)})).vendor_calls == 1


def test_a_channel_reordered_swaps_the_data() -> None:
    what = collective("all_gather", 2, 4)
    send = [Send(Slice(IN, 0, 2), 1), Send(Slice(IN, 2, 2), 1)]
    recv = [Recv(Slice(OUT, 0, 2), 0), Recv(Slice(OUT, 2, 2), 0)]
    back = [Send(Slice(IN, 0, 4), 0)], [Recv(Slice(OUT, 4, 4), 1)]
    mine = [Copy(Slice(IN, 0, 4), Slice(OUT, 4 * r, 4)) for r in (0, 1)]
    verify(build(what, [[mine[0], *send, *back[1]], [mine[1], *recv, *back[0]]]))
    crossed = build(what, [[mine[0], *send, *back[1]], [mine[1], *reversed(recv), *back[0]]])
    error = rejected(crossed, "does not hold the element it should", "it holds in0[2], it should hold in0[0]")
    assert error.step == "2 (recv out[0:2] from 0)"
    channels = [replace(step, channel=number) for number, step in enumerate(send)]
    recvs = [replace(step, channel=number) for number, step in enumerate(recv)]
    verify(build(what, [[mine[0], *channels, *back[1]], [mine[1], *reversed(recvs), *back[0]]]))


def test_structure_is_checked() -> None:
    def with_step(step: Copy | Fill | Reduce | Send | Recv) -> Schedule:
        good = one_vendor_call(PAIR)
        first = replace(good.programs[0], steps=(step, *good.programs[0].steps))
        return replace(good, programs=(first, good.programs[1]))

    rejected(with_step(Fill(Slice(OUT, 4, 5), SUM)), "out[4:9] leaves its buffer of 8 elements")
    rejected(with_step(Fill(Slice(SCRATCH, 0, 1), SUM)), "leaves its buffer of 0")
    rejected(with_step(Fill(INPUT, SUM)), "writes the input")
    rejected(with_step(Send(INPUT, 0)), "peer 0 is not another rank")
    rejected(with_step(Recv(WHOLE, 2)), "peer 2 is not another rank")
    rejected(with_step(Reduce(INPUT, WHOLE, ReduceKind.AVG)), "must be composed")
    rejected(with_step(Send(INPUT, 1)), "has no partner", "sends 1 times to rank 1")
    rejected(with_step(Recv(WHOLE, 1)), "has no partner", "receives 1 times")
    in_place = one_vendor_call(PAIR.with_in_place(True))
    spoiled = replace(in_place.programs[0], steps=(Copy(INPUT, WHOLE), *in_place.programs[0].steps))
    rejected(replace(in_place, programs=(spoiled, in_place.programs[1])), "leaves its buffer of 0")
    rejected(replace(in_place, programs=in_place.programs[:1]), "not those of ranks 0 to 1")
    other = replace(in_place.programs[1], collective=replace(PAIR, count=9))
    rejected(replace(in_place, programs=(in_place.programs[0], other)), "the program is for")


def test_messages_of_another_count_are_rejected() -> None:
    steps = [[Send(INPUT, 1)], [Recv(Slice(OUT, 0, 4), 0)]]
    rejected(build(PAIR, steps), "receives 4 elements of the 8 that rank 0 sends")


ALONE = collective("all_reduce", 1, 8, "sum")


def test_undefined_and_missing_elements_are_rejected() -> None:
    rejected(build(ALONE, [[]]), "is undefined", "no step writes it")
    rejected(build(ALONE, [[Copy(SPARE, WHOLE)]], 8), "element 0", "is undefined", "copy scratch[0:8] to out[0:8]")
    error = rejected(build(ALONE, [[Copy(Slice(IN, 0, 7), Slice(OUT, 0, 7))]]), "element 7", "it holds nothing defined")
    assert error.rank == 0
    steps = [[Copy(INPUT, WHOLE)], [Copy(INPUT, WHOLE)]]
    rejected(
        build(PAIR, steps), "does not combine all its sources", "it holds in0[0], it should hold sum of in0[0], in1[0]"
    )
    rejected(build(ALONE, [[Fill(WHOLE, SUM)]]), "does not combine all its sources", "it holds the identity of sum")


def test_undefined_elements_that_are_not_used_do_no_harm() -> None:
    two = Slice(SCRATCH, 0, 16)
    wide = collective("all_reduce", 1, 16, "sum", in_place=True)
    steps = [[Copy(INPUT, Slice(SCRATCH, 8, 8)), VendorCall(WORLD, wide, None, two), Copy(Slice(SCRATCH, 8, 8), WHOLE)]]
    verify(build(ALONE, steps, 16, {WORLD: (0,)}))


def test_identities_vanish_only_under_their_own_op() -> None:
    verify(build(ALONE, [[Fill(WHOLE, SUM), Reduce(INPUT, WHOLE, SUM)]]))
    verify(build(ALONE, [[Fill(WHOLE, ReduceKind.AVG), Reduce(INPUT, WHOLE, SUM)]]))
    both = [Fill(WHOLE, SUM), Fill(SPARE, SUM), Reduce(SPARE, WHOLE, SUM), Reduce(INPUT, WHOLE, SUM)]
    verify(build(ALONE, [both], 8))
    rejected(
        build(ALONE, [[Fill(WHOLE, ReduceKind.PROD), Reduce(INPUT, WHOLE, SUM)]]),
        "combines the identity of prod under sum",
    )
    mixed = [Fill(WHOLE, SUM), Fill(SPARE, ReduceKind.MAX), Reduce(SPARE, WHOLE, SUM), Reduce(INPUT, WHOLE, SUM)]
    rejected(build(ALONE, [mixed], 8), "combines the identity of max under sum")
    moved = collective("all_gather", 1, 8)
    rejected(build(moved, [[Fill(WHOLE, SUM), Reduce(INPUT, WHOLE, SUM)]]), "does not hold the element it should")


def test_other_ops_and_other_elements_are_rejected() -> None:
    good = direct_pair(SUM)
    verify(good)
    rejected(direct_pair(ReduceKind.PROD), "is combined under prod, not sum")
    steps = list(good.programs[0].steps)
    shifted = [Recv(Slice(SCRATCH, 0, 8), 1), Reduce(Slice(SCRATCH, 1, 7), Slice(OUT, 0, 7), SUM)]
    steps[1:3] = shifted
    programs = (replace(good.programs[0], steps=tuple(steps)), good.programs[1])
    rejected(replace(good, programs=programs), "combines different elements of the inputs", "in0[0], in1[1]")
    three = [Fill(SPARE, ReduceKind.PROD), Reduce(INPUT, SPARE, ReduceKind.PROD), Copy(SPARE, WHOLE)]
    rejected(build(ALONE, [three], 8), "is combined under prod")
    two = [*three[:2], Fill(WHOLE, SUM), Reduce(SPARE, WHOLE, SUM)]
    rejected(build(ALONE, [two], 8), "combines results of prod under sum")


def test_a_prefix_is_that_of_its_rank() -> None:
    scan, exscan = (collective(kind, 2, 8, "sum") for kind in ("scan", "exscan"))
    given, taken = Send(INPUT, 1), Recv(WHOLE, 0)
    verify(build(scan, [[Copy(INPUT, WHOLE), given], [taken, Reduce(INPUT, WHOLE, SUM)]]))
    verify(build(exscan, [[given, Fill(WHOLE, SUM)], [taken]]))
    rejected(build(scan, [[Copy(INPUT, WHOLE), given], [taken]]), "does not combine all its sources", "in0[0], in1[0]")
    everyone = [Recv(WHOLE, 1), Reduce(INPUT, WHOLE, SUM), given]
    rejected(build(scan, [everyone, [Send(INPUT, 0), taken, Reduce(INPUT, WHOLE, SUM)]]), "of rank 0")
    nothing = "it should hold the identity of sum"
    rejected(build(exscan, [[given], [taken]]), "is undefined", nothing)
    rejected(build(exscan, [[given, Copy(INPUT, WHOLE)], [taken]]), "does not combine", nothing)
    rejected(build(exscan, [[given, Fill(WHOLE, ReduceKind.PROD)], [taken]]), "is not the identity of sum", nothing)


@pytest.mark.parametrize("kind", ["scan", "exscan"])
def test_there_is_no_average_of_a_prefix(kind: str) -> None:
    with pytest.raises(UsageError, match=f"{kind} takes no op 'avg'"):
        collective(kind, 2, 8, "avg")


def direct_pair(op: ReduceKind) -> Schedule:
    """Rank 0 adds for both."""
    return build(
        PAIR,
        [
            [Copy(INPUT, WHOLE), Recv(SPARE, 1), Reduce(SPARE, WHOLE, op), Send(WHOLE, 1)],
            [Send(INPUT, 0), Recv(WHOLE, 0)],
        ],
        8,
    )


@pytest.mark.parametrize(
    ("op", "steps", "problem"),
    [
        ("avg", [Copy(INPUT, WHOLE)], None),  # one over one changes nothing
        ("avg", [Copy(INPUT, WHOLE, Scale.AVERAGE)], None),
        ("avg", [Copy(INPUT, WHOLE, Scale.AVERAGE), Copy(WHOLE, WHOLE, Scale.AVERAGE)], "averages more than once"),
        ("sum", [Copy(INPUT, WHOLE, Scale.AVERAGE)], "averages, though the op is sum"),
        ("premul_sum", [Copy(INPUT, WHOLE)], "lacks the factors"),
        ("premul_sum", [Copy(INPUT, WHOLE, Scale.FACTOR)], None),
        (
            "premul_sum",
            [Copy(INPUT, WHOLE, Scale.FACTOR), Copy(WHOLE, WHOLE, Scale.FACTOR)],
            "something else than the input",
        ),
        ("sum", [Copy(INPUT, WHOLE, Scale.FACTOR)], "by a factor, though the op is sum"),
    ],
)
def test_scaling_alone(op: str, steps: list[Copy], problem: str | None) -> None:
    schedule = build(collective("all_reduce", 1, 8, op), [steps])
    if problem is None:
        verify(schedule)
    else:
        rejected(schedule, problem)


def test_scaling_among_several() -> None:
    average = Copy(WHOLE, WHOLE, Scale.AVERAGE)
    gather = [Copy(INPUT, WHOLE), Recv(SPARE, 1), Reduce(SPARE, WHOLE, SUM)]
    other = [Send(INPUT, 0), Recv(WHOLE, 0)]
    avg, premul = collective("all_reduce", 2, 8, "avg"), collective("all_reduce", 2, 8, "premul_sum")
    verify(build(avg, [[*gather, average, Send(WHOLE, 1)], other], 8))
    rejected(build(avg, [[*gather, Send(WHOLE, 1)], other], 8), "is not averaged")
    rejected(build(avg, [[gather[0], average, *gather[1:], Send(WHOLE, 1)], other], 8), "averages before everything")
    half = [Copy(INPUT, WHOLE, Scale.FACTOR), *gather[1:], Send(WHOLE, 1)]
    rejected(build(premul, [half, other], 8), "combines inputs with and without their factor")
    foreign = [gather[0], gather[1], Copy(SPARE, SPARE, Scale.FACTOR), gather[2], Send(WHOLE, 1)]
    rejected(build(premul, [foreign, other], 8), "something else than the input of rank 0")
    own = [Copy(INPUT, SPARE, Scale.FACTOR), Send(SPARE, 0), Recv(WHOLE, 0)]
    verify(build(premul, [half, own], 8))


def test_reduce_scatter_in_place_leaves_the_rest_undefined() -> None:
    inner = collective("reduce_scatter", 2, 4, "sum", in_place=True)
    whole = collective("all_gather", 2, 4, in_place=True)
    steps = [[Copy(INPUT, WHOLE), VendorCall(WORLD, inner, None, WHOLE)] for _ in (0, 1)]
    rejected(build(PAIR, steps, 0, {WORLD: (0, 1)}), "element 4", "is undefined")
    for mine in steps:
        mine.append(VendorCall(WORLD, whole, None, WHOLE))
    verify(build(PAIR, steps, 0, {WORLD: (0, 1)}))


GATHER_V = collective("all_gather", 2, 5, counts=(2, 3))


def gathered(displs: tuple[int, ...] | None, steps: list[Copy] | None = None) -> Schedule:
    """An all_gather of 2 + 3 elements, rank 0 with displacements and then some steps more."""
    schedule = direct([replace(GATHER_V, out_displs=displs), GATHER_V])
    first = replace(schedule.programs[0], steps=(*schedule.programs[0].steps, *(steps or [])), scratch_count=8)
    return replace(schedule, programs=(first, schedule.programs[1]))


def test_what_lies_between_blocks_is_left_alone() -> None:
    verify(gathered((4, 0)))
    error = rejected(
        gathered((4, 0), [Copy(Slice(OUT, 4, 1), Slice(OUT, 3, 1))]),
        "element 3 of the buffer of rank 0 lies between blocks",
        "it holds in0[0], it should hold what it held before",
    )
    assert (error.rank, error.step) == (0, "3 (copy out[4:5] to out[3:4])")
    saved, back = Copy(Slice(OUT, 3, 1), Slice(SCRATCH, 0, 1)), Copy(Slice(SCRATCH, 0, 1), Slice(OUT, 3, 1))
    verify(gathered((4, 0), [saved, Copy(Slice(OUT, 4, 1), Slice(OUT, 3, 1)), back]))
    spilled = [saved, Copy(Slice(SCRATCH, 0, 1), Slice(OUT, 0, 1))]
    rejected(gathered((4, 0), spilled), "element 2 of the output", "what was between blocks, at 3", "in1[0]")


def test_the_counterexample_of_a_vector_form_counts_in_the_packed_output() -> None:
    error = rejected(
        gathered((4, 0), [Copy(Slice(OUT, 0, 1), Slice(OUT, 5, 1))]),
        "element 1 of the output of rank 0, at out[5], does not hold the element it should",
        "it holds in1[0], it should hold in0[1]",
    )
    assert (error.rank, error.step) == (0, "3 (copy out[0:1] to out[5:6])")


def test_blocks_that_share_elements_are_refused() -> None:
    rejected(gathered((0, 1)), "element 1 of the output lies in two blocks")
    scattered = collective("reduce_scatter", 2, 5, "sum", counts=(2, 3))
    twice = direct([scattered, replace(scattered, in_displs=(1, 0))])
    rejected(twice, "[rank 1] element 1 of the input lies in two blocks")


def test_empty_blocks_are_nobodys() -> None:
    what = collective("all_gather", 3, 4, counts=(0, 4, 0))
    verify(direct([what] * 3))
    good = direct([what] * 3)
    alone = replace(good.programs[2], steps=())
    others = [replace(p, steps=tuple(s for s in p.steps if getattr(s, "peer", 0) != 2)) for p in good.programs[:2]]
    error = rejected(replace(good, programs=(*others, alone)), "element 0", "nothing defined", "in1[0]")
    assert error.rank == 2


def test_vendors_are_asked_for_five_kinds_and_no_counts() -> None:
    for kind, root in (("gather", 0), ("scatter", 0), ("all_to_all", None)):
        what = collective(kind, 1, 8, root=root)
        rejected(build(what, [[VendorCall(WORLD, what, INPUT, WHOLE)]], 0, {WORLD: (0,)}), f"vendors offer no {kind}")
    what = collective("all_gather", 1, 8, counts=(8,))
    rejected(build(what, [[VendorCall(WORLD, what, INPUT, WHOLE)]], 0, {WORLD: (0,)}), "has counts")


def test_an_all_to_all_in_place_may_not_overwrite_what_it_still_sends() -> None:
    what = collective("all_to_all", 2, 4, in_place=True)
    left, right = Slice(OUT, 0, 4), Slice(OUT, 4, 4)
    early = [
        [Recv(SPARE.part(0, 4), 1), Copy(SPARE.part(0, 4), right), Send(right, 1)],
        [Send(left, 0), Recv(left, 0)],
    ]
    rejected(build(what, early, 8), "it holds in1[0], it should hold in0[4]")
    verify(direct([what] * 2))


@pytest.mark.parametrize(("kind", "op"), [("broadcast", None), ("scatter", None)])
def test_the_array_of_the_root_is_only_read_in_place(kind: str, op: str | None) -> None:
    what = collective(kind, 2, 4, op, root=0, in_place=True)
    mine, other = Slice(OUT, 0, 4), Slice(OUT, 0 if kind == "broadcast" else 4, 4)
    steps = [[Send(other, 1)], [Recv(mine, 0)]]
    verify(build(what, steps))
    back = Copy(Slice(SCRATCH, 0, 4), mine)
    steps[0] += [Copy(mine, Slice(SCRATCH, 0, 4)), back]
    rejected(build(what, steps, 4), "rank 0, step 2", "writes the array of the root, which is only read")


@pytest.mark.slow
@pytest.mark.parametrize("borders", [1, 64])
@pytest.mark.parametrize("kind", ["all_reduce", "all_gather"])
def test_a_job_of_4096_ranks_is_proved(kind: str, borders: int) -> None:
    ranks = [range(first, first + 64) for first in range(0, 4096, 64)]
    uplinks = [tuple(Uplink(rank) for rank in mine[:borders]) for mine in ranks]
    clusters = [Cluster(f"c{number}", "mpi", mine, uplinks[number]) for number, mine in enumerate(ranks)]
    what = collective(kind, 4096, 1 << 20, "sum" if kind == "all_reduce" else None)
    proof = verify(select.schedule(what, Topology(tuple(clusters))))
    crossing = sum(count for (sender, receiver), count in proof.moved.items() if sender // 64 != receiver // 64)
    assert crossing == (2 * 63 << 20 if kind == "all_reduce" else 63 * 4096 << 20)
