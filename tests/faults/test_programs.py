"""What the random programs are, what their ranks must get, and what is made of what they tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hetcomm.errors import PlanMismatchError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, ReduceKind

from .campaign import BAD, KINDS, Verdict, judge, names_both, summary
from .execute import execute
from .programs import CHANGES, JOBS, Call, Group, Init, Job, Mutation, Program, Split, Start, agree, mutated, right

SEEDS = range(1000)
SUM = Collective(CollectiveKind.ALL_REDUCE, 2, 5, DataType.INT32, ReduceKind.SUM)
MAX = replace(SUM, op=ReduceKind.MAX)


def program(*steps: Any, rank: int = 1, index: int | None = None, instead: tuple[Any, ...] = ()) -> Program:
    """A program of two ranks."""
    mutation = None if index is None else Mutation(rank, index, instead, "by hand")
    return Program(0, Job(("ucx", "ucx"), None), ((0, 1),), steps, mutation)


# ---- programs


def test_a_seed_is_the_same_program_everywhere() -> None:
    for seed in SEEDS[::50]:
        assert str(right(seed)) == str(right(seed))
        assert str(mutated(seed)) == str(mutated(seed))
    assert len({str(right(seed)) for seed in SEEDS}) == len(SEEDS)


def test_right_programs_agree_and_others_do_not() -> None:
    for seed in SEEDS:
        assert right(seed).divergence is None
        assert mutated(seed).divergence is not None


def test_one_call_is_changed_on_one_rank() -> None:
    for seed in SEEDS:
        made, changed = right(seed), mutated(seed)
        assert changed.mutation is not None
        for rank in range(made.nranks):
            same = made.steps_of(rank) == changed.steps_of(rank)
            assert same == (rank != changed.mutation.rank), (seed, rank)
        assert abs(len(made.steps_of(changed.mutation.rank)) - len(changed.steps_of(changed.mutation.rank))) <= 1


def test_everything_is_drawn() -> None:
    made = [mutated(seed) for seed in SEEDS]
    steps = [step for each in made for step in each.steps]
    assert {type(step) for step in steps} == {Call, Group, Init, Start, Split}
    specs = [step.spec for step in steps if isinstance(step, Call)]
    there = [spec for spec in specs if spec is not None]
    assert None in specs
    forms = {(kind, vector) for kind in CollectiveKind for vector in (False, kind.has_blocks)}
    assert {(spec.kind, spec.counts is not None) for spec in there} == forms
    assert {spec.dtype for spec in there} == set(DataType)
    assert {spec.op for spec in there} == {None, *ReduceKind}
    assert {each.mutation.change for each in made if each.mutation} == set(CHANGES)
    assert {step.held is None for step in steps if isinstance(step, Call)} == {True, False}
    sizes = [spec.total * spec.dtype.itemsize for spec in there]
    assert max(sizes) > 4 << 20
    assert sum(size <= 4096 for size in sizes) > len(sizes) / 2
    assert {len(each.vendors) for each in JOBS} == {2, 3, 4, 5, 6}
    assert {name for each in JOBS for name in each.vendors} == {"mpi", "oneccl", "gloo", "ucx"}


def test_each_change_is_one() -> None:
    for seed in SEEDS:
        changed = mutated(seed)
        mutation = changed.mutation
        assert mutation is not None
        before, after = changed.steps[mutation.index], mutation.steps
        if mutation.change in ("omitted", "doubled"):
            assert len(after) == (0 if mutation.change == "omitted" else 2)
            continue
        (step,) = after
        assert step.comm == before.comm or mutation.change == "communicator"
        if isinstance(before, Call) and isinstance(step, Call) and None not in (before.spec, step.spec):
            assert before.spec is not None
            assert step.spec is not None
            one = {"op": "op", "root": "root", "dtype": "dtype", "size": "dtype"}.get(mutation.change)
            if one is not None:
                assert replace(step.spec, **{one: getattr(before.spec, one)}) == before.spec
            if mutation.change in ("dtype", "size"):
                equal = step.spec.dtype.itemsize == before.spec.dtype.itemsize
                assert equal == (mutation.change == "dtype")


def test_the_number_from_which_ranks_disagree() -> None:
    steps = [Call(number, 0, SUM) for number in range(5)]
    assert program(*steps).divergence is None
    assert program(*steps, index=3, instead=(Call(3, 0, MAX),)).divergence == (0, 3)
    # One of five equal calls is left out: nothing is wrong until one rank makes its fifth and the other its last.
    assert program(*steps, index=1).divergence == (0, 4)
    assert program(*steps, index=1, instead=(steps[1], Call(1001, 0, SUM))).divergence == (0, 5)
    group = Group(5, 0, (SUM, MAX))
    assert program(*steps, group, index=5, instead=(Group(5, 0, (SUM, SUM)),)).divergence == (0, 5)
    # A group of one is that call; a request is compared when it is made, and each of its runs is a call.
    request = Init(0, 0, SUM)
    assert program(request, Start(1, 0, 0), index=1, instead=(Group(1, 0, (SUM,)),)).divergence is None
    assert program(request, index=0, instead=(Call(0, 0, SUM),)).divergence == (0, 0)


def test_counts_of_an_all_to_all_v_concern_two_ranks() -> None:
    one = Collective(CollectiveKind.ALL_TO_ALL, 3, 9, DataType.INT8, counts=(1,) * 9)
    other = replace(one, count=10, counts=(1, 1, 1, 1, 1, 2, 1, 1, 1))  # what rank 1 has for rank 2
    assert agree(one, 0, other, 1)
    assert not agree(one, 1, other, 2)
    assert not agree(one, 2, other, 1)


# ---- what a rank tells


class Work:
    def wait(self) -> None:
        """It is over."""


class Pair:
    """A communicator of two ranks of which there is only rank 0: it has rank 1's input from the program."""

    def __init__(self, spoil: int | None = None, fail: int | None = None, late: bool = False) -> None:
        self.spoil, self.fail, self.late = spoil, fail, late
        self.calls = 0
        self.target: Any = None
        self.left: str | None = None

    def all_reduce(self, source: Any, target: Any = None, op: str = "sum", *, async_op: bool = False) -> Any:
        if self.fail == self.calls:
            raise PlanMismatchError("rank 0 calls this, but rank 1 calls that")
        target = source if target is None else target
        target[:] = self.answers[self.calls]
        if self.spoil == self.calls:
            target[2] += 1
        self.target = target
        self.calls += 1
        return Work() if async_op else None

    def all_gather(self, source: Any, target: Any = None) -> None:
        target = source if target is None else target
        target[:] = self.answers[self.calls]

    def close(self) -> None:
        self.left = "closed"
        if self.late:
            self.target[0] += 1

    def __exit__(self, *_: object) -> None:
        self.left = "left"


def played(comm: Pair, steps: tuple[Any, ...]) -> Any:
    """What rank 0 tells of a program."""
    from hetcomm._conformance.reference import reference_of

    from .programs import END, LAST, input_of

    made = program(*steps)
    comm.answers = [
        reference_of(spec, 0, [input_of(made, spec, uid, 0, rank) for rank in (0, 1)])
        for spec, uid in [*((step.spec, step.uid) for step in steps), (replace(END, nranks=2), LAST)]
    ]
    outcome, look = execute(comm, made, 0)
    look()
    return outcome


STEPS = (Call(0, 0, SUM), Call(1, 0, SUM, 0), Call(2, 0, MAX), Call(3, 0, SUM))


def test_right_values_are_right() -> None:
    comm = Pair()
    outcome = played(comm, STEPS)
    assert (outcome.error, outcome.wrong, outcome.damaged, outcome.late_writes) == (None, [], [], [])
    assert comm.left == "closed"


@pytest.mark.parametrize("number", range(4))
def test_a_wrong_value_is_seen(number: int) -> None:
    outcome = played(Pair(spoil=number), STEPS)
    assert outcome.error is None
    assert len(outcome.wrong) == 1
    assert f"step {number} (#{number})" in outcome.wrong[0]
    assert "1 of 5 elements, at [2]" in outcome.wrong[0]


def test_an_error_is_told_and_what_is_written_after_it() -> None:
    outcome = played(Pair(fail=2), STEPS)
    assert outcome.error["type"] == "PlanMismatchError"
    assert outcome.error["in"] == "step 2 (#2)"
    assert outcome.late_writes == []


# ---- what is made of it


def told(rank: int, kind: str | None = None, text: str = "rank 0 calls a, but rank 1 calls b", at: float = 1.5) -> Any:
    error = None if kind is None else {"type": kind, "text": text, "in": "step 0", "at": at}
    return {"rank": rank, "error": error, "begun": 0.0, "parted": 1.0, "wrong": [], "damaged": [], "late_writes": []}


CHANGED = program(Call(0, 0, SUM), index=0, instead=(Call(0, 0, MAX),))
MISMATCH = "PlanMismatchError"


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("refused", [told(0, MISMATCH), told(1, "UsageError")]),
        ("timeout", [told(0, MISMATCH), told(1, "CollectiveTimeoutError")]),
        ("late", [told(0, MISMATCH), told(1, MISMATCH, at=4.0)]),
        ("left", [told(0, "PeerFailureError"), told(1, MISMATCH)]),
        ("unnamed", [told(0, MISMATCH, "they disagree"), told(1, MISMATCH)]),
        ("other", [told(0, "TransportError"), told(1, MISMATCH)]),
        ("untold", [told(0), told(1, MISMATCH)]),
        ("unnoticed", [told(0), told(1)]),
        ("wrong, then told", [{**told(0, MISMATCH), "wrong": ["a"]}, told(1, MISMATCH)]),
        ("wrong", [{**told(0), "wrong": ["a"]}, told(1, MISMATCH)]),
        ("memory", [{**told(0, MISMATCH), "late_writes": ["a"]}, told(1, MISMATCH)]),
        ("parent", [{**told(0, MISMATCH), "parent": "TransportError"}, told(1, MISMATCH)]),
    ],
)
def test_verdicts(kind: str, ranks: list[Any]) -> None:
    verdict = judge(CHANGED, ranks)
    assert verdict.kind == kind
    assert "--seed 0 --only mutated" in str(verdict)
    assert judge(CHANGED, [ranks[0], None], "crash").kind == "crash"
    assert judge(CHANGED, [None, None], "hang").kind == "hang"


@pytest.mark.parametrize(
    ("kind", "told_of_it"),
    [
        ("right", told(0)),
        ("error", told(0, MISMATCH)),
        ("wrong", {**told(0), "wrong": ["a"]}),
        ("memory", {**told(0), "damaged": ["a"]}),
    ],
)
def test_verdicts_of_right_programs(kind: str, told_of_it: Any) -> None:
    assert judge(program(Call(0, 0, SUM)), [told_of_it, told(1)]).kind == kind


def test_both_sides_are_named() -> None:
    assert names_both("rank 3 calls a, but rank 1 calls b", 1)
    assert names_both("[rank 0, peer 1] it waits for: ranks 1, 2 to agree", 1)
    assert not names_both("[rank 0] it waits for rank 2", 1)
    assert not names_both("[rank 1, collective 2] it waits", 1)


def test_figures() -> None:
    verdicts = [
        Verdict("right", program(Call(0, 0, SUM)), [told(0), told(1)]),
        judge(CHANGED, [told(0, MISMATCH), told(1, MISMATCH, at=4.0)]),
        judge(CHANGED, [told(0), told(1)]),
    ]
    figures = summary(verdicts, 1.0)
    assert figures["right"] == {"right": 1}
    assert {kind: count for kind, count in figures["mutated"].items() if count} == {"late": 1, "unnoticed": 1}
    assert figures["detection"]["within 2 s"] == 0.5
    assert figures["errors"] == {MISMATCH: 2}
    assert figures["failed"] == {"late": [0], "unnoticed": [0]}
    assert set(KINDS) - BAD == {"refused", "timeout", "late"}
