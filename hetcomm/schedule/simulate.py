"""What a schedule costs: a discrete-event simulation of the whole job.

The model, LogGP with queues. What each thing costs is asked of `Costs`; in which order things happen follows from
`hetcomm.schedule.dataflow` alone.

* The *CPU* of a rank starts its steps one after another, in the order in which they become ready, each for `overhead`
  seconds (o of LogP). It is also what copies, fills and reduces.
* A *message* takes its turn at the sender's out-port, in the order in which sends are started there, and leaves at the
  port's bandwidth (G of LogGP). Each byte arrives `latency` seconds (L) later and passes the receiver's in-port, in the
  order of arrival and at that port's bandwidth: cut-through, and a backlog without limit, as at an output-queued
  switch. Bytes of several messages that arrive at once share the in-port; it is simulated as a fluid. A port
  out and a port in never wait for each other (full duplex).
* A message of more than `Path.eager` bytes takes its turn once its receive is started as well (rendezvous, S of
  LogGPS), others at once. A send is complete when its last byte has left, a receive when it is started and its last
  byte has passed the in-port.
* The *vendor calls* of a rank run one after another, as on one stream. A call runs once all members have started it
  and all earlier calls of theirs are complete, and completes on all of them together.
* Empty messages cost nothing.

Not modelled: back-pressure, vendor calls and messages that slow one another down.

Sources: A. Alexandrov et al., "LogGP", SPAA 1995; T. Hoefler, T. Schneider, A. Lumsdaine, "LogGOPSim", HPDC 2010.
The time is in proportion to steps and messages, and does not depend on counts.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from typing import Protocol

from hetcomm.errors import ScheduleError
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.dataflow import dependencies, match, vendor_groups
from hetcomm.schedule.order import completion_order
from hetcomm.schedule.ports import Inlet, Outlet
from hetcomm.schedule.steps import CommId, Copy, Fill, Recv, Reduce, Schedule, Send, Step, VendorCall
from hetcomm.schedule.timeline import Span, Timeline, label

__all__ = ["Costs", "Path", "Port", "makespan", "simulate"]


@dataclass(frozen=True, slots=True)
class Port:
    """What bytes pass one way at `bandwidth` bytes/s, which may be infinite.

    Messages whose ports have equal keys share one, first come, first served. A message without a key waits for none.
    """

    key: Hashable | None
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Path:
    """What a message passes: the sender's port, `latency` seconds, the receiver's port.

    A message of more than `eager` bytes is held back until its receive is started, as UCX and MPI do it (rendezvous).
    """

    out_port: Port
    in_port: Port
    latency: float
    eager: int = sys.maxsize


class Costs(Protocol):
    """What steps cost; all in seconds, none negative."""

    @property
    def overhead(self) -> float:
        """What it costs a rank's CPU to start a step."""

    def path(self, sender: int, receiver: int) -> Path:
        """What messages from one rank to another pass; it is asked once for each pair."""

    def vendor(self, comm: CommId, collective: Collective) -> float:
        """A vendor call, from when all members are there until it is complete."""

    def local(self, step: Copy | Fill | Reduce, nbytes: int) -> float:
        """A local step that writes `nbytes` bytes."""


def simulate(schedule: Schedule, costs: Costs) -> Timeline:
    """When each step runs, in order of start, then rank, then step; the first starts at 0.

    Args:
        schedule: One that passes `hetcomm.schedule.structure.check_structure`.
        costs: What its steps cost.

    Raises:
        ScheduleError: Steps have no partner, or wait for one another for ever.
    """
    job = _Job(schedule, costs)
    job.run()
    return job.timeline()


def makespan(schedule: Schedule, costs: Costs) -> float:
    """Seconds until the last step of `simulate` is complete; the same, but quicker."""
    job = _Job(schedule, costs)
    job.run()
    return max(job.end, default=0.0)


# Kinds of events, in the order in which those of one instant are dealt with: what a step waits for is over before it
# starts, and the steps that become ready in one instant start in order of rank and program.
_CALL_ENDS, _ENDS, _LEFT, _FIRST_BYTE, _LAST_BYTE, _STARTS, _READY = range(7)

# Kinds of steps; those that do nothing are apart.
_NOTHING, _SEND, _RECV, _LOCAL, _CALL = range(5)


def _size(step: Step) -> tuple[int, int]:
    """The kind of a step, and the elements that it sends, receives or writes."""
    match step:
        case Send():
            return (_SEND if step.src.count else _NOTHING), step.src.count
        case Recv():
            return (_RECV if step.dst.count else _NOTHING), step.dst.count
        case VendorCall():
            return _CALL, 0
        case Copy():
            works = step.dst.count and (step.src != step.dst or step.scale is not None)
            return (_LOCAL if works else _NOTHING), step.dst.count
        case Fill() | Reduce():
            return (_LOCAL if step.dst.count else _NOTHING), step.dst.count


class _Job:
    """A schedule under way.

    Steps are numbered through over the ranks, and messages have the numbers of their sends. There may be millions, so
    what is kept of each are entries of flat lists.
    """

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        self.schedule = schedule
        self.costs = costs
        self.overhead = costs.overhead
        self.steps: list[Step] = [step for program in schedule.programs for step in program.steps]
        total, itemsize = len(self.steps), schedule.collective.dtype.itemsize
        self.kind = [0] * total
        self.nbytes = [0] * total
        for number, step in enumerate(self.steps):
            self.kind[number], count = _size(step)
            self.nbytes[number] = count * itemsize
        self.rank = [program.rank for program in schedule.programs for _ in program.steps]
        self.start = [0.0] * total
        self.began = [0.0] * total
        self.end = [-1.0] * total
        self.cpu_free = [0.0] * schedule.collective.nranks  # from when on
        self.heap: list[tuple[float, int]] = []  # (time, kind of event * total + number)
        self._wire_steps()
        self._wire_calls()
        self._wire_messages()

    def _numbers(self) -> list[int]:
        """The number of the first step of each rank."""
        return [0, *accumulate(len(program.steps) for program in self.schedule.programs)]

    def _wire_steps(self) -> None:
        """Derive which steps of a rank wait for which: for the end of some, and for the start of one."""
        total = len(self.steps)
        self.unmet = [0] * total
        self.after_start = [-1] * total  # at most one: steps are started in queues
        self.after_end: list[int] = []
        self.after_end_from = [0]  # where those of each step begin in it
        for first, program in zip(self._numbers(), self.schedule.programs, strict=False):
            followers: list[list[int]] = [[] for _ in program.steps]
            for number, order in enumerate(dependencies(program), first):
                self.unmet[number] = len(order.complete) + len(order.started)
                for before in order.complete:
                    followers[before].append(number)
                for before in order.started:
                    self.after_start[first + before] = number
            for several in followers:
                self.after_end += several
                self.after_end_from.append(len(self.after_end))

    def _wire_calls(self) -> None:
        """Derive which steps are one vendor call, and which call comes next at each member."""
        first = self._numbers()
        groups = vendor_groups(self.schedule).values()
        self.calls = [[first[rank] + index for rank, index in group] for group in groups]
        self.call_of = {step: number for number, members in enumerate(self.calls) for step in members}
        self.missing = [len(members) for members in self.calls]  # starts, and ends of earlier calls
        self.next_calls: list[list[int]] = [[] for _ in self.calls]
        earlier: dict[int, int] = {}
        for step in sorted(self.call_of):
            call, rank = self.call_of[step], self.rank[step]
            if rank in earlier:
                self.next_calls[earlier[rank]].append(call)
                self.missing[call] += 1
            earlier[rank] = call

    def _wire_messages(self) -> None:
        """Derive which receive takes each message."""
        first, total = self._numbers(), len(self.steps)
        self.partner = [-1] * total  # of sends and of receives
        for (rank, index), (peer, peer_index) in match(self.schedule).items():
            self.partner[first[rank] + index] = first[peer] + peer_index
        self.is_open = [False] * total  # receives that are started
        self.arrived = [-1.0] * total  # when the last byte passed the in-port, for receives
        self.held: dict[int, int] = {}  # by receive: the message that waits for it to be started
        self.started: dict[int, int] = {}  # how many messages were started before each
        self.paths: dict[tuple[int, int], Path] = {}
        self.path_of: dict[int, Path] = {}
        self.outlets: dict[Hashable, Outlet] = {}
        self.inlets: dict[Hashable, Inlet] = {}
        self.arriving: dict[int, tuple[Inlet, float, float]] = {}  # port, duration, work of a message

    def run(self) -> None:
        """Let everything happen.

        Raises:
            ScheduleError: Steps wait for one another for ever.
        """
        heap, total = self.heap, len(self.steps)
        # Ascending, hence a heap.
        heap.extend((0.0, _READY * total + number) for number in range(total) if not self.unmet[number])
        handlers = (
            self._call_ends,
            self._ends,
            self._left,
            self._first_byte,
            self._last_byte,
            self._starts,
            self._ready,
        )
        while heap:
            now, code = heappop(heap)
            kind, number = divmod(code, total)
            handlers[kind](number, now)
        if -1.0 in self.end:
            completion_order(self.schedule)  # raises, with the cycle
            raise ScheduleError("steps are left over that wait for nothing")

    def timeline(self) -> Timeline:
        """What has happened."""
        spans: list[Span] = []
        number = 0
        for program in self.schedule.programs:
            for index, step in enumerate(program.steps):
                start, end = self.start[number], self.end[number]
                began = min(max(self.began[number], start), end)
                spans.append(Span(program.rank, index, label(step), start, end, began))
                number += 1
        return Timeline(tuple(sorted(spans, key=lambda span: (span.start, span.rank, span.index))))

    def _at(self, time: float, kind: int, number: int) -> None:
        heappush(self.heap, (time, kind * len(self.steps) + number))

    def _unlock(self, number: int, now: float) -> None:
        self.unmet[number] -= 1
        if not self.unmet[number]:
            self._at(now, _READY, number)

    # ---- steps

    def _ready(self, number: int, now: float) -> None:
        """A step has nothing to wait for any more but its rank's CPU."""
        kind, rank = self.kind[number], self.rank[number]
        if kind == _NOTHING:
            self.start[number] = now
            self._starts(number, now)
            return
        start = self.start[number] = max(now, self.cpu_free[rank])
        started = self.cpu_free[rank] = start + self.overhead
        if kind == _LOCAL:
            self.cpu_free[rank] += self._local(number)
        if started == now:
            self._starts(number, now)
        else:
            self._at(started, _STARTS, number)

    def _local(self, number: int) -> float:
        step = self.steps[number]
        return self.costs.local(step, self.nbytes[number]) if isinstance(step, (Copy, Fill, Reduce)) else 0.0

    def _starts(self, number: int, now: float) -> None:
        """The CPU is done with starting a step."""
        if self.after_start[number] >= 0:
            self._unlock(self.after_start[number], now)
        self.began[number] = now
        kind = self.kind[number]
        if kind == _CALL:
            self._count_down(self.call_of[number], now)
        elif kind == _SEND:
            self._offer(number, now)
        elif kind == _RECV:
            self.is_open[number] = True
            if number in self.held:
                self._send(self.held.pop(number), now)
            elif self.arrived[number] >= 0.0:
                self._at(max(now, self.arrived[number]), _ENDS, number)
        elif kind == _LOCAL:
            self.began[number] = self.start[number]
            self._at(now + self._local(number), _ENDS, number)
        else:
            self._ends(number, now)

    def _ends(self, number: int, now: float) -> None:
        self.end[number] = now
        for after in self.after_end[self.after_end_from[number] : self.after_end_from[number + 1]]:
            self._unlock(after, now)

    # ---- vendor calls

    def _count_down(self, call: int, now: float) -> None:
        self.missing[call] -= 1
        if self.missing[call]:
            return
        members = self.calls[call]
        step = self.steps[members[0]]
        if isinstance(step, VendorCall):
            for member in members:
                self.began[member] = now
            self._at(now + self.costs.vendor(step.comm, step.collective), _CALL_ENDS, call)

    def _call_ends(self, call: int, now: float) -> None:
        for member in self.calls[call]:
            self._ends(member, now)
        for following in self.next_calls[call]:
            self._count_down(following, now)

    # ---- messages

    def _offer(self, number: int, now: float) -> None:
        """A message is sent at once, or when its receive is started."""
        receive = self.partner[number]
        ends = self.rank[number], self.rank[receive]
        path = self.paths.get(ends)
        if path is None:
            path = self.paths[ends] = self.costs.path(*ends)
        self.path_of[number] = path
        self.started[number] = len(self.started)
        if self.is_open[receive] or self.nbytes[number] <= path.eager:
            self._send(number, now)
        else:
            self.held[receive] = number

    def _send(self, number: int, now: float) -> None:
        """A message takes its turn at its out-port."""
        key = self.path_of[number].out_port.key
        if key is None:
            self._leave(number, now)
            return
        outlet = self.outlets.get(key)
        if outlet is None:
            outlet = self.outlets[key] = Outlet()
        outlet.wait(self.started[number], number)
        if not outlet.is_busy:
            self._next(outlet, now)

    def _next(self, outlet: Outlet, now: float) -> None:
        number = outlet.next()
        if number is not None:
            self._leave(number, now)

    def _leave(self, number: int, now: float) -> None:
        """A message begins to leave, which settles when it has left and arrives."""
        path, nbytes = self.path_of[number], self.nbytes[number]
        duration, work = nbytes / path.out_port.bandwidth, nbytes / path.in_port.bandwidth
        key = path.in_port.key
        # Without a port that others use as well, nobody is in the way.
        inlet = Inlet() if key is None else self.inlets.get(key)
        if inlet is None:
            inlet = self.inlets[key] = Inlet()
        self.began[number] = now
        self.arriving[number] = inlet, duration, work
        self._at(now + duration, _LEFT, number)
        self._at(now + path.latency, _FIRST_BYTE, number)
        self._at(now + duration + path.latency, _LAST_BYTE, number)

    def _left(self, number: int, now: float) -> None:
        """The last byte of a message has left."""
        self._ends(number, now)
        key = self.path_of[number].out_port.key
        if key is not None:
            self._next(self.outlets[key], now)

    def _first_byte(self, number: int, now: float) -> None:
        inlet, duration, work = self.arriving[number]
        self.began[self.partner[number]] = now
        inlet.advance(now)
        inlet.open(duration, work)

    def _last_byte(self, number: int, now: float) -> None:
        inlet, duration, work = self.arriving.pop(number)
        inlet.advance(now)
        inlet.shut(duration, work)
        receive, passed = self.partner[number], now + inlet.backlog
        if self.is_open[receive]:
            self._at(passed, _ENDS, receive)
        else:
            self.arrived[receive] = passed
