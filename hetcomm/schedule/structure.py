"""What is wrong with a schedule that can be seen without running it: ranks, bounds, buffers, vendor calls."""

from __future__ import annotations

from hetcomm.errors import ScheduleError
from hetcomm.schedule.dataflow import accesses, step_error
from hetcomm.schedule.steps import Buffer, Program, Recv, Reduce, Schedule, Send, Slice, Step, VendorCall
from hetcomm.types import ReduceKind

__all__ = ["buffer_counts", "check_structure"]

_COMPOSED = (ReduceKind.AVG, ReduceKind.PREMUL_SUM)


def buffer_counts(program: Program) -> dict[Buffer, int]:
    """Elements of each buffer that a program works on; in place, `IN` has none."""
    collective, rank = program.collective, program.rank
    if collective.in_place:
        return {Buffer.IN: 0, Buffer.OUT: collective.buffer_count(rank), Buffer.SCRATCH: program.scratch_count}
    return {
        Buffer.IN: collective.in_count(rank),
        Buffer.OUT: collective.out_count(rank),
        Buffer.SCRATCH: program.scratch_count,
    }


def check_structure(schedule: Schedule) -> None:
    """Check everything about the single steps of a schedule.

    Raises:
        ScheduleError: Programs are missing or are for something else; a communicator lists a rank twice or one that
            does not exist; a slice leaves its buffer; `IN` is written, or used in place; a peer is this rank itself or
            no rank; a vendor call does not fit its communicator or its slices; an op is one that must be composed.
    """
    nranks = schedule.collective.nranks
    if [program.rank for program in schedule.programs] != list(range(nranks)):
        raise ScheduleError(f"the programs are not those of ranks 0 to {nranks - 1} in order")
    for comm, members in schedule.communicators.items():
        if len(set(members)) != len(members) or not all(0 <= rank < nranks for rank in members):
            raise ScheduleError(f"communicator {comm} has members {members}: not distinct ranks from 0 to {nranks - 1}")
    for program in schedule.programs:
        if program.collective.with_in_place(False) != schedule.collective.with_in_place(False):
            raise ScheduleError(
                f"the program is for {program.collective}, the schedule for {schedule.collective}", rank=program.rank
            )
        counts = buffer_counts(program)
        for index, step in enumerate(program.steps):
            problem = _slices_problem(step, counts) or _step_problem(step, program, schedule)
            if problem:
                raise step_error(program, index, problem)


def _slices_problem(step: Step, counts: dict[Buffer, int]) -> str | None:
    reads, writes = accesses(step)
    for touched in (*reads, *writes):
        if touched.stop > counts[touched.buffer]:
            return f"{touched} leaves its buffer of {counts[touched.buffer]} elements"
    if any(written.buffer is Buffer.IN for written in writes):
        return "writes the input"
    return None


def _step_problem(step: Step, program: Program, schedule: Schedule) -> str | None:
    match step:
        case Send(peer=peer) | Recv(peer=peer):
            if peer == program.rank or not 0 <= peer < schedule.collective.nranks:
                return f"peer {peer} is not another rank"
        case Reduce(op=op) if op in _COMPOSED:
            return f"op {op.value} must be composed of a sum and a scaling copy"
        case VendorCall():
            return _call_problem(step, program.rank, schedule)
        case _:
            pass
    return None


def _call_problem(step: VendorCall, rank: int, schedule: Schedule) -> str | None:
    collective, members = step.collective, schedule.communicators.get(step.comm)
    if members is None:
        return f"names {step.comm}, which the schedule does not list"
    if rank not in members:
        return f"calls {step.comm}, of which the rank is no member"
    if collective.nranks != len(members):
        return f"is for {collective.nranks} ranks, {step.comm} has {len(members)}"
    if collective.dtype is not schedule.collective.dtype:
        return f"works on {collective.dtype.value}, the schedule on {schedule.collective.dtype.value}"
    if collective.op in _COMPOSED:
        return f"op {collective.op.value} must be composed of a sum and a scaling copy"
    number = members.index(rank)
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
