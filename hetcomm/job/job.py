"""What all communicators of one `hetcomm.init` share: the transport, the bootstrap group, the numbering of contexts.

The order in `open_job` matters: UCX is loaded before mpi4py is imported, because two UCX builds in one process crash
and MPI adopts the one that is there (design, "Which UCX").
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hetcomm.devices import Devices
from hetcomm.devices.base import Device
from hetcomm.errors import HetcommError, TopologyError, TransportError, UsageError, numbers
from hetcomm.execution.tags import Contexts, contexts_on
from hetcomm.health import heartbeat
from hetcomm.health.health import Health
from hetcomm.job import detect
from hetcomm.job.bootstrap import JobGroup, bootstrap, refusal_of, uses_mpi, uses_tcp
from hetcomm.job.connected import ConnectedGroup
from hetcomm.topology.costs import Calibration
from hetcomm.topology.model import Topology
from hetcomm.transport.base import Transport
from hetcomm.transport.descriptors import make_room
from hetcomm.types import Config
from hetcomm.vendors import segments
from hetcomm.vendors.mpi_start import forgo_finalize
from hetcomm.waiting.progress import ProgressThread
from hetcomm.waiting.waiting import Pump, process_pump
from hetcomm.works.refusals import typed

if TYPE_CHECKING:
    from hetcomm.job.wiring import Parts
    from hetcomm.transport.ucx import UcxTransport

__all__ = ["Job", "open_job"]

_GREETING_SECONDS = 30.0  # that a greeting may take, when all ranks have just met
_log = logging.getLogger(__name__)
_DESCRIPTORS = 2  # for each rank: its process, and a socket or shared memory
_SHOWN = 8  # peers that a warning names


@dataclass(slots=True)
class Job:
    """One process's part of a job.

    Attributes:
        config: Its settings; `inline_bytes` is that of rank 0.
        transport: Connected to every rank under its number.
        group: All ranks.
        topology: Of all ranks.
        contexts: See `hetcomm.execution.tags`.
        pump: That of the process, which moves this job with all others.
        calibration: By which plans are chosen, the same on all ranks; None: the rules.
        again: Opens it again with whoever is there then; None where the ranks cannot meet twice.
        health: What is known of the other ranks.
        over_mpi: Whether the ranks have met over MPI.
        devices: Those that arrays have been on so far.
        died: The ranks that are known to have ended without having left before.
        unreleased: Of communicators that are closed: what not all ranks could release at the same time.
    """

    config: Config
    transport: Transport
    group: JobGroup
    topology: Topology
    contexts: Contexts
    pump: Pump
    calibration: Calibration | None = None
    again: Callable[[], Job] | None = None
    health: Health = field(default_factory=Health)
    over_mpi: bool = False
    devices: Devices = field(default_factory=Devices)
    died: set[int] = field(default_factory=set)
    unreleased: list[Parts] = field(default_factory=list)
    _thread: ProgressThread | None = None

    def serve(self, device: Device) -> None:
        """From now on calls move while the user's thread does something else; says what passes through the host."""
        if self._thread is None:
            _warn_of_staging(self.transport, device, self.group.rank)
            self._thread = ProgressThread(self.pump, self.transport, device)

    def close(self) -> None:
        """Release what its communicators share, once they are closed."""
        if self.transport.failed_peers():
            segments.remove_of_dead()
        if any(self.over_mpi or self.topology.cluster_of(peer).vendor == "mpi" for peer in self.died):
            forgo_finalize(f"rank {numbers(self.died)} of the job has died")
        if self._thread is not None:
            self._thread.stop()
        self.pump.detach(self.transport)
        self.transport.heed(None)
        self.health.close()
        self.transport.close()
        self.group.close()


def open_job(
    config: Config,
    comm: Any = None,
    topology: Any = None,
    worker: Any = None,
    endpoints: Any = None,
    failure: HetcommError | None = None,
) -> Job:
    """Meet the other ranks and connect to them; collective.

    Args:
        config: The settings of this process.
        comm: An mpi4py communicator to use in place of `MPI.COMM_WORLD`.
        topology: A `Topology`, or the path of a file with one; overrides `config.topology`.
        worker: A UCP worker to share, in place of one of hetcomm's own.
        endpoints: Those of `worker` to use, by rank.
        failure: Why this rank cannot take part, if that is known already: it only tells the others.

    Raises:
        UsageError, TopologyError, VendorError, TransportError: On every rank, if any rank cannot take part; the message
            names it. An MPI that is not the launcher's is found by each rank on its own.
        CollectiveTimeoutError: Not all ranks took part in time.
    """
    transport: UcxTransport | None = None
    group: JobGroup | None = None
    try:
        _prepare_transport(config)  # before MPI starts
    except Exception as error:  # noqa: BLE001  # whatever it is, all ranks raise it, below
        failure = failure or typed(error, "loading the transport", kind=TransportError)
    try:
        unusable = refusal_of(comm)
        group = bootstrap(config, comm if unusable is None else None)
        failure = failure or unusable
        within = len(set(group.all_gather(detect.place()))) == 1
        try:
            transport = None if failure is not None else _open_transport(config, worker, endpoints, within)
        except Exception as error:  # noqa: BLE001
            failure = typed(error, "opening the transport", kind=TransportError)
        given: Topology | None = None
        statement = detect.Statement()
        if failure is None and transport is not None:
            try:
                given = _load(topology if topology is not None else config.topology, group.nranks)
                statement = _state(config, given, group, transport, comm)
            except Exception as error:  # noqa: BLE001
                failure = typed(error, "reading topology and vendor", kind=TopologyError)
        answers = detect.exchange(group, statement.pack(), failure, "hetcomm.init")
        statements = [detect.Statement.unpack(answer) for answer in answers]
        _check_topologies(statements, group.rank)
        if given is not None:
            detect.check_hosts(given, [said.host for said in statements], group.rank)
        assert transport is not None  # or `exchange` would have raised the failure
        _connect(transport, statements, group, config)
        pump = process_pump()
        pump.attach(transport)
        transport.gate = pump.lock
        transport.companion = partial(pump.move_others, transport)  # for its own blocking calls
        if group.nranks > 1:
            group = ConnectedGroup(transport, group, group.rank, range(group.nranks), config.timeout)
        found = given if given is not None else detect.build_topology(statements)
        calibration, inline_bytes = _agree_on_plans(config, group)
        health = _watch(transport, statements, group, config)
    except BaseException:
        if transport is not None:
            process_pump().detach(transport)
            transport.close()
        if group is not None:
            group.close()
        raise
    contexts = Contexts() if worker is None else contexts_on(transport.handle)
    again = None
    if uses_tcp(config, comm) and worker is None:
        again = partial(open_job, config, topology=topology)
    config = replace(config, inline_bytes=inline_bytes)
    return Job(config, transport, group, found, contexts, pump, calibration, again, health, uses_mpi(config, comm))


def _warn_of_staging(transport: Transport, device: Device, rank: int) -> None:
    """Say once, loudly, where device arrays cannot go straight to other ranks."""
    from hetcomm.transport.ucx import UcxTransport

    if not isinstance(transport, UcxTransport):
        return
    staged = {peer: lanes for peer, lanes in transport.staged(device.kind).items() if peer != rank}
    if staged:
        peers = ", ".join(f"{peer} ({', '.join(lanes)})" for peer, lanes in sorted(staged.items())[:_SHOWN])
        more = f" and {len(staged) - _SHOWN} more" if len(staged) > _SHOWN else ""
        _log.warning(
            "[rank %d] arrays on %s reach rank %s%s by way of host memory only, which is slow. Use a UCX with CUDA or "
            "ROCm and RDMA (HETCOMM_UCX_HOME), or the wheel for this device; 'hetcomm doctor' shows the lanes.",
            rank,
            device.name,
            peers,
            more,
        )


def _agree_on_plans(config: Config, group: JobGroup) -> tuple[Calibration | None, int | None]:
    """The calibration that rank 0 names and what it says of `inline_bytes`, on every rank.

    Raises:
        UsageError: On every rank, if rank 0 cannot read the calibration.
        TransportError: What it says cannot be read.
    """
    said = b""
    failure: HetcommError | None = None
    if group.rank == 0:
        try:
            calibration = None if config.calibration is None else Calibration.load(config.calibration).to_json()
            said = json.dumps([calibration, config.inline_bytes]).encode()
        except Exception as error:  # noqa: BLE001
            failure = typed(error, "reading the calibration")
    plans = detect.parsed(detect.exchange(group, said, failure, "reading the calibration")[0])
    if not isinstance(plans, list) or len(plans) != 2 or not isinstance(plans[1], int | None):
        raise detect.unreadable("rank 0 names no calibration")
    found, inline_bytes = plans
    return None if found is None else Calibration.from_json(found), inline_bytes


def _connect(transport: UcxTransport, statements: list[detect.Statement], group: JobGroup, config: Config) -> None:
    """Connect to all ranks; and see that shared workers reach each other before a message of a user's depends on it.

    Raises:
        UsageError, TransportError: On every rank, if one cannot.
    """
    from hetcomm.transport.ucx import is_shared

    failure: HetcommError | None = None
    try:
        make_room(_DESCRIPTORS * len(statements), f"connecting to {len(statements)} ranks")
        for peer, said in enumerate(statements):
            transport.connect(peer, said.address)
    except Exception as error:  # noqa: BLE001
        failure = typed(error, "connecting to the other ranks", kind=TransportError)
    detect.exchange(group, b"", failure, "hetcomm.init")
    if not any(is_shared(said.address) for said in statements):
        return
    try:
        transport.greet(group.rank, min(config.timeout, _GREETING_SECONDS))
    except Exception as error:  # noqa: BLE001
        failure = typed(error, "greeting the other ranks", kind=TransportError)
    detect.exchange(group, b"", failure, "hetcomm.init")


def _watch(transport: UcxTransport, statements: list[detect.Statement], group: JobGroup, config: Config) -> Health:
    """What is known of the other ranks from now on; collective.

    Raises:
        TransportError: What one says of its heartbeat cannot be read.
    """
    from hetcomm.transport.ucx import home_of

    pulse = heartbeat.begin(group, [home_of(said.address) for said in statements], config.heartbeat_timeout)
    transport.heed(pulse)
    hosts = [said.host for said in statements]
    return Health(group.rank, hosts, transport.processes(), pulse, transport.failed_peers)


def _prepare_transport(config: Config) -> None:
    from hetcomm.transport.ucx import prepare  # loads UCX's binding; `import hetcomm` must not

    prepare(config)


def _open_transport(config: Config, worker: Any, endpoints: Any, within: bool) -> UcxTransport:
    from hetcomm.transport.ucx import UcxTransport

    return UcxTransport(config, worker=worker, endpoints=endpoints, within=within)


def _load(topology: Any, nranks: int) -> Topology | None:
    if topology is None:
        return None
    if not isinstance(topology, Topology | str | os.PathLike):
        raise UsageError(
            f"argument 'topology' is of type {type(topology).__name__}",
            remedy="Pass a hetcomm.Topology or the path of a file with one.",
        )
    found = topology if isinstance(topology, Topology) else Topology.load(topology)
    if found.nranks != nranks:
        source = "the topology" if isinstance(topology, Topology) else f"the topology file {topology}"
        raise TopologyError(
            f"{source} describes {found.nranks} ranks, but the job has {nranks}",
            remedy="Start as many ranks as it describes, or correct it.",
        )
    return found


def _state(
    config: Config, given: Topology | None, group: JobGroup, transport: Transport, comm: Any
) -> detect.Statement:
    wanted = given.cluster_of(group.rank).vendor if given is not None else None
    return detect.Statement(
        vendor=detect.choose_vendor(config, over_mpi=uses_mpi(config, comm), from_topology=wanted),
        label=config.cluster or "",
        host=detect.host(),
        address=transport.address,
        topology=given.fingerprint() if given is not None else "",
    )


def _check_topologies(statements: list[detect.Statement], rank: int) -> None:
    for other, statement in enumerate(statements):
        if statement.topology != statements[0].topology:
            raise TopologyError(
                f"rank 0 and rank {other} were given different topologies",
                remedy="Give every rank the same file, or none.",
                rank=rank,
                peer=other,
            )
