"""What is around a measurement: the ranks it runs on, its progress on the terminal, and its results as a table.

Under a launcher the job is taken as it is, and every rank runs the command. Without one the ranks are started here, and
the first of them writes how far it is into a file, since its output is not the terminal's.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import hetcomm
from hetcomm._cli.calibrate import FULL, QUICK, Effort, Result, measure
from hetcomm._cli.units import format_seconds
from hetcomm._ranks.parent import RanksFailed, run_ranks
from hetcomm.errors import HetcommError, PeerFailureError, UsageError
from hetcomm.topology import toml

__all__ = ["Result", "in_job", "save_topology", "show", "start_ranks"]

_GRACE = 10.0  # seconds that ranks get to start, and to say themselves what they waited for
_LOOK = 0.1  # seconds between two looks at the progress


def in_job(quick: bool, timeout: float) -> Result | None:
    """Measure on the ranks that a launcher has started, this one among them; the result on rank 0, None elsewhere.

    Raises:
        HetcommError: As `hetcomm.init` and `measure`.
    """
    deadline = time.monotonic() + timeout
    with hetcomm.init(timeout=timeout) as comm, _bar(shown=comm.rank == 0) as tick:
        found = measure(comm, _effort(quick), deadline, tick)
        return found if comm.rank == 0 else None


def start_ranks(vendors: Sequence[str], nranks: int, quick: bool, timeout: float) -> Result:
    """Start a job of one cluster for each of `vendors`, the ranks divided evenly, and measure on it.

    Raises:
        UsageError: There are fewer than two ranks for a cluster, or there is no mpirun.
        PeerFailureError: A rank died, or the deadline passed; the message shows what it said.
        HetcommError: As `hetcomm.init` and `measure`.
    """
    if nranks < 2 * len(vendors) or not all(vendors):
        raise UsageError(
            f"{nranks} ranks of vendors {','.join(vendors)!r}: each needs two at least, and a name",
            remedy="Give more with --ranks, or name fewer vendors.",
        )
    clusters = [rank * len(vendors) // nranks for rank in range(nranks)]
    twice = len(set(vendors)) < len(vendors)
    env = [{"HETCOMM_CLUSTER": str(cluster)} if twice else dict[str, str]() for cluster in clusters]
    with tempfile.TemporaryDirectory(prefix="hetcomm-") as directory:
        file = Path(directory) / "progress"
        with _bar(shown=True) as tick, _followed(file, tick):
            try:
                arguments = (quick, timeout, str(file))
                named = [vendors[cluster] for cluster in clusters]
                answers = run_ranks(nranks, _rank, *arguments, vendors=named, env=env, timeout=timeout + _GRACE)
            except RanksFailed as error:
                raise PeerFailureError(
                    f"the ranks that were started failed: {error}", remedy="Run 'hetcomm doctor'."
                ) from error
    failures = [answer for answer in answers if isinstance(answer, HetcommError)]
    if failures:
        # What one rank's error does to the others is not the cause.
        raise next((error for error in failures if not isinstance(error, PeerFailureError)), failures[0])
    assert isinstance(answers[0], Result)
    return answers[0]


def _rank(quick: bool, timeout: float, progress: str) -> Result | HetcommError | None:
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
            found = measure(comm, _effort(quick), deadline, tick)
            return found if comm.rank == 0 else None
    except HetcommError as error:
        return error


def _effort(quick: bool) -> Effort:
    return QUICK if quick else FULL


@contextmanager
def _bar(*, shown: bool) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr where that is a terminal; what is yielded is called with the part that is done."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (shown and console.is_terminal), transient=True) as progress:
        task = progress.add_task("measuring", total=1.0)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def _followed(file: Path, tick: Callable[[float], None]) -> Iterator[None]:
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


def show(result: Result, console: Console) -> None:
    """Print what was fitted and how well, and the topology file that the uplinks make."""
    rows: dict[str, list[str]] = {"what": list(result.fits), "alpha": [], "n ranks": []}
    rows |= {"bytes/s": [], "spread": [], "misfit": []}
    for found in result.fits.values():
        ranks = f"{format_seconds(found.per_log2)} log2 n" if found.per_log2 else ""
        rows["alpha"].append(format_seconds(found.alpha))
        rows["n ranks"].append(f"{format_seconds(found.per_rank)} (n-1)" if found.per_rank else ranks)
        rows["bytes/s"].append(f"{1 / found.beta:.3g}" if found.beta else "")
        rows["spread"].append(f"{found.spread:.0%}")
        rows["misfit"].append(f"{found.residual:.0%}")
    columns = {name: cells for name, cells in rows.items() if any(cells)}
    table = Table(
        title=f"calibration of {result.calibration.machine}", title_justify="left", box=SIMPLE, pad_edge=False
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    console.print(table)
    console.print("[dim]spread: of the quartiles, over the median; misfit: how far the line is off at its worst size")
    if result.topology is not None:
        console.print("\nThe uplinks as a topology file has them, each as fast both ways:\n")
        console.print(toml.dumps(result.topology), markup=False)


def save_topology(result: Result, path: Path) -> None:
    """Write the job's topology with its uplinks as measured.

    Raises:
        UsageError: The job had one cluster, hence no uplinks; or the file cannot be written.
    """
    if result.topology is None:
        raise UsageError("a job of one cluster has no uplinks to write", remedy="Leave out --topology-output.")
    try:
        path.write_text(toml.dumps(result.topology), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"topology file {str(path)!r} cannot be written: {error}") from error
