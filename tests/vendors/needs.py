"""What a test needs, or why it is skipped."""

from __future__ import annotations

import pytest

from hetcomm.vendors.registry import vendor


def require(name: str) -> str:
    """The launcher a vendor needs; skips where the vendor cannot be used, with its own reason."""
    state = vendor(name).availability()
    if not state.usable:
        pytest.skip(f"{name}: {state.reason}. {state.remedy}")
    return "mpirun" if name == "mpi" else "spawn"
