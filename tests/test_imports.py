"""Importing hetcomm is free: no vendor, no array library beyond NumPy, no thread, no process, no environment read."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hetcomm

from .scripts import python

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
    done = python(LOOK.format(module=module), PATH="", OPENBLAS_NUM_THREADS="1")
    seen = json.loads(done.stdout)
    assert {name for name in seen["modules"] if name.partition(".")[0] in FOREIGN} == set()
    assert seen["libraries"] == []
    assert (seen["threads"], seen["tasks"]) == (1, 1)
    assert seen["environ"]
    assert done.stderr == ""


def imports(tree: ast.AST, files: set[str]) -> Iterator[str]:
    """The files of hetcomm that one imports, at its beginning or later, but not for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from (name for name in (whole if whole in files else node.module,) if name in files)
        yield from imports(node, files)


def test_no_file_imports_itself_in_a_circle() -> None:
    root = Path(hetcomm.__file__).parent
    sources = {
        ".".join(("hetcomm", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in root.rglob("*.py")
    }
    graph = {name: set(imports(ast.parse(path.read_text()), set(sources))) for name, path in sources.items()}
    assert sum(map(len, graph.values())) > 500  # it has seen what there is
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
