"""Real libraries where things end badly, come in several, or are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetcomm.testing import run_ranks

from ..scripts import DEADLINE
from . import jobs
from .needs import require

# Importing PyTorch costs two seconds of each rank: what is hetcomm's own is tried with the others.
LIGHT = ["mpi", "oneccl"]
LIBRARIES = [*LIGHT, pytest.param("gloo", marks=pytest.mark.gloo)]


@pytest.mark.parametrize("name", LIGHT)
def test_two_clusters_with_two_communicators_each(name: str) -> None:
    results = run_ranks(4, jobs.two_clusters, name, launcher=require(name), timeout=DEADLINE)
    assert results[0] == results[1] == [1.0 + 2 * i for i in range(8)]
    assert results[2] == results[3] == [5.0 + 2 * i for i in range(8)]


@pytest.mark.parametrize("name", LIGHT)
def test_a_communicator_left_open_does_not_keep_a_process_from_ending(name: str) -> None:
    assert run_ranks(2, jobs.left_open, name, launcher=require(name)) == [2.0, 2.0]


def test_oneccl_leaves_no_shared_memory_behind() -> None:
    launcher = require("oneccl")
    for pid in run_ranks(2, jobs.pid_of_left_open, "oneccl", launcher=launcher):
        assert list(Path("/dev/shm").glob(f"{pid}:*")) == []


@pytest.mark.parametrize("name", LIBRARIES)
def test_nothing_waits_for_what_is_never_completed(name: str) -> None:
    states = run_ranks(2, jobs.unfinished_in_every_way, name, launcher=require(name))[0]
    assert states == [f"<{name} communicator, rank 0 of 2, {state}>" for state in ("closed", "closed", "open")]


@pytest.mark.parametrize("name", LIGHT)
def test_calls_that_do_not_fit_are_refused_by_name(name: str) -> None:
    for rank, messages in enumerate(run_ranks(2, jobs.wrong_arguments, name, launcher=require(name))):
        assert messages == [
            f"[rank {rank}] vendor '{name}': a collective over 3 ranks on a communicator of 2",
            f"[rank {rank}] vendor '{name}': the output must be 4 elements of float64, not 3 of float64",
            f"[rank {rank}] vendor '{name}': the output must be 4 elements of float64, not none",
        ]


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_more_elements_than_an_int_counts(name: str) -> None:
    results = run_ranks(2, jobs.beyond_int, name, launcher=require(name), timeout=DEADLINE)
    assert results == [[2, 2, 2, 51]] * 2


def test_mpi_says_so_where_the_ranks_are_in_different_jobs() -> None:
    require("mpi")
    for message in run_ranks(2, jobs.not_one_world, launcher="spawn"):
        assert "not in one MPI job: their world ranks are [0, 0]" in message
        assert "mpirun of the MPI that mpi4py uses" in message


def test_mpi_that_is_finalised_cannot_be_used() -> None:
    for reason, message in run_ranks(2, jobs.finalised, launcher=require("mpi")):
        assert reason == "MPI has been finalised in this process"
        assert message.startswith("vendor 'mpi' failed on rank 0 of its cluster: MPI has been finalised")


def test_oneccl_missing_on_one_rank_is_an_error_on_all() -> None:
    for message in run_ranks(2, jobs.no_library, launcher=require("oneccl")):
        assert message.startswith("vendor 'oneccl' failed on rank 1 of its cluster: libccl-that-is-not-there.so is not")
        assert "pip install --no-deps oneccl-cpu==2021.16.2" in message


def test_oneccl_is_given_what_it_needs_and_says_nothing() -> None:
    environ, printed = run_ranks(2, jobs.silent_start, launcher=require("oneccl"))[0]
    assert environ["CCL_ATL_TRANSPORT"] == "ofi"
    assert environ["CCL_WORKER_OFFLOAD"] == "0"
    assert printed == 0


def test_oneccl_keeps_what_the_user_has_set() -> None:
    env = {"CCL_ATL_SHM": "0"}
    environ, _ = run_ranks(2, jobs.silent_start, launcher=require("oneccl"), env=env)[0]
    assert environ["CCL_ATL_SHM"] == "0"
