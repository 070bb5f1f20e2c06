"""Gather, scatter and all_to_all over several clusters are proved, and move exactly what must move between them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from hetcomm._conformance.reference import reference, run_schedule
from hetcomm._conformance.strategies import topologies
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import Buffer, Program, Recv, Schedule, Send, Step
from hetcomm.schedule.verify import verify
from hetcomm.topology import exchange
from hetcomm.topology.builder import SMALL_BYTES
from hetcomm.topology.lanes import Lane
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import DataType

from .forms import SEEDS, own_forms, vector_forms

EXCHANGES = (CollectiveKind.GATHER, CollectiveKind.SCATTER, CollectiveKind.ALL_TO_ALL)
KINDS = pytest.mark.parametrize("kind", EXCHANGES, ids=lambda kind: kind.value)
ALL_TO_ALL = CollectiveKind.ALL_TO_ALL


def clusters_of(*sizes: int, border: int | None = None) -> Topology:
    """Clusters of consecutive ranks with equal uplinks at their first `border` ranks, or at all."""
    found, first = [], 0
    for number, size in enumerate(sizes):
        ranks = range(first, first + size)
        found.append(Cluster(f"c{number}", "mpi", ranks, tuple(Uplink(rank) for rank in ranks[: border or size])))
        first += size
    return Topology(tuple(found))


@st.composite
def exchanges(draw: DrawFn, nranks: int, kind: CollectiveKind) -> Collective:
    """Equal blocks of any size, or unequal ones."""
    if draw(st.booleans()):
        return draw(vector_forms(nranks, kind))
    root = draw(st.integers(0, nranks - 1)) if kind.has_root else None
    count = draw(st.one_of(st.integers(0, 20), st.sampled_from([nranks, 1009, 20011])))
    return Collective(kind, nranks, count, draw(st.sampled_from([DataType.INT8, DataType.FLOAT64])), root=root)


def outside(program: Program) -> list[tuple[type[Step], int, int, int]]:
    """What other ranks see of a program."""
    found: list[tuple[type[Step], int, int, int]] = []
    for step in program.steps:
        match step:
            case Send():
                found.append((Send, step.peer, step.channel, step.src.count))
            case Recv():
                found.append((Recv, step.peer, step.channel, step.dst.count))
    return found


def between(programs: Sequence[Program], topology: Topology) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """(sender, receiver, elements) of the messages from one cluster to another."""
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for program in programs:
        for step in program.steps:
            if isinstance(step, Send):
                pair = topology.cluster_index(program.rank), topology.cluster_index(step.peer)
                if pair[0] != pair[1]:
                    found.setdefault(pair, []).append((program.rank, step.peer, step.src.count))
    return found


def needed(collective: Collective, topology: Topology) -> dict[tuple[int, int], int]:
    """Elements that the ranks of one cluster get from those of another."""
    found: Counter[tuple[int, int]] = Counter()
    for rank in range(collective.nranks):
        for part in collective.meaning(rank):
            pair = topology.cluster_index(part.sources.start), topology.cluster_index(rank)
            if pair[0] != pair[1] and part.count:
                found[pair] += part.count
    return dict(found)


def nparts(sent: list[tuple[int, int, int]], collective: Collective) -> int:
    """Into how many parts what one cluster has for another is cut."""
    nbytes = sum(count for _, _, count in sent) * collective.dtype.itemsize
    return max(1, min(exchange.MAX_PARTS, nbytes // exchange.PART_BYTES))


def check_shares(sent: list[tuple[int, int, int]], here: Cluster, there: Cluster, slices: int) -> None:
    """Only border ranks take part, each within one element for each slice of its uplink's share."""
    total = sum(count for _, _, count in sent)
    out, arriving = Counter[int](), Counter[int]()
    for sender, receiver, count in sent:
        out[sender] += count
        arriving[receiver] += count
    for moved, bandwidths in (
        (out, {uplink.rank: uplink.bandwidth_out for uplink in here.uplinks}),
        (arriving, {uplink.rank: uplink.bandwidth_in for uplink in there.uplinks}),
    ):
        assert moved.keys() <= bandwidths.keys()
        for rank, bandwidth in bandwidths.items():
            assert abs(moved[rank] - total * bandwidth / sum(bandwidths.values())) <= slices


@KINDS
@given(data=st.data())
def test_schedules_are_proved_and_move_exactly_what_they_must(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(
        topologies(min_clusters=2, max_clusters=8, max_ranks=data.draw(st.sampled_from([2, 4, 4, 12])))
    )
    collective = data.draw(exchanges(topology.nranks, kind))
    forms = data.draw(own_forms(collective))
    programs = tuple(exchange.plan(form, topology, rank) for rank, form in enumerate(forms))
    verify(Schedule(collective, programs, topology.communicators()))
    moved = between(programs, topology)
    assert {pair: sum(count for _, _, count in sent) for pair, sent in moved.items()} == needed(collective, topology)
    for (i, j), sent in moved.items():
        here, there = topology.clusters[i], topology.clusters[j]
        parts = nparts(sent, collective)
        check_shares(sent, here, there, parts)
        if collective.counts is not None or collective.count * collective.dtype.itemsize <= SMALL_BYTES:
            assert len(sent) <= parts * (len(here.border) + len(there.border) - 1)
    for rank in range(0, topology.nranks, 5):  # in place or with displacements, the others see the same
        assert outside(programs[rank]) == outside(exchange.plan(collective, topology, rank))


@KINDS
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "unequal"])
@pytest.mark.parametrize(
    "topology",
    [clusters_of(2, 2), clusters_of(5, 4, border=1), clusters_of(3, 1, 2), clusters_of(5, 5, border=3)],
    ids=["2+2", "5+4 with one border rank", "3+1+2", "3 of 5 border"],
)
def test_numbers_come_out_right(kind: CollectiveKind, equal: bool, topology: Topology) -> None:
    nranks, rng = topology.nranks, numpy.random.default_rng(7)
    counts = None if equal else tuple(map(int, rng.integers(0, 9, nranks ** (2 if kind is ALL_TO_ALL else 1))))
    root = nranks - 1 if kind.has_root else None
    collective = Collective(kind, nranks, sum(counts or (5,)), DataType.INT32, root=root, counts=counts)
    inputs = [
        rng.integers(-99, 99, count).astype("int32") if count else None
        for count in map(collective.in_count, range(nranks))
    ]
    for in_place in (False, True) if equal or kind is not ALL_TO_ALL else (False,):
        form = collective.with_in_place(in_place)
        programs = tuple(exchange.plan(form, topology, rank) for rank in range(nranks))
        found = run_schedule(Schedule(form, programs, topology.communicators()), inputs, order_seed=3)
        for one, other in zip(reference(collective, inputs), found, strict=True):
            numpy.testing.assert_array_equal(one, other)


@KINDS
@pytest.mark.parametrize("count", [(1 << 31) + 1, 1 << 63], ids=["2^31+1", "2^63"])
def test_counts_beyond_any_fixed_width_are_planned_and_proved(kind: CollectiveKind, count: int) -> None:
    topology = clusters_of(3, 1, 2)
    collective = Collective(kind, 6, count, DataType.INT8, root=4 if kind.has_root else None)
    verify(Schedule(collective, tuple(exchange.plan(collective, topology, rank) for rank in range(6)), {}))


def test_equal_clusters_of_border_ranks_send_straight_from_their_inputs() -> None:
    topology, collective = clusters_of(4, 4), Collective(ALL_TO_ALL, 8, 3, DataType.INT32)
    for rank in range(8):
        program = exchange.plan(collective, topology, rank)
        abroad = [s for s in program.steps if isinstance(s, Send) and s.peer // 4 != rank // 4]
        assert [(s.peer, s.src.count, s.src.buffer) for s in abroad] == [((rank + 4) % 8, 12, Buffer.IN)]
        assert program.scratch_count == 12  # what the same rank of the other cluster sends


def test_large_equal_blocks_go_straight_from_rank_to_rank() -> None:
    topology, collective = clusters_of(3, 2), Collective(ALL_TO_ALL, 5, 1 << 20, DataType.INT8)
    programs = tuple(exchange.plan(collective, topology, rank) for rank in range(5))
    assert [program.scratch_count for program in programs] == [0] * 5
    assert {pair: len(sent) for pair, sent in between(programs, topology).items()} == {(0, 1): 36, (1, 0): 36}
    assert verify(Schedule(collective, programs, topology.communicators())).rounds == 1


@pytest.mark.parametrize("border", [1, 2, 4, 8])
def test_sorting_is_shared_by_all_ranks_of_a_cluster(border: int) -> None:
    topology = clusters_of(8, 8, 8, 8, 8, 8, border=border)
    collective = Collective(ALL_TO_ALL, 48, 5, DataType.INT32)
    programs = tuple(exchange.plan(collective, topology, rank) for rank in range(48))
    assert max(len(program.steps) for program in programs) <= 4 * 48
    assert verify(Schedule(collective, programs, topology.communicators())).rounds <= 4


def test_a_border_rank_that_is_the_root_needs_no_scratch() -> None:
    topology = clusters_of(3, 3, 3, border=1)
    gather = Collective(CollectiveKind.GATHER, 9, 7, DataType.INT32, root=3)
    scatter = Collective(CollectiveKind.SCATTER, 9, 7, DataType.INT32, root=3)
    for collective in (gather, scatter):
        program = exchange.plan(collective, topology, 3)
        assert program.scratch_count == 0
        assert sum(step.peer in (0, 6) for step in program.steps if isinstance(step, (Send, Recv))) == 2
        programs = tuple(exchange.plan(collective, topology, rank) for rank in range(9))
        assert verify(Schedule(collective, programs, topology.communicators())).rounds == 2


@pytest.mark.parametrize("nclusters", [2, 20, 200])
@pytest.mark.parametrize("kind", [CollectiveKind.GATHER, CollectiveKind.SCATTER], ids=lambda kind: kind.value)
def test_programs_of_ranks_apart_from_the_root_do_not_grow_with_the_job(kind: CollectiveKind, nclusters: int) -> None:
    topology = clusters_of(*[8] * nclusters, border=2)
    collective = Collective(kind, 8 * nclusters, 100, DataType.INT32, root=0)
    last = collective.nranks - 8
    sizes = {rank: len(exchange.plan(collective, topology, rank).steps) for rank in (2, 7, last, last + 1, last + 7)}
    assert sizes == {2: 1, 7: 1, last: 5, last + 1: 6, last + 7: 1}


@given(data=st.data())
def test_both_ends_of_a_piece_agree_on_it(data: st.DataObject) -> None:
    """A rank finds in its own blocks the pieces that a border rank finds for it in the whole."""
    ranks = data.draw(st.lists(st.integers(0, 40), unique=True, min_size=2, max_size=14))
    cut = data.draw(st.integers(1, len(ranks) - 1))
    sources, targets = tuple(ranks[:cut]), tuple(ranks[cut:])
    rng = random.Random(data.draw(SEEDS))
    counts = {(source, target): rng.choice([0, 1, 4]) for source in sources for target in targets}
    for by_source in (False, True):
        lane = Lane(sources, targets, by_source, lambda source, target: counts[source, target])
        assert lane.total == sum(counts.values())
        start, stop = sorted((rng.randint(0, lane.total), rng.randint(0, lane.total)))
        assert sum(b - a for a, b, _ in lane.rows(start, stop)) == stop - start
        for of_source, ranks_there in ((True, sources), (False, targets)):
            whole = list(lane.pieces(start, stop, of_source=of_source))
            assert [piece.start for piece in whole] + [stop] == [start] + [piece.stop for piece in whole]
            for rank in ranks_there:
                own = []
                for part in lane.parts(rank, of_source=of_source):
                    a, b = max(part.start, start), min(part.stop, stop)
                    own += list(lane.pieces(a, b, of_source=of_source)) if a < b else []
                assert own == [piece for piece in whole if (piece.source if of_source else piece.target) == rank]
