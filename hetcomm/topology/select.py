"""Which plan a collective gets on a topology: the one door to the planners of this room."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from hetcomm.errors import TopologyError
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.spec import Family
from hetcomm.schedule.steps import Program, Schedule, VendorCall
from hetcomm.topology import bounds, cascade, circulant, exchange, flat, hierarchical, home, mutual, scans
from hetcomm.topology.model import Topology
from hetcomm.topology.tuning import RULES, Tuning

__all__ = ["is_large", "plan", "schedule", "why"]

_CACHED_PLANS = 1024


@lru_cache(maxsize=_CACHED_PLANS)
def plan(collective: Collective, topology: Topology, rank: int, tuning: Tuning = RULES) -> Program:
    """The program of `rank` for `collective`; the most recently used ones are kept.

    The steps that touch other ranks do not depend on `collective.in_place`, so ranks may differ in it.

    Raises:
        TopologyError: The topology has another number of ranks than the collective, or `rank` is none of them.
    """
    _check(collective, topology)
    topology.cluster_index(rank)  # raises unless it is a rank
    if collective.kind.row.family is Family.SCAN:
        return scans.plan(collective, topology, rank, tuning)
    if len(topology.clusters) == 1:
        return home.plan(collective, topology, rank)
    if collective.kind.row.family is Family.EXCHANGE:
        return flat.direct(collective, rank) if tuning.direct_exchange else exchange.plan(collective, topology, rank)
    if tuning.is_narrow(collective):
        topology = _narrowed(topology, collective.root)
    if is_large(topology, tuning):
        if circulant.fits(collective, topology):
            return circulant.plan(collective, topology, rank)
        if cascade.fits(collective, topology):
            return cascade.plan(collective, topology, rank)
    if mutual.fits(collective, topology, tuning):
        return mutual.plan(collective, topology, rank)
    return hierarchical.plan(collective, topology, rank, tuning)


@lru_cache(maxsize=64)
def _narrowed(topology: Topology, root: int | None) -> Topology:
    """The topology with one border rank in each cluster, which is the root in its own if it is one there."""
    clusters = []
    for cluster in topology.clusters:
        chosen = [uplink for uplink in cluster.uplinks if uplink.rank == root] or cluster.uplinks[:1]
        clusters.append(replace(cluster, uplinks=tuple(chosen)))
    return Topology(tuple(clusters))


def is_large(topology: Topology, tuning: Tuning = RULES) -> bool:
    """Whether steps in proportion to the clusters and their border ranks are too many."""
    if topology.has_sites:
        return False
    return len(topology.clusters) > tuning.many_clusters or topology.nborder > tuning.many_border_ranks


def schedule(collective: Collective, topology: Topology, tuning: Tuning = RULES) -> Schedule:
    """The programs of all ranks, for tests and tools; errors as `plan`."""
    programs = tuple(plan.__wrapped__(collective, topology, rank, tuning) for rank in range(topology.nranks))
    return Schedule(collective, programs, topology.communicators())


def why(collective: Collective, topology: Topology, tuning: Tuning = RULES) -> str:
    """One sentence that says which plan it is and why; errors as `plan`."""
    _check(collective, topology)
    name, clusters = collective.kind.value, topology.clusters
    if not collective.total:
        return f"{name} of no elements: nothing to do."
    if topology.nranks == 1:
        return f"{name} over one rank: a local copy."
    if len(clusters) == 1:
        only = clusters[0]
        called = any(isinstance(step, VendorCall) for step in plan(collective, topology, only.ranks[0], tuning).steps)
        how = f"calls of vendor {only.vendor!r}" if called else "messages"
        return f"{name} over one cluster, {only.name!r}: {how} over its {len(only)} ranks."
    if collective.kind.row.family is Family.SCAN:
        return _why_scan(collective, topology, tuning)
    least = bounds.least_total(collective, topology)
    border = sum(len(cluster.border) for cluster in clusters)
    return (
        f"{name} over {len(clusters)} clusters with {border} border ranks: {_shape(collective, topology, tuning)}, "
        f"since it moves {least} bytes between clusters, the least there can be."
    )


def _why_scan(collective: Collective, topology: Topology, tuning: Tuning) -> str:
    least = bounds.least_total(collective, topology)
    moved = scans.crossings(collective, topology, tuning) * bounds.vector_bytes(collective)
    algorithm = plan(collective, topology, 0, tuning).algorithm
    cost = "the least there can be" if moved == least else f"{moved / least:.2f} times the least, in fewer steps"
    where = f"{len(topology.clusters)} clusters in {scans.nstretches(topology)} stretches of the rank order"
    return f"{collective.kind.value} over {where}: {algorithm}, which moves {moved} bytes between clusters, {cost}."


def _shape(collective: Collective, topology: Topology, tuning: Tuning) -> str:
    phases = "home phase, border reduction, home phase" if collective.kind.reduces else "home phase, border phase"
    algorithm = plan(collective, topology, topology.clusters[0].border[0], tuning).algorithm
    return f"{algorithm} ({phases})"


def _check(collective: Collective, topology: Topology) -> None:
    if collective.nranks != topology.nranks:
        raise TopologyError(
            f"{collective.kind.value} is over {collective.nranks} ranks, but the topology has {topology.nranks}",
            remedy="Use the topology of the communicator that the collective runs on.",
        )
