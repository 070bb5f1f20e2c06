"""Hypothesis strategies for topologies and collectives: small, and as awkward as they are allowed to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.spec import Shape
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import DataType, ReduceKind, has_meaning

__all__ = [
    "block_counts",
    "collectives",
    "counts",
    "displacements",
    "ops_and_dtypes",
    "passed_by",
    "topologies",
]

_PRIMES = (2, 3, 5, 7, 11, 13, 31, 101, 1009, 65537, 131071)


@st.composite
def topologies(
    draw: DrawFn, *, min_clusters: int = 1, max_clusters: int = 6, max_ranks: int = 5, vendor: str = "mpi"
) -> Topology:
    """Topologies of clusters of 1 to `max_ranks` ranks.

    Ranks are consecutive or scattered over the clusters; from one to all ranks of a cluster are border ranks, with
    equal or unequal uplinks.
    """
    sizes = draw(st.lists(st.integers(1, max_ranks), min_size=min_clusters, max_size=max_clusters))
    ranks = list(range(sum(sizes)))
    if draw(st.booleans()):
        ranks = draw(st.permutations(ranks))
    clusters: list[Cluster] = []
    for number, size in enumerate(sizes):
        mine, ranks = ranks[:size], ranks[size:]
        border = mine[: draw(st.integers(1, size))] if draw(st.booleans()) else mine
        bandwidths = draw(st.sampled_from([(1e9,), (1e9, 2e9), (1e8, 1.25e9, 1e10)]))
        speed = st.sampled_from(bandwidths)
        uplinks = tuple(Uplink(rank, draw(speed), draw(speed)) for rank in border)
        clusters.append(Cluster(f"cluster{number}", vendor, tuple(mine), uplinks))
    return Topology(tuple(clusters))


def counts(nranks: int) -> SearchStrategy[int]:
    """Counts at which plans change shape: none, one, about `nranks`, primes, and beyond 2^16."""
    near = [0, 1, max(nranks - 1, 0), nranks, nranks + 1]
    return st.one_of(
        st.sampled_from(near), st.sampled_from(_PRIMES), st.integers(0, 300), st.integers(1 << 16, 1 << 18)
    )


def ops_and_dtypes() -> SearchStrategy[tuple[ReduceKind, DataType]]:
    """Every op with every dtype for which it has a meaning."""
    return st.sampled_from([(op, dtype) for op in ReduceKind for dtype in DataType if has_meaning(op, dtype)])


@st.composite
def block_counts(draw: DrawFn, nblocks: int) -> tuple[int, ...]:
    """Counts of a vector form: equal or unequal, with zeros, ones and primes, all of them zero at times."""
    sizes = draw(st.sampled_from([(0,), (1,), (7,), (0, 5), (1, 2, 3), (0, 1, 2, 13, 101), (0, 0, 0, 1009)]))
    return tuple(draw(st.lists(st.sampled_from(sizes), min_size=nblocks, max_size=nblocks)))


@st.composite
def collectives(
    draw: DrawFn, nranks: int, *, kind: CollectiveKind | None = None, vector: bool | None = None
) -> Collective:
    """Collectives over `nranks` ranks, of any kind or of the one that is given, not in place and without displacements.

    `vector` asks for a vector form, where the kind has one, or for none; None leaves it open.
    """
    chosen = kind if kind is not None else draw(st.sampled_from(CollectiveKind))
    op, dtype = draw(ops_and_dtypes().filter(lambda pair: not chosen.reduces or pair[0] in chosen.ops))
    root = draw(st.integers(0, nranks - 1)) if chosen.has_root else None
    sizes: tuple[int, ...] | None = None
    if chosen.has_blocks and (vector if vector is not None else draw(st.booleans())):
        sizes = draw(block_counts(nranks**2 if chosen.has_pairs else nranks))
    # The input of an all_to_all is as long as all blocks of one rank.
    one = st.sampled_from([0, 1, 2, 7, 101]) if chosen.has_pairs else counts(nranks)
    count = sum(sizes) if sizes is not None else draw(one)
    return Collective(chosen, nranks, count, dtype, op if chosen.reduces else None, root, counts=sizes)


@st.composite
def passed_by(draw: DrawFn, collective: Collective, rank: int) -> Collective:
    """`collective` as `rank` may pass it: in place or not, and in a vector form with or without displacements."""
    pairs, row = collective.kind.has_pairs, collective.kind.row
    if collective.counts is None:
        return collective.with_in_place(draw(st.booleans()))
    in_place = draw(st.booleans()) and not pairs
    received = collective.received_counts(rank) if pairs else collective.counts
    sent = collective.sent_counts(rank) if pairs else collective.counts
    return replace(
        collective,
        in_place=in_place,
        in_displs=draw(displacements(sent)) if row.passes is Shape.BLOCKS and draw(st.booleans()) else None,
        out_displs=draw(displacements(received)) if row.gets is Shape.BLOCKS and draw(st.booleans()) else None,
    )


@st.composite
def displacements(draw: DrawFn, sizes: Sequence[int]) -> tuple[int, ...]:
    """Where blocks of these sizes begin: in any order, with gaps or without, sharing no element."""
    found, end = [0] * len(sizes), 0
    order = draw(st.permutations(range(len(sizes)))) if draw(st.booleans()) else range(len(sizes))
    for block in order:
        end += draw(st.sampled_from([0, 0, 1, 5]))
        found[block] = end
        end += sizes[block]
    return tuple(found)
