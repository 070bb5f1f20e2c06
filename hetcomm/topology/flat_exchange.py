"""Gather, scatter and all_to_all of one group of ranks over point-to-point alone.

N ranks, S elements are all blocks of a gather or scatter, or the input of a rank of an all_to_all; log is the
logarithm to base 2 rounded up. A latency is a message that must wait for another.

==========  ====================  =========  ====================================================
collective  algorithm             latencies  elements sent by a rank
==========  ====================  =========  ====================================================
gather      binomial tree         log N      S/N to S/2, none by the root
            direct                1          S/N, none by the root
scatter     binomial tree         log N      (S/2N) log N at most, (N-1)S/N by the root
            direct                1          (N-1)S/N by the root, else none
all_to_all  Bruck                 log N      (S/2) log N
            pairwise              1          (N-1)S/N
==========  ====================  =========  ====================================================

Small equal blocks take the plans of log N latencies: up to `SMALL_BYTES` in a tree, up to `BRUCK_BYTES` and for
`BRUCK_RANKS` or more in an all_to_all, whose blocks are copied log N times. In place, an all_to_all first copies
its input to scratch, S; else only the trees and Bruck take scratch, S/2 and S(1 + log N) at most.

Sources: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH", IJHPCA
19(1), 2005; J. Bruck et al., "Efficient Algorithms for All-to-All Communications", IEEE TPDS 8(11), 1997.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from hetcomm.schedule.steps import Slice
from hetcomm.topology.builder import SMALL_BYTES, Builder

__all__ = ["BRUCK_BYTES", "BRUCK_RANKS", "all_to_all", "gather", "scatter"]

BRUCK_BYTES = 256
"""Largest block, in bytes, that an all_to_all sends by way of other ranks."""

BRUCK_RANKS = 8
"""Fewest ranks for which it does: with fewer, log N messages are hardly fewer than N-1."""


def gather(builder: Builder, source: Slice, target: Slice, count: int | None) -> str:
    """Write the steps of a gather over two or more ranks.

    Args:
        builder: Of a gather.
        source: This rank's block.
        target: Room for all blocks at the root, else empty.
        count: Elements of every block; None: they differ.

    Returns:
        The name of the algorithm.
    """
    collective, rank, root = builder.collective, builder.rank, builder.collective.root or 0
    if count is not None and count * collective.dtype.itemsize <= SMALL_BYTES and collective.nranks > 2:
        return _binomial_gather(builder, source, target, count)
    if rank != root:
        builder.send(source, root)
        return "direct"
    for peer in _following(rank, collective.nranks):
        builder.recv(target.part(collective.block_offset(peer), collective.block_count(peer)), peer)
    builder.copy(source, target.part(collective.block_offset(rank), collective.block_count(rank)))
    return "direct"


def scatter(builder: Builder, source: Slice, target: Slice, count: int | None) -> str:
    """Write the steps of a scatter over two or more ranks; `source` is all blocks at the root, else as `gather`."""
    collective, rank, root = builder.collective, builder.rank, builder.collective.root or 0
    if count is not None and count * collective.dtype.itemsize <= SMALL_BYTES and collective.nranks > 2:
        return _binomial_scatter(builder, source, target, count)
    if rank != root:
        builder.recv(target, root)
        return "direct"
    for peer in _following(rank, collective.nranks):
        builder.send(source.part(collective.block_offset(peer), collective.block_count(peer)), peer)
    builder.copy(source.part(collective.block_offset(rank), collective.block_count(rank)), target)
    return "direct"


def all_to_all(builder: Builder, source: Slice, target: Slice, count: int | None) -> str:
    """Write the steps of an all_to_all over two or more ranks; arguments as `gather`."""
    collective, nranks = builder.collective, builder.collective.nranks
    if count is not None and count * collective.dtype.itemsize <= BRUCK_BYTES and nranks >= BRUCK_RANKS:
        return _bruck(builder, source, target, count)
    return _pairwise(builder, source, target)


def _following(rank: int, nranks: int) -> Iterator[int]:
    """The other ranks, from the next one round."""
    return ((rank + step) % nranks for step in range(1, nranks))


class _Subtree:
    """The part of a binomial tree under this rank, with ranks numbered from the root on.

    Attributes:
        number: This rank's.
        size: Ranks in the subtree, whose numbers follow `number`.
        parent: The parent's rank; means nothing at the root.
    """

    def __init__(self, builder: Builder) -> None:
        self._nranks, self._root = builder.collective.nranks, builder.collective.root or 0
        self.number = (builder.rank - self._root) % self._nranks
        lowest = self.number & -self.number or self._nranks
        self.size = min(lowest, self._nranks - self.number)
        self.parent = self.rank(self.number - lowest)

    def rank(self, number: int) -> int:
        return (number + self._root) % self._nranks

    def children(self) -> Iterator[tuple[int, int]]:
        """(number, size) of each child's subtree, nearest first."""
        distance = 1
        while distance < self.size:
            yield self.number + distance, min(distance, self.size - distance)
            distance *= 2

    def around(self, number: int, size: int) -> Iterator[tuple[int, int, int]]:
        """(offset, first rank, ranks) of each stretch of ranks with the numbers from `number` on: past the last rank
        they go on at rank 0."""
        first = self.rank(number)
        before = min(size, self._nranks - first)
        yield 0, first, before
        if before < size:
            yield before, 0, size - before


def _binomial_gather(builder: Builder, source: Slice, target: Slice, count: int) -> str:
    """Each rank receives the blocks of its children's subtrees and sends all of its own subtree's to its parent."""
    tree = _Subtree(builder)
    if tree.number and tree.size == 1:
        builder.send(source, tree.parent)
        return "binomial tree"
    if tree.number:
        work = builder.scratch(tree.size * count)
        builder.copy(source, work.part(0, count))
        for number, size in tree.children():
            builder.recv(work.part((number - tree.number) * count, size * count), tree.rank(number))
        builder.send(work, tree.parent)
        return "binomial tree"
    for number, size in tree.children():
        stretches = list(tree.around(number, size))
        whole = len(stretches) == 1
        first = stretches[0][1]
        room = target.part(first * count, size * count) if whole else builder.scratch(size * count)
        builder.recv(room, tree.rank(number))
        if not whole:
            for offset, first, nranks in stretches:
                builder.copy(room.part(offset * count, nranks * count), target.part(first * count, nranks * count))
    builder.copy(source, target.part(builder.rank * count, count))
    return "binomial tree"


def _binomial_scatter(builder: Builder, source: Slice, target: Slice, count: int) -> str:
    """Each rank receives the blocks of its subtree from its parent and sends each child those of the child's."""
    tree = _Subtree(builder)
    if tree.number and tree.size == 1:
        builder.recv(target, tree.parent)
        return "binomial tree"
    if tree.number:
        work = builder.scratch(tree.size * count)
        builder.recv(work, tree.parent)
        for number, size in reversed(list(tree.children())):
            builder.send(work.part((number - tree.number) * count, size * count), tree.rank(number))
        builder.copy(work.part(0, count), target)
        return "binomial tree"
    for number, size in reversed(list(tree.children())):
        stretches = list(tree.around(number, size))
        whole = len(stretches) == 1
        first = stretches[0][1]
        blocks = source.part(first * count, size * count) if whole else builder.scratch(size * count)
        if not whole:
            for offset, first, nranks in stretches:
                builder.copy(source.part(first * count, nranks * count), blocks.part(offset * count, nranks * count))
        builder.send(blocks, tree.rank(number))
    builder.copy(source.part(builder.rank * count, count), target)
    return "binomial tree"


def _pairwise(builder: Builder, source: Slice, target: Slice) -> str:
    """Each rank sends every other its block."""
    collective, rank = builder.collective, builder.rank
    sent, got = collective.sent_counts(rank), collective.received_counts(rank)
    sent_from, got_at = [0, *accumulate(sent)], [0, *accumulate(got)]
    if collective.in_place:
        kept = builder.scratch(source.count)
        builder.copy(source, kept)
        source = kept
    for peer in _following(rank, collective.nranks):
        builder.send(source.part(sent_from[peer], sent[peer]), peer)
    for peer in reversed(tuple(_following(rank, collective.nranks))):
        builder.recv(target.part(got_at[peer], got[peer]), peer)
    if not collective.in_place:
        builder.copy(source.part(sent_from[rank], sent[rank]), target.part(got_at[rank], got[rank]))
    return "pairwise"


def _bruck(builder: Builder, source: Slice, target: Slice, count: int) -> str:
    """The block for the rank `distance` further on travels over the powers of two that make up `distance`.

    After each message a rank holds, for every distance, one block that has as far to go as the powers that are left.
    """
    rank, nranks = builder.rank, builder.collective.nranks
    held = [source.part((rank + distance) % nranks * count, count) for distance in range(nranks)]
    power = 1
    while power < nranks:
        moving = [distance for distance in range(nranks) if distance & power]
        leaving, arriving = (
            _joined(builder, [held[distance] for distance in moving]),
            builder.scratch(len(moving) * count),
        )
        builder.send(leaving, (rank + power) % nranks)
        builder.recv(arriving, (rank - power) % nranks)
        for position, distance in enumerate(moving):
            held[distance] = arriving.part(position * count, count)
        power *= 2
    for distance in range(nranks):
        builder.copy(held[distance], target.part((rank - distance) % nranks * count, count))
    return "Bruck"


def _joined(builder: Builder, parts: Sequence[Slice]) -> Slice:
    """Slices one behind the other: where they lie so already, else copied to scratch."""
    stretches = [parts[0]]
    for part in parts[1:]:
        last = stretches[-1]
        if last.buffer is part.buffer and last.stop == part.offset:
            stretches[-1] = Slice(last.buffer, last.offset, last.count + part.count)
        else:
            stretches.append(part)
    if len(stretches) == 1:
        return stretches[0]
    joined, offset = builder.scratch(sum(part.count for part in stretches)), 0
    for part in stretches:
        builder.copy(part, joined.part(offset, part.count))
        offset += part.count
    return joined
