"""hetcomm over three hosts: real ones, or network namespaces that a script makes (see `benchmarks/lab.py`).

HETCOMM_LAB=path/to/hosts.sh pytest tests/multihost
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LAB = os.environ.get("HETCOMM_LAB")
pytestmark = [
    pytest.mark.multihost,
    pytest.mark.skipif(not LAB, reason="HETCOMM_LAB does not name a script that makes hosts"),
    pytest.mark.skipif(not shutil.which("mpirun", path=f"{sys.prefix}/bin"), reason="no mpirun in this environment"),
]
HERE = Path(__file__).resolve()
MARK = "matrix result "


def load(path: Path) -> ModuleType:
    """A module that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> Iterator[Any]:
    with load(HERE.parents[2] / "benchmarks" / "lab.py").site(3, LAB) as made:
        yield made


def run(site: Any, per_host: list[int], vendors: list[str]) -> list[dict[str, Any]]:
    """What each rank of the matrix has to say, in rank order."""
    hosts = ",".join(str(host) for host, ranks in enumerate(per_host) for _ in range(ranks))
    argv = [sys.executable, str(HERE.with_name("matrix.py")), hosts, ",".join(vendors)]
    environ = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HETCOMM_TIMEOUT": "60"}
    done = site.run(per_host, argv, environ, timeout=240)
    lines = [json.loads(line.partition(MARK)[2]) for line in done.stdout.splitlines() if MARK in line]
    assert len(lines) == sum(per_host), done.stdout[-6000:]
    return sorted(lines, key=lambda line: line["rank"])


@pytest.mark.parametrize(
    ("per_host", "vendors"),
    [([2, 2, 2], ["mpi", "oneccl", "mpi"]), ([1, 2, 3], ["ucx", "mpi", "oneccl"])],
    ids=["2+2+2", "1+2+3"],
)
def test_every_collective_over_three_hosts(site: Any, per_host: list[int], vendors: list[str]) -> None:
    results = run(site, per_host, vendors)
    assert [result["wrong"] for result in results] == [[]] * len(results)
    assert len({result["digest"] for result in results}) == 1, "ranks have other bits than rank 0"
    assert {result["cases"] for result in results} == {results[0]["cases"]} != {0}
    assert results[0]["clusters"] == [[vendor, ranks] for vendor, ranks in zip(vendors, per_host, strict=True)]
    assert len({result["host"] for result in results}) == len(per_host)
    assert sum(result["sent"] for result in results) > 0
