"""Device arrays through every collective, dtype and op, in jobs of processes that share one GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from hetcomm.testing import run_ranks
from hetcomm.vendors.registry import vendor

from ..test_mixed_vendors import cases
from .matrix import run_matrix, run_watched

pytestmark = pytest.mark.gpu

SECONDS = os.environ.get("HETCOMM_GPU_MATRIX_SECONDS")


@dataclass(frozen=True)
class Job:
    """Each rank's vendor, the label of its cluster, and whether its arrays are on the device."""

    vendors: tuple[str, ...]
    labels: str
    devices: tuple[bool, ...]


def on_gpu(vendors: tuple[str, ...], labels: str) -> Job:
    return Job(vendors, labels, (True,) * len(vendors))


JOBS = {
    "nccl-1+1": on_gpu(("nccl", "nccl"), "ab"),
    "ucx-2+1": on_gpu(("ucx",) * 3, "aab"),
    "ucx-2+2": on_gpu(("ucx",) * 4, "abab"),
    "ucx+nccl-2+1": on_gpu(("ucx", "nccl", "ucx"), "aba"),
    "nccl+mpi-1+2": Job(("nccl", "mpi", "mpi"), "abb", (True, False, False)),
    "ucx+mpi-2+1": Job(("ucx", "mpi", "ucx"), "aba", (True, False, True)),
}


def environs(job: Job) -> list[dict[str, str]]:
    """What each rank has in its environment."""
    return [{"HETCOMM_TIMEOUT": "60", "HETCOMM_CLUSTER": label} for label in job.labels]


def check_usable(job: Job) -> None:
    """Skip where a vendor of the job is missing, with its own reason."""
    for name in sorted(set(job.vendors)):
        state = vendor(name).availability()
        if not state.usable:
            pytest.skip(f"{name}: {state.reason}. {state.remedy}")


def check(results: list[tuple[int, list[str], dict[str, str]]]) -> int:
    """Nothing was wrong, and all ranks have the same bits; how many cases there were."""
    for rank, (done, wrong, digests) in enumerate(results):
        assert wrong == [], f"rank {rank}"
        assert done == results[0][0]
        assert digests == results[0][2], f"rank {rank} has other bits than rank 0"
    return results[0][0]


@pytest.mark.parametrize("name", JOBS)
def test_matrix(name: str, record_property: Callable[[str, object], None]) -> None:
    job = JOBS[name]
    check_usable(job)
    results = run_ranks(len(job.vendors), run_matrix, job.devices, vendors=job.vendors, env=environs(job), timeout=150)
    done = check(results)
    assert done == len(list(cases(len(job.vendors))))
    record_property("cases", f"{done} cases")


@pytest.mark.skipif(not SECONDS, reason="runs under compute-sanitizer, as benchmarks/gpu/run.sh starts it")
def test_matrix_under_memcheck(record_property: Callable[[str, object], None]) -> None:
    seconds = float(SECONDS or 0)
    job = on_gpu(("ucx", "ucx"), "ab")
    results = run_ranks(2, run_watched, job.devices, seconds, vendors=job.vendors, env=environs(job), timeout=1000)
    assert [watched for watched, *_ in results] == [True, True], "a rank ran without compute-sanitizer"
    done = check([tuple(rest) for _, *rest in results])
    assert done > 0
    record_property("cases", f"{done} of {len(list(cases(2)))} cases")
