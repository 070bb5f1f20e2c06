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


@pytest.mark.parametrize("value", [object(), {1, 2}, np.int64(3), b"bytes"])
def test_what_cannot_be_kept(value: object) -> None:
    with pytest.raises(hetcomm.UsageError, match=r"'value'.*neither an array nor what JSON can hold"):
        elastic.State(value=value)


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
