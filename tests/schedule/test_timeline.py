"""Names of steps and tables of spans."""

from __future__ import annotations

import pytest

from hetcomm.schedule.steps import CommId, CommRole, Copy, Fill, Recv, Reduce, Scale, Send, Slice, Step, VendorCall
from hetcomm.schedule.timeline import Span, Timeline, label
from hetcomm.types import ReduceKind

from .handmade import IN, OUT, SCRATCH, collective

A, B = Slice(OUT, 0, 4), Slice(SCRATCH, 4, 4)
BORDER = CommId("oneccl", CommRole.BORDER)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Send(A, 3), "send out[0:4] to 3"),
        (Recv(B, 0, 2), "recv scratch[4:8] from 0 on channel 2"),
        (Copy(Slice(IN, 0, 4), A), "copy in[0:4] to out[0:4]"),
        (Copy(A, A, Scale.AVERAGE), "copy out[0:4] to out[0:4] averaged"),
        (Copy(A, B, Scale.FACTOR), "copy out[0:4] to scratch[4:8] times the factor"),
        (Fill(A, ReduceKind.MIN), "fill out[0:4] with the identity of min"),
        (Reduce(B, A, ReduceKind.PROD), "reduce prod scratch[4:8] into out[0:4]"),
        (
            VendorCall(BORDER, collective("reduce_scatter", 2, 4096, "sum"), None, None),
            "vendor border:oneccl reduce_scatter sum 4096 x float32",
        ),
        (
            VendorCall(BORDER, collective("broadcast", 2, 8, root=1, in_place=True), None, None),
            "vendor border:oneccl broadcast 8 x float32 root 1 in place",
        ),
    ],
)
def test_labels(step: Step, text: str) -> None:
    assert label(step) == text


ONE = Timeline((Span(0, 0, "fill", 10.0, 10.5), Span(0, 1, "send", 10.5, 11.0)))
TWO = Timeline((Span(1, 0, "recv", 10.25, 12.0),))


def test_merge_orders_by_start() -> None:
    both = Timeline.merge([TWO, ONE])
    assert [(span.rank, span.index) for span in both.spans] == [(0, 0), (1, 0), (0, 1)]
    assert (ONE.duration, TWO.duration, both.duration, Timeline().duration) == (1.0, 1.75, 2.0, 0.0)
    assert both.of(0) == ONE
    assert Timeline.merge([]) == Timeline()


def test_the_table() -> None:
    assert str(Timeline.merge([ONE, TWO])).splitlines() == [
        "rank  step  start us     end us  what",
        "   0     0       0.0   500000.0  fill",
        "   1     0  250000.0  2000000.0  recv",
        "   0     1  500000.0  1000000.0  send",
    ]
    assert str(Timeline()) == "rank  step  start us  end us  what"


def test_a_span_cannot_end_before_it_starts() -> None:
    with pytest.raises(ValueError, match="rank 2 step 3"):
        Span(2, 3, "send", 1.0, 0.5)
