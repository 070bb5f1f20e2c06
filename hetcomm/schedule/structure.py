"""What is wrong with a schedule that can be seen without running it: ranks, bounds, buffers, vendor calls."""

from __future__ import annotations

from collections.abc import Mapping

from hetcomm.errors import ScheduleError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.dataflow import accesses, step_error
from hetcomm.schedule.places import buffer_counts, input_places, output_places, overlap
from hetcomm.schedule.spec import Family
from hetcomm.schedule.steps import Buffer, CommId, Program, Recv, Reduce, Schedule, Send, Slice, Step, VendorCall

__all__ = ["VENDOR_KINDS", "check_structure"]

VENDOR_KINDS = frozenset(kind for kind in CollectiveKind if kind.row.family is Family.VENDOR)
"""What a vendor call may be; the other kinds, and the vector forms, move as messages."""

_Members = Mapping[CommId, Mapping[int, int]]
"""Each member's number in a communicator, by rank."""


def check_structure(schedule: Schedule) -> None:
    """Check everything about the single steps of a schedule.

    Raises:
        ScheduleError: Programs are missing or are for something else; blocks of an input or output share an element; a
            communicator lists a rank twice or one that does not exist; a slice leaves its buffer; `IN` is written, or
            used in place; the root of a broadcast or scatter in place, whose array is only read, writes it; a peer is
            this rank itself or no rank; a channel is negative; a vendor call does not fit its communicator or its
            slices, or is of a kind that vendors lack; an op is one that must be composed.
    """
    nranks = schedule.collective.nranks
    if len(schedule.programs) != nranks or any(p.rank != number for number, p in enumerate(schedule.programs)):
        raise ScheduleError(f"the programs are not those of ranks 0 to {nranks - 1} in order")
    members: dict[CommId, dict[int, int]] = {}
    for comm, ranks in schedule.communicators.items():
        members[comm] = {rank: number for number, rank in enumerate(ranks)}
        if len(members[comm]) != len(ranks) or not all(0 <= rank < nranks for rank in ranks):
            raise ScheduleError(f"communicator {comm} has members {ranks}: not distinct ranks from 0 to {nranks - 1}")
    for program in schedule.programs:
        _check_collective(program, schedule.collective)
        counts, kept = buffer_counts(program), _is_only_read(program)
        for index, step in enumerate(program.steps):
            problem = _slices_problem(step, counts) or _step_problem(step, program, schedule, members)
            if kept and not problem:
                problem = _root_problem(step, program.rank, members)
            if problem:
                raise step_error(program, index, problem)


def _check_collective(program: Program, whole: Collective) -> None:
    """Raises `ScheduleError` unless the program is for `whole`, in any place, with blocks that do not overlap."""
    collective, rank = program.collective, program.rank
    if collective is not whole and collective.agreed() != whole.agreed():
        raise ScheduleError(f"the program is for {collective}, the schedule for {whole}", rank=rank)
    if collective.in_displs is None and collective.out_displs is None:
        return
    for what, places in (("input", input_places(collective, rank)), ("output", output_places(collective, rank))):
        shared = overlap(places)
        if shared is not None:
            raise ScheduleError(f"element {shared} of the {what} lies in two blocks: displacements overlap", rank=rank)


def _slices_problem(step: Step, counts: Mapping[Buffer, int]) -> str | None:
    reads, writes = accesses(step)
    for touched in reads:
        if touched.offset + touched.count > counts[touched.buffer]:
            return f"{touched} leaves its buffer of {counts[touched.buffer]} elements"
    for touched in writes:
        if touched.offset + touched.count > counts[touched.buffer]:
            return f"{touched} leaves its buffer of {counts[touched.buffer]} elements"
        if touched.buffer is Buffer.IN:
            return "writes the input"
    return None


def _is_only_read(program: Program) -> bool:
    """Whether the one buffer of a program in place holds nothing but input, which stays as it is."""
    collective = program.collective
    return collective.kind.row.passed_by_root and collective.in_place and collective.root == program.rank


def _root_problem(step: Step, rank: int, members: _Members) -> str | None:
    number = members[step.comm][rank] if isinstance(step, VendorCall) else None
    if any(touched.buffer is Buffer.OUT for touched in accesses(step, number)[1]):
        return "writes the array of the root, which is only read"
    return None


def _step_problem(step: Step, program: Program, schedule: Schedule, members: _Members) -> str | None:
    match step:
        case VendorCall():
            return _call_problem(step, program.rank, schedule, members)
        case Send(peer=peer, channel=channel) | Recv(peer=peer, channel=channel):
            if peer == program.rank or not 0 <= peer < schedule.collective.nranks:
                return f"peer {peer} is not another rank"
            if channel < 0:
                return f"channel {channel} is negative"
        case Reduce(op=op) if op is not op.combining:
            return f"op {op.value} must be composed of a sum and a scaling copy"
        case _:
            pass
    return None


def _call_problem(step: VendorCall, rank: int, schedule: Schedule, members: _Members) -> str | None:
    collective, numbers = step.collective, members.get(step.comm)
    if numbers is None:
        return f"names {step.comm}, which the schedule does not list"
    number = numbers.get(rank)
    if number is None:
        return f"calls {step.comm}, of which the rank is no member"
    if collective.kind not in VENDOR_KINDS:
        return f"vendors offer no {collective.kind.value}: it must be composed of messages"
    if collective.counts is not None:
        return "has counts: vector forms must be composed"
    if collective.nranks != len(numbers):
        return f"is for {collective.nranks} ranks, {step.comm} has {len(numbers)}"
    if collective.dtype is not schedule.collective.dtype:
        return f"works on {collective.dtype.value}, the schedule on {schedule.collective.dtype.value}"
    if collective.op is not None and collective.op is not collective.op.combining:
        return f"op {collective.op.value} must be composed of a sum and a scaling copy"
    if collective.in_place:
        if step.src is not None:
            return "is in place, yet has a src"
        return _count_problem("dst", step.dst, collective.buffer_count(number))
    if step.src is not None and step.dst is not None and step.src.overlaps(step.dst):
        return f"is not in place, yet {step.src} and {step.dst} overlap"
    return _count_problem("src", step.src, collective.in_count(number)) or _count_problem(
        "dst", step.dst, collective.out_count(number)
    )


def _count_problem(name: str, touched: Slice | None, count: int) -> str | None:
    """What is wrong with a slice that must have `count` elements, and may be None if that is 0."""
    found = touched.count if touched is not None else 0
    return f"{name} has {found} elements instead of {count}" if found != count else None
