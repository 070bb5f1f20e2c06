"""What `hetcomm plan` makes and shows: the plan of a described job, proved, priced, drawn, with its bytes beside the
bound.

Jobs of up to `WHOLE_RANKS` ranks (fewer for an all_to_all) are planned as a whole, verified and simulated. Of larger
ones the programs of some ranks are planned and priced: each process plans its own at run time too, and the proof for
larger jobs is that the planners are tested on all shapes of smaller ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hetcomm._cli.units import format_nbytes, format_seconds
from hetcomm.errors import UsageError
from hetcomm.schedule import draw, trace
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.serial import to_json
from hetcomm.schedule.simulate import simulate
from hetcomm.schedule.steps import CommId, Program, Recv, Schedule, Send
from hetcomm.schedule.timeline import Timeline, label
from hetcomm.schedule.verify import Proof, verify
from hetcomm.topology import bounds, pricing, select
from hetcomm.topology.costs import DEFAULT, Calibration, costs_of
from hetcomm.topology.model import Cluster, Topology
from hetcomm.topology.tuning import Tuning, on
from hetcomm.types import DataType, ReduceKind

__all__ = ["WHOLE_RANKS", "Planned", "Request", "as_json", "draw_to", "make", "parse_counts", "show", "trace_to"]

WHOLE_RANKS = 4096
"""The largest job that is planned as a whole."""

_WHOLE_PAIRS = 1 << 16  # of ranks, in an all_to_all
_MOST_SIMULATED = 400_000  # steps
_MOST_STEPS = 40  # of one program, on a screen
_MOST_CLUSTERS = 8  # whose programs are shown unless ranks are named
_MOST_ROWS = 16  # clusters in the table of bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A question to the planners.

    Attributes:
        topology: Path of the topology file.
        kind: Which collective.
        nbytes: The vector of a rank; the input of a rank for reduce_scatter and all_to_all; the blocks of all ranks
            together for all_gather, gather and scatter.
        dtype: Element type.
        op: The reduction, used where `kind` reduces.
        root: The root, used where `kind` has one.
        in_place: Input and output are one buffer.
        counts: Elements of each rank's block, for the vector forms, in place of `nbytes`.
        calibration: Path of a calibration, by which the plan is chosen and priced; None: the rules, and default costs.
    """

    topology: Path
    kind: CollectiveKind
    nbytes: int
    dtype: DataType = DataType.FLOAT32
    op: ReduceKind = ReduceKind.SUM
    root: int = 0
    in_place: bool = False
    counts: tuple[int, ...] | None = None
    calibration: Path | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer.

    Attributes:
        topology: Of the job.
        collective: What was planned.
        calibration: By which it is priced.
        tuning: By which it was planned.
        programs: Those of all ranks, or of a large job those of some, by rank.
        schedule: All of them; None for a large job.
        proof: What verification found; None for a large job.
        timeline: The simulation; None for a large job.
    """

    topology: Topology
    collective: Collective
    calibration: Calibration
    tuning: Tuning
    programs: Mapping[int, Program]
    schedule: Schedule | None = None
    proof: Proof | None = None
    timeline: Timeline | None = None


def make(request: Request, ranks: Sequence[int] = ()) -> Planned:
    """Load the topology and plan; a job that is not too large is verified and simulated as a whole.

    Args:
        request: What is asked.
        ranks: Of a large job, whose programs are wanted; without any, those of some border ranks and others.

    Raises:
        TopologyError: The file is unreadable or describes no valid topology, or has no rank that is one of `ranks`.
        UsageError: The size is no whole number of elements or blocks, or op, dtype, root, counts or calibration are
            unusable.
        ScheduleError: The plan is wrong, which is a defect of hetcomm.
    """
    topology = Topology.load(request.topology)
    for rank in ranks:
        topology.cluster_index(rank)  # raises unless it is a rank
    collective = _collective(request, topology.nranks)
    if request.calibration is None:
        calibration, tuning = DEFAULT, on(topology)
    else:
        calibration = Calibration.load(request.calibration)
        tuning = pricing.best(collective, topology, calibration)
    if topology.nranks > WHOLE_RANKS or (
        collective.kind is CollectiveKind.ALL_TO_ALL and topology.nranks**2 > _WHOLE_PAIRS
    ):
        chosen = ranks or [r for cluster in topology.clusters[:_MOST_CLUSTERS] for r in _examples(cluster)]
        programs = {rank: select.plan(collective, topology, rank, tuning) for rank in chosen}
        return Planned(topology, collective, calibration, tuning, programs)
    schedule = select.schedule(collective, topology, tuning)
    proof, timeline = verify(schedule), None
    if proof.steps <= _MOST_SIMULATED:
        timeline = simulate(schedule, costs_of(topology, calibration))
    found = {program.rank: program for program in schedule.programs}
    return Planned(topology, collective, calibration, tuning, found, schedule, proof, timeline)


def _collective(request: Request, nranks: int) -> Collective:
    kind, unit, what = request.kind, request.dtype.itemsize, f"elements of {request.dtype.value}"
    op = request.op if kind.reduces else None
    root = request.root if kind.has_root else None
    if request.counts is not None:
        count = sum(request.counts)
        return Collective(kind, nranks, count, request.dtype, op, root, request.in_place, request.counts)
    if kind.has_blocks:
        unit, what = unit * nranks, f"blocks of {what} for {nranks} ranks"
    count, rest = divmod(request.nbytes, unit)
    if rest:
        raise UsageError(
            f"{request.nbytes} bytes are no whole number of {what}", remedy=f"Give --bytes a multiple of {unit}."
        )
    return Collective(kind, nranks, count, request.dtype, op, root, request.in_place)


def parse_counts(text: str) -> tuple[int, ...]:
    """The numbers in a list such as '3,0,5'.

    Raises:
        UsageError: One of them is no whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--counts {text!r} is no list of whole numbers", remedy="Write --counts 3,0,5.") from error


def as_json(planned: Planned) -> str:
    """The whole schedule in the form of `hetcomm.schedule.serial`.

    Raises:
        UsageError: The job is too large for that.
    """
    if planned.schedule is None:
        raise UsageError(
            f"the schedule of a job of {planned.topology.nranks} ranks is not written as a whole",
            remedy=f"Plan a job of up to {WHOLE_RANKS} ranks, or look at single ranks with --rank.",
        )
    return json.dumps(to_json(planned.schedule))


def draw_to(planned: Planned, path: Path) -> None:
    """Draw the messages over the simulated time, as SVG or PNG; of a large job those between the planned ranks.

    Raises:
        UsageError: There is no matplotlib, or the file cannot be written.
    """
    schedule, timeline, note = _drawable(planned)
    draw.diagram(schedule, path, timeline=timeline, clusters=_clusters_of(planned), title=_title(planned) + note)


def trace_to(planned: Planned, path: Path) -> None:
    """Write the simulation as a Chrome trace, for Perfetto; of a large job that between the planned ranks.

    Raises:
        UsageError: The file cannot be written.
    """
    trace.save_trace(_drawable(planned)[1], path, clusters=_clusters_of(planned))


def _drawable(planned: Planned) -> tuple[Schedule, Timeline, str]:
    costs = costs_of(planned.topology, planned.calibration)
    if planned.schedule is not None:
        return planned.schedule, planned.timeline or simulate(planned.schedule, costs), ""
    excerpt = _excerpt(planned)
    return excerpt, simulate(excerpt, costs), f"; only what passes between {len(planned.programs)} of its ranks"


def _excerpt(planned: Planned) -> Schedule:
    """A schedule in which the planned ranks do what they do among themselves, and the others do nothing."""
    collective, topology, known = planned.collective, planned.topology, planned.programs
    programs = [Program(rank, collective, ()) for rank in range(topology.nranks)]
    for rank, program in known.items():
        kept = tuple(step for step in program.steps if not isinstance(step, (Send, Recv)) or step.peer in known)
        programs[rank] = replace(program, steps=kept)
    communicators: dict[CommId, tuple[int, ...]] = {}
    for index in {topology.cluster_index(rank) for rank in known}:
        for comm, members in topology.communicators_of(topology.clusters[index]).items():
            communicators[comm] = tuple(rank for rank in members if rank in known)
    return Schedule(collective, tuple(programs), communicators)


def _clusters_of(planned: Planned) -> dict[str, tuple[int, ...]]:
    return {
        cluster.name: tuple(rank for rank in cluster.ranks if rank in planned.programs)
        for cluster in planned.topology.clusters
        if any(rank in planned.programs for rank in cluster.ranks)
    }


def _title(planned: Planned) -> str:
    collective = planned.collective
    nbytes = format_nbytes(bounds.vector_bytes(collective))
    return f"{collective.kind.value} of {nbytes} on {planned.topology.nranks} ranks"


def show(planned: Planned, console: Console, ranks: tuple[int, ...] = ()) -> None:
    """Print why this plan, the bytes between clusters beside the bound, the proof, the candidates, and the steps of
    `ranks`; without any, those of one border rank and one other rank of each cluster."""
    topology, proof = planned.topology, planned.proof
    console.print(escape(select.why(planned.collective, topology, planned.tuning)))
    if planned.schedule is not None and proof is not None:
        console.print(_traffic(planned.topology, planned.schedule))
        console.print(
            f"[green]verified[/]: {proof.steps} steps, {proof.messages} messages and {proof.vendor_calls} vendor calls "
            f"on {topology.nranks} ranks; no deadlock, no race, every contribution once"
            f"{', bit-identical on all ranks' if planned.collective.kind.is_same_everywhere else ''}"
        )
        console.print(
            f"longest chain of steps that wait for one another: {proof.critical_path}, with {proof.rounds} messages "
            "and vendor calls"
        )
    else:
        console.print(
            f"{topology.nranks} ranks in {len(topology.clusters)} clusters: not built as a whole, so not verified; "
            f"the least between clusters is {format_nbytes(bounds.least_total(planned.collective, topology))}"
        )
    least = bounds.least_time(planned.collective, topology)
    if least:
        console.print(f"least time that the uplinks allow: {format_seconds(least)}")
    if planned.timeline is not None:
        console.print(f"simulated: {format_seconds(planned.timeline.duration)}")
    if len(topology.clusters) > 1 and planned.collective.total:
        console.print(_candidates(planned, least))
    shown = ranks or tuple(r for cluster in topology.clusters[:_MOST_CLUSTERS] for r in _examples(cluster))
    for rank in shown:
        _program(planned, rank, console, limit=None if ranks else _MOST_STEPS)
    if len(shown) < topology.nranks:
        console.print("[dim]--rank shows the programs of other ranks, --json all of them[/]")


def _candidates(planned: Planned, least: float) -> Table:
    """Each plan there is to choose from, with its price and what it consists of."""
    table = _table("candidates, by the price of the dearest of some border ranks")
    table.add_column("plan")
    for name in ("price", "of least", "vendor calls", "uplink", "steps of a rank"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, tuning in pricing.candidates(planned.collective, planned.topology):
        price, program = pricing.of_plan(planned.collective, planned.topology, planned.calibration, tuning)
        times = map(format_seconds, (price.home, price.wire))
        ratio = f"{price.seconds / least:.2f} x" if least else ""
        table.add_row(name, format_seconds(price.seconds), ratio, *times, str(len(program.steps)))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _traffic(topology: Topology, schedule: Schedule) -> Table:
    """Bytes out of and into each cluster; a cluster's least need not be reached together with the least total."""
    collective = schedule.collective
    counted = bounds.traffic(schedule.programs, topology)
    outs, ins = bounds.least_out(collective, topology), bounds.least_in(collective, topology)
    table = _table("bytes between clusters")
    table.add_column("cluster")
    table.add_column("vendor")
    for name in ("ranks", "border", "out", "least out", "in", "least in"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, cluster in enumerate(topology.clusters[:_MOST_ROWS]):
        sizes = (counted.out_of[i], outs[i], counted.into[i], ins[i])
        members = (str(len(cluster)), str(len(cluster.border)))
        table.add_row(escape(cluster.name), escape(cluster.vendor), *members, *map(format_nbytes, sizes))
    if len(topology.clusters) > _MOST_ROWS:
        table.add_row(f"and {len(topology.clusters) - _MOST_ROWS} more")
    table.add_section()
    least = bounds.least_total(collective, topology)
    total = (format_nbytes(counted.total), format_nbytes(least))
    nborder = sum(len(cluster.border) for cluster in topology.clusters)
    table.add_row("all", "", str(topology.nranks), str(nborder), *total, "", "")
    return table


def _examples(cluster: Cluster) -> list[int]:
    """A border rank and another rank of a cluster, where it has them."""
    border = set(cluster.border)
    inner = next((rank for rank in cluster.ranks if rank not in border), None)
    found = [*cluster.border[:1], *([inner] if inner is not None else [])]
    return found or [cluster.ranks[0]]


def _program(planned: Planned, rank: int, console: Console, limit: int | None) -> None:
    program, cluster = planned.programs[rank], planned.topology.cluster_of(rank)
    role = "border rank" if rank in cluster.border else "rank"
    console.print(f"\n[bold]rank {rank}[/], {role} of {escape(cluster.name)}: {escape(program.algorithm)}")
    for number, step in enumerate(program.steps[:limit]):
        console.print(f"  {number:3}  {escape(label(step))}")
    if limit is not None and len(program.steps) > limit:
        console.print(f"       [dim]and {len(program.steps) - limit} more[/]")
