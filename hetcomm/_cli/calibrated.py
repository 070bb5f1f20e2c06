"""What `hetcomm bench --calibrate` does around `hetcomm._cli.calibrate`: the ranks, the table, the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import hetcomm
from hetcomm._cli import jobs
from hetcomm._cli.calibrate import FULL, QUICK, Result, measure
from hetcomm._cli.units import format_seconds
from hetcomm.errors import UsageError

__all__ = ["Calibrating", "save_topology", "show", "start_ranks", "write"]


@dataclass(frozen=True, slots=True)
class Calibrating:
    """The task of the ranks."""

    quick: bool

    def run(self, comm: hetcomm.Communicator, deadline: float, tick: jobs.Tick) -> Result:
        """Measure on `comm`; see `hetcomm._cli.calibrate.measure`."""
        return measure(comm, QUICK if self.quick else FULL, deadline, tick)


def start_ranks(vendors: Sequence[str], nranks: int, quick: bool, timeout: float) -> Result:
    """Start a job of one cluster for each of `vendors`, the ranks divided evenly, and measure on it.

    Raises:
        UsageError: There are fewer than two ranks for a cluster, or there is no mpirun.
        HetcommError: As `hetcomm._cli.jobs.start_ranks`.
    """
    if nranks < 2 * len(vendors) or not all(vendors):
        raise UsageError(
            f"{nranks} ranks of vendors {','.join(vendors)!r}: each needs two at least, and a name",
            remedy="Give more with --ranks, or name fewer vendors.",
        )
    clusters = [rank * len(vendors) // nranks for rank in range(nranks)]
    twice = len(set(vendors)) < len(vendors)
    named = [vendors[cluster] for cluster in clusters]
    found = jobs.start_ranks(Calibrating(quick), named, clusters if twice else None, timeout)
    assert isinstance(found, Result)
    return found


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
        console.print(result.topology.to_toml(), markup=False)


def save_topology(result: Result, path: Path) -> None:
    """Write the job's topology with its uplinks as measured.

    Raises:
        UsageError: The job had one cluster, hence no uplinks; or the file cannot be written.
    """
    if result.topology is None:
        raise UsageError("a job of one cluster has no uplinks to write", remedy="Leave out --topology-output.")
    try:
        path.write_text(result.topology.to_toml(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"topology file {str(path)!r} cannot be written: {error}") from error


def write(result: Result, output: Path, topology_output: Path | None, console: Console) -> None:
    """Write the calibration, show it, and write the topology if it is asked for.

    Raises:
        UsageError: As `save_topology`, or the calibration cannot be written.
    """
    result.calibration.save(output)
    show(result, console)
    console.print(f"[green bold]written[/] {escape(str(output))}")
    if topology_output is not None:
        save_topology(result, topology_output)
        console.print(f"[green bold]written[/] {escape(str(topology_output))}")
