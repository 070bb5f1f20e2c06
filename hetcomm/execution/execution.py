"""One run of a program: the one place where a schedule meets memory, messages and vendors.

Theory of operation. Who waits for whom is derived when a program is bound (`hetcomm.execution.binding`). A run holds a
counter for each step of what it still waits for. A step whose counter is zero is started at once, whatever its place
in the program; local steps complete where they are started, messages and vendor calls are polled. Nothing here blocks
or looks at a clock: `Execution.test` is called from `hetcomm.waiting.waiting`, which also progresses the transport, so
several runs go on side by side.

Keep in sync with `schedule.steps`: a new kind of step needs a case in `binding.BoundStep` and in `Execution._start`.

After an error `Execution.abort` cancels and collects what was posted, so that nothing writes into a user's array any
more; memory that the transport or a vendor would not let go of is kept alive until the executor is closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hetcomm.devices.base import Event
from hetcomm.errors import HetcommError, TransportError, UsageError
from hetcomm.execution import local, tags
from hetcomm.execution.binding import BoundProgram, BoundStep
from hetcomm.execution.queues import Arithmetic
from hetcomm.schedule.steps import Buffer, Copy, Fill, Recv, Reduce, Scale, Send, VendorCall
from hetcomm.schedule.timeline import Span
from hetcomm.transport.base import Request, Transport
from hetcomm.types import DataType, Memory, MemoryKind, Number
from hetcomm.vendors.base import Operation

if TYPE_CHECKING:
    from hetcomm.execution.executor import Executor

__all__ = ["Execution", "collect", "listed"]

_DRAIN = 1.0  # seconds that cancelled messages get to come back


class Execution:
    """One run of a program on host memory: an `Operation`.

    Attributes:
        bound: The program.
        call: The number of the call, for errors.
        calls_left: Vendor calls that have not been started.
        exit: See `hetcomm.execution.queued`.
    """

    exit: tuple[Event, ...] | None = None
    _kind = MemoryKind.HOST
    _arithmetic: Arithmetic = local

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
        scratch: Memory | None = None,
    ) -> None:
        self.bound = bound
        self.call = number if call is None else call
        self.calls_left = bound.vendor_calls
        self._executor = executor
        self._factor = factor
        self._communicators = executor.communicators
        if scratch is None and bound.scratch_nbytes:
            scratch = executor.scratch.borrow(bound.scratch_nbytes, self._kind)
        self._scratch = scratch
        if scratch is not None:
            scratch = Memory(scratch.address, bound.program.scratch_count, bound.dtype, self._kind, scratch.owner)
        self._memories = {Buffer.IN: in_memory, Buffer.OUT: out_memory, Buffer.SCRATCH: scratch}
        self._waiting = list(bound.waits)
        self._ready = list(bound.roots)
        self._active: list[tuple[int, Any]] = []
        self._held: list[int] = []  # vendor calls that are ready, but whose turn has not come
        self._left = len(bound.steps)
        self._over = False
        self._error: BaseException | None = None
        self._tag = tags.run(number, check)
        self._starts: dict[int, float] = {}

    def test(self) -> bool:
        """Start what can be started and collect what has completed; whether all is done.

        Raises:
            HetcommError: A step failed; the rest has been aborted, and nothing touches the memory any more. It is
                raised again by every further call.
        """
        if self._over:
            if self._error is not None:
                raise self._error
            return True
        try:
            if self._held and self._executor.may_call(self):
                self._ready.extend(self._held)
                self._held.clear()
            while True:
                if self._ready:
                    self._start_ready()
                if not self._poll() or not self._ready:
                    break
        except BaseException as error:
            self._error = error
            self.abort()
            raise
        if self._left:
            return False
        self._end()
        return True

    def _poll(self) -> bool:
        """Collect what has completed; whether anything has."""
        active, self._active = self._active, []
        for position, (index, operation) in enumerate(active):
            try:
                complete = operation.test()
            except BaseException:
                self._active.extend(active[position:])
                raise
            if complete:
                self._finish(index, operation)
            else:
                self._active.append((index, operation))
        return len(self._active) < len(active)

    press = test
    """The same for whoever waits for nothing else."""

    def abort(self) -> None:
        """Cancel what is under way and collect it; afterwards `test` returns True and nothing touches the memory."""
        if self._over:
            return
        self._over = True
        executor = self._executor
        executor.forget(self)
        pending = []
        for index, operation in self._active:
            step = self.bound.steps[index].step
            if isinstance(step, VendorCall):
                self._communicators[step.comm].abort()
                executor.keep_until_close(operation, self._memories)
            else:
                pending.append(operation)
        self._active = []
        if not collect(executor.transport, pending):
            executor.keep_until_close(pending, self._memories)

    def events(self) -> list[Event]:
        """What it waits for on a device: nothing."""
        return []

    def contradiction(self) -> tuple[int, int] | None:
        """The rank that has sent a message for another plan of this run, and its check bits; None: it cannot tell."""
        return None

    def peers(self) -> set[int]:
        """The ranks with whom messages are under way."""
        return {self.bound.steps[index].peer for index, _ in self._active} - {-1}

    def waiting_for(self) -> str:
        """The steps under way, as text for errors."""
        active = [self.bound.label(index) for index, _ in self._active]
        active += [f"{self.bound.label(index)} (which comes after those of earlier calls)" for index in self._held]
        return listed(active)

    @property
    def active_step(self) -> str | None:
        """The first of the steps under way."""
        return self.bound.label(self._active[0][0]) if self._active else None

    def _end(self) -> None:
        self._over = True
        self._executor.forget(self)
        if self._scratch is not None:
            self._executor.scratch.give_back(self._scratch)
            self._scratch = None

    def _start_ready(self) -> None:
        ready, steps, spans = self._ready, self.bound.steps, self._executor.spans
        while ready:
            index = ready.pop()
            if steps[index].is_call and not self._take_turn(index):
                continue
            if spans is not None:
                self._starts[index] = time.perf_counter()
            operation = self._start(index, steps[index])
            for later in steps[index].start_unlocks:
                self._unlock(later)
            if operation is None:
                self._finish(index, None)
            else:
                self._active.append((index, operation))

    def _take_turn(self, index: int) -> bool:
        """Whether a vendor call may be started now; if not, it is put aside."""
        if not self._executor.may_call(self):
            self._held.append(index)
            return False
        self.calls_left -= 1
        if not self.calls_left:
            self._executor.has_called()
        return True

    def _unlock(self, index: int) -> None:
        self._waiting[index] -= 1
        if not self._waiting[index]:
            self._ready.append(index)

    def _finish(self, index: int, operation: Any) -> None:
        bound = self.bound.steps[index]
        if bound.expected >= 0 and operation is not None and operation.nbytes != bound.expected:
            raise self._unexpected(index, operation.nbytes)
        self._left -= 1
        for later in bound.end_unlocks:
            self._unlock(later)
        spans = self._executor.spans
        if (
            spans is not None and index in self._starts and not bound.is_token
        ):  # not one that began before the recording
            now = time.perf_counter()
            spans.append(Span(self._executor.rank, index, self.bound.label(index), self._starts[index], now))

    def _unexpected(self, index: int, nbytes: int) -> TransportError:
        """The error for a message of another length."""
        bound = self.bound.steps[index]
        return TransportError(
            f"received {nbytes} bytes where {bound.expected} were expected",
            remedy="Make sure that all ranks call the same collectives with the same counts.",
            rank=self._executor.rank,
            peer=bound.peer,
            collective=self.call,
            step=self.bound.label(index),
        )

    def _start(self, index: int, bound: BoundStep) -> Operation | None:
        """Start a step; None if it is complete."""
        step, executor = bound.step, self._executor
        if isinstance(step, (Send, Recv)):
            if bound.nbytes == 0 and not bound.is_token:
                return None  # the other side skips it as well: counts are equal
            memory = _NO_MEMORY if bound.is_token else self._memories[bound.buffer]
            if memory is None:
                raise self._lacking(bound)
            post: Callable[[int, int, int, int], Request] = (
                executor.transport.send if isinstance(step, Send) else executor.transport.recv
            )
            return post(memory.address + bound.offset, bound.nbytes, executor.peers[bound.peer], bound.tag | self._tag)
        if isinstance(step, VendorCall):
            src = self._part(step.src) if step.src is not None else None
            dst = self._part(step.dst) if step.dst is not None else None
            return self._communicators[step.comm].start(step.collective, src, dst)
        self._run_local(step)
        return None

    def _run_local(self, step: Copy | Fill | Reduce) -> None:
        dst = self._part(step.dst)
        if dst.count == 0:
            return
        arithmetic = self._arithmetic
        if isinstance(step, Fill):
            arithmetic.fill(dst, step.op)
        elif isinstance(step, Reduce):
            arithmetic.reduce(self._part(step.src), dst, step.op)
        elif step.scale is Scale.FACTOR:
            arithmetic.multiply(self._part(step.src), dst, 1 if self._factor is None else self._factor)
        elif step.scale is Scale.AVERAGE:
            arithmetic.average(self._part(step.src), dst, self.bound.program.collective.nranks)
        elif step.src != step.dst:
            arithmetic.copy(self._part(step.src), dst)

    def _part(self, slice_: Any) -> Memory:
        memory = self._memories[slice_.buffer]
        if memory is None:
            if slice_.count == 0:
                return Memory(0, 0, self.bound.dtype, self._kind)
            raise self._lacking(slice_)
        return memory.part(slice_.offset, slice_.count)

    def _lacking(self, what: object) -> HetcommError:
        return UsageError(f"the program needs a buffer that was not passed: {what}", rank=self._executor.rank)


_NO_MEMORY = Memory(0, 0, DataType.UINT8)


def listed(steps: Sequence[str]) -> str:
    """Some steps as text for errors."""
    shown = "; ".join(steps[:4]) or "nothing"
    return f"{shown}; and {len(steps) - 4} more" if len(steps) > 4 else shown


def collect(transport: Transport, requests: Iterable[Request], seconds: float = _DRAIN) -> bool:
    """Cancel requests and progress until they are over; False if some are still under way after `seconds`."""
    left = list(requests)
    for request in left:
        try:
            request.cancel()
        except TransportError:
            continue  # it is over already; what failed it is being raised elsewhere
    end = time.monotonic() + seconds
    while left:
        transport.progress()
        still = []
        for request in left:
            try:
                if not request.test():
                    still.append(request)
            except TransportError:
                continue  # cancelled, which is what was asked for, or failed: over in both cases
        left = still
        if left and time.monotonic() > end:
            return False
    return True
