"""Making a communicator: agree on its contexts, open its vendors' communicators, connect the parts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from hetcomm._ext import ucp
from hetcomm.agreement.agreement import Agreement
from hetcomm.agreement.control import Mailbox
from hetcomm.errors import HetcommError, TransportError, VendorError
from hetcomm.execution.executor import Executor
from hetcomm.job.bootstrap import JobGroup
from hetcomm.job.connected import ConnectedGroup
from hetcomm.job.detect import exchange
from hetcomm.job.job import Job
from hetcomm.plans.plans import Plans
from hetcomm.schedule.steps import CommId
from hetcomm.topology.model import Topology
from hetcomm.topology.tuning import on
from hetcomm.transport.descriptors import make_room
from hetcomm.vendors import registry, segments
from hetcomm.vendors.base import Vendor, VendorCommunicator
from hetcomm.works.refusals import typed

__all__ = ["Parts", "wire"]

_DESCRIPTORS = 24  # that a vendor's communicator may need, and one for each rank: 13 were seen, of oneCCL's first


@dataclass(frozen=True, slots=True)
class Parts:
    """What a communicator consists of.

    Attributes:
        job: Shared with the communicators it was split from.
        group: Its ranks, over the bootstrap.
        peers: The transport's number of each of its ranks.
        topology: Of its ranks.
        context: See `hetcomm.execution.tags`.
        communicators: The vendors' communicators this rank is in.
        executor: Runs its programs.
        ledger: Counts its calls.
        agreement, mailbox, plans: See there.
    """

    job: Job
    group: JobGroup
    peers: tuple[int, ...]
    topology: Topology
    context: int
    communicators: dict[CommId, VendorCommunicator]
    executor: Executor
    mailbox: Mailbox
    ledger: ucp.Ledger
    agreement: Agreement
    plans: Plans

    def abort(self, seconds: float) -> list[str]:
        """Stop everything under way, for good.

        Args:
            seconds: What the vendors' libraries get to let go of users' arrays.

        Returns:
            Those communicators of theirs that have not.
        """
        self.executor.abort()
        communicators = list(self.communicators.values())
        for communicator in communicators:
            communicator.abort()
        segments.remove_of_dead()
        end = time.monotonic() + seconds
        return [repr(each) for each in communicators if not each.drain(max(0.0, end - time.monotonic()))]

    def release(self) -> None:
        """Release what belongs to this communicator alone, but for the mailbox; collective unless aborted."""
        for communicator in self.communicators.values():
            communicator.close()
        self.executor.close()

    def close(self) -> None:
        """Release all that belongs to this communicator alone; collective unless aborted."""
        self.release()
        self.mailbox.close(1.0)
        if self.agreement.closing.clean:  # no message of it is left anywhere
            self.job.contexts.give_back(self.context)


def wire(job: Job, group: JobGroup, peers: Sequence[int], topology: Topology) -> Parts:
    """The parts of a new communicator over `group`; collective.

    Raises:
        VendorError: On every rank, if a vendor's communicator could not be made on any.
        UsageError: On every rank, if one has used up its contexts.
    """
    context = serial = 0
    failure: HetcommError | None = None
    proposals = group.all_gather(job.contexts.proposal)
    try:
        context, serial = job.contexts.take(proposals)
    except Exception as error:  # noqa: BLE001  # whatever it is, all ranks raise it
        failure = typed(error, "making a communicator")
    exchange(group, b"", failure, "making a communicator")
    if isinstance(group, ConnectedGroup):
        group = group.within(context)
    communicators: dict[CommId, VendorCommunicator] = {}
    members = topology.communicators_of(topology.cluster_of(group.rank))
    executor = Executor(job.transport, peers, group.rank, context, communicators, job.devices, members)
    vendors: dict[CommId, Vendor] = {}
    try:
        for comm, ranks in members.items():
            if group.rank in ranks:
                vendor = vendors[comm] = registry.usable_vendor(topology.cluster_of(group.rank).vendor)
                if vendor.capabilities.collectives:  # else hetcomm writes its calls out as messages
                    make_room(_DESCRIPTORS + len(ranks), "making a vendor's communicator")
                    communicators[comm] = vendor.create(group.subgroup(ranks))
    except Exception as error:  # noqa: BLE001
        failure = typed(error, "opening the vendors' communicators", kind=VendorError)
    try:
        exchange(group, b"", failure, "opening the vendors' communicators")
    except HetcommError as error:
        for communicator in communicators.values():
            communicator.abort()
            communicator.close()
        if not isinstance(error, TransportError):  # which may be this rank's alone: others may have gone on
            job.contexts.give_back(context)
        raise
    segments.remember(job.transport.processes().values())  # this rank may be the only one left to remove them
    mailbox = Mailbox(job.transport, peers, group.rank, context, serial)
    ledger = ucp.Ledger()
    return Parts(
        job,
        group,
        tuple(peers),
        topology,
        context,
        communicators,
        executor,
        mailbox,
        ledger,
        Agreement(job.pump, mailbox, ledger),
        Plans(topology, group.rank, executor, vendors, job.calibration, on(topology, job.config.inline_bytes)),
    )
