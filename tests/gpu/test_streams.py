"""Calls on device arrays come in the order of their users' streams, between two processes that share one GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from hetcomm.testing import run_ranks
from hetcomm.vendors.registry import vendor

from . import stream_jobs as jobs

pytestmark = pytest.mark.gpu

LATE = (10, 100_000, 3_000_000)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


def run(target: Callable[..., Any], *args: Any, name: str = "ucx", labels: str = "ab", env: Any = None) -> list[Any]:
    """Run it on two ranks, or one for each label."""
    state = vendor(name).availability()
    if not state.usable:
        pytest.skip(f"{name}: {state.reason}. {state.remedy}")
    environs = [{"HETCOMM_TIMEOUT": "30", "HETCOMM_CLUSTER": label, **(env or {})} for label in labels]
    return run_ranks(len(labels), target, *args, vendors=(name,) * len(labels), env=environs, timeout=60)


def check(results: list[list[str]]) -> None:
    """No rank found anything wrong."""
    for rank, wrong in enumerate(results):
        assert wrong == [], f"rank {rank}"


@pytest.mark.parametrize("name", ["ucx", "nccl"])
def test_input_is_written_late_and_output_read_at_once(name: str) -> None:
    check(run(jobs.late_input_early_output, LATE, name=name))


def test_late_input_with_ranks_of_one_cluster() -> None:
    check(run(jobs.late_input_early_output, LATE, labels="aab"))


@pytest.mark.parametrize("name", ["ucx", "nccl"])
def test_a_chain_of_calls_needs_no_wait(name: str) -> None:
    check(run(jobs.every_call_in_stream_order, name=name))


@needs_torch
def test_streams_may_be_passed_in_every_form() -> None:
    check(run(jobs.streams_by_argument))


@needs_torch
def test_the_current_stream_of_pytorch_is_taken() -> None:
    check(run(jobs.torch_streams))


def test_works_order_streams_and_block_the_host_only_when_asked() -> None:
    check(run(jobs.works))


def test_host_and_device_arrays_take_turns() -> None:
    check(run(jobs.mixed_libraries))


@needs_torch
def test_a_captured_stream_is_refused_by_name() -> None:
    check(run(jobs.captured))


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_the_result_may_be_copied_to_the_host_at_once(size: int) -> None:
    check(run(jobs.to_the_host_right_behind, size))


def test_code_may_be_loaded_right_behind_a_call() -> None:
    check(run(jobs.code_loaded_right_behind, 100_000))
