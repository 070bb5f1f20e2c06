"""The baselines `vendor` and `ucx`: what hetcomm is made of, without hetcomm's plans, executor and agreement.

`vendor` is the library of the job's clusters over all ranks, as one cluster would have it: its communicator is called
directly, and polled until the operation is over. `ucx` is a UCX worker of its own, whose messages are posted and waited
for directly.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy

import hetcomm
from hetcomm._cli.cases import SEND_RECV, Arrays, Case
from hetcomm._cli.contenders import Bound, output
from hetcomm.calls.buffers import memory
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.transport.ucx import UcxTransport
from hetcomm.types import Memory, MemoryKind, ReduceKind
from hetcomm.vendors import registry
from hetcomm.vendors.base import COLLECTIVES

__all__ = ["Ucx", "Vendor"]

_SPINS = 100  # polls before the processor is offered to others


class Vendor:
    """A communicator of the job's one vendor over all its ranks; collective to make.

    Raises:
        VendorError: The library failed.
    """

    def __init__(self, comm: hetcomm.Communicator) -> None:
        self._vendor = registry.vendor(comm.topology.clusters[0].vendor)
        self._communicator = self._vendor.create(comm._parts.group)
        self._rank, self._nranks = comm.rank, comm.nranks

    @staticmethod
    def problem(comm: hetcomm.Communicator) -> str:
        """Why it cannot take part in this job; '' if it can."""
        names = sorted({cluster.vendor for cluster in comm.topology.clusters})
        if len(names) > 1:
            return f"no vendor spans this job of {' and '.join(names)}"
        if names == ["ucx"]:
            return "the vendor 'ucx' is hetcomm itself"
        if MemoryKind.HOST not in registry.vendor(names[0]).capabilities.memory:
            return f"vendor {names[0]!r} takes no host arrays"
        return ""

    def refusal(self, case: Case) -> str | None:
        """What vendors are not asked for."""
        collective = case.collective
        if collective is None or collective.kind not in COLLECTIVES:
            return f"hetcomm asks no vendor for {case.name}"
        return self._vendor.capabilities.refusal(collective, MemoryKind.HOST)

    def bind(self, case: Case, arrays: Arrays) -> Bound:
        """A start of the operation and the polls."""
        collective = case.collective
        assert collective is not None  # it was not refused
        source, target = arrays.of(case)
        reads, writes = case.takes_part(self._rank)
        rank = self._rank
        ins = memory(source, argument="input", rank=rank, writable=False) if reads and not case.in_place else None
        outs = memory(target, argument="output", rank=rank, writable=True) if writes or case.in_place else None
        return Bound(self._blocking(collective, ins, outs), output(case, arrays, rank))

    def _blocking(self, collective: Collective, ins: Memory | None, outs: Memory | None) -> Callable[[], None]:
        start = self._communicator.start

        def call() -> None:
            test, spins = start(collective, ins, outs).test, 0
            while not test():
                spins += 1
                if spins > _SPINS:
                    os.sched_yield()

        return call

    def settle(self) -> None:
        """A small all_reduce, in which the library moves everything along."""
        token = memory(numpy.zeros(1, numpy.float32), argument="token", rank=self._rank, writable=True)
        whole = Collective(CollectiveKind.ALL_REDUCE, self._nranks, 1, token.dtype, op=ReduceKind.SUM, in_place=True)
        self._blocking(whole, None, token)()

    def close(self) -> None:
        """Close the communicator."""
        self._communicator.close()


class Ucx:
    """A UCX worker that is connected to the two neighbours; collective to make.

    Raises:
        TransportError: UCX failed.
    """

    def __init__(self, comm: hetcomm.Communicator) -> None:
        self._comm, self._timeout = comm, comm._parts.job.config.timeout
        self._transport = UcxTransport()
        addresses = comm._parts.group.all_gather(self._transport.address)
        self._after, self._before = (comm.rank + 1) % comm.nranks, (comm.rank - 1) % comm.nranks
        for peer in {self._after, self._before}:
            self._transport.connect(peer, addresses[peer])

    @staticmethod
    def problem(comm: hetcomm.Communicator) -> str:
        """Why it cannot take part in this job; '' if it can."""
        return ""

    def refusal(self, case: Case) -> str | None:
        """UCX has messages only."""
        return None if case.name == SEND_RECV else f"raw UCX has no {case.name}; it is a baseline for send_recv"

    def bind(self, case: Case, arrays: Arrays) -> Bound:
        """A receive, a send, and the wait for both."""
        source, target = arrays.of(case)
        send, recv, wait = self._transport.send, self._transport.recv, self._transport.wait
        there, here, nbytes = source.ctypes.data, target.ctypes.data, source.nbytes
        after, before, timeout, rank = self._after, self._before, self._timeout, self._comm.rank

        def call() -> None:  # a message's tag is its sender
            wait([recv(here, nbytes, before, before), send(there, nbytes, after, rank)], timeout)

        return Bound(call, arrays.output(case))

    def settle(self) -> None:
        """Wait until all has left this process; receivers have no need of more."""
        self._transport.flush(self._timeout)

    def close(self) -> None:
        """Close the worker when nobody sends to it any more."""
        self._comm._parts.group.barrier()
        self._transport.close()
