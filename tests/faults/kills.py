"""Kills ranks of running jobs at random times and at named points, and judges what every survivor is told.

    python -m tests.faults.kills --runs 100 --json figures.json
    python -m tests.faults.kills --seed 17

Each run is a job of its own. Its survivors go on calling until one of their calls fails; then they close, and tell what
was raised, when, and whether a value was wrong. All ranks to be killed die in one moment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mpi4py
import numpy as np

import hetcomm
from hetcomm.errors import HetcommError
from hetcomm.testing import RanksFailed, run_ranks, this_rank

__all__ = [
    "BAD",
    "COUNTS",
    "KINDS",
    "MODES",
    "TIMEOUT",
    "Case",
    "Verdict",
    "calls_of",
    "case_of",
    "left_over",
    "main",
    "run",
    "spread",
]

MIXES = (
    "ucx ucx",
    "mpi mpi",
    "mpi ucx",
    "oneccl oneccl",
    "gloo gloo",
    "ucx ucx ucx",
    "mpi mpi oneccl",
    "gloo mpi oneccl",
    "mpi mpi oneccl oneccl",
    "gloo gloo ucx ucx",
    "mpi oneccl ucx gloo",
    "mpi mpi mpi oneccl oneccl",
)
MODES = ("known", "new", "async", "persistent", "messages", "split", "grouped")
"""What the ranks do meanwhile: the same calls again and again, calls never made before, and so on."""
COUNTS = (1, 1_000, 300_000)
TIMEOUT = 20.0  # seconds of every wait: none may last so long
SOON = 1.0  # seconds in which every survivor must be told
_LIMIT = 90.0  # seconds of a job
_ROUNDS = 3  # before anybody dies

KINDS = {
    "exact": "every survivor names exactly the dead, soon",
    "late": "every survivor names exactly the dead, but not soon",
    "some": "a survivor names some of the dead only",
    "other": "a survivor got another kind of error",
    "timeout": "a survivor waited until its time was over",
    "blamed": "a survivor names a rank that lives",
    "untold": "a survivor was told nothing",
    "left over": "shared memory of the job is left",
    "wrong": "a survivor got a wrong value",
    "crash": "a survivor ended otherwise",
    "hang": "a survivor did not end",
}
"""What a run may come to; each is worse than those before."""
BAD = frozenset(KINDS) - {"exact", "late"}


@dataclass(frozen=True)
class Case:
    """One run."""

    seed: int
    vendors: tuple[str, ...]
    inline: int | None
    mode: str
    count: int
    victims: tuple[int, ...]
    after: float

    def __str__(self) -> str:
        inline = "" if self.inline is None else f", HETCOMM_INLINE_BYTES={self.inline}"
        return (
            f"seed {self.seed}: {' '.join(self.vendors)}{inline}, {self.mode} x {self.count}, "
            f"rank {', '.join(map(str, self.victims))} killed after {1e3 * self.after:.1f} ms"
        )


def case_of(seed: int) -> Case:
    """The run of a seed."""
    rng = random.Random(f"kills {seed}")
    vendors = tuple(MIXES[seed % len(MIXES)].split())
    dead = 1 if rng.random() < 0.6 else rng.randint(1, len(vendors) - 1)
    return Case(
        seed,
        vendors,
        rng.choice((None, None, 0)),
        rng.choice(MODES),
        rng.choice(COUNTS),
        tuple(sorted(rng.sample(range(len(vendors)), dead))),
        rng.choice((0.0, 0.001, rng.random() * 0.02, rng.random() * 0.3)),
    )


# ---- what each rank does


def play(seed: int, folder: str) -> dict[str, Any]:
    """A rank: call until a call fails. The first victim kills all, and notes when."""
    case = case_of(seed)
    mpi4py.rc.finalize = False  # MPI, by which all ranks have met, may wait for the dead in it
    group = this_rank()
    told: dict[str, Any] = {"error": None, "wrong": []}
    comm = hetcomm.init(timeout=TIMEOUT)
    calls = calls_of(comm, case)
    for _ in range(_ROUNDS):
        next(calls)
    processes = [int(each) for each in group.all_gather(str(os.getpid()).encode())]
    if comm.rank == case.victims[0]:
        victims = [processes[rank] for rank in (*case.victims[1:], case.victims[0])]
        threading.Timer(case.after, _kill, (folder, victims)).start()
    end = time.monotonic() + 2 * TIMEOUT
    try:
        while time.monotonic() < end:
            wrong = next(calls)
            if wrong:
                told["wrong"].append(wrong)
    except HetcommError as error:
        told["error"] = type(error).__name__, sorted(error.ranks), error.origin, str(error)[:600]
    told["at"] = time.monotonic()
    comm.close()
    told["closed"] = time.monotonic()
    return told


def _kill(folder: str, processes: list[int]) -> None:
    """All of them at once, this process last."""
    Path(folder, "death").write_text(repr(time.monotonic()))
    for process in processes:
        os.kill(process, signal.SIGKILL)


def calls_of(comm: Any, case: Case) -> Iterator[str]:
    """Makes one call after the other; yields what is wrong with each result, or ''."""
    n, count = comm.nranks, case.count
    request: Any = None
    array = np.zeros(count, np.float32)
    for turn in range(1_000_000):
        size = count if case.mode != "new" else count + turn
        if len(array) != size:
            array = np.zeros(size, np.float32)
        array[:] = comm.rank + turn % 5
        wanted = n * (n - 1) / 2 + n * (turn % 5)
        match case.mode:
            case "async":
                work = comm.all_reduce(array, async_op=True)
                while not work.done():
                    pass
                work.wait()
            case "persistent":
                if request is None:
                    request = comm.all_reduce_init(array)
                    array[:] = comm.rank + turn % 5
                request.start()
                request.wait()
            case "messages":
                got = np.empty_like(array)
                comm.send_recv(array, got, (comm.rank + 1) % n, (comm.rank - 1) % n)
                array, wanted = got, (comm.rank - 1) % n + turn % 5
            case "split":
                part = comm.split(0)
                part.all_reduce(array)
                part.close()
            case "grouped":
                with comm.group():
                    comm.all_reduce(array)
                    comm.barrier()
            case _:
                comm.all_reduce(array)
        yield "" if (array == wanted).all() else f"turn {turn}: {array[:3]} in place of {wanted}"


# ---- what came of it


@dataclass
class Verdict:
    """What came of one run: `kind` is one of `KINDS`."""

    case: Case
    kind: str
    seconds: list[float] = field(default_factory=list)
    closing: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n  ".join([f"{self.kind.upper()}: {self.case}", *self.notes])


def left_over() -> set[str]:
    """Shared memory that no living process has, by name or number."""
    names = set(os.listdir("/dev/shm"))
    for process in Path("/proc").iterdir():
        if names and process.name.isdigit():
            with contextlib.suppress(OSError):
                maps = (process / "maps").read_text()
                names = {name for name in names if f"/dev/shm/{name}" not in maps}
    with open("/proc/sysvipc/shm") as table:  # a number comes second, and how many are attached seventh
        fields = [line.split() for line in table.readlines()[1:]]
    return names | {each[1] for each in fields if each[6] == "0"}


def run(case: Case) -> Verdict:
    """Run one job and judge it."""
    env = {"UCX_LOG_LEVEL": "fatal"} | ({} if case.inline is None else {"HETCOMM_INLINE_BYTES": str(case.inline)})
    before = left_over()
    found: set[str] = set()
    verdict = Verdict(case, "exact")
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    output = ""
    with tempfile.TemporaryDirectory(prefix="hetcomm-kills-") as folder:
        try:
            given = run_ranks(
                len(case.vendors), play, case.seed, folder, vendors=case.vendors, env=env, timeout=_LIMIT, recovery=True
            )
            results = dict(enumerate(given))
        except RanksFailed as error:
            results, failures, output = error.results, error.failures, error.output
        noted = Path(folder, "death")
        died = float(noted.read_text()) if noted.exists() else 0.0
    for rank in range(len(case.vendors)):
        if rank in case.victims:
            continue
        if rank not in results:
            found.add("hang" if "did not end" in failures.get(rank, "") else "crash")
            verdict.notes.append(f"rank {rank}: {failures.get(rank, '')[-1500:]}")
            continue
        _judge(verdict, rank, results[rank], died, found)
    left = left_over() - before
    if left:
        found.add("left over")
        verdict.notes.append(f"left over: {sorted(left)[:6]}")
    verdict.kind = next((kind for kind in reversed(KINDS) if kind in found), "exact")
    if verdict.kind in ("crash", "hang"):
        verdict.notes += [f"| {line}" for line in output.splitlines()[-12:]]
    return verdict


def _judge(verdict: Verdict, rank: int, told: dict[str, Any], died: float, found: set[str]) -> None:
    dead = set(verdict.case.victims)
    if told["wrong"]:
        found.add("wrong")
        verdict.notes.append(f"rank {rank}: {told['wrong'][:2]}")
    if told["error"] is None:
        found.add("untold")
        return
    kind, ranks, origin, text = told["error"]
    seconds = told["at"] - died
    verdict.seconds.append(seconds)
    verdict.closing.append(told["closed"] - told["at"])
    if kind == "CollectiveTimeoutError":
        found.add("timeout")
    elif kind != "PeerFailureError":
        found.add("other")
    elif not set(ranks) <= dead or origin in dead:
        found.add("blamed")
    elif set(ranks) != dead:
        found.add("some")
    elif seconds > SOON:
        found.add("late")
    verdict.notes.append(f"rank {rank}, {seconds:.3f} s: {kind} {ranks}, origin {origin}: {text}")


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, 99th percentile and maximum, if there are any values."""
    if not values:
        return None
    ordered = sorted(values)
    at = {name: min(len(ordered) - 1, len(ordered) * part // 100) for name, part in (("p50", 50), ("p99", 99))}
    return {name: round(ordered[place], 4) for name, place in at.items()} | {"max": round(ordered[-1], 4)}


def summary(verdicts: Sequence[Verdict], seconds: float) -> dict[str, Any]:
    """Figures of many runs."""
    detection = [each for verdict in verdicts for each in verdict.seconds]
    closing = [each for verdict in verdicts for each in verdict.closing]
    return {
        "runs": len(verdicts),
        "kinds": dict(Counter(verdict.kind for verdict in verdicts)),
        "survivors": len(detection),
        "seconds until told": spread(detection),
        "seconds of closing": spread(closing),
        "failed": {
            kind: [verdict.case.seed for verdict in verdicts if verdict.kind == kind]
            for kind in KINDS
            if kind != "exact" and any(verdict.kind == kind for verdict in verdicts)
        },
        "seconds": round(seconds, 1),
        "cores": os.cpu_count(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 1 if a run came to what must not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=0, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, nargs="*", default=[], help="these seeds only")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--all", action="store_true", help="show those that went well, too")
    args = parser.parse_args(argv)
    begun, verdicts = time.monotonic(), []
    for seed in args.seed or range(args.first, args.first + args.runs):
        verdicts.append(run(case_of(seed)))
        if args.all or verdicts[-1].kind != "exact":
            print(verdicts[-1], end="\n\n", flush=True)
    figures = summary(verdicts, time.monotonic() - begun)
    print(json.dumps(figures, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(verdict.kind in BAD for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
