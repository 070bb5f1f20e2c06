"""A schedule goes through JSON and comes back the same; anything else is refused with the place named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.errors import ScheduleError
from hetcomm.schedule.serial import FORMAT, VERSION, from_json, to_json
from hetcomm.schedule.steps import CommId, CommRole

from .handmade import bordered_all_reduce, collective, examples, one_vendor_call


@given(
    nranks=st.integers(1, 5),
    count=st.integers(0, 20),
    op=st.sampled_from(["sum", "avg", "premul_sum", "max"]),
    in_place=st.booleans(),
)
def test_round_trip_is_exact(nranks: int, count: int, op: str, in_place: bool) -> None:
    for schedule in examples(nranks, count, op, nranks - 1, in_place):
        again = from_json(json.loads(json.dumps(to_json(schedule))))
        assert again == schedule
        assert list(again.communicators) == list(schedule.communicators)


def test_programs_may_differ_in_place_and_clusters_may_have_any_name() -> None:
    schedule = one_vendor_call(collective("broadcast", 2, 3, root=0))
    programs = (schedule.programs[0], replace(schedule.programs[1], collective=schedule.collective.with_in_place(True)))
    odd = replace(schedule, programs=programs, communicators={CommId("a:b c", CommRole.BORDER): (1, 0)})
    assert from_json(to_json(odd)) == odd
    wrong = replace(odd, programs=(programs[0], replace(programs[1], collective=replace(schedule.collective, count=4))))
    with pytest.raises(ScheduleError, match=r"rank 1\] the program is for another collective"):
        to_json(wrong)


def test_the_document_is_what_the_docstring_says() -> None:
    document = to_json(bordered_all_reduce(collective("all_reduce", 4, 10, "avg")))
    assert (document["format"], document["version"]) == (FORMAT, VERSION) == ("hetcomm.schedule", 1)
    assert document["collective"] == {
        "kind": "all_reduce",
        "nranks": 4,
        "count": 10,
        "dtype": "float32",
        "op": "avg",
        "root": None,
        "in_place": False,
    }
    assert document["communicators"]["border:right"] == [2, 3]
    steps = document["programs"][0]["steps"]
    assert steps[0] == {"step": "copy", "src": ["in", 0, 10], "dst": ["out", 0, 10], "scale": None}
    assert steps[2] == {"step": "send", "src": ["out", 5, 5], "peer": 3, "channel": 0}
    assert (steps[1]["step"], steps[1]["comm"], steps[1]["src"]) == ("vendor_call", "home:left", None)


def spoil(path: list[Any], value: Any) -> Callable[[Any], None]:
    """A change of the document; `...` removes the entry."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        if value is ...:
            del document[path[-1]]
        else:
            document[path[-1]] = value

    return change


STEP = ["programs", 0, "steps", 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(["format"], "x"), "no document of format"),
        (spoil(["version"], 2), "version 2 of hetcomm.schedule is not known"),
        (spoil(["version"], ...), "version None"),
        (spoil(["programs"], {}), "not of type list"),
        (spoil(["extra"], 1), "the keys are"),
        (spoil(["collective", "op"], "xor"), "'xor' is none of"),
        (spoil(["collective", "nranks"], 0), "nranks 0 is less than one"),
        (spoil(["collective", "count"], True), "True is not of type int"),
        (spoil(["communicators", "nonsense"], []), "not named role:cluster"),
        (spoil(["communicators", "away:x"], []), "'away' is none of"),
        (spoil(["programs", 1, "scratch_count"], "4"), r"\[rank 1\] .*'4' is not of type int"),
        (spoil([*STEP, "peer"], ...), r"\[rank 0, step 2\] .*the keys are"),
        (spoil([*STEP, "src"], None), r"\[rank 0, step 2\]"),
        (spoil([*STEP, "src"], ["out", 5]), r"\[rank 0, step 2\] .*not \[buffer, offset, count\]"),
        (spoil([*STEP, "src"], ["out", -5, 5]), r"\[rank 0, step 2\] .*offset -5"),
        (spoil([*STEP, "src"], ["up", 0, 5]), r"\[rank 0, step 2\] .*'up' is none of"),
        (spoil([*STEP, "step"], "jump"), r"\[rank 0, step 2\] .*'jump' is no kind of step"),
        (spoil([*STEP[:-1], 0, "dst"], ["out", 0, 9]), r"\[rank 0, step 0\] .*counts differ"),
        (spoil(STEP, "send"), r"\[rank 0, step 2\] .*not an object"),
        (spoil(["programs", 0, "in_place"], 0), "0 is not of type bool"),
    ],
)
def test_malformed_documents_are_refused(change: Callable[[Any], None], message: str) -> None:
    document = copy.deepcopy(to_json(bordered_all_reduce(collective("all_reduce", 4, 10, "avg"))))
    change(document)
    with pytest.raises(ScheduleError, match=message):
        from_json(document)


def test_other_things_are_no_documents() -> None:
    for thing in (None, [], "x", 3):
        with pytest.raises(ScheduleError, match="no document"):
            from_json(thing)  # type: ignore[arg-type]
