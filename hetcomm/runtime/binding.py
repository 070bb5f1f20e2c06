"""A program made ready to run many times: order derived, tags and byte offsets worked out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hetcomm.errors import UsageError
from hetcomm.runtime import tags
from hetcomm.schedule.dataflow import dependencies
from hetcomm.schedule.steps import Buffer, CommId, Program, Recv, Send, Step, VendorCall
from hetcomm.schedule.timeline import label

__all__ = ["BoundProgram", "BoundStep"]


@dataclass(frozen=True, slots=True)
class BoundStep:
    """A step and what does not change from run to run.

    Attributes:
        step: The step.
        start_unlocks: Steps that wait until this one is started.
        end_unlocks: Steps that wait until this one is complete.
        buffer, offset, nbytes, peer, tag: Of a message; the offset is in bytes, the tag lacks the call number.
        expected: Bytes a receive must bring; -1 for anything else.
        is_call: Whether it is a vendor's.
    """

    step: Step
    start_unlocks: tuple[int, ...]
    end_unlocks: tuple[int, ...]
    buffer: Buffer = Buffer.IN
    offset: int = 0
    nbytes: int = 0
    peer: int = -1
    tag: int = 0
    expected: int = -1
    is_call: bool = False


class BoundProgram:
    """A program with its order derived.

    Args:
        program: What to bind.
        comm_ranks: This rank's number in each vendor communicator.
        context: See `hetcomm.runtime.tags`.
        rank: This process's rank in that context.

    Attributes:
        steps: One for each step of the program.
        waits: For each step, how many others it waits for.
        roots: Steps that wait for none, last first, so that popping from the end starts them in program order.
        scratch_nbytes: Bytes of scratch it needs.
        vendor_calls: How many of its steps are a vendor's.
    """

    def __init__(self, program: Program, comm_ranks: Mapping[CommId, int], context: int, rank: int) -> None:
        self.program = program
        self.dtype = program.collective.dtype
        self.scratch_nbytes = program.scratch_count * self.dtype.itemsize
        orders = dependencies(program, comm_ranks)
        at_start: list[list[int]] = [[] for _ in orders]
        at_end: list[list[int]] = [[] for _ in orders]
        for index, order in enumerate(orders):
            for earlier in order.started:
                at_start[earlier].append(index)
            for earlier in order.complete:
                at_end[earlier].append(index)
        self.waits = tuple(len(order.complete) + len(order.started) for order in orders)
        self.roots = tuple(index for index in reversed(range(len(orders))) if not self.waits[index])
        self.steps = tuple(
            self._bind(step, tuple(at_start[index]), tuple(at_end[index]), context, rank)
            for index, step in enumerate(program.steps)
        )
        self.vendor_calls = sum(step.is_call for step in self.steps)

    def label(self, index: int) -> str:
        """Step `index` as a line of text."""
        return label(self.program.steps[index])

    def _bind(
        self, step: Step, start_unlocks: tuple[int, ...], end_unlocks: tuple[int, ...], context: int, rank: int
    ) -> BoundStep:
        if not isinstance(step, (Send, Recv)):
            return BoundStep(step, start_unlocks, end_unlocks, is_call=isinstance(step, VendorCall))
        if step.channel > tags.MAX_CHANNEL:
            raise UsageError(f"step {label(step)!r} uses a channel above {tags.MAX_CHANNEL}", rank=rank)
        slice_ = step.src if isinstance(step, Send) else step.dst
        nbytes = slice_.count * self.dtype.itemsize
        source = rank if isinstance(step, Send) else step.peer
        return BoundStep(
            step,
            start_unlocks,
            end_unlocks,
            slice_.buffer,
            slice_.offset * self.dtype.itemsize,
            nbytes,
            step.peer,
            tags.collective(context, source, 0, step.channel),
            nbytes if isinstance(step, Recv) and nbytes else -1,
        )
