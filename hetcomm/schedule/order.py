"""Whether a schedule can finish, and in which order its steps complete.

Pessimistic about what a library may do, so that what passes here cannot hang:

* a message is a rendezvous: neither side completes before both are started (no buffering);
* a vendor call completes on no member before it is started on all;
* the vendor calls of one rank run one after another, as on one stream, though the executor may start the next one
  early.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from hetcomm.errors import ScheduleError
from hetcomm.schedule.dataflow import StepId, dependencies, match, vendor_groups
from hetcomm.schedule.steps import CommId, Schedule, Send, VendorCall
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
        self.base = [0]
        for program in schedule.programs:
            self.base.append(self.base[-1] + len(program.steps))
        total = self.base[-1]
        self.ids = [(p.rank, index) for p in schedule.programs for index in range(len(p.steps))]
        self.unmet = [0] * total
        self.on_start: list[list[int]] = [[] for _ in range(total)]
        self.on_complete: list[list[int]] = [[] for _ in range(total)]
        self.groups: list[Completion] = []
        self.group_of = [-1] * total  # index into groups
        for call, group in calls.items():
            self._join(Completion(group, call))
        for program in schedule.programs:
            for index, step in enumerate(program.steps):
                here = (program.rank, index)
                if isinstance(step, Send):
                    self._join(Completion((here, partners[here])))
                elif here not in partners and not isinstance(step, VendorCall):
                    self._join(Completion((here,)))
            self._add_dependencies(program.rank)

    def _join(self, completion: Completion) -> None:
        for rank, index in completion.steps:
            self.group_of[self.base[rank] + index] = len(self.groups)
        self.groups.append(completion)

    def _add_dependencies(self, rank: int) -> None:
        program, base = self.schedule.programs[rank], self.base[rank]
        for index, order in enumerate(dependencies(program)):
            self.unmet[base + index] = len(order.complete) + len(order.started)
            for before in order.complete:
                self.on_complete[base + before].append(base + index)
            serial = isinstance(program.steps[index], VendorCall)
            for before in order.started:
                (self.on_complete if serial else self.on_start)[base + before].append(base + index)

    def run(self) -> Progress:
        total = len(self.ids)
        unmet, on_start, on_complete, base = self.unmet, self.on_start, self.on_complete, self.base
        depth = [(0, 0)] * total  # of the chains that end where each step starts: (steps, rounds)
        missing = [len(group.steps) for group in self.groups]  # members not started yet
        done: list[Completion] = []
        longest = most_rounds = 0
        ready = deque(number for number in range(total) if not unmet[number])
        while ready:
            number = ready.popleft()
            for after in on_start[number]:
                depth[after] = _deeper(depth[after], depth[number])
                unmet[after] -= 1
                if not unmet[after]:
                    ready.append(after)
            group = self.group_of[number]
            missing[group] -= 1
            if missing[group]:
                continue
            completion = self.groups[group]
            steps = completion.steps
            done.append(completion)
            members = [base[rank] + index for rank, index in steps]
            communicates = len(steps) > 1 or completion.call is not None
            length = 1 + max(depth[member][0] for member in members)
            rounds = communicates + max(depth[member][1] for member in members)
            longest, most_rounds = max(longest, length), max(most_rounds, rounds)
            for member in members:
                for after in on_complete[member]:
                    depth[after] = _deeper(depth[after], (length, rounds))
                    unmet[after] -= 1
                    if not unmet[after]:
                        ready.append(after)
        if sum(len(completion.steps) for completion in done) < total:
            raise self._deadlock(done)
        return Progress(tuple(done), longest, most_rounds)

    def _deadlock(self, done: list[Completion]) -> ScheduleError:
        """The error that lists a cycle of waiting steps."""
        complete = {step for completion in done for step in completion.steps}
        here = next(step for step in self.ids if step not in complete)
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
                edges = self.on_complete[base + before]
                if base + index in edges and (rank, before) not in complete:
                    return rank, before
            for before in range(index):
                if base + index in self.on_start[base + before] and self.unmet[base + before]:
                    return rank, before
        for other_rank, other_index in self.groups[self.group_of[base + index]].steps:
            if self.unmet[self.base[other_rank] + other_index]:
                return other_rank, other_index
        raise ScheduleError(f"rank {rank} step {index} never completes, for no reason found")

    def _label(self, rank: int, index: int) -> str:
        return label(self.schedule.programs[rank].steps[index])


def _deeper(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), max(one[1], other[1])
