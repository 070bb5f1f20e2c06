"""What a test needs, or why it is skipped."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from hetcomm.vendors.registry import vendor


def require(name: str) -> str:
    """The launcher a vendor needs; skips where the vendor cannot be used, with its own reason."""
    state = vendor(name).availability()
    if not state.usable:
        pytest.skip(f"{name}: {state.reason}. {state.remedy}")
    return "mpirun" if name == "mpi" else "spawn"


def require_all(names: Iterable[str]) -> None:
    """Skip where one of these vendors cannot be used, with its own reason."""
    for name in dict.fromkeys(names):
        require(name)
