"""Timelines for chrome://tracing and https://ui.perfetto.dev, which show jobs that no picture holds.

The document is the JSON object form of Chrome's trace event format: a process for each cluster, threads for each lane
of each rank, a complete event ("X") for each span from when it is busy, microseconds from the first start. Those of one
thread must not overlap there, so a lane whose spans do has several threads.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path as File
from typing import Any

from hetcomm.errors import UsageError
from hetcomm.schedule.timeline import Lane, Span, Timeline, tracks

__all__ = ["chrome_trace", "save_trace"]


def chrome_trace(timeline: Timeline, *, clusters: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """The timeline as a document that `json.dumps` takes.

    Args:
        timeline: Measured or simulated; the clocks of its ranks must agree.
        clusters: The ranks of each cluster; None, and for ranks in none: one named "job".
    """
    zero = min((span.start for span in timeline.spans), default=0.0)
    processes = {rank: number for number, members in enumerate((clusters or {}).values(), 1) for rank in members}
    names = dict(enumerate(clusters or {}, 1))
    lanes: defaultdict[tuple[int, Lane], list[Span]] = defaultdict(list)
    for span in timeline.spans:
        lanes[span.rank, span.lane].append(span)
    if any(rank not in processes for rank, _ in lanes):
        names[0] = "job"
    events = [_name("process_name", process, 0, {"name": name}) for process, name in sorted(names.items())]
    order = list(Lane)
    threads = 0  # so far
    for rank, lane in sorted(lanes, key=lambda key: (key[0], order.index(key[1]))):
        process, spans = processes.get(rank, 0), lanes[rank, lane]
        numbers = [threads + number for number in tracks(spans)]
        for thread in sorted(set(numbers)):
            events.append(_name("thread_name", process, thread, {"name": f"rank {rank} {lane.value}"}))
            events.append(_name("thread_sort_index", process, thread, {"sort_index": thread}))
        events += [_event(span, process, thread, zero) for span, thread in zip(spans, numbers, strict=True)]
        threads = 1 + max(numbers)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def save_trace(
    timeline: Timeline, path: str | PathLike[str], *, clusters: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Write `chrome_trace` to the file at `path`.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        File(path).write_text(json.dumps(chrome_trace(timeline, clusters=clusters)), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"trace {str(path)!r} cannot be written: {error}") from error


def _name(what: str, process: int, thread: int, value: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": value}


def _event(span: Span, process: int, thread: int, zero: float) -> dict[str, Any]:
    detail: dict[str, Any] = {"rank": span.rank, "step": span.index}
    if span.began is not None:
        detail["waited_us"] = 1e6 * (span.began - span.start)
    times = {"ts": 1e6 * (span.busy_from - zero), "dur": 1e6 * (span.end - span.busy_from)}
    return {
        "ph": "X",
        "name": span.label,
        "cat": span.lane.value,
        "pid": process,
        "tid": thread,
        **times,
        "args": detail,
    }
