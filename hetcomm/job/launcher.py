"""How this process was started: by which launcher, as which of how many ranks.

Only the launchers' own variables are read here, and nothing is imported: a script without a launcher must not start
MPI.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Launcher", "outside", "variables"]

_SINGLE = "or set HETCOMM_BOOTSTRAP=single to have a job of one rank in each process"
_TWO_MPIS = (
    "Two MPI libraries are in this environment: keep the launcher's and uninstall the other (the impi-rt wheel, for "
    "example), or start the job with the mpirun of the other."
)
_NO_PMI = (
    f"Start it with the mpirun of that MPI, or have the launcher serve it (srun --mpi=pmix, for example), {_SINGLE}."
)
_NOT_MPI = f"Start it with 'hetcomm run' or 'mpirun -n NRANKS python ...' in place of torchrun, {_SINGLE}."

_INTERACTIVE = 0xFFFFFFFA  # the first of the numbers that Slurm gives to steps that are not parallel ones

# (name, variable with the rank, variable with the number of ranks, what to do if MPI sees another number), in the order
# they are looked for: inside a Slurm allocation, mpirun's variables are the nearer ones. `srun` alone sets a number of
# tasks of its *step*. Those of `hetcomm run` come before all: it has ranks of the vendor mpi started by mpirun.
_MPI = (
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", _TWO_MPIS),
    ("MVAPICH's launcher", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", _TWO_MPIS),
    ("MPICH's mpiexec", "PMI_RANK", "PMI_SIZE", _TWO_MPIS),
    ("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", _NO_PMI),
    ("Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", _NO_PMI),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", _NO_PMI),
)


@dataclass(frozen=True, slots=True)
class Launcher:
    """What started this process.

    Attributes:
        name: For messages.
        rank: This process's number in the job.
        nranks: How many processes the launcher started; 0: it does not say.
        starts_mpi: Whether they are ranks of an MPI job, as far as the launcher goes.
        remedy: What to do where its processes do not find one another.
        address: Where its processes meet over TCP, as host:port; '' if it serves no such rendezvous.
        key: What they show there, in hexadecimal digits.
        restarts: How often the launcher starts ranks again that fail, in all.
    """

    name: str
    rank: int
    nranks: int
    starts_mpi: bool = True
    remedy: str = _TWO_MPIS
    address: str = ""
    key: str = field(default="", repr=False)
    restarts: int = 0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Launcher | None:
        """The launcher of this process; None if it was started without one."""
        env = os.environ if environ is None else environ
        if env.get("HETCOMM_ADDRESS") and _are_numbers(env, "HETCOMM_RANK", "HETCOMM_NRANKS"):
            return cls(
                "hetcomm run",
                int(env["HETCOMM_RANK"]),
                int(env["HETCOMM_NRANKS"]),
                starts_mpi=False,
                address=env["HETCOMM_ADDRESS"],
                key=env.get("HETCOMM_KEY", ""),
                restarts=int(env["HETCOMM_RESTARTS"]) if _are_numbers(env, "HETCOMM_RESTARTS") else 0,
            )
        for name, rank, nranks, remedy in _MPI:
            if _are_numbers(env, rank, nranks):
                return cls(name, int(env[rank]), int(env[nranks]), remedy=remedy)
        step = env.get("SLURM_STEP_ID", env.get("SLURM_STEPID", ""))
        if step.isdecimal() and int(step) < _INTERACTIVE and _are_numbers(env, "SLURM_PROCID", "SLURM_NTASKS"):
            return cls("srun", int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), remedy=_NO_PMI)
        if "PMIX_NAMESPACE" in env and _are_numbers(env, "PMIX_RANK"):
            return cls("a PMIx launcher", int(env["PMIX_RANK"]), 0, remedy=_NO_PMI)
        if "MASTER_ADDR" in env and _are_numbers(env, "RANK", "WORLD_SIZE"):
            return cls("torchrun", int(env["RANK"]), int(env["WORLD_SIZE"]), starts_mpi=False, remedy=_NOT_MPI)
        return None


def variables(rank: int, nranks: int, address: str, key: str, restarts: int = 0, life: int = 0) -> dict[str, str]:
    """What `hetcomm run` sets for a rank, as `Launcher.from_environ` reads it; `life` counts its processes, from 0."""
    return {
        "HETCOMM_RESTARTS": str(restarts),
        "HETCOMM_LIFE": str(life),
        "HETCOMM_RANK": str(rank),
        "HETCOMM_NRANKS": str(nranks),
        "HETCOMM_ADDRESS": address,
        "HETCOMM_KEY": key,
    }


def outside(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for processes that are ranks of another job, or of none: without what `variables` sets."""
    own = {*variables(0, 1, "", ""), "_HETCOMM_RANK"}
    return {name: value for name, value in environ.items() if name not in own}


def _are_numbers(env: Mapping[str, str], *names: str) -> bool:
    return all(env.get(name, "").isdecimal() for name in names)
