"""A rank that is killed is named by every survivor, soon, whoever noticed it first and whatever library was in use."""

from __future__ import annotations

import os
import signal
import threading
import time

import mpi4py
import numpy as np
import pytest

import hetcomm
from hetcomm.testing import RanksFailed, run_ranks

from .scripts import DEADLINE, PATIENCE

SECONDS = 0.15  # after which the victim kills itself
ENV = PATIENCE

Told = tuple[str, list[int], int | None, int | None, float]


def die(after: float) -> None:
    if after:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def reduce_until_one_dies(victims: tuple[int, ...], count: int, part: bool) -> Told:
    """What a rank is told: kind of error, ranks, peer, origin, and seconds from the death, closing included."""
    mpi4py.rc.finalize = False  # MPI may wait for the dead in it
    whole = hetcomm.init()
    comm = whole.split(0, -whole.rank) if part else whole
    assert comm is not None
    array = np.zeros(count, np.float32)
    for _ in range(3):
        comm.all_reduce(array, op="max")
    if comm.rank in victims:
        die(SECONDS)
    begun = time.monotonic()
    while time.monotonic() < begun + 60:
        try:
            comm.all_reduce(array, op="max")
        except hetcomm.HetcommError as error:
            whole.close()
            seconds = time.monotonic() - begun - SECONDS
            return type(error).__name__, sorted(error.ranks), error.peer, error.origin, seconds
    raise AssertionError("nothing was raised")


def close_beside_the_dead(victims: tuple[int, ...]) -> float:
    """Seconds that closing takes."""
    mpi4py.rc.finalize = False
    comm = hetcomm.init()
    comm.barrier()
    if comm.rank in victims:
        die(0)
    begun = time.monotonic()
    comm.close()
    return time.monotonic() - begun


def survivors(nranks: int, victims: tuple[int, ...], *args: object, **kwargs: object) -> dict[int, object]:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(nranks, *args, timeout=DEADLINE, recovery=True, **kwargs)  # type: ignore[arg-type]
    assert set(caught.value.failures) == set(victims), str(caught.value)
    return caught.value.results


@pytest.mark.parametrize(
    ("vendors", "victims", "count", "inline", "part"),
    [
        pytest.param("ucx ucx ucx", (0,), 100, None, False, id="ucx", marks=pytest.mark.slow),
        pytest.param("ucx ucx ucx", (0,), 300_000, None, True, id="ucx, renumbered"),
        pytest.param("mpi mpi", (1,), 100, None, False, id="mpi, as messages", marks=pytest.mark.slow),
        pytest.param("mpi mpi mpi", (1,), 300_000, 0, False, id="mpi", marks=pytest.mark.slow),
        pytest.param("oneccl oneccl", (1,), 300_000, 0, False, id="oneccl", marks=pytest.mark.slow),
        pytest.param("mpi mpi oneccl oneccl", (3,), 300_000, 0, False, id="mpi and oneccl"),
        pytest.param("mpi ucx mpi ucx", (1, 2), 100, None, False, id="two of them", marks=pytest.mark.slow),
        pytest.param("gloo gloo gloo", (1,), 300_000, 0, False, id="gloo", marks=[pytest.mark.slow, pytest.mark.gloo]),
        pytest.param(
            "mpi gloo gloo", (2,), 300_000, 0, True, id="mpi and gloo", marks=[pytest.mark.slow, pytest.mark.gloo]
        ),
    ],
)
def test_every_survivor_names_the_dead(
    vendors: str, victims: tuple[int, ...], count: int, inline: int | None, part: bool
) -> None:
    names = vendors.split()
    env = ENV if inline is None else {**ENV, "HETCOMM_INLINE_BYTES": str(inline)}
    dead = tuple(len(names) - 1 - victim for victim in victims) if part else victims
    told = survivors(len(names), dead, reduce_until_one_dies, victims, count, part, vendors=names, env=env)
    for rank, said in told.items():
        kind, ranks, peer, origin, seconds = said  # type: ignore[misc]
        assert kind == "PeerFailureError", (rank, said)
        assert ranks, (rank, said)
        assert set(ranks) <= set(victims), (rank, said)
        assert len(victims) > 1 or peer == victims[0], (rank, said)
        assert origin is None or origin not in victims, (rank, said)
        assert seconds < 30, (rank, said)


def test_closing_does_not_wait_for_the_dead() -> None:
    for rank, seconds in survivors(
        3, (1,), close_beside_the_dead, (1,), vendors=["mpi", "mpi", "ucx"], env=ENV
    ).items():
        assert isinstance(seconds, float)
        assert seconds < 30, rank
