"""Schedules written by hand, independent of the planners, and the helpers to check them in numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy

from hetcomm._conformance.reference import Array, numpy_dtype, reference, run_schedule
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import (
    Buffer,
    CommId,
    CommRole,
    Copy,
    Fill,
    Program,
    Recv,
    Reduce,
    Scale,
    Schedule,
    Send,
    Slice,
    Step,
    VendorCall,
)
from hetcomm.types import DataType, ReduceKind

IN, OUT, SCRATCH = Buffer.IN, Buffer.OUT, Buffer.SCRATCH
WORLD = CommId("world", CommRole.HOME)
FLOAT = DataType.FLOAT32


def collective(kind: str, nranks: int, count: int, op: str | None = None, **more: Any) -> Collective:
    """A collective in short."""
    return Collective(
        CollectiveKind(kind), nranks, count, more.pop("dtype", FLOAT), ReduceKind(op) if op else None, **more
    )


def build(
    what: Collective,
    steps: Sequence[Sequence[Step]],
    scratch: int = 0,
    communicators: dict[CommId, tuple[int, ...]] | None = None,
) -> Schedule:
    """A schedule of these steps, with as much scratch on every rank."""
    programs = tuple(Program(rank, what, tuple(mine), scratch, "by hand") for rank, mine in enumerate(steps))
    return Schedule(what, programs, communicators or {})


def blocks(count: int, parts: int) -> list[tuple[int, int]]:
    """(offset, count) of nearly equal parts."""
    sizes = [count // parts + (part < count % parts) for part in range(parts)]
    return list(zip([0, *accumulate(sizes)], sizes, strict=False))


def combining(what: Collective) -> ReduceKind:
    assert what.op is not None
    return what.op.combining


def first_copy(what: Collective, dst: Slice) -> list[Step]:
    """The whole input of an all_reduce into `dst`, times the factor where there is one."""
    scale = Scale.FACTOR if what.op is ReduceKind.PREMUL_SUM else None
    src = Slice(OUT if what.in_place else IN, 0, what.count)
    return [Copy(src, dst, scale)] if src != dst or scale else []


def averaged(what: Collective, part: Slice) -> list[Step]:
    return [Copy(part, part, Scale.AVERAGE)] if what.op is ReduceKind.AVG else []


def ring_all_reduce(what: Collective) -> Schedule:
    """Reduce-scatter round the ring, then all-gather round the ring."""
    n, parts = what.nranks, blocks(what.count, what.nranks)
    widest = max(size for _, size in parts)
    programs: list[list[Step]] = []
    for rank in range(n):
        steps = first_copy(what, Slice(OUT, 0, what.count))
        right, left = (rank + 1) % n, (rank - 1) % n
        for hop in range(n - 1):
            out, into = Slice(OUT, *parts[(rank - hop) % n]), Slice(OUT, *parts[(rank - hop - 1) % n])
            spare = Slice(SCRATCH, 0, into.count)
            steps += [Send(out, right), Recv(spare, left), Reduce(spare, into, combining(what))]
        steps += averaged(what, Slice(OUT, *parts[(rank + 1) % n]))
        for hop in range(n - 1):
            out, into = Slice(OUT, *parts[(rank + 1 - hop) % n]), Slice(OUT, *parts[(rank - hop) % n])
            steps += [Send(out, right), Recv(into, left)]
        programs.append(steps)
    return build(what, programs, widest)


def direct_reduce_scatter(what: Collective) -> Schedule:
    """Each block to its owner, who adds them up in rank order."""
    n, size = what.nranks, what.count
    source = OUT if what.in_place else IN
    programs: list[list[Step]] = []
    for rank in range(n):
        mine = Slice(OUT, rank * size if what.in_place else 0, size)
        total = Slice(SCRATCH, n * size, size)
        steps: list[Step] = [Fill(total, combining(what))]
        steps += [Send(Slice(source, peer * size, size), peer) for peer in range(n) if peer != rank]
        for peer in range(n):
            part = Slice(SCRATCH, peer * size, size)
            steps.append(Recv(part, peer) if peer != rank else Copy(Slice(source, rank * size, size), part))
            steps.append(Reduce(part, total, combining(what)))
        steps += [*averaged(what, total), Copy(total, mine)]
        programs.append(steps)
    return build(what, programs, (n + 1) * size)


def direct_reduce(what: Collective) -> Schedule:
    """Everything to the root, who adds it up as it comes."""
    programs: list[list[Step]] = [[] for _ in range(what.nranks)]
    source, whole = Slice(OUT if what.in_place else IN, 0, what.count), Slice(OUT, 0, what.count)
    root = what.root or 0
    programs[root] += first_copy(what, whole)
    for rank in range(what.nranks):
        if rank != root:
            programs[rank].append(Send(source, root))
            spare = Slice(SCRATCH, rank * what.count, what.count)
            programs[root] += [Recv(spare, rank), Reduce(spare, whole, combining(what))]
    programs[root] += averaged(what, whole)
    return build(what, programs, what.nranks * what.count)


def chain_broadcast(what: Collective, chunks: int = 2) -> Schedule:
    """Down the chain of ranks in chunks."""
    n, root = what.nranks, what.root or 0
    programs: list[list[Step]] = []
    for rank in range(n):
        steps: list[Step] = []
        at_root = rank == root
        for offset, size in blocks(what.count, chunks):
            here = Slice(IN if at_root and not what.in_place else OUT, offset, size)
            if not at_root:
                steps.append(Recv(here, (rank - 1) % n))
            if (rank + 1) % n != root:
                steps.append(Send(here, (rank + 1) % n))
            if here.buffer is IN:
                steps.append(Copy(here, Slice(OUT, offset, size)))
        programs.append(steps)
    return build(what, programs)


def ring_all_gather(what: Collective) -> Schedule:
    """Blocks round the ring."""
    n, size = what.nranks, what.count
    programs: list[list[Step]] = []
    for rank in range(n):
        mine = Slice(OUT, rank * size, size)
        steps: list[Step] = [] if what.in_place else [Copy(Slice(IN, 0, size), mine)]
        for hop in range(n - 1):
            out, into = (rank - hop) % n, (rank - hop - 1) % n
            steps += [
                Send(Slice(OUT, out * size, size), (rank + 1) % n),
                Recv(Slice(OUT, into * size, size), (rank - 1) % n),
            ]
        programs.append(steps)
    return build(what, programs)


def one_vendor_call(what: Collective) -> Schedule:
    """All of it by one vendor, in a communicator that counts the ranks backwards where that is the same."""
    n = what.nranks
    programs: list[list[Step]] = []
    for rank in range(n):
        src = dst = None
        if what.in_place:
            dst = Slice(OUT, 0, what.buffer_count(rank))
        else:
            src = Slice(IN, 0, what.in_count(rank)) if what.in_count(rank) else None
            dst = Slice(OUT, 0, what.out_count(rank)) if what.out_count(rank) else None
        programs.append([VendorCall(WORLD, what, src, dst)])
    backwards = what.kind is CollectiveKind.ALL_REDUCE
    return build(what, programs, 0, {WORLD: tuple(reversed(range(n))) if backwards else tuple(range(n))})


def alike(what: Collective) -> list[Collective]:
    """Every rank passes the same."""
    return [what] * what.nranks


def sent_block(form: Collective, rank: int, target: int) -> Slice:
    """What `rank` has for `target`, in a collective that only moves or that scatters."""
    buffer = OUT if form.in_place else IN
    if form.kind in (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER):
        return Slice(buffer, form.in_offset(rank), form.block_count(rank))
    return Slice(buffer, *list(form.in_blocks(rank))[target])


def taken_block(form: Collective, rank: int, source: int) -> Slice:
    """Where `rank` puts what `source` has for it."""
    if form.kind is CollectiveKind.SCATTER:
        return Slice(OUT, form.out_offset(rank), form.block_count(rank))
    return Slice(OUT, *list(form.out_blocks(rank))[source])


def direct_moves(forms: Sequence[Collective]) -> Schedule:
    """all_gather, gather, scatter or all_to_all, each block straight to its place; `forms` is what each rank passes."""
    what = forms[0]
    sends = range(what.nranks) if what.kind is not CollectiveKind.SCATTER else [what.root]
    takes = range(what.nranks) if what.kind is not CollectiveKind.GATHER else [what.root]
    programs: list[list[Step]] = []
    for rank, form in enumerate(forms):
        steps: list[Step] = []
        base = IN
        if form.kind is CollectiveKind.ALL_TO_ALL and form.in_place:
            base, size = SCRATCH, form.in_count(rank)  # the input is overwritten
            steps.append(Copy(Slice(OUT, 0, size), Slice(SCRATCH, 0, size)))
        for other in [*range(rank, what.nranks), *range(rank)]:
            if rank in sends and other in takes:
                block = sent_block(form, rank, other)
                block = Slice(SCRATCH, block.offset, block.count) if base is SCRATCH else block
                if rank != other:
                    steps.append(Send(block, other))
                elif base is IN and block != taken_block(form, rank, rank):
                    steps.append(Copy(block, taken_block(form, rank, rank)))
            if rank in takes and other in sends and rank != other:
                steps.append(Recv(taken_block(form, rank, other), other))
        programs.append(steps)
    return with_forms(build(what.agreed(), programs, max(what.in_count(rank) for rank in range(what.nranks))), forms)


def direct_reduce_scatter_v(forms: Sequence[Collective]) -> Schedule:
    """Each block to its owner, who adds them up in rank order."""
    what = forms[0]
    programs: list[list[Step]] = []
    for rank, form in enumerate(forms):
        size = what.block_count(rank)
        total, spare = Slice(SCRATCH, 0, size), Slice(SCRATCH, size, size)
        steps: list[Step] = [Send(sent_block(form, rank, peer), peer) for peer in range(what.nranks) if peer != rank]
        for peer in range(what.nranks):
            part = spare if peer else total
            steps.append(Recv(part, peer) if peer != rank else Copy(sent_block(form, rank, rank), part))
            steps += [Reduce(part, total, combining(what))] if peer else []
        steps += [*averaged(what, total), Copy(total, Slice(OUT, form.out_offset(rank), size))]
        programs.append(steps)
    return with_forms(build(what.agreed(), programs, 2 * max(what.counts or (what.count,))), forms)


def with_forms(schedule: Schedule, forms: Sequence[Collective]) -> Schedule:
    """The same programs, each for what its rank passes."""
    programs = [replace(program, collective=form) for program, form in zip(schedule.programs, forms, strict=True)]
    return replace(schedule, programs=tuple(programs))


def direct(forms: Sequence[Collective]) -> Schedule:
    """One of the two above."""
    return direct_reduce_scatter_v(forms) if forms[0].kind.reduces else direct_moves(forms)


def bordered_all_reduce(what: Collective) -> Schedule:
    """Two clusters of `nranks / 2`, at least two each, that share one vector: border reduction by the vendor.

    Home all_reduce; the first rank of each cluster sends the half that the other cluster owns to the *second* rank
    there; border all_reduce of the two partials; the halves are exchanged and broadcast at home.
    """
    half, count = what.nranks // 2, what.count
    shares = blocks(count, 2)
    homes = [CommId(name, CommRole.HOME) for name in ("left", "right")]
    borders = [CommId(name, CommRole.BORDER) for name in ("left", "right")]
    communicators = {homes[c]: tuple(range(c * half, (c + 1) * half)) for c in (0, 1)}
    communicators |= {borders[c]: (c * half, c * half + 1) for c in (0, 1)}
    op = combining(what)
    programs: list[list[Step]] = []
    for rank in range(what.nranks):
        cluster, place = divmod(rank, half)
        own, other = shares[cluster], shares[1 - cluster]
        there = (1 - cluster) * half
        sum_home = Collective(CollectiveKind.ALL_REDUCE, half, count, what.dtype, op, in_place=True)
        sum_border = Collective(CollectiveKind.ALL_REDUCE, 2, own[1], what.dtype, op)
        steps = first_copy(what, Slice(OUT, 0, count))
        steps.append(VendorCall(homes[cluster], sum_home, None, Slice(OUT, 0, count)))
        if place == 0:
            steps.append(Send(Slice(OUT, *other), there + 1))
            steps.append(Copy(Slice(OUT, *own), Slice(SCRATCH, *own)))
        elif place == 1:
            steps.append(Recv(Slice(SCRATCH, *own), there))
        if place < 2:
            target = Slice(SCRATCH, count + own[0], own[1])
            steps.append(VendorCall(borders[cluster], sum_border, Slice(SCRATCH, *own), target))
            scale = Scale.AVERAGE if what.op is ReduceKind.AVG else None
            steps.append(Copy(target, Slice(OUT, *own), scale))
        if place == 0:
            steps += [Send(Slice(OUT, *own), there, 1), Recv(Slice(OUT, *other), there, 1)]
        for offset, size in (own, other) if half > 2 else (other,):
            move = Collective(CollectiveKind.BROADCAST, half, size, what.dtype, root=0, in_place=True)
            steps.append(VendorCall(homes[cluster], move, None, Slice(OUT, offset, size)))
        programs.append(steps)
    return build(what, programs, 2 * count, communicators)


def examples(nranks: int, count: int, op: str, root: int, in_place: bool) -> list[Schedule]:
    """Every schedule above that takes these."""
    made: list[Schedule] = []

    def add(make: Callable[[Collective], Schedule], kind: str, op: str | None = None, root: int | None = None) -> None:
        made.append(make(collective(kind, nranks, count, op, root=root, in_place=in_place)))

    add(ring_all_reduce, "all_reduce", op)
    if nranks >= 4 and nranks % 2 == 0:
        add(bordered_all_reduce, "all_reduce", op)
    if op != "premul_sum":
        add(direct_reduce_scatter, "reduce_scatter", op)
        add(direct_reduce, "reduce", op, root)
    add(chain_broadcast, "broadcast", None, root)
    add(ring_all_gather, "all_gather")
    if op not in ("avg", "premul_sum"):
        for kind in ("all_reduce", "reduce_scatter"):
            add(one_vendor_call, kind, op)
        add(one_vendor_call, "reduce", op, root)
    add(one_vendor_call, "broadcast", None, root)
    add(one_vendor_call, "all_gather")
    for kind in ("gather", "scatter", "all_to_all"):
        add(lambda what: direct(alike(what)), kind, None, root if kind != "all_to_all" else None)
    return made


def check_numbers(schedule: Schedule, seeds: Sequence[int]) -> None:
    """Run a schedule in several orders; each result must be right, and bit-identical on all ranks.

    Values are random, so that a missing or doubled contribution cannot hide, and near one to keep products finite.
    """
    what = schedule.collective
    rng = numpy.random.default_rng(1)
    dtype = numpy_dtype(what.dtype)
    inputs: list[Array | None] = [
        rng.uniform(0.5, 1.5, what.in_count(rank)).astype(dtype) if what.in_count(rank) else None
        for rank in range(what.nranks)
    ]
    factors = [1 + 0.25 * rank for rank in range(what.nranks)]
    wanted = reference(what, inputs, factors)
    for seed in seeds:
        got = run_schedule(schedule, inputs, factors, seed)
        for rank, (one, other) in enumerate(zip(got, wanted, strict=True)):
            assert (one is None) == (other is None), rank
            if one is not None and other is not None:
                if what.op is None:
                    assert one.tobytes() == other.tobytes(), (rank, seed)
                numpy.testing.assert_allclose(one, other, rtol=1e-4)
                if what.kind.is_same_everywhere:
                    assert got[0] is not None
                    assert one.tobytes() == got[0].tobytes(), (rank, seed)
