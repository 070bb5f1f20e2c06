"""Runs random programs by the hundred, right ones and ones with one call changed on one rank, and judges them.

    python -m tests.faults.campaign --right 300 --mutated 300 --json figures.json
    python -m tests.faults.campaign --seed 1234 --only mutated

Many programs run in one launched job, each on a communicator of its own, split from one that stays whole. Each rank
keeps a log, so that a job that dies or hangs is laid to the program it was in, and the rest goes on in another job.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import faulthandler
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hetcomm
from hetcomm.errors import HetcommError, PlanMismatchError
from hetcomm.testing import RanksFailed, run_ranks, this_rank

from .execute import execute
from .programs import BLOCK, Job, Program, job_of, mutated, right

__all__ = ["BAD", "Verdict", "judge", "main", "run_job", "summary"]

SECONDS = 4.0
"""What a wait in a program with a changed call may take."""
SOON = 2.0
"""Seconds within which 95 % of the ranks must have been told."""
RIGHT_SECONDS = 60.0
"""The same in a right program."""
_START_SECONDS = 120.0
_HANG_SECONDS = 60.0  # after which a program hangs, if that is more than
_ATTEMPTS = 3  # to start a job
_HANG_TIMES = 4  # as many of its timeouts: it may wait for that some times over


# ---- what each rank does


def play(
    folder: str, right_seeds: Sequence[int], mutated_seeds: Sequence[int], right_seconds: float, seconds: float
) -> None:
    """A job's rank: run all programs, and write a line about each into a file of this rank's own."""
    group = this_rank()
    with open(Path(folder) / f"{group.rank}.log", "a", buffering=1) as log, _Place(folder, group.rank) as place:
        log.write(json.dumps({"ready": False}) + "\n")
        place.watch(_START_SECONDS)
        hetcomm.init(timeout=_START_SECONDS).close()  # with all that it imports: the next ones have less time
        for seeds, make, most in ((right_seeds, right, right_seconds), (mutated_seeds, mutated, seconds)):
            parent: Any = None
            hang = max(_HANG_SECONDS, _HANG_TIMES * most)
            for seed in seeds:
                program = make(seed)
                place.watch(hang)
                if parent is None:
                    parent = hetcomm.init(timeout=most)
                log.write(json.dumps({"at": seed, "mutated": make is mutated}) + "\n")
                told: dict[str, Any] = {}
                try:
                    child = parent.split(0)
                    outcome, look = execute(child, program, group.rank, place.at)
                    told = outcome.json()
                    if seed % 3:  # a rank that is through waits in hetcomm, which moves things on, or elsewhere
                        parent.barrier(timeout=hang / 2)
                    group.barrier()
                    look()
                    told = outcome.json()
                    broken = ""
                except HetcommError as error:
                    broken = f"{type(error).__name__}: {error}"[:600]
                told = {**told, "seed": seed, "rank": group.rank, "mutated": make is mutated, "parent": broken}
                log.write(json.dumps(told) + "\n")
                if any(group.all_gather(broken.encode())):
                    with contextlib.suppress(HetcommError):
                        parent.close()
                    parent = None
            place.watch(hang)
            if parent is not None:
                with contextlib.suppress(PlanMismatchError if make is mutated else ()):  # of parts nobody waited for
                    parent.close()
        place.watch(60)


class _Place:
    """Where a rank is, for the case that it never comes back from there."""

    def __init__(self, folder: str, rank: int) -> None:
        self._step = os.open(Path(folder) / f"{rank}.step", os.O_WRONLY | os.O_CREAT, 0o600)
        self._stack = open(Path(folder) / f"{rank}.stack", "w")  # noqa: SIM115 (closed below)

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._step)  # the file of the stack stays open, since the watch goes on

    def at(self, index: int) -> None:
        """This rank takes step `index`."""
        os.pwrite(self._step, b"%8d" % index, 0)

    def watch(self, seconds: float) -> None:
        """After so many seconds the process shows its stack and ends."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._stack)


# ---- what came of it


@dataclass
class Verdict:
    """What came of one program.

    Attributes:
        kind: For right programs 'right' or what went wrong; for others one of `KINDS`.
        program: What was run.
        ranks: What each rank tells; None of a rank that tells nothing.
        detection: Seconds until each rank was told.
        notes: What a reader should see.
    """

    kind: str
    program: Program
    ranks: list[dict[str, Any] | None]
    detection: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        program = self.program
        which = "mutated" if program.mutation is not None else "right"
        lines = [f"{self.kind.upper()}: {which} program, {program}", *(f"  {note}" for note in self.notes)]
        for rank, told in enumerate(self.ranks):
            error = None if told is None else told.get("error")
            what = "never came to its end" if told is None else "no error"
            if error:
                what = f"{error['type']} in {error['in']}: {error['text'][:500]}"
            lines.append(f"  rank {rank}: {what}")
            for name in ("wrong", "damaged", "late_writes"):
                lines += [f"    {name}: {line}" for line in (told or {}).get(name, [])[:3]]
        lines.append(f"  again: python -m tests.faults.campaign --seed {program.seed} --only {which}")
        return "\n".join(lines)


KINDS = {
    "refused": "every rank got an error that names both sides, soon",
    "timeout": "every rank got one, but some only when their time was over",
    "late": "every rank got one, but not soon",
    "left": "a rank was told only that another one has left, though its own call disagrees with that one's",
    "unnamed": "an error does not name both sides",
    "other": "a rank got another kind of error",
    "untold": "a rank got no error",
    "unnoticed": "no rank got an error",
    "wrong, then told": "a rank got a wrong value, and an error later",
    "wrong": "a rank got a wrong value and never an error",
    "memory": "memory was written that no call may write",
    "parent": "the communicator that it was split from broke too",
    "crash": "a process ended",
    "hang": "a process never came back",
}
"""What a program with a changed call may come to; each is worse than those before."""
BAD = frozenset(KINDS) - {"refused", "timeout", "late"}
"""Those that must not be."""


def judge(program: Program, ranks: Sequence[dict[str, Any] | None], ended: str = "") -> Verdict:
    """What came of a program, from what its ranks tell.

    Args:
        program: Which.
        ranks: What each tells; None where a rank never came to its end.
        ended: 'crash' or 'hang', where the job did not survive it.
    """
    verdict = Verdict("right", program, list(ranks))
    there = [told for told in ranks if told is not None]
    errors = [told.get("error") for told in there]
    wrong = [told for told in there if told.get("wrong")]
    damaged = any(told.get("damaged") or told.get("late_writes") for told in there)
    broken = next((told["parent"] for told in there if told.get("parent")), "")
    if broken:
        verdict.notes.append(f"the parent: {broken}")
    if program.mutation is None:
        kinds = {"hang": ended == "hang", "crash": bool(ended), "memory": damaged, "wrong": bool(wrong)}
        kinds |= {"parent": bool(broken), "error": any(errors)}
        verdict.kind = next((kind for kind, there_is in kinds.items() if there_is), "right")
        return verdict
    kinds = dict.fromkeys(KINDS, False)
    kinds["hang"], kinds["crash"] = ended == "hang", ended == "crash"
    kinds["parent"], kinds["memory"] = bool(broken), damaged
    kinds["unnoticed"] = bool(there) and not any(errors)
    kinds["untold"] = not all(errors)
    kinds["wrong"] = any(not told.get("error") for told in wrong)
    kinds["wrong, then told"] = bool(wrong)
    if all(errors) and len(there) == program.nranks:
        _judge_errors(verdict, program, there, kinds)
    verdict.kind = next((kind for kind in reversed(KINDS) if kinds[kind]), "refused")
    return verdict


def _judge_errors(verdict: Verdict, program: Program, there: Sequence[dict[str, Any]], kinds: dict[str, bool]) -> None:
    assert program.divergence is not None
    assert program.mutation is not None
    culprit = program.mutation.rank
    members = program.comms[program.divergence[0]]
    for rank, told in enumerate(there):
        error = told["error"]
        beside = rank not in members  # its own calls are right: it is told that others have left
        if error["type"] == "PeerFailureError":
            kinds["left"] |= not beside
        elif error["type"] == "DepartedError":  # who calls, and who has closed the communicator of that call
            kinds["unnamed"] |= not re.search(r"rank \d+ calls .* but rank \d+ closes", error["text"])
        elif error["type"] not in ("PlanMismatchError", "CollectiveTimeoutError", "UsageError"):
            kinds["other"] = True
        elif not beside and not any(
            names_both(error["text"], each.index(culprit)) for each in program.comms if {rank, culprit} <= set(each)
        ):
            kinds["unnamed"] = True
        kinds["timeout"] |= error["type"] == "CollectiveTimeoutError"
        since = [each for each in (told["parted"], there[culprit]["parted"]) if each is not None]
        seconds = error["at"] - max(since, default=told["begun"])
        verdict.detection.append(max(seconds, 0.0))
        kinds["late"] |= seconds > SOON


def names_both(text: str, culprit: int) -> bool:
    """Whether an error names the rank that is to blame and another one, as numbers of the communicator."""
    named = {int(number) for number in re.findall(r"(?:rank|ranks|peer|and|,) (\d+)", text)}
    return culprit in named and len(named) > 1


def summary(verdicts: Iterable[Verdict], seconds: float) -> dict[str, Any]:
    """Figures of many programs."""
    verdicts = list(verdicts)
    changed = [verdict for verdict in verdicts if verdict.program.mutation is not None]
    detection = sorted(seconds for verdict in changed for seconds in verdict.detection)
    by_change: dict[str, Counter[str]] = {}
    for verdict in changed:
        assert verdict.program.mutation is not None
        by_change.setdefault(verdict.program.mutation.change, Counter())[verdict.kind] += 1
    whole = [verdict for verdict in verdicts if verdict.program.mutation is None]
    return {
        "right": dict(Counter(verdict.kind for verdict in whole)),
        "mutated": {kind: sum(v.kind == kind for v in changed) for kind in KINDS},
        "mutated by change": {change: dict(counts) for change, counts in sorted(by_change.items())},
        "detection": {
            "ranks": len(detection),
            "within 2 s": sum(each <= SOON for each in detection) / len(detection) if detection else None,
            **{
                f"p{p}": round(detection[min(len(detection) - 1, len(detection) * p // 100)], 4)
                for p in (50, 95, 99)
                if detection
            },
        },
        "errors": dict(
            Counter(
                told["error"]["type"]
                for verdict in changed
                for told in verdict.ranks
                if told is not None and told.get("error")
            )
        ),
        "failed": {
            kind: [verdict.program.seed for verdict in group if verdict.kind == kind]
            for group in (whole, changed)
            for kind in sorted({verdict.kind for verdict in group} - {"right", "refused"})
        },
        "seconds": round(seconds, 1),
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }


# ---- running them


def run_job(
    job: Job,
    right_seeds: Sequence[int],
    mutated_seeds: Sequence[int],
    right_seconds: float = RIGHT_SECONDS,
    seconds: float = SECONDS,
) -> list[Verdict]:
    """Run programs of one job, in one launch unless it breaks."""
    todo = [*((seed, False) for seed in right_seeds), *((seed, True) for seed in mutated_seeds)]
    found: list[Verdict] = []
    times = right_seconds, seconds
    attempts = 0
    env = {"UCX_LOG_LEVEL": "error"}  # it warns of each message that a broken communicator leaves behind
    if job.inline is not None:
        env["HETCOMM_INLINE_BYTES"] = str(job.inline)
    while todo:
        with tempfile.TemporaryDirectory(prefix="hetcomm-faults-") as folder:
            failed: RanksFailed | None = None
            seeds = [[seed for seed, changed in todo if changed is which] for which in (False, True)]
            limit = 300 + sum(
                max(_HANG_SECONDS, _HANG_TIMES * most) * len(some) for most, some in zip(times, seeds, strict=True)
            )
            try:
                run_ranks(len(job.vendors), play, folder, *seeds, *times, vendors=job.vendors, env=env, timeout=limit)
            except RanksFailed as error:
                failed = error
            logs = [_log(Path(folder), rank) for rank in range(len(job.vendors))]
            done = 0
            for seed, changed in todo:
                told = [log.told.get((seed, changed)) for log in logs]
                if all(told):
                    found.append(judge(_program(seed, changed), told))
                    done += 1
                    continue
                if failed is None:
                    raise AssertionError(f"the job of seed {seed} ended well, but ranks have not told of it")
                if any((seed, changed) == log.at for log in logs):
                    ended = "hang" if any(log.stack for log in logs) else "crash"
                    found.append(judge(_program(seed, changed), told, ended))
                    found[-1].notes += _last_words(logs, failed)
                    done += 1
                    failed = None
                break
            if (
                failed is not None and done
            ):  # all went well, but then the job came to no good end, or not to another start
                kind = "crash" if re.search(r"on\s+signal", failed.output) else "parent"
                found[-1].kind = "hang" if any(log.stack for log in logs) else kind
                found[-1].notes += ["the job failed after this program", *_last_words(logs, failed)]
            attempts = 0 if done else attempts + 1
            if failed is not None and attempts == _ATTEMPTS:
                raise failed  # no program was begun
            todo = todo[done:]
    return found


def _last_words(logs: Sequence[_Log], failed: RanksFailed) -> list[str]:
    notes = []
    for rank, log in enumerate(logs):
        notes += [f"rank {rank} was in step {log.step or '-'}", *(f"  {line}" for line in log.stack[:40])]
    for rank, text in failed.failures.items():
        notes += [f"rank {rank}: {line}" for line in text.splitlines()[-3:]]
    return notes + [f"  | {line}" for line in failed.output.splitlines()[-12:]]


@dataclass
class _Log:
    told: dict[tuple[int, bool], dict[str, Any]]
    at: tuple[int, bool] | None
    stack: list[str]
    step: str


def _log(folder: Path, rank: int) -> _Log:
    told: dict[tuple[int, bool], dict[str, Any]] = {}
    at: tuple[int, bool] | None = None
    path = folder / f"{rank}.log"
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the last line of a rank that was killed
            entry = json.loads(line)
            if "at" in entry:
                at = entry["at"], entry["mutated"]
            elif "seed" in entry:
                told[entry["seed"], entry["mutated"]] = entry
    texts = [each.read_text() if each.exists() else "" for each in (folder / f"{rank}.stack", folder / f"{rank}.step")]
    return _Log(told, at, texts[0].splitlines(), texts[1].strip())


def _program(seed: int, changed: bool) -> Program:
    return mutated(seed) if changed else right(seed)


def jobs(right_seeds: Iterable[int], mutated_seeds: Iterable[int]) -> list[tuple[Job, list[int], list[int]]]:
    """The jobs that run these programs, each with its seeds."""
    found: dict[int, tuple[Job, list[int], list[int]]] = {}
    for which, seeds in enumerate((right_seeds, mutated_seeds)):
        for seed in seeds:
            lists = found.setdefault(seed // BLOCK, (job_of(seed), [], []))
            (lists[1], lists[2])[which].append(seed)
    return list(found.values())


def _results(
    work: Sequence[tuple[Job, list[int], list[int]]], right_seconds: float, seconds: float, at_once: int
) -> Iterator[list[Verdict]]:
    if at_once == 1:  # without a thread, so that Ctrl-C ends it
        yield from (run_job(*each, right_seconds, seconds) for each in work)
        return
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(run_job, *each, right_seconds, seconds) for each in work]
        yield from (future.result() for future in concurrent.futures.as_completed(running))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 1 if a program came to what must not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--right", type=int, default=0, help="how many right programs")
    parser.add_argument("--mutated", type=int, default=0, help="how many with a changed call")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, nargs="*", help="these seeds only")
    parser.add_argument("--only", choices=("right", "mutated"), help="with --seed")
    parser.add_argument("--vendors", help="only jobs of these vendors, as in 'mpi,ucx'")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="timeout of programs with a changed call")
    parser.add_argument("--right-seconds", type=float, default=RIGHT_SECONDS, help="timeout of right programs")
    parser.add_argument("--at-once", type=int, default=1, help="jobs at one time")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--show", default=",".join(sorted(BAD)), help="kinds to show, or 'all'")
    parser.add_argument("--text", action="store_true", help="only print the programs")
    args = parser.parse_args(argv)
    if args.seed:
        seeds = [args.seed if args.only != other else [] for other in ("mutated", "right")]
    else:
        seeds = [list(range(args.first, args.first + count)) for count in (args.right, args.mutated)]
    if args.text:
        print("\n".join(str(_program(seed, bool(which))) for which in (0, 1) for seed in seeds[which]))
        return 0
    work = jobs(*seeds)
    if args.vendors:
        work = [each for each in work if set(each[0].vendors) <= set(args.vendors.split(","))]
    shown = set(KINDS) | {"error"} if args.show == "all" else {*args.show.split(","), "error"}
    begun, verdicts = time.monotonic(), []
    for number, some in enumerate(_results(work, args.right_seconds, args.seconds, args.at_once)):
        verdicts += some
        for verdict in some:
            if verdict.kind in shown:
                print(verdict, end="\n\n", flush=True)
        counts = dict(Counter(verdict.kind for verdict in some))
        job = some[0].program.job if some else "-"
        print(f"[{number + 1}/{len(work)}, {time.monotonic() - begun:.0f} s] {job}: {counts}", flush=True)
    figures = summary(verdicts, time.monotonic() - begun)
    print(json.dumps(figures, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(verdict.kind in BAD | {"error"} for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
