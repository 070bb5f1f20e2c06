"""How this process was started: by which launcher, as which of how many ranks.

Only the launchers' own variables are read here, and nothing is imported: a script without a launcher must not start
MPI.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Launcher"]

# (name, variable with the rank, variable with the number of ranks), in the order they are looked for: inside a Slurm
# allocation, mpirun's variables are the nearer ones. `srun` alone sets a number of tasks of its *step*.
_KNOWN = (
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MPICH's mpiexec", "PMI_RANK", "PMI_SIZE"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


@dataclass(frozen=True, slots=True)
class Launcher:
    """What started this process.

    Attributes:
        name: For messages.
        rank: This process's number in the job.
        nranks: How many processes the launcher started.
    """

    name: str
    rank: int
    nranks: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Launcher | None:
        """The launcher of this process; None if it was started without one."""
        env = os.environ if environ is None else environ
        for name, rank, nranks in _KNOWN:
            if env.get(rank, "").isdecimal() and env.get(nranks, "").isdecimal():
                return cls(name, int(env[rank]), int(env[nranks]))
        return None
