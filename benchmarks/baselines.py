"""What all_reduce over several clusters costs without hetcomm's plans: whole schedules that compute the right thing.

C clusters, N ranks, S bytes, 2 or more of each.

==============  =================================================  =====================  ======================
plan            what it does                                       between clusters       seconds at least
==============  =================================================  =====================  ======================
exchange        home reduction, S from each cluster to each other  C(C-1)S                (C-1)S / min B
                one, home broadcast, one after another
ring            one ring over all ranks, in rank order             2C S(N-1)/N            2S(N-1)/N / min B
equal shares    hetcomm's, as if all uplinks were equal            2(C-1)S                2(C-1)/C S / min B
==============  =================================================  =====================  ======================

B is what a cluster's uplinks carry. The exchange is what FlagCX does by default (https://github.com/FlagOpen/FlagCX);
its border ranks have equal shares. In the ring a rank without an uplink uses one of its cluster's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Program, Schedule, Slice
from hetcomm.topology import flat, select
from hetcomm.topology.builder import Builder, Place
from hetcomm.topology.layout import Share
from hetcomm.topology.model import Cluster, Topology, Uplink

Maker = Callable[[Collective, Topology], Schedule]


def exchange(collective: Collective, topology: Topology) -> Schedule:
    """Every cluster sends its partial to every other cluster, and each adds all of them."""
    programs = tuple(_exchange(collective, topology, rank) for rank in range(topology.nranks))
    return Schedule(collective, programs, topology.communicators())


def _exchange(collective: Collective, topology: Topology, rank: int) -> Program:
    builder, home = Builder(collective, rank), topology.cluster_of(rank)
    source, target = builder.source(), builder.target()
    mine = next((share for share in _equal(home, source.count) if share.rank == rank), None)
    partials = [builder.scratch(mine.count) if mine else target.part(0, 0) for _ in topology.clusters]

    def held(partial: Slice) -> Place:
        return lambda start, stop: partial.part(start - (mine.start if mine else 0), stop - start)

    here = topology.cluster_index(rank)
    builder.home_reduce(home, source, _equal(home, source.count), held(partials[here]))
    for other, partial in zip(topology.clusters, partials, strict=True):
        if other is not home:
            builder.send_shares(_equal(home, source.count), _equal(other, source.count), held(partials[here]), 0)
            builder.recv_shares(_equal(other, source.count), _equal(home, source.count), held(partial), 0)
    if mine:
        for partial in partials[1:]:  # in one order everywhere, so that all get the same bits
            builder.reduce(partial, partials[0])
        builder.average(partials[0], target.part(mine.start, mine.count))
    builder.home_spread(home, target, _equal(home, source.count))
    return builder.program("exchange")


def _equal(cluster: Cluster, count: int) -> list[Share]:
    """Equal shares for the border ranks."""
    border = cluster.border
    cuts = [count * number // len(border) for number in range(len(border) + 1)]
    return [Share(a, b, rank) for a, b, rank in zip(cuts, cuts[1:], border, strict=False) if a < b]


def ring(collective: Collective, topology: Topology) -> Schedule:
    """A ring over all ranks, as of a library that takes them for one group."""
    return Schedule(collective, tuple(flat.plan(collective, rank) for rank in range(topology.nranks)), {})


def equal_shares(collective: Collective, topology: Topology) -> Schedule:
    """hetcomm's plan for the same clusters, each with the same bandwidth over all its uplinks."""

    def evened(cluster: Cluster) -> Cluster:
        speed = 1e9 / len(cluster.border)
        return replace(cluster, uplinks=tuple(Uplink(rank, speed, speed) for rank in cluster.border))

    return select.schedule(collective, Topology(tuple(map(evened, topology.clusters))))


BASELINES: Mapping[str, Maker] = {
    "FlagCX's exchange": exchange,
    "ring over all ranks": ring,
    "equal shares": equal_shares,
}
