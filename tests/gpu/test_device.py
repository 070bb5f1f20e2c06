"""On a real GPU the device keeps the contract of `hetcomm.devices.base`, and NCCL that of its vendor."""

from __future__ import annotations

from typing import Any

import pytest

from hetcomm.testing import run_ranks
from hetcomm.vendors.registry import vendor

from . import devices

pytestmark = pytest.mark.gpu


def alone(target: Any) -> Any:
    """Run it in a process of its own: this one makes no context on the GPU."""
    return run_ranks(1, target, launcher="spawn", timeout=150)[0]


def test_arithmetic_is_the_hosts_bit_for_bit() -> None:
    done, wrong = alone(devices.arithmetic)
    assert wrong == []
    assert done > len(list(devices.pairs())) * 8


def test_events_fire_in_order_and_gates_hold_streams() -> None:
    assert alone(devices.events_and_gates) == []


def test_memory_and_current_streams() -> None:
    assert alone(devices.memory_of_the_device) == []


def test_nccl_of_one_rank_does_what_it_declares() -> None:
    state = vendor("nccl").availability()
    if not state.usable:
        pytest.skip(f"nccl: {state.reason}. {state.remedy}")
    done, wrong = alone(devices.nccl_alone)
    assert wrong == []
    assert done > 0
