"""How many bytes a plan must move between clusters: the least there can be, with one exception."""

from __future__ import annotations

from hetcomm.schedule.collective import Collective
from hetcomm.schedule.spec import Family
from hetcomm.topology import bounds, scans
from hetcomm.topology.model import Topology
from hetcomm.topology.stretches import MOST_CHAINED
from hetcomm.topology.tuning import RULES, Tuning


def wanted(collective: Collective, topology: Topology, tuning: Tuning = RULES) -> int:
    """The least; of a short scan over many stretches what the tree moves, which is less than twice as much."""
    least = bounds.least_total(collective, topology)
    if collective.kind.row.family is not Family.SCAN:
        return least
    found = scans.crossings(collective, topology, tuning) * bounds.vector_bytes(collective)
    few = scans.nstretches(topology) <= MOST_CHAINED or not tuning.is_small(bounds.vector_bytes(collective))
    assert found == least if few else least <= found <= 2 * least
    return found
