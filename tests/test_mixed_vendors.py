"""Jobs of ranks with unlike vendor libraries: every collective, vector form, op and dtype, shared by the jobs."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm._conformance.reference import numpy_dtype
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.testing import reference, run_ranks
from hetcomm.types import DataType, ReduceKind, has_meaning
from hetcomm.vendors.registry import vendor

from .runtime.invoke import BITWISE, InForm, equal, random_sums, share
from .scripts import DEADLINE, PATIENCE

# Clusters of one, two and three ranks, one after the other or scattered; few of Gloo: importing PyTorch is slow.
JOBS = {
    "mpi+oneccl": ("mpi", "oneccl", "oneccl", "mpi", "oneccl"),
    "mpi+gloo": ("mpi", "gloo", "gloo"),
    "oneccl+gloo": ("gloo", "oneccl", "oneccl", "gloo"),
    "mpi+oneccl+gloo": ("mpi", "oneccl", "gloo", "gloo", "oneccl"),
}
HALVES = {"mpi+oneccl": 0, "mpi+oneccl+gloo": 1}  # jobs of as many ranks, which share the cases
COUNTS = (0, 1, 5, 600)
VECTORS = ((0, 3, 1, 0, 7), (101, 0, 2, 13, 1), (1, 1, 1, 1, 1), (0, 0, 0, 0, 0), (0, 0, 503, 0, 0))
LARGE = 70_001  # in pieces that overlap
READING = (CollectiveKind.REDUCE_SCATTER, CollectiveKind.SCATTER, CollectiveKind.ALL_TO_ALL)
WRITING = (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER, CollectiveKind.ALL_TO_ALL)
ORDERING = (ReduceKind.MIN, ReduceKind.MAX)
REDUCING = (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE, CollectiveKind.REDUCE_SCATTER)
BITS = [ReduceKind(name) for name in ("band", "bor", "bxor", "land", "lor", "lxor")]
GAP = 3  # what lies between blocks

Array = Any


def counts_of(kind: CollectiveKind, nranks: int, turn: int) -> tuple[int, ...]:
    """Block sizes of a vector form, unequal and with zeros."""
    if kind is CollectiveKind.ALL_TO_ALL:
        return tuple(VECTORS[(turn + pair) % 3][pair % 5] for pair in range(nranks**2))
    return VECTORS[turn % len(VECTORS)][:nranks]


def cases(nranks: int) -> Iterator[Collective]:
    """Every dtype, collective, vector form and op; counts and roots take turns, and each collective is called large."""
    turn = 0
    for dtype in DataType:
        for kind in CollectiveKind:
            for op in kind.ops:
                if op is not None and not has_meaning(op, dtype):
                    continue
                for vector in (False, True) if kind.has_blocks else (False,):
                    turn += 1
                    root = turn % nranks if kind.has_root else None
                    counts = counts_of(kind, nranks, turn // 2) if vector else None
                    count = COUNTS[turn // 2 % len(COUNTS)] if counts is None else sum(counts)
                    yield Collective(kind, nranks, count, dtype, op, root, counts=counts)
    for op, dtype in itertools.product(BITS, (DataType.BOOL, DataType.UINT16)):
        turn += 1
        yield Collective(REDUCING[turn % 3], nranks, LARGE, dtype, op, 0 if turn % 3 == 1 else None)
    for kind in CollectiveKind:
        op, root = ReduceKind.SUM if kind.reduces else None, nranks - 1 if kind.has_root else None
        yield Collective(kind, nranks, LARGE, DataType.INT32, op, root)


def inputs_of(collective: Collective, turn: int) -> list[Array]:
    """Whole numbers small enough that every order of operations gives the same bits, for bitwise ops any integers, and
    for min and max some NaN."""
    rng = np.random.default_rng(turn)
    low = 1 if collective.op is ReduceKind.PROD else -2 if collective.dtype.is_signed else 0
    found = []
    for rank in range(collective.nranks):
        dtype, count = numpy_dtype(collective.dtype), collective.in_count(rank)
        array = rng.integers(low, 3, count).astype(dtype)
        if collective.op in BITWISE and collective.dtype.is_integer:
            array = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)
        if collective.op in ORDERING and collective.dtype.is_inexact and rank == 1:
            array[::3] = np.nan
        found.append(array)
    return found


def as_passed(collective: Collective, rank: int, style: int) -> Collective:
    """How this rank passes it: 0 as it is, 1 in place, 2 with displacements, 3 both, as far as it can."""
    kind = collective.kind
    in_place = style % 2 == 1 and (not kind.has_root or rank == collective.root)
    if kind is CollectiveKind.ALL_TO_ALL and collective.counts is not None:
        in_place = False
    collective = collective.with_in_place(in_place or kind is CollectiveKind.BROADCAST)
    if style < 2 or collective.counts is None or (kind.has_root and rank != collective.root):
        return collective
    return replace(
        collective,
        in_displs=displacements([n for _, n in collective.in_blocks(rank)]) if kind in READING else None,
        out_displs=displacements([n for _, n in collective.out_blocks(rank)]) if kind in WRITING else None,
    )


def displacements(counts: list[int]) -> tuple[int, ...]:
    """Blocks in reverse order, with an element before each."""
    found, end = [], 0
    for count in reversed(counts):
        found.append(end + 1)
        end += 1 + count
    return tuple(reversed(found))


def places(one: Collective, rank: int, *, of_input: bool) -> list[tuple[int, int]]:
    """(offset, count) of what is the input or the output in the buffers of the rank."""
    if of_input:
        return list(one.in_blocks(rank)) if one.kind in READING else [(one.in_offset(rank), one.in_count(rank))]
    return list(one.out_blocks(rank)) if one.kind in WRITING else [(one.out_offset(rank), one.out_count(rank))]


def call(comm: hetcomm.Communicator, one: Collective, array: Array, op: Any, turn: int) -> Array | None:
    """Call the collective on this rank's packed input, in one of its forms; its packed output, or None."""
    rank, kind, root = comm.rank, one.kind, one.root or 0
    rooted = kind in (CollectiveKind.SCATTER, CollectiveKind.GATHER)
    src: Any = np.full(one.buffer_count(rank) if one.in_place else one.in_extent(rank), GAP, array.dtype)
    dst: Any = src if one.in_place else np.full(one.out_extent(rank), GAP, array.dtype)
    position = 0
    if one.in_count(rank):
        for offset, count in places(one, rank, of_input=True):
            src[offset : offset + count] = array[position : position + count]
            position += count
    result: Any = dst
    if one.in_place:
        src, dst = (None, src) if kind is CollectiveKind.GATHER else (src, None)
    elif rooted and rank != root:
        src, dst = (None, dst) if kind is CollectiveKind.SCATTER else (src, None)
    elif kind is CollectiveKind.REDUCE and rank != root:
        dst = None
    start(InForm(comm, turn), one, src, dst, op)
    got = [result[offset : offset + count] for offset, count in places(one, rank, of_input=False)]
    if one.out_displs is not None and one.out_count(rank):
        between = np.full(result.size, True)
        for offset, count in one.out_blocks(rank):
            between[offset : offset + count] = False
        assert (result[between] == array.dtype.type(GAP)).all(), f"{one} wrote between blocks"
    return np.concatenate(got) if one.out_count(rank) else None


def start(comm: Any, one: Collective, src: Array | None, dst: Array | None, op: Any) -> None:
    """The method of that name, with its arguments."""
    root = one.root or 0
    if one.counts is not None:
        displs = one.in_displs if one.kind in READING else one.out_displs
        counts_as_array: Any = np.array(one.counts)
        match one.kind:
            case CollectiveKind.ALL_GATHER:
                comm.all_gather_v(src, dst, one.counts, displs)
            case CollectiveKind.REDUCE_SCATTER:
                comm.reduce_scatter_v(src, dst, list(one.counts), op, displs)
            case CollectiveKind.GATHER:
                comm.gather_v(src, dst, counts_as_array, root, displs)
            case CollectiveKind.SCATTER:
                comm.scatter_v(src, dst, one.counts, root, displs)
            case _:
                sent, received = one.sent_counts(comm.rank), one.received_counts(comm.rank)
                comm.all_to_all_v(src, dst, sent, received, one.in_displs, one.out_displs)
        return
    match one.kind:
        case CollectiveKind.ALL_REDUCE:
            comm.all_reduce(src, dst, op)
        case CollectiveKind.REDUCE:
            comm.reduce(src, dst, root, op)
        case CollectiveKind.BROADCAST:
            comm.broadcast(src, root)
        case CollectiveKind.ALL_GATHER:
            comm.all_gather(src, dst)
        case CollectiveKind.REDUCE_SCATTER:
            comm.reduce_scatter(src, dst, op=op)
        case CollectiveKind.GATHER:
            comm.gather(src, dst, root)
        case CollectiveKind.SCATTER:
            comm.scatter(src, dst, root)
        case CollectiveKind.ALL_TO_ALL:
            comm.all_to_all(src, dst)
        case CollectiveKind.SCAN:
            comm.scan(src, dst, op)
        case CollectiveKind.EXSCAN:
            comm.exscan(src, dst, op)


def run_matrix(part: int, of: int) -> tuple[int, list[str], dict[str, str]]:
    """A share of the cases on one communicator: how many, what was wrong, and a digest of each result that all ranks
    have."""
    wrong: list[str] = []
    digests: dict[str, str] = {}
    done = 0
    with hetcomm.init() as comm:
        factors = [rank % 2 + 1 for rank in range(comm.nranks)]
        everything = list(enumerate(cases(comm.nranks)))
        mine = share(len(everything), part, of)
        for turn, collective in everything:
            if turn not in mine:
                continue
            inputs = inputs_of(collective, turn)
            premul = collective.op is ReduceKind.PREMUL_SUM
            op: Any = hetcomm.premul_sum(factors[comm.rank]) if premul else collective.op and collective.op.value
            expected = reference(collective, inputs, factors if premul else None)[comm.rank]
            got = call(comm, as_passed(collective, comm.rank, (turn + comm.rank) % 4), inputs[comm.rank], op, turn)
            done += 1
            if got is None or expected is None:
                if got is not expected:
                    wrong.append(f"{turn}: {collective}: {got} instead of {expected}")
                continue
            if not equal(got, expected):
                wrong.append(f"{turn}: {collective}: {got} instead of {expected}")
            if collective.kind.is_same_everywhere:
                digests[f"{turn}: {collective}"] = hashlib.sha256(got.tobytes()).hexdigest()
        comm.barrier()
        digests |= random_sums(comm, 7, 10007, 200_003)
    return done, wrong, digests


def named(jobs: Iterable[str]) -> pytest.MarkDecorator:
    marked = [pytest.param(name, marks=[pytest.mark.gloo] if "gloo" in name else []) for name in jobs]
    return pytest.mark.parametrize("name", marked)


def check(name: str, part: int, of: int) -> None:
    vendors = JOBS[name]
    for each in sorted(set(vendors)):
        state = vendor(each).availability()
        if not state.usable:
            pytest.skip(f"{each}: {state.reason}. {state.remedy}")
    env = {**PATIENCE, "HETCOMM_INLINE_BYTES": "0"}  # or messages would take the place of their calls
    results = run_ranks(len(vendors), run_matrix, part, of, vendors=vendors, env=env, timeout=DEADLINE)
    whole = len(list(cases(len(vendors))))
    for rank, (done, wrong, digests) in enumerate(results):
        assert wrong == [], f"rank {rank}"
        assert done == len(share(whole, part, of))
        assert digests == results[0][2], f"rank {rank} has other bits than rank 0"


@named(HALVES)
def test_every_collective_op_and_dtype_equals_numpy(name: str) -> None:
    check(name, HALVES[name], len(HALVES))


@pytest.mark.slow
@named(JOBS)
def test_all_cases_in_every_job(name: str) -> None:
    check(name, 0, 1)


def test_no_case_is_left_out() -> None:
    (nranks,) = {len(JOBS[name]) for name in HALVES}
    whole = len(list(cases(nranks)))
    done = [turn for part in HALVES.values() for turn in share(whole, part, len(HALVES))]
    assert sorted(done) == list(range(whole))
