"""A program under construction: what the planners of this room write their steps with.

The steps that concern other ranks only are left out here, so that a planner can be read as what the whole cluster
does, and yet costs only what this rank does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import (
    Buffer,
    CommId,
    Copy,
    Fill,
    Program,
    Recv,
    Reduce,
    Scale,
    Send,
    Slice,
    Step,
    VendorCall,
)
from hetcomm.topology.layout import Share, messages, tile_count
from hetcomm.topology.model import Cluster
from hetcomm.types import ReduceKind

__all__ = ["Builder", "Place"]

Place = Callable[[int, int], Slice]
"""Where on this rank elements `start` to `stop` of a region lie."""


class Builder:
    """Collects the steps of `rank` for `collective`."""

    def __init__(self, collective: Collective, rank: int) -> None:
        self.collective = collective
        self.rank = rank
        self._steps: list[Step] = []
        self._scratch_count = 0

    @property
    def op(self) -> ReduceKind:
        """The binary operation underneath the collective's op."""
        op = self.collective.op
        return ReduceKind.SUM if op in (None, ReduceKind.AVG, ReduceKind.PREMUL_SUM) else op

    def program(self, algorithm: str) -> Program:
        """The program with the steps so far."""
        return Program(self.rank, self.collective, tuple(self._steps), self._scratch_count, algorithm)

    def scratch(self, count: int) -> Slice:
        """Scratch space of its own."""
        found = Slice(Buffer.SCRATCH, self._scratch_count, count)
        self._scratch_count += count
        return found

    def source(self) -> Slice:
        """The input of this rank, multiplied by its factor where the op asks for that."""
        collective, rank = self.collective, self.rank
        buffer = Buffer.OUT if collective.in_place else Buffer.IN
        found = Slice(buffer, collective.in_offset(rank), collective.in_count(rank))
        if collective.op is not ReduceKind.PREMUL_SUM:
            return found
        whole = collective.kind is CollectiveKind.ALL_REDUCE
        work = Slice(Buffer.OUT, 0, found.count) if whole else self.scratch(found.count)
        self.copy(found, work, Scale.FACTOR)
        return work

    def target(self) -> Slice:
        """The output of this rank."""
        return Slice(Buffer.OUT, self.collective.out_offset(self.rank), self.collective.out_count(self.rank))

    def copy(self, src: Slice, dst: Slice, scale: Scale | None = None) -> None:
        """A `Copy`, unless it changes nothing."""
        if dst.count and (src != dst or scale is not None):
            self._steps.append(Copy(src, dst, scale))

    def average(self, src: Slice, dst: Slice) -> None:
        """Copy a finished sum to its place, divided by the number of ranks where the op asks for that."""
        self.copy(src, dst, Scale.AVERAGE if self.collective.op is ReduceKind.AVG else None)

    def fill(self, dst: Slice) -> None:
        """A `Fill` with the identity of the op, unless it is empty."""
        if dst.count:
            self._steps.append(Fill(dst, self.op))

    def reduce(self, src: Slice, dst: Slice) -> None:
        """`dst = dst op src`, unless they are empty."""
        if dst.count:
            self._steps.append(Reduce(src, dst, self.op))

    def send(self, src: Slice, peer: int, channel: int = 0) -> None:
        """A `Send`, unless it is empty."""
        if src.count:
            self._steps.append(Send(src, peer, channel))

    def recv(self, dst: Slice, peer: int, channel: int = 0) -> None:
        """A `Recv`, unless it is empty."""
        if dst.count:
            self._steps.append(Recv(dst, peer, channel))

    def send_shares(self, senders: Sequence[Share], receivers: Sequence[Share], place: Place, channel: int) -> None:
        """Send this rank's part of `senders` to those who handle it in `receivers`."""
        for start, stop, sender, receiver in messages(senders, receivers):
            if sender == self.rank != receiver:
                self.send(place(start, stop), receiver, channel)

    def recv_shares(self, senders: Sequence[Share], receivers: Sequence[Share], place: Place, channel: int) -> None:
        """Receive this rank's part of `receivers` from those who handle it in `senders`."""
        for start, stop, sender, receiver in messages(senders, receivers):
            if receiver == self.rank != sender:
                self.recv(place(start, stop), sender, channel)

    def vendor(
        self,
        comm: CommId,
        nranks: int,
        kind: CollectiveKind,
        count: int,
        *,
        src: Slice | None,
        dst: Slice | None,
        root: int | None = None,
    ) -> None:
        """One vendor call; in place where `src` lies in `dst` at the place that the collective says."""
        if count == 0:
            return
        op = self.op if kind.reduces else None
        in_place = src is not None and dst is not None and src.overlaps(dst)
        collective = Collective(kind, nranks, count, self.collective.dtype, op, root, in_place)
        self._steps.append(VendorCall(comm, collective, None if in_place else src, dst))

    def home_reduce(self, cluster: Cluster, source: Slice, shares: Sequence[Share], place: Place) -> None:
        """The sum of `source` over the ranks of the cluster, each share at its rank, in `place`.

        A tiling takes one reduce_scatter, and one reduce for what is left over; any other division one reduce for
        each share. `place` may be where the share lies in `source`.
        """
        comm, ranks, me = cluster.home_id, cluster.ranks, self.rank
        if len(ranks) == 1:
            for share in shares:
                self.copy(source.part(share.start, share.count), place(share.start, share.stop))
            return
        body = 0
        count = tile_count(shares, ranks)
        if count:
            body = count * len(ranks)
            first = ranks.index(me) * count
            whole, dst = source.part(0, body), place(first, first + count)
            if dst.overlaps(whole):
                dst = whole
            self.vendor(comm, len(ranks), CollectiveKind.REDUCE_SCATTER, count, src=whole, dst=dst)
        for share in shares:
            start = max(share.start, body)
            if start < share.stop:
                src = source.part(start, share.stop - start)
                mine = place(start, share.stop) if share.rank == me else None
                root = ranks.index(share.rank)
                self.vendor(comm, len(ranks), CollectiveKind.REDUCE, src.count, src=src, dst=mine, root=root)

    def home_spread(self, cluster: Cluster, region: Slice, shares: Sequence[Share]) -> None:
        """Give every rank of the cluster all of `region`, of which each rank holds its share, all at one place.

        A tiling takes one all_gather, and one broadcast for what is left over; any other division one broadcast for
        each share.
        """
        comm, ranks, me = cluster.home_id, cluster.ranks, self.rank
        if len(ranks) == 1:
            return
        body = 0
        count = tile_count(shares, ranks)
        if count:
            body = count * len(ranks)
            mine = region.part(ranks.index(me) * count, count)
            self.vendor(comm, len(ranks), CollectiveKind.ALL_GATHER, count, src=mine, dst=region.part(0, body))
        for share in shares:
            start = max(share.start, body)
            if start < share.stop:
                part = region.part(start, share.stop - start)
                root = ranks.index(share.rank)
                src = part if share.rank == me else None
                self.vendor(comm, len(ranks), CollectiveKind.BROADCAST, part.count, src=src, dst=part, root=root)
