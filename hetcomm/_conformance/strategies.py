"""Hypothesis strategies for topologies and collectives: small, and as awkward as they are allowed to be."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import DataType, ReduceKind

__all__ = ["collectives", "counts", "ops_and_dtypes", "topologies"]

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
    ordered = (ReduceKind.MIN, ReduceKind.MAX)
    pairs = [(op, dtype) for op in ReduceKind for dtype in DataType if not (dtype.is_complex and op in ordered)]
    return st.sampled_from(pairs)


@st.composite
def collectives(draw: DrawFn, nranks: int, *, kind: CollectiveKind | None = None) -> Collective:
    """Collectives over `nranks` ranks, of any kind or of the one that is given, not in place."""
    chosen = kind if kind is not None else draw(st.sampled_from(CollectiveKind))
    op, dtype = draw(ops_and_dtypes())
    root = draw(st.integers(0, nranks - 1)) if chosen.has_root else None
    return Collective(chosen, nranks, draw(counts(nranks)), dtype, op if chosen.reduces else None, root)
