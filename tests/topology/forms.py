"""The forms in which ranks call collectives that are made of blocks, for jobs of many ranks.

A generator of random numbers from a seed stands in for hypothesis' own choices, one for each block, which would cost
more than the plans under test.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, has_meaning

SEEDS = st.integers(0, 1 << 32)

_READ_APART = (CollectiveKind.REDUCE_SCATTER, CollectiveKind.SCATTER, CollectiveKind.ALL_TO_ALL)
_WRITTEN_APART = (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER, CollectiveKind.ALL_TO_ALL)


@st.composite
def vector_forms(draw: DrawFn, nranks: int, kind: CollectiveKind) -> Collective:
    """Blocks of a few sizes, with many empty ones and primes among them; small, or of more than 16 KiB."""
    root = draw(st.integers(0, nranks - 1)) if kind.has_root else None
    few = draw(st.lists(st.sampled_from([0, 0, 1, 2, 3, 7, 13, 101, 20011]), min_size=1, max_size=5))
    rng = random.Random(draw(SEEDS))
    counts = tuple(rng.choices(few, k=nranks ** (2 if kind is CollectiveKind.ALL_TO_ALL else 1)))
    dtype = draw(st.sampled_from([DataType.BOOL, DataType.INT8, DataType.FLOAT64]))
    op = draw(st.sampled_from([op for op in kind.ops if op is None or has_meaning(op, dtype)]))
    return Collective(kind, nranks, sum(counts), dtype, op, root, counts=counts)


@st.composite
def own_forms(draw: DrawFn, collective: Collective) -> tuple[Collective, ...]:
    """For each rank the collective as that rank may call it: in place or not, with displacements or without."""
    rng = random.Random(draw(SEEDS))
    return tuple(_own_form(collective, rank, rng) for rank in range(collective.nranks))


def _own_form(collective: Collective, rank: int, rng: random.Random) -> Collective:
    kind, pairs = collective.kind, collective.kind is CollectiveKind.ALL_TO_ALL
    if collective.counts is None:
        return collective.with_in_place(rng.random() < 0.5)
    form = collective.with_in_place(not pairs and rng.random() < 0.5)
    if rng.random() < 0.5:
        return form
    there = not kind.has_root or rank == collective.root
    read = collective.sent_counts(rank) if pairs else collective.counts
    written = collective.received_counts(rank) if pairs else collective.counts
    return replace(
        form,
        in_displs=spread(read, rng) if kind in _READ_APART and there else None,
        out_displs=spread(written, rng) if kind in _WRITTEN_APART and there else None,
    )


def spread(counts: Sequence[int], rng: random.Random) -> tuple[int, ...]:
    """Displacements of blocks that lie in any order, with gaps between them."""
    found, position = [0] * len(counts), 0
    for number in rng.sample(range(len(counts)), len(counts)):
        position += rng.choice((0, 1, 5))
        found[number] = position
        position += counts[number]
    return tuple(found)
