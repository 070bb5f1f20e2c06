"""What `hetcomm plan` makes and shows: the verified schedule of a described job, with its bytes beside the bound."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hetcomm._cli.units import format_nbytes
from hetcomm.errors import UsageError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.serial import to_json
from hetcomm.schedule.steps import Schedule
from hetcomm.schedule.timeline import label
from hetcomm.schedule.verify import Proof, verify
from hetcomm.topology import bounds, select
from hetcomm.topology.model import Cluster, Topology
from hetcomm.types import DataType, ReduceKind

__all__ = ["Planned", "Request", "as_json", "make", "show"]

_MOST_STEPS = 40  # of one program, on a screen
_MOST_CLUSTERS = 8  # whose programs are shown unless ranks are named


@dataclass(frozen=True, slots=True)
class Request:
    """A question to the planners.

    Attributes:
        topology: Path of the topology file.
        kind: Which collective.
        nbytes: The vector of a rank; the input of a rank for reduce_scatter; the gathered total for all_gather.
        dtype: Element type.
        op: The reduction, used where `kind` reduces.
        root: The root, used where `kind` has one.
        in_place: Input and output are one buffer.
    """

    topology: Path
    kind: CollectiveKind
    nbytes: int
    dtype: DataType = DataType.FLOAT32
    op: ReduceKind = ReduceKind.SUM
    root: int = 0
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer: a proven schedule."""

    topology: Topology
    schedule: Schedule
    proof: Proof


def make(request: Request) -> Planned:
    """Load the topology, build every rank's program, and verify them together.

    Raises:
        TopologyError: The file is unreadable or describes no valid topology.
        UsageError: The size is no whole number of elements or blocks, or op, dtype and root do not fit.
        ScheduleError: The plan is wrong, which is a defect of hetcomm.
    """
    topology = Topology.load(request.topology)
    collective = _collective(request, topology.nranks)
    schedule = select.schedule(collective, topology)
    return Planned(topology, schedule, verify(schedule))


def _collective(request: Request, nranks: int) -> Collective:
    kind, unit, what = request.kind, request.dtype.itemsize, f"elements of {request.dtype.value}"
    if kind in (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER):
        unit, what = unit * nranks, f"blocks of {what} for {nranks} ranks"
    count, rest = divmod(request.nbytes, unit)
    if rest:
        raise UsageError(
            f"{request.nbytes} bytes are no whole number of {what}", remedy=f"Give --bytes a multiple of {unit}."
        )
    op = request.op if kind.reduces else None
    root = request.root if kind.has_root else None
    return Collective(kind, nranks, count, request.dtype, op, root, request.in_place)


def as_json(planned: Planned) -> str:
    """The whole schedule in the form of `hetcomm.schedule.serial`."""
    return json.dumps(to_json(planned.schedule))


def show(planned: Planned, console: Console, ranks: tuple[int, ...] = ()) -> None:
    """Print why this plan, the bytes between clusters beside the bound, the proof, and the steps of `ranks`.

    Without `ranks` the steps of one border rank and one other rank of each cluster are shown.

    Raises:
        TopologyError: One of `ranks` is not a rank of the topology.
    """
    topology, proof = planned.topology, planned.proof
    for rank in ranks:
        topology.cluster_index(rank)  # raises unless it is a rank
    console.print(escape(select.why(planned.schedule.collective, topology)))
    console.print(_traffic(planned))
    console.print(
        f"[green]verified[/]: {proof.steps} steps, {proof.messages} messages and {proof.vendor_calls} vendor calls on "
        f"{topology.nranks} ranks; no deadlock, no race, every contribution once, bit-identical on all ranks"
    )
    console.print(
        f"longest chain of steps that wait for one another: {proof.critical_path}, with {proof.rounds} messages and "
        "vendor calls"
    )
    shown = ranks or tuple(rank for cluster in topology.clusters[:_MOST_CLUSTERS] for rank in _examples(cluster))
    for rank in shown:
        _program(planned, rank, console, limit=None if ranks else _MOST_STEPS)
    if len(shown) < topology.nranks:
        console.print("[dim]--rank shows the programs of other ranks, --json all of them[/]")


def _traffic(planned: Planned) -> Table:
    """Bytes out of and into each cluster; a cluster's least need not be reached together with the least total."""
    topology, collective = planned.topology, planned.schedule.collective
    counted = bounds.traffic(planned.schedule.programs, topology)
    outs, ins = bounds.least_out(collective, topology), bounds.least_in(collective, topology)
    table = Table(
        title="bytes between clusters", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("cluster")
    table.add_column("vendor")
    for name in ("ranks", "border", "out", "least out", "in", "least in"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, cluster in enumerate(topology.clusters):
        sizes = (counted.out_of[i], outs[i], counted.into[i], ins[i])
        members = (str(len(cluster)), str(len(cluster.border)))
        table.add_row(escape(cluster.name), escape(cluster.vendor), *members, *map(format_nbytes, sizes))
    table.add_section()
    least = bounds.least_total(collective, topology)
    total = (format_nbytes(counted.total), format_nbytes(least))
    nborder = sum(len(cluster.border) for cluster in topology.clusters)
    table.add_row("all", "", str(topology.nranks), str(nborder), *total, "", "")
    return table


def _examples(cluster: Cluster) -> list[int]:
    """A border rank and another rank of a cluster, where it has them."""
    inner = next((rank for rank in cluster.ranks if rank not in cluster.border), None)
    found = [*cluster.border[:1], *([inner] if inner is not None else [])]
    return found or [cluster.ranks[0]]


def _program(planned: Planned, rank: int, console: Console, limit: int | None) -> None:
    program, cluster = planned.schedule.programs[rank], planned.topology.cluster_of(rank)
    role = "border rank" if rank in cluster.border else "rank"
    console.print(f"\n[bold]rank {rank}[/], {role} of {escape(cluster.name)}: {escape(program.algorithm)}")
    for number, step in enumerate(program.steps[:limit]):
        console.print(f"  {number:3}  {escape(label(step))}")
    if limit is not None and len(program.steps) > limit:
        console.print(f"       [dim]and {len(program.steps) - limit} more[/]")
