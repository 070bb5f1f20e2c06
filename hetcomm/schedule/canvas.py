"""What pictures of schedules are made of: rows of ranks, a time axis, bars and texts, a file.

Whatever this file makes is deterministic: equal pictures are equal files. matplotlib is imported when the first picture
is drawn, and used through its objects only, so that nobody else's figures are touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path as File
from typing import TYPE_CHECKING

from hetcomm.errors import UsageError
from hetcomm.schedule.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MAX_RANKS", "Chart", "Clusters", "Rows", "TimeAxis", "new_figure", "save", "shown_size", "shown_time"]

Clusters = Mapping[str, Sequence[int]]
"""The ranks of each cluster, as pictures group them."""

MAX_RANKS = 16
"""How many ranks a picture shows if it is not told which."""

_WIDTH = 12.0  # of a figure, inches
_LETTER = 0.062  # inches, of the small text in bars
_MAX_TEXTS = 250  # more text than this is not read


@dataclass(frozen=True, slots=True)
class Rows:
    """The ranks that are drawn.

    Attributes:
        place: The middle of each rank's row, counted from the top in rows.
        bands: Of each cluster, its name, and where it begins and ends.
        cluster: The name of the cluster of each rank, drawn or not.
        nranks: How many ranks there are, drawn or not.
    """

    place: Mapping[int, float]
    bands: tuple[tuple[str, float, float], ...]
    cluster: Mapping[int, str]
    nranks: int

    @classmethod
    def choose(cls, timeline: Timeline, clusters: Clusters | None, ranks: Sequence[int] | None) -> Rows:
        """Rows for `ranks`, or for all; of a large job some of each cluster, the busiest first.

        Raises:
            UsageError: A rank is in no cluster and has no spans.
        """
        steps = Counter(span.rank for span in timeline.spans)
        groups = {name: tuple(members) for name, members in (clusters or {}).items()}
        rest = steps.keys() - {rank for members in groups.values() for rank in members}
        if rest:
            groups[""] = (*groups.get("", ()), *sorted(rest))
        cluster = {rank: name for name, members in groups.items() for rank in members}
        for rank in ranks or ():
            if rank not in cluster:
                raise UsageError(f"rank {rank} cannot be drawn: there is no such rank", remedy="Choose other ranks.")
        if ranks is not None:
            chosen = {name: [rank for rank in members if rank in ranks] for name, members in groups.items()}
        elif len(cluster) <= MAX_RANKS:
            chosen = {name: list(members) for name, members in groups.items()}
        else:
            few = list(groups.items())[: MAX_RANKS // 2]
            chosen = {name: _some(members, MAX_RANKS // len(few), steps) for name, members in few}
        place: dict[int, float] = {}
        bands: list[tuple[str, float, float]] = []
        top = 0.0
        for name, drawn in chosen.items():
            if drawn:
                place |= {rank: top + 0.5 + number for number, rank in enumerate(drawn)}
                bands.append((name, top, top + len(drawn)))
                top += len(drawn) + 0.2
        return cls(place, tuple(bands), cluster, len(cluster))

    @property
    def note(self) -> str:
        """What the title must say about ranks that are not drawn."""
        return f"{len(self.place)} of {self.nranks} ranks" if len(self.place) < self.nranks else ""


def _some(members: Sequence[int], quota: int, steps: Counter[int]) -> list[int]:
    """The ranks of a cluster that do most, and the one that does least, in the order of the cluster."""
    if len(members) <= quota:
        return list(members)
    busiest = sorted(members, key=lambda rank: -steps[rank])
    kept = {*busiest[: quota - 1], busiest[-1]}
    return [rank for rank in members if rank in kept]


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Where a point in time lies: `scale` per second, from `zero` on."""

    name: str
    scale: float
    zero: float
    length: float

    @classmethod
    def of(cls, timeline: Timeline, *, like: TimeAxis | None = None) -> TimeAxis:
        """An axis from the first start to the last end, in a unit that suits it, or as long as another."""
        zero = min((span.start for span in timeline.spans), default=0.0)
        if like is not None:
            return cls(like.name, like.scale, zero, like.length)
        unit, scale = _suited(timeline.duration)
        return cls(f"time in {unit}", scale, zero, 1.01 * timeline.duration * scale or 1.0)

    def at(self, time: float) -> float:
        """A point in time, on the axis."""
        return (time - self.zero) * self.scale


def _suited(seconds: float) -> tuple[str, float]:
    for name, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return name, scale
    return "ns", 1e9


def shown_time(seconds: float) -> str:
    """A duration with its unit."""
    name, scale = _suited(seconds)
    return f"{seconds * scale:.4g} {name}"


def shown_size(nbytes: int) -> str:
    """A number of bytes with its unit."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes >> shift:
            return f"{nbytes / (1 << shift):.3g} {unit}"
    return f"{nbytes} B"


class Chart:
    """One set of axes: time goes right, each rank has a row, and each cluster a band with its name."""

    def __init__(self, axes: Axes, rows: Rows, time: TimeAxis) -> None:
        self.axes = axes
        self.rows = rows
        self.time = time
        self._bars: dict[int, list[tuple[float, float, float, float, str]]] = {}
        self._texts: list[tuple[float, float, str, str]] = []
        for name, top, bottom in rows.bands:
            axes.axhspan(top, bottom, color="#F3F3F3", zorder=0, linewidth=0)
            where = axes.get_yaxis_transform()
            axes.text(1.005, (top + bottom) / 2, name, transform=where, va="center", fontsize=9, weight="bold")
        axes.set_yticks(list(rows.place.values()), [f"rank {rank}" for rank in rows.place], fontsize=8)
        axes.set_ylim(rows.bands[-1][2] if rows.bands else 1.0, 0.0)
        axes.set_xlim(0.0, time.length)
        axes.set_xlabel(time.name, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)

    def bar(
        self, start: float, end: float, middle: float, height: float, colour: str, *, text: str = "", layer: int = 3
    ) -> None:
        """A bar from time `start` to `end`, with a text where it fits; what is busy is in layer 3, the rest below."""
        left, right = self.time.at(start), self.time.at(end)
        self._bars.setdefault(layer, []).append((left, right, middle - height / 2, middle + height / 2, colour))
        if text and len(text) * _LETTER <= self._inches(right - left) and height > 0.14:
            self._texts.append(((left + right) / 2, middle, text, "white"))

    def _inches(self, width: float) -> float:
        """About how wide something on the axis is on the picture."""
        return width / self.time.length * 0.85 * _WIDTH

    def text(self, time: float, middle: float, text: str) -> None:
        """A text on the picture."""
        self._texts.append((self.time.at(time), middle, text, "black"))

    def arrows(self, ends: Sequence[tuple[float, float, float, float]], colour: str) -> None:
        """Arrows from (time, place) to (time, place)."""
        if not ends:
            return
        x = [self.time.at(start) for start, _, _, _ in ends]
        dx = [self.time.at(stop) - left for (_, _, stop, _), left in zip(ends, x, strict=True)]
        y = [top for _, top, _, _ in ends]
        dy = [bottom - top for _, top, _, bottom in ends]
        self.axes.quiver(
            *(x, y, dx, dy),
            angles="xy",
            scale_units="xy",
            scale=1,
            units="inches",
            width=0.014,
            headwidth=6,
            headlength=8,
            headaxislength=7,
            color=colour,
            zorder=5,
        )

    def paint(self) -> None:
        """Put bars and texts on the axes; once, when all are there."""
        from matplotlib.collections import PolyCollection

        for layer, bars in self._bars.items():
            corners = [[(left, top), (left, low), (right, low), (right, top)] for left, right, top, low, _ in bars]
            colours = [colour for *_, colour in bars]
            # A white edge tells neighbours apart; of a small bar it would leave nothing.
            edges = ["white" if layer == 3 and self._inches(bar[1] - bar[0]) > 0.06 else bar[4] for bar in bars]
            shapes = PolyCollection(corners, facecolors=colours, edgecolors=edges, linewidths=0.4, zorder=layer)
            self.axes.add_collection(shapes, autolim=False)
        if len(self._texts) <= _MAX_TEXTS:
            for x, y, text, colour in self._texts:
                box = (
                    {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8} if colour == "black" else None
                )
                self.axes.text(x, y, text, color=colour, fontsize=7, ha="center", va="center", zorder=6, bbox=box)


def new_figure(path: str | PathLike[str], height: float) -> Figure:
    """An empty figure, `height` inches high, that `save` can write to `path`.

    Raises:
        UsageError: The suffix is neither .svg nor .png, or there is no matplotlib.
    """
    if File(path).suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"{str(path)!r} is no picture that can be drawn", remedy="Give it the suffix .svg or .png.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "pictures are drawn by matplotlib, which is not installed",
            remedy="Install it: pip install 'hetcomm[plot]'.",
        ) from error
    return Figure(figsize=(_WIDTH, min(max(height, 2.2), 40)), layout="constrained")


def save(figure: Figure, path: str | PathLike[str], titles: Sequence[str], marks: Mapping[str, str]) -> None:
    """Add a title and a legend of colours, and write the file.

    Raises:
        UsageError: The file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.patches import Patch

    figure.suptitle(", ".join(filter(None, titles)), fontsize=11)
    handles = [Patch(color=colour, label=name) for name, colour in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(marks), fontsize=8, frameon=False)
    suffix = File(path).suffix.lower()[1:]
    # What names the time or the version would make equal pictures differ.
    metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
    try:
        with rc_context({"svg.hashsalt": "hetcomm", "svg.fonttype": "none"}):
            figure.savefig(path, format=suffix, dpi=110, metadata=metadata)
    except OSError as error:
        raise UsageError(f"picture {str(path)!r} cannot be written: {error}") from error
