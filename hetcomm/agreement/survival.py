"""How the ranks that are left agree on who goes on: a state machine of one rank, which sends and is given frames.

Ranks learn of deaths at different times, and more may die meanwhile. So they agree in rounds, each of which ends on
every rank that lives with the same decision: who is lost, and whether all the others have made the same so far.

=========  ====================  ================================================================
frame      from                  meaning (call: the round)
=========  ====================  ================================================================
JOIN       each to its leader    I take part; ranks: whom I take for lost; flag 1: I have made
                                 something; fingerprint: what that is
LEADING    leader to who joined  I have come, too, and wait for the others
DECIDED    each to all           the decision: ranks and flag; number: whose it is
ABSENT     one to all            I take no part, now or later
=========  ====================  ================================================================

The *leader* of a rank is the lowest that it does not take for lost. A leader decides when it has heard from all whom it
does not take for lost: it takes for lost whoever any of them does. Whoever hears a decision passes it on before it acts
on it; so if one that lives acts on it, all hear it. A rank whose leader is lost turns to the next one, and heeds no
decision of an earlier leader any more, unless its leader has passed that on. If any that a leader does not take for
lost has passed a decision on, it may act on it already, and the leader decides the same: as the last one did. This is
Paxos with leaders for ballots, where every rank that is not lost must be heard.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from hetcomm.agreement.control import Frame, Subject

__all__ = ["Decision", "Survival"]


@dataclass(frozen=True, slots=True)
class Decision:
    """How a round ended.

    Attributes:
        lost: Who does not go on: the dead, those that cannot be reached, and those that take no part.
        well: Whether all others have made the same before the round.
    """

    lost: frozenset[int]
    well: bool


@dataclass(slots=True)
class _Round:
    begun: bool = False
    made: bytes = b""
    leader: int = -1  # no decision of a lower one counts
    led: bool = False  # whether it has come
    joined: dict[int, Frame] = field(default_factory=dict)
    heard: dict[int, Frame] = field(default_factory=dict)  # decisions, by who has passed them on
    decision: Decision | None = None


class Survival:
    """Who goes on, as one rank sees it.

    Args:
        rank, nranks: This process's number and how many there are.
        send: Sends a frame to some ranks; those that are dead need not get it.

    Attributes:
        lost: Whom this rank takes for lost.
        is_left_out: Whether others take this rank for lost.
    """

    def __init__(self, rank: int, nranks: int, send: Callable[[Frame, Iterable[int]], None]) -> None:
        self.lost: set[int] = set()
        self.is_left_out = False
        self._rank, self._nranks = rank, nranks
        self._send = send
        self._rounds: dict[int, _Round] = {}
        self._absent = False

    def begin(self, number: int, made: bytes = b"") -> None:
        """Take part in a round, the one before being over here.

        Args:
            number: The round's.
            made: 16 bytes that are equal where what was made since the last round is; none where that went wrong.
        """
        this = self._rounds.setdefault(number, _Round())
        this.begun, this.made = True, made
        self._follow(number, this)

    def decision(self, number: int) -> Decision | None:
        """How a round ended; None: it has not."""
        this = self._rounds.get(number)
        return None if this is None else this.decision

    def leader(self, number: int) -> tuple[int, bool]:
        """The leader of a round that this rank has begun, and whether that has come."""
        this = self._rounds[number]
        return this.leader, this.led or this.leader == self._rank

    def missing(self, number: int) -> frozenset[int]:
        """Whom this rank waits for in a round that it has begun."""
        this = self._rounds[number]
        if this.leader != self._rank:
            return frozenset({this.leader})
        return frozenset(range(self._nranks)) - self.lost - this.joined.keys() - this.heard.keys() - {self._rank}

    def lose(self, ranks: Collection[int]) -> None:
        """Some ranks are lost."""
        if not self.lost.issuperset(ranks):
            self.lost |= set(ranks) - {self._rank}
            for number, this in list(self._rounds.items()):
                self._follow(number, this)

    def stay_out(self) -> None:
        """This rank takes no part, now or later; telling it again does nothing."""
        if not self._absent:
            self._absent = True
            self._send(Frame(Subject.ABSENT, self._rank, 0), self._others())

    def record(self, frame: Frame) -> None:
        """Take in a frame."""
        if frame.subject is Subject.ABSENT:
            self.lose({frame.source})
            return
        number = frame.call
        self.is_left_out |= self._rank in frame.ranks
        this = self._rounds.setdefault(number, _Round())
        if frame.subject is Subject.LEADING:
            this.led |= frame.source == this.leader
        elif frame.subject is Subject.JOIN:
            this.joined[frame.source] = frame
            if this.leader == self._rank:
                self._answer(number, {frame.source})
            self._lead(number, this)
        elif this.decision is None:
            this.heard[frame.source] = frame
            self._heed(number, this)
            self._lead(number, this)

    def _others(self) -> Iterable[int]:
        return (rank for rank in range(self._nranks) if rank != self._rank)

    def _follow(self, number: int, this: _Round) -> None:
        """Turn to the leader, if it is another one than before; decide, if that is this rank and may."""
        if not this.begun or this.decision is not None:
            return
        leader = min(set(range(self._nranks)) - self.lost)
        if leader != this.leader:
            this.leader, this.led = leader, False
            if leader == self._rank:
                self._answer(number, this.joined)
            else:
                told = frozenset(self.lost)
                made = this.made or bytes(16)
                frame = Frame(Subject.JOIN, self._rank, number, int(bool(this.made)), made, ranks=told)
                self._send(frame, (leader,))
            self._heed(number, this)
        self._lead(number, this)

    def _answer(self, number: int, ranks: Iterable[int]) -> None:
        self._send(Frame(Subject.LEADING, self._rank, number), ranks)

    def _heed(self, number: int, this: _Round) -> None:
        """Decide as another leader has, if this rank may still heed that one."""
        heard = [each for each in this.heard.values() if each.source == this.leader or each.number >= this.leader]
        if heard and this.decision is None and this.leader != self._rank:
            self._adopt(number, this, heard[0])

    def _lead(self, number: int, this: _Round) -> None:
        """Decide, if this rank is the leader and has heard all."""
        if not this.begun or this.decision is not None or this.leader != self._rank:
            return
        told = frozenset[int]().union(*(frame.ranks for rank, frame in this.joined.items() if rank not in self.lost))
        if not self.lost.issuperset(told - {self._rank}):
            self.lose(told)  # which comes back here
        elif self.missing(number):
            return
        elif heard := [frame for rank, frame in this.heard.items() if rank not in self.lost]:
            self._adopt(number, this, max(heard, key=lambda frame: frame.number))
        else:
            joined = [frame for rank, frame in this.joined.items() if rank not in self.lost]
            well = bool(this.made) and all(frame.flag and frame.fingerprint == this.made for frame in joined)
            self._decide(number, this, Decision(frozenset(self.lost), well), self._rank)

    def _adopt(self, number: int, this: _Round, frame: Frame) -> None:
        """Decide what was decided before."""
        self._decide(number, this, Decision(frame.ranks, bool(frame.flag)), max(frame.number, this.leader))

    def _decide(self, number: int, this: _Round, decision: Decision, leader: int) -> None:
        this.decision = decision
        frame = Frame(Subject.DECIDED, self._rank, number, int(decision.well), ranks=decision.lost, number=leader)
        self._send(frame, self._others())
        self.lose(decision.lost)
