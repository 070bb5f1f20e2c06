"""Which cluster is the hub of which part of a vector, so that the uplinks together take the least time.

Every element of a collective has a *hub*: the cluster where partials of it are added up, or from which it is
sent on. C clusters, S elements in all, w_j of them with hub j, B_j the bandwidth of cluster j, f_j its share of the
ranks, r
the cluster of the root. What the hub adds to the traffic of its cluster:

===============  =============================  ======================  ==============================
collective       limited by                     at cluster j            least time T
===============  =============================  ======================  ==============================
all_reduce       out and in, B = min(out, in)   S + (C-2) w_j           max(S/min B, 2(C-1)S/sum B)
reduce_scatter   in                             S f_j + (C-2) w_j       max(S(1-f)/Bout, S f/Bin,
                                                                        (C-1)S/sum Bin)
all_gather       out                            S f_j + (C-2) w_j       mirrored
broadcast        out                            S at r, + (C-2) w_j     max(S/Bout_r, S/min Bin,
                                                                        (C-1)S/sum Bout)
reduce           in                             S at r, + (C-2) w_j     mirrored
===============  =============================  ======================  ==============================

So w_j is at most (T B_j - what it has anyway) / (C-2), and these limits add up to S or more. The other direction and
the total, (C-1)S or twice that, do not depend on the hubs. Where an element has a cluster of its own, the one it comes
from or goes to, that is its hub as far as its limit allows, since this saves a hop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.spec import Family
from hetcomm.topology.model import Topology
from hetcomm.topology.stretches import needed

__all__ = ["Bandwidths", "Region", "bandwidths", "crossing", "least_time", "regions", "sizes"]


@dataclass(frozen=True, slots=True)
class Bandwidths:
    """Bytes/s out of and into each cluster: the sums over its uplinks."""

    out: tuple[float, ...]
    into: tuple[float, ...]

    @property
    def both(self) -> tuple[float, ...]:
        """The lesser of the two."""
        return tuple(map(min, self.out, self.into))


@lru_cache(maxsize=64)
def bandwidths(topology: Topology) -> Bandwidths:
    """Of the clusters of `topology`, in their order."""
    return Bandwidths(
        tuple(sum(uplink.bandwidth_out for uplink in cluster.uplinks) for cluster in topology.clusters),
        tuple(sum(uplink.bandwidth_in for uplink in cluster.uplinks) for cluster in topology.clusters),
    )


@dataclass(frozen=True, slots=True)
class Region:
    """Elements `start` to `stop` and their hub.

    Attributes:
        start, stop: In the vector, or, where there is a home, in the run of the home's blocks.
        hub: Index of the cluster.
        home: The cluster that the elements come from or go to; None: all.
    """

    start: int
    stop: int
    hub: int
    home: int | None = None


def sizes(collective: Collective, topology: Topology) -> list[int]:
    """Elements of the blocks of each cluster's ranks together, for the collectives made of blocks."""
    if collective.counts is None:
        return [collective.count * len(cluster) for cluster in topology.clusters]
    return [sum(collective.block_count(rank) for rank in cluster.ranks) for cluster in topology.clusters]


def least_time(collective: Collective, topology: Topology) -> float:
    """The least seconds that the bandwidths of the uplinks allow; latencies and work inside clusters are free.

    For gather, scatter and all_to_all too: what each cluster must send or receive at its own bandwidth.
    """
    if len(topology.clusters) == 1:
        return 0.0
    return _least_elements_time(collective, topology) * collective.dtype.itemsize


def _least_elements_time(collective: Collective, topology: Topology) -> float:
    width, nclusters, kind = bandwidths(topology), len(topology.clusters), collective.kind
    if kind is CollectiveKind.ALL_TO_ALL:
        leaving, arriving = crossing(collective, topology)
        return max(
            *(count / speed for count, speed in zip(leaving, width.out, strict=True)),
            *(count / speed for count, speed in zip(arriving, width.into, strict=True)),
        )
    total = collective.total
    if kind.row.family is Family.SCAN:
        leaving, arriving = needed(topology)
        return total * max(
            *(count / speed for count, speed in zip(leaving, width.out, strict=True)),
            *(count / speed for count, speed in zip(arriving, width.into, strict=True)),
        )
    if kind is CollectiveKind.ALL_REDUCE:
        both = width.both
        return max(total / min(both), 2 * (nclusters - 1) * total / sum(both))
    mirrored = kind in (CollectiveKind.REDUCE, CollectiveKind.REDUCE_SCATTER, CollectiveKind.GATHER)
    away, back = (width.into, width.out) if mirrored else (width.out, width.into)
    if kind in (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER):
        own = sizes(collective, topology)
        return max(
            *(each / speed for each, speed in zip(own, away, strict=True)),
            *((total - each) / speed for each, speed in zip(own, back, strict=True)),
            (nclusters - 1) * total / sum(away),
        )
    root = topology.cluster_index(collective.root or 0)
    others = [index for index in range(nclusters) if index != root]
    if kind in (CollectiveKind.GATHER, CollectiveKind.SCATTER):
        own = sizes(collective, topology)
        return max((total - own[root]) / away[root], *(own[index] / back[index] for index in others))
    slowest = min(back[index] for index in others)
    return max(total / away[root], total / slowest, (nclusters - 1) * total / sum(away))


def crossing(collective: Collective, topology: Topology) -> tuple[list[int], list[int]]:
    """Elements of an all_to_all that leave each cluster, and that arrive in each."""
    clusters = topology.clusters
    if collective.counts is None:
        leaving = [len(cluster) * (topology.nranks - len(cluster)) * collective.count for cluster in clusters]
        return leaving, leaving
    leaving, arriving = [0] * len(clusters), [0] * len(clusters)
    where = [topology.cluster_index(rank) for rank in range(topology.nranks)]
    for source, here in enumerate(where):
        for there, count in zip(where, collective.sent_counts(source), strict=True):
            if here != there:
                leaving[here] += count
                arriving[there] += count
    return leaving, arriving


def regions(collective: Collective, topology: Topology, unit: int = 1) -> tuple[Region, ...]:
    """The hubs of a collective over two or more clusters, by the table above; empty regions are left out.

    Regions begin at multiples of `unit` in their vector or run.
    """
    kind = collective.kind
    nclusters, width = len(topology.clusters), bandwidths(topology)
    seconds = _least_elements_time(collective, topology)
    if kind is CollectiveKind.ALL_REDUCE:
        limits = [1.0] * 2 if nclusters == 2 else [seconds * speed - collective.count for speed in width.both]
        return tuple(_cut(collective.count, limits, unit, range(nclusters), None))
    speeds = width.into if kind.reduces else width.out
    own = [0] * nclusters
    if collective.root is not None:
        own[topology.cluster_index(collective.root)] = collective.count
    else:
        own = sizes(collective, topology)
    limits = [seconds * speed - each for speed, each in zip(speeds, own, strict=True)]
    return _with_homes(own, [max(limit, 0.0) / max(nclusters - 2, 1) for limit in limits], unit, nclusters)


def _with_homes(own: Sequence[int], limits: Sequence[float], unit: int, nclusters: int) -> tuple[Region, ...]:
    """Hubs of elements that have homes, `own[i]` elements home i; each home is its own hub as far as its limit goes."""
    found: list[Region] = []
    alone = [
        float(each) if nclusters == 2 else min(float(each), limit) for each, limit in zip(own, limits, strict=True)
    ]
    spare = [limit - used for limit, used in zip(limits, alone, strict=True)]
    for home, count in enumerate(own):
        rest = [0.0 if hub == home else max(room, 0.0) for hub, room in enumerate(spare)]
        wanted, available = count - alone[home], sum(rest)
        if wanted < unit or available <= 0:
            found.extend(_cut(count, [1.0], unit, [home], home))
            continue
        # All the others in proportion, rather than a few: a cluster that is no hub of anything is not held back by
        # what comes in, and would fill the queues of the hubs before their turn.
        shares = [wanted * room / available for room in rest]
        spare = [room - share for room, share in zip(spare, shares, strict=True)]
        order = [home, *(hub for hub in range(nclusters) if hub != home)]
        shares[home] = alone[home]
        found.extend(_cut(count, [shares[hub] for hub in order], unit, order, home))
    return tuple(found)


def _cut(count: int, weights: Sequence[float], unit: int, hubs: Sequence[int], home: int | None) -> list[Region]:
    """`count` elements divided over `hubs` in proportion to `weights`, at multiples of `unit`."""
    total = sum(weights)
    if total <= 0:
        weights, total = [1.0] * len(weights), float(len(weights))
    cuts = [0, *(min(count, round(count * so_far / total / unit) * unit) for so_far in accumulate(weights))]
    cuts[-1] = count
    return [Region(a, b, hub, home) for a, b, hub in zip(cuts, cuts[1:], hubs, strict=False) if a < b]
