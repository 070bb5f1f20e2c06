"""Where the input and output of a rank lie in the buffers of its program, block by block, and what lies between.

The meaning of a collective is in terms of *packed* vectors, one block behind the other. In place, and with
displacements, those lie elsewhere; this file is where verifier and reference find them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Buffer, Program

__all__ = ["Place", "buffer_counts", "gaps", "input_places", "output_places", "overlap"]

Place = tuple[int, int, int]
"""(where it begins in the buffer, where it begins in the packed vector, elements), of one block that is not empty."""


def buffer_counts(program: Program) -> dict[Buffer, int]:
    """Elements of each buffer that a program works on, gaps included; in place, `IN` has none."""
    collective, rank = program.collective, program.rank
    if collective.in_place:
        return {Buffer.IN: 0, Buffer.OUT: collective.buffer_count(rank), Buffer.SCRATCH: program.scratch_count}
    return {
        Buffer.IN: collective.in_extent(rank),
        Buffer.OUT: collective.out_extent(rank),
        Buffer.SCRATCH: program.scratch_count,
    }


def input_places(collective: Collective, rank: int) -> list[Place]:
    """The blocks of the input of `rank` in `IN`, in place in `OUT`; one where they lie side by side."""
    count = collective.in_count(rank)
    if collective.in_displs is None or not count:
        return [(collective.in_offset(rank), 0, count)] if count else []
    return _places(list(collective.in_blocks(rank)))


def output_places(collective: Collective, rank: int) -> list[Place]:
    """The blocks of the output of `rank` in `OUT`; one where they lie side by side."""
    count = collective.out_count(rank)
    if collective.out_displs is None or not count:
        return [(collective.out_offset(rank), 0, count)] if count else []
    return _places(list(collective.out_blocks(rank)))


def _places(blocks: list[tuple[int, int]]) -> list[Place]:
    starts = accumulate((count for _, count in blocks), initial=0)
    return [(offset, start, count) for (offset, count), start in zip(blocks, starts, strict=False) if count]


def gaps(collective: Collective, rank: int) -> Iterator[tuple[int, int]]:
    """The (start, stop) in `OUT` between blocks, which nobody may write: there are some with displacements only."""
    if collective.in_displs is None and collective.out_displs is None:
        return
    places = output_places(collective, rank)
    if collective.in_place:
        places = places + input_places(collective, rank)
    reached = 0
    for start, _, count in sorted(places):
        if start > reached:
            yield reached, start
        reached = max(reached, start + count)


def overlap(places: list[Place]) -> int | None:
    """The first element of the buffer that lies in two blocks, if one does."""
    for (start, _, count), (after, _, _) in pairwise(sorted(places)):
        if start + count > after:
            return after
    return None
