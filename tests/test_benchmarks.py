"""What the benchmarks make of what they have measured."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def program(name: str) -> ModuleType:
    """A benchmark, which is no module of a package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for their module by name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


def test_callgrind_counts_what_each_file_executes_itself(tmp_path: Path) -> None:
    dump = tmp_path / "count.1"
    dump.write_text(
        "positions: line\nevents: Ir\n"
        "ob=(1) /somewhere/python3\nfn=(1) call\n10 100\n"
        "cob=(2) /somewhere/libucp.so.0\ncfn=(2) send\ncalls=1 5\n12 40\n"
        "ob=(2)\nfn=(2)\n5 30\n+1 10\nob=(3) /somewhere/ucp.cpython-311.so\nfn=(3) run\n* 7\n"
        "summary: 147\n"
    )
    callgrind = program("callgrind")
    found = callgrind.by_object(dump)
    assert found == {"python3": 100, "libucp.so.0": 40, "ucp.cpython-311.so": 7}
    assert [callgrind.part(name) for name in found] == ["python", "ucx", "binding"]


def test_memory_tells_growth_from_noise() -> None:
    memory = program("memory")
    first = memory.Point(0, 1 << 26, 100_000, 5000, 0)

    def faults(name: str = "small", **later: int) -> list[str]:
        last = {**asdict(first), "calls": 100_000, **later}
        found: list[str] = memory.faults(name, {"points": [asdict(first), last]})
        return found

    assert faults(rss=(1 << 26) + 4096, blocks=100_400) == []
    assert "RSS" in faults(rss=1 << 27)[0]
    assert "blocks" in faults(blocks=200_000)[0]
    assert faults("new", blocks=200_000) == []  # one for each plan is said to stay
    assert "under way" in faults(under_way=1)[0]


def test_growth_measures_small_sizes_of_all_ranks_first() -> None:
    growth = program("growth")
    options = growth.parse(["--ranks", "2", "4", "--sizes", "8", "4M", "--iters", "9"])
    assert list(growth.jobs(options)) == [(2, (8,), 9), (4, (8,), 9), (2, (4 << 20,), 3), (4, (4 << 20,), 3)]
    rows = [{"nbytes": 8, "library": "hetcomm", "time": 1e-6}]
    found = [{"nranks": 2, "rows": rows}, {"nranks": 4, "sizes": [8], "left_out_because": "no time"}]
    assert growth.points(found) == {(8, "hetcomm"): {2: 1e-6}}
    assert growth.measured(found[0], [8])
    assert not growth.measured(found[1], [8])
