"""Vendor calls written out as messages, for vectors so short that a call costs more than what it moves.

The calls of a program become the flat programs of `hetcomm.topology.flat` over the same ranks, in the same places: the
values and the bytes between clusters stay, and a program without vendor calls runs without leaving the transport.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hetcomm.schedule.steps import Buffer, CommId, Copy, Fill, Program, Recv, Reduce, Send, Slice, Step, VendorCall
from hetcomm.topology import flat

__all__ = ["inline"]

_FIRST_CHANNEL = 8  # those before are the planners'
_CHANNELS = 248  # there are 256


def inline(program: Program, communicators: Mapping[CommId, Sequence[int]]) -> Program:
    """The program with every vendor call written out; as it is if it has none, or too many.

    All members of a communicator must do it, or none.

    Args:
        program: Any.
        communicators: The ranks of each communicator that it calls, in the communicator's own order.
    """
    comms = sorted(
        {step.comm for step in program.steps if isinstance(step, VendorCall)}, key=lambda comm: comm.role.value
    )
    if not comms:
        return program
    calls: Counter[CommId] = Counter()
    steps: list[Step] = []
    scratch = program.scratch_count
    for step in program.steps:
        if not isinstance(step, VendorCall):
            steps.append(step)
            continue
        channel = _FIRST_CHANNEL + 2 * calls[step.comm] + (step.comm.role.value == "border")
        calls[step.comm] += 1
        members = communicators[step.comm]
        part = flat.plan(step.collective, members.index(program.rank))
        steps += (_moved(each, step, members, scratch, channel) for each in part.steps)
        scratch += part.scratch_count
    if 2 * max(calls.values()) > _CHANNELS:
        return program
    return replace(program, steps=tuple(steps), scratch_count=scratch)


def _moved(step: Step, call: VendorCall, members: Sequence[int], scratch: int, channel: int) -> Step:
    """A step of a flat program, in terms of the program that it is written into."""

    def at(slice_: Slice) -> Slice:
        if slice_.buffer is Buffer.SCRATCH:
            return replace(slice_, offset=scratch + slice_.offset)
        whole = call.src if slice_.buffer is Buffer.IN else call.dst
        assert whole is not None  # or the call would have no such elements
        return whole.part(slice_.offset, slice_.count)

    match step:
        case Send(src, peer, _):
            return Send(at(src), members[peer], channel)
        case Recv(dst, peer, _):
            return Recv(at(dst), members[peer], channel)
        case Fill(dst, op):
            return Fill(at(dst), op)
        case Copy(src, dst, scale):
            return Copy(at(src), at(dst), scale)
        case Reduce(src, dst, op):
            return Reduce(at(src), at(dst), op)
        case VendorCall():
            raise ValueError("a flat program calls no vendor")
