"""Reductions that NCCL lacks or gets wrong, made of its all_gather and the device's own arithmetic, on one stream.

Piece by piece the vector of every rank is gathered in scratch memory, and whoever is due a result combines what was
gathered, in rank order; so all get the same bits. A rank receives (n-1)S bytes for a vector of S, where a ring would
have it receive 2(n-1)/n S: the same for two ranks, n/2 times more for n. Sends and receives would be cheaper, but NCCL
connects two ranks at their first message, in which the host waits for the peer, and keeps buffers for each such pair.
"""

from __future__ import annotations

from dataclasses import replace

from hetcomm.devices.base import Device, Event
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import Memory
from hetcomm.vendors.nccl_binding import Connection

__all__ = ["Detours"]

_BYTE = 1  # ncclUint8
_SCRATCH = 1 << 26  # bytes; what is gathered at a time


class Detours:
    """The detours of one communicator of at least two ranks, and their scratch memory.

    Args:
        device: Does the arithmetic, and has the memory.
        connection: The library's communicator.
        rank: This process's number in it.
        nranks: How many ranks it has.
    """

    def __init__(self, device: Device, connection: Connection, rank: int, nranks: int) -> None:
        self._device = device
        self._connection = connection
        self._rank = rank
        self._nranks = nranks
        self._scratch: Memory | None = None
        self._last: tuple[int, Event] | None = None  # the stream of the scratch memory's last user, and its end
        self._retired: list[tuple[Event, Memory]] = []

    def queue(self, collective: Collective, source: Memory, target: Memory | None, stream: int) -> None:
        """Queue a reduction of at least one element; in place, `target` is or lies in `source`.

        The memories are a rank's input and output, as `Collective.in_count` and `out_count` count them.
        """
        itemsize = collective.dtype.itemsize
        limit = max(1, _SCRATCH // (self._nranks * itemsize))
        scratch = self._borrow(self._nranks * min(limit, source.count) * itemsize, stream)
        # The run of the vector that this rank gets, combined.
        due = self._rank * collective.count if collective.kind is CollectiveKind.REDUCE_SCATTER else 0
        for first in range(0, source.count, limit):
            piece = source.part(first, min(limit, source.count - first))
            self._connection.queue("all_gather", piece.address, scratch.address, piece.nbytes, _BYTE, stream)
            if target is not None:
                begin, end = max(first, due), min(first + piece.count, due + target.count)
                gathered = replace(scratch, count=self._nranks * piece.count, dtype=collective.dtype)
                if begin < end:
                    self._combine(collective, gathered, begin - first, target.part(begin - due, end - begin), stream)
        self._last = stream, self._device.record(stream)

    def idle(self) -> bool:
        """Whether the device is done with all that was queued here."""
        self._drop_retired()
        return not self._retired and (self._last is None or self._last[1].done())

    def _combine(self, collective: Collective, gathered: Memory, first: int, target: Memory, stream: int) -> None:
        """Combine into `target` the elements from `first` on of each rank's share of what was gathered."""
        assert collective.op is not None  # it reduces
        share = gathered.count // self._nranks
        self._device.copy(gathered.part(first, target.count), target, stream)
        for rank in range(1, self._nranks):
            self._device.reduce(gathered.part(rank * share + first, target.count), target, collective.op, stream)

    def _borrow(self, nbytes: int, stream: int) -> Memory:
        """Scratch memory for what is queued on `stream` next: the last user's if it is large enough, after that one."""
        if self._scratch is None or self._scratch.nbytes < nbytes:
            if self._scratch is not None and self._last is not None:
                self._retired.append((self._last[1], self._scratch))
            self._drop_retired()
            self._scratch = self._device.allocate(1 << max(nbytes - 1, 255).bit_length())
            self._last = None
        elif self._last is not None and self._last[0] != stream:
            self._device.follow(stream, self._last[1])
        return self._scratch

    def _drop_retired(self) -> None:
        """Let go of scratch memory that the device is done with; the pool may hand it to other streams at once."""
        self._retired = [(event, memory) for event, memory in self._retired if not event.done()]
