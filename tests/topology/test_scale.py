"""A program costs what its own rank does, in a job of any size: counted in calls and bytes, since times vary."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from functools import cache

import pytest

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.spec import Family
from hetcomm.schedule.steps import Program, Schedule
from hetcomm.schedule.verify import verify
from hetcomm.topology import bounds
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.select import plan, schedule
from hetcomm.types import DataType, ReduceKind

from .wide import grid

VENDOR_KINDS = [kind for kind in CollectiveKind if kind.row.family is Family.VENDOR]
KINDS = pytest.mark.parametrize("kind", VENDOR_KINDS, ids=lambda kind: kind.value)
BORDER = pytest.mark.parametrize("border", [1, 3, 20], ids=["one border rank", "a few", "all ranks"])
grids = cache(grid)


def collective(kind: CollectiveKind, nranks: int) -> Collective:
    count = 1 << 10 if kind.has_blocks else 1 << 20
    op = ReduceKind.SUM if kind.reduces else None
    return Collective(kind, nranks, count, DataType.FLOAT32, op, 7 if kind.has_root else None)


def program(what: Collective, topology: Topology, rank: int) -> Program:
    return plan.__wrapped__(what, topology, rank)


def calls_of(work: Callable[[], object]) -> int:
    """How many Python and C functions are called."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def some_ranks(topology: Topology) -> tuple[int, ...]:
    """The first and last rank, and some in the middle, with and without an uplink."""
    middle = topology.clusters[len(topology.clusters) // 2].ranks
    return (0, 1, middle[0], middle[-1], topology.nranks - 1)


@pytest.mark.parametrize(
    "kind", [*VENDOR_KINDS, CollectiveKind.SCAN, CollectiveKind.EXSCAN], ids=lambda kind: kind.value
)
@BORDER
def test_a_program_does_not_grow_with_the_job(kind: CollectiveKind, border: int) -> None:
    small, large = grids(64, 20, border), grids(1024, 20, border)  # 6 and 10 rounds
    costs = []
    for topology in (small, large):
        what = collective(kind, topology.nranks)
        for rank in some_ranks(topology):
            program(what, topology, rank)  # what is worked out once for a topology
        costs.append(
            [
                (
                    len(program(what, topology, rank).steps),
                    calls_of(lambda what=what, topology=topology, rank=rank: program(what, topology, rank)),
                )
                for rank in some_ranks(topology)
            ]
        )
    for (steps, calls), (more_steps, more_calls) in zip(*costs, strict=True):
        assert more_steps <= 10 / 6 * steps + 40
        assert more_calls <= 10 / 6 * calls + 400


@KINDS
@BORDER
def test_a_program_of_a_large_cluster_is_no_longer(kind: CollectiveKind, border: int) -> None:
    small, large = grids(40, 20, border), grids(40, 320, {20: None, 3: 48, 1: 1}[border])
    for topology, most in ((small, 200), (large, 200)):
        what = collective(kind, topology.nranks)
        for rank in some_ranks(topology):
            assert len(program(what, topology, rank).steps) <= most


@KINDS
def test_memory_does_not_depend_on_the_job(kind: CollectiveKind) -> None:
    topology = grids(1024, 20, 20)
    what = collective(kind, topology.nranks)
    rank = 10 * 20 + 1
    program(what, topology, rank)  # so that nothing is put into a cache now
    tracemalloc.start()
    try:
        kept = program(what, topology, rank)
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.steps
    assert current < 128 << 10
    assert peak < 192 << 10


def test_lookups() -> None:
    strided = Cluster("a", "mpi", (4, 0, 2), (Uplink(2, 1e9), Uplink(4, 3e9)))
    other = Cluster("b", "mpi", (1, 3), (Uplink(3),))
    assert [strided.position(rank) for rank in (4, 0, 2)] == [0, 1, 2]
    assert [strided.border_position(rank) for rank in (4, 0, 2)] == [0, None, 1]
    assert (strided.is_even, other.is_even) == (False, True)
    assert [3 * weight for weight in strided.weights_out] == pytest.approx(
        [0, 3 * strided.weights_out[1], 4 * strided.weights_out[1]]
    )
    assert strided.weights_in == (0, 1 << 52, 2 << 52)
    assert other.weights_in == ()
    topology = Topology((strided, other))
    assert (topology.order, topology.places, topology.rails, topology.unit) == (None, (), 0, 2)
    assert (grid(3, 4).order, grid(3, 4).rails, grid(3, 4).unit) == ((0, 1, 2), 4, 4)
    assert (grid(3, 4, 3).rails, grid(3, 4, 3).unit) == (0, 3)
    turned = Topology(grid(3, 4).clusters[::-1])
    assert (turned.order, turned.places) == ((2, 1, 0), (2, 1, 0))
    assert Topology((Cluster("alone", "mpi", range(3)),)).rails == 0


@KINDS
def test_hundreds_of_ranks_are_proved(kind: CollectiveKind) -> None:
    topology = grids(40, 8, 8)
    whole = schedule(collective(kind, topology.nranks), topology)
    verify(whole)
    assert bounds.traffic(whole.programs, topology).total == bounds.least_total(whole.collective, topology)


@pytest.mark.slow
@KINDS
def test_thousands_of_ranks_are_proved(kind: CollectiveKind) -> None:
    topology = grids(64, 64, 64)
    whole: Schedule = schedule(collective(kind, topology.nranks), topology)
    verify(whole)
    assert bounds.traffic(whole.programs, topology).total == bounds.least_total(whole.collective, topology)
