"""Runs programs: the one place where a schedule meets memory, messages and vendors.

Theory of operation. A program is bound once: who waits for whom is derived (`schedule.dataflow`), and every step
becomes a small record. Each run of it is an `Execution`, a counter per step of what it still waits for. A step
whose counter is zero is started at once, whatever its place in the program; local steps complete where they are
started, messages and vendor calls are polled. Nothing here blocks or looks at a clock: `Execution.test` is called from
`hetcomm.runtime.waiting`, which also progresses the transport, so several executions go on side by side.

Vendors want their calls in one order on all ranks, whatever finishes first: an execution starts vendor calls only when
all executions begun before it have started theirs. Everything else in it goes on meanwhile.

Keep in sync with `schedule.steps`: a new kind of step needs a case in `binding.BoundStep` and in `Execution._start`.

After an error `Execution.abort` cancels and collects what was posted, so that nothing writes into a user's array any
more; memory that the transport or a vendor would not let go of is kept alive until the executor is closed.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy

from hetcomm.errors import HetcommError, TransportError, UsageError
from hetcomm.runtime import local
from hetcomm.runtime.binding import BoundProgram, BoundStep
from hetcomm.schedule.steps import Buffer, CommId, Copy, Fill, Program, Recv, Reduce, Scale, Send, VendorCall
from hetcomm.schedule.timeline import Span
from hetcomm.transport.base import Request, Transport
from hetcomm.types import Memory, MemoryKind, Number
from hetcomm.vendors.base import Operation, VendorCommunicator

__all__ = ["Execution", "Executor", "collect"]

_DRAIN = 1.0  # seconds that cancelled messages get to come back
_BOUND_PROGRAMS = 256


class Executor:
    """Runs the programs of one context: a communicator, or the group of a `ucx` vendor communicator.

    It is the `ProgramRunner` of the latter.

    Args:
        transport: Moves the messages.
        peers: The transport's number of each rank of the context.
        rank: This process's rank in the context.
        context: See `hetcomm.runtime.tags`.
        communicators: What the vendor calls of programs name.
    """

    def __init__(
        self,
        transport: Transport,
        peers: Sequence[int],
        rank: int,
        context: int,
        communicators: Mapping[CommId, VendorCommunicator],
    ) -> None:
        self.transport = transport
        self.peers = peers
        self.rank = rank
        self.context = context
        self.communicators = communicators
        self.spans: list[Span] | None = None
        self._calls = 0
        self._live: set[Execution] = set()
        self._calling: deque[Execution] = deque()  # those that have vendor calls left to start, in order
        self._scratch: list[Any] = []
        self._bound: OrderedDict[int, BoundProgram] = OrderedDict()
        self._undead: list[object] = []

    def bind(self, program: Program) -> BoundProgram:
        """Everything about `program` that does not change from run to run."""
        ranks = {comm: found.rank for comm, found in self.communicators.items()}
        return BoundProgram(program, ranks, self.context, self.rank)

    def start(
        self, program: Program, in_memory: Memory | None, out_memory: Memory | None, factor: Number | None = None
    ) -> Execution:
        """Start a program under the next call number of this context; a program seen before is not bound again."""
        bound = self._bound.get(id(program))
        if bound is None:
            bound = self._bound[id(program)] = self.bind(program)  # keeps the program, hence its id, alive
            if len(self._bound) > _BOUND_PROGRAMS:
                self._bound.popitem(last=False)
        call = self._calls
        self._calls += 1
        return self.run(bound, call, in_memory, out_memory, factor)

    def run(
        self,
        bound: BoundProgram,
        number: int,
        in_memory: Memory | None,
        out_memory: Memory | None,
        factor: Number | None = None,
        call: int | None = None,
    ) -> Execution:
        """Start a bound program; steps that can be started are started before this returns.

        Args:
            bound: The program.
            number: Of this run in the context; equal on all ranks, and that of the messages' tags.
            in_memory, out_memory, factor: What it works on.
            call: The number of the call for errors, if it is another.

        Raises:
            HetcommError: A step could not be started; everything started before it has been aborted.
        """
        execution = Execution(self, bound, number, in_memory, out_memory, factor, call)
        self._live.add(execution)
        if bound.vendor_calls:
            self._calling.append(execution)
        execution.test()
        return execution

    @property
    def calls_due(self) -> bool:
        """Whether vendor calls of an execution under way have not been started yet: no later one may be."""
        return bool(self._calling)

    def may_call(self, execution: Execution) -> bool:
        """Whether it is the turn of `execution` to start vendor calls."""
        return self._calling[0] is execution

    def has_called(self) -> None:
        """The execution whose turn it was has started its last vendor call."""
        self._calling.popleft()

    def abort(self) -> None:
        """Abort everything under way."""
        for execution in list(self._live):
            execution.abort()

    def close(self) -> None:
        """Let go of all memory; nothing may be under way in the transport any more."""
        self._scratch.clear()
        self._undead.clear()
        self._bound.clear()

    def borrow(self, nbytes: int) -> Any:
        """An aligned host buffer of at least that many bytes."""
        for index, buffer in enumerate(self._scratch):
            if buffer.nbytes >= nbytes:
                return self._scratch.pop(index)
        return numpy.empty(1 << max(nbytes - 1, 63).bit_length(), numpy.uint8)

    def give_back(self, buffer: Any) -> None:
        """Keep a borrowed buffer for the next borrower; the two largest are kept."""
        self._scratch.append(buffer)
        self._scratch.sort(key=lambda kept: int(kept.nbytes))
        del self._scratch[:-2]

    def forget(self, execution: Execution) -> None:
        """`execution` is over."""
        self._live.discard(execution)
        if execution.calls_left:
            self._calling.remove(execution)

    def entomb(self, *owners: object) -> None:
        """Keep alive what something may still write to."""
        self._undead.append(owners)


class Execution:
    """One run of a program: an `Operation`."""

    def __init__(
        self,
        executor: Executor,
        bound: BoundProgram,
        number: int,
        in_memory: Memory | None,
        out_memory: Memory | None,
        factor: Number | None,
        call: int | None,
    ) -> None:
        self.bound = bound
        self.call = number if call is None else call
        self.calls_left = bound.vendor_calls
        self._executor = executor
        self._factor = factor
        self._scratch = executor.borrow(bound.scratch_nbytes) if bound.scratch_nbytes else None
        scratch = None
        if self._scratch is not None:
            scratch = Memory(self._scratch.ctypes.data, bound.program.scratch_count, bound.dtype, owner=self._scratch)
        self._memories = {Buffer.IN: in_memory, Buffer.OUT: out_memory, Buffer.SCRATCH: scratch}
        self._waiting = list(bound.waits)
        self._ready = list(bound.roots)
        self._active: list[tuple[int, Any]] = []
        self._held: list[int] = []  # vendor calls that are ready, but whose turn has not come
        self._left = len(bound.steps)
        self._over = False
        self._error: BaseException | None = None
        self._tag = (number & 0xFFFF) << 8
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

    def abort(self) -> None:
        """Cancel what is under way and collect it; afterwards `test` returns True and nothing touches the memory."""
        if self._over:
            return
        self._over = True
        executor = self._executor
        executor.forget(self)
        pending = []
        for index, operation in self._active:
            step = self.bound.program.steps[index]
            if isinstance(step, VendorCall):
                executor.communicators[step.comm].abort()
                executor.entomb(operation, self._memories)
            else:
                pending.append(operation)
        self._active = []
        if not collect(executor.transport, pending):
            executor.entomb(pending, self._memories)

    def waiting_for(self) -> str:
        """The steps under way, as text for errors."""
        active = [self.bound.label(index) for index, _ in self._active]
        active += [f"{self.bound.label(index)} (which comes after those of earlier calls)" for index in self._held]
        shown = "; ".join(active[:4]) or "nothing"
        return f"{shown}; and {len(active) - 4} more" if len(active) > 4 else shown

    @property
    def active_step(self) -> str | None:
        """The first of the steps under way."""
        return self.bound.label(self._active[0][0]) if self._active else None

    def _end(self) -> None:
        self._over = True
        self._executor.forget(self)
        if self._scratch is not None:
            self._executor.give_back(self._scratch)
            self._scratch = None

    def _start_ready(self) -> None:
        ready, steps, spans = self._ready, self.bound.steps, self._executor.spans
        while ready:
            index = ready.pop()
            if steps[index].is_call and not self._take_turn(index):
                continue
            if spans is not None:
                self._starts[index] = time.perf_counter()
            operation = self._start(steps[index])
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
            raise TransportError(
                f"received {operation.nbytes} bytes where {bound.expected} were expected",
                remedy="Make sure that all ranks call the same collectives with the same counts.",
                rank=self._executor.rank,
                peer=bound.peer,
                collective=self.call,
                step=self.bound.label(index),
            )
        self._left -= 1
        for later in bound.end_unlocks:
            self._unlock(later)
        spans = self._executor.spans
        if spans is not None and index in self._starts:  # not one that began before the recording
            now = time.perf_counter()
            spans.append(Span(self._executor.rank, index, self.bound.label(index), self._starts[index], now))

    def _start(self, bound: BoundStep) -> Operation | None:
        """Start a step; None if it is complete."""
        step, executor = bound.step, self._executor
        if isinstance(step, (Send, Recv)):
            if bound.nbytes == 0:
                return None  # the other side skips it as well: counts are equal
            memory = self._memories[bound.buffer]
            if memory is None:
                raise self._lacking(bound)
            post: Callable[[int, int, int, int], Request] = (
                executor.transport.send if isinstance(step, Send) else executor.transport.recv
            )
            return post(memory.address + bound.offset, bound.nbytes, executor.peers[bound.peer], bound.tag | self._tag)
        if isinstance(step, VendorCall):
            src = self._part(step.src) if step.src is not None else None
            dst = self._part(step.dst) if step.dst is not None else None
            return executor.communicators[step.comm].start(step.collective, src, dst)
        self._run_local(step)
        return None

    def _run_local(self, step: Copy | Fill | Reduce) -> None:
        dst = self._part(step.dst)
        if dst.count == 0:
            return
        if dst.kind is not MemoryKind.HOST:
            raise UsageError(
                "this schedule computes on the host, but the array lives on a device",
                remedy="Pass host arrays, or use a vendor that reduces device arrays in every cluster.",
                rank=self._executor.rank,
            )
        if isinstance(step, Fill):
            local.fill(dst, step.op)
        elif isinstance(step, Reduce):
            local.reduce(self._part(step.src), dst, step.op)
        elif step.scale is Scale.FACTOR:
            local.multiply(self._part(step.src), dst, 1 if self._factor is None else self._factor)
        elif step.scale is Scale.AVERAGE:
            local.average(self._part(step.src), dst, self.bound.program.collective.nranks)
        elif step.src != step.dst:
            local.copy(self._part(step.src), dst)

    def _part(self, slice_: Any) -> Memory:
        memory = self._memories[slice_.buffer]
        if memory is None:
            if slice_.count == 0:
                return Memory(0, 0, self.bound.dtype)
            raise self._lacking(slice_)
        return memory.part(slice_.offset, slice_.count)

    def _lacking(self, what: object) -> HetcommError:
        return UsageError(f"the program needs a buffer that was not passed: {what}", rank=self._executor.rank)


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
