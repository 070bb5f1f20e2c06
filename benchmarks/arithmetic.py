"""What a rank computes alone in a script, beside NumPy: bytes of the result per second.

    python benchmarks/arithmetic.py --json arithmetic.json

Each line is one dtype and one operation at one length: the binding's loop for this processor, its loop for every
processor of the platform, and NumPy's function (of averages, products with a factor and fills, what
`hetcomm.execution.local` does with NumPy). The three take turns, `--turns` times; what is shown is the median, calls
from Python included. The arrays are the same in all turns, so that what fits in a cache is there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy

from hetcomm._conformance.reference import numpy_dtype
from hetcomm._ext import ucp
from hetcomm.calls.buffers import memory
from hetcomm.execution import local
from hetcomm.types import COMBINING, DataType, ReduceKind, has_meaning

NRANKS = 3
UFUNCS: dict[str, Any] = {op.value: getattr(numpy, op.ufunc) for op in COMBINING}
SCALES = {"average": ReduceKind.AVG, "multiply": ReduceKind.PREMUL_SUM, "fill": None}


@dataclass(frozen=True, slots=True)
class Figure:
    """Bytes of the result per second."""

    dtype: str
    operation: str
    nbytes: int
    best: float
    plain: float
    numpy: float


def measure(dtype: DataType, operation: str, nbytes: int, turns: int) -> Figure:
    """One line of the table."""
    kind, count = numpy_dtype(dtype), nbytes // dtype.itemsize
    source, target = numpy.ones(count, kind), numpy.ones(count, kind)  # so that nothing grows
    source[::2] = 0
    src = memory(source, argument="source", rank=0, writable=False)
    dst = memory(target, argument="target", rank=0, writable=True)
    value = local.element(1, dtype).tobytes() if operation != "average" else numpy.int64(NRANKS).tobytes()

    def binding(plain: bool) -> Callable[[], None]:
        return lambda: ucp._run_loop(dtype.value, operation, dst.address, dst.address, src.address, count, value, plain)

    by_numpy: dict[str, Callable[[], object]] = {
        "average": lambda: local.average(src, dst, NRANKS),
        "multiply": lambda: local.multiply(src, dst, 1),
        "fill": lambda: local.fill(dst, ReduceKind.MAX if dtype is DataType.BOOL else ReduceKind.SUM),
    }
    others = by_numpy.get(operation) or (lambda: UFUNCS[operation](target, source, out=target))
    contenders: tuple[Callable[[], object], ...] = binding(False), binding(True), others
    samples: list[list[float]] = [[], [], []]
    for _ in range(turns):
        for times, run in zip(samples, contenders, strict=True):
            run()
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
    return Figure(dtype.value, operation, nbytes, *(nbytes / statistics.median(times) for times in samples))


def machine() -> dict[str, Any]:
    """What the numbers were taken on and with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "ml_dtypes")},
        "load_before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=[dtype.value for dtype in DataType])
    parser.add_argument("--operations", nargs="+", choices=[*UFUNCS, *SCALES])
    parser.add_argument("--nbytes", nargs="+", type=int, default=[64 << 10, 256 << 10, 64 << 20])
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--json", type=Path, help="where the figures go, with the machine's description")
    asked = parser.parse_args()
    figures, taken_on = [], machine()
    print(f"{'dtype':10} {'operation':9} {'nbytes':>9} {'best':>7} {'plain':>7} {'numpy':>7}  GB/s")
    for nbytes in asked.nbytes:
        for dtype in map(DataType, asked.dtypes or ["float32", "float64", "float16", "bfloat16", "int32", "complex64"]):
            for operation in asked.operations or [*UFUNCS, *SCALES]:
                op = SCALES[operation] if operation in SCALES else ReduceKind(operation)
                if op is not None and not has_meaning(op, dtype):
                    continue
                turns = max(5, asked.turns * (256 << 10) // max(nbytes, 256 << 10))
                made = measure(dtype, operation, nbytes, turns)
                figures.append(made)
                speeds = " ".join(f"{speed / 1e9:7.1f}" for speed in (made.best, made.plain, made.numpy))
                print(f"{made.dtype:10} {operation:9} {nbytes:9} {speeds}", flush=True)
    if asked.json:
        said = {"machine": taken_on, "turns": asked.turns, "figures": [asdict(figure) for figure in figures]}
        asked.json.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
