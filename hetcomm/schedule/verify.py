"""Proves that a schedule does what its collective means, or shows the element for which it does not.

`verify` runs a schedule on symbols (`hetcomm.schedule.symbols`) instead of numbers, in one order of completion; any
other order gives the same, because steps that touch the same elements are ordered (`hetcomm.schedule.dataflow`). What
is proved, for every input and every admissible order of execution:

* the schedule is well formed, its messages and vendor calls fit together, and it cannot deadlock;
* each output element combines each of its sources exactly once, with the right op, factors and average applied once;
* an element that several ranks get is bit-identical on all of them;
* collectives that only move data move it unchanged (adding the identity does not count: it turns -0.0 into 0.0).

The cost depends on steps and runs, not on counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hetcomm.errors import ScheduleError
from hetcomm.schedule.collective import Collective, CollectiveKind, Part
from hetcomm.schedule.dataflow import StepId, accesses
from hetcomm.schedule.intervals import IntervalMap, Run
from hetcomm.schedule.order import Completion, completion_order
from hetcomm.schedule.steps import Buffer, Copy, Fill, Program, Recv, Reduce, Schedule, Send, Slice, VendorCall
from hetcomm.schedule.structure import buffer_counts, check_structure
from hetcomm.schedule.symbols import Symbols, Value, describe, moved, origin_of_fault
from hetcomm.schedule.timeline import label
from hetcomm.types import ReduceKind

__all__ = ["Proof", "verify"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What a verified schedule does.

    Attributes:
        steps: Of all programs.
        messages: Sends, empty ones included.
        vendor_calls: Calls, each counted once for all its members.
        moved: Elements sent from one rank to another, by (sender, receiver), where there are any; no vendor calls.
        critical_path: Steps on the longest chain of steps that wait for one another; a message or vendor call is one.
        rounds: The same, counting only messages and vendor calls: how many latencies the schedule takes.
    """

    steps: int
    messages: int
    vendor_calls: int
    moved: Mapping[tuple[int, int], int]
    critical_path: int
    rounds: int


def verify(schedule: Schedule) -> Proof:
    """Prove a schedule.

    Raises:
        ScheduleError: With the counterexample: the rank and element, what it holds, what it should hold, and the step
            that went wrong; or the steps that do not fit together or wait for one another.
    """
    check_structure(schedule)
    progress = completion_order(schedule)
    machine = _Machine(schedule)
    for completion in progress.completions:
        machine.complete(completion)
    machine.check_outputs()
    moved_elements: dict[tuple[int, int], int] = defaultdict(int)
    messages = 0
    for program in schedule.programs:
        for step in program.steps:
            if isinstance(step, Send):
                messages += 1
                if step.src.count:
                    moved_elements[program.rank, step.peer] += step.src.count
    return Proof(
        steps=sum(len(program.steps) for program in schedule.programs),
        messages=messages,
        vendor_calls=sum(completion.call is not None for completion in progress.completions),
        moved=dict(moved_elements),
        critical_path=progress.critical_path,
        rounds=progress.rounds,
    )


_Runs = list[Run[Value]]
A = TypeVar("A")
B = TypeVar("B")


class _Machine:
    """All buffers of all ranks, holding symbols."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.symbols = Symbols(schedule.collective.nranks, schedule.collective.op)
        self.buffers = [self._initial(program) for program in schedule.programs]

    def _initial(self, program: Program) -> dict[Buffer, IntervalMap[Value]]:
        undefined = self.symbols.undefined
        # An empty buffer is never looked at, and a map has no empty form.
        buffers = {buffer: IntervalMap(max(count, 1), undefined) for buffer, count in buffer_counts(program).items()}
        collective, rank = program.collective, program.rank
        count, offset = collective.in_count(rank), collective.in_offset(rank)
        if count:
            source = Buffer.OUT if collective.in_place else Buffer.IN
            buffers[source].assign(offset, offset + count, self.symbols.leaf(rank, -offset))
        return buffers

    def read(self, rank: int, source: Slice) -> _Runs:
        """What a slice holds, in positions of its buffer; nothing for an empty one."""
        return self.buffers[rank][source.buffer].runs(source.offset, source.stop) if source.count else []

    def write(self, rank: int, target: Slice, runs: _Runs) -> None:
        """Let a slice hold `runs`, which are in its positions."""
        if not target.count:
            return
        if len(runs) == 1:
            self.buffers[rank][target.buffer].assign(*runs[0])
        else:
            self.buffers[rank][target.buffer].paste(runs)

    def complete(self, completion: Completion) -> None:
        """Let the steps of a completion take effect."""
        rank, index = completion.steps[0]
        match self.schedule.programs[rank].steps[index]:
            case Send(src=source):
                receiver, recv_index = completion.steps[1]
                target = self.schedule.programs[receiver].steps[recv_index]
                if isinstance(target, Recv):
                    distance = target.dst.offset - source.offset
                    self.write(receiver, target.dst, _shifted(self.read(rank, source), distance))
            case Copy(src=source, dst=target, scale=scale):
                runs = _shifted(self.read(rank, source), target.offset - source.offset)
                if scale is not None:
                    scaled = self.symbols.scale
                    runs = [(start, stop, scaled(scale, value, rank, (rank, index))) for start, stop, value in runs]
                self.write(rank, target, runs)
            case Fill(dst=target, op=op):
                kind = ReduceKind.SUM if op in (ReduceKind.AVG, ReduceKind.PREMUL_SUM) else op
                self.write(rank, target, [(target.offset, target.stop, self.symbols.identity(kind))])
            case Reduce(src=source, dst=target, op=op):
                operands = [self.read(rank, target), _shifted(self.read(rank, source), target.offset - source.offset)]
                self.write(
                    rank, target, _zipped(operands, lambda values: self.symbols.combine(op, values, (rank, index)))
                )
            case VendorCall() as call:
                self._vendor_call(completion, call.collective)
            case Recv():
                raise ScheduleError("a receive completes without its send", rank=rank)

    def _vendor_call(self, completion: Completion, collective: Collective) -> None:
        calls: list[tuple[int, VendorCall]] = []
        for rank, index in completion.steps:
            call = self.schedule.programs[rank].steps[index]
            if isinstance(call, VendorCall):
                calls.append((rank, call))
        inputs = [self._vendor_input(rank, call, number) for number, (rank, call) in enumerate(calls)]
        op = collective.op
        if op is not None:
            origin, name = completion.steps[0], completion.call
            vector = _zipped(inputs, lambda values: self.symbols.combine(op, values, origin, name))
        else:
            # Every member gets the same: the first one's meaning is that of all.
            vector = [
                run
                for part in collective.meaning(0)
                for run in _shifted(inputs[part.sources.start], part.offset - part.source_offset)
            ]
        for number, (rank, call) in enumerate(calls):
            count = collective.out_count(number)
            if call.dst is None or not count:
                continue
            if call.collective.in_place and collective.kind is CollectiveKind.REDUCE_SCATTER:
                self.write(rank, call.dst, [(call.dst.offset, call.dst.stop, self.symbols.undefined)])
            target = call.dst.part(call.collective.out_offset(number), count)
            start = number * count if collective.kind is CollectiveKind.REDUCE_SCATTER else 0
            self.write(rank, target, _shifted(_cut(vector, start, start + count), target.offset - start))

    def _vendor_input(self, rank: int, call: VendorCall, number: int) -> _Runs:
        """The input of one member, in positions of its input vector."""
        collective = call.collective
        source = call.src
        if collective.in_place and call.dst is not None:
            source = call.dst.part(collective.in_offset(number), collective.in_count(number))
        return _shifted(self.read(rank, source), -source.offset) if source is not None else []

    def check_outputs(self) -> None:
        """Compare all outputs with the collective's meaning, and where they must be bit-identical, with each other.

        Raises:
            ScheduleError: The first element that is wrong.
        """
        same_everywhere = self.schedule.collective.kind is not CollectiveKind.REDUCE_SCATTER
        first: tuple[int, _Runs] | None = None
        for program in self.schedule.programs:
            rank, offset = program.rank, program.collective.out_offset(program.rank)
            output = Slice(Buffer.OUT, offset, program.collective.out_count(rank))
            runs = self.read(rank, output)
            if not runs or (first is not None and runs == first[1]):
                continue
            parts = [(p.offset + offset, p.offset + p.count + offset, p) for p in program.collective.meaning(rank)]
            for start, value, part in _pairs(runs, parts):
                problem = self._problem(value, part, part.source_offset - part.offset - offset)
                if problem:
                    raise self._counterexample(program, start, value, part, problem)
            if first is not None:
                self._check_identical(program, runs, *first)
            elif same_everywhere:
                first = rank, runs

    def _problem(self, value: Value, part: Part, shift: int) -> str | None:
        """What is wrong with the content of a run of the output, or None."""
        expression, found_shift = value
        collective = self.schedule.collective
        sources = part.sources
        if expression.fault:
            return expression.fault
        if collective.op is None:
            right = expression.how == "leaf" and expression.mask == 1 << sources.start and found_shift == shift
            return None if right else "does not hold the element it should"
        if expression.mask != (1 << sources.stop) - (1 << sources.start):
            return "does not combine all its sources"
        if found_shift != shift:
            return "combines the wrong elements"
        combining = ReduceKind.SUM if collective.op in (ReduceKind.AVG, ReduceKind.PREMUL_SUM) else collective.op
        if expression.op is not combining and not (expression.op is None and len(sources) == 1):
            return f"is combined under {expression.op.value if expression.op else None}, not {combining.value}"
        if expression.factored != (collective.op is ReduceKind.PREMUL_SUM):
            return "lacks the factors"
        if collective.op is ReduceKind.AVG and not expression.averaged and collective.nranks > 1:
            return "is not averaged"
        return None

    def _check_identical(self, program: Program, runs: _Runs, other_rank: int, others: _Runs) -> None:
        for start, mine, theirs in _pairs(runs, others):
            if mine != theirs:
                raise self._error(
                    program,
                    start,
                    f"element {start} of the output of rank {program.rank} is made in another way than on rank "
                    f"{other_rank}, so the two may differ in their last bits",
                    None,
                )

    def _counterexample(self, program: Program, position: int, value: Value, part: Part, problem: str) -> ScheduleError:
        element = position - program.collective.out_offset(program.rank)
        source = element - part.offset + part.source_offset
        op = self.schedule.collective.op
        wanted = ", ".join(f"in{rank}[{source}]" for rank in part.sources)
        message = (
            f"element {element} of the output of rank {program.rank} {problem}: it holds {describe(value, position)}, "
            f"it should hold {f'{op.value} of ' if op else ''}{wanted}"
        )
        return self._error(program, position, message, origin_of_fault(value[0]))

    def _error(self, program: Program, position: int, message: str, culprit: StepId | None) -> ScheduleError:
        """The error about an element, with the step that spoiled it or, failing that, the last one that wrote it."""
        here = Slice(Buffer.OUT, position, 1)
        if culprit is None:
            for index in reversed(range(len(program.steps))):
                if any(written.overlaps(here) for written in accesses(program.steps[index])[1]):
                    culprit = program.rank, index
                    break
        if culprit is None:
            return ScheduleError(f"{message}; no step writes it", rank=program.rank)
        rank, index = culprit
        text = f"{index} ({label(self.schedule.programs[rank].steps[index])})"
        return ScheduleError(message, rank=rank, step=text)


def _shifted(runs: _Runs, distance: int) -> _Runs:
    """The same runs, `distance` positions further on."""
    if not distance:
        return runs
    return [(start + distance, stop + distance, moved(value, distance)) for start, stop, value in runs]


def _cut(runs: _Runs, start: int, stop: int) -> _Runs:
    """The part of `runs` between two positions."""
    if runs and runs[0][0] == start and runs[-1][1] == stop:
        return runs
    return [(max(a, start), min(b, stop), value) for a, b, value in runs if a < stop and b > start]


def _pairs(one: Sequence[Run[A]], other: Sequence[Run[B]]) -> Iterator[tuple[int, A, B]]:
    """(start, value, other value) for each run on which both are constant."""
    i = j = 0
    while i < len(one) and j < len(other):
        start, stop, mine = one[i]
        other_start, other_stop, theirs = other[j]
        yield max(start, other_start), mine, theirs
        i += stop <= other_stop
        j += other_stop <= stop


def _zipped(operands: list[_Runs], combine: Callable[[list[Value]], Value]) -> _Runs:
    """Combine run by run what lies at the same positions."""
    first = operands[0]
    if not first:
        return []
    if all(len(runs) == 1 for runs in operands):
        start, stop, _ = first[0]
        return [(start, stop, combine([runs[0][2] for runs in operands]))]
    starts = sorted({start for runs in operands for start, _, _ in runs})
    result: _Runs = []
    at = [0] * len(operands)
    for start, stop in zip(starts, [*starts[1:], first[-1][1]], strict=True):
        for number, runs in enumerate(operands):
            if runs[at[number]][1] <= start:
                at[number] += 1
        values = [runs[i][2] for runs, i in zip(operands, at, strict=True)]
        result.append((start, stop, combine(values)))
    return result
