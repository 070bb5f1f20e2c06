"""`hetcomm bench --calibrate`: measures what `hetcomm.topology.costs.Calibration` holds, and the uplinks beside it.

Every rank of a job goes through the same list of *rounds*, each of them some repetitions of one thing at one size, and
goes through the whole list again and again, so that a busy moment of the machine meets all rounds and not one:

================  =====================================================================================================
round             one sample, in seconds
================  =====================================================================================================
call              a vendor call on the home communicator, all clusters at the same time, as in real plans; the slowest
                  rank of a cluster counts. Roots rotate: with one root its calls would overtake one another
message           half a round trip between the first two ranks of each cluster, all clusters at the same time
uplink            half a round trip between two border ranks, one pair after another
copy, reduce      on every rank at the same time
step              a chain of copies of one element through the executor, divided by its steps; what the copy itself
                  takes is subtracted
================  =====================================================================================================

Medians over the repetitions are what lines are fitted to (`hetcomm._cli.fit`). An uplink's bandwidth is that of both
ways together, and no more than that of the other end: the best over the clusters it was measured to.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy

import hetcomm
from hetcomm._cli.fit import Fit, Point, fit, point
from hetcomm.calls.buffers import memory
from hetcomm.errors import CollectiveTimeoutError, UsageError
from hetcomm.execution import local
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Buffer, Copy, Program, Slice, VendorCall
from hetcomm.topology.costs import Calibration, CallCost, Line, volume
from hetcomm.topology.inline import inline
from hetcomm.topology.model import Topology, Uplink
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind
from hetcomm.vendors import registry
from hetcomm.vendors.base import COLLECTIVES, Operation
from hetcomm.waiting.waiting import wait

__all__ = ["FULL", "QUICK", "Effort", "Result", "measure"]

_STEPS = 256  # of the chain that shows the overhead
_DTYPE = DataType.FLOAT32
_KINDS = sorted(COLLECTIVES, key=lambda kind: kind.value)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: sizes in bytes, ascending, and repetitions of each."""

    sizes: tuple[int, ...]
    repetitions: int


FULL = Effort(tuple(4**power for power in range(3, 12)), 15)
"""64 B to 4 MiB."""

QUICK = Effort((64, 8 << 10, 1 << 20), 3)
"""For a look; its numbers are rough."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured.

    Attributes:
        calibration: What goes into the file.
        fits: What was fitted, by a name to print.
        topology: The job's, with its uplinks as measured; None with one cluster, which has none.
    """

    calibration: Calibration
    fits: dict[str, Fit]
    topology: Topology | None


@dataclass(frozen=True, slots=True)
class _Round:
    """This rank's part of a round.

    Attributes:
        what: What a line is fitted to.
        where: Ranks of one `where` measure one thing together, and the slowest counts.
        nbytes: What beta counts.
        nranks: How many ranks take part.
        sample: Does it; seconds.
    """

    what: tuple[str, ...]
    where: str
    nbytes: float
    nranks: int
    sample: Callable[[], float]


def measure(comm: hetcomm.Communicator, effort: Effort, deadline: float, tick: Callable[[float], None]) -> Result:
    """Measure on the ranks of `comm`, with nothing else under way on it. Collective.

    Args:
        comm: The communicator.
        effort: How much; the same on all ranks.
        deadline: For all of it, on the clock of `time.monotonic`.
        tick: Called on every rank with the part that is done, from 0 to 1.

    Returns:
        The result, the same on all ranks.

    Raises:
        UsageError: No cluster has two ranks, or a vendor takes no host arrays, so that there is nothing to measure.
        CollectiveTimeoutError: The deadline passed.
        VendorError, TransportError: Something failed in the middle; the communicator can only be closed.
    """
    _check(comm.topology)
    rounds = _Bench(comm, effort, deadline).rounds()
    times: list[list[float]] = [[] for _ in rounds]
    for repetition in range(effort.repetitions + 1):
        for number, each in enumerate(rounds):
            comm.barrier(timeout=_left(deadline, comm.rank))
            if each is not None:
                seconds = each.sample()
                if repetition:  # the first one warms up
                    times[number].append(seconds)
            tick((repetition + (number + 1) / len(rounds)) / (effort.repetitions + 1))
    comm.barrier(timeout=_left(deadline, comm.rank))
    mine = [
        None if each is None else [each.what, each.where, each.nbytes, each.nranks, times[number]]
        for number, each in enumerate(rounds)
    ]
    answers = comm._parts.group.all_gather(json.dumps(mine).encode())
    points = _points([json.loads(answer) for answer in answers])
    return _result(comm.topology, points)


def _check(topology: Topology) -> None:
    if all(len(cluster) == 1 for cluster in topology.clusters):
        raise UsageError(
            "no cluster has two ranks, so there is no vendor call to measure",
            remedy="Start at least two ranks in each cluster.",
        )
    for cluster in topology.clusters:
        if MemoryKind.HOST not in registry.vendor(cluster.vendor).capabilities.memory:
            raise UsageError(
                f"vendor {cluster.vendor!r} takes no host arrays, and calibration measures with those",
                remedy="Measure clusters of other vendors, and add its costs to the file by hand.",
            )


def _left(deadline: float, rank: int) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise CollectiveTimeoutError(
            "the measurement did not end in time", remedy="Allow more with --timeout, or add --quick.", rank=rank
        )
    return left


def _times(nbytes: float) -> int:
    """How often a sample does it: enough for the clock, few enough to end."""
    return 16 if nbytes <= 4 << 10 else 4 if nbytes <= 256 << 10 else 1


class _Bench:
    """Makes the rounds of one rank; the lists of all ranks are equally long."""

    def __init__(self, comm: hetcomm.Communicator, effort: Effort, deadline: float) -> None:
        self._comm = comm
        self._parts = comm._parts  # a measurement of the parts needs the parts
        self._sizes = effort.sizes
        self._deadline = deadline
        count = max(effort.sizes) // _DTYPE.itemsize + comm.nranks
        arrays = [numpy.ones(count, numpy.float32) for _ in range(2)]
        self._in, self._out = (memory(each, argument="array", rank=comm.rank, writable=True) for each in arrays)
        self._bytes = arrays[0].view(numpy.uint8)
        self._programs: dict[Collective, Program] = {}

    def rounds(self) -> list[_Round | None]:
        """All rounds, in order; None where this rank takes no part."""
        sizes, topology = self._sizes, self._comm.topology
        cluster = topology.cluster_of(self._comm.rank)
        found: list[_Round | None] = [self._call(kind, nbytes) for nbytes in sizes for kind in _KINDS]
        inside = (cluster.ranks[0], cluster.ranks[1]) if len(cluster) > 1 else (-1, -1)
        found += [self._message(("message",), inside, nbytes) for nbytes in sizes]
        for pair in _border_pairs(topology):
            what = ("uplink", *map(str, pair))
            found += [self._message(what, pair, nbytes) for nbytes in sizes]
        found += [each for nbytes in sizes for each in self._local(nbytes)]
        return [*found, self._step()]

    def _call(self, kind: CollectiveKind, nbytes: int) -> _Round | None:
        cluster = self._comm.topology.cluster_of(self._comm.rank)
        size = len(cluster)
        if size == 1:
            return None
        rank = cluster.ranks.index(self._comm.rank)
        count = max(1, nbytes // _DTYPE.itemsize // (size if kind.has_blocks else 1))
        op = ReduceKind.SUM if kind.reduces else None
        roots: Sequence[int | None] = range(size) if kind.has_root else (None,)
        collectives = [Collective(kind, size, count, _DTYPE, op=op, root=root) for root in roots]
        times, turns = _times(nbytes), []
        for collective in collectives:
            ins, outs = collective.in_count(rank), collective.out_count(rank)
            src, dst = self._in.part(0, ins) if ins else None, self._out.part(0, outs) if outs else None
            turns.append((collective, src, dst))

        def sample() -> float:
            start = time.perf_counter()
            for number in range(times):
                self._wait(self._start(*turns[number % len(turns)]).test)
            return (time.perf_counter() - start) / times

        what = ("call", cluster.vendor, kind.value)
        return _Round(what, cluster.name, volume(collectives[0]), size, sample)

    def _start(self, collective: Collective, src: Memory | None, dst: Memory | None) -> Operation:
        """Start a call of this cluster's vendor; of one that takes none, what it is written out as."""
        topology = self._comm.topology
        cluster = topology.cluster_of(self._comm.rank)
        communicator = self._parts.communicators.get(cluster.home_id)
        if communicator is not None:
            return communicator.start(collective, src, dst)
        program = self._programs.get(collective)
        if program is None:
            source = None if src is None else Slice(Buffer.IN, 0, src.count)
            target = None if dst is None else Slice(Buffer.OUT, 0, dst.count)
            call = VendorCall(cluster.home_id, collective, source, target)
            program = inline(Program(self._comm.rank, collective, (call,)), topology.communicators_of(cluster))
            self._programs[collective] = program
        return self._parts.executor.start(program, src, dst)

    def _message(self, what: tuple[str, ...], pair: tuple[int, int], nbytes: int) -> _Round | None:
        comm = self._comm
        if comm.rank not in pair:
            return None
        first = comm.rank == pair[0]
        peer, array, times = pair[first], self._bytes[:nbytes], _times(nbytes)

        def sample() -> float:
            start = time.perf_counter()
            for _ in range(times):
                if first:
                    comm.send(array, peer)
                comm.recv(array, peer)
                if not first:
                    comm.send(array, peer)
            return (time.perf_counter() - start) / times / 2

        return _Round(what, str(pair), nbytes, 2, sample)

    def _local(self, nbytes: int) -> list[_Round]:
        count, times = nbytes // _DTYPE.itemsize, _times(nbytes)
        src, dst = self._in.part(0, count), self._out.part(0, count)

        def copy() -> float:
            start = time.perf_counter()
            for _ in range(times):
                local.copy(src, dst)
            return (time.perf_counter() - start) / times

        def reduce() -> float:
            start = time.perf_counter()
            for _ in range(times):
                local.reduce(src, dst, ReduceKind.SUM)
            return (time.perf_counter() - start) / times

        where = str(self._comm.rank)
        return [_Round((name,), where, nbytes, 1, run) for name, run in (("copy", copy), ("reduce", reduce))]

    def _step(self) -> _Round:
        collective = Collective(CollectiveKind.BROADCAST, 1, 1, _DTYPE, root=0, in_place=True)
        cells = [Slice(Buffer.OUT, 0, 1), *(Slice(Buffer.SCRATCH, number, 1) for number in range(_STEPS))]
        steps = tuple(Copy(cells[number], cells[number + 1]) for number in range(_STEPS))
        program = Program(self._comm.rank, collective, steps, _STEPS, "chain of copies")
        executor, buffer = self._parts.executor, self._out.part(0, 1)

        def sample() -> float:
            start = time.perf_counter()
            self._wait(executor.start(program, None, buffer).test)
            return (time.perf_counter() - start) / _STEPS

        return _Round(("step",), str(self._comm.rank), _DTYPE.itemsize, 1, sample)

    def _wait(self, test: Callable[[], bool]) -> None:
        if not wait(self._parts.job.pump, test, self._deadline):
            _left(self._deadline, self._comm.rank)


def _border_pairs(topology: Topology) -> list[tuple[int, int]]:
    """Pairs of border ranks of two clusters, so that every border rank is in one with each other cluster."""
    pairs = []
    for number, one in enumerate(topology.clusters):
        for other in topology.clusters[:number]:
            here, there = other.border, one.border
            pairs += [(here[i % len(here)], there[i % len(there)]) for i in range(max(len(here), len(there)))]
    return pairs


def _points(answers: Sequence[Sequence[Any]]) -> dict[tuple[str, ...], list[Point]]:
    """The points of everything that was measured, from what each rank says of each round."""
    points: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for said in zip(*answers, strict=True):
        together: dict[tuple[tuple[str, ...], str], list[Any]] = defaultdict(list)
        for each in said:
            if each is not None:
                together[tuple(each[0]), each[1]].append(each)
        for (what, _), parts in together.items():
            slowest = [max(times) for times in zip(*(part[4] for part in parts), strict=True)]
            points[what].append(point(parts[0][2], slowest, parts[0][3]))
    return points


def _result(topology: Topology, points: dict[tuple[str, ...], list[Point]]) -> Result:
    fits = {what: fit(each) for what, each in points.items() if what != ("step",)}
    calls = tuple(
        CallCost(what[1], CollectiveKind(what[2]), found.alpha, found.per_log2, found.per_rank, found.beta)
        for what, found in fits.items()
        if what[0] == "call"
    )
    message, copy, reduce = (Line(fits[name,].alpha, fits[name,].beta) for name in ("message", "copy", "reduce"))
    step = fit([replace(each, nbytes=0.0) for each in points["step",]])  # all of one size
    overhead = max(0.0, step.alpha - copy.seconds(_DTYPE.itemsize))
    calibration = Calibration(calls, message, copy, reduce, overhead, _machine(topology))
    shown = {" ".join(what): found for what, found in fits.items()}
    shown["step"] = replace(step, alpha=overhead)
    return Result(calibration, shown, _measured(topology, fits, points) if len(topology.clusters) > 1 else None)


def _machine(topology: Topology) -> str:
    """What was measured on, for the file."""
    hosts = {host for cluster in topology.clusters for host in cluster.hosts}
    jobs = " + ".join(f"{len(cluster)} {cluster.vendor}" for cluster in topology.clusters)
    return f"{max(1, len(hosts))} x {platform.machine()} with {os.cpu_count()} cores, ranks {jobs}"


def _measured(
    topology: Topology, fits: dict[tuple[str, ...], Fit], points: dict[tuple[str, ...], list[Point]]
) -> Topology:
    """`topology` with the uplinks that the messages between its border ranks show, to three digits.

    Where messages took no longer the longer they were, an uplink is at least as fast as its longest one.
    """
    seen: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for what, found in fits.items():
        if what[0] == "uplink":
            longest = max(points[what], key=lambda each: each.nbytes)
            bandwidth = 1 / found.beta if found.beta else longest.nbytes / longest.seconds
            for end in what[1:]:
                seen[int(end)].append((float(f"{bandwidth:.3g}"), float(f"{found.alpha:.3g}")))
    clusters = []
    for cluster in topology.clusters:
        uplinks = []
        for rank in cluster.border:
            bandwidths, latencies = zip(*seen[rank], strict=True)
            uplinks.append(Uplink(rank, max(bandwidths), max(bandwidths), min(latencies)))
        clusters.append(replace(cluster, uplinks=tuple(uplinks)))
    return Topology(tuple(clusters))
