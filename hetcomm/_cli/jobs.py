"""The ranks that something is measured on, and its progress on the terminal.

Under a launcher the job is taken as it is, and every rank runs the command. Without one the ranks are started here, and
the first of them writes how far it is into a file, since its output is not the terminal's.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress

import hetcomm
from hetcomm._ranks.parent import RanksFailed, run_ranks
from hetcomm.errors import CollectiveTimeoutError, HetcommError, PeerFailureError

__all__ = ["Task", "Tick", "in_job", "left", "start_ranks"]

_GRACE = 10.0  # seconds that ranks get to start, and to say themselves what they waited for
_LOOK = 0.1  # seconds between two looks at the progress

Tick = Callable[[float], None]
"""Is told the part that is done, from 0 to 1."""


class Task(Protocol):
    """What the ranks do; it is pickled to get there."""

    def run(self, comm: hetcomm.Communicator, deadline: float, tick: Tick) -> Any:
        """Do it on this rank; `deadline` is on the clock of `time.monotonic`. What rank 0 returns counts."""
        ...


def in_job(task: Task, timeout: float) -> Any:
    """Run `task` on the ranks that a launcher has started, this one among them; its result on rank 0, None elsewhere.

    Raises:
        HetcommError: As `hetcomm.init` and the task.
    """
    deadline = time.monotonic() + timeout
    with hetcomm.init(timeout=timeout) as comm, _bar(shown=comm.rank == 0) as tick:
        found = task.run(comm, deadline, tick)
        return found if comm.rank == 0 else None


def start_ranks(task: Task, vendors: Sequence[str | None], clusters: Sequence[int] | None, timeout: float) -> Any:
    """Start a job of one rank for each of `vendors` (None: the detected one), and run `task` on it.

    Args:
        task: What they do.
        vendors: Each rank's vendor.
        clusters: Each rank's cluster, where that does not follow from the vendor.
        timeout: Seconds for all of it.

    Returns:
        The result of rank 0.

    Raises:
        UsageError: There is no mpirun.
        PeerFailureError: A rank died, or the deadline passed; the message shows what it said.
        HetcommError: As `hetcomm.init` and the task.
    """
    env = [{} if clusters is None else {"HETCOMM_CLUSTER": str(clusters[rank])} for rank in range(len(vendors))]
    with tempfile.TemporaryDirectory(prefix="hetcomm-") as directory:
        file = Path(directory) / "progress"
        # What ranks say of themselves is no part of the result.
        with _bar(shown=True) as tick, _followed(file, tick), redirect_stdout(sys.stderr):
            try:
                arguments = (task, timeout, str(file))
                answers = run_ranks(len(vendors), _rank, *arguments, vendors=vendors, env=env, timeout=timeout + _GRACE)
            except RanksFailed as error:
                raise PeerFailureError(
                    f"the ranks that were started failed: {error}", remedy="Run 'hetcomm doctor'."
                ) from error
    failures = [answer for answer in answers if isinstance(answer, HetcommError)]
    if failures:
        # What one rank's error does to the others is not the cause.
        raise next((error for error in failures if not isinstance(error, PeerFailureError)), failures[0])
    return answers[0]


def left(deadline: float, rank: int) -> float:
    """Seconds until `deadline`.

    Raises:
        CollectiveTimeoutError: There are none.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise CollectiveTimeoutError(
            "the measurement did not end in time", remedy="Allow more with --timeout, or measure less.", rank=rank
        )
    return seconds


def _rank(task: Task, timeout: float, progress: str) -> Any:
    """One rank of `start_ranks`; an error is its result, to be raised without the traceback of another process."""
    deadline, written = time.monotonic() + timeout, 0.0

    def tick(done: float) -> None:
        nonlocal written
        now = time.monotonic()
        if comm.rank == 0 and now - written > _LOOK:
            written = now
            Path(progress).write_text(str(done), encoding="ascii")

    try:
        with hetcomm.init(timeout=timeout) as comm:
            found = task.run(comm, deadline, tick)
            return found if comm.rank == 0 else None
    except HetcommError as error:
        return error


@contextmanager
def _bar(*, shown: bool) -> Iterator[Tick]:
    """A progress bar on stderr where that is a terminal; what is yielded is called with the part that is done."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (shown and console.is_terminal), transient=True) as progress:
        task = progress.add_task("measuring", total=1.0)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def _followed(file: Path, tick: Tick) -> Iterator[None]:
    """Tell `tick` what is in `file`, again and again."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(_LOOK):
            text = file.read_text(encoding="ascii") if file.exists() else ""
            if text:  # it is empty for a moment while it is written
                tick(float(text))

    thread = threading.Thread(target=follow, name="hetcomm progress")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
