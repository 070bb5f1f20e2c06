"""Contexts: who takes which, when they are used again, and that no two communicators of a process ever share one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.errors import UsageError
from hetcomm.execution.tags import MAX_COMMUNICATORS, MAX_CONTEXT, Contexts


def make(*ranks: Contexts) -> tuple[int, int]:
    """A communicator of these ranks: its first context and its serial number."""
    proposals = [rank.proposal for rank in ranks]
    found = {rank.take(proposals) for rank in ranks}
    assert len(found) == 1, "the ranks took different contexts"
    return found.pop()


def test_contexts_follow_one_another_and_are_used_again() -> None:
    rank = Contexts()
    assert [make(rank)[0] for _ in range(3)] == [0, 1, 2]
    rank.give_back(1)
    assert len(rank) == 2
    assert make(rank) == (1, 3)
    assert make(rank) == (3, 4)


def test_a_group_takes_what_is_free_on_all_of_its_ranks() -> None:
    one, two, three = Contexts(), Contexts(), Contexts()
    assert make(one, two)[0] == 0
    assert make(three)[0] == 0, "groups without a common rank may use the same"
    assert make(two, three)[0] == 1
    assert make(one)[0] == 1
    assert make(one, three)[0] == 2
    one.give_back(0)
    assert make(one, two)[0] == 3, "what one rank has not given back stays taken with it"


def test_they_run_out_only_while_they_are_all_in_use() -> None:
    rank, other = Contexts(), Contexts()
    context = 0
    for _ in range(MAX_COMMUNICATORS):
        context, _ = make(rank)
    assert context <= MAX_CONTEXT
    for ranks in ((rank,), (rank, other)):
        with pytest.raises(UsageError, match=f"{MAX_COMMUNICATORS} is the most"):
            make(*ranks)
    rank.give_back(300)
    assert make(rank, other)[0] == 300


@given(st.data())
def test_no_process_is_in_two_communicators_of_one_context(data: st.DataObject) -> None:
    ranks = [Contexts() for _ in range(4)]
    live: list[tuple[frozenset[int], int]] = []
    serials: dict[int, set[int]] = {rank: set() for rank in range(4)}
    for _ in range(data.draw(st.integers(1, 30))):
        if live and data.draw(st.booleans()):
            members, context = live.pop(data.draw(st.integers(0, len(live) - 1)))
            for rank in members:
                ranks[rank].give_back(context)
            continue
        members = frozenset(data.draw(st.sets(st.integers(0, 3), min_size=1)))
        context, serial = make(*(ranks[rank] for rank in members))
        assert all(other != context or not members & group for group, other in live)
        for rank in members:
            assert serial not in serials[rank]
            serials[rank].add(serial)
        live.append((members, context))
    assert [len(rank) for rank in ranks] == [sum(number in group for group, _ in live) for number in range(4)]
