"""Which plan a collective gets on a topology: the one door to the planners of this room."""

from __future__ import annotations

from functools import lru_cache

from hetcomm.errors import TopologyError
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Program, Schedule
from hetcomm.topology import bounds, hierarchical, home
from hetcomm.topology.model import Topology

__all__ = ["plan", "schedule", "why"]

_CACHED_PLANS = 1024


@lru_cache(maxsize=_CACHED_PLANS)
def plan(collective: Collective, topology: Topology, rank: int) -> Program:
    """The program of `rank` for `collective`; the most recently used ones are kept.

    The steps that touch other ranks do not depend on `collective.in_place`, so ranks may differ in it.

    Raises:
        TopologyError: The topology has another number of ranks than the collective, or `rank` is none of them.
    """
    _check(collective, topology)
    topology.cluster_index(rank)  # raises unless it is a rank
    if len(topology.clusters) == 1:
        return home.plan(collective, topology, rank)
    return hierarchical.plan(collective, topology, rank)


def schedule(collective: Collective, topology: Topology) -> Schedule:
    """The programs of all ranks, for tests and tools; errors as `plan`."""
    programs = tuple(plan.__wrapped__(collective, topology, rank) for rank in range(topology.nranks))
    return Schedule(collective, programs, topology.communicators())


def why(collective: Collective, topology: Topology) -> str:
    """One sentence that says which plan it is and why; errors as `plan`."""
    _check(collective, topology)
    name, clusters = collective.kind.value, topology.clusters
    if not collective.count:
        return f"{name} of no elements: nothing to do."
    if topology.nranks == 1:
        return f"{name} over one rank: a local copy."
    if len(clusters) == 1:
        only = clusters[0]
        return f"{name} over one cluster, {only.name!r}: one call of vendor {only.vendor!r} over its {len(only)} ranks."
    least = bounds.least_total(collective, topology)
    phases = "home phase, border reduction, home phase" if collective.kind.reduces else "home phase, border phase"
    return (
        f"{name} over {len(clusters)} clusters with {sum(len(cluster.border) for cluster in clusters)} border ranks: "
        f"hierarchical ({phases}), since it moves {least} bytes between clusters, the least there can be."
    )


def _check(collective: Collective, topology: Topology) -> None:
    if collective.nranks != topology.nranks:
        raise TopologyError(
            f"{collective.kind.value} is over {collective.nranks} ranks, but the topology has {topology.nranks}",
            remedy="Use the topology of the communicator that the collective runs on.",
        )
