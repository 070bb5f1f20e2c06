"""Pictures of schedules and timelines: message diagrams and Gantt charts.

* `diagram` shows who sends what to whom: a line for each rank, arrows for messages, boxes for vendor calls.
* `gantt` shows what keeps each rank busy: a lane for each vendor communicator, for local work, sends and receives.
* `compare` shows a simulated and a measured timeline of one plan on one time axis, with the error.

Pictures are SVG or PNG by the suffix of the file. matplotlib draws them, which is in the extra `plot`. Of a job of more
than `canvas.MAX_RANKS` ranks some are drawn, and the title says so; `hetcomm.schedule.trace` shows all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os import PathLike

from hetcomm.schedule.canvas import Chart, Clusters, Rows, TimeAxis, new_figure, save, shown_size, shown_time
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.dataflow import StepId, match, vendor_groups
from hetcomm.schedule.simulate import Path, Port, simulate
from hetcomm.schedule.steps import CommId, CommRole, Copy, Fill, Reduce, Schedule, Send
from hetcomm.schedule.timeline import Lane, Span, Timeline, tracks

__all__ = ["clusters_of", "compare", "diagram", "gantt"]

# Colours that colour-blind readers can tell apart: M. Okabe, K. Ito, "Color Universal Design", 2008.
_COLOURS = {
    Lane.HOME: "#0072B2",
    Lane.BORDER: "#D55E00",
    Lane.LOCAL: "#E69F00",
    Lane.SEND: "#009E73",
    Lane.RECV: "#56B4E9",
}
_ACROSS, _INSIDE, _WAITING, _LINE = "#009E73", "#7F7F7F", "#CFCFCF", "#999999"
_MAX_TRACKS = 4  # on which spans of one lane lie where they overlap
_LABELLED_MESSAGES = 40  # more arrows than this go without their sizes
_KINDS = {kind.value for kind in CollectiveKind}


def clusters_of(schedule: Schedule) -> dict[str, tuple[int, ...]]:
    """The clusters whose home communicators a schedule lists; ranks in none are in one without a name."""
    found = {c.cluster: members for c, members in schedule.communicators.items() if c.role is CommRole.HOME}
    rest = set(range(schedule.collective.nranks)).difference(*found.values())
    return found | ({"": tuple(sorted(rest))} if rest else {})


def diagram(
    schedule: Schedule,
    path: str | PathLike[str],
    *,
    timeline: Timeline | None = None,
    clusters: Clusters | None = None,
    ranks: Sequence[int] | None = None,
    title: str = "",
) -> None:
    """Draw a schedule as a message diagram: time goes right, and each rank has a line.

    Args:
        schedule: What to draw.
        path: The file, which is overwritten; its suffix is .svg or .png.
        timeline: When its steps ran, measured or simulated. None: time counts rounds; each message and each vendor call
            takes one, and nothing gets in its way.
        clusters: The ranks of each cluster; None: `clusters_of` the schedule.
        ranks: Which ranks to draw; None: all, or of a large job some of each cluster, the busiest first.
        title: Above the picture.

    Raises:
        UsageError: The suffix is another, the file cannot be written, a rank does not exist, or there is no matplotlib.
        ScheduleError: Steps of the schedule have no partner, or wait for one another for ever.
    """
    if timeline is None:
        shown = simulate(schedule, _Rounds())
        time = TimeAxis("rounds", 1.0, 0.0, 1.01 * shown.duration or 1.0)
    else:
        shown, time = timeline, TimeAxis.of(timeline)
    rows = Rows.choose(shown, clusters_of(schedule) if clusters is None else clusters, ranks)
    figure = new_figure(path, 1.2 + 0.5 * len(rows.place))
    chart = Chart(figure.add_subplot(), rows, time)
    for middle in rows.place.values():
        chart.bar(time.zero, time.zero + shown.duration, middle, 0.015, _LINE, layer=1)
    spans = {(span.rank, span.index): span for span in shown.spans}
    for span in shown.spans:
        if span.lane is Lane.LOCAL and span.rank in rows.place and span.duration:
            chart.bar(span.start, span.end, rows.place[span.rank], 0.24, _COLOURS[Lane.LOCAL], text=_text(span))
    _draw_calls(chart, schedule, spans)
    note = _draw_messages(chart, schedule, spans)
    chart.paint()
    marks = {"message between clusters": _ACROSS, "message inside a cluster": _INSIDE}
    marks |= {lane.value: _COLOURS[lane] for lane in (Lane.HOME, Lane.BORDER, Lane.LOCAL)}
    save(figure, path, (title, note, rows.note), marks)


def gantt(
    timeline: Timeline,
    path: str | PathLike[str],
    *,
    clusters: Clusters | None = None,
    ranks: Sequence[int] | None = None,
    title: str = "",
) -> None:
    """Draw a timeline as a Gantt chart; thin grey is a step that is started, but waits.

    Args:
        timeline: Measured or simulated; the clocks of its ranks must agree.
        path: The file, which is overwritten; its suffix is .svg or .png.
        clusters: The ranks of each cluster; None: one cluster without a name.
        ranks: Which ranks to draw; None: all, or of a large job some of each cluster, the busiest first.
        title: Above the picture.

    Raises:
        UsageError: The suffix is another, the file cannot be written, a rank does not exist, or there is no matplotlib.
    """
    rows = Rows.choose(timeline, clusters, ranks)
    figure = new_figure(path, 1.2 + 0.8 * len(rows.place))
    _draw_lanes(Chart(figure.add_subplot(), rows, TimeAxis.of(timeline)), timeline)
    save(figure, path, (title, shown_time(timeline.duration), rows.note), _LANE_MARKS)


def compare(
    simulated: Timeline,
    measured: Timeline,
    path: str | PathLike[str],
    *,
    clusters: Clusters | None = None,
    ranks: Sequence[int] | None = None,
    title: str = "",
) -> None:
    """Draw two timelines of one plan above each other, on one time axis, with the error of the simulated total.

    Args:
        simulated: What was expected.
        measured: What happened. Each of the two begins at its own first start.
        path: As for `gantt`, like all that follow.
        clusters: The ranks of each cluster.
        ranks: Which ranks to draw.
        title: Above the picture.

    Raises:
        UsageError: As `gantt`.
    """
    rows = Rows.choose(measured, clusters, ranks)
    figure = new_figure(path, 1.8 + 1.5 * len(rows.place))
    longer = TimeAxis.of(max(simulated, measured, key=lambda timeline: timeline.duration))
    parts = figure.subplots(2, 1, sharex=True)
    for axes, timeline, name in zip(parts, (simulated, measured), ("simulated", "measured"), strict=True):
        _draw_lanes(Chart(axes, rows, TimeAxis.of(timeline, like=longer)), timeline)
        axes.set_title(f"{name}: {shown_time(timeline.duration)}", fontsize=9, loc="left")
    parts[0].set_xlabel("")
    error = ""
    if measured.duration:
        error = f"error of the simulated time {100 * (simulated.duration / measured.duration - 1):+.1f} %"
    save(figure, path, (title, error, rows.note), _LANE_MARKS)


_LANE_MARKS = {lane.value: colour for lane, colour in _COLOURS.items()} | {"waiting": _WAITING}


class _Rounds:
    """Costs that count: a message or a vendor call takes 1, a local step a quarter."""

    overhead = 0.0
    _path = Path(Port(None, math.inf), Port(None, math.inf), 1.0)

    def path(self, sender: int, receiver: int) -> Path:
        return self._path

    def vendor(self, comm: CommId, collective: Collective) -> float:
        return 1.0

    def local(self, step: Copy | Fill | Reduce, nbytes: int) -> float:
        return 0.25


def _text(span: Span) -> str:
    """What a bar says: the collective, the peer, or what is done."""
    words = span.label.split()
    match span.lane:
        case Lane.HOME | Lane.BORDER:
            return next((word for word in words if word in _KINDS), "")
        case Lane.SEND | Lane.RECV:
            return " ".join(words[2:4])
        case Lane.LOCAL:
            return words[0] if words else ""


# ---- message diagrams


def _draw_calls(chart: Chart, schedule: Schedule, spans: Mapping[StepId, Span]) -> None:
    """A pale box over all members of each vendor call, and a bar on the line of each."""
    place = chart.rows.place
    for (comm, _), members in vendor_groups(schedule).items():
        seen = [(place[step[0]], spans[step]) for step in members if step[0] in place and step in spans]
        if not seen:
            continue
        colour = _COLOURS[Lane.HOME if comm.role is CommRole.HOME else Lane.BORDER]
        start, end = max(span.busy_from for _, span in seen), max(span.end for _, span in seen)
        top, bottom = min(at for at, _ in seen), max(at for at, _ in seen)
        chart.bar(start, end, (top + bottom) / 2, bottom - top + 0.5, _pale(colour), layer=2)
        for at, span in seen:
            chart.bar(span.busy_from, span.end, at, 0.36, colour, text=_text(span), layer=3)


def _pale(colour: str) -> str:
    """The same colour on white paper, at a quarter of its strength."""
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{255 - (255 - part) // 4:02X}" for part in parts)


_Arrow = tuple[float, int, float, int]  # (start, sender, end, receiver)


def _draw_messages(chart: Chart, schedule: Schedule, spans: Mapping[StepId, Span]) -> str:
    """An arrow for each message, from its start to its receipt; equal arrows are one, with their number.

    Returns:
        What the title says of their sizes; those that differ are written at the arrows, unless there are too many.
    """
    place, cluster = chart.rows.place, chart.rows.cluster
    arrows: defaultdict[_Arrow, list[int]] = defaultdict(list)  # with the bytes of each message
    for step, partner in match(schedule).items():
        send = schedule.programs[step[0]].steps[step[1]]
        if not isinstance(send, Send) or not send.src.count or step not in spans or partner not in spans:
            continue
        if step[0] in place and partner[0] in place:
            arrow = (spans[step].busy_from, step[0], spans[partner].end, partner[0])
            arrows[arrow].append(send.src.count * schedule.collective.dtype.itemsize)
    for colour, across in ((_ACROSS, True), (_INSIDE, False)):
        chosen = [arrow for arrow in arrows if (cluster[arrow[1]] != cluster[arrow[3]]) == across]
        chart.arrows([(start, place[sender], end, place[receiver]) for start, sender, end, receiver in chosen], colour)
    every = [nbytes for several in arrows.values() for nbytes in several]
    differ = len(set(every)) > 1
    if len(arrows) <= _LABELLED_MESSAGES:
        _label_messages(chart, arrows, differ)
    if not every:
        return ""
    size = f"{shown_size(min(every))} to {shown_size(max(every))}" if differ else shown_size(every[0])
    return f"{len(every)} messages of {size}" if len(every) > 1 else f"1 message of {size}"


def _label_messages(chart: Chart, arrows: Mapping[_Arrow, Sequence[int]], differ: bool) -> None:
    """Write how many messages an arrow stands for, and how long they are if the lengths differ."""
    place = chart.rows.place
    for number, ((start, sender, end, receiver), sizes) in enumerate(arrows.items()):
        along = (0.3, 0.5, 0.7)[number % 3]  # so that the texts of crossing arrows do not all meet in the middle
        where = place[sender] + (place[receiver] - place[sender]) * along
        many = f"{len(sizes)} x" if len(sizes) > 1 else ""
        long = shown_size(sum(sizes) // len(sizes)) if differ else ""
        if many or long:
            chart.text(start + (end - start) * along, where, f"{many} {long}".strip())


# ---- Gantt charts


def _draw_lanes(chart: Chart, timeline: Timeline) -> None:
    lanes: defaultdict[tuple[int, Lane], list[Span]] = defaultdict(list)
    for span in timeline.spans:
        if span.rank in chart.rows.place and span.duration:
            lanes[span.rank, span.lane].append(span)
    for rank, middle in chart.rows.place.items():
        used = [lane for lane in _COLOURS if (rank, lane) in lanes]
        height = 0.92 / max(len(used), 3)
        for number, lane in enumerate(used):
            _draw_lane(chart, lanes[rank, lane], middle + height * (number - len(used) / 2), height)
    chart.paint()


def _draw_lane(chart: Chart, spans: Sequence[Span], top: float, height: float) -> None:
    """The spans of one lane, on tracks below each other where they overlap."""
    numbers = tracks(spans, _MAX_TRACKS)
    height /= 1 + max(numbers)
    for span, number in zip(spans, numbers, strict=True):
        middle = top + height * (number + 0.5)
        chart.bar(span.start, span.busy_from, middle, 0.2 * height, _WAITING, layer=2)
        chart.bar(span.busy_from, span.end, middle, 0.86 * height, _COLOURS[span.lane], text=_text(span))
