"""Runs the programs of a communicator: `native`, `queued` and `execution` are single runs, here is what runs share.

Vendors want their calls in one order on all ranks, whatever finishes first: a run starts vendor calls only when all
runs begun before it have started theirs. Everything else in it goes on meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence

from hetcomm.calls.arguments import Call
from hetcomm.devices import Devices
from hetcomm.execution.binding import BoundProgram
from hetcomm.execution.execution import Execution
from hetcomm.execution.native import NativeExecution, script_of
from hetcomm.execution.queued import QueuedExecution
from hetcomm.execution.queues import Queue
from hetcomm.execution.scratch import ScratchPool, kind_of
from hetcomm.execution.streams import Ordering
from hetcomm.schedule.steps import CommId, Program
from hetcomm.schedule.timeline import Span
from hetcomm.transport.base import Script, ScriptRun, Transport
from hetcomm.types import Memory, MemoryKind, Number
from hetcomm.vendors.base import VendorCommunicator

__all__ = ["Executor"]

_BOUND_PROGRAMS = 256


class Executor:
    """Runs the programs of a communicator.

    Args:
        transport: Moves the messages.
        peers: The transport's number of each rank.
        rank: This process's rank.
        context: See `hetcomm.execution.tags`.
        communicators: What the vendor calls of programs name.
        devices: Where arrays may live beside the host.
        members: The ranks of these communicators: those among whom tokens go before a call.

    Attributes:
        transport, peers, rank, context, communicators: As given.
        scratch: Memory for runs.
        spans: Where steps are recorded, or None.
        unsettled: Runs that have something left to queue on a device.
    """

    def __init__(
        self,
        transport: Transport,
        peers: Sequence[int],
        rank: int,
        context: int,
        communicators: Mapping[CommId, VendorCommunicator],
        devices: Devices | None = None,
        members: Mapping[CommId, Sequence[int]] | None = None,
    ) -> None:
        self.transport = transport
        self.peers = peers
        self.rank = rank
        self.context = context
        self.communicators = communicators
        self._members = {} if members is None else members
        self.spans: list[Span] | None = None
        self.unsettled: set[Execution] = set()
        self._runs = 0
        self._live: set[Execution] = set()
        self._calling: deque[Execution] = deque()  # those that have vendor calls left to start, in order
        self._devices = Devices() if devices is None else devices
        self._queues: dict[MemoryKind, Queue] = {}
        self.scratch = ScratchPool(self._devices)
        self._bound: OrderedDict[tuple[int, MemoryKind], BoundProgram] = OrderedDict()
        self._kept: list[object] = []

    def bind(self, program: Program, kind: MemoryKind = MemoryKind.HOST) -> BoundProgram:
        """Everything about `program`, run on memory of that kind, that does not change from run to run."""
        ranks = {comm: found.rank for comm, found in self.communicators.items()}
        streams = None if kind is MemoryKind.HOST else self._in_streams
        return BoundProgram(program, ranks, self.context, self.rank, streams, self._members)

    @property
    def _in_streams(self) -> list[CommId]:
        """The communicators whose calls on device memory are queued."""
        return [comm for comm, found in self.communicators.items() if hasattr(found, "enqueue")]

    def start(
        self, program: Program, in_memory: Memory | None, out_memory: Memory | None, factor: Number | None = None
    ) -> Execution:
        """Start a program that no agreement stands behind; one seen before is not bound again."""
        key = id(program), kind_of(in_memory, out_memory)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self.bind(program, key[1])  # keeps the program, hence its id, alive
            if len(self._bound) > _BOUND_PROGRAMS:
                self._bound.popitem(last=False)
        number = self._runs
        self._runs += 1
        return self.run(bound, number, 0, in_memory, out_memory, factor)

    def run(
        self,
        bound: BoundProgram,
        number: int,
        check: int,
        in_memory: Memory | None,
        out_memory: Memory | None,
        factor: Number | None = None,
        call: int | None = None,
        order: Ordering | None = None,
    ) -> Execution:
        """Start a bound program; steps that can be started are started before this returns.

        Args:
            bound: The program.
            number, check: Of this run, equal on all ranks: see `hetcomm.execution.tags`.
            in_memory, out_memory, factor: What it works on.
            call: The number of the call for errors, if it is another.
            order: When it may begin to touch device memory; None: at once.

        Raises:
            HetcommError: A step could not be started; everything started before it has been aborted.
        """
        execution: Execution
        kind = kind_of(in_memory, out_memory)
        if kind is not MemoryKind.HOST:
            queue = self.open(kind)
            execution = QueuedExecution(self, bound, number, check, in_memory, out_memory, factor, call, queue, order)
        elif (script := self.script(bound)) is not None:
            execution = NativeExecution(self, bound, script, number, check, in_memory, out_memory, factor, call)
        else:
            execution = Execution(self, bound, number, check, in_memory, out_memory, factor, call)
        self._live.add(execution)
        if bound.vendor_calls:
            self._calling.append(execution)
        execution.test()
        return execution

    def resume(self, bound: BoundProgram, call: Call, run: ScriptRun, scratch: Memory | None) -> Execution:
        """Go on with a run of the script of a program that began elsewhere, on `scratch`; the rest as for `run`."""
        assert bound.script is not None  # or it could not have begun
        memories = call.in_memory, call.out_memory
        execution = NativeExecution(
            self, bound, bound.script, run.number, run.check, *memories, None, run.call, run, scratch
        )
        self._live.add(execution)
        if execution.calls_left:
            self._calling.append(execution)
        return execution

    def script(self, bound: BoundProgram) -> Script | None:
        """`bound`, on host memory, as a script of the transport, if it takes one now."""
        if not bound.tried:
            bound.tried = True
            bound.script = script_of(bound, self.transport, self.peers, self.communicators)
        return bound.script

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
        """Let go of all memory and streams; nothing may be under way in the transport any more."""
        for queue in self._queues.values():
            queue.close()
        self._queues.clear()
        self.scratch.clear()
        self._kept.clear()
        self._bound.clear()

    def open(self, kind: MemoryKind) -> Queue:
        """This executor's streams on the device of that kind; made by the first call, which may block.

        Raises:
            DeviceError: The device cannot be used.
        """
        found = self._queues.get(kind)
        if found is None:
            found = self._queues[kind] = Queue(self._devices.get(kind), self._in_streams)
        return found

    def forget(self, execution: Execution) -> None:
        """`execution` is over."""
        self._live.discard(execution)
        if execution.calls_left:
            self._calling.remove(execution)

    def keep_until_close(self, *owners: object) -> None:
        """Keep alive what something may still write to."""
        self._kept.append(owners)
