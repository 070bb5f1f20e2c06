"""Importing hetcomm is free: no vendor, no array library beyond NumPy, no thread, no process, no environment read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FOREIGN = ("cupy", "cupyx", "torch", "mpi4py", "ucxx", "ucp", "libucx", "jax", "sklearn")

LOOK = """
import json, os, sys, threading
sys.path[:] = filter(None, sys.path)
before = dict(os.environ)
import {module}
maps = open("/proc/self/maps").read()
print(json.dumps({{
    "modules": sorted(sys.modules),
    "threads": threading.active_count(),
    "tasks": len(os.listdir("/proc/self/task")),
    "environ": dict(os.environ) == before,
    "libraries": [name for name in ("libmpi.", "libucp.", "libccl.", "libcudart.") if name in maps],
}}))
"""


@pytest.mark.parametrize("module", ["hetcomm", "hetcomm.testing", "hetcomm.cli", "hetcomm.topology.model"])
def test_importing_starts_nothing(module: str) -> None:
    # NumPy's BLAS starts its threads when it is imported, which is not hetcomm's doing: one thread keeps it still.
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(module=module)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PATH": "", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    seen = json.loads(done.stdout)
    assert {name for name in seen["modules"] if name.partition(".")[0] in FOREIGN} == set()
    assert seen["libraries"] == []
    assert (seen["threads"], seen["tasks"]) == (1, 1)
    assert seen["environ"]
    assert done.stderr == ""
