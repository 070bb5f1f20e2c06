"""Blocks that go round a ring of ranks in pieces, one piece behind the other.

Block k of a vector belongs to rank k. In the *reduce half* a partial of it travels once round the ring, from rank k+1
to rank k, and each rank adds its own part of it; in the *gather half* the finished block travels round until all have
it. In each half a rank sends N-1 blocks, whatever the pieces.

A block is cut into pieces of `PIECE_BYTES` where the vectors of all ranks fit `CACHED_BYTES` together, else of
`LONG_PIECE_BYTES`, but a rank sends at most `MOST_MESSAGES` in a half. So the additions overlap the messages, and what
has arrived or was added up is still in a cache when it is used next. Step s of piece p, the gather half counted behind
the reduce half, has the tick p + s, and programs hold the steps by their ticks: pieces are in flight at all ranks at
one time, few are offered before it is their turn, and what goes from one rank to the next is in the same order on both.

Scratch, where P = min(N, pieces of the longest block): 2P pieces with three or more ranks; P with two in place; else
none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hetcomm.schedule.steps import Slice
from hetcomm.topology.builder import Builder

__all__ = ["CACHED_BYTES", "LONG_PIECE_BYTES", "MOST_MESSAGES", "PIECE_BYTES", "Place", "Ring"]

PIECE_BYTES = 1 << 18
"""What a transport may copy once more to spare the receiver a call of the kernel."""

LONG_PIECE_BYTES = 1 << 20
"""Small beside a third-level cache, and large beside what a message costs."""

CACHED_BYTES = 1 << 24
"""Of inputs, or of outputs: with both half of a cache of 32 MiB. Beyond it, a copy is one more way to memory."""

MOST_MESSAGES = 1024
"""That a rank sends in one half: planning takes time for each."""

Place = Callable[[int], Slice]
"""Where on this rank block k lies."""


class Ring:
    """The ring of all ranks of `builder`'s collective, as one of them sees it.

    Args:
        builder: Of two or more ranks; takes the steps. What counts for the pieces is the collective that it is part of.
        longest: Elements of the longest block.
    """

    def __init__(self, builder: Builder, longest: int) -> None:
        self._builder = builder
        self._rank, self._nranks = builder.rank, builder.collective.nranks
        self._before, self._after = (self._rank - 1) % self._nranks, (self._rank + 1) % self._nranks
        itemsize, whole = builder.collective.dtype.itemsize, builder.whole
        self._is_long = whole.total * whole.nranks * itemsize > CACHED_BYTES
        most = max(1, MOST_MESSAGES // (self._nranks - 1))
        piece = LONG_PIECE_BYTES if self._is_long else PIECE_BYTES
        self._npieces = max(1, min(most, -(-longest * itemsize // piece)))
        self._longest = -(-longest // self._npieces)

    def reduce(self, own: Place, mine: Slice, then: Callable[[Slice], None] | None = None) -> None:
        """The reduce half: the sum of block `rank` over all ranks goes to `mine`, which may be this rank's own part.

        An average is divided. `then` writes what follows for each finished piece.
        """
        self._spaces = self._room(in_place=own(self._rank) == mine)
        for piece, step in self._order(self._nranks - 1):
            self._pass_on(own, mine, piece, step, then)

    def gather(self, own: Slice, whole: Place) -> None:
        """The gather half: all ranks get all blocks, each where it lies in `whole`.

        Each begins with its `own`, which may lie elsewhere and is not copied.
        """
        if self._nranks == 2 and self._is_long:
            self._npieces = 1  # nobody passes on what has arrived
        for piece, step in self._order(self._nranks - 1):
            self._hand_round(whole, piece, step, own)

    def both(self, own: Place, whole: Place) -> None:
        """One half behind the other: `own` and `whole` may be the same."""
        mine, half = whole(self._rank), self._nranks - 1
        self._spaces = self._room(in_place=own(self._rank) == mine)
        for piece, step in self._order(2 * half):
            if step < half:
                self._pass_on(own, mine, piece, step, None)
            else:
                self._hand_round(whole, piece, step - half, mine)

    def pieces(self, block: Slice) -> Iterator[Slice]:
        """The pieces of a block."""
        return (self._part(block, piece) for piece in range(self._npieces))

    def _order(self, nsteps: int) -> Iterator[tuple[int, int]]:
        """(piece, step), by ticks; of one tick what has come farthest first."""
        for tick in range(self._npieces + nsteps - 1):
            for step in range(min(tick, nsteps - 1), -1, -1):
                if tick - step < self._npieces:
                    yield tick - step, step

    def _part(self, block: Slice, piece: int) -> Slice:
        start = block.count * piece // self._npieces
        return block.part(start, block.count * (piece + 1) // self._npieces - start)

    def _room(self, *, in_place: bool) -> list[Slice]:
        """Scratch for partials under way: the one of a step is still being sent while that of the next arrives."""
        each = 2 if self._nranks > 2 else 1 if in_place else 0
        return [self._builder.scratch(self._longest) for _ in range(each * min(self._nranks, self._npieces))]

    def _space(self, piece: int, step: int, count: int) -> Slice:
        slot = piece % min(self._nranks, self._npieces)
        return self._spaces[2 * slot + step % 2 if self._nranks > 2 else slot].part(0, count)

    def _pass_on(self, own: Place, mine: Slice, piece: int, step: int, then: Callable[[Slice], None] | None) -> None:
        """Send the partial of a piece on, and add this rank's part to the one that arrives."""
        builder, part = self._builder, self._part(own((self._rank - 2 - step) % self._nranks), piece)
        sent = self._part(own((self._rank - 1 - step) % self._nranks), piece)
        builder.send(self._space(piece, step - 1, sent.count) if step else sent, self._after)
        if step < self._nranks - 2:
            arrived = self._space(piece, step, part.count)
            builder.recv(arrived, self._before)
            builder.reduce(part, arrived)
            return
        finished = self._part(mine, piece)
        arrived = finished if finished != part else self._space(piece, step, part.count)
        builder.recv(arrived, self._before)
        if arrived == finished:
            builder.reduce(part, finished)
        else:
            builder.reduce(arrived, finished)
        builder.average(finished, finished)
        if then is not None:
            then(finished)

    def _hand_round(self, whole: Place, piece: int, step: int, own: Slice) -> None:
        """Pass a piece on, at first one of `own`, and receive one."""
        self._builder.send(self._part(whole((self._rank - step) % self._nranks) if step else own, piece), self._after)
        self._builder.recv(self._part(whole((self._rank - step - 1) % self._nranks), piece), self._before)
