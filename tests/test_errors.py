"""The error tree: who is whose child, and how a message is put together."""

from __future__ import annotations

import pickle

import pytest

from hetcomm import errors
from hetcomm.errors import HetcommError, PeerFailureError, ScheduleError, UsageError

PARENTS = {
    "HetcommError": "Exception",
    "UsageError": "HetcommError",
    "TopologyError": "HetcommError",
    "ScheduleError": "HetcommError",
    "PlanMismatchError": "HetcommError",
    "TransportError": "HetcommError",
    "PeerFailureError": "TransportError",
    "CollectiveTimeoutError": "TransportError",
    "DepartedError": "PlanMismatchError",
    "VendorError": "HetcommError",
    "DeviceError": "HetcommError",
}


def test_the_tree() -> None:
    assert set(errors.__all__) == set(PARENTS)
    assert {name: getattr(errors, name).__bases__[0].__name__ for name in PARENTS} == PARENTS


def test_the_callers_errors_are_value_errors() -> None:
    value_errors = {name for name in PARENTS if issubclass(getattr(errors, name), ValueError)}
    assert value_errors == {"UsageError", "TopologyError"}


@pytest.mark.parametrize("name", sorted(PARENTS))
def test_each_says_what_it_means_and_is_found_by_its_base(name: str) -> None:
    kind = getattr(errors, name)
    assert kind.__doc__.strip()
    with pytest.raises(HetcommError, match="something"):
        raise kind("something happened")


def test_a_message_says_what_where_and_what_next() -> None:
    error = ScheduleError("it broke", rank=0, peer=3, collective=7, step="2 (send)", remedy="Mend it.")
    assert str(error) == "[rank 0, peer 3, collective 7, step 2 (send)] it broke. Mend it."
    assert (error.message, error.rank, error.peer, error.collective, error.step, error.remedy) == (
        "it broke",
        0,
        3,
        7,
        "2 (send)",
        "Mend it.",
    )


def test_what_is_not_known_is_left_out() -> None:
    assert str(UsageError("it broke")) == "it broke"
    assert str(UsageError("it broke.", remedy="Mend it.")) == "it broke. Mend it."
    assert str(UsageError("it broke", peer=0)) == "[peer 0] it broke"
    assert UsageError("it broke").rank is None


def test_errors_cross_processes() -> None:
    error = ScheduleError("it broke", rank=1, remedy="Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ScheduleError
    assert str(again) == str(error)
    assert (again.rank, again.remedy, again.message) == (1, "Mend it.", "it broke")


def test_an_error_names_the_ranks_it_is_about() -> None:
    one, several = PeerFailureError("it died", ranks={3}, origin=1), PeerFailureError("they died", rank=0, ranks=[4, 2])
    assert (one.peer, one.ranks, one.origin) == (3, {3}, 1)
    assert (several.peer, several.ranks, several.origin) == (None, {2, 4}, None)
    assert str(one) == "[peer 3] it died"
    assert str(several) == "[rank 0, peers 2, 4] they died"
    assert PeerFailureError("it died", peer=0).ranks == {0}
    assert PeerFailureError("it died").ranks == frozenset()
    many = PeerFailureError("they died", ranks=range(20))
    assert "peers 0, 1, 2" in str(many)
    assert "15 and 4 more" in str(many)


def test_an_error_can_be_raised_again_elsewhere() -> None:
    error = PeerFailureError(
        "it died", rank=0, ranks={1, 2}, origin=2, collective=7, step="0 (send)", remedy="Mend it."
    )
    same = error.again()
    assert same is not error
    assert type(same) is PeerFailureError
    assert str(same) == str(error)
    assert (same.ranks, same.origin, same.remedy, same.step) == ({1, 2}, 2, "Mend it.", "0 (send)")
    other = error.again(message="it left", rank=4, peer=5, collective=8)
    assert (other.message, other.rank, other.peer, other.ranks, other.collective) == ("it left", 4, 5, {5}, 8)
