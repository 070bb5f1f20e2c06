"""A program under construction: what the planners of this room write their steps with.

The steps that concern other ranks only are left out here, so that a planner can be read as what the whole cluster
does, and yet costs only what this rank does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

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

__all__ = ["SMALL_BYTES", "Builder", "Place"]

SMALL_BYTES = 16 << 10
"""Up to this size one vendor call on more data is better than several on less."""

Place = Callable[[int, int], Slice]
"""Where on this rank elements `start` to `stop` of a region lie."""


# The ranks of a cluster make the same calls, and those of one chunk are those of the next.
_vendor_collective = lru_cache(maxsize=4096)(Collective)


class Builder:
    """Collects the steps of `rank` for `collective`, which may be a part of the collective `whole`."""

    def __init__(self, collective: Collective, rank: int, whole: Collective | None = None) -> None:
        self.collective = collective
        self.rank = rank
        self.whole = whole or collective
        self._steps: list[Step] = []
        self._scratch_count = 0
        self._spare: list[Slice] = []
        self._lent: list[Slice] = []
        self._packed_output: Slice | None = None
        self._settled: Slice | None = None

    @property
    def op(self) -> ReduceKind:
        """The binary operation underneath the collective's op."""
        op = self.collective.op
        return ReduceKind.SUM if op is None else op.combining

    def program(self, algorithm: str) -> Program:
        """The program with the steps so far."""
        if self._packed_output is not None:
            self._unpack(self._packed_output)
            self._packed_output = None
        return Program(self.rank, self.collective, tuple(self._steps), self._scratch_count, algorithm)

    def scratch(self, count: int) -> Slice:
        """Scratch space of its own; space that was released is used again where it is long enough."""
        for index, spare in enumerate(self._spare):
            if spare.count >= count:
                found = self._spare.pop(index)
                break
        else:
            found = Slice(Buffer.SCRATCH, self._scratch_count, count)
            self._scratch_count += count
        self._lent.append(found)
        return found.part(0, count)

    def lent(self) -> list[Slice]:
        """The scratch given out since this was last called, to be handed to `release`."""
        found, self._lent = self._lent, []
        return found

    def release(self, lent: list[Slice]) -> None:
        """Nothing written later reads this scratch: steps that follow may use it for something else."""
        self._spare.extend(lent)

    def source(self) -> Slice:
        """The input of this rank, packed, multiplied by its factor where the op asks for that."""
        collective, rank = self.collective, self.rank
        buffer = Buffer.OUT if collective.in_place else Buffer.IN
        found = Slice(buffer, collective.in_offset(rank), collective.in_count(rank))
        if collective.in_displs is not None and found.count:
            found = self.scratch(found.count)
            packed = 0
            for offset, count in collective.in_blocks(rank):
                self.copy(Slice(buffer, offset, count), found.part(packed, count))
                packed += count
            if collective.in_place and collective.kind is CollectiveKind.SCATTER:
                self._settled = self.target()  # the root's own block, in an array that is only read
        if collective.op is not ReduceKind.PREMUL_SUM:
            return found
        writes = collective.kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.SCAN)  # all of the output, by adding
        work = Slice(Buffer.OUT, 0, found.count) if writes else self.scratch(found.count)
        self.copy(found, work, Scale.FACTOR)
        return work

    def target(self) -> Slice:
        """The output of this rank, packed: with displacements it is scratch, which `program` copies to its places."""
        collective, rank = self.collective, self.rank
        count = collective.out_count(rank)
        if collective.out_displs is None or not count:
            return Slice(Buffer.OUT, collective.out_offset(rank), count)
        if self._packed_output is None:
            self._packed_output = self.scratch(count)
        return self._packed_output

    def _unpack(self, packed: Slice) -> None:
        collective, rank, position = self.collective, self.rank, 0
        in_place = collective.in_place and collective.kind in (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER)
        for number, (offset, count) in enumerate(collective.out_blocks(rank)):
            if not (in_place and number == rank):
                self.copy(packed.part(position, count), Slice(Buffer.OUT, offset, count))
            position += count

    def copy(self, src: Slice, dst: Slice, scale: Scale | None = None) -> None:
        """A `Copy`, unless it changes nothing."""
        if dst.count and (src != dst or scale is not None) and dst != self._settled:
            self._steps.append(Copy(src, dst, scale))

    def average(self, src: Slice, dst: Slice) -> None:
        """Copy a finished sum to its place, divided by the number of ranks where the op asks for that."""
        self.copy(src, dst, Scale.AVERAGE if self.collective.op is ReduceKind.AVG else None)

    def alone(self) -> None:
        """The whole collective of a single rank: a copy."""
        source, target = self.source(), self.target()
        self.average(source, target)
        self.normalise(target)

    def normalise(self, target: Slice) -> None:
        """Make what a logical op has not combined with anything 0 or 1, which combining it with the identity does;
        nothing for other ops."""
        op = self.collective.op
        if op is not None and op.is_logical and target.count:
            neutral = self.scratch(target.count)
            self.fill(neutral)
            self.reduce(neutral, target)

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
        collective = _vendor_collective(kind, nranks, count, self.collective.dtype, op, root, in_place)
        self._steps.append(VendorCall(comm, collective, None if in_place else src, dst))

    def home_reduce(self, cluster: Cluster, source: Slice, shares: Sequence[Share], place: Place) -> None:
        """The sum of `source` over the ranks of the cluster, each share at its rank, in `place`.

        A tiling takes one reduce_scatter, a few elements one all_reduce, and any other division one reduce for each
        share. `place` may be where the share lies in `source`.
        """
        comm, ranks, me = cluster.home_id, cluster.ranks, self.rank
        if len(ranks) == 1:
            for share in shares:
                self.copy(source.part(share.start, share.count), place(share.start, share.stop))
            return
        count = tile_count(shares, ranks)
        if count:
            first = ranks.index(me) * count
            dst = place(first, first + count)
            if dst.overlaps(source):
                dst = source
            self.vendor(comm, len(ranks), CollectiveKind.REDUCE_SCATTER, count, src=source, dst=dst)
        elif len(shares) > 1 and self._is_small(source.count):
            total = self.scratch(source.count)
            self.vendor(comm, len(ranks), CollectiveKind.ALL_REDUCE, source.count, src=source, dst=total)
            for share in shares:
                if share.rank == me:
                    self.copy(total.part(share.start, share.count), place(share.start, share.stop))
        else:
            for share in shares:
                mine = place(share.start, share.stop) if share.rank == me else None
                src, root = source.part(share.start, share.count), ranks.index(share.rank)
                self.vendor(comm, len(ranks), CollectiveKind.REDUCE, share.count, src=src, dst=mine, root=root)

    def home_spread(self, cluster: Cluster, region: Slice, shares: Sequence[Share]) -> None:
        """Give every rank of the cluster all of `region`, of which each rank holds its share, all at one place.

        A tiling takes one all_gather, a few elements of many ranks one all_gather of equal blocks by way of scratch,
        and any other division one broadcast for each share.
        """
        comm, ranks, me = cluster.home_id, cluster.ranks, self.rank
        if len(ranks) == 1:
            return
        count = tile_count(shares, ranks)
        if count:
            mine = region.part(ranks.index(me) * count, count)
            self.vendor(comm, len(ranks), CollectiveKind.ALL_GATHER, count, src=mine, dst=region)
            return
        width = max((share.count for share in shares), default=0)
        if len({share.rank for share in shares}) == len(shares) > 2 and self._is_small(width * len(ranks)):
            self._spread_padded(cluster, region, shares, width)
            return
        for share in shares:
            part = region.part(share.start, share.count)
            src, root = part if share.rank == me else None, ranks.index(share.rank)
            self.vendor(comm, len(ranks), CollectiveKind.BROADCAST, share.count, src=src, dst=part, root=root)

    def _spread_padded(self, cluster: Cluster, region: Slice, shares: Sequence[Share], width: int) -> None:
        """Every rank gives a block of `width` elements, of which its share is the beginning."""
        ranks, blocks = cluster.ranks, self.scratch(width * len(cluster.ranks))
        mine = blocks.part(ranks.index(self.rank) * width, width)
        for share in shares:
            if share.rank == self.rank:
                self.copy(region.part(share.start, share.count), mine.part(0, share.count))
        self.vendor(cluster.home_id, len(ranks), CollectiveKind.ALL_GATHER, width, src=mine, dst=blocks)
        for share in shares:
            if share.rank != self.rank:
                block = blocks.part(ranks.index(share.rank) * width, share.count)
                self.copy(block, region.part(share.start, share.count))

    def _is_small(self, count: int) -> bool:
        return count * self.collective.dtype.itemsize <= SMALL_BYTES
