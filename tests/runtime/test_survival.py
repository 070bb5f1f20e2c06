"""Who goes on: the state machine under every order of frames, with deaths in the middle of anything and late news."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.agreement.control import Frame
from hetcomm.agreement.survival import Decision, Survival

MADE = b"0123456789abcdef"


class Killed(Exception):
    """The rank ends here, in the middle of what it does."""


class World:
    """Ranks, and frames on their way between them; those from one rank to another stay in order."""

    def __init__(self, nranks: int, draw: random.Random, fatal: float) -> None:
        self.nranks, self.draw, self.fatal = nranks, draw, fatal
        self.ways: dict[tuple[int, int], list[Frame]] = {}
        self.dead: set[int] = set()
        self.doomed: set[int] = set()  # may die
        self.ends = [Survival(rank, nranks, self._sender(rank)) for rank in range(nranks)]

    def living(self) -> list[int]:
        return [rank for rank in range(self.nranks) if rank not in self.dead]

    def _sender(self, source: int) -> Callable[[Frame, Iterable[int]], None]:
        def send(frame: Frame, ranks: Iterable[int]) -> None:
            targets = list(ranks)
            self.draw.shuffle(targets)
            for rank in targets:
                if source in self.doomed and self.draw.random() < self.fatal:
                    raise Killed
                self.ways.setdefault((source, rank), []).append(Frame.unpack(frame.pack(), self.nranks))

        return send

    def act(self, rank: int, what: Callable[[], None]) -> None:
        """Let a rank do something, which it may not survive; some of what it has sent may be lost with it."""
        try:
            what()
        except Killed:
            self.dead.add(rank)
            self.doomed.discard(rank)
            for way, frames in self.ways.items():
                if rank == way[0]:
                    del frames[self.draw.randint(0, len(frames)) :]

    def step(self) -> bool:
        """Let a frame arrive, or a rank learn of a death; False if nothing is left to happen."""
        news: list[tuple[int, Callable[[], None]]] = []
        for (_, rank), frames in self.ways.items():
            if frames and rank not in self.dead:
                news.append((rank, lambda f=frames, r=rank: self.ends[r].record(f.pop(0))))  # type: ignore[misc]
        for rank in self.living():
            news += [
                (rank, lambda r=rank, d=dead: self.ends[r].lose({d}))  # type: ignore[misc]
                for dead in self.dead - self.ends[rank].lost
            ]
        if not news:
            return False
        self.act(*self.draw.choice(news))
        return True


@given(st.integers(1, 6), st.integers(0, (1 << 60) - 1))
def test_all_that_live_decide_the_same_in_every_round(nranks: int, seed: int) -> None:
    for more in range(20):
        play(nranks, random.Random(seed + more))


@pytest.mark.parametrize(("nranks", "seed"), [(6, 23824), (6, 14), (4, 32)])  # where half of a rule was not enough
def test_deaths_of_leaders_that_have_decided(nranks: int, seed: int) -> None:
    play(nranks, random.Random(seed))


def test_a_leader_takes_for_lost_whom_another_does() -> None:
    world = World(3, random.Random(1), 0.0)
    world.ends[1].lose({2})
    for rank in (0, 1):
        world.ends[rank].begin(0, MADE)
    while world.step():
        pass
    assert [world.ends[rank].decision(0) for rank in (0, 1)] == [Decision(frozenset({2}), True)] * 2


@given(st.integers(2, 6), st.integers(0, (1 << 60) - 1))
def test_where_the_living_are_taken_for_lost_nobody_goes_on_with_one_that_goes_elsewhere(
    nranks: int, seed: int
) -> None:
    for more in range(20):
        doubt(nranks, random.Random(seed + more))


def doubt(nranks: int, draw: random.Random) -> None:
    """Ranks die, and are taken for lost though they live; the others make what they have decided on, as in `shrink`."""
    world = World(nranks, draw, 0.1)
    world.doomed = {rank for rank in range(nranks) if draw.random() < 0.3}
    begun, goes_on = dict.fromkeys(range(nranks), -1), {}  # by rank: the last round, and with whom it goes on

    for _ in range(2000):
        going = [rank for rank in world.living() if rank not in goes_on and not world.ends[rank].is_left_out]
        if going and draw.random() < 0.03:
            one, other = draw.choice(going), draw.randrange(nranks)
            world.act(one, lambda r=one, d=other: world.ends[r].lose({d}))  # type: ignore[misc]
        ready = [rank for rank in going if begun[rank] < 0 or world.ends[rank].decision(begun[rank]) is not None]
        if ready and draw.random() < 0.3:
            rank = draw.choice(ready)
            number, decision = begun[rank], world.ends[rank].decision(begun[rank])
            if (
                number > 0
                and decision is not None
                and decision.well
                and decision.lost == lost_before(world, rank, number)
            ):
                goes_on[rank] = decision.lost
                continue
            same = [
                other not in world.dead and begun[other] >= number and world.ends[other].decision(number) == decision
                for other in range(nranks)
                if decision is not None and other not in decision.lost
            ]
            made = bytes(sorted(decision.lost)).ljust(16, b"-") if decision is not None and all(same) else b""
            if made or number < 0 or draw.random() < 0.1:  # else it still tries
                begun[rank] += 1
                world.act(rank, lambda r=rank, n=number + 1, m=made: world.ends[r].begin(n, m))  # type: ignore[misc]
        elif not world.step() and not going:
            break
    for one in goes_on.keys() - world.dead:
        for other in goes_on.keys() - world.dead - goes_on[one] - {one}:
            assert goes_on[one] == goes_on[other] or one in goes_on[other]


def lost_before(world: World, rank: int, number: int) -> frozenset[int]:
    before = world.ends[rank].decision(number - 1)
    assert before is not None
    return before.lost


def play(nranks: int, draw: random.Random) -> None:
    """Three rounds, with deaths; the draws decide what happens in which order."""
    world = World(nranks, draw, draw.choice([0.02, 0.2, 0.5]))
    absent = {rank for rank in range(nranks) if draw.random() < 0.1}
    world.doomed = {rank for rank in range(nranks) if draw.random() < 0.5}
    ill = {(n, rank) for n in range(3) for rank in range(nranks) if draw.random() < 0.1}
    todo: dict[int, int] = dict.fromkeys(range(nranks), 0)  # by rank: the round that it begins next
    decided: dict[int, dict[int, Decision]] = {0: {}, 1: {}, 2: {}}
    while True:
        for rank in world.living():
            for number, decisions in decided.items():
                decision = world.ends[rank].decision(number)
                if decision is not None and rank not in absent:
                    assert decisions.setdefault(rank, decision) == decision
        ready = [
            rank
            for rank, number in todo.items()
            if rank not in world.dead and number < 3 and (number == 0 or rank in decided[number - 1])
        ]
        if ready and draw.random() < 0.3:
            rank = draw.choice(ready)
            if rank in absent:
                todo[rank] = 3
                world.act(rank, world.ends[rank].stay_out)
            else:
                number = todo[rank]
                todo[rank] += 1
                made = b"" if (number, rank) in ill else MADE
                world.act(rank, lambda r=rank, n=number, m=made: world.ends[r].begin(n, m))  # type: ignore[misc]
        elif not world.step() and not ready:
            break
    taking_part = {rank for rank in world.living() if rank not in absent}
    for number, decisions in decided.items():
        assert taking_part <= decisions.keys(), f"some never learn how round {number} ended"
        different = {decisions[rank] for rank in taking_part}
        assert len(different) <= 1, different
        for decision in different:
            assert decision.lost <= world.dead | absent, "one that lives and takes part is taken for lost"
            assert not (decision.well and any((number, rank) in ill for rank in taking_part))
