"""When the work on a fake device's streams is done, and which uses of its memory are races.

The order is random and unkind: streams overtake one another, some starve for a while. Every unordered use of bytes is
recorded (`hetcomm._conformance.hazards`), whatever the values were.
"""

from __future__ import annotations

import ctypes
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy

from hetcomm._conformance.fake_streams import FakeGate, Hold, Op, Stream
from hetcomm._conformance.hazards import Access, Violation, conflict
from hetcomm.errors import DeviceError

__all__ = ["Scheduler", "Watch"]

_PACE = (0, 0, 1, 1, 2, 3, 8)  # pieces of work done in one step
_STARVING = 30  # steps that a stream may be passed over
_PAUSES = (0.0, 0.0, 2e-5, 2e-4, 1e-3)  # seconds between steps in the background
_FRESH, _FREED = 0xFF, 0xDB  # what memory holds before it is written, and after it was given back


@dataclass(frozen=True, slots=True)
class _Block:
    """An allocation."""

    start: int
    stop: int
    backing: Any


class _Owner:
    """Lives as long as an allocation."""

    __slots__ = ("__weakref__",)


class Watch:
    """Something that the host or the network does with memory, and that takes some time."""

    def __init__(self, scheduler: Scheduler, accesses: tuple[Access, ...]) -> None:
        self._scheduler = scheduler
        self.accesses = accesses

    def over(self) -> None:
        """It has ended; calling it again does nothing."""
        self._scheduler.unwatch(self)


class Scheduler:
    """The streams and the memory of one fake device.

    Args:
        seed: Of all that is random.
        background: Whether a thread does the work at random times; otherwise it is done in `step`, and a little
            whenever the host asks for an event.
        name: For people.

    Attributes:
        captured: Streams that are being captured into a graph.
        violations: The races found so far.
    """

    def __init__(self, seed: int, background: bool, name: str) -> None:
        self.name = name
        self.background = background
        self.captured: set[int] = set()
        self.violations: list[Violation] = []
        self._random = random.Random(seed)
        self._changed = threading.Condition(threading.RLock())
        self._thread = threading.local()
        self._streams = {0: Stream(0)}
        self._gates: list[FakeGate] = []
        self._holds: list[Hold] = []
        self._watches: list[Watch] = []
        self._blocks: dict[int, _Block] = {}
        self._freed: deque[int] = deque()  # filled by finalizers, which may run anywhere
        self._lost: list[_Block] = []  # freed too early: never used again
        self._starved: Stream | None = None
        self._starving = 0
        self._closed = False
        self.use()
        if background:
            threading.Thread(target=self._work, name=name, daemon=True).start()

    # ---- time

    def step(self) -> int:
        """Do a random amount of work, maybe none; how many pieces were done."""
        with self._changed:
            self._sweep()
            done = 0
            for _ in range(self._random.choice(_PACE)):
                if not self._move():
                    break
                done += 1
            if done:
                self._changed.notify_all()
            return done

    def pass_time(self) -> None:
        """The host looks at something: meanwhile the device may work."""
        if not self.background and self._random.random() < 0.25:
            self.step()

    def idle(self) -> bool:
        """Whether nothing is queued on any stream."""
        with self._changed:
            return not any(stream.ops for stream in self._streams.values())

    @property
    def closed_gates(self) -> int:
        """Gates that have been made and not opened."""
        return sum(not gate.opened for gate in self._gates)

    def describe(self) -> str:
        """What each stream is doing, as text."""
        with self._changed:
            lines = [
                f"stream {stream.number}: {', then '.join(op.name for op in list(stream.ops)[:4])}"
                + (f" and {len(stream.ops) - 4} more" if len(stream.ops) > 4 else "")
                for stream in self._streams.values()
                if stream.ops
            ]
        return f"{self.name}: {'; '.join(lines) or 'idle'}"

    def notify(self) -> None:
        """Something has happened that work may wait for."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread of the background; what is queued is never done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or not self.idle())
                if self._closed:
                    return
                if not self.step():
                    self._changed.wait(1e-3)
            time.sleep(self._random.choice(_PAUSES))

    def _move(self) -> bool:
        """Do one piece of work of a random stream; whether there was any that could be done."""
        busy = [stream for stream in self._streams.values() if stream.ops]
        self._random.shuffle(busy)
        if self._starving:
            self._starving -= 1
            busy = [stream for stream in busy if stream is not self._starved]
        elif busy and self._random.random() < 0.05:
            self._starved, self._starving = busy.pop(), self._random.randint(1, _STARVING)
        return any(self._advance(stream) for stream in busy)

    def _advance(self, stream: Stream) -> bool:
        op = stream.ops[0]
        op.reached = True
        if not op.look():
            return False
        self._check_work(op)
        op.finish()
        stream.pop()
        if isinstance(op, Hold):
            self._holds.remove(op)
        if stream.closed and not stream.ops:
            del self._streams[stream.number]
        return True

    # ---- races

    def touch(self, address: int, nbytes: int, write: bool, who: str) -> None:
        """The host or the network reads or writes these bytes now: record the races that this is part of."""
        with self._changed:
            self._sweep()
            self._check(Access(address, address + nbytes, write, who))

    def watch(self, address: int, nbytes: int, write: bool, who: str) -> Watch:
        """The same for an access that goes on until `Watch.over` is called."""
        return self.engage((Access(address, address + nbytes, write, who),))

    def engage(self, accesses: tuple[Access, ...]) -> Watch:
        """The same for several accesses, which are one thing and no race with one another."""
        with self._changed:
            self._sweep()
            for access in accesses:
                self._check(access)
            self._watches.append(made := Watch(self, accesses))
            return made

    def unwatch(self, watch: Watch) -> None:
        """See `Watch.over`."""
        with self._changed:
            if watch in self._watches:
                self._watches.remove(watch)
                for access in watch.accesses:
                    self._check(access)

    def _check(self, access: Access) -> None:
        """Races of the host or the network with work that could be done now, and with accesses under way."""
        self._record(conflict(access, early) for early in self._under_way())
        for op in self._pending():
            if op.touches and not self._is_held(op):
                self._record(conflict(access, early) for early in op.touches)

    def _check_work(self, op: Op) -> None:
        """Races of work that is being done with other work that could be done now, and with accesses under way."""
        if not op.touches:
            return
        for other in self._pending():
            if other.touches and not other.place.after(op.place) and not self._is_held(other):
                self._record(conflict(late, early) for late in op.touches for early in other.touches)
        self._record(conflict(late, early) for late in op.touches for early in self._under_way())

    def _record(self, found: Iterator[Violation | None]) -> None:
        self.violations.extend(violation for violation in found if violation is not None)

    def _pending(self) -> Iterator[Op]:
        for stream in self._streams.values():
            yield from stream.ops

    def _under_way(self) -> Iterator[Access]:
        for watch in self._watches:
            yield from watch.accesses

    def _is_held(self, op: Op) -> bool:
        return any(not hold.gate.opened and op.place.after(hold.place) for hold in self._holds)

    # ---- queuing

    def use(self) -> None:
        """Make it the current device of the calling thread; no other thread may use it."""
        self._thread.uses = True

    def push(self, stream: int, op: Op) -> None:
        """Queue work on a stream.

        Raises:
            DeviceError: There is no such stream, or it is closed or being captured; the thread has not called `use`;
                or the work touches bytes that are not this device's.
        """
        with self._changed:
            self._sweep()
            found = self._stream(stream, queuing=True)
            for access in op.touches:
                if not any(b.start <= access.start <= access.stop <= b.stop for b in self._blocks.values()):
                    raise DeviceError(f"{access}, which is not memory of {self.name}")
            found.push(op)
            if isinstance(op, Hold):
                self._holds.append(op)
            self._changed.notify_all()

    def _stream(self, stream: int, *, queuing: bool = False) -> Stream:
        self._check_thread()
        found = self._streams.get(stream)
        if found is None or found.closed:
            raise DeviceError(f"{self.name} has no open stream {stream}")
        if queuing and stream in self.captured:
            raise DeviceError(f"stream {stream} is being captured")
        return found

    def _check_thread(self) -> None:
        if not getattr(self._thread, "uses", False):
            raise DeviceError(f"{self.name} is not the current device of this thread", remedy="Call use() first.")

    # ---- memory

    def stake(self, nbytes: int) -> tuple[int, object]:
        """New memory, aligned to 256 and full of ones: its address, and what it lives as long as."""
        backing = numpy.full(max(nbytes, 1) + 256, _FRESH, numpy.uint8)
        start = -(-backing.ctypes.data // 256) * 256
        owner = _Owner()
        with self._changed:
            self._sweep()
            self._blocks[start] = _Block(start, start + max(nbytes, 1), backing)
        weakref.finalize(owner, self._freed.append, start).atexit = False
        return start, owner

    def owns(self, address: int) -> bool:
        """Whether `address` is in this device's memory."""
        with self._changed:
            self._sweep()
            return any(block.start <= address < block.stop for block in self._blocks.values())

    def _sweep(self) -> None:
        """Take back memory whose owner is gone; if work on it is queued, or a message under way, that is a race."""
        while self._freed:
            block = self._blocks.pop(self._freed.popleft())
            gone = Access(block.start, block.stop, True, "whoever owned it has given it back; the pool")
            before = len(self.violations)
            for op in self._pending():
                self._record(conflict(gone, early) for early in op.touches)
            self._record(conflict(gone, early) for early in self._under_way())
            ctypes.memset(block.start, _FREED, block.stop - block.start)
            if len(self.violations) > before:
                self._lost.append(block)
