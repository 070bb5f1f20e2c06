"""What a process knows of the others: looked at rarely, said once, and right when it is asked."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from hetcomm._ext import heart
from hetcomm.health.health import Health
from hetcomm.health.processes import is_stopped
from hetcomm.health.states import State


class FakePulse:
    """A heartbeat that says what it is told."""

    partners = (1, 2)

    def __init__(self) -> None:
        self.states = {1: heart.ALIVE, 2: heart.ALIVE}
        self.causes = {1: "", 2: ""}
        self.closed = 0

    def state(self, rank: int) -> int:
        return self.states.get(rank, heart.UNMET)

    def cause(self, rank: int) -> str:
        return self.causes.get(rank, "")

    def close(self) -> None:
        self.closed += 1


def test_it_looks_rarely_and_only_after_a_while() -> None:
    asked: list[int] = []

    def stopped(pid: int) -> bool:
        asked.append(pid)
        return False

    health = Health(0, ["h"] * 3, {1: 11, 2: 12}, stopped=stopped)
    for turn in range(50):
        health.look(100 + turn * 0.001)
    assert not asked, "a call that is over in 50 ms costs nothing"
    for turn in range(50, 1050):
        health.look(100 + turn * 0.001)
    assert 3 <= len(asked) / 2 <= 4, "a few times a second"
    count = len(asked)
    health.look(200.0)
    health.look(200.05)
    assert len(asked) == count, "another wait"


def test_of_many_processes_it_looks_at_some_at_a_time() -> None:
    asked: list[int] = []
    health = Health(0, (), {rank: rank for rank in range(1, 200)}, stopped=lambda pid: bool(asked.append(pid)))
    health.look(1.0)
    for turn in range(5):
        before = len(asked)
        health.look(1.2 + 0.31 * turn)
        assert len(asked) - before == 64
    assert set(asked) == set(range(1, 200))


def test_who_is_stopped_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hetcomm.health")
    halted = {11: False}
    health = Health(0, ["here:0", "there:1"], {1: 11}, stopped=lambda pid: halted[pid])
    assert health.state(1) is State.ALIVE
    for _ in range(2):
        halted[11] = True
        assert health.state(1) is health.state(1) is State.STOPPED
        assert (health.place(1), health.condition(1)) == ("on host there (process 11)", "stopped")
        halted[11] = False
        assert health.state(1) is State.ALIVE
    warned, back, *more = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert warned == (
        "WARNING",
        "[rank 0] rank 1 on host there (process 11) is stopped; calls that need it wait until it goes on",
    )
    assert back == ("INFO", "[rank 0] rank 1 goes on")
    assert [level for level, _ in more] == ["INFO", "INFO"]


def test_what_the_heartbeat_says() -> None:
    pulse, ended = FakePulse(), set[int]()
    health = Health(0, ["a:1", "b:1", "c:1"], {}, pulse, lambda: ended)
    assert [health.state(rank) for rank in range(3)] == [State.ALIVE] * 3
    pulse.states[1] = heart.QUIET
    assert health.state(1) is State.SUSPECTED
    assert health.condition(1) == "suspected: its host answers, but its process does not run"
    pulse.states[1] = heart.CUT
    assert health.condition(1) == "suspected: its host does not answer"
    pulse.states[1] = heart.ALIVE
    assert health.condition(1) == "alive"
    pulse.states[1], pulse.causes[1] = heart.DEAD, "its host has not answered"
    assert health.condition(1) == "dead: its host has not answered"
    assert health.is_cut_off(1)
    pulse.states[2] = heart.LEFT
    assert health.state(2) is State.LEFT
    ended.add(2)
    assert health.state(2) is State.LEFT, "it had left before it ended"
    health.close()
    health.close()
    assert pulse.closed == 1
    assert not health.is_cut_off(1)


def test_a_heartbeat_that_does_not_get_through_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    pulse = FakePulse()
    pulse.states[2] = heart.UNMET
    health = Health(0, ["a:1", "b:1", "c:1"], {}, pulse)
    for turn in range(300):
        health.look(5 + turn * 0.1)
    (record,) = caplog.records
    assert "the heartbeat does not reach rank 2 on host c" in record.getMessage()
    assert health.state(2) is State.ALIVE


def test_a_stopped_process_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert not is_stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        end = time.monotonic() + 30
        while not is_stopped(process.pid):
            assert time.monotonic() < end
        process.kill()
    assert not is_stopped(process.pid)
