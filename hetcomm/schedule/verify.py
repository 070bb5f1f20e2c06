"""Proves that a schedule does what its collective means, or shows the element for which it does not.

`verify` runs a schedule on symbols (`hetcomm.schedule.symbols`) instead of numbers, in one order of completion; any
other order gives the same, because steps that touch the same elements are ordered (`hetcomm.schedule.dataflow`). What
is proved, for every input and every admissible order of execution:

* the schedule is well formed, its messages and vendor calls fit together, and it cannot deadlock;
* each output element combines each of its sources exactly once, with the right op, factors and average applied once,
  or is the op's identity where it has no sources;
* an element that several ranks get is bit-identical on all of them;
* collectives that only move data move it unchanged (adding the identity does not count: it turns -0.0 into 0.0);
* what lies between the blocks of an output with displacements is left alone.

Elements of inputs and outputs are numbered in the packed vectors, so displacements, which are each rank's own, change
nothing but where they lie. The cost depends on steps and runs, not on counts.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from hetcomm.errors import ScheduleError
from hetcomm.schedule.collective import Collective, CollectiveKind, Part
from hetcomm.schedule.dataflow import StepId, accesses
from hetcomm.schedule.intervals import IntervalMap, Runs, cut, joined, pairs, zipped
from hetcomm.schedule.order import Completion, completion_order
from hetcomm.schedule.places import buffer_counts, gaps, input_places, output_places
from hetcomm.schedule.steps import Buffer, Copy, Fill, Program, Recv, Reduce, Schedule, Send, Slice, VendorCall
from hetcomm.schedule.structure import check_structure
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
    with _uncollected():
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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: a proof makes millions of tuples and no cycles; looking for some takes as long."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


_Runs = Runs[Value]


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
        source = Buffer.OUT if collective.in_place else Buffer.IN
        for offset, packed, count in input_places(collective, rank):
            buffers[source].assign(offset, offset + count, self.symbols.leaf(rank, packed - offset))
        for start, stop in gaps(collective, rank):
            buffers[Buffer.OUT].assign(start, stop, self.symbols.gap(rank))
        return buffers

    def read(self, rank: int, source: Slice) -> _Runs:
        """What a slice that is not empty holds, in positions of its buffer."""
        return self.buffers[rank][source.buffer].runs(source.offset, source.stop)

    def write(self, rank: int, buffer: Buffer, runs: _Runs) -> None:
        """Let the positions that `runs` spans hold it."""
        self.buffers[rank][buffer].paste(runs)

    def complete(self, completion: Completion) -> None:
        """Let the steps of a completion take effect."""
        rank, index = completion.steps[0]
        step = self.schedule.programs[rank].steps[index]
        if not any(accesses(step)):
            return
        match step:
            case Send(src=source):
                receiver, recv_index = completion.steps[1]
                target = self.schedule.programs[receiver].steps[recv_index]
                if isinstance(target, Recv):
                    distance = target.dst.offset - source.offset
                    self.write(receiver, target.dst.buffer, _shifted(self.read(rank, source), distance))
            case Copy(src=source, dst=dst, scale=scale):
                bounds, values = _shifted(self.read(rank, source), dst.offset - source.offset)
                if scale is not None:
                    scaled = self.symbols.scale
                    bounds, values = joined(bounds, [scaled(scale, value, rank, (rank, index)) for value in values])
                self.write(rank, dst.buffer, (bounds, values))
            case Fill(dst=dst, op=op):
                self.buffers[rank][dst.buffer].assign(dst.offset, dst.stop, self.symbols.identity(op.combining))
            case Reduce(src=source, dst=dst, op=op):
                operands = [self.read(rank, dst), _shifted(self.read(rank, source), dst.offset - source.offset)]
                combined = zipped(operands, lambda values: self.symbols.combine(op, values, (rank, index)))
                self.write(rank, dst.buffer, combined)
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
        vector = self._vendor_result(completion, calls)
        scatters = collective.kind is CollectiveKind.REDUCE_SCATTER
        placed: dict[tuple[int, int], _Runs] = {}  # members share what they get, so that it is in memory once
        for number, (rank, call) in enumerate(calls):
            count = collective.out_count(number)
            if call.dst is None or not count:
                continue
            offset = call.dst.offset + call.collective.out_offset(number)
            if call.collective.in_place and scatters:
                self.buffers[rank][call.dst.buffer].assign(call.dst.offset, call.dst.stop, self.symbols.undefined)
            start = number * count if scatters else 0
            if (start, offset) not in placed:
                placed[start, offset] = _shifted(cut(vector, start, start + count), offset - start)
            self.write(rank, call.dst.buffer, placed[start, offset])

    def _vendor_result(self, completion: Completion, calls: list[tuple[int, VendorCall]]) -> _Runs:
        """What a vendor call makes of its inputs: the vector that every member gets, or its block of."""
        collective = calls[0][1].collective
        op = collective.op
        if op is not None:
            inputs = [self._vendor_input(rank, call, number) for number, (rank, call) in enumerate(calls)]
            origin, name = completion.steps[0], completion.call
            return zipped(inputs, lambda values: self.symbols.combine(op, values, origin, name))
        bounds: list[int] = [0]
        values: list[Value] = []
        for part in collective.meaning(0):  # that of all, where nothing is combined
            source = part.sources.start
            part_bounds, part_values = _shifted(self._vendor_input(*calls[source], source), part.offset)
            bounds += part_bounds[1:]
            values += part_values
        return joined(bounds, values)

    def _vendor_input(self, rank: int, call: VendorCall, number: int) -> _Runs:
        """The input of one member, in positions of its input vector."""
        collective = call.collective
        source = call.src
        if collective.in_place and call.dst is not None:
            source = call.dst.part(collective.in_offset(number), collective.in_count(number))
        if source is None:
            raise ScheduleError(f"member {number} passes nothing to a vendor call that reads it", rank=rank)
        return _shifted(self.read(rank, source), -source.offset)

    def check_outputs(self) -> None:
        """Compare all outputs with the collective's meaning, and where they must be bit-identical, with each other.

        Raises:
            ScheduleError: The first element that is wrong.
        """
        first: tuple[int, _Runs] | None = None
        for program in self.schedule.programs:
            rank = program.rank
            self._check_gaps(program)
            runs = self._output(program)
            if not runs[1] or (first is not None and runs == first[1]):
                continue
            bounds, parts = [0], []
            for part in program.collective.meaning(rank):
                if part.count:
                    parts.append((part, bounds[-1]))
                    bounds.append(bounds[-1] + part.count)
            for start, value, (part, begin) in pairs(runs, (bounds, parts)):
                problem = self._problem(value, part, part.source_offset - begin)
                if problem:
                    raise self._counterexample(program, start, value, part, start - begin, problem)
            if first is not None:
                self._check_identical(program, runs, *first)
            elif self.schedule.collective.kind.is_same_everywhere:
                first = rank, runs

    def _output(self, program: Program) -> _Runs:
        """What the output of a rank holds, in positions of the packed output."""
        bounds: list[int] = [0]
        values: list[Value] = []
        for offset, packed, count in output_places(program.collective, program.rank):
            block = _shifted(self.read(program.rank, Slice(Buffer.OUT, offset, count)), packed - offset)
            bounds += block[0][1:]
            values += block[1]
        return joined(bounds, values)

    def _check_gaps(self, program: Program) -> None:
        rank = program.rank
        for gap_start, gap_stop in gaps(program.collective, rank):
            bounds, values = self.buffers[rank][Buffer.OUT].runs(gap_start, gap_stop)
            for start, value in zip(bounds, values, strict=False):
                if value != self.symbols.gap(rank):
                    message = (
                        f"element {start} of the buffer of rank {rank} lies between blocks but is not left alone: "
                        f"it holds {describe(value, start)}, it should hold what it held before"
                    )
                    raise self._error(program, start, message, None)

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
        if found_shift != shift and sources:
            return "combines the wrong elements"
        combining = collective.op.combining
        if not sources:
            right = expression.how == "identity" and expression.op is combining
            return None if right else f"is not the identity of {combining.value}"
        is_alone = expression.op is None and len(sources) == 1
        if is_alone and collective.op.is_logical:
            return "is not made 0 or 1"
        if expression.op is not combining and not is_alone:
            return f"is combined under {expression.op.value if expression.op else None}, not {combining.value}"
        if expression.factored != (collective.op is ReduceKind.PREMUL_SUM):
            return "lacks the factors"
        if collective.op is ReduceKind.AVG and not expression.averaged and collective.nranks > 1:
            return "is not averaged"
        return None

    def _check_identical(self, program: Program, runs: _Runs, other_rank: int, others: _Runs) -> None:
        for start, mine, theirs in pairs(runs, others):
            if mine != theirs:
                message = (
                    f"element {start} of the output of rank {program.rank} is made in another way than on rank "
                    f"{other_rank}, so the two may differ in their last bits"
                )
                raise self._error(program, _position(program, start), message, None)

    def _counterexample(
        self, program: Program, element: int, value: Value, part: Part, within: int, problem: str
    ) -> ScheduleError:
        """The error about an element of the packed output, which is number `within` of its part."""
        op, position = self.schedule.collective.op, _position(program, element)
        where = f", at out[{position}]," if position != element else ""
        wanted = ", ".join(f"in{rank}[{part.source_offset + within}]" for rank in part.sources)
        if op is not None:
            wanted = f"{op.value} of {wanted}" if wanted else f"the identity of {op.value}"
        message = (
            f"element {element} of the output of rank {program.rank}{where} {problem}: "
            f"it holds {describe(value, element)}, it should hold {wanted}"
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


def _position(program: Program, element: int) -> int:
    """Where in `OUT` an element of the packed output lies."""
    return next(
        offset + element - packed
        for offset, packed, count in output_places(program.collective, program.rank)
        if packed <= element < packed + count
    )


def _shifted(runs: _Runs, distance: int) -> _Runs:
    """The same runs, `distance` positions further on."""
    if not distance:
        return runs
    bounds, values = runs
    return [bound + distance for bound in bounds], [moved(value, distance) for value in values]
