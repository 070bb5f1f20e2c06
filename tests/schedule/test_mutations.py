"""Break right schedules in every small way: the verifier rejects the mutant, or it does no harm in numbers either.

Each step of each program is dropped, doubled, swapped with its neighbour and redirected (another peer, channel,
offset, buffer, op or scale). Mutants that the verifier accepts are run in several admissible orders, with garbage
in all memory that is not defined: they must give the reference, bit-identical on all ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hetcomm.errors import ScheduleError
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Buffer, Copy, Fill, Recv, Reduce, Scale, Schedule, Send, Slice, Step, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.topology import select
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import ReduceKind

from .handmade import check_numbers, collective, direct, examples

SEEDS = range(3)


def redirected(step: Step, nranks: int) -> Iterator[Step | None]:
    """Variants of one step; None for one that the vocabulary itself refuses."""
    for field in ("src", "dst"):
        part = getattr(step, field, None)
        if part is not None:
            for buffer in Buffer:
                if buffer is not part.buffer:
                    yield _changed(step, **{field: Slice(buffer, part.offset, part.count)})
            for offset in (part.offset - 1, part.offset + 1):
                yield _changed(step, **{field: (part.buffer, offset, part.count)})
            if part.count:
                yield _changed(step, **{field: Slice(part.buffer, part.offset, part.count - 1)})
    match step:
        case Send() | Recv():
            yield replace(step, peer=(step.peer + 1) % nranks)
            yield replace(step, channel=step.channel + 1)
        case Fill() | Reduce():
            yield replace(step, op=ReduceKind.PROD if step.op is not ReduceKind.PROD else ReduceKind.SUM)
        case Copy():
            for scale in (None, *Scale):
                if scale is not step.scale:
                    yield replace(step, scale=scale)
        case VendorCall():
            if step.collective.root is not None:
                other = (step.collective.root + 1) % step.collective.nranks
                yield replace(step, collective=replace(step.collective, root=other))


def _changed(step: Step, **fields: Any) -> Step | None:
    try:
        return replace(step, **{name: Slice(*part) if type(part) is tuple else part for name, part in fields.items()})
    except ValueError:
        return None


def mutants(schedule: Schedule) -> Iterator[tuple[str, Schedule | None]]:
    """(kind of mutation, mutant or None where it cannot be written down)."""
    for program in schedule.programs:
        steps = program.steps

        def rewritten(new: tuple[Step, ...], rank: int = program.rank) -> Schedule:
            programs = list(schedule.programs)
            programs[rank] = replace(programs[rank], steps=new)
            return replace(schedule, programs=tuple(programs))

        for index, step in enumerate(steps):
            yield "drop", rewritten(steps[:index] + steps[index + 1 :])
            yield "duplicate", rewritten(steps[: index + 1] + steps[index:])
            if index + 1 < len(steps) and steps[index + 1] != step:
                yield "swap", rewritten((*steps[:index], steps[index + 1], step, *steps[index + 2 :]))
            for variant in redirected(step, len(schedule.programs)):
                yield "redirect", rewritten((*steps[:index], variant, *steps[index + 1 :])) if variant else None


def judge(schedules: list[Schedule]) -> Counter[tuple[str, str]]:
    """How many mutants of each kind were 'inexpressible', 'rejected' or 'harmless'; an accepted one may do no harm."""
    counts: Counter[tuple[str, str]] = Counter()
    for schedule in schedules:
        verify(schedule)
        check_numbers(schedule, SEEDS)
        for kind, mutant in mutants(schedule):
            if mutant is None:
                counts[kind, "inexpressible"] += 1
                continue
            try:
                verify(mutant)
            except ScheduleError:
                counts[kind, "rejected"] += 1
                continue
            counts[kind, "harmless"] += 1
            check_numbers(mutant, SEEDS)
    return counts


def shown(counts: Counter[tuple[str, str]]) -> str:
    """The counts as a table, for pytest's summary."""
    return "\n".join(
        f"  {kind:10}"
        + "".join(f"{name} {counts[kind, name]:5}   " for name in ("rejected", "harmless", "inexpressible"))
        for kind in ("drop", "duplicate", "swap", "redirect")
    )


@pytest.mark.parametrize(("op", "in_place"), [("sum", False), ("avg", True), ("premul_sum", False)])
def test_mutants_of_handmade_schedules(op: str, in_place: bool, record_property: Callable[[str, object], None]) -> None:
    made = examples(4, 6, op, 1, in_place)
    counts = judge([schedule for schedule in made if op == "sum" or in_place or schedule.collective.op])
    record_property(f"mutants of handmade schedules, op {op}{', in place' if in_place else ''}", shown(counts))
    assert counts["drop", "rejected"] > 50
    assert counts["drop", "harmless"] == 0
    assert counts["redirect", "rejected"] > 10 * counts["redirect", "harmless"]


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter", "gather", "scatter", "all_to_all"])
def test_mutants_of_vector_forms(kind: str) -> None:
    """Unequal blocks, one of them empty, and on rank 0 displacements that leave gaps."""
    sizes = (2, 0, 3) if kind != "all_to_all" else (1, 2, 0, 2, 0, 1, 1, 3, 0)
    op = "sum" if kind == "reduce_scatter" else None
    root = 0 if kind in ("gather", "scatter") else None
    what = collective(kind, 3, sum(sizes), op, root=root, counts=sizes)
    reads, writes = kind in ("reduce_scatter", "scatter"), kind in ("all_gather", "gather")
    pairs = kind == "all_to_all"
    first = replace(
        what,
        in_place=kind in ("scatter", "gather"),
        in_displs=(6, 3, 0) if reads or pairs else None,
        out_displs=(6, 3, 0) if writes or pairs else None,
    )
    counts = judge([direct([first, what, what])])
    assert counts["drop", "rejected"] > 0
    assert counts["redirect", "rejected"] > 2 * counts["redirect", "harmless"]  # of an empty block any place will do


def planned(what: Collective, sizes: tuple[int, ...]) -> Schedule:
    """What the planners make of it for clusters of these sizes, with two border ranks where there are as many."""
    clusters: list[Cluster] = []
    first = 0
    for number, size in enumerate(sizes):
        uplinks = tuple(Uplink(rank) for rank in range(first, first + min(size, 2)))
        clusters.append(Cluster(f"c{number}", "mpi", range(first, first + size), uplinks))
        first += size
    return select.schedule(what, Topology(tuple(clusters)))


KINDS = [("all_reduce", "avg"), ("reduce_scatter", "sum"), ("all_gather", None), ("broadcast", None), ("reduce", "sum")]


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (3, 1, 2)])
def test_mutants_of_planned_schedules(sizes: tuple[int, ...], record_property: Callable[[str, object], None]) -> None:
    nranks = sum(sizes)
    made: list[Schedule] = []
    for number, (kind, op) in enumerate(KINDS):
        root = number % nranks if kind in ("broadcast", "reduce") else None
        what = collective(
            kind, nranks, nranks + 1 if kind != "all_gather" else 2, op, root=root, in_place=number % 2 == 1
        )
        made.append(planned(what, sizes))
    counts = judge(made)
    record_property(f"mutants of planned schedules, clusters of {'+'.join(map(str, sizes))}", shown(counts))
    assert counts["drop", "rejected"] > 20
    assert counts["redirect", "rejected"] > 5 * counts["redirect", "harmless"]


@pytest.mark.parametrize(("kind", "root"), [("gather", 1), ("scatter", 3), ("all_to_all", None)])
def test_mutants_of_planned_moves(kind: str, root: int | None) -> None:
    counts = judge([planned(collective(kind, 4, 2, root=root, in_place=kind == "scatter"), (1, 3))])
    assert counts["drop", "harmless"] == 0
    assert counts["redirect", "rejected"] > 5 * counts["redirect", "harmless"]


@pytest.mark.parametrize(("kind", "op"), [("scan", "sum"), ("scan", "premul_sum"), ("exscan", "prod")])
@pytest.mark.parametrize("sizes", [(2, 2), (3, 1, 2)])
def test_mutants_of_planned_scans(kind: str, op: str, sizes: tuple[int, ...]) -> None:
    nranks = sum(sizes)
    counts = judge([planned(collective(kind, nranks, 4, op, in_place=in_place), sizes) for in_place in (False, True)])
    assert counts["drop", "harmless"] == 0
    assert counts["redirect", "rejected"] > 10 * counts["redirect", "harmless"]
