"""Topologies of many clusters, for tests: hypothesis draws a seed, since drawing each cluster would take too long."""

from __future__ import annotations

import random

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from hetcomm.topology.model import Cluster, Topology, Uplink

__all__ = ["grid", "wide_topologies"]

_SPEEDS = (1e8, 1e9, 1.25e9, 1e10)


def grid(nclusters: int, nranks: int, nborder: int | None = None) -> Topology:
    """Clusters of `nranks` consecutive ranks, of which the first `nborder`, or all, have equal uplinks."""
    clusters = []
    for number in range(nclusters):
        ranks = range(number * nranks, (number + 1) * nranks)
        uplinks = tuple(Uplink(rank) for rank in ranks[: nborder or nranks])
        clusters.append(Cluster(f"c{number}", "mpi", ranks, uplinks))
    return Topology(tuple(clusters))


@st.composite
def wide_topologies(draw: DrawFn, *, min_clusters: int = 2, max_clusters: int = 12, max_ranks: int = 5) -> Topology:
    """Clusters of consecutive ranks, in any order: equal or unequal clusters, all or some border ranks, uplinks equal
    or unequal, out and in alike or not."""
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    nclusters = draw(st.integers(min_clusters, max_clusters))
    equal = draw(st.booleans())
    all_border, even = draw(st.booleans()), draw(st.booleans())
    size = draw(st.integers(1, max_ranks))
    clusters, first = [], 0
    for number in range(nclusters):
        ranks = range(first, first + (size if equal else rng.randint(1, max_ranks)))
        first = ranks.stop
        border = ranks if all_border else sorted(rng.sample(ranks, rng.randint(1, len(ranks))))
        uplinks = tuple(
            Uplink(rank) if even else Uplink(rank, rng.choice(_SPEEDS), rng.choice(_SPEEDS)) for rank in border
        )
        clusters.append(Cluster(f"c{number}", "mpi", ranks, uplinks))
    if draw(st.booleans()):
        rng.shuffle(clusters)
    return Topology(tuple(clusters))
