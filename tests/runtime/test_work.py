"""Calls that go on side by side: random jobs of blocking, background, grouped and persistent calls equal NumPy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hetcomm.communicator import Communicator, Work
from hetcomm.schedule.collective import Collective
from hetcomm.testing import reference, strategies
from hetcomm.topology.model import Topology
from hetcomm.types import ReduceKind

from .invoke import Invocation, equal, inputs_of, invocation
from .threads import run_threads

MODES = ("blocking", "async", "grouped", "grouped async", "persistent")
LARGEST = 3000  # elements of a block
EXAMPLES = max(10, settings.default.max_examples // 10 if settings.default is not None else 0)


@dataclass(frozen=True)
class Planned:
    """One call of all ranks; `forms` are the collective as each rank passes it, None a message to the next rank."""

    mode: str
    forms: tuple[Collective, ...] | None
    seed: int


@st.composite
def planned(draw: st.DrawFn, nranks: int) -> Planned:
    mode, seed = draw(st.sampled_from(MODES)), draw(st.integers(0, 1 << 20))
    if mode != "persistent" and draw(st.integers(0, 3)) == 0:
        return Planned(mode, None, seed)
    collective = draw(strategies.collectives(nranks))
    if collective.counts is None:
        collective = replace(collective, count=min(collective.count, LARGEST))
    return Planned(mode, tuple(draw(strategies.passed_by(collective, rank)) for rank in range(nranks)), seed)


class Player:
    """Plays the planned calls on one rank, and checks what they give."""

    def __init__(self, comm: Communicator, seed: int) -> None:
        self.comm = comm
        self.rng = random.Random(seed * 31 + comm.rank)  # ranks wait in different orders
        self.open: list[tuple[Any, Any]] = []
        self.wrong: list[str] = []

    def play(self, calls: Sequence[Planned]) -> list[str]:
        calls = list(calls)
        while calls:
            together = [calls.pop(0)]
            while together[0].mode.startswith("grouped") and calls and calls[0].mode.startswith("grouped"):
                together.append(calls.pop(0))
            if together[0].mode.startswith("grouped"):
                with self.comm.group():
                    checks = [self.make(call) for call in together]
                for check in checks:
                    if check is not None:
                        check()
            else:
                check = self.make(together[0])
                if check is not None:
                    check()
            while self.open and self.rng.random() < 0.3:
                self.close_one()
        while self.open:
            self.close_one()
        return self.wrong

    def close_one(self) -> None:
        work, check = self.open.pop(self.rng.randrange(len(self.open)))
        if self.rng.random() < 0.5:
            while not work.done():
                pass
        work.wait()
        assert work.exception() is None
        check()

    def make(self, call: Planned) -> Any:
        """Make a call; its check, if it is to be looked at now."""
        if call.forms is None:
            return self.message(call)
        comm, rank = self.comm, self.comm.rank
        collective = call.forms[0].agreed()
        inputs = inputs_of(collective, call.seed)
        factors = [number % 2 + 1 for number in range(comm.nranks)]
        mine = invocation(call.forms[rank], rank, inputs[rank], factors[rank])
        premul = collective.op is ReduceKind.PREMUL_SUM
        wanted = reference(collective, inputs, factors if premul else None)[rank]

        def check() -> None:
            got = mine.output()
            if not equal(got, wanted):
                self.wrong.append(f"rank {rank}, {call}: {got} instead of {wanted}")
            if (damage := mine.damage()) is not None:
                self.wrong.append(f"rank {rank}, {call}: {damage}")

        if call.mode == "persistent":
            self.persistent(mine, check)
            return None
        background = call.mode.endswith("async")
        work = getattr(comm, mine.name)(*mine.args, async_op=background)
        assert (work is None) is not background
        if background:
            self.open.append((work, check))
            return None
        return check

    def persistent(self, mine: Invocation, check: Any) -> None:
        with getattr(self.comm, f"{mine.name}_init")(*mine.args) as request:
            for turn in range(3):
                request.start()
                if turn == 1:
                    self.comm.barrier()
                request.wait()
                check()
                mine.reset()

    def message(self, call: Planned) -> Any:
        comm, background = self.comm, call.mode.endswith("async")
        right, left = (comm.rank + 1) % comm.nranks, (comm.rank - 1) % comm.nranks
        count = call.seed % 300
        mine, theirs = np.full(count, comm.rank), np.full(count, -1)

        def check() -> None:
            if not (theirs == left).all():
                self.wrong.append(f"rank {comm.rank}, {call}: {theirs}")

        works: list[Work | None]
        if call.mode == "blocking" or call.seed % 3 == 0:
            works = [comm.send_recv(mine, theirs, right, left, async_op=background)]
        else:
            works = [comm.send(mine, right, async_op=background), comm.recv(theirs, left, async_op=background)]
        if not background:
            return check
        *early, last = works
        self.open += [(work, lambda: None) for work in early]
        self.open.append((last, check))
        return None


@given(data=st.data())
@settings(max_examples=EXAMPLES, phases=(Phase.generate,))
def test_random_calls_in_every_mode_equal_numpy(data: st.DataObject) -> None:
    topology: Topology = data.draw(strategies.topologies(max_clusters=3, max_ranks=3, vendor="ucx"))
    calls = data.draw(st.lists(planned(topology.nranks), min_size=2, max_size=9))
    seed = data.draw(st.integers(0, 1 << 16))
    for wrong in run_threads(topology, lambda comm: Player(comm, seed).play(calls), seed=seed, eager_nbytes=64):
        assert wrong == []
