"""The table of what a rank can be agrees with what was meant, on all sequences of signs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hetcomm.health.states import TRANSITIONS, Sign, State, after

FATAL = {Sign.ENDED, Sign.EXPIRED, Sign.CONDEMNED}


def meant(signs: list[Sign]) -> State:
    """The same without a table: the first word that is final counts, else the last one, but silence of the stopped."""
    end = next((sign for sign in signs if sign in FATAL or sign is Sign.GOODBYE), None)
    if end is not None:
        return State.LEFT if end is Sign.GOODBYE else State.DEAD
    heard = [sign for sign in signs if sign is Sign.HEARD or sign is Sign.HALTED]
    if heard and heard[-1] is Sign.HALTED:
        return State.STOPPED
    return State.SUSPECTED if signs and signs[-1] is Sign.SILENT else State.ALIVE


@given(st.lists(st.sampled_from(Sign), max_size=12))
def test_the_table_says_what_was_meant(signs: list[Sign]) -> None:
    assert after(State.ALIVE, signs) is meant(signs)


def test_every_sign_has_a_place_in_every_state() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(set(row) == set(Sign) for row in TRANSITIONS.values())


def test_every_state_is_reached_and_two_are_final() -> None:
    assert {after(State.ALIVE, [sign]) for sign in Sign} == set(State)
    final = {state for state in State if set(TRANSITIONS[state].values()) == {state}}
    assert final == {State.LEFT, State.DEAD}


@given(st.lists(st.sampled_from(Sign), max_size=12), st.sampled_from(Sign))
def test_the_same_sign_twice_says_nothing_more(signs: list[Sign], sign: Sign) -> None:
    once = after(State.ALIVE, [*signs, sign])
    assert TRANSITIONS[once][sign] is once
