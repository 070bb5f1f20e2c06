"""Commands that tests start themselves: one deadline, and no process is left.

One that does not end in time is shown: its processes, what they have written, and the stacks of those that run Python.
Processes are known by a variable that they inherit, since launchers put their ranks into groups of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

__all__ = ["DEADLINE", "MARK", "PATIENCE", "Started", "living", "outside", "python", "run", "started"]

DEADLINE = 240.0
"""Seconds that only what hangs takes, on a slow and busy machine, too."""
PATIENCE = {"HETCOMM_TIMEOUT": "100"}
"""The environment of ranks that never wait until their time is over: what takes less than 30 s has not, anywhere."""
MARK = "HC_TEST_JOB"
"""The variable that tells the processes of a job."""

_ENDING = 3.0  # seconds that processes get to write their stacks, and to end
_LAUNCHERS = ("OMPI_COMM_", "PMI", "PRTE_", "SLURM_", "HETCOMM_")
_RANKS = (b"HETCOMM_RANK=", b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK=")


def outside(**environ: str) -> dict[str, str]:
    """An environment in which no launcher has started anything, and in which hetcomm is found; with `environ`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHERS) or name == "HETCOMM_UCX_HOME"
    }
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environ


def living(mark: str) -> list[str]:
    """The command lines of a job's processes."""
    return [_read(pid, "cmdline").replace(b"\0", b" ").decode() for pid in _pids(mark)]


@dataclass(frozen=True)
class Started:
    """A command that runs, with pipes for what it writes."""

    process: subprocess.Popen[str]
    mark: str

    def finish(self, timeout: float = DEADLINE) -> subprocess.CompletedProcess[str]:
        """Wait until it has ended and all that it has written is read.

        Raises:
            AssertionError: That was not so in time.
        """
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            left = self.end()
            with contextlib.suppress(subprocess.TimeoutExpired):  # by what has got rid of its mark
                out, err = self.process.communicate(timeout=_ENDING)
                left += ["--- stdout ---", out, "--- stderr ---", err]
            raise AssertionError("\n".join([f"not ended within {timeout:g} s:", *left])) from None
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)

    def end(self) -> list[str]:
        """End all its processes, with a stack of each that runs Python; what they were.

        A launcher would kill its ranks when the first of them aborts: it stands still until all have, and then hands on
        what they have written.
        """
        first, pids = self.process.pid, _pids(self.mark)
        were = [_description(pid) for pid in pids]
        ranks = [pid for pid in pids if pid != first and _runs_python(pid)]
        launcher = [first] if first in pids else []
        if ranks:
            _signal(launcher, signal.SIGSTOP)
            _signal(ranks, signal.SIGABRT)
            self._wait(ranks)
            _signal(launcher, signal.SIGCONT)
            self._wait(launcher)
        if _runs_python(first):
            _signal(launcher, signal.SIGABRT)
            self._wait(launcher)
        _signal(_pids(self.mark), signal.SIGKILL)
        self._wait(pids)
        return were

    def _wait(self, pids: Sequence[int]) -> None:
        until = time.monotonic() + _ENDING
        while set(pids) & set(_pids(self.mark)) and time.monotonic() < until:
            self.process.poll()
            time.sleep(0.02)


@contextmanager
def started(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Started]:
    """A command, in this environment or `env`, without input; on leaving, none of its processes is left."""
    mark, pipe = uuid4().hex, subprocess.PIPE
    marked = {**(os.environ if env is None else env), MARK: mark, "PYTHONFAULTHANDLER": "1"}
    with subprocess.Popen(
        command, env=marked, cwd=cwd, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    ) as process:
        job = Started(process, mark)
        try:
            yield job
        finally:
            job.end()


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = DEADLINE,
    status: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """What a command writes, and its exit status, which must be `status` unless that is None.

    Raises:
        AssertionError: It was another one, or the command did not end in time.
    """
    with started(command, env=env, cwd=cwd) as job:
        done = job.finish(timeout)
    assert status in (None, done.returncode), f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def python(code: str, *, status: int | None = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    """The same of Python code in a process of its own, which no launcher has started."""
    return run([sys.executable, "-c", textwrap.dedent(code)], env=outside(**environ), status=status)


# ---- processes


def _read(pid: int, name: str) -> bytes:
    """A file of a process in /proc; nothing if it has ended or is another user's."""
    try:
        return Path("/proc", str(pid), name).read_bytes()
    except OSError:
        return b""


def _pids(mark: str) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if f"{MARK}={mark}".encode() in _read(pid, "environ")]


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _runs_python(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").resolve().name.startswith("python")
    return False


def _description(pid: int) -> str:
    variables = _read(pid, "environ").split(b"\0")
    rank = next((each.partition(b"=")[2].decode() for each in variables if each.startswith(_RANKS)), "-")
    state = _read(pid, "stat").rpartition(b") ")[2][:1].decode()
    command = _read(pid, "cmdline").replace(b"\0", b" ").decode()[:120]
    return f"process {pid}, rank {rank}, {state} in {_read(pid, 'wchan').decode() or '-'}: {command}"
