"""A program made ready to run many times: order derived, tags and byte offsets worked out.

On a device, what it does in the order of streams is *queued*: local steps on one stream, the calls of each vendor
communicator on one of its own. Of two queued steps the later one waits in the stream, unless it is local and the
earlier one a vendor's. Then the host waits, as it does for messages, because the stream of local steps must never stand
still: a vendor's call may hold its stream until other ranks have come to it, and they may need what a local step
prepares for them.

A vendor's call carries no tag, so nothing would tell ranks apart that mean different things by it. So the ranks of
a vendor communicator pass *tokens* round, empty messages, before the first call of a run on it: in ceil(log2 n) rounds
each learns that all others run the same plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hetcomm.errors import UsageError
from hetcomm.execution import tags
from hetcomm.schedule.dataflow import dependencies
from hetcomm.schedule.steps import Buffer, CommId, CommRole, Copy, Program, Recv, Scale, Send, Slice, Step, VendorCall
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
        is_token: Whether it is an empty message that goes nevertheless.
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
    is_token: bool = False
    queued: bool = False
    marked: bool = False
    follows: tuple[int, ...] = ()
    followed: bool = False


class BoundProgram:
    """A program with its order derived.

    Args:
        program: What to bind.
        comm_ranks: This rank's number in each vendor communicator.
        context: See `hetcomm.execution.tags`.
        rank: This process's rank in that context.
        streams: The vendor communicators whose calls are queued; None: the memory is the host's, and nothing is.
        members: The ranks, in that context, of the vendor communicators whose calls tokens go before.

    Attributes:
        steps: One for each step of the program, then the tokens.
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
        members: Mapping[CommId, Sequence[int]] | None = None,
    ) -> None:
        self.program = program
        self.dtype = program.collective.dtype
        self.scratch_nbytes = program.scratch_count * self.dtype.itemsize
        orders = dependencies(program, comm_ranks)
        started, complete = [set(order.started) for order in orders], [set(order.complete) for order in orders]
        tokens = _tokens(program, members or {}, rank, complete)
        steps = (*program.steps, *tokens)
        started += (set() for _ in tokens)
        queued = [streams is not None and _is_queued(step, streams) for step in steps]
        follows: list[tuple[int, ...]] = [()] * len(steps)
        for index, step in enumerate(program.steps):
            if queued[index]:
                is_call = isinstance(step, VendorCall)
                in_stream = {
                    earlier
                    for earlier in complete[index]
                    if queued[earlier] and (is_call or not isinstance(steps[earlier], VendorCall))
                }
                complete[index] -= in_stream
                started[index] |= in_stream
                lane = _lane(step)
                follows[index] = tuple(sorted(e for e in in_stream if _lane(program.steps[e]) != lane))
        followed = {earlier for each in follows for earlier in each}
        at_start: list[list[int]] = [[] for _ in steps]
        at_end: list[list[int]] = [[] for _ in steps]
        for index in range(len(steps)):
            for earlier in sorted(started[index]):
                at_start[earlier].append(index)
            for earlier in sorted(complete[index]):
                at_end[earlier].append(index)
        self.waits = tuple(len(complete[index]) + len(started[index]) for index in range(len(steps)))
        self.roots = tuple(index for index in reversed(range(len(steps))) if not self.waits[index])
        self.queues = any(queued)
        self.steps = tuple(
            self._bind(step, tuple(at_start[index]), tuple(at_end[index]), context, rank, index >= len(program.steps))
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
            for index, step in enumerate(steps)
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
        bound = self.steps[index]
        if bound.is_token:
            direction = "to" if isinstance(bound.step, Send) else "from"
            return f"word {direction} rank {bound.peer} before a vendor's call"
        return label(bound.step)

    def _bind(
        self,
        step: Step,
        start_unlocks: tuple[int, ...],
        end_unlocks: tuple[int, ...],
        context: int,
        rank: int,
        is_token: bool,
    ) -> BoundStep:
        if not isinstance(step, (Send, Recv)):
            return BoundStep(step, start_unlocks, end_unlocks, is_call=isinstance(step, VendorCall))
        if step.channel > tags.MAX_CHANNEL and not is_token:
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
            tags.collective(context, source, step.channel),
            nbytes if isinstance(step, Recv) and (nbytes or is_token) else -1,
            is_token=is_token,
        )


def _tokens(
    program: Program, members: Mapping[CommId, Sequence[int]], rank: int, complete: list[set[int]]
) -> list[Send | Recv]:
    """The tokens of a run, whose places follow those of the program's steps; adds to `complete` what waits for what."""
    tokens: list[Send | Recv] = []
    seen: set[CommId] = set()
    for index, step in enumerate(program.steps):
        if not isinstance(step, VendorCall) or step.comm in seen:
            continue
        seen.add(step.comm)  # later calls on it come after this one
        ranks = members.get(step.comm, ())
        channel = tags.TOKENS + (step.comm.role is CommRole.BORDER)
        distance, known = 1, set[int]()
        while distance < len(ranks):  # dissemination: who sends in a round knows of all that it has heard of before
            place = ranks.index(rank)
            first = len(program.steps) + len(tokens)
            tokens.append(Send(_EMPTY, ranks[(place + distance) % len(ranks)], channel))
            tokens.append(Recv(_EMPTY, ranks[(place - distance) % len(ranks)], channel))
            complete += [set(known), set()]
            known.add(first + 1)
            distance *= 2
        complete[index] |= known
    return tokens


_EMPTY = Slice(Buffer.IN, 0, 0)


def _is_queued(step: Step, streams: Collection[CommId]) -> bool:
    """Whether a device does a step in the order of a stream."""
    if isinstance(step, VendorCall):
        return step.comm in streams
    return not isinstance(step, (Send, Recv))


def _lane(step: Step) -> CommId | None:
    """What stream a step is queued on: that of its communicator, or that of local steps."""
    return step.comm if isinstance(step, VendorCall) else None
