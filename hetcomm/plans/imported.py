"""Schedules that a user brings: proved, and found to fit the job, before anything of them may run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from hetcomm.errors import ScheduleError
from hetcomm.schedule import serial
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import CommId, Program, Schedule, VendorCall
from hetcomm.schedule.verify import verify

__all__ = ["Imported", "examine"]


@dataclass(frozen=True, slots=True)
class Imported:
    """A schedule that may run.

    Attributes:
        collective: What it is for, as all ranks must agree on it.
        program: This rank's part; its algorithm names the schedule.
        digest: Equal exactly where the schedules are.
    """

    collective: Collective
    program: Program
    digest: bytes


def examine(
    given: Schedule | str | PathLike[str], rank: int, nranks: int, communicators: Mapping[CommId, Sequence[int]]
) -> Imported:
    """Read a schedule, prove it, and see whether its communicators are those of the job.

    Raises:
        ScheduleError: The file cannot be read, is malformed or of another version; the schedule does not verify, or is
            not for this job. The message has the counterexample, or names the communicator.
    """
    schedule = given if isinstance(given, Schedule) else _read(given)
    if schedule.collective.nranks != nranks:
        raise ScheduleError(
            f"the schedule is for {schedule.collective.nranks} ranks, but the communicator has {nranks}",
            remedy="Use it on a communicator of that size, or plan it for this one.",
            rank=rank,
        )
    verify(schedule)
    called = {step.comm for program in schedule.programs for step in program.steps if isinstance(step, VendorCall)}
    for comm in sorted(called, key=str):
        members = tuple(communicators.get(comm, ()))
        if members != tuple(schedule.communicators[comm]):
            raise ScheduleError(
                f"the schedule calls {comm} with ranks {_shown(schedule.communicators[comm])}, but in this job it "
                + (f"has ranks {_shown(members)}" if members else "does not exist"),
                remedy="Give the clusters the names and ranks that the schedule was made for (a topology file does).",
                rank=rank,
            )
    digest = hashlib.blake2b(serial.dumps(schedule).encode(), digest_size=16).digest()
    program = schedule.programs[rank]
    name = f"imported {program.algorithm or 'schedule'} {digest.hex()[:8]}"
    return Imported(schedule.collective.agreed(), replace(program, algorithm=name), digest)


def _read(path: str | PathLike[str]) -> Schedule:
    try:
        return serial.loads(Path(path).read_bytes())
    except OSError as error:
        raise ScheduleError(f"schedule file {str(path)!r} cannot be read: {error}", remedy="Check the path.") from error
    except ScheduleError as error:
        raise ScheduleError(f"schedule file {str(path)!r}: {error.message}", remedy=error.remedy) from error


def _shown(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
