"""Kills ranks of running jobs again and again, lets those that are left shrink, and checks what they compute then.

    python -m tests.faults.shrinks --jobs 20 --json figures.json
    python -m tests.faults.shrinks --seed 17

A job has episodes, until one rank is left or nobody is to die any more: the ranks call until a call fails because some
were killed; they shrink, and check sums and who takes part. In some episodes one more is killed while they shrink.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import hetcomm
from hetcomm.errors import PeerFailureError
from hetcomm.testing import RanksFailed, run_ranks

from .kills import COUNTS, MODES, TIMEOUT, Case, calls_of, left_over, spread

__all__ = ["Episode", "Job", "Verdict", "job_of", "main", "run"]

MIXES = (
    "ucx ucx ucx",
    "mpi mpi mpi",
    "mpi mpi oneccl oneccl",
    "gloo gloo ucx ucx",
    "ucx ucx ucx ucx ucx ucx ucx ucx",
    "mpi oneccl ucx gloo",
    "mpi mpi mpi mpi ucx ucx ucx ucx",
    "oneccl oneccl oneccl ucx",
)
_LIMIT = 180.0


@dataclass(frozen=True)
class Episode:
    """Who dies: `victims` while calls go on, `second` while the others shrink, so many seconds after they begin to."""

    mode: str
    count: int
    victims: frozenset[int]
    after: float
    second: int | None
    second_after: float

    def __str__(self) -> str:
        second = f", {self.second} {1e3 * self.second_after:.1f} ms into shrink" if self.second is not None else ""
        return f"{self.mode} x {self.count}, {sorted(self.victims)} killed after {1e3 * self.after:.1f} ms{second}"


@dataclass(frozen=True)
class Job:
    """One job: its seed, vendors and setting, and its episodes."""

    seed: int
    vendors: tuple[str, ...]
    inline: int | None
    episodes: tuple[Episode, ...]

    def __str__(self) -> str:
        inline = "" if self.inline is None else f", HETCOMM_INLINE_BYTES={self.inline}"
        return f"seed {self.seed}: {' '.join(self.vendors)}{inline}; " + "; ".join(map(str, self.episodes))

    @property
    def dead(self) -> frozenset[int]:
        """Who has died at its end."""
        seconds = {each.second for each in self.episodes if each.second is not None}
        return frozenset[int]().union(seconds, *(each.victims for each in self.episodes))


def job_of(seed: int) -> Job:
    """The job of a seed."""
    rng = random.Random(f"shrinks {seed}")
    vendors = tuple(MIXES[seed % len(MIXES)].split())
    left, episodes = list(range(len(vendors))), []
    while len(left) > 1 and len(episodes) < 6:
        some = 1 if rng.random() < 0.8 else rng.randint(1, len(left) - 1)
        victims = frozenset(rng.sample(left, some))
        left = [rank for rank in left if rank not in victims]
        second = rng.choice(left) if len(left) > 1 and rng.random() < 0.3 else None
        left = [rank for rank in left if rank != second]
        after = rng.choice((0.0, 0.001, rng.random() * 0.02, rng.random() * 0.1))
        within = rng.choice((0.0, rng.random() * 0.005, rng.random() * 0.05))
        episodes.append(Episode(rng.choice(MODES), rng.choice(COUNTS), victims, after, second, within))
    return Job(seed, vendors, rng.choice((None, None, 0)), tuple(episodes))


# ---- what each rank does


def play(seed: int) -> list[dict[str, Any]]:
    """A rank: what it is told in each episode, and how long it took to shrink."""
    job = job_of(seed)
    if "mpi" in job.vendors:
        import mpi4py

        mpi4py.rc.finalize = False  # MPI may wait for the dead in it
    comm = hetcomm.init(timeout=TIMEOUT)
    me, members, told = comm.rank, list(range(comm.nranks)), []
    for episode in job.episodes:
        expected = [rank for rank in members if rank not in episode.victims]
        error = _call_until_it_fails(comm, me, episode, job)
        if episode.second == me:
            _die(episode.second_after)
        begun = time.monotonic()
        comm, members, tries = _shrink(comm, me, episode.second)
        named = sorted(error.ranks)
        told.append({"named": named, "members": members, "seconds": time.monotonic() - begun, "tries": tries})
        assert members == [rank for rank in expected if rank != episode.second], (members, str(error))
    comm.close()
    return told


def _die(after: float) -> None:
    if after:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def _call_until_it_fails(comm: Any, me: int, episode: Episode, job: Job) -> PeerFailureError:
    case = Case(job.seed, job.vendors, job.inline, episode.mode, episode.count, (), 0.0)
    calls = calls_of(comm, case)
    for _ in range(2):
        next(calls)
    if me in episode.victims:
        _die(episode.after)
    end = time.monotonic() + 2 * TIMEOUT
    try:
        while time.monotonic() < end:
            wrong = next(calls)
            assert not wrong, wrong
    except PeerFailureError as error:
        return error
    raise AssertionError("nothing was raised")


def _shrink(comm: Any, me: int, second: int | None) -> tuple[Any, list[int], int]:
    """Shrink until the one that is to die meanwhile is not there any more; checks who is, and some sums."""
    tries = 0
    while True:
        tries += 1
        try:
            comm = comm.shrink()
            ids = np.empty(comm.nranks, np.int64)
            comm.all_gather(np.array([me]), ids)
            members = ids.tolist()
            while True:
                for count in (1, 5_000, 200_000):
                    array = np.full(count, me + 1.0)
                    comm.all_reduce(array)
                    assert (array == sum(members) + len(members)).all(), (array[:3], members)
                comm.barrier()
                if second not in members:
                    assert members[comm.rank] == me, members
                    return comm, members, tries
        except PeerFailureError:
            if second is None:  # nobody is to die
                raise


# ---- what came of it


@dataclass
class Verdict:
    """What came of one job."""

    job: Job
    problems: list[str] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n  ".join([f"{'FAILED' if self.problems else 'well'}: {self.job}", *self.problems])


def run(job: Job) -> Verdict:
    """Run one job and judge it."""
    env = {"UCX_LOG_LEVEL": "fatal"} | ({} if job.inline is None else {"HETCOMM_INLINE_BYTES": str(job.inline)})
    before, verdict = left_over(), Verdict(job)
    try:
        run_ranks(len(job.vendors), play, job.seed, vendors=job.vendors, env=env, timeout=_LIMIT, recovery=True)
        results, failures, output = {}, {}, "nobody died"
    except RanksFailed as error:
        results, failures, output = error.results, error.failures, error.output
    living = [rank for rank in range(len(job.vendors)) if rank not in job.dead]
    for rank in living:
        if rank in results:
            verdict.told += results[rank]
        else:
            verdict.problems.append(f"rank {rank}: {failures.get(rank, 'no result')[-1500:]}")
    if verdict.problems:
        verdict.problems += [f"| {line}" for line in output.splitlines()[-20:]]
    left = left_over() - before
    if left:
        verdict.problems.append(f"shared memory is left: {sorted(left)[:6]}")
    return verdict


def summary(verdicts: Sequence[Verdict], seconds: float) -> dict[str, Any]:
    """Figures of many jobs."""
    episodes = [each for verdict in verdicts for each in verdict.job.episodes]
    told = [each for verdict in verdicts for each in verdict.told]
    return {
        "jobs": len(verdicts),
        "shrinks": len(episodes),
        "with a second death": sum(each.second is not None for each in episodes),
        "failed": [verdict.job.seed for verdict in verdicts if verdict.problems],
        "seconds of shrink and the first sums, one death": spread([e["seconds"] for e in told if e["tries"] == 1]),
        "the same, with tries again": spread([each["seconds"] for each in told if each["tries"] > 1]),
        "tries": dict(Counter(each["tries"] for each in told)),
        "seconds": round(seconds, 1),
        "cores": os.cpu_count(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 1 if a job failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=0, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, nargs="*", default=[], help="these seeds only")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args(argv)
    begun, verdicts = time.monotonic(), []
    for seed in args.seed or range(args.first, args.first + args.jobs):
        verdicts.append(run(job_of(seed)))
        if verdicts[-1].problems:
            print(verdicts[-1], end="\n\n", flush=True)
    figures = summary(verdicts, time.monotonic() - begun)
    print(json.dumps(figures, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(verdict.problems for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
