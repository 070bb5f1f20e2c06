"""A schedule goes through JSON and comes back the same; anything else is refused with the place named."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.strategies import collectives, passed_by
from hetcomm.errors import ScheduleError
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.schedule.serial import FORMAT, VERSION, dumps, from_json, loads, to_json
from hetcomm.schedule.steps import CommId, CommRole, VendorCall
from hetcomm.schedule.verify import verify

from .handmade import WORLD, bordered_all_reduce, build, collective, direct, examples, one_vendor_call


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
    assert (document["format"], document["version"]) == (FORMAT, VERSION) == ("hetcomm.schedule", 2)
    assert document["collective"] == {
        "kind": "all_reduce",
        "nranks": 4,
        "count": 10,
        "dtype": "float32",
        "op": "avg",
        "root": None,
        "in_place": False,
        "counts": None,
        "in_displs": None,
        "out_displs": None,
    }
    assert document["communicators"]["border:right"] == [2, 3]
    steps = document["programs"][0]["steps"]
    assert steps[0] == {"step": "copy", "src": ["in", 0, 10], "dst": ["out", 0, 10], "scale": None}
    assert steps[2] == {"step": "send", "src": ["out", 5, 5], "peer": 3, "channel": 0}
    assert (steps[1]["step"], steps[1]["comm"], steps[1]["src"]) == ("vendor_call", "home:left", None)
    assert set(steps[1]["collective"]) == {"kind", "nranks", "count", "dtype", "op", "root", "in_place"}


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


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    thing: Any = []
    for _ in range(depth):
        thing = [thing]
    return thing


STEP = ["programs", 0, "steps", 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(["format"], "x"), "no document of format"),
        (spoil(["version"], 1), "version 1 of hetcomm.schedule is not known"),
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
        (spoil(["programs", 0, "in_displs"], [0]), r"\[rank 0\] .*in_displs of all_reduce needs counts"),
        (spoil(["programs", 0, "scratch_count"], -1), r"\[rank 0\] .*-1 is negative"),
        (spoil(["programs", 0, "scratch_count"], 1 << 63), r"\[rank 0\] .*is beyond all counts"),
        (spoil(["collective", "count"], 10**5000), "an integer of 16610 bits is beyond all counts"),
        (spoil(["collective", "counts"], [1, 2]), "has no vector form"),
        (spoil(["collective", "kind"], ["all_reduce"]), "a list of 1 is none of"),
        (spoil(["version"], 2.0), "version 2.0 of"),
        (spoil(["version"], True), "version True of"),
        (spoil(["programs", 0, "algorithm"], nested(100_000)), "a list of 1 is not of type str"),
        (spoil(["format"], nested(100_000)), "no document of format"),
        (spoil([*STEP, 7], 1), r"\[rank 0, step 2\] .*the keys are"),
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


@given(data=st.data(), nranks=st.integers(1, 4), kind=st.sampled_from([k for k in CollectiveKind if k.has_blocks]))
def test_vector_forms_come_back_the_same_from_text(data: st.DataObject, nranks: int, kind: CollectiveKind) -> None:
    what = data.draw(collectives(nranks, kind=kind))
    schedule = direct([data.draw(passed_by(what, rank)) for rank in range(nranks)])
    assert loads(dumps(schedule)) == schedule
    assert json.loads(dumps(schedule)) == to_json(schedule)
    assert loads(dumps(schedule).encode()) == schedule


def test_text_has_a_line_for_each_step() -> None:
    schedule = bordered_all_reduce(collective("all_reduce", 4, 10, "avg"))
    lines = dumps(schedule).splitlines()
    assert sum('"step"' in line for line in lines) == sum(len(program.steps) for program in schedule.programs)


def test_vendor_calls_with_counts_cannot_be_written() -> None:
    what = collective("all_gather", 1, 8, counts=(8,))
    with pytest.raises(ScheduleError, match=r"rank 0, step 0\] a vendor call has counts"):
        to_json(build(what, [[VendorCall(WORLD, what, None, None)]], 0, {WORLD: (0,)}))


TEXT = dumps(one_vendor_call(collective("broadcast", 2, 3, root=0)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        (TEXT[:-20], "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        ("[" * 100_000, "nested far too deep"),
        ('{"a": ' * 100_000, "nested far too deep"),
        ("9" * 10_000, "no JSON"),
        ("17", "no document"),
        (TEXT.replace('"count": 3', '"count": NaN'), "NaN is no number of a schedule"),
        (TEXT.replace('"count": 3', '"count": -Infinity'), "-Infinity is no number"),
        (TEXT.replace('"count": 3', '"count": 3e0'), "3.0 is not of type int"),
        (TEXT.replace('"count": 3', '"count": 3, "count": 3'), "the key 'count' twice"),
        (TEXT.replace('"count": 3', '"count": -3'), "count -3 of broadcast is negative"),
        (TEXT.replace('"version": 2', '"version": 3'), "version 3 .* Write the schedule again"),
    ],
)
def test_malformed_text_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        loads(text)


def paths(thing: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything in a document is."""
    inner = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list) else ()
    return [here, *[path for key, value in inner for path in paths(value, (*here, key))]]


DOCUMENTS = [to_json(schedule) for schedule in examples(2, 3, "avg", 1, False)]
DOCUMENTS += [to_json(direct([collective("all_gather", 2, 5, counts=(2, 3), out_displs=(4, 0))] * 2))]
SCALARS = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=8)
    | st.integers(-3, 12)
    | st.integers()
    | st.sampled_from([1 << 31, 1 << 62, 1 << 63, -(1 << 63), 1 << 64, 1 << 128, 1 << 5000, "home:world", "sum", "out"])
)
THINGS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(data=st.data(), document=st.sampled_from(DOCUMENTS), changes=st.integers(1, 3))
def test_whatever_is_put_in_a_document_is_refused_or_verified(data: st.DataObject, document: Any, changes: int) -> None:
    """Reading and verifying raise nothing but `ScheduleError`."""
    spoiled = copy.deepcopy(document)
    for _ in range(changes):
        where = data.draw(st.sampled_from(paths(spoiled)[1:]))
        spoil(list(where), data.draw(THINGS | st.just(...)))(spoiled)
    with contextlib.suppress(ScheduleError):
        verify(from_json(spoiled))


@given(thing=THINGS)
def test_no_other_thing_is_read(thing: Any) -> None:
    with pytest.raises(ScheduleError):
        from_json(thing)


@given(data=st.data(), text=st.sampled_from([json.dumps(document) for document in DOCUMENTS]))
def test_damaged_text_is_refused_or_verified(data: st.DataObject, text: str) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 30)))
    damaged = (
        text[:start] + data.draw(st.text(max_size=10) | st.text('0123456789[]{},:"nul-.eE ', max_size=10)) + text[stop:]
    )
    with contextlib.suppress(ScheduleError):
        verify(loads(damaged))
