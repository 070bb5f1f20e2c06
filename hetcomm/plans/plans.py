"""The plans of one communicator: each collective is planned, checked against the vendors and bound once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike

from hetcomm.agreement.tickets import Intent
from hetcomm.errors import UsageError, VendorError
from hetcomm.execution.binding import BoundProgram
from hetcomm.execution.executor import Executor
from hetcomm.plans.imported import Imported, examine
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import CommId, Program, Recv, Schedule, Send, VendorCall
from hetcomm.topology import select
from hetcomm.topology.bounds import traffic
from hetcomm.topology.costs import Calibration
from hetcomm.topology.inline import inline
from hetcomm.topology.model import Cluster, Topology
from hetcomm.topology.pricing import best
from hetcomm.topology.tuning import RULES, Tuning
from hetcomm.types import MemoryKind
from hetcomm.vendors.base import Vendor

__all__ = ["Plan", "Plans"]

_KEPT = 1024
_SHOWN = 16  # counts that a text names


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call runs.

    Attributes:
        name: What was called.
        collective: What was planned; kept so that its identity stays its own.
        program: This rank's part.
        bound: The same, ready to run.
        intent: What the ranks compare.
        sent: Bytes this rank sends to other clusters.
    """

    name: str
    collective: Collective
    program: Program
    bound: BoundProgram
    intent: Intent
    sent: int


class Plans:
    """The plans of one rank of one communicator."""

    def __init__(
        self,
        topology: Topology,
        rank: int,
        executor: Executor,
        vendors: Mapping[CommId, Vendor],
        calibration: Calibration | None = None,
        rules: Tuning = RULES,
    ) -> None:
        self.made = 0
        self._rules = rules
        self._topology = topology
        self._rank = rank
        self._executor = executor
        self._vendors = vendors
        self._calibration = calibration
        self._imported: dict[Collective, Imported] = {}
        self._plans: OrderedDict[tuple[int, int, str, bool], Plan] = OrderedDict()

    def tuning(self, collective: Collective) -> Tuning:
        """What the planners turn on for a collective: by the calibration, or the rules."""
        if self._calibration is None or len(self._topology.clusters) == 1:
            return self._rules
        return best(collective.agreed(), self._topology, self._calibration)

    def examine(self, schedule: Schedule | str | PathLike[str]) -> Imported:
        """A user's schedule, proved and found to fit; see `hetcomm.plans.imported`.

        Raises:
            ScheduleError: It may not run.
            UsageError, VendorError: A vendor cannot do its part, or a channel is out of range.
        """
        found = examine(schedule, self._rank, self._topology.nranks, self._topology.communicators())
        program = found.program
        if self._takes_no_calls:
            program = inline(program, self._topology.communicators_of(self._topology.cluster_of(self._rank)))
        for step in program.steps:
            if isinstance(step, VendorCall):
                self._check(step, MemoryKind.HOST)
        self._executor.bind(program)
        return replace(found, program=program)

    def use(self, imported: Imported) -> None:
        """Let calls of its collective run a user's schedule from now on."""
        self._imported[imported.collective] = imported
        self._plans.clear()

    def get(self, name: str, collective: Collective, memory: MemoryKind, *, control: bool = False) -> Plan:
        """The plan of a collective that is called `name`, on arrays in `memory`.

        With `control` the arrays are hetcomm's own, on the host, whatever memory the vendor takes.

        Raises:
            UsageError: A vendor does not take arrays in that memory.
            VendorError: A vendor cannot do its part.
        """
        key = (id(collective), id(memory), name, control)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = self._make(name, collective, memory, control)
            self.made += 1
            if len(self._plans) > _KEPT:
                self._plans.popitem(last=False)
        return found

    def _make(self, name: str, collective: Collective, memory: MemoryKind, control: bool) -> Plan:
        program = self.program(collective, control=control)
        for step in program.steps:
            if isinstance(step, VendorCall):
                self._check(step, memory)
        if memory is not MemoryKind.HOST:
            self._check_device(program, memory)
        bound = self._executor.bind(program, memory)
        return Plan(
            name,
            collective,
            program,
            bound,
            self.intent(name, collective, program.algorithm),
            traffic((program,), self._topology).total,
        )

    def program(self, collective: Collective, *, control: bool = False) -> Program:
        """What this rank runs for a collective; `control` as for `get`.

        Raises:
            UsageError: A schedule is in use for it, which is in place where this call is not, or the other way round.
        """
        imported = self._imported.get(collective.agreed())
        if imported is None:
            tuning = self.tuning(collective)
            return self._inlined(select.plan(collective, self._topology, self._rank, tuning), tuning, control)
        if imported.program.collective != collective:
            raise UsageError(
                f"the schedule in use for this {collective.kind.value} differs from the call in being in place, or in "
                "displacements",
                remedy="Call it as the schedule was written: with or without an output array of its own.",
                rank=self._rank,
            )
        return imported.program

    def _inlined(self, program: Program, tuning: Tuning, control: bool) -> Program:
        """The program with its vendor calls written out, if they are to be."""
        cluster = self._topology.cluster_of(self._rank)
        if self._is_written_out(program.collective, cluster, tuning, control):
            return inline(program, self._topology.communicators_of(cluster))
        return program

    def _is_written_out(self, collective: Collective, cluster: Cluster, tuning: Tuning, control: bool) -> bool:
        """Whether vendor calls become messages: where the vendor takes none, lacks the reduction, or takes none of
        hetcomm's own arrays; and of vendors that take host memory where the tuning says so.

        That is the same for all ranks of a cluster: it follows from the collective and the vendor.
        """
        if self._takes_no_calls:
            return True
        capabilities = [vendor.capabilities for vendor in self._vendors.values()]
        op = collective.op
        if op is not None and not all(each.reduces(collective.dtype, op.combining) for each in capabilities):
            return True
        if not all(MemoryKind.HOST in each.memory for each in capabilities):
            return control
        return tuning.is_inlined(collective.total * collective.dtype.itemsize, len(cluster))

    @property
    def _takes_no_calls(self) -> bool:
        return any(not vendor.capabilities.collectives for vendor in self._vendors.values())

    def _check(self, step: VendorCall, memory: MemoryKind) -> None:
        vendor = self._vendors[step.comm]
        if memory not in vendor.capabilities.memory:
            raise UsageError(
                f"the arrays are in {memory.value} memory, but vendor {vendor.name!r} of this rank takes none there",
                remedy="Pass host arrays, or give this rank a vendor for that device (HETCOMM_VENDOR).",
                rank=self._rank,
            )
        if not vendor.capabilities.takes(step.collective, memory):
            op = f" of op '{step.collective.op.value}'" if step.collective.op is not None else ""
            raise VendorError(
                f"vendor {vendor.name!r} cannot do {step.collective.kind.value}{op} on {step.collective.dtype.value}",
                remedy="Use another dtype or op, or another vendor for this rank (HETCOMM_VENDOR).",
                rank=self._rank,
            )

    def _check_device(self, program: Program, memory: MemoryKind) -> None:
        """Refuse a program whose messages the transport cannot carry."""
        sends = any(isinstance(step, (Send, Recv)) for step in program.steps)
        if sends and not self._executor.transport.supports(memory):
            raise UsageError(
                f"the arrays are in {memory.value} memory, which the UCX in use cannot reach",
                remedy="Pass host arrays, or use a UCX built for that device; 'hetcomm doctor' shows which is in use.",
                rank=self._rank,
            )

    def intent(self, name: str, collective: Collective, algorithm: str) -> Intent:
        """What the ranks compare of a call."""
        agreed = collective.agreed()
        topology = self._topology.fingerprint()
        said = repr((name, agreed, algorithm, topology))
        text = f"{name}{_described(agreed)} (algorithm {algorithm or 'unnamed'}, topology {topology[:8]})"
        return Intent(hashlib.blake2b(said.encode(), digest_size=16).digest(), text)


def _described(collective: Collective) -> str:
    """The arguments of a collective that all ranks give alike, as text."""
    op = f" {collective.op.value}" if collective.op is not None else ""
    root = f" root {collective.root}" if collective.root is not None else ""
    counts = ""
    if collective.counts is not None:
        shown = ", ".join(map(str, collective.counts[:_SHOWN]))
        if len(collective.counts) > _SHOWN:
            digest = hashlib.blake2b(repr(collective.counts).encode(), digest_size=4).hexdigest()
            shown += f", ... in all {len(collective.counts)}, digest {digest}"
        counts = f" counts ({shown})"
    return f"{op} {collective.count} x {collective.dtype.value}{counts}{root}"
