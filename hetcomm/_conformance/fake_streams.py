"""The streams of a fake device: what is queued on them, and the events and gates that tie them to the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from hetcomm._conformance.hazards import Access, Place
from hetcomm.devices.base import Event
from hetcomm.errors import DeviceError

if TYPE_CHECKING:
    from hetcomm._conformance.fake_scheduler import Scheduler

__all__ = ["Delay", "FakeEvent", "FakeGate", "Hold", "Obstacle", "Op", "Stream", "Task", "Wait"]


class Op:
    """Something queued on a stream.

    Args:
        name: What it is, for people.
        touches: Which bytes it reads and writes.
        keep: What must live until it is done.

    Attributes:
        place: Where it was queued.
        reached: Whether the stream has come to it.
    """

    def __init__(self, name: str, touches: tuple[Access, ...] = (), keep: object = None) -> None:
        self.name = name
        self.touches = touches
        self.place = Place(-1, -1)
        self.reached = False
        self._keep = keep

    def look(self) -> bool:
        """The stream has come to it: whether it can be done now."""
        return True

    def finish(self) -> None:
        """Do it."""


class Task(Op):
    """Calls a function."""

    def __init__(
        self, name: str, function: Callable[[], object], touches: tuple[Access, ...] = (), keep: object = None
    ) -> None:
        super().__init__(name, touches, keep)
        self._function = function

    def finish(self) -> None:
        """Call it."""
        self._function()


class Wait(Op):
    """Waits for an event of another stream."""

    def __init__(self, event: FakeEvent) -> None:
        super().__init__(f"wait for {event}")
        self._event = event

    def look(self) -> bool:
        """Whether that stream has come to it; devices see that at once."""
        return self._event.reached


class Hold(Op):
    """Waits for a gate."""

    def __init__(self, gate: FakeGate) -> None:
        super().__init__("hold of a gate")
        self.gate = gate

    def look(self) -> bool:
        """Whether it is open."""
        return self.gate.opened


class Delay(Op):
    """Takes a number of looks."""

    def __init__(self, steps: int) -> None:
        super().__init__(f"delay of {steps} steps")
        self._left = steps

    def look(self) -> bool:
        """Whether they are over."""
        self._left -= 1
        return self._left < 0


class Obstacle(Op):
    """Work that takes until a test removes it. Unlike a gate it hides no race: work behind it could begin any time."""

    def __init__(self, device: Scheduler) -> None:
        super().__init__("obstacle")
        self._device = device
        self._removed = False

    def look(self) -> bool:
        """Whether it is gone."""
        return self._removed

    def remove(self) -> None:
        """Let the stream go on."""
        self._removed = True
        self._device.notify()


class Stream:
    """A queue of work.

    Attributes:
        number: What stands for it outside.
        ops: What is not done, in order.
        done: The number of the last op that is done.
        closed: Whether nothing more may be queued.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.ops: deque[Op] = deque()
        self.done = -1
        self.closed = False
        self._clock: dict[int, int] = {}
        self._last = -1

    def push(self, op: Op) -> None:
        """Queue an op."""
        self._last += 1
        self._clock[self.number] = self._last
        op.place = Place(self.number, self._last, dict(self._clock))
        self.ops.append(op)

    def pop(self) -> Op:
        """The first op is done."""
        op = self.ops.popleft()
        self.done = op.place.sequence
        return op

    def here(self) -> Place:
        """After all that has been queued."""
        return Place(self.number, self._last, dict(self._clock))

    def learn(self, place: Place) -> None:
        """What is queued from now on comes after `place`."""
        for stream, sequence in place.clock.items():
            self._clock[stream] = max(sequence, self._clock.get(stream, -1))


class FakeEvent:
    """A point of a stream. The host learns of it only some looks after the stream has come to it.

    Args:
        device, stream: Whose.
        handle: What the device's `query` takes.
        late: How many looks.
    """

    def __init__(self, device: Scheduler, stream: Stream, handle: int, late: int) -> None:
        self.device = device
        self.handle = handle
        self.place = stream.here()
        self._stream = stream
        self._late = late

    @property
    def reached(self) -> bool:
        """Whether the stream has come to it."""
        return self._stream.done >= self.place.sequence

    def done(self) -> bool:
        """Whether the host knows that the stream has come to it; time passes while it asks."""
        self.device.pass_time()
        if self._late >= 0 and self.reached:
            self._late -= 1
        return self._late < 0

    def __str__(self) -> str:
        return f"point {self.place.sequence} of stream {self.place.stream}"


class FakeGate:
    """Holds streams back until the host opens it.

    Attributes:
        opened: Whether it has.
    """

    def __init__(self, device: Scheduler) -> None:
        self.opened = False
        self._device = device

    def hold(self, stream: int) -> None:
        """What is queued on `stream` from now on waits until the gate is open."""
        self._device.push(stream, Hold(self))

    def open(self) -> None:
        """Let all go on; calling it again does nothing."""
        self.opened = True
        self._device.notify()


def own_event(event: Event, device: Scheduler) -> FakeEvent:
    """`event`, which is of this device.

    Raises:
        DeviceError: It is not.
    """
    if isinstance(event, FakeEvent) and event.device is device:
        return event
    raise DeviceError(f"{event!r} is no event of {device.name}", remedy="Follow events of the same device only.")
