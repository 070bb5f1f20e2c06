"""The two ends of an uplink, as `hetcomm.schedule.simulate` has them: queues that bytes pass first come, first served.

Leaving, messages pass one after another. Arriving, those that come at once share the port, which is kept as a fluid:
one number, however many messages and bytes there are.
"""

from __future__ import annotations

from heapq import heappop, heappush

__all__ = ["Inlet", "Outlet"]


class Outlet:
    """A port out: one message leaves at a time, and of those that wait the one that was started first is next."""

    __slots__ = ("_waiting", "is_busy")

    def __init__(self) -> None:
        self.is_busy = False
        self._waiting: list[tuple[int, int]] = []

    def wait(self, started: int, message: int) -> None:
        """Let a message wait; `started` says how many were started before it."""
        heappush(self._waiting, (started, message))

    def next(self) -> int | None:
        """The message that leaves now; None if there is none."""
        self.is_busy = bool(self._waiting)
        return heappop(self._waiting)[1] if self._waiting else None


class Inlet:
    """A port in: a queue of work in seconds, into which messages flow and of which one second is done each second."""

    __slots__ = ("_flows", "_inflow", "_since", "backlog")

    def __init__(self) -> None:
        self.backlog = 0.0  # seconds
        self._inflow = 0.0  # seconds of work that arrive in each second
        self._flows = 0
        self._since = 0.0

    def advance(self, now: float) -> None:
        """Let time pass with the present inflow; time never goes back."""
        self.backlog = max(0.0, self.backlog + (self._inflow - 1.0) * (now - self._since))
        self._since = now

    def open(self, duration: float, work: float) -> None:
        """A message of `work` seconds begins to arrive, which will take it `duration`."""
        if duration > 0.0:
            self._inflow += work / duration
        else:
            self.backlog += work
        self._flows += 1

    def shut(self, duration: float, work: float) -> None:
        """That message has arrived; it has passed after the seconds of the backlog."""
        self._flows -= 1
        if not self._flows:
            self._inflow = 0.0  # whatever rounding has left
        elif duration > 0.0:
            self._inflow -= work / duration
