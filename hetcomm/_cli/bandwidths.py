"""The picture of a benchmark: time and bus bandwidth against size, a line for each contender."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hetcomm._cli.report import Report
from hetcomm.schedule.canvas import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "check", "draw"]

COLOURS = {
    "hetcomm": "#0072B2",
    "persistent": "#56B4E9",
    "mpi": "#E69F00",
    "gloo": "#009E73",
    "vendor": "#CC79A7",
    "ucx": "#D55E00",
}
"""Of the contenders, in the order of legends."""

_HEIGHT = 4.5  # inches


def check(path: Path) -> None:
    """Whether a picture can be drawn to `path`.

    Raises:
        UsageError: The suffix is neither .svg nor .png, or there is no matplotlib.
    """
    new_figure(path, _HEIGHT)


def draw(report: Report, path: Path) -> None:
    """Draw the report to a file; the shade goes from the shortest sample to the 95th of 100.

    Raises:
        UsageError: As `check`, or the file cannot be written.
    """
    figure = new_figure(path, _HEIGHT)
    times, bandwidths = figure.subplots(1, 2)
    for library in report.libraries:
        colour = COLOURS[library]
        rows = [row for row in report.of(library) if row.nbytes]
        sizes = [row.nbytes for row in rows]
        times.plot(sizes, [row.median * 1e6 for row in rows], color=colour, marker=".")
        low, high = [row.least * 1e6 for row in rows], [row.p95 * 1e6 for row in rows]
        times.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
        bandwidths.plot(sizes, [row.busbw / 1e9 for row in rows], color=colour, marker=".")
    _label(times, "time, us (shade: least to p95)", logarithmic=any(row.nbytes for row in report.rows))
    _label(bandwidths, "busbw, GB/s", logarithmic=any(row.busbw for row in report.rows))
    clusters = " + ".join(f"{len(ranks)} {vendor}" for _, vendor, ranks in report.clusters)
    titles = (f"{report.collective} of {report.dtype}", report.op or "", f"{clusters} ranks")
    save(figure, path, titles, {library: COLOURS[library] for library in report.libraries})


def _label(axes: Axes, what: str, *, logarithmic: bool) -> None:
    if logarithmic:  # with one rank, or without a byte, there is nothing that could be
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xlabel("size, bytes")
    axes.set_ylabel(what)
    axes.grid(visible=True, alpha=0.3)
