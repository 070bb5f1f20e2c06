"""The error tree: who is whose child, and how a message is put together."""

from __future__ import annotations

import pickle

import pytest

from hetcomm import errors
from hetcomm.errors import HetcommError, ScheduleError, UsageError

PARENTS = {
    "HetcommError": "Exception",
    "UsageError": "HetcommError",
    "TopologyError": "HetcommError",
    "ScheduleError": "HetcommError",
    "PlanMismatchError": "HetcommError",
    "TransportError": "HetcommError",
    "PeerFailureError": "TransportError",
    "CollectiveTimeoutError": "TransportError",
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
