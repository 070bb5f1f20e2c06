"""What can be seen in single steps: rules about whose memory may be written, and who makes which vendor call."""

from __future__ import annotations

from typing import Any

import pytest

from hetcomm.errors import ScheduleError
from hetcomm.schedule.steps import CommId, CommRole, Copy, Fill, Recv, Send, Slice, Step, VendorCall
from hetcomm.schedule.structure import check_structure
from hetcomm.schedule.verify import verify
from hetcomm.types import ReduceKind

from .handmade import OUT, SCRATCH, WORLD, build, chain_broadcast, collective

WHOLE, SPARE = Slice(OUT, 0, 8), Slice(SCRATCH, 0, 8)


@pytest.mark.parametrize("write", [Recv(WHOLE, 1), Fill(Slice(OUT, 7, 1), ReduceKind.SUM), Copy(SPARE, WHOLE)])
@pytest.mark.parametrize("kind", ["broadcast", "scatter"])
def test_the_array_of_a_root_in_place_is_only_read(kind: str, write: Recv | Fill | Copy) -> None:
    count = 8 if kind == "broadcast" else 4
    what = collective(kind, 2, count, root=0, in_place=True)
    harmless: list[Step] = [Copy(WHOLE, SPARE), Send(SPARE.part(0, count), 1)]
    check_structure(build(what, [harmless, []], 8))
    with pytest.raises(ScheduleError, match=r"\[rank 0, step 2 .*writes the array of the root, which is only read"):
        check_structure(build(what, [[*harmless, write], []], 8))


def test_a_vendor_broadcast_in_place_writes_on_the_others_only() -> None:
    what = collective("broadcast", 2, 8, root=1, in_place=True)
    call = VendorCall(WORLD, what, None, WHOLE)
    verify(build(what, [[call], [call]], 0, {WORLD: (0, 1)}))
    backwards: dict[CommId, tuple[int, ...]] = {WORLD: (1, 0)}  # its root is rank 0 then
    with pytest.raises(ScheduleError, match=r"\[rank 1, step 0 .*only read"):
        check_structure(build(what, [[call], [call]], 0, backwards))


def test_others_may_write_their_array() -> None:
    verify(chain_broadcast(collective("broadcast", 3, 8, root=2, in_place=True)))


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("gather", {"root": 0}, "vendors offer no gather"),
        ("scatter", {"root": 0}, "vendors offer no scatter"),
        ("all_to_all", {}, "vendors offer no all_to_all"),
        ("all_gather", {"counts": (3, 1)}, "has counts"),
    ],
)
def test_vendors_are_asked_for_the_five_uniform_collectives_only(kind: str, more: dict[str, Any], message: str) -> None:
    what = collective(kind, 2, 4, **more)
    src, dst = Slice(SCRATCH, 0, what.in_count(0)), Slice(SCRATCH, 8, what.out_count(0))
    outer = collective("all_reduce", 2, 8, "sum")
    with pytest.raises(ScheduleError, match=message):
        check_structure(build(outer, [[VendorCall(WORLD, what, src, dst)], []], 16, {WORLD: (0, 1)}))


def test_the_first_call_that_is_missing_is_named() -> None:
    left = CommId("left", CommRole.HOME)
    what = collective("all_reduce", 2, 8, "sum", in_place=True)
    call = VendorCall(left, what, None, WHOLE)
    with pytest.raises(ScheduleError, match=r"rank 1, step 2 .*is call 2 on home:left, on which rank 0 makes only 2"):
        verify(build(what, [[call, call], [call, call, call, call]], 0, {left: (0, 1)}))
