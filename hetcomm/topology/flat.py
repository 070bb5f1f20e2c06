"""Collectives of one group of ranks over point-to-point alone.

What the built-in `ucx` vendor runs, and what hands blocks around in a job of one cluster.

N ranks, S bytes as in `hetcomm.topology.bounds`, log is the logarithm to base 2 rounded up. A latency is a message
that must wait for another. Vectors up to `SMALL_BYTES`, or where there are blocks such blocks, take the plan with the
fewest latencies, others the one with the fewest bytes. Gather, scatter and all_to_all are in
`hetcomm.topology.flat_exchange`, scan and exscan in `hetcomm.topology.scans`.

==============  ==============================  =====================  ==========================
collective      algorithm                       latencies              bytes sent by a rank
==============  ==============================  =====================  ==========================
all_reduce      recursive doubling (small)      log N, +1 if N is no   S log N, +S at some ranks
                                                power of two           if N is no power of two
                ring reduce_scatter, all_gather 2(N-1)                 2S(N-1)/N
reduce          binomial tree (small)           log N                  S
                ring reduce_scatter, gather     N                      S at most
broadcast       binomial tree (small)           log N                  S log N at the root
                scatter, ring all_gather        N                      S(N-1)/N, 2S(N-1)/N at the root
all_gather      Bruck (small)                   log N                  S(N-1)/N
                ring                            N-1                    S(N-1)/N
reduce_scatter  pairwise (small)                1                      S(N-1)/N
                ring                            N-1                    S(N-1)/N
==============  ==============================  =====================  ==========================

Rings hand their blocks on in pieces, in scratch that does not grow with the vector: `hetcomm.topology.ring`.

Vector forms take the same plans, according to the longest block: a rank sends all blocks but its own in a
reduce_scatter, all but the next rank's in a ring all_gather.

Sources: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH", IJHPCA
19(1), 2005; J. Bruck et al., "Efficient Algorithms for All-to-All Communications", IEEE TPDS 8(11), 1997; E. Chan et
al., "Collective communication: theory, practice, and experience", CCPE 19(13), 2007.

All ranks get bit-identical results: in a ring and a tree each element is finished in one place; in recursive
doubling both partners take the lower rank's partial as the left operand.
"""

from __future__ import annotations

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.spec import Family
from hetcomm.schedule.steps import Program, Slice
from hetcomm.topology import flat_exchange, scans
from hetcomm.topology.builder import SMALL_BYTES, Builder
from hetcomm.topology.ring import Place, Ring

__all__ = ["direct", "equal_count", "plan"]


def equal_count(collective: Collective) -> int | None:
    """Elements of each block if all have as many, also in a vector form; None: they differ."""
    if collective.counts is None:
        return collective.count
    first = collective.counts[0]
    return first if all(count == first for count in collective.counts) else None


def plan(collective: Collective, rank: int, whole: Collective | None = None) -> Program:
    """The program of `rank` for any collective of one group, with no vendor call; `whole` is what it is a part of."""
    builder = Builder(collective, rank, whole)
    if not collective.total:
        return builder.program("nothing to do")
    if collective.kind.row.family is Family.SCAN:
        return builder.program(scans.within_one(builder, builder.source(), builder.target()))
    if collective.nranks == 1:
        builder.alone()
        return builder.program("local copy")
    source, target = builder.source(), builder.target()
    count = equal_count(collective)
    small = max(collective.counts or (collective.count,)) * collective.dtype.itemsize <= SMALL_BYTES
    match collective.kind:
        case CollectiveKind.ALL_REDUCE:
            name = _recursive_doubling(builder, source, target) if small else _ring_all_reduce(builder, source, target)
        case CollectiveKind.REDUCE:
            name = _binomial_reduce(builder, source, target) if small else _ring_reduce(builder, source, target)
        case CollectiveKind.BROADCAST:
            name = _binomial_broadcast(builder, source, target) if small else _scattered(builder, source, target)
        case CollectiveKind.ALL_GATHER:
            few = small and collective.nranks > 2  # two ranks exchange, in place
            name = _bruck(builder, source, target) if few else _ring_all_gather(builder, source, target)
        case CollectiveKind.REDUCE_SCATTER:
            name = _pairwise(builder, source, target) if small else _ring_reduce_scatter(builder, source, target)
        case _:
            name = _exchange(builder, source, target, count)
    return builder.program(name)


def direct(collective: Collective, rank: int) -> Program:
    """The program of `rank` for a gather, scatter or all_to_all in which each block takes one message at most."""
    builder = Builder(collective, rank)
    if not collective.total:
        return builder.program("nothing to do")
    return builder.program(_exchange(builder, builder.source(), builder.target(), None))


def _exchange(builder: Builder, source: Slice, target: Slice, count: int | None) -> str:
    match builder.collective.kind:
        case CollectiveKind.GATHER:
            return flat_exchange.gather(builder, source, target, count)
        case CollectiveKind.SCATTER:
            return flat_exchange.scatter(builder, source, target, count)
        case _:
            return flat_exchange.all_to_all(builder, source, target, count)


def _recursive_doubling(builder: Builder, source: Slice, target: Slice) -> str:
    """Partners exchange and add what they have, over distances 1, 2, 4, ...; ranks too many for that join another."""
    rank, nranks = builder.rank, builder.collective.nranks
    power = 1 << nranks.bit_length() - 1
    extra = nranks - power
    sum_so_far, spare = target, builder.scratch(target.count)
    builder.copy(source, sum_so_far)
    if rank < 2 * extra and rank % 2 == 0:
        builder.send(sum_so_far, rank + 1)
        builder.recv(target, rank + 1)
        return "recursive doubling"
    if rank < 2 * extra:
        builder.recv(spare, rank - 1)
        builder.reduce(sum_so_far, spare)
        sum_so_far, spare = spare, sum_so_far
    number = rank // 2 if rank < 2 * extra else rank - extra
    distance = 1
    while distance < power:
        partner = number ^ distance
        peer = 2 * partner + 1 if partner < extra else partner + extra
        builder.send(sum_so_far, peer)
        builder.recv(spare, peer)
        if number < partner:
            builder.reduce(spare, sum_so_far)
        else:
            builder.reduce(sum_so_far, spare)
            sum_so_far, spare = spare, sum_so_far
        distance *= 2
    builder.average(sum_so_far, target)
    if rank < 2 * extra:
        builder.send(target, rank - 1)
    return "recursive doubling"


def _ring_all_reduce(builder: Builder, source: Slice, target: Slice) -> str:
    _ring(builder, source).both(_blocks(builder, source), _blocks(builder, target))
    return "ring reduce_scatter and all_gather"


def _ring_reduce(builder: Builder, source: Slice, target: Slice) -> str:
    """Each rank finishes its block and sends it to the root."""
    rank, root = builder.rank, builder.collective.root or 0
    count = _block(builder, target if rank == root else source, rank).count
    mine = _block(builder, target, rank) if rank == root else builder.scratch(count)
    ring = _ring(builder, source)
    if rank != root:
        ring.reduce(_blocks(builder, source), mine, lambda finished: builder.send(finished, root, 1))
        return "ring reduce_scatter and gather"
    ring.reduce(_blocks(builder, source), mine)
    for peer in range(builder.collective.nranks):
        if peer != root:
            for part in ring.pieces(_block(builder, target, peer)):
                builder.recv(part, peer, 1)
    return "ring reduce_scatter and gather"


def _ring_reduce_scatter(builder: Builder, source: Slice, target: Slice) -> str:
    _ring(builder, source).reduce(_blocks(builder, source), target)
    return "ring"


def _ring(builder: Builder, whole: Slice) -> Ring:
    """The ring for the blocks of `whole`."""
    return Ring(builder, max(_block(builder, whole, number).count for number in range(builder.collective.nranks)))


def _blocks(builder: Builder, whole: Slice) -> Place:
    return lambda number: _block(builder, whole, number)


def _block(builder: Builder, whole: Slice, number: int) -> Slice:
    """Block `number` of the collective; where its vectors have none, of as many equal ones as there are ranks."""
    collective = builder.collective
    if collective.kind.has_blocks:
        return whole.part(collective.block_offset(number), collective.block_count(number))
    start = whole.count * number // collective.nranks
    return whole.part(start, whole.count * (number + 1) // collective.nranks - start)


def _binomial_reduce(builder: Builder, source: Slice, target: Slice) -> str:
    """Ranks are numbered from the root on; each adds what its children send and sends the sum to its parent."""
    rank, nranks, root = builder.rank, builder.collective.nranks, builder.collective.root or 0
    number = (rank - root) % nranks
    total = source
    distance = 1
    while distance < nranks and not number & distance:
        if number + distance < nranks:
            if total is source:
                total = target if rank == root else builder.scratch(source.count)
                builder.copy(source, total)
            partial = builder.scratch(source.count)
            builder.recv(partial, (rank + distance) % nranks)
            builder.reduce(partial, total)
        distance *= 2
    if number:
        builder.send(total, (rank - distance) % nranks)
    else:
        builder.average(total, target)
    return "binomial tree"


def _binomial_broadcast(builder: Builder, source: Slice, target: Slice) -> str:
    """Ranks are numbered from the root on; each receives from its parent and sends to its children, farthest first."""
    rank, nranks, root = builder.rank, builder.collective.nranks, builder.collective.root or 0
    number = (rank - root) % nranks
    distance = 1
    while distance < nranks and not number & distance:
        distance *= 2
    have = source if number == 0 else target
    if number:
        builder.recv(target, (rank - distance) % nranks)
    while distance > 1:
        distance //= 2
        if number + distance < nranks:
            builder.send(have, (rank + distance) % nranks)
    if number == 0:
        builder.copy(source, target)
    return "binomial tree"


def _scattered(builder: Builder, source: Slice, target: Slice) -> str:
    """The root sends each rank its block, and a ring gathers them."""
    rank, nranks, root = builder.rank, builder.collective.nranks, builder.collective.root or 0
    if rank == root:
        for step in range(1, nranks):
            peer = (rank + step) % nranks
            builder.send(_block(builder, source, peer), peer)
        builder.copy(source, target)
        for step in range(nranks - 1):
            builder.send(_block(builder, target, (rank - step) % nranks), (rank + 1) % nranks, 1)
        return "scatter and ring all_gather"
    builder.recv(_block(builder, target, rank), root)
    after = (rank + 1) % nranks
    for step in range(nranks - 1):
        if after != root:
            builder.send(_block(builder, target, (rank - step) % nranks), after, 1)
        builder.recv(_block(builder, target, (rank - step - 1) % nranks), (rank - 1) % nranks, 1)
    return "scatter and ring all_gather"


def _ring_all_gather(builder: Builder, source: Slice, target: Slice) -> str:
    _ring(builder, target).gather(source, _blocks(builder, target))
    builder.copy(source, _block(builder, target, builder.rank))
    return "ring"


def _bruck(builder: Builder, source: Slice, target: Slice) -> str:
    """Blocks are numbered from this rank on; what a rank has doubles with each message."""
    rank, nranks, offset = builder.rank, builder.collective.nranks, builder.collective.block_offset
    to_end = target.count - offset(rank)
    work = builder.scratch(target.count)

    def numbered(number: int) -> int:
        """Where in `work` block `number` begins: past the last rank's block they go on at rank 0's."""
        after = rank + number
        return offset(after) - offset(rank) if after <= nranks else to_end + offset(after - nranks)

    builder.copy(source, work.part(0, source.count))
    have = 1
    while have < nranks:
        more = min(have, nranks - have)
        builder.send(work.part(0, numbered(more)), (rank - have) % nranks)
        builder.recv(work.part(numbered(have), numbered(have + more) - numbered(have)), (rank + have) % nranks)
        have += more
    builder.copy(work.part(0, to_end), target.part(offset(rank), to_end))
    builder.copy(work.part(to_end, target.count - to_end), target.part(0, target.count - to_end))
    return "Bruck"


def _pairwise(builder: Builder, source: Slice, target: Slice) -> str:
    """Each rank sends every other the block it needs and adds up what comes."""
    rank, nranks = builder.rank, builder.collective.nranks
    peers = [(rank + step) % nranks for step in range(1, nranks)]
    for peer in peers:
        builder.send(_block(builder, source, peer), peer)
    partials = {peer: builder.scratch(target.count) for peer in peers}
    for peer in reversed(peers):
        builder.recv(partials[peer], peer)
    builder.copy(_block(builder, source, rank), target)
    for peer in reversed(peers):
        builder.reduce(partials[peer], target)
    builder.average(target, target)
    return "pairwise"
