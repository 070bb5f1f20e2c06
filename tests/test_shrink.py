"""`Communicator.shrink`: who is left gets one communicator, whoever died, stayed away or closed."""

from __future__ import annotations

import pytest

from hetcomm.testing import RanksFailed, run_ranks
from tests import shrink_jobs as jobs

from .scripts import DEADLINE, PATIENCE
from .vendors.needs import require_all

ENV = {**PATIENCE, "UCX_LOG_LEVEL": "fatal"}


@pytest.mark.parametrize("vendors", ["ucx ucx mpi oneccl", pytest.param("mpi mpi gloo gloo", marks=pytest.mark.gloo)])
def test_nobody_has_died(vendors: str) -> None:
    names = vendors.split()
    require_all(names)
    told = run_ranks(4, jobs.shapes, vendors=names, env=ENV, timeout=DEADLINE)
    for rank, said in enumerate(told):
        assert said["all of them"] == (True, 4, 6.0, True, False)
        assert said["refused"] == [True] * 3
        assert said["pair"] == (1.0 if rank < 2 else 5.0)
        assert said["a part"] == (3 - rank, 6.0)
        assert said["closed by the block"]
        if rank != 1:
            assert said["without one"] == ({3: 0, 2: 1, 0: 2}[rank], 3, 5.0)
            assert said["then split"] == rank
            assert said.get("closed by", [2]) == [2]


@pytest.mark.parametrize("vendors", ["ucx ucx mpi ucx", pytest.param("oneccl oneccl ucx ucx", marks=pytest.mark.slow)])
def test_one_that_stands_still_is_left_out_and_told(vendors: str) -> None:
    names = vendors.split()
    require_all(names)
    told = run_ranks(4, jobs.one_stands_still, vendors=names, env=ENV, timeout=DEADLINE)
    kind, _, text = told[1]
    assert kind == "left out"
    assert "go on without this one" in text
    for rank in (0, 2, 3):
        assert told[rank] == (3, [8.0])


@pytest.mark.parametrize(
    ("vendors", "victims", "inline"),
    [
        ("ucx ucx ucx", (0,), None),
        pytest.param("mpi mpi oneccl oneccl", (1, 3), "0", marks=pytest.mark.slow),
        pytest.param("mpi gloo gloo", (1,), None, marks=[pytest.mark.gloo, pytest.mark.slow]),
    ],
)
def test_the_survivors_go_on(vendors: str, victims: tuple[int, ...], inline: str | None) -> None:
    names = vendors.split()
    require_all(names)
    env = ENV if inline is None else {**ENV, "HETCOMM_INLINE_BYTES": inline}
    with pytest.raises(RanksFailed) as caught:
        run_ranks(len(names), jobs.work_goes_on, victims, vendors=names, env=env, timeout=DEADLINE, recovery=True)
    assert set(caught.value.failures) == set(victims), str(caught.value)
    left = [rank for rank in range(len(names)) if rank not in victims]
    for place, rank in enumerate(left):
        new, nranks, found, kinds = caught.value.results[rank]
        assert (new, nranks, found) == (place, len(left), sum(rank + 1.0 for rank in left))
        assert kinds == [f"PeerFailureError {list(victims)}"] * 4
