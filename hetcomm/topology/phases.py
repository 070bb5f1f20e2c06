"""What the planners for several clusters have in common: the phases that their programs are put together from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetcomm.schedule.collective import CollectiveKind
from hetcomm.schedule.steps import Slice
from hetcomm.topology.border import PARTIALS, Combination, Slot, combine, place
from hetcomm.topology.builder import Builder, Place
from hetcomm.topology.layout import Direction, Share, divide, messages
from hetcomm.topology.model import Cluster, Topology

__all__ = [
    "DELIVERY",
    "RESULTS",
    "Destination",
    "contribute",
    "deliver",
    "finish_at_root",
    "in_slots",
    "incoming",
    "others",
    "spread_from_root",
    "to_owner",
    "within",
]

RESULTS = 1
"""The channel on which finished elements travel between clusters."""

DELIVERY = 2
"""The channel on which they travel inside a cluster."""


def others(here: int, nclusters: int) -> list[int]:
    """The other clusters, from the next one round, so that not all send to the same one first."""
    return [(here + k) % nclusters for k in range(1, nclusters)]


def within(space: Slice, first: int = 0) -> Place:
    """Elements lie in `space` side by side, from element `first` on."""
    return lambda start, stop: space.part(start - first, stop - start)


def incoming(topology: Topology, owner: int, count: int) -> list[tuple[Share, ...]]:
    """Who sends what to `owner` of a region of `count` elements: one division for each other cluster's partial."""
    clusters = topology.clusters
    return [divide(clusters[other], count, Direction.OUT) for other in others(owner, len(clusters))]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a cluster's partial of a region goes: to the cluster with index `owner`, as its remote partial `number`."""

    owner: int
    number: int


def to_owner(here: int, owner: int, nclusters: int) -> Destination:
    """The destination of cluster `here`'s partial where all other clusters contribute in the order of `others`."""
    return Destination(owner, (here - owner - 1) % nclusters)


def contribute(
    builder: Builder, topology: Topology, destination: Destination, source: Slice, space: Slice | None = None
) -> None:
    """Reduce a region inside this cluster and send the partial to the cluster that owns it.

    The partial is put into `space`, or into scratch; a cluster of one rank sends its input.
    """
    cluster = topology.cluster_of(builder.rank)
    shares = divide(cluster, source.count, Direction.OUT)
    where = within(source)
    if len(cluster) > 1:
        mine = next((share for share in shares if share.rank == builder.rank), None)
        if space is not None:
            where = within(space)
        elif mine is not None:
            where = within(builder.scratch(mine.count), mine.start)
        builder.home_reduce(cluster, source, shares, where)
    placement = place(topology.clusters[destination.owner], source.count)
    builder.send_shares(shares, placement.receivers(destination.number), where, PARTIALS)


def in_slots(slots: Sequence[Slot], held: Mapping[int, Slice]) -> Place:
    """Elements lie in the slices of `held`, which has one for each slot of this rank, by the slot's start."""

    def where(start: int, stop: int) -> Slice:
        slot = next(slot for slot in slots if slot.start <= start < slot.stop)
        return held[slot.start].part(start - slot.start, stop - start)

    return where


def deliver(
    builder: Builder, slots: Sequence[Slot], held: Mapping[int, Slice], final: Sequence[Share], target: Slice
) -> None:
    """Hand finished elements from the border ranks to those ranks of the cluster that get them."""
    me = builder.rank
    results = [Share(slot.start, slot.stop, slot.result) for slot in slots]
    starts = {share.rank: share.start for share in final}
    for start, stop, sender, receiver in messages(results, final):
        if me not in (sender, receiver):
            continue
        there = target.part(start - starts[me], stop - start) if receiver == me else None
        if sender == me:
            part = in_slots(slots, held)(start, stop)
            if there is None:
                builder.send(part, receiver, DELIVERY)
            else:
                builder.copy(part, there)
        elif there is not None:
            builder.recv(there, sender, DELIVERY)


def spread_from_root(builder: Builder, cluster: Cluster, target: Slice) -> Slice:
    """Give the root's vector to all ranks of its cluster; returns where on this rank it can be sent on from."""
    rank, root = builder.rank, builder.collective.root or 0
    source = builder.source() if rank == root else None
    if len(cluster) > 1:
        where, kind = cluster.ranks.index(root), CollectiveKind.BROADCAST
        builder.vendor(cluster.home_id, len(cluster), kind, target.count, src=source, dst=target, root=where)
    elif source is not None:
        builder.copy(source, target)
    return target if source is None else source


def finish_at_root(
    builder: Builder, cluster: Cluster, arriving: Sequence[Sequence[Share]], source: Slice, target: Slice
) -> None:
    """In the root's cluster, add a region to the partials `arriving` of it, and hand the sum to the root."""
    rank, root = builder.rank, builder.collective.root or 0
    placement = place(cluster, source.count)
    held: dict[int, Slice] = {}

    def result(slot: Slot) -> Slice:
        held[slot.start] = target.part(slot.start, slot.count) if rank == root else builder.scratch(slot.count)
        return held[slot.start]

    combine(builder, Combination(cluster, source, placement, arriving, result))
    deliver(builder, placement.slots, held, (Share(0, source.count, root),), target)
