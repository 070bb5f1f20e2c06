"""Random programs of several ranks, right ones and ones with one call changed on one rank; all of it is pure.

A `Program` is a list of steps that every rank takes, each rank those on communicators that it belongs to. A `Mutation`
puts other steps in the place of one, on one rank. A seed gives the same program everywhere.

What a rank must get is known for both. Collective calls on a communicator are numbered, so the calls of a number belong
together. Up to the number at which two ranks first make unlike calls (`Program.divergence`) nothing is wrong: a rank
gets what its call means of what each rank passes as its call of that number, even where a rank has left out the third
of five equal calls. From that number on a call must not give a rank anything but what it would get if all others made
the call that it makes; and every rank must get an error before its program is over. So that it does, each program ends
with a call that is like no other (`END`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from hetcomm._conformance.reference import numpy_dtype
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, ReduceKind, has_meaning

__all__ = [
    "BLOCK",
    "CHANGES",
    "END",
    "JOBS",
    "LAST",
    "Call",
    "Group",
    "Init",
    "Job",
    "Mutation",
    "Occurrence",
    "Program",
    "Spec",
    "Split",
    "Start",
    "Step",
    "agree",
    "factor",
    "input_of",
    "mutated",
    "right",
    "text",
    "variant",
]

Array = Any
Spec = Collective | None
"""A collective; None: a barrier."""


@dataclass(frozen=True, slots=True)
class Job:
    """The vendor of each rank, and `HETCOMM_INLINE_BYTES` (None: unset; 0: vendors are called)."""

    vendors: tuple[str, ...]
    inline: int | None

    def __str__(self) -> str:
        return f"{' '.join(self.vendors)}{'' if self.inline is None else f', HETCOMM_INLINE_BYTES={self.inline}'}"


def _jobs(*rows: tuple[str, str]) -> tuple[Job, ...]:
    names = {"m": "mpi", "o": "oneccl", "g": "gloo", "u": "ucx"}
    return tuple(Job(tuple(names[letter] for letter in row), None if how == "-" else int(how)) for row, how in rows)


# The default test run takes the first few; a nightly one all.
JOBS = _jobs(
    *(("mmoo", "-"), ("mm", "0"), ("ggu", "0"), ("ooo", "0"), ("muu", "0"), ("mo", "-")),
    *(("uuu", "-"), ("mmm", "-"), ("oo", "-"), ("mmuo", "0"), ("uu", "-"), ("gg", "0"), ("mmoo", "0"), ("mu", "-")),
    *(("mmmm", "0"), ("ou", "0"), ("gg", "-"), ("mmmoo", "-"), ("ggmm", "0"), ("uuuu", "-"), ("oooo", "0")),
    *(("uumoo", "0"), ("moo", "-"), ("mgo", "0"), ("muuu", "-"), ("mmooo", "0"), ("mog", "-"), ("ooooo", "-")),
    *(("mmoouu", "0"), ("mmmmm", "0"), ("uuuuu", "-"), ("ggooo", "-")),
)
BLOCK = 50
"""Seeds in a row whose programs run in one job: seed s in `JOBS[s // BLOCK % len(JOBS)]`."""

END = Collective(CollectiveKind.ALL_GATHER, 1, 3, DataType.UINT8)
"""What each communicator's last call is, with its number of ranks; no other call is like it."""
LAST = 1_000_000
"""What its uid is, with the number of the communicator."""


# ---- steps


@dataclass(frozen=True, slots=True)
class Call:
    """One collective call on communicator number `comm`.

    Attributes:
        uid: Its number in the program, from which its input comes.
        held: With async_op: the most steps after which the work is waited for; None: a blocking call.
    """

    uid: int
    comm: int
    spec: Spec
    held: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Collectives in a group."""

    uid: int
    comm: int
    specs: tuple[Spec, ...]


@dataclass(frozen=True, slots=True)
class Init:
    """The making of a persistent request."""

    uid: int
    comm: int
    spec: Spec


@dataclass(frozen=True, slots=True)
class Start:
    """A run of the request that `Init` number `request` made; `held` as for `Call`, where 0 is to wait at once."""

    uid: int
    comm: int
    request: int
    held: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """Communicators split from `comm`: what each rank of the program passes, and which communicator it gets."""

    uid: int
    comm: int
    colors: tuple[int | None, ...]
    keys: tuple[int, ...]
    made: tuple[int | None, ...]


Step = Call | Group | Init | Start | Split


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One numbered call of a rank on a communicator: what ranks must agree on, and whence its inputs come.

    Attributes:
        kind: 'call', 'init' or 'split'.
        specs: What is called; several in a group.
        uid: From which its inputs come.
        maker: From which its factors come: for a run, that of the request.
    """

    kind: str
    specs: tuple[Spec, ...]
    uid: int
    maker: int


@dataclass(frozen=True, slots=True)
class Mutation:
    """On one rank, `steps` in the place of step number `index`; `change` says what has changed."""

    rank: int
    index: int
    steps: tuple[Step, ...]
    change: str


@dataclass(frozen=True)
class Program:
    """What the ranks do.

    Attributes:
        seed: From which it was made.
        job: Where it runs.
        comms: The program's ranks that belong to each communicator, in the order of their numbers there.
        steps: Those of all ranks, but for the mutation.
    """

    seed: int
    job: Job
    comms: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    mutation: Mutation | None = None

    @property
    def nranks(self) -> int:
        return len(self.job.vendors)

    def steps_of(self, rank: int) -> tuple[Step, ...]:
        """What a rank does, in its order; the last calls are not among them."""
        steps, mutation = self.steps, self.mutation
        if mutation is not None and mutation.rank == rank:
            steps = (*steps[: mutation.index], *mutation.steps, *steps[mutation.index + 1 :])
        return tuple(step for step in steps if rank in self.comms[step.comm])

    @cached_property
    def histories(self) -> tuple[Mapping[int, tuple[Occurrence, ...]], ...]:
        """For each rank, its numbered calls on each communicator, the last ones included."""
        return tuple(self._history(rank) for rank in range(self.nranks))

    def _history(self, rank: int) -> Mapping[int, tuple[Occurrence, ...]]:
        found: dict[int, list[Occurrence]] = {c: [] for c, members in enumerate(self.comms) if rank in members}
        requests: dict[int, Spec] = {}
        for step in self.steps_of(rank):
            match step:
                case Call():
                    occurrence = Occurrence("call", (step.spec,), step.uid, step.uid)
                case Group():
                    occurrence = Occurrence("call", step.specs, step.uid, step.uid)
                case Init():
                    requests[step.uid] = step.spec
                    occurrence = Occurrence("init", (step.spec,), step.uid, step.uid)
                case Start():
                    occurrence = Occurrence("call", (requests[step.request],), step.uid, step.request)
                case Split():
                    occurrence = Occurrence("split", (), step.uid, step.uid)
            if occurrence.specs or occurrence.kind == "split":
                found[step.comm].append(occurrence)
        for comm, calls in found.items():
            calls.append(Occurrence("call", (replace(END, nranks=len(self.comms[comm])),), LAST + comm, LAST))
        return {comm: tuple(calls) for comm, calls in found.items()}

    @cached_property
    def divergence(self) -> tuple[int, int] | None:
        """The first number at which ranks make unlike calls, as (communicator, number); None if all agree."""
        for comm, members in enumerate(self.comms):
            # With one mutation, whoever disagrees with anybody disagrees with the rank that has it.
            culprit = members[0] if self.mutation is None else self.mutation.rank
            one = members.index(culprit) if culprit in members else 0
            for number in range(max(len(self.histories[rank][comm]) for rank in members)):
                if not all(self.agrees(comm, number, one, other) for other in range(len(members))):
                    return comm, number
        return None

    def agrees(self, comm: int, number: int, one: int, other: int) -> bool:
        """Whether two ranks of a communicator make calls that fit together under one number."""
        members = self.comms[comm]
        both = [self.histories[members[rank]][comm] for rank in (one, other)]
        if any(number >= len(calls) for calls in both):
            return False
        first, second = both[0][number], both[1][number]
        return (
            first.kind == second.kind
            and len(first.specs) == len(second.specs)
            and all(agree(a, one, b, other) for a, b in zip(first.specs, second.specs, strict=True))
        )

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.nranks} ranks, {self.job}"]
        lines += [f"comm {number}: ranks {members}" for number, members in enumerate(self.comms) if number]
        mutation = self.mutation
        for index, step in enumerate(self.steps):
            lines.append(f"  {_line(step)}")
            if mutation is not None and mutation.index == index:
                lines += [f"    on rank {mutation.rank} instead ({mutation.change}):"]
                lines += [f"    {_line(step)}" for step in mutation.steps] or ["    nothing"]
        return "\n".join(lines)


def agree(mine: Spec, me: int, theirs: Spec, they: int) -> bool:
    """Whether the calls of two ranks fit together."""
    if mine is None or theirs is None:
        return mine is theirs
    a, b = mine.agreed(), theirs.agreed()
    if a.kind is CollectiveKind.ALL_TO_ALL and b.kind is a.kind and a.counts is not None and b.counts is not None:
        pairs = ((me, they), (they, me))
        return a.dtype is b.dtype and all(a.pair_count(*pair) == b.pair_count(*pair) for pair in pairs)
    return a == b


def text(spec: Spec) -> str:
    """A call for people."""
    if spec is None:
        return "barrier()"
    counts = f"{spec.count}" if spec.counts is None else f"{spec.counts}"
    op = "" if spec.op is None else f", {spec.op.value}"
    root = "" if spec.root is None else f", root {spec.root}"
    return f"{spec.kind.value}{'' if spec.counts is None else '_v'}({spec.dtype.value} x {counts}{op}{root})"


def _line(step: Step) -> str:
    head = f"#{step.uid} comm {step.comm}: "
    match step:
        case Call():
            how = "" if step.held is None else f", async_op, waited for within {step.held} steps"
            return f"{head}{text(step.spec)}{how}"
        case Group():
            return f"{head}group: {'; '.join(map(text, step.specs))}"
        case Init():
            return f"{head}init of {text(step.spec)}"
        case Start():
            return f"{head}start of #{step.request}, waited for within {step.held} steps"
        case Split():
            return f"{head}split, colors {step.colors}, keys {step.keys}, giving comms {step.made}"


# ---- values

_DOUBLE = 1_000  # what the uid of a call's double is more
_PERIOD = 4093  # elements after which a long input repeats: no power of two


def input_of(program: Program, spec: Collective, uid: int, place: int, rank: int) -> Array:
    """What `rank` of a communicator passes in a call, packed; `place` tells the calls of one group apart.

    Whole numbers, small enough that every order of operations gives the same bits.
    """
    count = spec.in_count(rank)
    high = {None: 120, ReduceKind.MIN: 120, ReduceKind.MAX: 120, ReduceKind.PROD: 3}.get(spec.op, 9)
    low = 1 if spec.op is ReduceKind.PROD else -high if spec.dtype.is_signed else 0
    rng = np.random.default_rng((program.seed, uid, place, rank))
    return np.resize(rng.integers(low, high, min(count, _PERIOD)), count).astype(numpy_dtype(spec.dtype))


def factor(uid: int, rank: int) -> int:
    """What `rank` passes to premul_sum."""
    return 1 + (uid + rank) % 3


def variant(program: Program, spec: Collective, uid: int, place: int, rank: int) -> Collective:
    """The call as one rank makes it: in place or not, and with displacements or without, which is its own affair."""
    rng = random.Random(f"{program.seed} {uid} {place} {rank}")
    vector = spec.counts is not None
    in_place = rng.random() < 0.4 and not (vector and spec.kind is CollectiveKind.ALL_TO_ALL)
    if not vector or rng.random() < 0.6:
        return spec.with_in_place(in_place)
    reading = spec.kind in (CollectiveKind.REDUCE_SCATTER, CollectiveKind.SCATTER, CollectiveKind.ALL_TO_ALL)
    writing = spec.kind in (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER, CollectiveKind.ALL_TO_ALL)
    runs = [spec.in_blocks, spec.out_blocks]
    displs: list[tuple[int, ...] | None] = [None, None]
    for which, wanted in enumerate((reading, writing)):
        if wanted:
            displs[which] = _displacements(rng, [count for _, count in runs[which](rank)])
    return replace(spec, in_place=in_place, in_displs=displs[0], out_displs=displs[1])


def _displacements(rng: random.Random, counts: Sequence[int]) -> tuple[int, ...]:
    order = list(range(len(counts)))
    rng.shuffle(order)
    found, at = [0] * len(counts), 0
    for block in order:
        at += rng.randrange(3)
        found[block] = at
        at += counts[block]
    return tuple(found)


# ---- right programs


def job_of(seed: int) -> Job:
    """Where the program of a seed runs."""
    return JOBS[seed // BLOCK % len(JOBS)]


def right(seed: int) -> Program:
    """The right program of a seed."""
    return _Maker(seed, job_of(seed)).program()


@dataclass
class _Maker:
    seed: int
    job: Job
    comms: list[tuple[int, ...]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    known: dict[int, list[Spec]] = field(default_factory=dict)

    def program(self) -> Program:
        self.rng = rng = random.Random(f"right {self.seed}")
        self.comms.append(tuple(range(len(self.job.vendors))))
        calls: list[Callable[[int], None]] = [self._again, self._async, self._persistent, self._group, self._mixture]
        for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
            if rng.random() < 0.15 and len(self.comms) < 4:
                self._split()
            rng.choices(calls, (4, 2, 2, 1, 3))[0](self._comm())
        while sum(len(self.comms[step.comm]) > 1 for step in self.steps if not isinstance(step, Split)) < 3:
            self._again(0)
        return Program(self.seed, self.job, tuple(self.comms), tuple(self.steps))

    def _add(self, make: Callable[[int], Step]) -> None:
        self.steps.append(make(len(self.steps)))

    def _comm(self) -> int:
        return 0 if self.rng.random() < 0.6 else self.rng.randrange(len(self.comms))

    def _spec(self, comm: int) -> Spec:
        """One that is known on this communicator, one that is much like it, or a new one."""
        rng, known = self.rng, self.known.setdefault(comm, [])
        choice = rng.random()
        if known and choice < 0.35:
            return rng.choice(known)
        spec: Spec = None
        if known and choice < 0.65 and (old := rng.choice(known)) is not None:
            spec = vary(rng, old, rng.choice(("op", "dtype", "size", "count", "root", "collective")))
        if spec is None and rng.random() > 0.06:
            spec = _draw(rng, len(self.comms[comm]))
        known.append(spec)
        return spec

    def _again(self, comm: int) -> None:
        spec = self._spec(comm)
        for _ in range(self.rng.choice((1, 3, 3, 4, 5))):
            self._add(lambda uid: Call(uid, comm, spec))

    def _mixture(self, comm: int) -> None:
        specs = [self._spec(comm) for _ in range(2)]
        if (first := specs[0]) is not None and self.rng.random() < 0.6:
            change = self.rng.choice(("op", "dtype", "root", "collective"))
            if (other := vary(self.rng, first, change)) is not None:
                specs[1] = other
        for _ in range(self.rng.choice((2, 2, 3))):
            for spec in specs:
                self._add(lambda uid, spec=spec: Call(uid, comm, spec))

    def _async(self, comm: int) -> None:
        for _ in range(self.rng.choice((1, 2, 3))):
            spec = self._spec(comm)
            for _ in range(self.rng.choice((1, 1, 2, 3))):
                held = self.rng.choice((0, 1, 3, 8))
                self._add(lambda uid, spec=spec, held=held: Call(uid, comm, spec, held))

    def _persistent(self, comm: int) -> None:
        spec = self._spec(comm)
        request = len(self.steps)
        self._add(lambda uid: Init(uid, comm, spec))
        for _ in range(self.rng.choice((1, 2, 3, 4))):
            held = self.rng.choice((0, 0, 1, 3))
            self._add(lambda uid, held=held: Start(uid, comm, request, held))
            if self.rng.random() < 0.3:
                beside = self._spec(comm)
                self._add(lambda uid, beside=beside: Call(uid, comm, beside))

    def _group(self, comm: int) -> None:
        specs = tuple(self._spec(comm) for _ in range(self.rng.choice((1, 2, 3))))
        for _ in range(self.rng.choice((1, 2))):
            self._add(lambda uid: Group(uid, comm, specs))

    def _split(self) -> None:
        rng, comm = self.rng, self._comm()
        members, nranks = self.comms[comm], len(self.job.vendors)
        ways = rng.choice(((0,), (0,), (0, 1), (0, None)))
        colors = tuple(rng.choice(ways) if rank in members else None for rank in range(nranks))
        keys = tuple(rng.choice((rank, -rank)) for rank in range(nranks))
        made: list[int | None] = [None] * nranks
        for color in dict.fromkeys(color for color in colors if color is not None):
            ranks = [rank for rank in members if colors[rank] == color]
            ranks.sort(key=lambda rank: (keys[rank], members.index(rank)))
            for rank in ranks:
                made[rank] = len(self.comms)
            self.comms.append(tuple(ranks))
        self._add(lambda uid: Split(uid, comm, colors, keys, tuple(made)))


def _draw(rng: random.Random, nranks: int) -> Collective:
    kind = rng.choice(list(CollectiveKind))
    dtype = rng.choice(list(DataType))
    op = _op(rng, kind, dtype) if kind.reduces else None
    root = rng.randrange(nranks) if kind.has_root else None
    vector = kind.has_blocks and rng.random() < 0.35
    least, most = rng.choices(((3, 12), (12, 16), (16, 18), (18, 21), (21, 23)), (60, 22, 10, 6, 2))[0]
    nbytes = 0 if rng.random() < 0.02 else int(2 ** rng.uniform(least, most))
    count = nbytes // dtype.itemsize // (nranks if kind.has_blocks else 1)
    count = max(count, 1) if nbytes else 0
    if rng.random() < 0.3:
        count += rng.randrange(3)
    if not vector:
        return Collective(kind, nranks, count, dtype, op, root)
    pairs = nranks if kind is CollectiveKind.ALL_TO_ALL else 1
    counts = tuple(rng.choice((count, count, count // 2, count + 1, 0)) for _ in range(nranks * pairs))
    return Collective(kind, nranks, sum(counts), dtype, op, root, counts=counts)


def _op(rng: random.Random, kind: CollectiveKind, dtype: DataType, but: ReduceKind | None = None) -> ReduceKind:
    return rng.choice([op for op in kind.ops if op is not None and op is not but and has_meaning(op, dtype)])


# ---- mutations

CHANGES = {
    "op": 3,
    "dtype": 1,
    "size": 1,
    "count": 1,
    "root": 3,
    "collective": 1,
    "known": 8,
    "communicator": 5,
    "omitted": 1,
    "doubled": 1,
}
"""What is changed, and how often it is tried: not every call has a root, or another communicator to go to."""


def mutated(seed: int) -> Program:
    """The right program of a seed with one call changed on one rank."""
    program = right(seed)
    rng = random.Random(f"mutated {seed}")
    while True:
        mutation = _mutation(rng, program)
        if mutation is not None:
            found = replace(program, mutation=mutation)
            if found.divergence is not None:
                return found


def _mutation(rng: random.Random, program: Program) -> Mutation | None:
    change = rng.choices(list(CHANGES), list(CHANGES.values()))[0]
    if change == "known":
        return _known(rng, program)
    there = [
        index
        for index, step in enumerate(program.steps)
        if not isinstance(step, Split) and len(program.comms[step.comm]) > 1
    ]
    index = max(rng.choice(there), rng.choice(there))  # rather late: plans are known
    step = program.steps[index]
    members = program.comms[step.comm]
    rank = rng.choice(members)
    if change == "omitted":
        if isinstance(step, Init):
            return None  # it would have to leave out the starts too
        return Mutation(rank, index, (), change)
    if change == "doubled":
        return Mutation(rank, index, (step, replace(step, uid=step.uid + _DOUBLE)), change)
    if change == "communicator":
        return _elsewhere(rng, program, rank, index)
    match step:
        case Call() | Init():
            spec = None if step.spec is None else vary(rng, step.spec, change, members.index(rank))
            steps: tuple[Step, ...] = (replace(step, spec=spec),) if spec is not None else ()
        case Group():
            place = rng.randrange(len(step.specs))
            old = step.specs[place]
            spec = None if old is None else vary(rng, old, change, members.index(rank))
            steps = (replace(step, specs=(*step.specs[:place], spec, *step.specs[place + 1 :])),) if spec else ()
        case Start():
            init = next(each for each in program.steps if isinstance(each, Init) and each.uid == step.request)
            spec = None if init.spec is None else vary(rng, init.spec, change, members.index(rank))
            steps = (Call(step.uid, step.comm, spec, step.held or None),) if spec is not None else ()
    return Mutation(rank, index, steps, change) if steps else None


def _known(rng: random.Random, program: Program) -> Mutation | None:
    """A call that all ranks know is another that they know: nobody has a reason to ask."""
    known: dict[int, list[Spec]] = {}
    some: list[tuple[int, Spec]] = []
    specs = {step.uid: step.spec for step in program.steps if isinstance(step, Init)}
    for index, step in enumerate(program.steps):
        if isinstance(step, Call | Start):
            there = known.setdefault(step.comm, [])
            spec = step.spec if isinstance(step, Call) else specs[step.request]
            if spec in there and len(program.comms[step.comm]) > 1:
                some += [(index, other) for other in there if other != spec]
            if spec not in there:
                there.append(spec)
    alike = [(index, other) for index, other in some if _alike(_spec(program.steps[index], specs), other)]
    if not some:
        return None
    index, spec = rng.choice(alike if alike and rng.random() < 0.7 else some)
    step = program.steps[index]
    assert isinstance(step, Call | Start)
    held = step.held if isinstance(step, Call) else step.held or None
    return Mutation(rng.choice(program.comms[step.comm]), index, (Call(step.uid, step.comm, spec, held),), "known")


def _spec(step: Step, requests: Mapping[int, Spec]) -> Spec:
    return step.spec if isinstance(step, Call) else requests[step.request] if isinstance(step, Start) else None


def _alike(a: Spec, b: Spec) -> bool:
    """Whether the messages of two calls may be of equal lengths, so that only what is compared tells them apart."""
    if a is None or b is None:
        return False
    whole = (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE, CollectiveKind.BROADCAST)
    kinds = a.kind is b.kind or (a.kind in whole and b.kind in whole)
    return kinds and a.total * a.dtype.itemsize == b.total * b.dtype.itemsize


def _elsewhere(rng: random.Random, program: Program, rank: int, index: int) -> Mutation | None:
    """The call on another communicator of the rank."""
    step = program.steps[index]
    there = {0} | {
        made for each in program.steps[:index] if isinstance(each, Split) and (made := each.made[rank]) is not None
    }
    there.discard(step.comm)
    if not isinstance(step, Call) or not there:
        return None
    comm = rng.choice(sorted(there))
    nranks = len(program.comms[comm])
    spec = step.spec
    if spec is not None and nranks != spec.nranks:
        root = None if spec.root is None else spec.root % nranks
        count = spec.count if spec.counts is None else max(spec.counts)
        spec = Collective(spec.kind, nranks, count, spec.dtype, spec.op, root)
    return Mutation(rank, index, (Call(step.uid, comm, spec, step.held),), "communicator")


def vary(rng: random.Random, spec: Collective, change: str, rank: int = 0) -> Collective | None:
    """The same with one thing changed; None if that cannot be. `rank` is whose call it is."""
    match change:
        case "op":
            return replace(spec, op=_op(rng, spec.kind, spec.dtype, spec.op)) if spec.op is not None else None
        case "dtype" | "size":
            same = change == "dtype"
            there = [
                each
                for each in DataType
                if each is not spec.dtype
                and (each.itemsize == spec.dtype.itemsize) is same
                and (spec.op is None or has_meaning(spec.op, each))
            ]
            return replace(spec, dtype=rng.choice(there)) if there else None
        case "count":
            return _count(rng, spec, rank)
        case "root":
            if spec.root is None or spec.nranks == 1:
                return None
            return replace(spec, root=(spec.root + rng.randrange(1, spec.nranks)) % spec.nranks)
        case "collective":
            kind = rng.choice([each for each in CollectiveKind if each is not spec.kind])
            count = spec.count if spec.counts is None else max(spec.counts)
            if kind.has_blocks != spec.kind.has_blocks:
                count = -(-count // spec.nranks) if kind.has_blocks else min(count * spec.nranks, _MOST)
            op = spec.op if spec.op in kind.ops or not kind.reduces else _op(rng, kind, spec.dtype)
            op = op if kind.reduces else None
            root = (spec.root if spec.root is not None else rng.randrange(spec.nranks)) if kind.has_root else None
            return Collective(kind, spec.nranks, count, spec.dtype, op, root)
    raise ValueError(change)


_MOST = 1 << 22  # elements that a changed count may reach


def _count(rng: random.Random, spec: Collective, rank: int) -> Collective | None:
    if spec.counts is None:
        count = rng.choice((spec.count + 1, spec.count - 1, 2 * spec.count, spec.count // 2, spec.count + 16))
        return replace(spec, count=count) if 0 <= count <= _MOST and count != spec.count else None
    counts = list(spec.counts)
    at = rng.randrange(len(counts))
    if spec.kind is CollectiveKind.ALL_TO_ALL:  # one that this rank has for another, or another for it
        other = (rank + rng.randrange(1, spec.nranks)) % spec.nranks if spec.nranks > 1 else rank
        at = rng.choice((rank * spec.nranks + other, other * spec.nranks + rank))
    new = rng.choice((counts[at] + 1, counts[at] - 1, 2 * counts[at], 0))
    if not 0 <= new <= _MOST or new == counts[at]:
        return None
    counts[at] = new
    return replace(spec, counts=tuple(counts), count=sum(counts))
