"""What a benchmark found: as a table in nccl-tests' manner, and as JSON.

1 GB/s is 10^9 bytes per second; times are shown in microseconds, and kept in seconds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hetcomm.errors import UsageError

__all__ = ["FORMAT", "Report", "Row", "as_json", "save", "table"]

FORMAT = "hetcomm bench 1"
"""What the JSON says that it is."""

_HEADS = (
    ("size", "(B)", 12),
    ("count", "(elements)", 12),
    ("type", "", 10),
    ("redop", "", 10),
    ("root", "", 5),
    ("library", "", 11),
    ("time", "(us)", 11),
    ("min", "(us)", 11),
    ("p95", "(us)", 11),
    ("algbw", "(GB/s)", 8),
    ("busbw", "(GB/s)", 8),
    ("wrong", "", 8),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One contender at one size.

    Attributes:
        library: Who.
        nbytes: The size.
        count: Elements, as `hetcomm._cli.cases` counts them.
        bus_factor: busbw over algbw.
        calls: How many a sample has.
        samples: Seconds of a call on the slowest rank, in the order they were taken.
        wrong: Elements that were not right, of all ranks; None: not checked.
    """

    library: str
    nbytes: int
    count: int
    bus_factor: float
    calls: int
    samples: tuple[float, ...]
    wrong: int | None

    @property
    def median(self) -> float:
        """Median of the samples; what bandwidths are of."""
        return statistics.median(self.samples)

    @property
    def least(self) -> float:
        """The shortest sample."""
        return min(self.samples)

    @property
    def p95(self) -> float:
        """The sample that 95 of 100 do not exceed."""
        return sorted(self.samples)[math.ceil(0.95 * len(self.samples)) - 1]

    @property
    def algbw(self) -> float:
        """Bytes per second."""
        return self.nbytes / self.median

    @property
    def busbw(self) -> float:
        """Bytes per second, as the hardware would carry them."""
        return self.algbw * self.bus_factor


@dataclass(frozen=True, slots=True)
class Report:
    """A whole benchmark.

    Attributes:
        collective: Its name.
        nranks: Ranks of the job.
        clusters: Name, vendor and ranks of each.
        dtype: Of the elements.
        op: The reduction, if there is one.
        root: The root, if there is one.
        in_place: Whether input and output were one buffer.
        checked: Whether results were checked.
        shared, touched, ahead: See `hetcomm._cli.measure.Benchmark`.
        warmup: Calls of each block before the samples.
        left_out: Baselines that could not take part, with the reasons.
        machine: The first rank's.
        versions: Of libraries.
        rows: By size, hetcomm first in each.
    """

    collective: str
    nranks: int
    clusters: tuple[tuple[str, str, tuple[int, ...]], ...]
    dtype: str
    op: str | None
    root: int | None
    in_place: bool
    checked: bool
    shared: bool
    touched: bool
    ahead: bool
    warmup: int
    left_out: Mapping[str, str]
    machine: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def libraries(self) -> tuple[str, ...]:
        """Who took part, hetcomm first."""
        return tuple(dict.fromkeys(row.library for row in self.rows))

    def of(self, library: str) -> tuple[Row, ...]:
        """The rows of one contender, by size."""
        return tuple(row for row in self.rows if row.library == library)

    def speedups(self, library: str) -> list[tuple[int, float]]:
        """(size, how many times as fast as `library` hetcomm was), by size."""
        return [
            (mine.nbytes, other.median / mine.median)
            for mine, other in zip(self.of("hetcomm"), self.of(library), strict=True)
        ]

    @property
    def wrong(self) -> int:
        """Wrong elements of hetcomm's own, persistent form included."""
        return sum(row.wrong or 0 for row in self.rows if row.library in ("hetcomm", "persistent"))


def table(report: Report) -> str:
    """The report as nccl-tests prints one: what is not a row begins with '#'."""
    clusters = "; ".join(f"{name} ({vendor}) {_ranks(ranks)}" for name, vendor, ranks in report.clusters)
    form = "in place" if report.in_place else "out of place"
    form += ", shared buffers" * report.shared + ", touched between calls" * report.touched
    form += ", written before each call" * report.ahead
    lines = [
        f"# hetcomm bench {report.collective}, {form}: {report.nranks} ranks: {clusters}",
        f"# time is the median of {len(report.rows[0].samples)} samples, each a block of calls on the slowest rank",
        "#" + "".join(head.rjust(width) for head, _, width in _HEADS)[1:],
        "#" + "".join(unit.rjust(width) for _, unit, width in _HEADS)[1:],
    ]
    lines += [_line(report, row) for row in report.rows]
    for library in report.libraries[1:]:
        lines.append(f"# {_comparison(library, report.speedups(library))}")
    lines += [f"# {name} is left out: {reason}" for name, reason in report.left_out.items()]
    mean = statistics.fmean(row.busbw for row in report.of("hetcomm")) / 1e9
    lines.append(f"# Avg bus bandwidth    : {mean:.4g}")
    if report.checked:
        lines.append(f"# Wrong values         : {report.wrong} {'FAILED' if report.wrong else 'OK'}")
    return "\n".join(lines)


def _line(report: Report, row: Row) -> str:
    cells = (
        str(row.nbytes),
        str(row.count),
        report.dtype,
        report.op or "none",
        "-1" if report.root is None else str(report.root),
        row.library,
        *(f"{seconds * 1e6:.2f}" for seconds in (row.median, row.least, row.p95)),
        *(f"{bandwidth / 1e9:.3f}" for bandwidth in (row.algbw, row.busbw)),
        "N/A" if row.wrong is None else str(row.wrong),
    )
    return "".join(cell.rjust(width) for cell, (_, _, width) in zip(cells, _HEADS, strict=True))


def _ranks(ranks: Sequence[int]) -> str:
    """Ranks 0 to 3, or one by one."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[0] + len(ranks))):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"ranks {','.join(map(str, ranks))}"


def _comparison(library: str, speedups: Sequence[tuple[int, float]]) -> str:
    mean = statistics.geometric_mean(value for _, value in speedups)
    (low_size, low), (high_size, high) = (pick(speedups, key=lambda each: each[1]) for pick in (min, max))
    spread = f"from {low:.3g} at {low_size} B to {high:.3g} at {high_size} B"
    return f"hetcomm is {mean:.3g} x as fast as {library} (geometric mean over the sizes; {spread})"


def as_json(report: Report, command: Sequence[str]) -> dict[str, Any]:
    """The report for programs: times in seconds, bandwidths in bytes per second, all samples.

    Args:
        report: What was measured.
        command: What was run, for who wants to run it again.
    """
    found = asdict(report)
    found["clusters"] = [
        {"name": name, "vendor": vendor, "ranks": list(ranks)} for name, vendor, ranks in report.clusters
    ]
    found["rows"] = [
        asdict(row)
        | {"samples": list(row.samples), "time": row.median, "min": row.least, "p95": row.p95}
        | {"algbw": row.algbw, "busbw": row.busbw}
        for row in report.rows
    ]
    return {"format": FORMAT, "command": list(command), "units": {"time": "s", "bandwidth": "bytes/s"}, **found}


def save(report: Report, command: Sequence[str], path: Path) -> None:
    """Write the JSON.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        path.write_text(json.dumps(as_json(report, command), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error}") from error
