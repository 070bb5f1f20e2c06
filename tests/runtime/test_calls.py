"""A call's arguments become a collective and its memory, or an error that names argument and remedy."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.calls import calls
from hetcomm.calls.calls import Call
from hetcomm.errors import UsageError
from hetcomm.types import Memory

RANK, NRANKS = 1, 3
COUNTS = (2, 3, 0)


def zeros(count: int, dtype: str = "f4") -> Any:
    return np.zeros(count, dtype)


def address(found: Memory | None) -> int:
    assert found is not None
    return found.address


def where(part: Any) -> int:
    return int(part.__array_interface__["data"][0])


def exchange(
    in_array: Any, out_array: Any, gathered: Any, in_displs: Any, out_displs: Any, rank: int, nranks: int
) -> Call:
    """The call of an all_to_all_v, whose arrays are checked before the counts are known."""
    arrays = calls.exchange_arrays(in_array, out_array, gathered[rank], in_displs, out_displs, rank, nranks)
    return calls.all_to_all_v(arrays, gathered, rank, nranks)


def frozen(count: int) -> Any:
    found = zeros(count)
    found.flags.writeable = False
    return found


def check_extents(call: Call, rank: int = RANK) -> None:
    """The memories are as long as the collective says: what executor and vendors rely on."""
    collective = call.collective
    if collective.in_place:
        assert call.in_memory is None
        wanted = (0, collective.buffer_count(rank))
    else:
        wanted = (collective.in_extent(rank), collective.out_extent(rank))
    got = tuple(0 if found is None else found.count for found in (call.in_memory, call.out_memory))
    assert got == wanted or collective.kind.value == "broadcast"
    assert (call.in_memory, call.out_memory) != (None, None)


# ---- uniform


def test_equal_arguments_give_the_identical_collective() -> None:
    def twice(function: Callable[[], Call]) -> bool:
        return function().collective is function().collective

    one, whole = zeros(2), zeros(6)
    assert twice(lambda: calls.all_reduce(one, None, "sum", RANK, NRANKS))
    assert twice(lambda: calls.all_to_all(whole, None, RANK, NRANKS))
    assert twice(lambda: calls.gather_v(zeros(3), None, COUNTS, 0, None, RANK, NRANKS))
    assert twice(lambda: calls.all_gather_v(None, zeros(9), np.array(COUNTS), [4, 0, 0], RANK, NRANKS))
    different = {
        id(calls.all_gather_v(None, zeros(size), counts, displs, RANK, NRANKS).collective)
        for size, counts, displs in [
            (5, COUNTS, None),
            (9, COUNTS, (4, 0, 0)),
            (9, COUNTS, (5, 0, 0)),
            (5, (3, 2, 0), None),
        ]
    }
    assert len(different) == 4


def test_gather() -> None:
    part, whole = frozen(2), zeros(6)
    elsewhere = calls.gather(part, "anything", 0, RANK, NRANKS)
    assert (elsewhere.collective.root, elsewhere.collective.count, elsewhere.out_memory) == (0, 2, None)
    at_root = calls.gather(part, whole, RANK, RANK, NRANKS)
    assert not at_root.collective.in_place
    for given_array in (None, whole[2:4]):
        in_place = calls.gather(given_array, whole, RANK, RANK, NRANKS)
        assert in_place.collective.in_place
        assert address(in_place.out_memory) == where(whole)
        check_extents(in_place)
    check_extents(elsewhere)
    check_extents(at_root)


def test_scatter() -> None:
    part, whole = zeros(2), frozen(6)
    elsewhere = calls.scatter("anything", part, 0, RANK, NRANKS)
    assert (elsewhere.collective.root, elsewhere.collective.count, elsewhere.in_memory) == (0, 2, None)
    at_root = calls.scatter(whole, part, RANK, RANK, NRANKS)
    assert not at_root.collective.in_place
    own = zeros(6)
    for call in (calls.scatter(whole, None, RANK, RANK, NRANKS), calls.scatter(own, own[2:4], RANK, RANK, NRANKS)):
        assert call.collective.in_place
        check_extents(call)
    check_extents(elsewhere)
    check_extents(at_root)


def test_all_to_all() -> None:
    whole, out = zeros(6), zeros(6)
    assert calls.all_to_all(whole, out, RANK, NRANKS).collective.count == 2
    for call in (calls.all_to_all(whole, None, RANK, NRANKS), calls.all_to_all(whole, whole, RANK, NRANKS)):
        assert call.collective.in_place
        check_extents(call)


# ---- vector forms


def test_gathering_in_place_and_not() -> None:
    whole = zeros(5)
    for in_array, out_array in ((None, whole), (whole, None), (whole[2:5], whole)):
        call = calls.all_gather_v(in_array, out_array, COUNTS, None, RANK, NRANKS)
        assert call.collective.in_place
        assert call.collective.counts == COUNTS
        check_extents(call)
    call = calls.all_gather_v(frozen(3), whole, COUNTS, None, RANK, NRANKS)
    assert not call.collective.in_place
    call = calls.gather_v(whole[2:5], whole, COUNTS, RANK, None, RANK, NRANKS)
    assert call.collective.in_place
    call = calls.gather_v(frozen(3), "ignored", COUNTS, 0, "ignored", RANK, NRANKS)
    assert call.out_memory is None
    assert call.collective.out_displs is None
    check_extents(call)


def test_scattering_in_place_and_not() -> None:
    whole = zeros(5)
    for out_array in (None, whole[2:5]):
        call = calls.reduce_scatter_v(whole, out_array, COUNTS, "sum", None, RANK, NRANKS)
        assert call.collective.in_place
        check_extents(call)
        assert calls.scatter_v(whole, out_array, COUNTS, RANK, None, RANK, NRANKS).collective.in_place
    call = calls.reduce_scatter_v(frozen(5), zeros(3), COUNTS, "max", None, RANK, NRANKS)
    assert not call.collective.in_place
    assert calls.scatter_v(frozen(5), None, COUNTS, RANK, None, RANK, NRANKS).collective.in_place, "it is only read"
    call = calls.scatter_v("ignored", zeros(3), COUNTS, 0, "ignored", RANK, NRANKS)
    assert call.in_memory is None
    check_extents(call)


def test_an_empty_block_needs_no_array() -> None:
    rank, whole = 2, zeros(5)
    empty = zeros(0)
    for part in (None, empty):
        check_extents(calls.all_gather_v(part, whole, COUNTS, None, rank, NRANKS), rank)
        check_extents(calls.gather_v(part, whole, COUNTS, rank, None, rank, NRANKS), rank)
        check_extents(calls.scatter_v(whole, part, COUNTS, rank, None, rank, NRANKS), rank)
        call = calls.reduce_scatter_v(frozen(5), part, COUNTS, "sum", None, rank, NRANKS)
        assert not call.collective.in_place, "nothing of the input may be overwritten"
        check_extents(call, rank)
    check_extents(calls.gather_v(empty, None, COUNTS, 0, None, rank, NRANKS), rank)
    check_extents(calls.scatter_v(None, empty, COUNTS, 0, None, rank, NRANKS), rank)
    nothing = (0, 0, 0)
    check_extents(calls.gather_v(empty, None, nothing, RANK, None, RANK, NRANKS))
    check_extents(calls.scatter_v(None, empty, nothing, RANK, None, RANK, NRANKS))
    check_extents(calls.all_gather_v(empty, None, nothing, None, RANK, NRANKS))
    check_extents(calls.reduce_scatter_v(None, empty, nothing, "sum", None, RANK, NRANKS))
    gathered = [(0,) * 6] * 3
    check_extents(exchange(empty, None, gathered, None, None, RANK, NRANKS))
    check_extents(exchange(None, empty, gathered, None, None, RANK, NRANKS))


def test_the_dtype_of_a_rank_without_elements_must_be_known() -> None:
    functions: list[Callable[[], Call]] = [
        lambda: calls.gather_v(None, None, COUNTS, 0, None, 2, NRANKS),
        lambda: calls.scatter_v(None, None, COUNTS, 0, None, 2, NRANKS),
        lambda: calls.reduce_scatter_v(None, None, (0, 0, 0), "sum", None, 2, NRANKS),
        lambda: calls.all_gather_v(None, None, (0, 0, 0), None, 2, NRANKS),
        lambda: exchange(None, None, [(0,) * 6] * 3, None, None, 2, NRANKS),
    ]
    for function in functions:
        with pytest.raises(UsageError, match=r"dtype is not known. Pass an empty array of the dtype"):
            function()


@pytest.mark.parametrize("dtype", ["i4", "u1", "i8"])
def test_counts_may_be_any_integers(dtype: str) -> None:
    for counts in (
        list(COUNTS),
        np.array(COUNTS, dtype),
        list(np.array(COUNTS, dtype)),
        array.array("i", COUNTS),
        range(3, 0, -1),
    ):
        call = calls.all_gather_v(None, zeros(sum(counts)), counts, None, RANK, NRANKS)
        assert call.collective.counts == tuple(counts)
        assert call.collective.counts is not None
        assert all(type(count) is int for count in call.collective.counts)


def test_displacements_of_packed_blocks_are_none() -> None:
    call = calls.all_gather_v(None, zeros(99), COUNTS, (0, 2, 77), RANK, NRANKS)
    assert call.collective is calls.all_gather_v(None, zeros(5), COUNTS, None, RANK, NRANKS).collective
    check_extents(call)


@given(st.data())
def test_memory_reaches_as_far_as_the_blocks(data: st.DataObject) -> None:
    nranks = data.draw(st.integers(1, 5))
    rank = data.draw(st.integers(0, nranks - 1))
    counts = data.draw(st.lists(st.integers(0, 4), min_size=nranks, max_size=nranks))
    displs, end = [0] * nranks, 0
    for number in data.draw(st.permutations(range(nranks))):
        displs[number] = end + data.draw(st.integers(0, 3))
        end = displs[number] + counts[number]
    if data.draw(st.booleans()):
        displs = [displ if count else 1000 for displ, count in zip(displs, counts, strict=True)]
    whole = zeros(end + data.draw(st.integers(0, 2)))
    part = None if data.draw(st.booleans()) else whole[displs[rank] : displs[rank] + counts[rank]]
    for call in (
        calls.all_gather_v(part, whole, counts, displs, rank, nranks),
        calls.gather_v(part, whole, counts, rank, displs, rank, nranks),
        calls.scatter_v(whole, part, counts, rank, displs, rank, nranks),
        calls.reduce_scatter_v(whole, part, counts, "sum", displs, rank, nranks),
    ):
        assert call.collective.in_place or counts[rank] == 0
        check_extents(call, rank)
        if call.collective.in_place and counts[rank]:
            offset = max(call.collective.in_offset(rank), call.collective.out_offset(rank))
            assert offset == displs[rank]
    apart = calls.all_gather_v(zeros(counts[rank]), whole, counts, displs, rank, nranks)
    assert not apart.collective.in_place
    check_extents(apart, rank)


# ---- all_to_all_v


def gathered(pairs: Any) -> list[tuple[int, ...]]:
    """What each rank has said when all agree on `pairs`."""
    return [(*row, *column) for row, column in zip(pairs, zip(*pairs, strict=True), strict=True)]


PAIRS = [[0, 1, 2], [3, 0, 4], [5, 6, 0]]


def test_splits() -> None:
    assert calls.splits([1, 2, 3], np.array([4, 5, 6], "u2"), RANK, NRANKS) == (1, 2, 3, 4, 5, 6)
    for name, bad in (("in_counts", ([1, 2], [1, 2, 3])), ("out_counts", ([1, 2, 3], [1, -2, 3]))):
        with pytest.raises(UsageError, match=f"'{name}' has .*Pass|'{name}' has .*Give"):
            calls.splits(*bad, RANK, NRANKS)


def test_all_to_all_v() -> None:
    said = gathered(PAIRS)
    call = exchange(frozen(7), zeros(7), said, None, None, RANK, NRANKS)
    assert call.collective.counts == (0, 1, 2, 3, 0, 4, 5, 6, 0)
    check_extents(call)
    call = exchange(zeros(20), zeros(20), said, (4, 99, 0), (7, 99, 0), RANK, NRANKS)
    assert (call.collective.in_displs, call.collective.out_displs) == ((4, 0, 0), (7, 0, 0))
    check_extents(call)
    call = exchange(zeros(4), zeros(7), said, (0, 0, 0), None, RANK, NRANKS)
    check_extents(call)  # blocks that are only read may overlap


def test_pairs_that_disagree_get_one_text_everywhere() -> None:
    said = gathered(PAIRS)
    said[2] = (*said[2][:4], 9, *said[2][5:])
    texts = set()
    for rank in range(NRANKS):
        with pytest.raises(UsageError) as caught:
            mine = said[rank]
            exchange(zeros(sum(mine[:NRANKS])), zeros(sum(mine[NRANKS:])), said, None, None, rank, NRANKS)
        texts.add(str(caught.value))
    assert texts == {
        "in_counts of rank 1 has 4 elements for rank 2, but out_counts of rank 2 has 9 from rank 1. "
        "Make in_counts[2] of rank 1 equal to out_counts[1] of rank 2."
    }


# ---- refusals

SHARED = np.zeros(40, "f4")
REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "gather: root": (lambda: calls.gather(zeros(2), zeros(6), 3, RANK, NRANKS), ["'root' is 3", "0 to 2"]),
    "gather: no output": (lambda: calls.gather(zeros(2), None, 1, RANK, NRANKS), ["'out_array' is None", "3 ranks"]),
    "gather: no input": (lambda: calls.gather(None, None, 0, RANK, NRANKS), ["'in_array'", "no array"]),
    "gather: sizes": (lambda: calls.gather(zeros(3), zeros(6), 1, RANK, NRANKS), ["'in_array' has 3", "2: out_array"]),
    "gather: ragged": (lambda: calls.gather(zeros(2), zeros(7), 1, RANK, NRANKS), ["'out_array' has 7", "multiple"]),
    "gather: overlap": (lambda: calls.gather(SHARED[:2], SHARED[:6], 1, RANK, NRANKS), ["overlap", "share no"]),
    "gather: dtype": (lambda: calls.gather(zeros(2, "f8"), zeros(6), 1, RANK, NRANKS), ["dtype float32", "one dtype"]),
    "gather: read-only": (lambda: calls.gather(None, frozen(6), 1, RANK, NRANKS), ["read-only", "writable"]),
    "scatter: no input": (lambda: calls.scatter(None, zeros(2), 1, RANK, NRANKS), ["'in_array'", "no array"]),
    "scatter: no output": (lambda: calls.scatter(None, None, 0, RANK, NRANKS), ["'out_array'", "no array"]),
    "scatter: sizes": (
        lambda: calls.scatter(zeros(6), zeros(3), 1, RANK, NRANKS),
        ["'out_array' has 3", "2: in_array"],
    ),
    "scatter: overlap": (lambda: calls.scatter(SHARED[:6], SHARED[3:5], 1, RANK, NRANKS), ["overlap"]),
    "all_to_all: ragged": (lambda: calls.all_to_all(zeros(7), None, RANK, NRANKS), ["'in_array' has 7", "multiple"]),
    "all_to_all: sizes": (lambda: calls.all_to_all(zeros(6), zeros(9), RANK, NRANKS), ["'out_array' has 9"]),
    "all_to_all: overlap": (lambda: calls.all_to_all(SHARED[:6], SHARED[3:9], RANK, NRANKS), ["overlap"]),
    "counts: none": (
        lambda: calls.gather_v(zeros(3), None, None, 0, None, RANK, NRANKS),
        ["'counts' is None", "plans the whole exchange", "3 integers on every rank"],
    ),
    "counts: a number": (lambda: calls.gather_v(zeros(3), None, 3, 0, None, RANK, NRANKS), ["'counts' is a int"]),
    "counts: text": (lambda: calls.gather_v(zeros(3), None, "123", 0, None, RANK, NRANKS), ["'counts' is a str"]),
    "counts: a set": (lambda: calls.gather_v(zeros(3), None, {1, 2, 3}, 0, None, RANK, NRANKS), ["no sequence"]),
    "counts: floats": (lambda: calls.gather_v(zeros(3), None, [2, 3.0, 0], 0, None, RANK, NRANKS), ["3.0 for rank 1"]),
    "counts: float array": (lambda: calls.gather_v(zeros(3), None, zeros(3), 0, None, RANK, NRANKS), ["no integer"]),
    "counts: bools": (
        lambda: calls.gather_v(zeros(3), None, [True] * 3, 0, None, RANK, NRANKS),
        ["True", "no integer"],
    ),
    "counts: two axes": (
        lambda: calls.gather_v(zeros(3), None, np.ones((3, 1), int), 0, None, RANK, NRANKS),
        ["'counts' has", "no integer"],
    ),
    "counts: no axis": (lambda: calls.gather_v(zeros(3), None, np.array(3), 0, None, RANK, NRANKS), ["1 entries"]),
    "counts: too few": (lambda: calls.gather_v(zeros(3), None, [1, 3], 0, None, RANK, NRANKS), ["2 entries for 3"]),
    "counts: negative": (lambda: calls.gather_v(zeros(3), None, [1, -3, 0], 0, None, RANK, NRANKS), ["-3 for rank 1"]),
    "counts: huge": (lambda: calls.gather_v(zeros(3), None, [1, 2**63, 0], 0, None, RANK, NRANKS), ["longer than any"]),
    "all_gather_v: input": (
        lambda: calls.all_gather_v(zeros(2), zeros(5), COUNTS, None, RANK, NRANKS),
        ["'in_array' has 2", "3, as counts has for this rank"],
    ),
    "all_gather_v: output too long": (
        lambda: calls.all_gather_v(zeros(3), zeros(6), COUNTS, None, RANK, NRANKS),
        ["'out_array' has 6", "5, the sum of the counts"],
    ),
    "all_gather_v: too short for displs": (
        lambda: calls.all_gather_v(zeros(3), zeros(12), COUNTS, [10, 0, 50], 0, NRANKS),
        ["'in_array' has 3"],
    ),
    "all_gather_v: displs beyond the array": (
        lambda: calls.all_gather_v(zeros(3), zeros(11), COUNTS, [10, 0, 50], RANK, NRANKS),
        ["'out_array' has 11", "12 or more"],
    ),
    "all_gather_v: overlapping blocks": (
        lambda: calls.all_gather_v(zeros(3), zeros(11), COUNTS, [2, 0, 0], RANK, NRANKS),
        ["'displs' makes the blocks of ranks 1 and 0 overlap", "elements 0 to 3", "begins at 2", "counts[r]"],
    ),
    "all_gather_v: negative displs": (
        lambda: calls.all_gather_v(zeros(3), zeros(11), COUNTS, [2, -1, 0], RANK, NRANKS),
        ["'displs' has -1 for rank 1", "negative"],
    ),
    "all_gather_v: displs length": (
        lambda: calls.all_gather_v(zeros(3), zeros(11), COUNTS, [2], RANK, NRANKS),
        ["'displs' has 1 entries"],
    ),
    "all_gather_v: overlap": (
        lambda: calls.all_gather_v(SHARED[1:4], SHARED[:5], COUNTS, None, RANK, NRANKS),
        ["overlap in memory", "in place"],
    ),
    "gather_v: no output": (
        lambda: calls.gather_v(zeros(3), None, COUNTS, 1, None, RANK, NRANKS),
        ["'out_array' is None", "root", "5 elements"],
    ),
    "gather_v: no input": (
        lambda: calls.gather_v(None, None, COUNTS, 0, None, RANK, NRANKS),
        ["'in_array' is None", "counts has 3 for this rank", "array of 3"],
    ),
    "scatter_v: no output": (
        lambda: calls.scatter_v(None, None, COUNTS, 0, None, RANK, NRANKS),
        ["'out_array' is None", "counts has 3"],
    ),
    "scatter_v: no input": (
        lambda: calls.scatter_v(None, zeros(3), COUNTS, 1, None, RANK, NRANKS),
        ["'in_array' is None", "blocks of all ranks", "array of 5"],
    ),
    "reduce_scatter_v: read-only in place": (
        lambda: calls.reduce_scatter_v(frozen(5), None, COUNTS, "sum", None, RANK, NRANKS),
        ["read-only"],
    ),
    "reduce_scatter_v: op": (
        lambda: calls.reduce_scatter_v(zeros(5), None, COUNTS, "xor", None, RANK, NRANKS),
        ["'op'", "xor", "'sum'"],
    ),
    "reduce_scatter_v: op of the dtype": (
        lambda: calls.reduce_scatter_v(zeros(5, "c8"), None, COUNTS, "max", None, RANK, NRANKS),
        ["no order"],
    ),
    "reduce_scatter_v: output": (
        lambda: calls.reduce_scatter_v(zeros(5), zeros(2), COUNTS, "sum", None, RANK, NRANKS),
        ["'out_array' has 2", "3, as counts"],
    ),
    "all_to_all_v: no output": (
        lambda: exchange(zeros(7), None, gathered(PAIRS), None, None, RANK, NRANKS),
        ["'out_array' is None", "7 elements", "no in-place form"],
    ),
    "all_to_all_v: no input": (
        lambda: exchange(None, zeros(7), gathered(PAIRS), None, None, RANK, NRANKS),
        ["'in_array' is None", "7 elements"],
    ),
    "all_to_all_v: in place": (
        lambda: exchange(SHARED[:7], SHARED[:7], gathered(PAIRS), None, None, RANK, NRANKS),
        ["overlap", "no in-place form"],
    ),
    "all_to_all_v: overlapping blocks": (
        lambda: exchange(zeros(7), zeros(9), gathered(PAIRS), None, (0, 0, 0), RANK, NRANKS),
        ["'out_displs' makes the blocks"],
    ),
    "all_to_all_v: dtypes": (
        lambda: exchange(zeros(7), zeros(7, "i4"), gathered(PAIRS), None, None, RANK, NRANKS),
        ["one dtype"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    function, words = REFUSED[case]
    with pytest.raises(UsageError) as caught:
        function()
    assert caught.value.rank is not None
    assert caught.value.remedy
    for word in words:
        assert word in str(caught.value)
