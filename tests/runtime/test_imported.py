"""Schedules that a user brings run only after they have been proved, on every rank or on none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from hetcomm.communicator import Communicator
from hetcomm.errors import HetcommError, PlanMismatchError, UsageError
from hetcomm.schedule import serial
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import CommId, Program, Schedule, Send
from hetcomm.topology.costs import DEFAULT
from hetcomm.topology.inline import inline
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.select import schedule as planned
from hetcomm.topology.tuning import Tuning
from hetcomm.types import DataType, ReduceKind

from .threads import run_threads

TOPOLOGY = Topology(
    (
        Cluster("left", "ucx", (0, 1), (Uplink(0), Uplink(1))),
        Cluster("right", "ucx", (2, 3), (Uplink(2),)),
    )
)
WHOLE = Collective(CollectiveKind.ALL_REDUCE, 4, 1000, DataType.FLOAT64, ReduceKind.SUM)


def own(collective: Collective = WHOLE) -> Schedule:
    """A schedule that hetcomm would not choose for a vector so short."""
    found = planned(collective, TOPOLOGY, Tuning(few_steps_bytes=0, chunk_bytes=1024))
    programs = tuple(replace(program, algorithm="by hand") for program in found.programs)
    return Schedule(collective, programs, found.communicators)


def changed(schedule: Schedule, change: Callable[[Any], Any]) -> Schedule:
    """`schedule` with `change` made to the steps of rank 0."""
    first = schedule.programs[0]
    steps = tuple(step for step in map(change, first.steps) if step is not None)
    programs = (replace(first, steps=steps), *schedule.programs[1:])
    return Schedule(schedule.collective, programs, schedule.communicators)


def errors(comm: Communicator, given: Any) -> str:
    """What `use_schedule` raises; the communicator must survive it."""
    with pytest.raises(HetcommError) as caught:
        comm.use_schedule(given)
    total = numpy.full(1000, comm.rank + 1.0)
    comm.all_reduce(total)
    assert (total == 10.0).all()
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_schedule_from_a_file_runs(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(serial.dumps(own()))

    def job(comm: Communicator) -> list[str]:
        comm.use_schedule(file)
        algorithms = []
        for count in (1000, 999):
            source, target = numpy.full(count, comm.rank + 1.0), numpy.empty(count)
            comm.all_reduce(source, target)
            assert (target == 10.0).all()
            algorithms.append(comm.explain("all_reduce", source, target).program.algorithm)
        with comm.trace() as trace:
            comm.all_reduce(numpy.ones(1000), numpy.empty(1000))
        # No rank has a vendor's library, so the calls of the schedule are written out.
        members = comm.topology.communicators_of(comm.topology.cluster_of(comm.rank))
        steps = inline(own().programs[comm.rank], members).steps
        assert sorted(span.index for span in trace.timeline.spans) == list(range(len(steps)))
        with pytest.raises(UsageError, match="in place"):
            comm.all_reduce(numpy.ones(1000))
        return algorithms

    for algorithms in run_threads(TOPOLOGY, job):
        assert algorithms[0].startswith("imported by hand ")
        assert algorithms[1] == "mutual all_reduce"


def test_a_wrong_schedule_is_refused_with_its_counterexample_and_nothing_is_run(tmp_path: Path) -> None:
    careless = changed(
        own(), lambda step: replace(step, src=replace(step.src, offset=0)) if isinstance(step, Send) else step
    )
    late = changed(own(), lambda step: replace(step, channel=5) if isinstance(step, Send) else step)
    strangers = {CommId(f"x{comm.cluster}", comm.role): members for comm, members in own().communicators.items()}
    renamed = Schedule(
        WHOLE,
        tuple(
            replace(
                p,
                steps=tuple(
                    replace(s, comm=CommId(f"x{s.comm.cluster}", s.comm.role)) if hasattr(s, "comm") else s
                    for s in p.steps
                ),
            )
            for p in own().programs
        ),
        strangers,
    )
    other = replace(WHOLE, nranks=2)
    small = Schedule(other, tuple(Program(rank, other, ()) for rank in range(2)), {})
    broken = tmp_path / "broken.json"
    broken.write_text(serial.dumps(own())[:-100])
    old = tmp_path / "old.json"
    old.write_text(json.dumps({**serial.to_json(own()), "version": 1}))
    for given, text in (
        (careless, "it should hold"),
        (late, "has no partner"),
        (renamed, "does not exist"),
        (small, "is for 2 ranks"),
        (broken, "broken.json"),
        (old, "version"),
        (tmp_path / "none.json", "cannot be read"),
    ):
        for found in run_threads(TOPOLOGY, lambda comm, given=given: errors(comm, given)):
            assert found.startswith("ScheduleError"), found
            assert text in found


def test_one_rank_s_bad_file_is_refused_on_every_rank(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text(serial.dumps(own()))

    def job(comm: Communicator) -> str:
        return errors(comm, tmp_path / "none.json" if comm.rank == 2 else good)

    found = run_threads(TOPOLOGY, job)
    assert all("cannot be read" in text for text in found)
    assert "rank 2 refused" in found[0]


def test_different_schedules_are_a_mismatch() -> None:
    def job(comm: Communicator) -> str:
        with pytest.raises(PlanMismatchError, match="use_schedule"):
            comm.use_schedule(own(replace(WHOLE, count=1000 + comm.rank // 3)))
        return "named"

    assert run_threads(TOPOLOGY, job) == ["named"] * 4


def test_plans_follow_the_calibration() -> None:
    def job(comm: Communicator) -> int:
        comm._plans._calibration = replace(DEFAULT, overhead=0.0)
        target = numpy.empty(1 << 20)
        comm.all_reduce(numpy.full(1 << 20, comm.rank + 1.0), target)
        assert (target == 10.0).all()
        return len(comm.explain("all_reduce", target).program.steps)

    def ruled(comm: Communicator) -> int:
        return len(comm.explain("all_reduce", numpy.empty(1 << 20)).program.steps)

    assert run_threads(TOPOLOGY, job) != run_threads(TOPOLOGY, ruled)
