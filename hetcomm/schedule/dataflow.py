"""What a step reads and writes, and everything that follows: order inside a program, matching between programs.

The rules of this file:

* `accesses` is the one table of what each kind of step touches; no other file derives it again.
* Two steps of a program are ordered where one writes what the other reads or writes. The later one then waits until
  the earlier one is *complete*.
* Sends on one channel are started in program order, whoever they go to; this is how a planner keeps what comes early
  in a long program ahead of what comes late. Receives from one peer on one channel are, and so are all vendor calls of
  a program, on whatever communicators (NCCL deadlocks otherwise). The later one then only waits until the earlier
  one is *started*.
* The k-th send of a (sender, receiver, channel) belongs to the k-th receive of it, and the k-th call on
  a communicator to the k-th call of every other member.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from hetcomm.errors import ScheduleError
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.schedule.intervals import IntervalMap
from hetcomm.schedule.steps import (
    Buffer,
    CommId,
    Copy,
    Fill,
    Program,
    Recv,
    Reduce,
    Schedule,
    Send,
    Slice,
    Step,
    VendorCall,
)
from hetcomm.schedule.timeline import label

__all__ = ["Order", "StepId", "accesses", "consumers", "dependencies", "match", "step_error", "vendor_groups"]

StepId = tuple[int, int]
"""(rank, index of the step in its program)."""

_Slices = tuple[Slice, ...]
_NOTHING: tuple[_Slices, _Slices] = ((), ())
_UNBOUNDED = 1 << 128  # no sum of counts comes near it


def step_error(program: Program, index: int, message: str, remedy: str | None = None) -> ScheduleError:
    """The error that blames one step of a program."""
    text = f"{index} ({label(program.steps[index])})"
    return ScheduleError(message, rank=program.rank, step=text, remedy=remedy)


def accesses(step: Step, comm_rank: int | None = None) -> tuple[_Slices, _Slices]:
    """The slices a step reads and those it writes, none of them empty.

    `comm_rank` is this rank's number in the communicator of a vendor call. It matters for calls in place only: without
    it the one buffer counts as both read and written, which is safe but orders more. After a reduce_scatter in place
    all of the buffer counts as written: what lies outside the output is undefined.
    """
    match step:
        case Send(src=src):
            return ((src,), ()) if src.count else _NOTHING
        case Recv(dst=dst) | Fill(dst=dst):
            return ((), (dst,)) if dst.count else _NOTHING
        case Copy(src=src, dst=dst):
            return ((src,), (dst,)) if dst.count else _NOTHING
        case Reduce(src=src, dst=dst):
            return ((dst, src), (dst,)) if dst.count else _NOTHING
        case VendorCall(src=given, dst=target, collective=collective):
            if collective.in_place and target is not None and target.count:
                return _in_place(step, target, comm_rank)
            reads = (given,) if given is not None and given.count else ()
            return reads, (target,) if target is not None and target.count else ()


def _in_place(step: VendorCall, buffer: Slice, comm_rank: int | None) -> tuple[_Slices, _Slices]:
    collective, both = step.collective, ((buffer,), (buffer,))
    if comm_rank is None:
        return both
    at_root = comm_rank == collective.root
    match collective.kind:
        case CollectiveKind.ALL_GATHER:
            return (buffer.part(collective.in_offset(comm_rank), collective.count),), (buffer,)
        case CollectiveKind.REDUCE:
            return both if at_root else ((buffer,), ())
        case CollectiveKind.BROADCAST:
            return ((buffer,), ()) if at_root else ((), (buffer,))
        case _:
            return both


@dataclass(frozen=True, slots=True)
class Order:
    """What one step waits for: indices of earlier steps of its program, ascending, no index in both.

    Attributes:
        complete: Steps that must be complete before it is started.
        started: Steps that must have been started before it is started.
    """

    complete: tuple[int, ...] = ()
    started: tuple[int, ...] = ()


_FREE = Order()

# For each run of a buffer: the step that wrote it last (-1: none) and the steps that have read it since.
_History = tuple[int, tuple[int, ...]]


def dependencies(program: Program, comm_ranks: Mapping[CommId, int] | None = None) -> tuple[Order, ...]:
    """What each step of a program waits for.

    Read after write, write after read and write after write on overlapping slices, and the order in which sends,
    receives and vendor calls are started. What follows from other entries is mostly left out. Takes time in proportion
    to the steps and the runs they cut the buffers into.

    Args:
        program: Any program; its steps need not be valid together.
        comm_ranks: This rank's number in each communicator, which allows more overlap (see `accesses`).
    """
    histories: dict[Buffer, IntervalMap[_History]] = {b: IntervalMap(_UNBOUNDED, (-1, ())) for b in Buffer}
    latest: dict[object, int] = {}
    orders: list[Order] = []
    for index, step in enumerate(program.steps):
        comm_rank = comm_ranks.get(step.comm) if comm_ranks and isinstance(step, VendorCall) else None
        waits = _data_waits(index, accesses(step, comm_rank), histories)
        waits.discard(-1)
        if len(waits) > 1:
            for wait in sorted(waits, reverse=True):
                waits.difference_update(orders[wait].complete)
        queue = _issue_queue(step)
        before = None
        if queue is not None:
            before = latest.get(queue)
            latest[queue] = index
        if before is not None and before not in waits:
            orders.append(Order(tuple(sorted(waits)), (before,)))
        else:
            orders.append(Order(tuple(sorted(waits))) if waits else _FREE)
    return tuple(orders)


def _data_waits(
    index: int, touched: tuple[_Slices, _Slices], histories: dict[Buffer, IntervalMap[_History]]
) -> set[int]:
    """The steps whose accesses conflict with those of step `index`, which are then recorded."""
    reads, writes = touched
    waits: set[int] = set()
    for write in writes:
        for writer, readers in histories[write.buffer].runs(write.offset, write.stop)[1]:
            # The readers have waited for the writer already.
            if readers:
                waits.update(readers)
            else:
                waits.add(writer)
    for read in reads:
        history = histories[read.buffer]
        bounds, found = history.runs(read.offset, read.stop)
        waits.update([writer for writer, _ in found])
        if read not in writes:
            history.paste((bounds, [(writer, (*readers, index)) for writer, readers in found]))
    for write in writes:
        histories[write.buffer].assign(write.offset, write.stop, (index, ()))
    return waits


def _issue_queue(step: Step) -> object | None:
    """Steps with equal queues are started in program order."""
    if isinstance(step, VendorCall):
        return VendorCall
    if isinstance(step, Send):
        return Send, step.channel
    if isinstance(step, Recv):
        return Recv, step.peer, step.channel
    return None


def consumers(program: Program) -> dict[int, int]:
    """Receives whose message is needed by one reduction only, and those reductions.

    Such a reduction takes all of the message, as one of its operands, and writes its result over it, or what has been
    received is scratch that nobody else reads. So the message need not be stored: it may be reduced from where it is.
    """
    latest = {buffer: IntervalMap(_UNBOUNDED, -1) for buffer in Buffer}
    readers: list[set[int]] = [set() for _ in program.steps]
    for index, step in enumerate(program.steps):
        reads, writes = accesses(step)
        for read in reads:
            writers = latest[read.buffer].runs(read.offset, read.stop)[1]
            for writer in writers:
                if writer >= 0:
                    readers[writer].update((index,) if len(writers) == 1 else (index, -1))  # a message and more
        for write in writes:
            latest[write.buffer].assign(write.offset, write.stop, index)
    found = {}
    for index, step in enumerate(program.steps):
        if isinstance(step, Recv) and len(readers[index]) == 1:
            (reader,) = readers[index]
            last = program.steps[reader]
            if isinstance(last, Reduce) and (
                last.dst == step.dst or (last.src == step.dst and step.dst.buffer is Buffer.SCRATCH)
            ):
                found[index] = reader
    return found


def match(schedule: Schedule) -> dict[StepId, StepId]:
    """Which receive takes each send: both (send -> receive) and (receive -> send) are keys.

    Raises:
        ScheduleError: A send or receive has no partner, or theirs differ in count; names the step.
    """
    sends: dict[tuple[int, int, int], list[StepId]] = defaultdict(list)
    recvs: dict[tuple[int, int, int], list[StepId]] = defaultdict(list)
    for program in schedule.programs:
        rank = program.rank
        for index, step in enumerate(program.steps):
            if isinstance(step, Send):
                sends[rank, step.peer, step.channel].append((rank, index))
            elif isinstance(step, Recv):
                recvs[step.peer, rank, step.channel].append((rank, index))
    partners: dict[StepId, StepId] = {}
    for queue in dict.fromkeys((*sends, *recvs)):
        sent, received = sends[queue], recvs[queue]
        if len(sent) != len(received):
            rank, index = max(sent, received, key=len)[min(len(sent), len(received))]
            raise step_error(
                schedule.programs[rank],
                index,
                f"has no partner: rank {queue[0]} sends {len(sent)} times to rank {queue[1]} on channel {queue[2]}, "
                f"which receives {len(received)} times",
            )
        for send, recv in zip(sent, received, strict=True):
            _check_counts(schedule, send, recv)
            partners[send] = recv
            partners[recv] = send
    return partners


def _check_counts(schedule: Schedule, send: StepId, recv: StepId) -> None:
    source = schedule.programs[send[0]].steps[send[1]]
    target = schedule.programs[recv[0]].steps[recv[1]]
    if isinstance(source, Send) and isinstance(target, Recv) and source.src.count != target.dst.count:
        raise step_error(
            schedule.programs[recv[0]],
            recv[1],
            f"receives {target.dst.count} elements of the {source.src.count} that rank {send[0]} sends in "
            f"step {send[1]} ({label(source)})",
        )


def vendor_groups(schedule: Schedule) -> dict[tuple[CommId, int], tuple[StepId, ...]]:
    """The steps that make up each vendor call, in the communicator's order, by communicator and number of the call.

    Raises:
        ScheduleError: A communicator is unknown, a rank calls one it is no member of, or members differ in how many
            calls they make, or in the collective of a call (but for `in_place`); names the step.
    """
    calls: dict[CommId, dict[int, list[int]]] = {comm: {} for comm in schedule.communicators}
    members_of = {comm: frozenset(members) for comm, members in schedule.communicators.items()}
    for program in schedule.programs:
        mine: dict[CommId, list[int]] = {}
        for index, step in enumerate(program.steps):
            if not isinstance(step, VendorCall):
                continue
            indices = mine.get(step.comm)
            if indices is None:
                if step.comm not in calls:
                    raise step_error(program, index, f"names {step.comm}, which the schedule does not list")
                if program.rank not in members_of[step.comm]:
                    raise step_error(program, index, f"calls {step.comm}, of which the rank is no member")
                indices = mine[step.comm] = calls[step.comm][program.rank] = []
            indices.append(index)
    groups: dict[tuple[CommId, int], tuple[StepId, ...]] = {}
    for comm, by_rank in calls.items():
        members = schedule.communicators[comm]
        most = max(by_rank, key=lambda rank: len(by_rank[rank]), default=None)
        if most is None:
            continue
        for rank in members:
            made = len(by_rank.get(rank, ()))
            if made < len(by_rank[most]):
                text = f"is call {made} on {comm}, on which rank {rank} makes only {made}"
                raise step_error(schedule.programs[most], by_rank[most][made], text)
        for number, indices_of in enumerate(zip(*(by_rank[rank] for rank in members), strict=True)):
            group = tuple(zip(members, indices_of, strict=True))
            _check_agreement(schedule, group)
            groups[comm, number] = group
    return groups


def _check_agreement(schedule: Schedule, group: tuple[StepId, ...]) -> None:
    """Raises `ScheduleError` unless the members of a vendor call agree on its collective."""
    (rank, index), *others = group
    first = schedule.programs[rank].steps[index]
    agreed = _agreed(first)
    for other_rank, other_index in others:
        if _agreed(schedule.programs[other_rank].steps[other_index]) != agreed:
            raise step_error(
                schedule.programs[other_rank],
                other_index,
                f"meets another collective of rank {rank}: step {index} ({label(first)})",
            )


def _agreed(step: Step) -> object:
    """What the members of a vendor call must agree on, as `Collective.agreed`, to be compared only."""
    if not isinstance(step, VendorCall):
        return None
    what = step.collective
    return what.kind, what.nranks, what.count, what.dtype, what.op, what.root, what.counts
