"""The vendor `ucx`: hetcomm's own flat schedules over its own transport, for ranks that have no library.

It is built in and needs no foreign library but the UCX that hetcomm runs on anyway.
"""

from __future__ import annotations

from functools import lru_cache

from hetcomm.errors import VendorError
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import Program
from hetcomm.topology import flat
from hetcomm.types import COMBINING, DataType, Memory, MemoryKind
from hetcomm.vendors.base import (
    COLLECTIVES,
    Availability,
    Capabilities,
    Group,
    Operation,
    ProgramRunner,
    VendorCommunicator,
)

__all__ = ["UcxVendor"]

_CAPABILITIES = Capabilities(
    memory=frozenset(MemoryKind),
    collectives=COLLECTIVES,
    dtypes=frozenset(DataType),
    ops=frozenset(COMBINING),
)


_CROWD = 16


@lru_cache(maxsize=256)
def _plan(collective: Collective, rank: int) -> Program:
    """The flat program; the same object each time, which lets the runner keep what it derives from it."""
    return flat.plan(collective, rank)


class UcxVendor:
    """Runs the plans of `hetcomm.topology.flat` with the executor that hetcomm hands it."""

    name = "ucx"
    capabilities = _CAPABILITIES

    def availability(self) -> Availability:
        """Always usable: without a UCX there is no hetcomm to ask."""
        return Availability(True, version="built in")

    def create(self, group: Group, runner: ProgramRunner) -> VendorCommunicator:
        """A communicator over `group`, whose messages `runner` carries; starts nothing."""
        return _UcxCommunicator(group.rank, group.nranks, runner)


class _UcxCommunicator:
    """Collectives as programs of sends, receives and local reductions."""

    def __init__(self, rank: int, nranks: int, runner: ProgramRunner) -> None:
        self._rank = rank
        self._nranks = nranks
        self._runner: ProgramRunner | None = runner
        self._state = "open"
        self._running: list[Operation] = []
        self._crowd = _CROWD  # how many are kept before it is seen which of them are over

    @property
    def rank(self) -> int:
        """This process's number in it."""
        return self._rank

    @property
    def nranks(self) -> int:
        """How many ranks it has."""
        return self._nranks

    def __repr__(self) -> str:
        return f"<ucx communicator, rank {self._rank} of {self._nranks}, {self._state}>"

    def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        """Start a collective: see `VendorCommunicator.start`."""
        if self._runner is None:
            raise self._error(f"the communicator is {self._state}", "Make a new one.")
        if collective.nranks != self._nranks:
            raise self._error(f"a collective over {collective.nranks} ranks on a communicator of {self._nranks}")
        kind = next((memory.kind for memory in (in_memory, out_memory) if memory is not None), MemoryKind.HOST)
        refusal = _CAPABILITIES.refusal(collective, kind)
        if refusal is not None:
            raise self._error(refusal, "Use another vendor for these ranks.")
        if len(self._running) >= self._crowd:
            self.progress()
            self._crowd = 2 * len(self._running) + _CROWD
        operation = self._runner.start(_plan(collective, self._rank), in_memory, out_memory)
        self._running.append(operation)
        return operation

    def progress(self) -> None:
        """Run the steps that have become possible in everything that is under way.

        Each rank may be waiting for another one of several collectives, and each of these needs all ranks.
        """
        self._running = [operation for operation in self._running if not operation.test()]

    def abort(self) -> None:
        """Take no more calls; what is under way ends with the runner's transport."""
        self._end("aborted")

    def close(self) -> None:
        """Take no more calls; it holds nothing to release."""
        self._end("closed")

    def _end(self, state: str) -> None:
        self._state = state
        self._runner = None
        self._running = []

    def _error(self, message: str, remedy: str | None = None) -> VendorError:
        return VendorError(f"vendor 'ucx': {message}", remedy=remedy, rank=self._rank)
