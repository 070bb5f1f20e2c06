"""A program made ready to run many times: order derived, tags and byte offsets worked out.

On a device, what it does in the order of streams is *queued*: local steps on one stream, the calls of each vendor
communicator on one of its own. Of two queued steps the later one waits in the stream, unless it is local and the
earlier one a vendor's. Then the host waits, as it does for messages, because the stream of local steps must never stand
still: a vendor's call may hold its stream until other ranks have come to it, and they may need what a local step
prepares for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hetcomm.errors import UsageError
from hetcomm.runtime import tags
from hetcomm.schedule.dataflow import dependencies
from hetcomm.schedule.steps import Buffer, CommId, Copy, Program, Recv, Scale, Send, Step, VendorCall
from hetcomm.schedule.timeline import label
from hetcomm.transport.base import Script

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
        queued: Whether it is queued on a stream.
        marked: Whether it is queued and the host must see when it is complete.
        follows: Steps queued on other streams that its stream waits for.
        followed: Whether it is one of these.
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
    queued: bool = False
    marked: bool = False
    follows: tuple[int, ...] = ()
    followed: bool = False


class BoundProgram:
    """A program with its order derived.

    Args:
        program: What to bind.
        comm_ranks: This rank's number in each vendor communicator.
        context: See `hetcomm.runtime.tags`.
        rank: This process's rank in that context.
        streams: The vendor communicators whose calls are queued; None: the memory is the host's, and nothing is.

    Attributes:
        steps: One for each step of the program.
        waits: For each step, how many others it waits for.
        roots: Steps that wait for none, last first, so that popping from the end starts them in program order.
        scratch_nbytes: Bytes of scratch it needs.
        vendor_calls: How many of its steps are a vendor's.
        queues: Whether any of its steps is queued.
        ends: Where the slices of its steps end at most, in each buffer.
        scales: Whether any of its steps multiplies by the factor of the run.
        script: The same as a script of the transport, or None; `tried` says whether that has been looked at.
    """

    def __init__(
        self,
        program: Program,
        comm_ranks: Mapping[CommId, int],
        context: int,
        rank: int,
        streams: Collection[CommId] | None = None,
    ) -> None:
        self.program = program
        self.dtype = program.collective.dtype
        self.scratch_nbytes = program.scratch_count * self.dtype.itemsize
        orders = dependencies(program, comm_ranks)
        queued = [streams is not None and _is_queued(step, streams) for step in program.steps]
        started, complete = [set(order.started) for order in orders], [set(order.complete) for order in orders]
        follows: list[tuple[int, ...]] = [()] * len(orders)
        for index, step in enumerate(program.steps):
            if queued[index]:
                is_call = isinstance(step, VendorCall)
                in_stream = {
                    earlier
                    for earlier in complete[index]
                    if queued[earlier] and (is_call or not isinstance(program.steps[earlier], VendorCall))
                }
                complete[index] -= in_stream
                started[index] |= in_stream
                lane = _lane(step)
                follows[index] = tuple(sorted(e for e in in_stream if _lane(program.steps[e]) != lane))
        followed = {earlier for each in follows for earlier in each}
        at_start: list[list[int]] = [[] for _ in orders]
        at_end: list[list[int]] = [[] for _ in orders]
        for index in range(len(orders)):
            for earlier in sorted(started[index]):
                at_start[earlier].append(index)
            for earlier in sorted(complete[index]):
                at_end[earlier].append(index)
        self.waits = tuple(len(complete[index]) + len(started[index]) for index in range(len(orders)))
        self.roots = tuple(index for index in reversed(range(len(orders))) if not self.waits[index])
        self.queues = any(queued)
        self.steps = tuple(
            self._bind(step, tuple(at_start[index]), tuple(at_end[index]), context, rank)
            if not queued[index]
            else BoundStep(
                step,
                tuple(at_start[index]),
                tuple(at_end[index]),
                is_call=isinstance(step, VendorCall),
                queued=True,
                marked=bool(at_end[index]),
                follows=follows[index],
                followed=index in followed,
            )
            for index, step in enumerate(program.steps)
        )
        self.vendor_calls = sum(step.is_call for step in self.steps)
        self.scales = any(isinstance(step, Copy) and step.scale is Scale.FACTOR for step in program.steps)
        self.ends = dict.fromkeys(Buffer, 0)
        for step in program.steps:
            for name in ("src", "dst"):
                slice_ = getattr(step, name, None)
                if slice_ is not None:
                    self.ends[slice_.buffer] = max(self.ends[slice_.buffer], slice_.offset + slice_.count)
        self.script: Script | None = None
        self.tried = False

    def label(self, index: int) -> str:
        """Step `index` as a line of text."""
        return label(self.program.steps[index])

    def _bind(
        self,
        step: Step,
        start_unlocks: tuple[int, ...],
        end_unlocks: tuple[int, ...],
        context: int,
        rank: int,
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


def _is_queued(step: Step, streams: Collection[CommId]) -> bool:
    """Whether a device does a step in the order of a stream."""
    if isinstance(step, VendorCall):
        return step.comm in streams
    return not isinstance(step, (Send, Recv))


def _lane(step: Step) -> CommId | None:
    """What stream a step is queued on: that of its communicator, or that of local steps."""
    return step.comm if isinstance(step, VendorCall) else None
