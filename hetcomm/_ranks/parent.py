"""The parent's side of `run_ranks`: starts the ranks, serves their gathers, collects results, leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hetcomm._ranks.child import Call, receive, send
from hetcomm._ranks.launch import mpi_command
from hetcomm._ranks.processes import Start, processes
from hetcomm.errors import UsageError
from hetcomm.job.launcher import outside

__all__ = ["RanksFailed", "run_ranks"]

_GRACE = 2.0  # seconds: what ranks get to report after one has failed, and after the deadline to show their stacks
# The working folder, which -c puts first, may hold a source tree; the parent's path counts.
_CHILD = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from hetcomm._ranks.child import main; sys.exit(main(sys.argv[1], int(sys.argv[2])))"
)


class RanksFailed(Exception):
    """Some ranks of a `run_ranks` call failed, died or did not end in time.

    Attributes:
        failures: For each such rank its traceback, or what became of it.
        results: What the other ranks returned.
        output: What the job wrote to stdout and stderr.
    """

    def __init__(self, failures: Mapping[int, str], results: Mapping[int, Any], output: str) -> None:
        self.failures = dict(failures)
        self.results = dict(results)
        self.output = output
        parts = [f"--- rank {rank} ---\n{text.rstrip()}" for rank, text in sorted(self.failures.items())]
        tail = output[-8000:].rstrip()
        super().__init__("\n".join([f"{len(self.failures)} ranks failed", *parts, "--- output ---", tail]))


class _Rank:
    """What the parent knows of one rank."""

    def __init__(self) -> None:
        self.channel: socket.socket | None = None
        self.pidfd: int | None = None
        self.gathering: bytes | None = None
        self.result: bytes | None = None
        self.failure: str | None = None
        self.gone = False

    @property
    def reported(self) -> bool:
        return self.result is not None or self.failure is not None

    def kill(self) -> None:
        """Kill the process if it is still there; the pidfd cannot mean another one."""
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class _Job:
    """The ranks of one call and the socket they connect to."""

    def __init__(self, call: Call, listener: socket.socket) -> None:
        self.call = call
        self.ranks = [_Rank() for _ in range(call.nranks)]
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, None)

    @property
    def settled(self) -> bool:
        """Whether nothing more will come from any rank that ever connected."""
        return all(rank.channel is None or rank.gone or rank.reported for rank in self.ranks)

    def serve(self, seconds: float) -> None:
        """Handle what the ranks send, for at most `seconds` if they send nothing."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._welcome()
            else:
                self._handle(key.data)

    def _welcome(self) -> None:
        channel, _ = self._listener.accept()
        _, payload = receive(channel)
        rank = self.ranks[struct.unpack("<q", payload)[0]]
        pid, _, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        rank.channel, rank.pidfd = channel, os.pidfd_open(pid)
        self._selector.register(channel, selectors.EVENT_READ, rank)
        send(channel, b"C", pickle.dumps(self.call))

    def _handle(self, rank: _Rank) -> None:
        if rank.channel is None:
            return
        try:
            kind, payload = receive(rank.channel)
        except (EOFError, ConnectionError):
            self._selector.unregister(rank.channel)
            rank.gone = True
            self._answer_gather()
            return
        if kind == b"G":
            rank.gathering = payload
        elif kind == b"R":
            rank.result = payload
        elif kind == b"E":
            rank.failure = payload.decode()
        self._answer_gather()
        if all(each.gone or each.reported for each in self.ranks):
            self.dismiss()

    def dismiss(self) -> None:
        """Let the ranks exit that wait after reporting a failure."""
        for rank in self.ranks:
            if rank.failure is not None and rank.channel is not None and not rank.gone:
                with contextlib.suppress(ConnectionError):
                    send(rank.channel, b"X")

    def _answer_gather(self) -> None:
        waiting = [rank for rank in self.ranks if rank.gathering is not None]
        missing = [number for number, rank in enumerate(self.ranks) if rank.gone or rank.reported]
        if len(waiting) == len(self.ranks):
            kind, answer = b"G", pickle.dumps([rank.gathering for rank in waiting])
        elif waiting and missing:
            kind, answer = b"D", f"rank {missing[0]} ended without taking part in a gather".encode()
        else:
            return
        for rank in waiting:
            rank.gathering = None
            if rank.channel is not None:
                with contextlib.suppress(ConnectionError):  # it died meanwhile: its end of file is read next
                    send(rank.channel, kind, answer)

    def close(self) -> None:
        """Kill what is left of the ranks and close every descriptor."""
        for rank in self.ranks:
            rank.kill()
            if rank.channel is not None:
                rank.channel.close()
            if rank.pidfd is not None:
                os.close(rank.pidfd)
        self._selector.close()


def run_ranks(
    nranks: int,
    target: Callable[..., Any],
    *args: Any,
    launcher: str = "mpirun",
    vendors: Sequence[str | None] | None = None,
    env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    timeout: float = 60.0,
    mpirun_args: Sequence[str] = (),
    recovery: bool = False,
) -> list[Any]:
    """Run `target(*args)` on every rank of a local job and return the results in rank order.

    Every rank is a process of its own, started afresh. Inside the target, `this_rank()` tells rank and nranks and
    gathers small payloads. No process outlives the call.

    Args:
        nranks: Number of ranks.
        target: An importable function at the top level of a module.
        *args: Its arguments, picklable.
        launcher: 'mpirun' (of this Python environment, else of the search path; Open MPI or MPICH), or 'spawn' for
            plain processes without MPI.
        vendors: `HETCOMM_VENDOR` of each rank; None leaves it unset.
        env: What is added to the environment: one mapping for all ranks, or one for each.
        timeout: Seconds until all ranks must have ended; those that have not are killed.
        mpirun_args: More arguments of mpirun.
        recovery: The others go on when a rank dies (the caller then finds their results in `RanksFailed.results`).

    Raises:
        RanksFailed: A rank raised, died, returned what cannot be pickled, or ran past the deadline; the message shows
            each such rank's traceback.
        UsageError: An argument cannot be used, or there is no mpirun.
    """
    environs = _environs(nranks, vendors, env)
    if launcher not in ("mpirun", "spawn"):
        raise UsageError(f"launcher {launcher!r} is neither 'mpirun' nor 'spawn'")
    call = _call(target, args, nranks, timeout)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hetcomm-"))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        path = os.path.join(directory, "ranks")
        listener.bind(path)
        listener.listen(nranks)
        output = stack.enter_context(open(os.path.join(directory, "output"), "w+b"))
        argv = [[sys.executable, "-c", _CHILD, path, str(rank)] for rank in range(nranks)]
        # The children must find hetcomm however the parent found it.
        base = {**outside(os.environ), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if launcher == "mpirun":
            commands = [mpi_command(list(zip(environs, argv, strict=True)), mpirun_args, recovery)]
            bases: list[Mapping[str, str]] = [base]
        else:
            commands, bases = argv, [{**base, **environ} for environ in environs]
        job = _Job(call, listener)
        stack.callback(job.close)
        starts = [
            Start(command, base, output, subprocess.STDOUT) for command, base in zip(commands, bases, strict=True)
        ]
        started = stack.enter_context(processes(starts))
        _wait(job, started, timeout, recovery)
        codes = [process.poll() for process in started]
        output.seek(0)
        text = output.read().decode(errors="replace")
    return _results(job, codes, text, recovery)


def _environs(
    nranks: int, vendors: Sequence[str | None] | None, env: Mapping[str, str] | Sequence[Mapping[str, str]] | None
) -> list[dict[str, str]]:
    if nranks < 1:
        raise UsageError(f"nranks {nranks} is less than one")
    environs = (
        [dict(env or {}) for _ in range(nranks)] if env is None or isinstance(env, Mapping) else list(map(dict, env))
    )
    if len(environs) != nranks or (vendors is not None and len(vendors) != nranks):
        raise UsageError(f"env and vendors must be given once for each of the {nranks} ranks")
    for environ, vendor in zip(environs, vendors or [None] * nranks, strict=True):
        if vendor is not None:
            environ["HETCOMM_VENDOR"] = vendor
    return environs


def _call(target: Callable[..., Any], args: tuple[Any, ...], nranks: int, timeout: float) -> Call:
    qualname = target.__qualname__
    if "<" in qualname:
        raise UsageError(
            f"target {qualname} cannot be imported", remedy="Pass a function at the top level of a module."
        )
    module = sys.modules.get(target.__module__)
    spec = getattr(module, "__spec__", None)
    name = target.__module__ if target.__module__ != "__main__" or spec is None else spec.name
    file = getattr(module, "__file__", None)
    if name == "__main__":
        name = "__hetcomm_main__"
    return Call(name, file, qualname, pickle.dumps(args), nranks, timeout, tuple(sys.path))


def _wait(job: _Job, started: Sequence[subprocess.Popen[bytes]], timeout: float, recovery: bool) -> None:
    """Until every process has ended, the deadline has passed, or a failure has had its grace."""
    end = time.monotonic() + timeout + _GRACE
    while any(process.poll() is None for process in started):
        now = time.monotonic()
        if now > end:
            return
        job.serve(min(0.05, end - now))
        failed = any(rank.failure is not None or (rank.gone and not rank.reported) for rank in job.ranks)
        if failed and not recovery:
            end = min(end, now + _GRACE)
    end = min(end, time.monotonic() + _GRACE)
    while not job.settled and time.monotonic() < end:  # what the ranks sent last is still to be read
        job.serve(0.05)


def _results(job: _Job, codes: Sequence[int | None], output: str, recovery: bool) -> list[Any]:
    failures: dict[int, str] = {}
    results: dict[int, Any] = {}
    for number, rank in enumerate(job.ranks):
        if rank.result is not None:
            results[number] = pickle.loads(rank.result)
        elif rank.failure is not None:
            failures[number] = rank.failure
        elif rank.channel is None:
            failures[number] = "it never started"
        else:
            failures[number] = "it ended without a result" if rank.gone else "it did not end in time and was killed"
    if failures or (any(codes) and not recovery) or None in codes:
        if not failures:
            failures = {number: f"exit statuses {list(codes)} after its result" for number in results}
        raise RanksFailed(failures, results, output)
    sys.stdout.write(output)
    return [results[number] for number in range(len(job.ranks))]
