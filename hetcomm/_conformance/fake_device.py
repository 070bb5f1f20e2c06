"""A device without hardware, whose timing is as unkind as the rules of `hetcomm.devices.base` allow.

Its memory is host memory that nobody else may touch unordered. Streams are queues of work; none of it is done until the
scheduler does it, in an order that a seed decides, and the host learns of events late and out of order. What is right
on it by luck is wrong with another seed; what is unordered is found by `FakeDevice.violations`.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy

from hetcomm._conformance.fake_array import FakeArray
from hetcomm._conformance.fake_scheduler import Scheduler
from hetcomm._conformance.fake_streams import Delay, FakeEvent, FakeGate, Obstacle, Stream, Task, Wait, own_event
from hetcomm._conformance.hazards import accesses
from hetcomm.devices.base import Event
from hetcomm.errors import DeviceError
from hetcomm.execution import local
from hetcomm.types import DataType, Memory, MemoryKind, Number, ReduceKind

__all__ = ["FakeDevice"]

_QUERY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)
_MOST_LATE = 6  # looks at an event until the host learns of it
_STUCK = 1000  # rounds without anything done after which nothing ever will be
_PATIENCE = 60.0  # seconds for which `synchronize` waits in the background


class FakeDevice(Scheduler):
    """A `hetcomm.devices.base.Device` with adversarial timing.

    Args:
        seed: Of all that is random.
        background: Whether a thread does the work at random times, for real processes; otherwise it is done in `step`,
            and a little whenever the host asks for an event. `close` ends the thread.
        name: For people.

    Attributes:
        current: The stream that users work on unless they name one, as CuPy's current stream.
        captured: Streams that are being captured into a graph.
        violations: The races found so far.
        unprepared: Arithmetic that was queued though `prepare` had not been called for it.
    """

    kind = MemoryKind.CUDA

    def __init__(self, seed: int = 0, *, background: bool = False, name: str = "fake device") -> None:
        super().__init__(seed, background, name)
        self.current = 0
        self.unprepared: set[tuple[DataType, ReduceKind | None]] = set()
        self._prepared: set[tuple[DataType, ReduceKind | None]] = set()
        self._handles = itertools.count(1)
        self._events: weakref.WeakValueDictionary[int, FakeEvent] = weakref.WeakValueDictionary()
        self._ask = _QUERY(self._query)
        self._next_stream = 16  # below that `__cuda_array_interface__` has meanings of its own

    # ---- for users

    def array(self, values: Any) -> FakeArray:
        """An array on this device with these values."""
        source = numpy.asarray(values)
        return FakeArray(self, self.allocate(source.nbytes), source)

    @contextmanager
    def on(self, stream: int) -> Iterator[int]:
        """Make a stream the current one inside the block."""
        before, self.current = self.current, stream
        try:
            yield stream
        finally:
            self.current = before

    def queue(
        self,
        stream: int,
        function: Callable[[], object],
        *,
        reads: Sequence[Memory] = (),
        writes: Sequence[Memory] = (),
        name: str = "the user's work",
    ) -> None:
        """Queue a call of `function`, which reads and writes these memories; they live until then."""
        touches = accesses(name, tuple(reads), tuple(writes))
        self.push(stream, Task(name, function, touches, (*reads, *writes)))

    def delay(self, stream: int, steps: int) -> None:
        """Queue work that takes the scheduler so many looks."""
        self.push(stream, Delay(steps))

    def obstacle(self, stream: int) -> Obstacle:
        """Queue work that takes until the result's `remove` is called."""
        made = Obstacle(self)
        self.push(stream, made)
        return made

    # ---- a device's interface

    @property
    def query(self) -> int:
        """The address of a C function `int query(void *event)`; it takes the GIL itself."""
        return ctypes.cast(self._ask, ctypes.c_void_p).value or 0

    def _query(self, handle: int) -> int:
        event = self._events.get(handle)
        return int(event is not None and not event.done())

    def stream_of(self, array: Any) -> int:
        """The stream that the array's `__cuda_array_interface__` names, else the default stream."""
        self._check_thread()
        interface = getattr(array, "__cuda_array_interface__", None)
        named = interface.get("stream") if interface is not None else None
        return 0 if named in (None, 1) else int(named)

    def open_stream(self) -> int:
        """A new stream."""
        self._check_thread()
        with self._changed:
            number, self._next_stream = self._next_stream, self._next_stream + 1
            self._streams[number] = Stream(number)
            return number

    def close_stream(self, stream: int) -> None:
        """Release a stream once all that was queued on it is done."""
        with self._changed:
            found = self._stream(stream)
            found.closed = True
            if not found.ops:
                del self._streams[stream]

    def capturing(self, stream: int) -> bool:
        """Whether it is one of `captured`."""
        with self._changed:
            return self._stream(stream).number in self.captured

    def record(self, stream: int) -> FakeEvent:
        """The point that `stream` comes to once all that has been queued on it is done."""
        with self._changed:
            handle, late = next(self._handles), self._random.randint(0, _MOST_LATE)
            self._events[handle] = made = FakeEvent(self, self._stream(stream, queuing=True), handle, late)
            return made

    def follow(self, stream: int, event: Event) -> None:
        """What is queued on `stream` from now on waits for `event`."""
        own = own_event(event, self)
        with self._changed:
            self._stream(stream, queuing=True).learn(own.place)
            self.push(stream, Wait(own))

    def gate(self) -> FakeGate:
        """A closed gate."""
        self._check_thread()
        with self._changed:
            made = FakeGate(self)
            self._gates = [gate for gate in self._gates if not gate.opened] + [made]
            return made

    def synchronize(self, stream: int) -> None:
        """Block until all that was queued on `stream` is done.

        Raises:
            DeviceError: It never will be: what it waits for can come from this thread only, or did not come in a
                minute of the background.
        """
        with self._changed:
            found = self._stream(stream)
            end = found.here().sequence
            if self.background:
                over = self._changed.wait_for(lambda: found.done >= end, _PATIENCE)
            else:
                rounds = 0
                while found.done < end and rounds < _STUCK:
                    rounds = 0 if self.step() else rounds + 1
                over = found.done >= end
        if not over:
            raise DeviceError(
                f"stream {stream} waits for ever: {self.describe()}", remedy="Open the gates that only this thread can."
            )

    def allocate(self, nbytes: int) -> Memory:
        """At least `nbytes` bytes, aligned to 256, full of ones; they live as long as the result's `owner`."""
        self._check_thread()
        start, owner = self.stake(nbytes)
        return Memory(start, nbytes, DataType.UINT8, self.kind, owner)

    def prepare(self, dtype: DataType, op: ReduceKind | None) -> None:
        """Note that it was called; see `unprepared`."""
        self._check_thread()
        self._prepared |= {(dtype, None), (dtype, op), (dtype, None if op is None else op.combining)}

    def copy(self, src: Memory, dst: Memory, stream: int) -> None:
        """Queue `dst = src`."""
        self._arithmetic("copy", stream, local.copy, (src,), (dst,), None, src, dst)

    def fill(self, dst: Memory, op: ReduceKind, stream: int) -> None:
        """Queue `dst = ` the identity of `op`."""
        self._arithmetic("fill", stream, local.fill, (), (dst,), op, dst, op)

    def reduce(self, src: Memory, dst: Memory, op: ReduceKind, stream: int) -> None:
        """Queue `dst = dst op src`."""
        self._arithmetic("reduce", stream, local.reduce, (src, dst), (dst,), op, src, dst, op)

    def multiply(self, src: Memory, dst: Memory, factor: Number, stream: int) -> None:
        """Queue `dst = src * factor`."""
        op = ReduceKind.PREMUL_SUM
        self._arithmetic("multiply", stream, local.multiply, (src,), (dst,), op, src, dst, factor)

    def average(self, src: Memory, dst: Memory, nranks: int, stream: int) -> None:
        """Queue `dst = src / nranks`."""
        self._arithmetic("average", stream, local.average, (src,), (dst,), ReduceKind.AVG, src, dst, nranks)

    def _arithmetic(
        self,
        name: str,
        stream: int,
        function: Callable[..., None],
        reads: tuple[Memory, ...],
        writes: tuple[Memory, ...],
        op: ReduceKind | None,
        *args: Any,
    ) -> None:
        dtype = writes[0].dtype
        if (dtype, op) not in self._prepared:
            self.unprepared.add((dtype, op))
        # Whoever queues it must keep the memory alive, so the work itself does not.
        plain = [replace(arg, owner=None) if isinstance(arg, Memory) else arg for arg in args]
        self.push(stream, Task(name, lambda: function(*plain), accesses(name, reads, writes)))
