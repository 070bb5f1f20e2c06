"""Processes that are ranks of a local job: each leads a session of its own, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

__all__ = ["Start", "processes", "signal_group", "status_of"]

_GRACE = 2.0  # seconds that processes get to end when they are told to
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True, slots=True)
class Start:
    """How a process is started.

    Attributes:
        command: Program and arguments.
        environ: All of its environment.
        stdout, stderr: Files that it writes to, or descriptors.
    """

    command: Sequence[str]
    environ: Mapping[str, str]
    stdout: IO[bytes] | int
    stderr: IO[bytes] | int


@contextlib.contextmanager
def processes(
    starts: Sequence[Start], grace: float = _GRACE, die_with_parent: bool = False
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start them, without input, each at the head of a session; on leaving, all that is left of these is ended.

    Args:
        starts: What to start.
        grace: Seconds between the polite signal and the other one.
        die_with_parent: They are killed when this process ends before that; only where it has one thread.

    Raises:
        OSError: A program cannot be started; none is left.
    """
    started: list[subprocess.Popen[bytes]] = []
    dying = _dying_with(os.getpid()) if die_with_parent else None
    try:
        for start in starts:
            started.append(
                subprocess.Popen(
                    start.command,
                    env=dict(start.environ),
                    stdin=subprocess.DEVNULL,
                    stdout=start.stdout,
                    stderr=start.stderr,
                    start_new_session=True,
                    preexec_fn=dying,  # noqa: PLW1509  # see `die_with_parent`
                )
            )
        yield started
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in started:
                if process.poll() is None:
                    signal_group(process.pid, number)
            end = time.monotonic() + grace
            with contextlib.suppress(subprocess.TimeoutExpired):
                for process in started:
                    process.wait(max(0.0, end - time.monotonic()))


def signal_group(leader: int, number: int) -> None:
    """Send a signal to the process group of a process that has not been waited for; to none, if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


def status_of(returncode: int) -> int:
    """The exit status, as a shell has it, of a process with this `Popen.returncode`."""
    return 128 - returncode if returncode < 0 else returncode


def _dying_with(parent: int) -> Callable[[], None] | None:
    """What a child runs before its program, so that it is killed when its parent ends, where the kernel can do that."""
    if not sys.platform.startswith("linux"):
        return None
    set_option = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: a child should not have to

    def prepare() -> None:
        set_option(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it has ended in between
            os._exit(1)

    return prepare
