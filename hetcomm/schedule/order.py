"""Whether a schedule can finish, and in which order its steps complete.

Pessimistic about what a library may do, so that what passes here cannot hang:

* a message is a rendezvous: neither side completes before both are started (no buffering);
* a vendor call completes on no member before it is started on all;
* the vendor calls of one rank run one after another, as on one stream, though the executor may start the next one
  early.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

from hetcomm.errors import ScheduleError
from hetcomm.schedule.dataflow import StepId, dependencies, match, vendor_groups
from hetcomm.schedule.steps import CommId, Recv, Schedule, Send, VendorCall
from hetcomm.schedule.timeline import label

__all__ = ["Completion", "Progress", "completion_order"]


@dataclass(frozen=True, slots=True)
class Completion:
    """Steps that complete together: one local step, a send and its receive in this order, or a vendor call's members.

    Attributes:
        steps: In the communicator's order, for a vendor call.
        call: The communicator and the number of the call on it, for a vendor call.
    """

    steps: tuple[StepId, ...]
    call: tuple[CommId, int] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How a schedule gets to its end.

    Attributes:
        completions: An order in which everything can complete.
        critical_path: Steps on the longest chain of steps that wait for one another; a message or vendor call is one.
        rounds: The same, counting only messages and vendor calls.
    """

    completions: tuple[Completion, ...]
    critical_path: int
    rounds: int


def completion_order(schedule: Schedule) -> Progress:
    """An order in which all steps complete.

    Raises:
        ScheduleError: There is none: the message lists a cycle of steps that wait for one another. Also whatever
            `match` and `vendor_groups` find.
    """
    return _Replay(schedule, match(schedule), vendor_groups(schedule)).run()


class _Replay:
    """Kahn's algorithm on the starts and completions of all steps, which are numbered through over the ranks."""

    def __init__(
        self,
        schedule: Schedule,
        partners: Mapping[StepId, StepId],
        calls: Mapping[tuple[CommId, int], tuple[StepId, ...]],
    ) -> None:
        self.schedule = schedule
        self.base = [0, *accumulate(len(program.steps) for program in schedule.programs)]
        total = self.base[-1]
        self.unmet = [0] * total
        # Who waits for the start and for the end of a step; most steps have nobody.
        self.on_start: dict[int, list[int]] = {}
        self.on_complete: dict[int, list[int]] = {}
        self.groups: list[Completion] = []
        self.group_of = [-1] * total  # index into groups
        for call, group in calls.items():
            self._join(Completion(group, call))
        for program in schedule.programs:
            for index, step in enumerate(program.steps):
                here = (program.rank, index)
                if isinstance(step, Send):
                    self._join(Completion((here, partners[here])))
                elif not isinstance(step, (Recv, VendorCall)):
                    self._join(Completion((here,)))
            self._add_dependencies(program.rank)

    def _join(self, completion: Completion) -> None:
        number = len(self.groups)
        for rank, index in completion.steps:
            self.group_of[self.base[rank] + index] = number
        self.groups.append(completion)

    def _add_dependencies(self, rank: int) -> None:
        program, base = self.schedule.programs[rank], self.base[rank]
        for index, order in enumerate(dependencies(program)):
            here = base + index
            self.unmet[here] = len(order.complete) + len(order.started)
            for before in order.complete:
                self.on_complete.setdefault(base + before, []).append(here)
            if order.started:
                serial = isinstance(program.steps[index], VendorCall)
                waited = self.on_complete if serial else self.on_start
                for before in order.started:
                    waited.setdefault(base + before, []).append(here)

    def run(self) -> Progress:
        """Start and complete whatever can be; raises `ScheduleError` if something never can."""
        unmet, base, groups, group_of = self.unmet, self.base, self.groups, self.group_of
        # Of the longest chains that end where each step starts: steps, and rounds.
        lengths, rounds = [0] * len(unmet), [0] * len(unmet)
        missing = [len(group.steps) for group in groups]  # members not started yet
        done: list[Completion] = []
        longest = most_rounds = 0
        ready = deque(number for number, waits in enumerate(unmet) if not waits)

        def release(waiting: Sequence[int], length: int, nrounds: int) -> None:
            for after in waiting:
                lengths[after] = max(lengths[after], length)
                rounds[after] = max(rounds[after], nrounds)
                unmet[after] -= 1
                if not unmet[after]:
                    ready.append(after)

        while ready:
            number = ready.popleft()
            if number in self.on_start:
                release(self.on_start[number], lengths[number], rounds[number])
            group = group_of[number]
            missing[group] -= 1
            if missing[group]:
                continue
            completion = groups[group]
            done.append(completion)
            members = [base[rank] + index for rank, index in completion.steps]
            communicates = len(members) > 1 or completion.call is not None
            length = 1 + max([lengths[member] for member in members])
            nrounds = communicates + max([rounds[member] for member in members])
            longest, most_rounds = max(longest, length), max(most_rounds, nrounds)
            for member in members:
                if member in self.on_complete:
                    release(self.on_complete[member], length, nrounds)
        if len(done) < len(groups):
            raise self._deadlock(done)
        return Progress(tuple(done), longest, most_rounds)

    def _deadlock(self, done: list[Completion]) -> ScheduleError:
        """The error that lists a cycle of waiting steps."""
        complete = {step for completion in done for step in completion.steps}
        here = next(
            step
            for program in self.schedule.programs
            for step in zip(repeat(program.rank), range(len(program.steps)))
            if step not in complete
        )
        path: list[StepId] = []
        while here not in path:
            path.append(here)
            here = self._blocker(here, complete)
        cycle = [*path[path.index(here) :], here]
        names = [f"rank {rank} step {index} ({self._label(rank, index)})" for rank, index in cycle]
        rank, index = here
        return ScheduleError(
            f"deadlock: {', which waits for '.join(names)}", rank=rank, step=f"{index} ({self._label(rank, index)})"
        )

    def _blocker(self, step: StepId, complete: set[StepId]) -> StepId:
        """A step that `step`, which never completes, waits for in vain."""
        rank, index = step
        base = self.base[rank]
        if self.unmet[base + index]:
            for before in range(index):
                if base + index in self.on_complete.get(base + before, ()) and (rank, before) not in complete:
                    return rank, before
            for before in range(index):
                if base + index in self.on_start.get(base + before, ()) and self.unmet[base + before]:
                    return rank, before
        for other_rank, other_index in self.groups[self.group_of[base + index]].steps:
            if self.unmet[self.base[other_rank] + other_index]:
                return other_rank, other_index
        raise ScheduleError(f"rank {rank} step {index} never completes, for no reason found")

    def _label(self, rank: int, index: int) -> str:
        return label(self.schedule.programs[rank].steps[index])
