"""What the planners for several clusters have in common: channels, the order of peers, and where elements lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetcomm.schedule.steps import Slice
from hetcomm.topology.border import Slot
from hetcomm.topology.builder import Place

__all__ = ["DELIVERY", "RESULTS", "in_slots", "others", "within"]

RESULTS = 0
"""The channel on which finished elements travel between clusters: that of the partials, since sends on one channel keep
their order, so that the partials of a late chunk cannot fill an uplink before the results of an early one."""

DELIVERY = 2
"""The channel on which they travel inside a cluster."""


def others(here: int, nclusters: int) -> list[int]:
    """The other clusters, from the next one round, so that not all send to the same one first."""
    return [(here + k) % nclusters for k in range(1, nclusters)]


def within(space: Slice, first: int = 0) -> Place:
    """Elements lie in `space` side by side, from element `first` on."""
    return lambda start, stop: space.part(start - first, stop - start)


def in_slots(slots: Sequence[Slot], held: Mapping[int, Slice]) -> Place:
    """Elements lie in the slices of `held`, which has one for each slot of this rank, by the slot's start."""

    def where(start: int, stop: int) -> Slice:
        slot = next(slot for slot in slots if slot.start <= start < slot.stop)
        return held[slot.start].part(start - slot.start, stop - start)

    return where
