"""Who is missing: nobody who has come, everybody who says or shows that it has not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetcomm.health.states import State
from hetcomm.health.whereabouts import Answer, Whereabouts, missing

CALL = 7
HERE, BEFORE = Answer(CALL + 1, CALL), Answer(CALL, CALL)


def test_who_says_so_is_missing() -> None:
    assert missing(CALL, {1, 2, 3}, {1: HERE, 2: BEFORE}, {}, ()) == {2}, "of rank 3 nothing is known"


def test_who_cannot_answer_is_missing() -> None:
    states = {3: State.STOPPED}
    assert missing(CALL, {1, 2, 3}, {1: HERE}, states, ()) == {3}
    come = Answer(CALL + 1, CALL, now=False)  # it had come, and was stopped in the call
    assert missing(CALL, {1, 3}, {1: HERE, 3: come}, states, ()) == {3}


def test_who_has_done_its_part_and_computes_is_not() -> None:
    assert missing(CALL, {1, 2, 3}, {1: HERE}, {}, {2}) == {2}
    assert missing(CALL, {1, 2, 3}, {1: Answer(CALL + 1, CALL, needs=frozenset({3}))}, {}, ()) == {3}
    assert missing(CALL, {1, 2, 3}, {1: HERE}, {}, ()) == {2, 3}, "nobody tells them apart"
    assert missing(CALL, {1, 2}, {1: HERE, 2: Answer(CALL + 1, now=False)}, {}, ()) == frozenset()


@given(
    st.dictionaries(st.integers(1, 6), st.builds(Answer, st.integers(0, 2 * CALL), now=st.booleans())),
    st.dictionaries(st.integers(1, 6), st.sampled_from(State)),
    st.frozensets(st.integers(1, 6)),
)
def test_who_has_come_and_answers_is_never_missing(
    answers: dict[int, Answer], states: dict[int, State], needs: frozenset[int]
) -> None:
    others = set(range(1, 7))
    found = missing(CALL, others, answers, states, needs)
    assert found <= others
    for rank, answer in answers.items():
        if answer.now and answer.called > CALL:
            assert rank not in found
        if answer.now and answer.called <= CALL:
            assert rank in found


def test_what_people_read() -> None:
    assert str(Whereabouts(3, "h", "stopped", 5, None, "barrier", "on host h (process 9)", "stopped")) == (
        "rank 3 on host h (process 9) is stopped, is known to have made call 4 last, barrier"
    )
    assert str(Whereabouts(3, called=9, completed=7, last="all_reduce")) == (
        "rank 3 has made call 8 last, all_reduce, and waits in call 7"
    )
    assert str(Whereabouts(3, called=5, completed=5)) == "rank 3 has made call 4 last"
    assert str(Whereabouts(3, called=0, completed=0)) == "rank 3 has made no call"
    assert str(Whereabouts(3)) == "rank 3 does not answer, since it is busy with something else"
