"""Skips the tests of this folder where there is no GPU to run them on, with the reason."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path

import pytest


@functools.cache
def missing() -> str | None:
    """Why no test that needs a GPU can run here; None if they can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA device"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "no CUDA device"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and (reason := missing()):
            item.add_marker(pytest.mark.skip(reason=reason))
