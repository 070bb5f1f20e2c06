"""One rank's part of a program: makes its calls, compares every value, and tells what came of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from hetcomm._conformance.reference import reference_of
from hetcomm.types import ReduceKind

from ..runtime.invoke import Invocation, invocation
from .programs import (
    END,
    LAST,
    Array,
    Call,
    Group,
    Init,
    Program,
    Spec,
    Split,
    Start,
    Step,
    factor,
    input_of,
    text,
    variant,
)

__all__ = ["Outcome", "execute"]

_LATE = (0.001, 0.003, 0.01, 0.03, 0.1)  # seconds


@dataclass
class Outcome:
    """What came of a program on one rank; times are those of `time.monotonic`, which all processes of a host share.

    Attributes:
        error: Type and text of the first exception, the call that raised it, and when; None: there was none.
        wrong: Results that are not what the calls mean, each as text.
        damaged: What was written that no call may write, found after a call that went well.
        late_writes: Arrays that changed after the error.
        begun, ended: When.
        parted: When this rank began the call with the number of the program's divergence; None: it did not get there.
        closing: Seconds that closing took.
    """

    seed: int
    rank: int
    mutated: bool
    begun: float = 0.0
    ended: float = 0.0
    parted: float | None = None
    closing: float = 0.0
    error: dict[str, Any] | None = None
    wrong: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    late_writes: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        return asdict(self)


class _Rank:
    def __init__(self, comm: Any, program: Program, rank: int, outcome: Outcome, at: Callable[[int], None]) -> None:
        self.program, self.rank, self.outcome, self.at = program, rank, outcome, at
        self.comms: dict[int, Any] = {0: comm}
        self.numbers = dict.fromkeys(program.histories[rank], 0)
        self.rng = random.Random(f"waits {program.seed} {rank}")
        self.idle: dict[tuple[Any, ...], list[Invocation]] = {}
        self.open: list[tuple[int, str, Callable[[], None], list[tuple[Any, ...]]]] = []  # due, what, wait, calls
        self.requests: dict[int, tuple[Any, Spec, Invocation | None]] = {}
        self.pinned: set[int] = set()  # calls whose arrays belong to a request
        self.running: dict[int, Any] = {}
        self.used: list[tuple[str, Invocation]] = []
        self.what = ""

    def run(self) -> None:
        steps = self.program.steps_of(self.rank)
        for index, step in enumerate(steps):
            self.at(index)
            self.what = f"step {index} (#{step.uid})"
            if self.rng.random() < 0.05:  # ranks are late now and then
                time.sleep(self.rng.choice(_LATE))
            self.take(index, step)
            for each in [each for each in self.open if each[0] <= index]:
                self.finish(each)
        rest = list(self.open)
        self.rng.shuffle(rest)
        for each in rest:
            if each in self.open:
                self.finish(each)
        for comm in sorted(self.comms, reverse=True):
            self.what = f"the last call on comm {comm}"
            self.blocking(comm, replace(END, nranks=len(self.program.comms[comm])), LAST + comm)

    def take(self, index: int, step: Step) -> None:
        match step:
            case Call(held=None):
                self.blocking(step.comm, step.spec, step.uid)
            case Call():
                self.asynchronous(index, step)
            case Group():
                self.group(step)
            case Init():
                self.init(step)
            case Start():
                self.start(index, step)
            case Split():
                self.number(step.comm)
                child = self.comms[step.comm].split(step.colors[self.rank], step.keys[self.rank])
                made = step.made[self.rank]
                if (child is None) != (made is None):
                    raise AssertionError(f"split gave {child}")
                if made is not None:
                    self.comms[made] = child

    # ---- kinds of calls

    def blocking(self, comm: int, spec: Spec, uid: int) -> None:
        call = self.prepare(comm, spec, uid, 0)
        number = self.number(comm)
        self.invoke(comm, call)
        self.check(comm, number, 0, spec, call)

    def asynchronous(self, index: int, step: Call) -> None:
        call = self.prepare(step.comm, step.spec, step.uid, 0)
        number = self.number(step.comm)
        work = self.invoke(step.comm, call, async_op=True)
        due = index + self.rng.randint(0, step.held or 0)
        self.open.append((due, self.what, work.wait, [(step.comm, number, 0, step.spec, call)]))
        if self.rng.random() < 0.2:
            work.done()

    def group(self, step: Group) -> None:
        calls = [self.prepare(step.comm, spec, step.uid, place) for place, spec in enumerate(step.specs)]
        if not calls:
            return
        number = self.number(step.comm)
        with self.comms[step.comm].group():
            for call in calls:
                self.invoke(step.comm, call)
        for place, (spec, call) in enumerate(zip(step.specs, calls, strict=True)):
            self.check(step.comm, number, place, spec, call)

    def init(self, step: Init) -> None:
        call = self.prepare(step.comm, step.spec, step.uid, 0)
        self.number(step.comm)
        made = self.invoke(step.comm, call, suffix="_init")
        self.requests[step.uid] = made, step.spec, call
        self.pinned.add(id(call))

    def start(self, index: int, step: Start) -> None:
        request, spec, call = self.requests[step.request]
        before = self.running.get(step.request)
        if before is not None and before in self.open:
            self.finish(before)
        if call is not None and spec is not None:
            call.refill(input_of(self.program, spec, step.uid, 0, self.place(step.comm)))
        number = self.number(step.comm)
        request.start()
        entry = (index + self.rng.randint(0, step.held), self.what, request.wait, [(step.comm, number, 0, spec, call)])
        self.open.append(entry)
        self.running[step.request] = entry

    # ---- what they have in common

    def place(self, comm: int) -> int:
        """This rank's number on a communicator."""
        return self.program.comms[comm].index(self.rank)

    def number(self, comm: int) -> int:
        """The number of the call that is made next."""
        number = self.numbers[comm]
        self.numbers[comm] += 1
        if self.program.divergence == (comm, number):
            self.outcome.parted = time.monotonic()
        return number

    def prepare(self, comm: int, spec: Spec, uid: int, place: int) -> Invocation | None:
        """Arrays with the input of a call; None for a barrier."""
        if spec is None:
            return None
        rank = self.place(comm)
        mine = variant(self.program, spec, uid, place, rank)
        packed = input_of(self.program, spec, uid, place, rank)
        idle = self.idle.get((comm, mine))
        if idle and spec.op is not ReduceKind.PREMUL_SUM and self.rng.random() < 0.7:
            call = idle.pop()
            call.refill(packed)
        else:
            call = invocation(mine, rank, packed, factor(uid, rank))
        self.used.append((self.what, call))
        return call

    def invoke(self, comm: int, call: Invocation | None, suffix: str = "", **how: Any) -> Any:
        communicator = self.comms[comm]
        if call is None:
            return getattr(communicator, f"barrier{suffix}")(**how)
        return getattr(communicator, f"{call.name}{suffix}")(*call.args, **how)

    def finish(self, entry: tuple[int, str, Callable[[], None], list[tuple[Any, ...]]]) -> None:
        """Wait for a work or a request."""
        self.open.remove(entry)
        _, self.what, wait, calls = entry
        wait()
        for each in calls:
            self.check(*each)

    def check(self, comm: int, number: int, place: int, spec: Spec, call: Invocation | None) -> None:
        """Compare what this rank has got with what it must get."""
        if call is None or spec is None:
            return
        got, wanted = call.output(), self.wanted(comm, number, place, spec)
        damage = call.damage()
        if damage is not None:
            self.outcome.damaged.append(f"{self.what}, {text(spec)}: {damage}")
        if (got is None) != (wanted is None) or (got is not None and not np.array_equal(got, wanted)):
            self.outcome.wrong.append(f"{self.what}, {text(spec)} on comm {comm}: {_difference(got, wanted)}")
        if id(call) not in self.pinned:
            self.idle.setdefault((comm, call.mine), []).append(call)

    def wanted(self, comm: int, number: int, place: int, spec: Any) -> Array | None:
        """What this rank must get of a call: see `programs`."""
        program, rank = self.program, self.place(comm)
        mine = program.histories[self.rank][comm][number]
        theirs = [
            program.histories[member][comm][number] if program.agrees(comm, number, rank, other) else mine
            for other, member in enumerate(program.comms[comm])
        ]
        inputs = [input_of(program, spec, each.uid, place, other) for other, each in enumerate(theirs)]
        factors = [factor(each.maker, other) for other, each in enumerate(theirs)]
        return reference_of(spec, rank, inputs, factors)


def _difference(got: Array | None, wanted: Array | None) -> str:
    if got is None or wanted is None or got.shape != wanted.shape:
        return f"{'nothing' if got is None else got.shape} instead of {'nothing' if wanted is None else wanted.shape}"
    places = np.flatnonzero(got != wanted)
    shown = places[:4]
    return f"{len(places)} of {len(got)} elements, at {shown.tolist()}: {got[shown]} instead of {wanted[shown]}"


def execute(
    comm: Any, program: Program, rank: int, at: Callable[[int], None] = lambda index: None
) -> tuple[Outcome, Callable[[], None]]:
    """Run this rank's part of a program on a communicator of its own, and close that.

    Args:
        comm: A communicator over the program's ranks, in order.
        program: What all ranks do.
        rank: This one.
        at: Told the number of each step before it is taken.

    Returns:
        What came of it, and a function that notes which arrays have changed since the error; call it when all ranks are
        through.
    """
    outcome = Outcome(program.seed, rank, program.mutation is not None, begun=time.monotonic())
    mine = _Rank(comm, program, rank, outcome, at)
    error: BaseException | None = None
    seen: list[Array] = []
    try:
        mine.run()
    except Exception as caught:
        error = caught
        outcome.error = _told(error, mine.what)
        # In a program of a user's the exception leaves the block, or is caught and the communicator closed.
    begun = time.monotonic()
    try:
        if error is not None and program.seed % 2:
            comm.__exit__(type(error), error, error.__traceback__)
        else:
            comm.close()
    except Exception as caught:
        outcome.error = outcome.error or _told(caught, "close")
    outcome.ended = time.monotonic()
    outcome.closing = outcome.ended - begun
    if error is not None:
        seen = [call.target.copy() for _, call in mine.used]

    def look() -> None:
        for (what, call), before in zip(mine.used, seen, strict=False):
            if call.target.tobytes() != before.tobytes():
                outcome.late_writes.append(f"{what}, {text(call.mine)}: written after the communicator was closed")
            elif call.damage() == "what lies around an array has changed":
                outcome.damaged.append(f"{what}, {text(call.mine)}: what lies around an array has changed")

    return outcome, look


def _told(error: BaseException, what: str) -> dict[str, Any]:
    return {"type": type(error).__name__, "text": str(error)[:1500], "in": what, "at": time.monotonic()}
