"""What `Communicator.explain` answers: which plan, why, its steps, and its bytes against the bound."""

from __future__ import annotations

from dataclasses import dataclass

from hetcomm.calls.calls import Call
from hetcomm.schedule.collective import Collective
from hetcomm.schedule.steps import CommId, Program, VendorCall
from hetcomm.schedule.timeline import label
from hetcomm.topology import bounds, select
from hetcomm.topology.model import Topology
from hetcomm.topology.tuning import Tuning

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """How one rank would run a collective; `str` shows all of it.

    Attributes:
        collective: What was asked about.
        program: What this rank would do.
        why: One sentence about the choice.
        topology: Of the communicator.
        communicators: The ranks of each vendor communicator that this rank's vendor calls name.
        bytes_between_clusters: What all ranks together would send between clusters.
        least_bytes_between_clusters: The least possible.
    """

    collective: Collective
    program: Program
    why: str
    topology: Topology
    communicators: dict[CommId, tuple[int, ...]]
    bytes_between_clusters: int
    least_bytes_between_clusters: int

    def __str__(self) -> str:
        lines = [self.why, f"algorithm: {self.program.algorithm}"]
        lines += [
            f"cluster {cluster.name}: vendor {cluster.vendor}, ranks {_ranks(cluster.ranks)}, "
            f"border ranks {_ranks(cluster.border)}"
            for cluster in self.topology.clusters
        ]
        lines.append(f"steps of rank {self.program.rank}:")
        for number, step in enumerate(self.program.steps):
            over = f" over ranks {_ranks(self.communicators[step.comm])}" if isinstance(step, VendorCall) else ""
            lines.append(f"  {number:3} {label(step)}{over}")
        lines.append(
            f"bytes between clusters: {self.bytes_between_clusters}, the least possible: "
            f"{self.least_bytes_between_clusters}"
        )
        return "\n".join(lines)


def explain(call: Call, topology: Topology, program: Program, tuning: Tuning) -> Explanation:
    """How the rank of `program` would run `call`; plans every rank's part to count the bytes, so it takes longer in
    larger jobs."""
    collective = call.collective
    programs = select.schedule(collective, topology, tuning).programs
    named = {step.comm for step in program.steps if isinstance(step, VendorCall)}
    return Explanation(
        collective,
        program,
        select.why(collective, topology, tuning),
        topology,
        {comm: ranks for comm, ranks in topology.communicators().items() if comm in named},
        bounds.traffic(programs, topology).total,
        bounds.least_total(collective, topology) if topology.nranks > 1 else 0,
    )


def _ranks(ranks: object) -> str:
    return ", ".join(map(str, ranks)) if isinstance(ranks, (tuple, list, range)) else str(ranks)
