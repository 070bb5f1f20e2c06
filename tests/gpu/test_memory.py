"""What device arrays may be passed, where their memory is from, and which lanes it takes between two processes."""

from __future__ import annotations

import pytest

from . import memory_jobs as jobs
from .test_streams import check, needs_torch, run

pytestmark = pytest.mark.gpu


def test_every_dtype_goes_to_the_device_and_back() -> None:
    check(run(jobs.there_and_back, labels="a"))


@needs_torch
def test_arrays_of_every_library_and_protocol() -> None:
    for found in run(jobs.array_kinds):
        assert found == {name: [3.0, 3.0, 1.0, 2.0] for name in ("CuPy", "PyTorch", "interface", "DLPack")}


def test_shapes_and_what_is_refused() -> None:
    check(run(jobs.shapes_and_refusals))


def test_memory_that_was_given_back_is_not_taken_for_what_it_was() -> None:
    check(run(jobs.pool_reuse, 12))


def test_memory_of_the_stream_ordered_allocator() -> None:
    check(run(jobs.asynchronous_pool, 6))


def test_processes_that_share_a_gpu_use_cuda_ipc_and_nothing_is_complained_of() -> None:
    for names, said, value in run(jobs.lanes):
        assert "cuda_ipc" in names
        assert said == []
        assert value == 6.0


def test_a_staging_lane_is_complained_of_once() -> None:
    """Without CUDA IPC device memory goes through host memory between processes: it works, and is said once."""
    for names, said, value in run(jobs.lanes, env={"UCX_TLS": "^cuda_ipc"}):
        assert "cuda_ipc" not in names
        assert len(said) == 1
        assert "host memory" in said[0]
        assert value == 6.0
