"""The numeric twin of `Collective.meaning`, and a whole schedule run in one process.

`reference` is what every collective must give; `run_schedule` is what a schedule does give, its steps run in any
admissible order and as unkindly as the rules allow: undefined memory holds garbage, what is still being written holds
garbage, messages are taken early or late, and a vendor adds in another order in each call and at each element.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy
from numpy.typing import NDArray

from hetcomm.errors import ScheduleError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.dataflow import StepId, dependencies, match, vendor_groups
from hetcomm.schedule.places import buffer_counts, gaps, input_places, output_places
from hetcomm.schedule.steps import Buffer, Copy, Fill, Recv, Reduce, Scale, Schedule, Send, Slice, VendorCall
from hetcomm.types import DataType, Number, ReduceKind, identity

__all__ = ["Array", "average", "numpy_dtype", "reference", "reference_of", "run_schedule", "scaled"]

Array = NDArray[Any]

_UFUNCS: dict[ReduceKind, Any] = {kind: getattr(numpy, kind.ufunc) for kind in ReduceKind}


def numpy_dtype(dtype: DataType) -> numpy.dtype[Any]:
    """NumPy's type object; bfloat16 is that of `ml_dtypes`."""
    found: numpy.dtype[Any] = numpy.dtype(ml_dtypes.bfloat16 if dtype is DataType.BFLOAT16 else dtype.value)
    return found


def scaled(array: Array, factor: Number) -> Array:
    """`array` times a factor, in the array's dtype; integers wrap around."""
    if array.dtype.kind in "iu" and isinstance(factor, int):
        bits = 8 * array.dtype.itemsize
        wrapped = numpy.array(factor % (1 << bits), f"u{array.dtype.itemsize}").astype(array.dtype)
    else:
        wrapped = numpy.array(factor, array.dtype)
    product: Array = numpy.multiply(array, wrapped)
    return product


def average(array: Array, nranks: int) -> Array:
    """`array` divided by `nranks`: integers truncate towards zero, 16-bit floats are divided in float32, complex
    numbers part by part."""
    quotient: Array
    if array.dtype.kind == "c":
        return average(array.view(array.real.dtype), nranks).view(array.dtype)
    if array.dtype.kind == "u":
        quotient = array.astype("u8") // numpy.uint64(nranks)
    elif array.dtype.kind == "i":
        wide = array.astype("i8")
        floor, rest = numpy.divmod(wide, numpy.int64(nranks))
        quotient = floor + ((rest != 0) & (wide < 0))
    elif array.dtype.itemsize == 2:
        quotient = array.astype("f4") / numpy.float32(nranks)
    else:
        quotient = array / array.dtype.type(nranks)
    return quotient.astype(array.dtype)


def reference(
    collective: Collective, inputs: Sequence[Array | None], factors: Sequence[Number] | None = None
) -> list[Array | None]:
    """What each rank gets, None where it gets nothing.

    Inputs and outputs are packed: one block behind the other. What ranks pass in place or with displacements is the
    same in other places.

    Reductions go through the ranks in ascending order and accumulate in the dtype itself. For whole numbers that is
    what every order gives; compare other floating-point results with a tolerance.

    Args:
        collective: Which; `in_place` and displacements do not matter.
        inputs: Each rank's input of `in_count` elements, or None where that is 0.
        factors: Each rank's factor, for `PREMUL_SUM`.
    """
    inputs = _premultiplied(collective, inputs, factors)
    return [_output(collective, rank, inputs) for rank in range(collective.nranks)]


def reference_of(
    collective: Collective, rank: int, inputs: Sequence[Array | None], factors: Sequence[Number] | None = None
) -> Array | None:
    """What one rank gets, as `reference` says it."""
    return _output(collective, rank, _premultiplied(collective, inputs, factors))


def _premultiplied(
    collective: Collective, inputs: Sequence[Array | None], factors: Sequence[Number] | None
) -> Sequence[Array | None]:
    if collective.op is not ReduceKind.PREMUL_SUM:
        return inputs
    given = factors if factors is not None else [1] * collective.nranks
    return [scaled(array, factor) if array is not None else None for array, factor in zip(inputs, given, strict=True)]


def _output(collective: Collective, rank: int, inputs: Sequence[Array | None]) -> Array | None:
    collective = collective.agreed()
    output = numpy.empty(collective.out_count(rank), numpy_dtype(collective.dtype))
    for part in collective.meaning(rank):
        piece = output[part.offset : part.offset + part.count]
        if part.sources:
            piece[:] = _part(inputs, part.sources, part.source_offset, part.count, collective.op)
        elif collective.op is not None:
            piece[:] = identity(collective.op, collective.dtype)
    if collective.op is ReduceKind.AVG:
        output = average(output, collective.nranks)
    return output if output.size else None


def _part(
    inputs: Sequence[Array | None], sources: Sequence[int], offset: int, count: int, op: ReduceKind | None
) -> Array:
    """The elements from `offset` on, combined over `sources` in this order."""
    result: Array | None = None
    with numpy.errstate(all="ignore"):  # overflow and NaN are part of what the dtypes mean
        for source in sources:
            array = inputs[source]
            piece = array[offset : offset + count] if array is not None else numpy.empty(0, "u1")  # takes any op
            result = piece.copy() if result is None else _UFUNCS[op or ReduceKind.SUM](result, piece)
    if result is None:
        return numpy.empty(0)
    return result != 0 if op is not None and op.is_logical else result


def run_schedule(
    schedule: Schedule,
    inputs: Sequence[Array | None],
    factors: Sequence[Number] | None = None,
    order_seed: int | None = None,
) -> list[Array | None]:
    """Run all programs on arrays and return each rank's output, None where it gets nothing.

    Inputs and outputs are packed, as for `reference`; in the buffers they lie where each program's collective says.

    Args:
        schedule: Any schedule that fits together; whether it means what it should is not asked.
        inputs: As for `reference`; they are not changed.
        factors: Each rank's factor, for `PREMUL_SUM`.
        order_seed: Seed of the order of steps, of the garbage and of the vendors' orders of addition; None: 0.

    Raises:
        ScheduleError: Messages or calls do not fit together, this order of steps got stuck, or something between the
            blocks of an output was written.
    """
    machine = _Machine(schedule, inputs, factors, random.Random(order_seed or 0))
    machine.run()
    outputs: list[Array | None] = []
    for program in schedule.programs:
        rank, buffer = program.rank, machine.buffers[program.rank][Buffer.OUT]
        blocks = [buffer[offset : offset + count] for offset, _, count in output_places(program.collective, rank)]
        outputs.append(numpy.concatenate(blocks) if blocks else None)
        for start, stop in gaps(program.collective, rank):
            if buffer[start:stop].tobytes() != machine.between[rank, start]:
                raise ScheduleError(f"elements {start} to {stop} lie between blocks, yet were written", rank=rank)
    return outputs


class _Machine:
    """All ranks of a job in one process; a step is pending, started, or complete."""

    def __init__(
        self, schedule: Schedule, inputs: Sequence[Array | None], factors: Sequence[Number] | None, rng: random.Random
    ) -> None:
        self.schedule, self.rng = schedule, rng
        self.factors = factors if factors is not None else [1] * schedule.collective.nranks
        self.orders = [dependencies(program) for program in schedule.programs]
        self.partners = match(schedule)
        self.call_of = {step: (call, group) for call, group in vendor_groups(schedule).items() for step in group}
        self.call_numbers = {call: number for number, (call, _) in enumerate(sorted(self.call_of.values(), key=str))}
        self.pending = {(p.rank, index) for p in schedule.programs for index in range(len(p.steps))}
        self.started: set[StepId] = set()
        self.complete: set[StepId] = set()
        self.in_flight: dict[StepId, Array] = {}  # what a send, or a member of a vendor call, has taken early
        self.buffers: list[dict[Buffer, Array]] = []
        self.between: dict[tuple[int, int], bytes] = {}  # what lies in the gaps at first, by rank and start
        for program in schedule.programs:
            collective, rank = program.collective, program.rank
            mine = {buffer: self._garbage(count) for buffer, count in buffer_counts(program).items()}
            array = inputs[rank]
            if array is not None:
                target = mine[Buffer.OUT if collective.in_place else Buffer.IN]
                for offset, packed, size in input_places(collective, rank):
                    target[offset : offset + size] = array[packed : packed + size]
            for start, stop in gaps(collective, rank):
                self.between[rank, start] = mine[Buffer.OUT][start:stop].tobytes()
            self.buffers.append(mine)

    def _garbage(self, count: int) -> Array:
        dtype = numpy_dtype(self.schedule.collective.dtype)
        raw: Array = numpy.frombuffer(self.rng.randbytes(count * dtype.itemsize), dtype).copy()
        if dtype.kind not in "biu" and count:
            raw[:: self.rng.randrange(1, 4)] = numpy.nan
        return raw

    def view(self, rank: int, part: Slice) -> Array:
        found: Array = self.buffers[rank][part.buffer][part.offset : part.stop]
        return found

    def step(self, step: StepId) -> Any:
        return self.schedule.programs[step[0]].steps[step[1]]

    def run(self) -> None:
        """Start and complete steps, chosen by chance, until all are complete."""
        while self.pending or self.started - self.complete:
            choices = [s for s in sorted(self.pending) if self._startable(s)]
            choices += [s for s in sorted(self.started - self.complete) if self._completable(s)]
            if not choices:
                raise ScheduleError(f"no step can go on; pending are {sorted(self.pending)}")
            # Several at a time: which are possible does not shrink, and looking for them is what costs time.
            for chosen in self.rng.sample(choices, 1 + len(choices) // 2):
                if chosen in self.pending:
                    self._start(chosen)
                elif chosen not in self.complete:
                    self._complete(chosen)

    def _startable(self, step: StepId) -> bool:
        rank, index = step
        order = self.orders[rank][index]
        return all((rank, before) in self.complete for before in order.complete) and all(
            (rank, before) in self.started for before in order.started
        )

    def _completable(self, step: StepId) -> bool:
        if step in self.call_of:
            return all(member in self.started for member in self.call_of[step][1])
        if isinstance(self.step(step), Recv):
            return self.partners[step] in self.started
        if isinstance(self.step(step), Send):
            return step in self.in_flight or self.partners[step] in self.complete
        return True

    def _start(self, step: StepId) -> None:
        self.pending.discard(step)
        self.started.add(step)
        what, rank = self.step(step), step[0]
        early = self.rng.random() < 0.5
        match what:
            case Send() if early:
                self.in_flight[step] = self.view(rank, what.src).copy()
            case Recv():
                self.view(rank, what.dst)[:] = self._garbage(what.dst.count)
            case VendorCall():
                if early and (array := self._vendor_input(step)) is not None:
                    self.in_flight[step] = array.copy()
                if what.dst is not None and not what.collective.in_place:
                    self.view(rank, what.dst)[:] = self._garbage(what.dst.count)
            case _:
                pass

    def _complete(self, step: StepId) -> None:
        what, rank = self.step(step), step[0]
        match what:
            case Send():
                pass
            case Recv():
                sender = self.partners[step]
                message = self.in_flight.get(sender)
                self.view(rank, what.dst)[:] = (
                    self.view(sender[0], self.step(sender).src) if message is None else message
                )
            case Copy():
                array = self.view(rank, what.src)
                if what.scale is Scale.FACTOR:
                    array = scaled(array, self.factors[rank])
                elif what.scale is Scale.AVERAGE:
                    with numpy.errstate(all="ignore"):
                        array = average(array, self.schedule.collective.nranks)
                self.view(rank, what.dst)[:] = array
            case Fill():
                self.view(rank, what.dst)[:] = identity(what.op, self.schedule.collective.dtype)
            case Reduce():
                target = self.view(rank, what.dst)
                with numpy.errstate(all="ignore"):
                    target[:] = _UFUNCS[what.op](target, self.view(rank, what.src))
            case VendorCall():
                self._complete_call(step)
        self.complete.add(step)

    def _vendor_input(self, step: StepId) -> Array | None:
        call: VendorCall = self.step(step)
        number = self.schedule.communicators[call.comm].index(step[0])
        if call.collective.in_place and call.dst is not None:
            offset, count = call.collective.in_offset(number), call.collective.in_count(number)
            return self.view(step[0], call.dst.part(offset, count))
        return self.view(step[0], call.src) if call.src is not None else None

    def _complete_call(self, step: StepId) -> None:
        """All members at once: each other member's completion then has nothing left to do."""
        call, group = self.call_of[step]
        inputs = []
        for member in group:
            array = self.in_flight.get(member, self._vendor_input(member))
            inputs.append(array.copy() if array is not None else None)
        collective: Collective = self.step(step).collective
        for number, member in enumerate(group):
            mine: VendorCall = self.step(member)
            if mine.collective.in_place and collective.kind is CollectiveKind.REDUCE_SCATTER and mine.dst is not None:
                self.view(member[0], mine.dst)[:] = self._garbage(mine.dst.count)
            count = collective.out_count(number)
            if mine.dst is None or not count:
                continue
            offset = mine.collective.out_offset(number)
            target = self.view(member[0], mine.dst.part(offset, count))
            for part in collective.meaning(number):
                for lane in range(len(part.sources)):
                    # Element i is added up from rank i + call on, round the communicator.
                    first = (lane + self.call_numbers[call]) % len(part.sources)
                    sources = [*part.sources[first:], *part.sources[:first]]
                    start = (lane - part.source_offset) % len(part.sources)
                    result = _part(inputs, sources, part.source_offset, part.count, collective.op)
                    target[part.offset : part.offset + part.count][start :: len(part.sources)] = result[
                        start :: len(part.sources)
                    ]
        self.complete.update(group)
