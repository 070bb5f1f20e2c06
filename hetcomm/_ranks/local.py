"""A job of ranks on this machine, as `hetcomm run` starts it: one loop that serves the ranks until the last has ended.

It reads what they write, serves the rendezvous at which they meet, sees each of them end and tells the others, and
hands signals on. A rank that fails does not end the others.

Ranks are children of this process, except those of the vendor `mpi`, for which there is one mpirun
(`hetcomm._ranks.mpirun`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from types import FrameType

from hetcomm._ranks.mpirun import Asked, Mpirun
from hetcomm._ranks.output import Report, how
from hetcomm._ranks.processes import Start, processes, signal_group, status_of
from hetcomm.errors import UsageError
from hetcomm.job.launcher import outside, variables
from hetcomm.job.rendezvous import Rendezvous

__all__ = ["GRACE", "TIMED_OUT", "Segment", "run_job"]

GRACE = 5.0
"""Seconds that ranks get to end after a signal."""
TIMED_OUT = 124
"""The exit status where a job did not end in time: that of timeout(1)."""

_LOOK = 0.1  # seconds between two looks at clocks
_MPIRUN_ENDS = 2.0  # seconds that mpirun gets to end when its ranks have
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Segment:
    """Ranks that are started alike.

    Attributes:
        nranks: How many.
        command: Program and arguments.
        env: What is added to the environment.
    """

    nranks: int
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Rank:
    number: int
    command: Sequence[str]
    env: dict[str, str]
    stdout: int = -1  # the ends of its pipes that are read here; -1: closed
    stderr: int = -1
    pipes: tuple[int, int] = (-1, -1)  # the other ends, until it is started
    process: subprocess.Popen[bytes] | None = None
    pid: int | None = None
    pidfd: int | None = None
    returncode: int | None = None

    def open_pipes(self) -> None:
        """Make the pipes of its next process."""
        (self.stdout, out), (self.stderr, err) = _pipe(), _pipe()
        self.pipes = (out, err)

    def close_writing(self) -> None:
        """Have it alone hold the ends that it writes to."""
        for end in self.pipes:
            if end >= 0:
                os.close(end)
        self.pipes = (-1, -1)


def run_job(
    segments: Sequence[Segment],
    *,
    stdout: Callable[[bytes], None],
    stderr: Callable[[bytes], None],
    timeout: float | None = None,
    prefix: bool = True,
    grace: float = GRACE,
    restarts: int = 0,
) -> int:
    """Start the ranks of all segments on this machine and wait until all have ended; no process is left.

    SIGINT, SIGTERM and SIGHUP go to the ranks' process groups, once; what is left after `grace` seconds, or at a second
    signal, is killed. To be called in the only thread of a process.

    Args:
        segments: Their ranks are numbered through, in this order.
        stdout, stderr: Take whole lines.
        timeout: Seconds after which the ranks get SIGTERM, and after `grace` SIGKILL.
        prefix: Whether lines begin with their rank.
        grace: Seconds.
        restarts: How often, in all, a rank that fails is started again; those of the vendor `mpi` are not.

    Returns:
        0 if all ranks ended with 0, perhaps after they had been started again, else the exit status of the first that
        failed, 128 + signal for one that was killed; `TIMED_OUT` after `timeout`.

    Raises:
        UsageError: A program cannot be started, or there is no mpirun for ranks of the vendor `mpi`.
    """
    with contextlib.ExitStack() as stack:
        job = _Job(
            segments, Report(sum(each.nranks for each in segments), stdout, stderr, prefix), stderr, grace, restarts
        )
        stack.callback(job.close)
        stack.enter_context(job.signals())
        job.start(stack)
        return job.wait(timeout)


class _Job:
    def __init__(
        self,
        segments: Sequence[Segment],
        report: Report,
        stderr: Callable[[bytes], None],
        grace: float,
        restarts: int,
    ) -> None:
        self._report = report
        self._stderr = stderr
        self._grace = grace
        self._restarts = restarts
        self._selector = selectors.DefaultSelector()
        nranks = sum(segment.nranks for segment in segments)
        key = token_hex(32)
        self._rendezvous = Rendezvous(nranks, bytes.fromhex(key), self._selector)
        self._ranks: list[_Rank] = []
        for segment in segments:
            for _ in range(segment.nranks):
                number = len(self._ranks)
                env = {**segment.env, **variables(number, nranks, self._rendezvous.address, key, restarts)}
                self._ranks.append(_Rank(number, segment.command, env))
        self._mpirun: Mpirun | None = None
        self._signals = 0
        self._kill_at: float | None = None
        self._closing = contextlib.ExitStack()

    # ---- the beginning

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start all ranks; on leaving `stack` none is left."""
        self._stack, self._base = stack, outside(os.environ)
        base = self._base
        for rank in self._ranks:
            rank.open_pipes()
        over_mpi = [rank for rank in self._ranks if {**base, **rank.env}.get("HETCOMM_VENDOR") == "mpi"]
        direct = [rank for rank in self._ranks if rank not in over_mpi]
        starts = [self._start_of(rank) for rank in direct]
        if over_mpi:
            asked = {rank.number: Asked(rank.command, rank.env, rank.pipes) for rank in over_mpi}
            self._mpirun = Mpirun(asked, self._selector, self._begun, self._ended, self._stderr)
            starts.append(self._mpirun.start(base))
        try:
            started = stack.enter_context(processes(starts, self._grace, die_with_parent=True))
        except OSError as error:
            raise UsageError(
                f"{error.filename or 'a program'} cannot be started: {error.strerror}",
                remedy="Name a program that is on PATH, or its file.",
            ) from error
        for rank, process in zip(direct, started, strict=False):
            rank.process = process
            self._begun(rank.number, process.pid)
        if self._mpirun is not None:
            self._mpirun.watch(started[-1])

    def _start_of(self, rank: _Rank) -> Start:
        return Start(rank.command, {**self._base, **rank.env}, *rank.pipes)

    def _start_again(self, rank: _Rank) -> bool:
        """Start another process for a rank that has failed; whether that went well."""
        rank.env["HETCOMM_LIFE"] = str(int(rank.env["HETCOMM_LIFE"]) + 1)
        rank.open_pipes()
        try:
            (rank.process,) = self._stack.enter_context(processes([self._start_of(rank)], self._grace, True))
        except OSError:  # its program is gone
            rank.close_writing()
            return False
        self._begun(rank.number, rank.process.pid)
        return True

    def _begun(self, number: int, pid: int) -> None:
        rank = self._ranks[number]
        rank.pid = pid
        rank.close_writing()
        for name in ("stdout", "stderr"):
            self._selector.register(getattr(rank, name), selectors.EVENT_READ, self._reader(rank, name))
        if rank.process is not None:  # the others' starters tell when they have ended
            rank.pidfd = os.pidfd_open(pid)
            self._selector.register(rank.pidfd, selectors.EVENT_READ, lambda: self._reap(rank))

    # ---- what ranks do

    def _reader(self, rank: _Rank, name: str) -> Callable[[], None]:
        return lambda: self._read(rank, name, whole=False)

    def _read(self, rank: _Rank, name: str, whole: bool) -> None:
        """Hand on what a rank has written; with `whole` everything that is there."""
        end = getattr(rank, name)
        take = self._report.out if name == "stdout" else self._report.err
        while end >= 0:
            try:
                data = os.read(end, 1 << 16)
            except BlockingIOError:
                return
            if data:
                take(rank.number, data)
            else:
                self._close_pipe(rank, name)
                return
            if not whole:
                return

    def _close_pipe(self, rank: _Rank, name: str) -> None:
        end = getattr(rank, name)
        setattr(rank, name, -1)
        if end >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(end)
            os.close(end)

    def _reap(self, rank: _Rank) -> None:
        """A child has ended: its group goes with it, before its number can be another's."""
        assert rank.process is not None
        assert rank.pidfd is not None
        self._selector.unregister(rank.pidfd)
        os.close(rank.pidfd)
        rank.pidfd = None
        signal_group(rank.process.pid, signal.SIGKILL)
        self._ended(rank.number, rank.process.wait())

    def _ended(self, number: int, returncode: int) -> None:
        rank = self._ranks[number]
        if rank.returncode is not None:
            return
        may = self._restarts > 0 and rank.process is not None and not self._signals and not self._rendezvous.is_over
        again = returncode != 0 and may
        self._rendezvous.ended(rank.number, how(returncode), killed=returncode < 0, again=again)
        for name in ("stdout", "stderr"):
            self._read(rank, name, whole=True)
            self._close_pipe(rank, name)
        if again:
            self._restarts -= 1
            self._report.restarted(rank.number, returncode)
            if self._start_again(rank):
                return
            self._rendezvous.ended(rank.number, how(returncode), killed=returncode < 0)
        rank.returncode = returncode
        self._report.ended(rank.number, returncode)

    # ---- the end

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, signals are noticed by the loop and end nothing by themselves."""
        reading, writing = socket.socketpair()
        for end in (reading, writing):
            end.setblocking(False)
            self._closing.enter_context(end)
        self._selector.register(reading, selectors.EVENT_READ, lambda: self._signalled(reading))
        before = {number: signal.signal(number, _noticed) for number in _FORWARDED}
        old = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, reading: socket.socket) -> None:
        for number in reading.recv(64):
            if number in _FORWARDED:
                self.stop(number)

    def stop(self, number: int) -> None:
        """Hand a signal on to all ranks, or kill them, if one has been handed on."""
        self._signals += 1
        if self._signals == 1:
            self._kill_at = time.monotonic() + self._grace
            self._signal(number)
        else:
            self._kill_at = None
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for rank in self._ranks:
            if rank.returncode is None and rank.pid is not None:
                signal_group(rank.pid, number)
        if self._mpirun is not None:
            self._mpirun.signal(number)

    @property
    def _over(self) -> bool:
        return all(rank.returncode is not None for rank in self._ranks)

    def wait(self, timeout: float | None) -> int:
        """Serve the ranks until all have ended; the exit status."""
        end = None if timeout is None else time.monotonic() + timeout
        late = False
        while not self._over:
            self._serve()
            now = time.monotonic()
            if end is not None and now > end:
                late, end = True, None
                self._stderr(b"hetcomm run: the job has not ended within %g s\n" % (timeout or 0))
                self.stop(signal.SIGTERM)
            if self._kill_at is not None and now > self._kill_at:
                self._kill_at = None
                self._signal(signal.SIGKILL)
        self._report.finish()
        self._dismiss()
        failure = self._report.failure
        return TIMED_OUT if late else 0 if failure is None else status_of(failure[1])

    def _serve(self) -> None:
        for key, _ in self._selector.select(_LOOK):
            if key.fileobj in self._selector.get_map():  # what came before it may have closed it
                key.data()
        self._rendezvous.look()
        self._report.look()

    def _dismiss(self) -> None:
        """Let mpirun end."""
        if self._mpirun is None:
            return
        self._mpirun.dismiss()
        end = time.monotonic() + _MPIRUN_ENDS
        while self._mpirun.running and time.monotonic() < end:
            self._serve()

    def close(self) -> None:
        """Close every descriptor; no process is left."""
        if self._mpirun is not None:
            self._mpirun.close()
        for rank in self._ranks:
            for name in ("stdout", "stderr"):
                self._close_pipe(rank, name)
            rank.close_writing()
            if rank.pidfd is not None:
                os.close(rank.pidfd)
        self._rendezvous.close()
        self._closing.close()
        self._selector.close()


def _pipe() -> tuple[int, int]:
    """A pipe whose reading end does not block."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with contextlib.suppress(OSError):  # more than a user may have
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 18)
    return reading, writing


def _noticed(number: int, frame: FrameType | None) -> None:
    """The loop is woken by the signal's number."""
