"""Pictures are files that can be read and say what they should; traces keep the rules of their format."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from collections import defaultdict
from pathlib import Path as File
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.errors import UsageError
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.draw import clusters_of, compare, diagram, gantt
from hetcomm.schedule.simulate import Path, Port, simulate
from hetcomm.schedule.steps import CommId, Copy, Fill, Reduce
from hetcomm.schedule.timeline import Lane, Span, Timeline, label, tracks
from hetcomm.schedule.trace import chrome_trace, save_trace

from ..scripts import python
from .handmade import bordered_all_reduce, collective, direct_reduce, ring_all_reduce

drawing = pytest.mark.skipif("not __import__('importlib').util.find_spec('matplotlib')", reason="needs matplotlib")


class Plain:
    """Some costs."""

    overhead = 1e-6

    def path(self, sender: int, receiver: int) -> Path:
        return Path(Port(sender, 1e9), Port(receiver, 1e9), 5e-6)

    def vendor(self, comm: CommId, collective: Collective) -> float:
        return 1e-5

    def local(self, step: Copy | Fill | Reduce, nbytes: int) -> float:
        return nbytes / 1e10


SCHEDULE = bordered_all_reduce(collective("all_reduce", 6, 3000, "avg"))
TIMELINE = simulate(SCHEDULE, Plain())
CLUSTERS = clusters_of(SCHEDULE)


def texts(path: File) -> list[str]:
    """Every text of a picture."""
    return ["".join(node.itertext()) for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_clusters_are_those_of_the_home_communicators() -> None:
    assert CLUSTERS == {"left": (0, 1, 2), "right": (3, 4, 5)}
    assert clusters_of(direct_reduce(collective("reduce", 3, 5, "sum", root=0))) == {"": (0, 1, 2)}


def test_lanes() -> None:
    for program in SCHEDULE.programs:
        for step in program.steps:
            span = Span(0, 0, label(step), 0.0, 1.0)
            words = label(step).split()
            wanted = {"send": Lane.SEND, "recv": Lane.RECV}.get(words[0], Lane.LOCAL)
            if words[0] == "vendor":
                wanted = Lane.HOME if words[1].startswith("home:") else Lane.BORDER
            assert span.lane is wanted


@given(
    ends=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12), most=st.none() | st.integers(1, 3)
)
def test_tracks(ends: list[tuple[int, int]], most: int | None) -> None:
    spans = [Span(0, index, "fill", min(pair), max(pair)) for index, pair in enumerate(ends)]
    found = tracks(spans, most)
    busy = max((sum(s.start <= at < s.end for s in spans) for at in range(21)), default=0)
    assert set(found) == set(range(max(found, default=-1) + 1))
    if most is not None and busy > most:
        assert max(found) == most - 1
        return
    assert max(found, default=0) <= max(busy, 1)
    for one in range(len(spans)):
        for other in range(one):
            if found[one] == found[other]:
                assert spans[one].end <= spans[other].start or spans[other].end <= spans[one].start


# ---- pictures


@drawing
def test_a_diagram(tmp_path: File) -> None:
    diagram(SCHEDULE, tmp_path / "a.svg", title="six ranks")
    diagram(SCHEDULE, tmp_path / "b.svg", title="six ranks")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    found = texts(tmp_path / "a.svg")
    assert {f"rank {rank}" for rank in range(6)} | {"left", "right", "rounds", "all_reduce"} <= set(found)
    assert "six ranks, 4 messages of 5.86 KiB" in found
    assert found.count("all_reduce") == 2 * 3 + 2 * 2


@drawing
def test_a_diagram_of_a_timeline(tmp_path: File) -> None:
    diagram(SCHEDULE, tmp_path / "a.svg", timeline=TIMELINE, ranks=[0, 4])
    found = texts(tmp_path / "a.svg")
    assert {"rank 0", "rank 4", "time in us"} <= set(found)
    assert "rank 1" not in found
    assert "1 message of 5.86 KiB, 2 of 6 ranks" in found


@drawing
def test_sizes_that_differ_are_written_at_the_arrows(tmp_path: File) -> None:
    diagram(ring_all_reduce(collective("all_reduce", 3, 10, "sum")), tmp_path / "a.svg")
    found = texts(tmp_path / "a.svg")
    assert "12 messages of 12 B to 16 B" in found
    assert {"12 B", "16 B"} <= set(found)


@drawing
def test_a_gantt_chart(tmp_path: File) -> None:
    gantt(TIMELINE, tmp_path / "a.svg", clusters=CLUSTERS, title="a plan")
    found = texts(tmp_path / "a.svg")
    assert {f"rank {rank}" for rank in range(6)} | {"left", "right", "to 4", "waiting"} <= set(found)
    assert any(text.startswith("a plan, ") and text.endswith(" us") for text in found)
    gantt(Timeline(), tmp_path / "empty.svg")
    assert "0 ns" in texts(tmp_path / "empty.svg")


@drawing
def test_a_png(tmp_path: File) -> None:
    for name in ("a.png", "b.PNG"):
        gantt(TIMELINE, tmp_path / name, clusters=CLUSTERS)
    picture = (tmp_path / "a.png").read_bytes()
    assert picture == (tmp_path / "b.PNG").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width == 1320
    assert height > 300


@drawing
def test_a_comparison_states_the_error(tmp_path: File) -> None:
    slower = Timeline(tuple(Span(s.rank, s.index, s.label, 9 + 2 * s.start, 9 + 2 * s.end) for s in TIMELINE.spans))
    compare(TIMELINE, slower, tmp_path / "a.svg", clusters=CLUSTERS, title="both")
    found = texts(tmp_path / "a.svg")
    assert "both, error of the simulated time -50.0 %" in found
    assert any(text.startswith("simulated: ") for text in found)
    assert any(text.startswith("measured: ") for text in found)
    assert found.count("rank 5") == 2


@drawing
def test_of_a_large_job_some_ranks(tmp_path: File) -> None:
    schedule = bordered_all_reduce(collective("all_reduce", 60, 300, "sum"))
    diagram(schedule, tmp_path / "a.svg")
    found = texts(tmp_path / "a.svg")
    assert any(text.endswith("16 of 60 ranks") for text in found)
    shown = {text for text in found if text.startswith("rank ")}
    assert len(shown) == 16
    assert {"rank 0", "rank 1", "rank 30", "rank 31"} <= shown  # those with most to do


@drawing
def test_what_cannot_be_drawn(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"suffix \.svg or \.png"):
        gantt(TIMELINE, tmp_path / "a.gif")
    with pytest.raises(UsageError, match="rank 6 cannot be drawn"):
        gantt(TIMELINE, tmp_path / "a.svg", ranks=[6])
    with pytest.raises(UsageError, match="cannot be written"):
        gantt(TIMELINE, tmp_path / "none" / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'hetcomm\[plot\]'"):
        diagram(SCHEDULE, tmp_path / "a.svg")


def test_nothing_is_imported_before_it_is_needed() -> None:
    look = "import sys, hetcomm.schedule.draw; sys.exit('matplotlib' in sys.modules)"
    python(look)


# ---- traces


def check_trace(document: dict[str, Any], timeline: Timeline) -> None:
    """The rules of the trace event format that we rely on."""
    events = json.loads(json.dumps(document))["traceEvents"]
    threads: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    for event in events:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert sum(map(len, threads.values())) == len(timeline.spans)
    assert threads.keys() <= named
    for spans in threads.values():
        spans.sort()
        assert all(one[1] <= other[0] * (1 + 1e-9) for one, other in itertools.pairwise(spans))


def test_a_trace(tmp_path: File) -> None:
    document = chrome_trace(TIMELINE, clusters=CLUSTERS)
    check_trace(document, TIMELINE)
    names = {e["pid"]: e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"}
    assert names == {1: "left", 2: "right"}
    ranks = {(e["args"]["rank"], e["pid"]) for e in document["traceEvents"] if e["ph"] == "X"}
    assert ranks == {(rank, 1 + rank // 3) for rank in range(6)}
    last = max(e["ts"] + e["dur"] for e in document["traceEvents"] if e["ph"] == "X")
    assert last == pytest.approx(1e6 * TIMELINE.duration)
    save_trace(TIMELINE, tmp_path / "a.json", clusters=CLUSTERS)
    assert json.loads((tmp_path / "a.json").read_text()) == document
    with pytest.raises(UsageError, match="cannot be written"):
        save_trace(TIMELINE, tmp_path / "none" / "a.json")


def test_a_trace_of_ranks_in_no_cluster() -> None:
    timeline = Timeline((Span(7, 0, "fill", 5.0, 6.0), Span(7, 1, "fill", 5.5, 7.0)))
    document = chrome_trace(timeline)
    check_trace(document, timeline)
    assert [e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"] == ["job"]
    assert len({e["tid"] for e in document["traceEvents"] if e["ph"] == "X"}) == 2
    assert chrome_trace(Timeline())["traceEvents"] == []
