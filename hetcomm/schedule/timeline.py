"""When which step ran, measured or simulated, and how a step is written in text.

Everything that names a step to a reader (errors, `explain`, timelines, diagrams) uses `label`.
Times are in seconds from a common zero.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Copy, Fill, Recv, Reduce, Scale, Send, Step, VendorCall

__all__ = ["Lane", "Span", "Timeline", "label", "tracks"]

_SCALED = {Scale.FACTOR: " times the factor", Scale.AVERAGE: " averaged"}


def label(step: Step) -> str:
    """A step as a line of text, such as 'vendor border:oneccl reduce_scatter sum 4096 x float32'."""
    match step:
        case Send():
            return f"send {step.src} to {step.peer}{_channel(step.channel)}"
        case Recv():
            return f"recv {step.dst} from {step.peer}{_channel(step.channel)}"
        case Copy():
            return f"copy {step.src} to {step.dst}{_SCALED[step.scale] if step.scale else ''}"
        case Fill():
            return f"fill {step.dst} with the identity of {step.op.value}"
        case Reduce():
            return f"reduce {step.op.value} {step.src} into {step.dst}"
        case VendorCall():
            return f"vendor {step.comm} {_what(step.collective)}"


def _channel(channel: int) -> str:
    return f" on channel {channel}" if channel else ""


def _what(collective: Collective) -> str:
    op = f" {collective.op.value}" if collective.op else ""
    root = f" root {collective.root}" if collective.root is not None else ""
    place = " in place" if collective.in_place else ""
    return f"{collective.kind.value}{op} {collective.count} x {collective.dtype.value}{root}{place}"


class Lane(enum.Enum):
    """What of a rank a step keeps busy."""

    HOME = "home vendor"
    BORDER = "border vendor"
    SEND = "sends"
    RECV = "receives"
    LOCAL = "local"


_LANES = {"send": Lane.SEND, "recv": Lane.RECV, "vendor home": Lane.HOME, "vendor border": Lane.BORDER}


@dataclass(frozen=True, slots=True)
class Span:
    """Step `index` of the program of `rank` ran from `start` to `end`.

    Until `began` it only waited: for a port to be free, for the first byte to arrive, or for the other members of a
    vendor call. None: that is not known.
    """

    rank: int
    index: int
    label: str
    start: float
    end: float
    began: float | None = None

    def __post_init__(self) -> None:
        if not self.start <= self.end:
            raise ValueError(f"span of rank {self.rank} step {self.index} ends at {self.end}, before {self.start}")
        if self.began is not None and not self.start <= self.began <= self.end:
            raise ValueError(f"span of rank {self.rank} step {self.index} begins at {self.began}, outside of it")

    @property
    def busy_from(self) -> float:
        """`began`, or where that is not known, `start`."""
        return self.start if self.began is None else self.began

    @property
    def lane(self) -> Lane:
        """What the step keeps busy, by its label."""
        return _LANES.get(self.label.partition(":")[0], _LANES.get(self.label.partition(" ")[0], Lane.LOCAL))

    @property
    def duration(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans of one collective, of one rank or of several."""

    spans: tuple[Span, ...] = ()

    @classmethod
    def merge(cls, timelines: Iterable[Timeline]) -> Timeline:
        """One timeline of all their spans, in order of start, then rank, then step."""
        spans = [span for timeline in timelines for span in timeline.spans]
        return cls(tuple(sorted(spans, key=lambda span: (span.start, span.rank, span.index))))

    @property
    def duration(self) -> float:
        """Seconds from the first start to the last end; 0 without spans."""
        if not self.spans:
            return 0.0
        return max(span.end for span in self.spans) - min(span.start for span in self.spans)

    def of(self, rank: int) -> Timeline:
        """The spans of one rank."""
        return Timeline(tuple(span for span in self.spans if span.rank == rank))

    def __str__(self) -> str:
        """A table with a line for each span; times in microseconds from the first start."""
        zero = min((span.start for span in self.spans), default=0.0)
        rows = [("rank", "step", "start us", "end us", "what")]
        rows += [
            (str(s.rank), str(s.index), f"{1e6 * (s.start - zero):.1f}", f"{1e6 * (s.end - zero):.1f}", s.label)
            for s in self.spans
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
        )


def tracks(spans: Sequence[Span], most: int | None = None) -> list[int]:
    """A number for each span, such that spans of one number are not busy at once; as few numbers as that takes.

    Args:
        spans: In any order.
        most: How many numbers there may be, where overlapping is better than many.
    """
    free: list[float] = []  # when each track is
    found = [0] * len(spans)
    for index in sorted(range(len(spans)), key=lambda index: (spans[index].busy_from, spans[index].end)):
        began = spans[index].busy_from
        track = next((number for number, end in enumerate(free) if end <= began), len(free))
        if track == most:
            track = free.index(min(free))
        if track == len(free):
            free.append(began)
        free[track] = max(free[track], spans[index].end)
        found[index] = track
    return found
