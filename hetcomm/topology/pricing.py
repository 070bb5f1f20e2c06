"""What a plan would cost, from the program of one rank or a few: quick enough to choose by, at any size of job.

A rank's time has three parts, of which the first two overlap as far as the chunks of the plan allow:

    home      the vendor calls of the program, one after another
    wire      the bytes it sends or receives between clusters, whichever takes longer, at its uplink's bandwidth
    steps     `overhead` for each step, local work, and the latency of each message that waits for another

    price = max(home, wire) + min(home, wire) / chunks + steps

What it leaves out, waiting for others in the main, `hetcomm.schedule.simulate` adds, at the cost of building all
programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hetcomm.schedule.collective import Collective
from hetcomm.schedule.dataflow import dependencies
from hetcomm.schedule.simulate import Costs
from hetcomm.schedule.spec import Family
from hetcomm.schedule.steps import Copy, Fill, Program, Recv, Reduce, Send, VendorCall
from hetcomm.topology import select
from hetcomm.topology.costs import Calibration, costs_of
from hetcomm.topology.inline import inline
from hetcomm.topology.model import Topology
from hetcomm.topology.tuning import RULES, Tuning

__all__ = ["Price", "best", "candidates", "of_plan", "of_program"]

_MOST_CLUSTERS = 8  # whose border ranks stand for the job
_CHUNKS = (1, 4, 16, 64)
_INLINED = 64 << 10  # bytes; longer vectors are not worth the messages


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds that a rank takes for a program.

    Attributes:
        home: In vendor calls.
        wire: On its uplink.
        steps: In starting steps, in local work, and in latencies.
        chunks: By which the first two overlap.
    """

    home: float
    wire: float
    steps: float
    chunks: int = 1

    @property
    def seconds(self) -> float:
        """The whole."""
        return max(self.home, self.wire) + min(self.home, self.wire) / self.chunks + self.steps


def of_program(program: Program, topology: Topology, calibration: Calibration, chunks: int = 1) -> Price:
    """The price of one rank's program; `chunks` is how many follow one another in it."""
    costs, rank, itemsize = costs_of(topology, calibration), program.rank, program.collective.dtype.itemsize
    here = topology.cluster_index(rank)
    home = local = away = back = 0.0
    for step in program.steps:
        match step:
            case VendorCall():
                home += costs.vendor(step.comm, step.collective)
            case Copy() | Fill() | Reduce():
                local += costs.local(step, step.dst.count * itemsize)
            case Send() if topology.cluster_index(step.peer) != here:
                away += step.src.count * itemsize / costs.path(rank, step.peer).out_port.bandwidth
            case Recv() if topology.cluster_index(step.peer) != here:
                back += step.dst.count * itemsize / costs.path(step.peer, rank).in_port.bandwidth
            case _:
                pass
    steps = costs.overhead * len(program.steps) + local + _latency(program, costs)
    return Price(home, max(away, back), steps, chunks)


def _latency(program: Program, costs: Costs) -> float:
    """Of the longest chain of receives that wait for one another in one rank."""
    depth = [0.0] * len(program.steps)
    for index, (step, order) in enumerate(zip(program.steps, dependencies(program), strict=True)):
        depth[index] = max((depth[before] for before in order.complete), default=0.0)
        if isinstance(step, Recv):
            depth[index] += costs.path(step.peer, program.rank).latency
    return max(depth, default=0.0)


def of_plan(
    collective: Collective, topology: Topology, calibration: Calibration, tuning: Tuning = RULES
) -> tuple[Price, Program]:
    """The highest price among some border ranks, one for each of up to 8 clusters, and the program that has it."""
    nbytes = collective.total * collective.dtype.itemsize
    chunks = 1 if tuning.is_small(nbytes) else tuning.chunks(nbytes, len(topology.clusters))
    found = [select.plan.__wrapped__(collective, topology, rank, tuning) for rank in _speakers(topology)]
    for index, program in enumerate(found):
        cluster = topology.cluster_of(program.rank)
        if tuning.is_inlined(nbytes, len(cluster)):
            found[index] = inline(program, topology.communicators_of(cluster))
    prices = [(of_program(program, topology, calibration, chunks), program) for program in found]
    return max(prices, key=lambda priced: priced[0].seconds)


def _speakers(topology: Topology) -> Sequence[int]:
    clusters = topology.clusters
    chosen = clusters[:: -(-len(clusters) // _MOST_CLUSTERS)]
    return [(cluster.border or cluster.ranks)[0] for cluster in chosen]


def candidates(collective: Collective, topology: Topology) -> Iterator[tuple[str, Tuning]]:
    """The plans there are to choose from, by name."""
    nbytes = collective.total * collective.dtype.itemsize
    if select.is_large(topology) or len(topology.clusters) == 1 or not nbytes:
        yield "the only plan", RULES
        return
    adding, scans = [False], collective.kind.row.family is Family.SCAN
    if (
        collective.op is not None
        and not scans
        and any(len(each.border) > 1 and each.is_even for each in topology.clusters)
    ):
        adding.append(True)
    for locally in adding:
        end = ", border ranks add by themselves" if locally else ""
        yield f"fewest steps{end}", Tuning(few_steps_bytes=nbytes, inline_bytes=0, local_reduction=locally)
        if nbytes <= _INLINED and not scans:
            most = nbytes * max(map(len, topology.clusters))
            yield f"fewest steps, without vendors{end}", Tuning(nbytes, inline_bytes=most, local_reduction=locally)
        for chunks in _CHUNKS[1:] if scans else _CHUNKS:  # a scan of one piece takes the fewest steps
            name = "hubs by bandwidth" if chunks == 1 else f"hubs by bandwidth, {chunks} chunks"
            if scans:
                name = f"{chunks} pieces"
            size = -(-nbytes // chunks)
            yield (
                f"{name}{end}",
                Tuning(0, size, chunks, inline_bytes=0, local_reduction=locally),
            )


@lru_cache(maxsize=1024)
def best(collective: Collective, topology: Topology, calibration: Calibration) -> Tuning:
    """The tuning of the cheapest candidate; it depends on what is equal on all ranks only."""
    priced = [
        (of_plan(collective.agreed(), topology, calibration, tuning)[0].seconds, number, tuning)
        for number, (_, tuning) in enumerate(candidates(collective, topology))
    ]
    return min(priced, key=lambda each: each[:2])[2]
