"""One run of a program on device memory.

Local steps and the calls of vendors that work in streams are queued on streams of the executor's own (`binding` says
when, `queues` where). Of messages and all other calls the host has to see that what they wait for is complete: by
events of these streams, and for what waits for nothing by the event at which the user's stream comes to this call
(`hetcomm.execution.streams`). Nothing else in hetcomm ties streams to messages.

All runs share the streams, so these wait for the beginning of a run only once all earlier ones have queued everything:
the user's stream may wait for one of these. Until then the host looks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from hetcomm.devices.base import Event
from hetcomm.execution.binding import BoundProgram, BoundStep
from hetcomm.execution.execution import Execution
from hetcomm.execution.queues import Mark, Queue
from hetcomm.execution.streams import Ordering
from hetcomm.schedule.steps import Recv, Send, VendorCall
from hetcomm.types import Memory, Number
from hetcomm.vendors.base import Operation, StreamCommunicator

if TYPE_CHECKING:
    from hetcomm.execution.executor import Executor

__all__ = ["QueuedExecution"]

_UNFINISHED: list[object] = []
"""What a device may still touch after an abort: it must live as long as the process."""

_STOPPING = 1.0  # seconds that a device gets to stop
_DOZE = 50e-6  # seconds between two looks at it


class QueuedExecution(Execution):
    """One run on device memory.

    Args:
        executor, bound, number, check, in_memory, out_memory, factor, call: As for every run.
        queue: The executor's streams.
        order: When it may begin to touch the user's memory; None: at once.

    Attributes:
        exit: The events with which it is over, once the host has nothing left to do for it; None until then.
    """

    def __init__(
        self,
        executor: Executor,
        bound: BoundProgram,
        number: int,
        check: int,
        in_memory: Memory | None,
        out_memory: Memory | None,
        factor: Number | None,
        call: int | None,
        queue: Queue,
        order: Ordering | None,
    ) -> None:
        self._kind = queue.device.kind
        super().__init__(executor, bound, number, check, in_memory, out_memory, factor, call)
        self._communicators = executor.communicators
        self._arithmetic = queue
        self._queue = queue
        self._left += 1  # its exit
        self._entry: Event | None = None
        self._gated: list[int] = []  # what waits for the entry
        self._points: dict[int, Event] = {}  # of steps that others follow
        self._called: dict[int, Event] = {}  # on each stream of a vendor, the end of the last call of this run
        if order is not None:
            self._entry = order.entry
            early: list[int] = []
            if not executor.unsettled:
                queue.enter(order.entry)
                steps = bound.steps
                # A call that the host starts waits for its tokens only, so these wait for the entry.
                in_streams = all(step.queued for step in steps if step.is_call)
                early = [i for i in bound.roots if steps[i].queued or (steps[i].is_token and in_streams)]
            self._ready, self._gated = early, [index for index in bound.roots if index not in early]
        if bound.queues:
            executor.unsettled.add(self)

    def abort(self) -> None:
        """Stop what the device may still do, and wait until it has; then as for every run."""
        if self._over:
            return
        executor = self._executor
        executor.unsettled.discard(self)
        for bound in self.bound.steps:
            if bound.queued and isinstance(bound.step, VendorCall):
                self._communicators[bound.step.comm].abort()
        left: Sequence[Event] = ()  # not the ends of later runs, whose beginnings may stand behind the end of this one
        if self.exit is not None:
            left = self.exit
        elif self.bound.queues:
            left = self._ends()
        end = time.monotonic() + _STOPPING
        while not all(event.done() for event in left):
            if time.monotonic() > end:
                _UNFINISHED.append((self._memories, self._scratch))
                self._scratch = None
                break
            time.sleep(_DOZE)
        self._active = [each for each in self._active if not isinstance(each[1], Mark)]
        super().abort()

    def events(self) -> list[Event]:
        """What it waits for on the device."""
        found = super().events()
        found += (self.exit or ()) if self._entry is None else (self._entry,)
        return found + [operation.event for _, operation in self._active if isinstance(operation, Mark)]

    def waiting_for(self) -> str:
        """The steps under way, as text for errors."""
        if self._entry is not None and not self._active:
            return "what was queued on the stream before the call"
        return "what is queued on the device" if self.exit is not None else super().waiting_for()

    def _poll(self) -> bool:
        moved = super()._poll()
        if self._entry is not None and self._entry.done():
            self._entry = None
            self._ready.extend(self._gated)
            return True
        if self._left == 1:
            if self.exit is None:
                self._settle()
            if all(event.done() for event in self.exit or ()):
                self._left = 0
        return moved

    def _settle(self) -> None:
        """The host has nothing left to queue: what remains is over with these events.

        They are those of this run: a later one may have queued calls that other ranks come to only when this one is
        over.
        """
        self.exit = ()
        if self.bound.queues:
            self.exit = self._ends()
            self._executor.unsettled.discard(self)

    def _ends(self) -> tuple[Event, ...]:
        """The points at which what this run has queued so far is done."""
        return (self._queue.device.record(self._queue.stream), *self._called.values())

    def _start(self, index: int, bound: BoundStep) -> Operation | None:
        """Start or queue a step; None if nobody has to see when it is complete."""
        if not bound.queued:
            return super()._start(index, bound)
        queue, step = self._queue, bound.step
        stream = queue.stream
        if isinstance(step, VendorCall):
            stream = self._call(step, bound.follows)
        else:
            assert not isinstance(step, (Send, Recv))  # these are never queued
            self._run_local(step)
        watched = bound.marked or self._executor.spans is not None
        if not watched and not bound.followed:
            return None
        point = queue.device.record(stream)
        if bound.followed:
            self._points[index] = point
        return Mark(point) if watched else None

    def _call(self, step: VendorCall, follows: tuple[int, ...]) -> int:
        """Queue a vendor's call behind the steps that it follows; the stream it is on."""
        queue = self._queue
        src = self._part(step.src) if step.src is not None else None
        dst = self._part(step.dst) if step.dst is not None else None
        stream = queue.lane(step.comm)
        for earlier in follows:
            queue.device.follow(stream, self._points[earlier])
        before = queue.device.record(stream)
        communicator = cast(StreamCommunicator, self._communicators[step.comm])  # `Executor.bind` has looked
        communicator.enqueue(step.collective, src, dst, stream)
        queue.called(stream, before)
        self._called[stream] = queue.device.record(stream)
        return stream
