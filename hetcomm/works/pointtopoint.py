"""Sending and receiving: the short way for NumPy arrays, straight into the transport, and the general way."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

from numpy import ndarray

from hetcomm.calls.buffers import carried
from hetcomm.calls.buffers import memory as memory_of
from hetcomm.errors import CollectiveTimeoutError, HetcommError, PeerFailureError, TransportError, UsageError
from hetcomm.execution import tags
from hetcomm.topology.model import Topology
from hetcomm.transport.base import QuickTransport, Request, Transport
from hetcomm.works.work import Message

__all__ = ["PointToPoint"]

_MAX_TAG = tags.MAX_USER_TAG


class PointToPoint:
    """The messages of one rank of a communicator.

    Attributes:
        sent_between_clusters: Bytes this rank has sent to ranks of other clusters.
        outstanding: Messages that it has sent or tried to, less those that it has received.
        transport: Carries them.
    """

    def __init__(
        self,
        transport: Transport,
        peers: Sequence[int],
        rank: int,
        context: int,
        timeout: float,
        topology: Topology,
    ) -> None:
        self.sent_between_clusters = self.outstanding = 0
        self.transport = transport
        self._peers = tuple(peers)
        self._rank, self._nranks = rank, len(self._peers)
        self._timeout = timeout
        self._send_tag = tags.point_to_point(context, rank)
        self._recv_tags = tuple(tags.point_to_point(context, peer) for peer in range(self._nranks))
        here = topology.cluster_index(rank)
        self._foreign = tuple(topology.cluster_index(peer) != here for peer in range(self._nranks))
        # The short way, where the transport has one: by rank, the transport's peer, the tag of what it sends to this
        # rank, and whether it is in another cluster.
        self._routes: dict[int, tuple[int, int, bool]] = {}
        if isinstance(transport, QuickTransport):
            self._quick: QuickTransport = transport
            routes = zip(self._peers, self._recv_tags, self._foreign, strict=True)
            self._routes = {peer: route for peer, route in enumerate(routes) if peer != rank}

    def try_send(self, array: Any, peer: Any, tag: Any) -> bool | Sequence[tuple[Message, Request]]:
        """Send a NumPy array the short way.

        Returns:
            False if that cannot be taken, or `prepare` would refuse an argument; True if it is done; else what is under
            way, for a work to go on with.
        """
        if type(array) is not ndarray or type(peer) is not int or not carried(array.dtype):
            return False
        route = self._routes.get(peer)
        if route is None or type(tag) is not int or not 0 <= tag <= _MAX_TAG:
            return False
        outcome = self._quick.quick_send(array, route[0], self._send_tag | tag)
        if outcome is NotImplemented:
            return False
        self.outstanding += 1
        if outcome is None:
            if route[2]:
                self.sent_between_clusters += array.nbytes
            return True
        return [(self._message(array, peer, tag, is_send=True), outcome)]

    def try_recv(self, array: Any, peer: Any, tag: Any) -> bool | Sequence[tuple[Message, Request]]:
        """Receive into a NumPy array the short way; returns what `try_send` does."""
        if type(array) is not ndarray or type(peer) is not int or not carried(array.dtype):
            return False
        route = self._routes.get(peer)
        if route is None or type(tag) is not int or not 0 <= tag <= _MAX_TAG:
            return False
        outcome = self._quick.quick_recv(array, route[0], route[1] | tag)
        if type(outcome) is int:
            self.outstanding -= 1
            if outcome != array.nbytes:
                self._refuse_length(outcome, array.nbytes, peer)
            return True
        return outcome is not NotImplemented and [(self._message(array, peer, tag, is_send=False), outcome)]

    def try_send_recv(
        self, in_array: Any, out_array: Any, peer: Any, source: Any, tag: Any
    ) -> bool | Sequence[tuple[Message, Request]]:
        """Do both the short way; returns what `try_send` does, and False if the arrays overlap."""
        if type(in_array) is not ndarray or type(out_array) is not ndarray:
            return False
        if type(peer) is not int or type(source) is not int or type(tag) is not int or not 0 <= tag <= _MAX_TAG:
            return False
        there, here = self._routes.get(peer), self._routes.get(source)
        if there is None or here is None or not carried(in_array.dtype) or not carried(out_array.dtype):
            return False
        if not in_array.flags.c_contiguous or not out_array.flags.carray:  # the general way says what is wrong
            return False
        outcome = self._quick.quick_exchange(
            in_array, there[0], self._send_tag | tag, out_array, here[0], here[1] | tag
        )
        if outcome is NotImplemented:
            return False
        if type(outcome) is tuple:
            self.outstanding += 1
            messages = (
                self._message(out_array, source, tag, is_send=False),
                self._message(in_array, peer, tag, is_send=True),
            )
            return list(zip(messages, outcome, strict=True))
        if there[2]:
            self.sent_between_clusters += in_array.nbytes
        if outcome != out_array.nbytes:
            self._refuse_length(outcome, out_array.nbytes, source)
        return True

    def _message(self, array: Any, peer: int, tag: int, *, is_send: bool) -> Message:
        """A message whose arguments the short way has checked."""
        name = "in_array" if is_send else "out_array"
        return Message(memory_of(array, argument=name, rank=self._rank, writable=not is_send), peer, tag, is_send)

    def prepare(
        self, array: Any, peer: Any, tag: Any, *, is_send: bool, names: tuple[str, str], alone: bool
    ) -> Message:
        """Check everything.

        Args:
            array, peer, tag, is_send: The message.
            names: Those of the arguments that are the array and the peer.
            alone: Whether the caller blocks in this message alone, so that it cannot be one to this rank itself.

        Raises:
            UsageError: An argument cannot be used.
            TransportError: The transport does not reach that memory.
        """
        rank, (name, who) = self._rank, names
        peer = self._number(who, peer, self._nranks - 1, rank)
        tag = self._number("tag", tag, tags.MAX_USER_TAG, rank)
        if alone and peer == rank:
            raise UsageError(
                f"argument {who!r} is {peer}, this rank itself, which would wait for its own message",
                remedy="Copy the array, or use send_recv, async_op=True or a group.",
                rank=rank,
            )
        found = memory_of(array, argument=name, rank=rank, writable=not is_send)
        if not self.transport.supports(found.kind):
            raise TransportError(
                f"argument {name!r} is in {found.kind.value} memory, which the UCX in use cannot reach",
                remedy="Install a UCX built for that device (pip install libucx-cu12), and import hetcomm before "
                "mpi4py; or pass a host array. 'hetcomm doctor' shows which UCX is in use.",
                rank=rank,
            )
        return Message(found, peer, tag, is_send)

    def post(self, message: Message) -> Request:
        """Start a message; errors are the transport's own, see `explain`."""
        memory, peer = message.memory, message.peer
        if message.is_send:
            self.outstanding += 1
            return self.transport.send(memory.address, memory.nbytes, self._peers[peer], self._send_tag | message.tag)
        return self.transport.recv(
            memory.address, memory.nbytes, self._peers[peer], self._recv_tags[peer] | message.tag
        )

    def account(self, message: Message, request: Request) -> None:
        """A message has gone or come.

        Raises:
            TransportError: It has not the length it should have.
        """
        if message.is_send:
            self.sent_between_clusters += message.memory.nbytes if self._foreign[message.peer] else 0
            return
        self.outstanding -= 1
        if request.nbytes != message.memory.nbytes:
            self._refuse_length(request.nbytes, message.memory.nbytes, message.peer)

    def concerns(self, error: HetcommError, peer: int) -> bool:
        """Whether the transport's error is about its peer that is rank `peer` here."""
        return error.peer == self._peers[peer]

    def explain(self, error: HetcommError, peer: int) -> HetcommError:
        """The transport's error in terms of this communicator's ranks."""
        message = error.message
        if self._peers[peer] != peer:  # the transport numbers the job's ranks
            message = f"{message} (peer {self._peers[peer]} of the job is rank {peer} here)"
        return type(error)(message, remedy=error.remedy, rank=self._rank, peer=peer, step=error.step)

    def is_fatal(self, error: HetcommError) -> bool:
        """Whether the communicator is unusable after it."""
        return isinstance(error, (CollectiveTimeoutError, PeerFailureError))

    def _refuse_length(self, got: int, wanted: int, peer: int) -> NoReturn:
        raise TransportError(
            f"the message from rank {peer} has {got} bytes, but argument 'out_array' {wanted}",
            remedy="Receive into an array of the size that is sent.",
            rank=self._rank,
            peer=peer,
        )

    def _number(self, name: str, value: Any, highest: int, rank: int) -> int:
        try:
            number = operator.index(value)
        except TypeError:
            number = -1
        if isinstance(value, bool) or not 0 <= number <= highest:
            raise UsageError(
                f"argument {name!r} is {value!r}", remedy=f"Pass an integer from 0 to {highest}.", rank=rank
            )
        return number
