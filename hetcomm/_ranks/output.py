"""What the ranks of a job write, as whole lines with the rank in front, and their failures without repetition.

A traceback on a rank's stderr is held back until the rank has ended, or has gone on for a while. Where ranks fail, the
error of the one that failed first is shown in full; those of the others are cut to a line. An error that only tells of
another rank's end, a `PeerFailureError`, is taken for the first only where no other kind of failure comes.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Report", "how"]

_HOLDING = 2.0  # seconds: how long a traceback is held back on a rank that goes on
_PATIENCE = 2.0  # seconds after a rank has failed because of another, for that one to fail too
_LONGEST = 1 << 20  # bytes of a line that does not end
_HEADERS = (b"Traceback (most recent call last):", b"  + Exception Group Traceback (most recent call last):")
_BARE = re.compile(rb"(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception)(?:: |\r?$)")  # of a cause that was never raised itself
_NAME = re.compile(rb"(?:[A-Za-z_][\w.]*\.)?([A-Za-z_]\w*)(:.*)?$", re.DOTALL)
_SECONDARY = (b"PeerFailureError", b"DepartedError")

Write = Callable[[bytes], None]


def how(returncode: int) -> str:
    """How a process with this `Popen.returncode` has ended: 'exit status 1', 'killed by SIGKILL'."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


class _Lines:
    """Puts lines together."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, without their ends."""
        *lines, self._data = (self._data + data).split(b"\n")
        if len(self._data) > _LONGEST:
            lines.append(self._data)
            self._data = b""
        return lines

    def rest(self) -> list[bytes]:
        """What has come of a line that never ended."""
        data, self._data = self._data, b""
        return [data] if data else []


@dataclass(slots=True)
class _Rank:
    stdout: _Lines = field(default_factory=_Lines)
    stderr: _Lines = field(default_factory=_Lines)
    held: list[bytes] = field(default_factory=list)
    held_since: float = 0.0
    shown: list[bytes] = field(default_factory=list)  # the traceback that was shown before the rank ended


@dataclass(frozen=True, slots=True)
class _Failure:
    rank: int
    returncode: int
    text: list[bytes]
    shown: bool
    at: float

    @property
    def error(self) -> bytes | None:
        return _error(self.text)

    @property
    def secondary(self) -> bool:
        """Whether it only tells of another rank's end."""
        return self.returncode > 0 and (self.error or b"").startswith(_SECONDARY)


class Report:
    """Writes out what the ranks of a job write.

    Args:
        nranks: How many there are.
        stdout, stderr: Take what is to be written: whole lines.
        prefix: Whether lines begin with their rank.
    """

    def __init__(self, nranks: int, stdout: Write, stderr: Write, prefix: bool = True) -> None:
        self._ranks = [_Rank() for _ in range(nranks)]
        self._stdout = stdout
        self._stderr = stderr
        self._prefix = prefix
        self._waiting: list[_Failure] = []  # of ranks that have failed because of others, for a better reason
        self._first: _Failure | None = None
        self._cause: _Failure | None = None

    @property
    def failure(self) -> tuple[int, int] | None:
        """Rank and `Popen.returncode` of the first failure that tells of no other rank, else of the first one."""
        found = self._cause or self._first
        return None if found is None else (found.rank, found.returncode)

    def out(self, rank: int, data: bytes) -> None:
        """A rank has written this to its stdout."""
        self._write(self._stdout, rank, self._ranks[rank].stdout.feed(data))

    def err(self, rank: int, data: bytes) -> None:
        """A rank has written this to its stderr."""
        self._take(rank, self._ranks[rank].stderr.feed(data))

    def ended(self, rank: int, returncode: int) -> None:
        """A rank has ended, and everything that it has written is here."""
        state, held = self._ranks[rank], self._rest(rank)
        if returncode == 0:
            self._write(self._stderr, rank, held)
            return
        failure = _Failure(rank, returncode, held or state.shown, not held and bool(state.shown), time.monotonic())
        self._first = self._first or failure
        if not failure.secondary:
            if self._cause is None:
                self._cause = failure
                self._show(failure)
            else:
                self._cut(failure)
        else:
            self._waiting.append(failure)
        self.look()

    def restarted(self, rank: int, returncode: int) -> None:
        """A rank has failed, and another process is about to take its place: that is no failure of the job."""
        self._write(self._stderr, rank, self._rest(rank))
        self._say(rank, f"{how(returncode)}; it is started again".encode())

    def look(self) -> None:
        """What the passing of time brings: called at least every tenth of a second."""
        now = time.monotonic()
        for rank, state in enumerate(self._ranks):
            if state.held and now - state.held_since > _HOLDING:
                state.shown, state.held = state.held, []
                self._write(self._stderr, rank, state.shown)
        if self._waiting and (self._cause or now - self._waiting[0].at > _PATIENCE):
            self.finish()

    def finish(self) -> None:
        """Say what is left to say of the ranks that have ended."""
        waiting, self._waiting = self._waiting, []
        for failure in waiting:
            if self._cause is None and failure is self._first:
                self._show(failure)
            else:
                self._cut(failure)

    def _rest(self, rank: int) -> list[bytes]:
        """Hand on what a process that has ended has written last, but for what is held back, which is returned."""
        state = self._ranks[rank]
        self._write(self._stdout, rank, state.stdout.rest())
        self._take(rank, state.stderr.rest())
        held, state.held = state.held, []
        return held

    def _take(self, rank: int, lines: list[bytes]) -> None:
        """Lines of stderr: what follows a traceback waits behind it."""
        state = self._ranks[rank]
        for number, line in enumerate(lines):
            if not state.held:
                if line.rstrip(b"\r") not in _HEADERS and not _BARE.match(line):
                    self._write(self._stderr, rank, [line])
                    continue
                state.held_since = time.monotonic()
            state.held += lines[number:]
            return

    def _show(self, failure: _Failure) -> None:
        if not failure.shown:
            self._write(self._stderr, failure.rank, failure.text)
        if failure.error is None or failure.returncode != 1:
            self._say(failure.rank, how(failure.returncode).encode())

    def _cut(self, failure: _Failure) -> None:
        if failure.shown and failure.returncode == 1:
            return
        text = how(failure.returncode).encode()
        if failure.error is not None:
            text = failure.error if failure.returncode == 1 else text + b" after " + failure.error
        elif not failure.shown:  # it was no traceback
            self._write(self._stderr, failure.rank, failure.text)
        self._say(failure.rank, text)

    def _say(self, rank: int, text: bytes) -> None:
        self._stderr(b"[%d] failed: %s\n" % (rank, text))

    def _write(self, write: Write, rank: int, lines: list[bytes]) -> None:
        if lines:
            start = b"[%d] " % rank if self._prefix else b""
            write(b"".join(start + line + b"\n" for line in lines))


def _error(lines: list[bytes]) -> bytes | None:
    """The line of a traceback that says what was raised, without the module; of a chain of them the last one."""
    found, inside = None, False
    for line in lines:
        if line.rstrip(b"\r") in _HEADERS:
            inside = True
        elif inside and line and not line[:1].isspace():
            match = _NAME.match(line.rstrip(b"\r"))
            found = line if match is None else match[1] + (match[2] or b"")
            inside = False
    return found
