"""What this process knows of the other ranks of its job, and how it finds out.

Whoever waits looks, a few times a second and only after a while: calls that are soon over never do. Processes of this
machine are looked at themselves; of those on other hosts the heartbeat tells. That a process has ended is told by the
transport, which is asked by whoever waits in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

from hetcomm._ext import heart
from hetcomm.health.processes import is_stopped
from hetcomm.health.states import Sign, State, after

__all__ = ["Health", "Pulse"]

_log = logging.getLogger(__name__)
_FIRST_LOOK = 0.1  # seconds of waiting before the first look
_EVERY = 0.3  # and between two looks
_PAUSE = 0.5  # seconds in which nobody has waited: the next wait is another one
_PER_LOOK = 64  # processes

_SIGNS = {
    heart.ALIVE: Sign.HEARD,
    heart.QUIET: Sign.SILENT,
    heart.CUT: Sign.SILENT,
    heart.LEFT: Sign.GOODBYE,
    heart.DEAD: Sign.EXPIRED,
}
_ASIDE = {
    heart.QUIET: "its host answers, but its process does not run",
    heart.CUT: "its host does not answer",
}


class Pulse(Protocol):
    """What is used of `hetcomm._ext.heart.Heart`."""

    @property
    def partners(self) -> tuple[int, ...]:
        """The ranks that there is one with."""
        ...

    def state(self, rank: int) -> int:
        """What is known of a rank, as a number of `heart`."""
        ...

    def cause(self, rank: int) -> str:
        """Why a rank that is dead was declared so."""
        ...

    def close(self) -> None:
        """Leave in good faith."""
        ...


class Health:
    """The other ranks of a job, as one of them sees them.

    Args:
        rank: This process's.
        hosts: Of each rank.
        processes: Of each rank whose process this one can see.
        pulse: The heartbeat; None: there is none.
        ended: The ranks that are known to have ended by now.
        stopped: Whether a process is stopped.
    """

    def __init__(
        self,
        rank: int = 0,
        hosts: Sequence[str] = (),
        processes: Mapping[int, int] | None = None,
        pulse: Pulse | None = None,
        ended: Callable[[], Collection[int]] = tuple,
        stopped: Callable[[int], bool] = is_stopped,
    ) -> None:
        self.pulse = pulse
        self._rank = rank
        self._hosts = hosts
        self._processes = {} if processes is None else dict(processes)
        self._ended = ended
        self._stopped = stopped
        self._states: dict[int, State] = {}
        self._warned: set[int] = set()
        self._unmet = False
        self._look_at = self._asked_at = self._begun = 0.0
        self._next = 0

    def look(self, now: float) -> None:
        """Look at the other ranks if it is time; whoever waits calls this often."""
        if now - self._asked_at > _PAUSE:
            self._look_at = now + _FIRST_LOOK
        self._asked_at = now
        if now >= self._look_at:
            self._look_at = now + _EVERY
            self._look_at_processes()
            self._listen(now)

    def state(self, rank: int) -> State:
        """What a rank is, looked at now."""
        if rank in self._processes:
            self._note(rank, [Sign.HALTED if self._stopped(self._processes[rank]) else Sign.HEARD])
        elif self.pulse is not None and (sign := _SIGNS.get(self.pulse.state(rank))) is not None:
            self._note(rank, [sign])
        if rank in self._ended():
            self._note(rank, [Sign.ENDED])
        return self._states.get(rank, State.ALIVE)

    def is_cut_off(self, rank: int) -> bool:
        """Whether it counts as dead since it was silent for too long, or another rank has said so."""
        dead = self.pulse is not None and self.pulse.state(rank) == heart.DEAD
        return dead and self.pulse is not None and self.pulse.cause(rank) != heart.CAUSES[heart.BY_END]

    def host(self, rank: int) -> str:
        """The host of a rank; '' if it is not known."""
        return self._hosts[rank].partition(":")[0] if rank < len(self._hosts) else ""

    def place(self, rank: int) -> str:
        """Where a rank is, for people: 'on host h1 (process 7)'; '' if nothing is known of that."""
        where = [f"on host {self.host(rank)}"] if self.host(rank) else []
        where += [f"(process {self._processes[rank]})"] if rank in self._processes else []
        return " ".join(where)

    def condition(self, rank: int) -> str:
        """What a rank is, for people: 'alive', 'dead: its process has ended'."""
        state, aside = self.state(rank), ""
        if self.pulse is not None and rank not in self._processes:
            aside = self.pulse.cause(rank) if state is State.DEAD else _ASIDE.get(self.pulse.state(rank), "")
        return f"{state.value}: {aside}" if aside else state.value

    def close(self) -> None:
        """Tell the others that this process leaves in good faith; calling it again does nothing."""
        pulse, self.pulse = self.pulse, None
        if pulse is not None:
            pulse.close()

    def _look_at_processes(self) -> None:
        """Look whether processes are stopped; at some of them if there are many."""
        ranks = sorted(self._processes)
        chosen: Iterable[int] = ranks
        if len(ranks) > _PER_LOOK:
            self._next = (self._next + _PER_LOOK) % len(ranks)
            chosen = islice([*ranks[self._next :], *ranks], _PER_LOOK)
        for rank in chosen:
            self._note(rank, [Sign.HALTED if self._stopped(self._processes[rank]) else Sign.HEARD])

    def _listen(self, now: float) -> None:
        """Look at what the heartbeat says; and say once if it does not get through at all."""
        if self.pulse is None:
            return
        self._begun = self._begun or now
        states = {rank: self.pulse.state(rank) for rank in self.pulse.partners}
        for rank, state in states.items():
            if rank not in self._processes and state in _SIGNS:
                self._note(rank, [_SIGNS[state]])
        unmet = [rank for rank, state in states.items() if state == heart.UNMET]
        if unmet and not self._unmet and now - self._begun > 10.0:
            self._unmet = True
            _log.warning(
                "[rank %d] the heartbeat does not reach rank %d on host %s; if that rank is cut off, only timeouts "
                "will tell. A firewall may be in between.",
                self._rank,
                unmet[0],
                self.host(unmet[0]),
            )

    def _note(self, rank: int, signs: Iterable[Sign]) -> None:
        before = self._states.get(rank, State.ALIVE)
        state = self._states[rank] = after(before, signs)
        if state is before or state in (State.LEFT, State.DEAD):  # what calls need of these, they raise
            return
        if state is State.ALIVE:
            _log.info("[rank %d] rank %d goes on", self._rank, rank)
            return
        level = logging.INFO if rank in self._warned else logging.WARNING
        self._warned.add(rank)
        _log.log(
            level,
            "[rank %d] rank %d %s is %s; calls that need it wait until it goes on",
            self._rank,
            rank,
            self.place(rank),
            self.condition(rank),
        )
