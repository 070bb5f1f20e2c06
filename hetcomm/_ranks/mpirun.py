"""Ranks that MPI's own launcher starts, as MPI wants it, and that are the job's in everything else.

One mpirun starts a starter in the place of each of them (`hetcomm._ranks.starter`). That one comes to a socket here, is
told the rank's command, variables and pipes, starts it, and says how it has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hetcomm._ranks import starter
from hetcomm._ranks.launch import mpi_command
from hetcomm._ranks.processes import Start, signal_group

__all__ = ["Asked", "Mpirun"]

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a starter is told.

    Attributes:
        command: Of the rank: program and arguments.
        environ: What is added to its environment.
        pipes: Descriptors that it writes to: stdout and stderr.
    """

    command: Sequence[str]
    environ: Mapping[str, str]
    pipes: tuple[int, int]


class Mpirun:
    """The mpirun of a job.

    Args:
        ranks: What its ranks are to run, by their number in the job.
        selector: Of the loop that serves it; the data of its keys are functions to be called.
        begun: Told of a rank that has been started: its number and its process.
        ended: Told of a rank that has ended: its number and its `Popen.returncode`. It may be told again.
        say: Takes lines that mpirun itself writes.

    Raises:
        UsageError: There is no mpirun.
    """

    def __init__(
        self,
        ranks: Mapping[int, Asked],
        selector: selectors.BaseSelector,
        begun: Callable[[int, int], None],
        ended: Callable[[int, int], None],
        say: Callable[[bytes], None],
    ) -> None:
        self._waiting = dict(ranks)  # of those whose starter has not come
        self._selector = selector
        self._begun = begun
        self._ended = ended
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._starters: list[socket.socket] = []
        with contextlib.ExitStack() as stack:
            self._path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="hetcomm-")), "starters")
            self._command = self._command_of(list(ranks))
            self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.bind(self._path)
            self._listener.listen(len(ranks))
            self._reading, self._writing = os.pipe()
            for end in (self._reading, self._writing):
                stack.callback(os.close, end)
            self._closing = stack.pop_all()
        os.set_blocking(self._reading, False)
        selector.register(self._listener, selectors.EVENT_READ, self._welcome)
        selector.register(self._reading, selectors.EVENT_READ, self._hear_mpirun)

    def start(self, environ: Mapping[str, str]) -> Start:
        """How mpirun is started; the process that comes of it is given to `watch`."""
        return Start(self._command, environ, self._writing, self._writing)

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Notice when it ends: ranks that it has not started by then never will be."""
        self._process = process
        pidfd = os.pidfd_open(process.pid)
        self._closing.callback(os.close, pidfd)

        def ended() -> None:
            self._selector.unregister(pidfd)
            process.wait()
            self._hear_mpirun()
            for rank in self._waiting:
                self._ended(rank, process.returncode or 1)

        self._selector.register(pidfd, selectors.EVENT_READ, ended)

    @property
    def running(self) -> bool:
        """Whether mpirun has not ended."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send it a signal if there are ranks that it has not started, and which can be sent none."""
        if self._waiting and self._process is not None and self.running:
            signal_group(self._process.pid, number)

    def dismiss(self) -> None:
        """Let the starters end, and mpirun with them."""
        for channel in self._starters:
            with contextlib.suppress(KeyError):
                self._selector.unregister(channel)
            channel.close()
        self._starters.clear()

    def close(self) -> None:
        """Close every descriptor."""
        self.dismiss()
        self._closing.close()

    def _command_of(self, ranks: Sequence[int]) -> list[str]:
        argv = [sys.executable, "-I", "-S", str(Path(starter.__file__)), self._path]
        return mpi_command([({}, [*argv, str(rank)]) for rank in ranks], recovery=True)

    def _welcome(self) -> None:
        """A starter has come: tell it what to start."""
        channel, _ = self._listener.accept()
        said = channel.recv(_LENGTH.size, socket.MSG_WAITALL)
        if len(said) < _LENGTH.size:  # it was killed
            channel.close()
            return
        rank = _LENGTH.unpack(said)[0]
        asked = self._waiting.pop(rank)
        text = json.dumps({"command": list(asked.command), "environ": dict(asked.environ)}).encode()
        self._starters.append(channel)
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._hear(rank, channel))
        with contextlib.suppress(ConnectionError):  # its end of file is read next
            socket.send_fds(channel, [_LENGTH.pack(len(text))], list(asked.pipes))
            channel.sendall(text)

    def _hear(self, rank: int, channel: socket.socket) -> None:
        """What a starter says: the process that it has started, and how that has ended."""
        try:
            data = channel.recv(1 << 12)
        except ConnectionError:
            data = b""
        for line in data.splitlines():
            said = json.loads(line)
            if "pid" in said:
                self._begun(rank, said["pid"])
            else:
                self._ended(rank, said["returncode"])
        if not data:
            self._selector.unregister(channel)
            self._ended(rank, -signal.SIGKILL)

    def _hear_mpirun(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self._reading, 1 << 18).splitlines():
                self._say(b"[mpirun] " + line + b"\n")
