"""Messages from rank to rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from hetcomm._ext import ucp
from hetcomm.calls.arguments import refuse_overlap
from hetcomm.errors import HetcommError
from hetcomm.methods.base import Methods
from hetcomm.transport.base import Request
from hetcomm.types import ArrayLike
from hetcomm.waiting.waiting import Mover
from hetcomm.works.pointtopoint import PointToPoint
from hetcomm.works.refusals import checking
from hetcomm.works.work import Message, MessageWork, Work

__all__ = ["Messages"]


class Messages(Methods):
    """Point-to-point communication of a communicator.

    Messages of one (sender, receiver, tag) arrive in the order sent, and are taken in the order of the receives. A
    refused argument is a matter of this rank alone: nothing was sent, and no other rank is told.
    """

    _points: PointToPoint
    _ledger: ucp.Ledger
    _active: Sequence[
        Mover
    ]  # with calls in the background, no message may take the short way, which does not move them

    def send(
        self,
        array: ArrayLike,
        peer: int,
        *,
        tag: int = 0,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Send `array` to `peer`; complete when it may be changed again, which can be before it arrives.

        Args:
            array: Any number of elements; the dtype is not checked against the receiver's.
            peer: The receiver; this rank itself only with `async_op` or in a group, since it would wait for itself.
            tag: From 0 to 2**24 - 1; a receive takes messages of its own tag only.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError: An argument cannot be used; nothing was sent, and only this rank knows.
            TransportError: UCX cannot send from that memory.
            CollectiveTimeoutError, PeerFailureError: The message may or may not arrive; the communicator can only be
                closed.
        """
        if timeout is None and async_op is False and not self._ledger.is_slow and not self._active:
            try:
                outcome = self._points.try_send(array, peer, tag)
            except HetcommError as error:
                self._end_message(error, peer)
            if outcome:
                self._go_on("send", outcome)
                return None
        return self._message("send", (("array", array, peer, True),), tag, stream, async_op, timeout)

    def recv(
        self,
        out_array: ArrayLike,
        peer: int,
        *,
        tag: int = 0,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Receive from `peer` into `out_array`, which the message must fill; complete when it has arrived.

        Args:
            out_array: Exactly as many bytes as are sent.
            peer, tag, stream, async_op, timeout: As for `send`.

        Raises:
            UsageError: An argument cannot be used; nothing was received, and only this rank knows.
            TransportError: The message was longer or shorter; it is consumed, and the array undefined. The communicator
                stays usable.
            CollectiveTimeoutError, PeerFailureError: The array is undefined; the communicator can only be closed.
        """
        if timeout is None and async_op is False and not self._ledger.is_slow and not self._active:
            try:
                outcome = self._points.try_recv(out_array, peer, tag)
            except HetcommError as error:
                self._end_message(error, peer)
            if outcome:
                self._go_on("recv", outcome)
                return None
        return self._message("recv", (("out_array", out_array, peer, False),), tag, stream, async_op, timeout)

    def send_recv(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike,
        peer: int,
        source: int | None = None,
        *,
        tag: int = 0,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Send `in_array` to `peer` and receive from `source` into `out_array` at the same time.

        Its two messages match the `send` and `recv` of other ranks too.

        Args:
            in_array: What is sent.
            out_array: Exactly as many bytes as are sent to this rank; it must not overlap `in_array`.
            peer: The receiver; it may be this rank itself.
            source: The sender of what is received; `peer` unless given.
            tag: Of both messages, as for `send`.
            stream, async_op, timeout: As for `send`.

        Raises:
            UsageError, TransportError, CollectiveTimeoutError, PeerFailureError: As for `send` and `recv`.
        """
        if timeout is None and async_op is False and not self._ledger.is_slow and not self._active:
            try:
                outcome = self._points.try_send_recv(in_array, out_array, peer, peer if source is None else source, tag)
            except HetcommError as error:
                self._end_message(error, peer if source is None or self._points.concerns(error, peer) else source)
            if outcome:
                self._go_on("send_recv", outcome)
                return None
        both = (
            ("in_array", in_array, peer, True),
            ("out_array", out_array, peer if source is None else source, False),
        )
        return self._message("send_recv", both, tag, stream, async_op, timeout)

    def _message(
        self,
        name: str,
        parts: Sequence[tuple[str, Any, Any, bool]],
        tag: Any,
        stream: Any,
        async_op: bool,
        timeout: float | None,
    ) -> Work | None:
        """Make a work of one or two messages, each given as argument's name, array, peer and direction."""
        engine, points = self._engine, self._points
        engine.enter()
        engine.settle()
        with checking(name, self._rank):
            async_op = bool(async_op)
            seconds = engine.seconds(timeout)
            alone = len(parts) == 1 and not async_op and engine.group is None
            messages: list[Message] = []
            for argument, array, peer, is_send in parts:
                who = "peer" if is_send or len(parts) == 1 else "source"
                messages.append(points.prepare(array, peer, tag, is_send=is_send, names=(argument, who), alone=alone))
            if len(messages) == 2:
                refuse_overlap(messages[0].memory, messages[1].memory, "since both are in use at once", self._rank)
            order = self._order([message.memory for message in messages], None, stream)
        with engine.lock:
            return engine.launch(MessageWork(engine, points, name, messages, seconds, order), None, async_op=async_op)

    def _go_on(self, name: str, outcome: bool | Sequence[tuple[Message, Request]]) -> None:
        """Wait for what the short way has begun and not ended, under the rules of all works."""
        if isinstance(outcome, bool):
            return
        engine = self._engine
        with engine.lock:
            work = MessageWork(engine, self._points, name, [message for message, _ in outcome], engine.seconds(None))
            engine.go_on(work, [*outcome])

    def _end_message(self, error: HetcommError, peer: int) -> NoReturn:
        told = self._points.explain(error, peer)
        if self._points.is_fatal(error):
            told = self._engine.lose(told)
        raise told from error
