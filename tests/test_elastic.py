"""`hetcomm.elastic`: what was committed is what all go on from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm import elastic
from hetcomm.testing import RanksFailed, run_ranks
from tests import elastic_jobs as jobs

from .scripts import DEADLINE, PATIENCE

ENV = {**PATIENCE, "UCX_LOG_LEVEL": "fatal"}


def test_going_back() -> None:
    array = np.arange(4.0)
    state = elastic.State(array=array, step=1, names=["a"], nothing=None)
    array += 1
    state.step, state.names = 2, [*state.names, "b"]
    state.restore()
    assert state.array is array
    assert (array.tolist(), state.step, state.names, state.nothing) == ([0, 1, 2, 3], 1, ["a"], None)
    array += 1
    state.step = 5
    state.later = {"x": 1.5}
    state.commit()
    array[:] = 0
    state.later["x"] = 2
    state.restore()
    assert (array.tolist(), state.step, state.later, state.commits) == ([1, 2, 3, 4], 5, {"x": 1.5}, 1)


def read_only() -> np.ndarray:
    array = np.ones(3)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (object(), "neither an array nor what JSON can hold"),
        ({1, 2}, "neither an array nor what JSON can hold"),
        (b"bytes", "neither an array nor what JSON can hold"),
        ({1: 2}, "not the same when it has been JSON"),
        ([(1, 2)], "not the same when it has been JSON"),
        (read_only(), "cannot be written"),
    ],
)
def test_what_cannot_be_kept(value: object, problem: str) -> None:
    with pytest.raises(hetcomm.UsageError, match=rf"'value'.*{problem}"):
        elastic.State(value=value)


@pytest.mark.parametrize("name", ["commit", "commits", "_private", "__class__"])
def test_names_that_are_taken(name: str) -> None:
    with pytest.raises(hetcomm.UsageError, match=name):
        elastic.State(**{name: 1})


def test_a_commit_is_whole_or_none() -> None:
    state = elastic.State(first=1, second=np.zeros(2), third=3)
    state.first, state.third = 5, object()
    state.second += 1
    with pytest.raises(hetcomm.UsageError, match="third"):
        state.commit()
    state.restore()
    assert (state.first, state.second.tolist(), state.third, state.commits) == (1, [0, 0], 3, 0)


@pytest.mark.parametrize("other", [np.zeros(3), np.zeros((1, 2)), np.zeros(2, np.int8), None, 7])
def test_an_array_that_was_replaced_comes_back(other: object) -> None:
    state = elastic.State(array=np.array([0.5, 1.5]))
    state.array = other
    state.restore()
    assert state.array.tolist() == [0.5, 1.5]
    state.array += 1
    state.restore()
    assert state.array.tolist() == [0.5, 1.5]


def test_values_of_other_libraries() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(3))
    state = elastic.State(weight=weight, scalar=np.float32(0.5), whole=np.int64(3), odd=float("nan"))
    with torch.no_grad():
        weight += 1
    state.scalar = 2
    state.restore()
    assert state.weight is weight
    assert (weight.tolist(), weight.requires_grad, state.scalar, state.whole) == ([1, 1, 1], True, 0.5, 3)


def unlike(kind: str) -> str:
    with hetcomm.init() as comm:
        odd = comm.rank == 2
        values = {
            "names": {"b": 1} if odd else {"a": 1},
            "sizes": {"a": np.zeros(3 + odd)},
            "dtypes": {"a": np.zeros(4, np.float32 if odd else np.int32)},
            "kinds": {"a": 1 if odd else np.zeros(1)},
        }[kind]
        try:
            elastic.State(**values).sync(comm)  # type: ignore[arg-type]
        except hetcomm.UsageError as error:
            comm.barrier()
            return str(error)
    return "nothing was raised"


def unlike_each() -> list[str]:
    return [unlike(kind) for kind in ("names", "sizes", "dtypes", "kinds")]


def test_states_that_are_not_alike_are_refused_on_every_rank() -> None:
    for told in run_ranks(3, unlike_each, vendors=["ucx"] * 3, env=ENV, timeout=DEADLINE):
        assert all("rank 0 and rank 2 have other names" in text for text in told), told


def uneven() -> tuple[list[float], int, int]:
    """The ranks have committed at different points."""
    with hetcomm.init() as comm:
        array = np.zeros(3)
        state = elastic.State(array=array, step=0)
        for step in range(1, 2 + comm.rank % 2):
            array[:] = 10 * comm.rank + step
            state.step = step
            state.commit()
        array[:] = -1
        state.sync(comm)
        return array.tolist(), state.step, state.commits


def test_the_last_commit_of_any_rank_counts() -> None:
    assert run_ranks(3, uneven, vendors=["ucx"] * 3, env=ENV, timeout=DEADLINE) == [([12.0] * 3, 2, 2)] * 3


@pytest.mark.parametrize(("vendors", "victims"), [("ucx mpi oneccl oneccl", {2: 3, 0: 6})], ids=str)
def test_two_ranks_die_one_after_the_other(vendors: str, victims: dict[int, int]) -> None:
    names = vendors.split()
    with pytest.raises(RanksFailed) as caught:
        run_ranks(len(names), jobs.count, victims, 9, vendors=names, env=ENV, timeout=DEADLINE, recovery=True)
    assert set(caught.value.failures) == set(victims), str(caught.value)
    results: dict[int, Any] = caught.value.results
    assert set(results) == {1, 3}
    for rank, found in results.items():
        assert found == (rank, 9, pytest.approx(9000.0), list(range(1, 10)), 3)
