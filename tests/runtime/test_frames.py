"""Whatever other ranks say: what a rank makes of it is a state or a typed error, never another one."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hetcomm._ext import ucp
from hetcomm.agreement.agreement import Agreement
from hetcomm.agreement.control import Frame, Leaving, Subject
from hetcomm.agreement.tickets import Intent, Ticket
from hetcomm.calls.buffers import memory
from hetcomm.communicator import Communicator
from hetcomm.errors import HetcommError, TransportError, UsageError

from .threads import clusters, run_threads

NRANKS = 3
PLANS = [Intent.of(text) for text in ("this", "that")]
FAR = 2**63 - 1


class FakeMailbox:
    """Gives what was put into it; what is sent is gone."""

    nranks = NRANKS

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.arrived: deque[Frame] = deque()

    def receive(self) -> Frame | None:
        return self.arrived.popleft() if self.arrived else None

    def send(self, frame: Frame, ranks: Iterable[int]) -> None:
        assert all(0 <= rank < NRANKS for rank in ranks)
        assert Frame.unpack(frame.pack(), NRANKS).subject is frame.subject

    def others(self) -> list[int]:
        return [rank for rank in range(NRANKS) if rank != self.rank]


class Still:
    """Moves nothing, and lets no time pass."""

    def progress(self) -> bool:
        return False

    def wait(self, *arguments: Any) -> bool:
        return False


frames = st.builds(
    Frame,
    st.sampled_from(Subject),
    st.integers(0, NRANKS - 1),
    st.integers(0, 4) | st.sampled_from([FAR - 1, FAR]),
    st.integers(0, 7) | st.just(255),
    st.sampled_from([plan.fingerprint for plan in PLANS]) | st.just(bytes(16)),
    st.text(max_size=3),
    st.frozensets(st.integers(0, NRANKS - 1)),
    st.none() | st.integers(0, NRANKS - 1),
    st.sampled_from([0, 1, -(2**63), FAR]),
)
events = st.lists(
    frames | st.sampled_from([*PLANS, "poll", "ready", "refuse", "over", "contradict", "leave", "close"]), max_size=12
)


@given(st.integers(0, NRANKS - 1), events)
@example(1, [Frame(Subject.NOTE, 0, FAR, 2)])
@example(1, [PLANS[0], Frame(Subject.REFUSED, 0, 0, 255)])
@example(0, [*(Frame(Subject.CLOSING, rank, rank) for rank in (0, 1, 2, 2)), Frame(Subject.SETTLED, 1, 0)])
def test_any_frames_at_any_time_give_a_state_or_a_typed_error(rank: int, said: list[Any]) -> None:
    mailbox = FakeMailbox(rank)
    agreement = Agreement(Still(), mailbox, ucp.Ledger())  # type: ignore[arg-type]
    tickets: list[Ticket] = []
    for event in [*said, "poll", "ready", "poll"]:
        with suppress(HetcommError):
            carry_out(event, mailbox, agreement, tickets)
    for ticket in tickets:
        assert ticket.error is None or isinstance(ticket.error, HetcommError)
    assert agreement.broken is None or isinstance(agreement.broken, str)


def carry_out(event: Any, mailbox: FakeMailbox, agreement: Agreement, tickets: list[Ticket]) -> None:
    if isinstance(event, Frame):
        mailbox.arrived.append(event)
        return
    if isinstance(event, Intent):
        tickets.append(agreement.open(event))
        return
    match event:
        case "poll":
            agreement.poll()
            agreement.desertion()
            for other in range(NRANKS):
                agreement.departure(other)
            list(agreement.unmet())
        case "ready":
            for ticket in tickets:
                if not agreement.ready(ticket):
                    agreement.lateness(ticket)
                    break
        case "refuse":
            agreement.refuse(UsageError("no"))
        case "over" if tickets:
            agreement.over(tickets.pop(0))
        case "contradict":
            agreement.contradict(0, (mailbox.rank + 1) % NRANKS, 7)
        case "leave":
            agreement.leave("failed", UsageError("no"))
        case "close":
            ended: Collection[int] = (0,)
            agreement.close(0.0, 0.0, ended=lambda: ended)


def test_leaving_for_a_reason_of_another_version_is_leaving() -> None:
    mailbox = FakeMailbox(1)
    agreement = Agreement(Still(), mailbox, ucp.Ledger())  # type: ignore[arg-type]
    mailbox.arrived.append(Frame(Subject.GONE, 0, 0, max(Leaving) + 1, text="is gone"))
    ticket = agreement.open(PLANS[0])
    agreement.poll()
    assert ticket.error is not None
    assert ticket.error.peer == 0


UNREADABLE = {
    "short": b"abc",
    "long": bytes(5000),
    "no subject": b"\xff" * 1024,
    "no text": bytes(Frame(Subject.NOTE, 1, 0, text="hello").pack()).replace(b"hello", b"\xff" * 5),
    "no call": bytes(Frame(Subject.NOTE, 1, FAR, 2).pack()).replace(FAR.to_bytes(8, "little"), b"\xff" * 8),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_ends_one_communicator_with_a_typed_error(kind: str) -> None:
    def job(whole: Communicator) -> tuple[HetcommError | None, list[float]]:
        part = whole.split(0, whole.rank)
        assert part is not None
        add(part)
        if whole.rank == 1:
            mailbox, transport = part._parts.mailbox, part._parts.job.transport
            data = bytearray(UNREADABLE[kind])
            address = memory(data, argument="frame", rank=1, writable=True).address
            request = transport.send(address, len(data), mailbox._peers[0], mailbox._tag)
            while not request.test():
                transport.progress()
        sums = [add(whole)]
        error = None
        try:
            add(part)
        except HetcommError as caught:
            error = caught
        sums.append(add(whole))
        return error, sums

    for rank, (error, sums) in enumerate(run_threads(clusters(2, 1), job)):
        assert sums == [NRANKS, NRANKS]
        if rank == 0:
            assert type(error) is TransportError
            assert "a control message cannot be read" in str(error)
        else:
            assert isinstance(error, TransportError)


def add(comm: Communicator) -> float:
    array = np.ones(5)
    comm.all_reduce(array)
    return float(array.mean())
