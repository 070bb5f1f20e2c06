"""Making a communicator: agree on its contexts, open its vendors' communicators, connect the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetcomm._ext import ucp
from hetcomm.errors import HetcommError, VendorError
from hetcomm.runtime.agreement import Agreement
from hetcomm.runtime.bootstrap import JobGroup
from hetcomm.runtime.control import Mailbox
from hetcomm.runtime.detect import exchange
from hetcomm.runtime.executor import Executor
from hetcomm.runtime.job import Job
from hetcomm.runtime.plans import Plans
from hetcomm.runtime.refusals import typed
from hetcomm.schedule.steps import CommId
from hetcomm.topology.model import Topology
from hetcomm.topology.tuning import on
from hetcomm.transport.descriptors import make_room
from hetcomm.types import MemoryKind
from hetcomm.vendors import registry
from hetcomm.vendors.base import Vendor, VendorCommunicator

__all__ = ["Parts", "wire"]

_DESCRIPTORS = 24  # that a vendor's communicator may need, and one for each rank: 13 were seen, of oneCCL's first

_CONTEXTS = 3  # the communicator's own, and one each for the home and the border group of a `ucx` cluster


@dataclass(frozen=True, slots=True)
class Parts:
    """What a communicator consists of.

    Attributes:
        job: Shared with the communicators it was split from.
        group: Its ranks, over the bootstrap.
        peers: The transport's number of each of its ranks.
        topology: Of its ranks.
        context: See `hetcomm.runtime.tags`.
        communicators: The vendors' communicators this rank is in.
        twins: The same for host memory: those of the built-in vendor where this rank's takes none.
        executors: Its own, then those of its `ucx` vendor communicators.
        ledger: Counts its calls.
        agreement, mailbox, plans: See there.
    """

    job: Job
    group: JobGroup
    peers: tuple[int, ...]
    topology: Topology
    context: int
    communicators: dict[CommId, VendorCommunicator]
    twins: dict[CommId, VendorCommunicator]
    executors: tuple[Executor, ...]
    mailbox: Mailbox
    ledger: ucp.Ledger
    agreement: Agreement
    plans: Plans

    def abort_executions(self) -> None:
        """Stop the programs under way; nothing writes into users' arrays any more when this returns."""
        for executor in self.executors:
            executor.abort()

    @property
    def vendor_communicators(self) -> list[VendorCommunicator]:
        """All of them, once each."""
        others = [twin for comm, twin in self.twins.items() if twin is not self.communicators[comm]]
        return [*self.communicators.values(), *others]

    def abort(self) -> None:
        """Stop everything under way, for good."""
        self.abort_executions()
        for communicator in self.vendor_communicators:
            communicator.abort()

    def close(self) -> None:
        """Release what belongs to this communicator alone; collective unless aborted."""
        for communicator in self.vendor_communicators:
            communicator.close()
        self.mailbox.close(1.0)
        for executor in self.executors:
            executor.close()


def wire(job: Job, group: JobGroup, peers: Sequence[int], topology: Topology) -> Parts:
    """The parts of a new communicator over `group`; collective.

    Raises:
        VendorError: On every rank, if a vendor's communicator could not be made on any.
        UsageError: On every rank, if one has used up its contexts.
    """
    context = 0
    failure: HetcommError | None = None
    proposals = group.all_gather(str(job.contexts.proposal).encode())
    try:
        context = job.contexts.take(max(map(int, proposals)), _CONTEXTS)
    except Exception as error:  # noqa: BLE001  # whatever it is, all ranks raise it
        failure = typed(error, "making a communicator")
    exchange(group, b"", failure, "making a communicator")
    communicators: dict[CommId, VendorCommunicator] = {}
    twins: dict[CommId, VendorCommunicator] = {}
    executor = Executor(job.transport, peers, group.rank, context, communicators, job.devices, twins)
    executors, vendors = [executor], dict[CommId, Vendor]()
    try:
        mine = topology.communicators_of(topology.cluster_of(group.rank))
        for number, (comm, ranks) in enumerate(mine.items()):
            if group.rank not in ranks:
                continue
            part = group.subgroup(ranks)
            runner = Executor(
                job.transport, [peers[rank] for rank in ranks], part.rank, context + 1 + number, {}, job.devices
            )
            make_room(_DESCRIPTORS + len(ranks), "making a vendor's communicator")
            vendors[comm] = registry.usable_vendor(topology.cluster_of(group.rank).vendor)
            communicators[comm] = twins[comm] = vendors[comm].create(part, runner)
            if MemoryKind.HOST not in vendors[comm].capabilities.memory:
                twins[comm] = registry.vendor("ucx").create(part, runner)
            executors.append(runner)
    except Exception as error:  # noqa: BLE001
        failure = typed(error, "opening the vendors' communicators", kind=VendorError)
    try:
        exchange(group, b"", failure, "opening the vendors' communicators")
    except HetcommError:
        for communicator in communicators.values():
            communicator.abort()
            communicator.close()
        raise
    mailbox = Mailbox(job.transport, peers, group.rank, context)
    ledger = ucp.Ledger()
    return Parts(
        job,
        group,
        tuple(peers),
        topology,
        context,
        communicators,
        twins,
        tuple(executors),
        mailbox,
        ledger,
        Agreement(job.pump, mailbox, ledger),
        Plans(topology, group.rank, executor, vendors, job.calibration, on(topology, job.rules)),
    )
