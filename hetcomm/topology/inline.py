"""Vendor calls written out as messages, for vectors so short that a call costs more than what it moves.

The calls of a program become the flat programs of `hetcomm.topology.flat` over the same ranks, in the same places: the
values and the bytes between clusters stay, and a program without vendor calls runs without leaving the transport.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hetcomm.schedule.steps import (
    Buffer,
    CommId,
    CommRole,
    Copy,
    Fill,
    Program,
    Recv,
    Reduce,
    Send,
    Slice,
    Step,
    VendorCall,
)
from hetcomm.topology import flat

__all__ = ["inline"]

_FIRST_CHANNEL = 8  # those before are the planners'
_OF_A_CALL = 2  # channels of a flat program
_CALLS = 62  # of one communicator that have channels of their own; there are 256
_ROOMS = 4  # calls that have scratch of their own: as many as are under way at one time


def inline(program: Program, communicators: Mapping[CommId, Sequence[int]]) -> Program:
    """The program with every vendor call written out; as it is if it has none.

    All members of a communicator must do it, or none.

    Args:
        program: Any.
        communicators: The ranks of each communicator that it calls, in the communicator's own order.
    """
    flats = [
        flat.plan(step.collective, communicators[step.comm].index(program.rank), program.collective)
        for step in program.steps
        if isinstance(step, VendorCall)
    ]
    if not flats:
        return program
    room = max(part.scratch_count for part in flats)
    calls: Counter[CommId] = Counter()
    steps: list[Step] = []
    for step in program.steps:
        if not isinstance(step, VendorCall):
            steps.append(step)
            continue
        number = calls.total()
        part, scratch = flats[number], program.scratch_count + number % _ROOMS * room
        turn = 2 * (calls[step.comm] % _CALLS) + (step.comm.role is CommRole.BORDER)
        calls[step.comm] += 1
        first = _FIRST_CHANNEL + _OF_A_CALL * turn
        steps += (_moved(each, step, communicators[step.comm], scratch, first) for each in part.steps)
    return replace(program, steps=tuple(steps), scratch_count=program.scratch_count + min(len(flats), _ROOMS) * room)


def _moved(step: Step, call: VendorCall, members: Sequence[int], scratch: int, first: int) -> Step:
    """A step of a flat program, in terms of the program that it is written into."""

    def at(slice_: Slice) -> Slice:
        if slice_.buffer is Buffer.SCRATCH:
            return replace(slice_, offset=scratch + slice_.offset)
        whole = call.src if slice_.buffer is Buffer.IN else call.dst
        assert whole is not None  # or the call would have no such elements
        return whole.part(slice_.offset, slice_.count)

    match step:
        case Send(src, peer, channel):
            return Send(at(src), members[peer], first + channel)
        case Recv(dst, peer, channel):
            return Recv(at(dst), members[peer], first + channel)
        case Fill(dst, op):
            return Fill(at(dst), op)
        case Copy(src, dst, scale):
            return Copy(at(src), at(dst), scale)
        case Reduce(src, dst, op):
            return Reduce(at(src), at(dst), op)
        case VendorCall():
            raise ValueError("a flat program calls no vendor")
