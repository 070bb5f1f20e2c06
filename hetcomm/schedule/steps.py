"""The vocabulary of schedules: slices, the six steps, programs, schedules.

The rules of this file:

* Plain, frozen values that validate themselves, so an invalid one cannot exist. Nothing here runs anything.
* A program reads top to bottom and means what it says when its steps are run one after another. What may
  overlap is derived from it (`hetcomm.schedule.dataflow`) and never written down.
* `IN` is never written. In place, `IN` is not used at all: the one buffer is `OUT`, and
  `Collective.in_offset` and `Collective.out_offset` say where input and output lie in it.
* Whoever adds a kind of step teaches `dataflow.accesses`, `verify` and the executor.

Counts and offsets are in elements, ranks are ranks of the collective the program belongs to.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from hetcomm.schedule.collective import Collective
from hetcomm.types import ReduceKind

__all__ = [
    "Buffer",
    "CommId",
    "CommRole",
    "Copy",
    "Fill",
    "Program",
    "Recv",
    "Reduce",
    "Scale",
    "Schedule",
    "Send",
    "Slice",
    "Step",
    "VendorCall",
]


class Buffer(enum.Enum):
    """The three buffers a program works on."""

    IN = "in"
    OUT = "out"
    SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class Slice:
    """`count` elements of `buffer` from `offset` on."""

    buffer: Buffer
    offset: int
    count: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.count < 0:
            raise ValueError(f"slice of {self.buffer.value} has offset {self.offset}, count {self.count}")

    @property
    def stop(self) -> int:
        return self.offset + self.count

    def overlaps(self, other: Slice) -> bool:
        """Whether they share an element."""
        return (
            self.buffer is other.buffer
            and self.offset < other.stop
            and other.offset < self.stop
            and self.count > 0
            and other.count > 0
        )

    def part(self, offset: int, count: int) -> Slice:
        """The `count` elements from `offset` on, counted from the start of this slice."""
        if not 0 <= offset <= offset + count <= self.count:
            raise ValueError(f"elements {offset} to {offset + count} lie outside {self}")
        return Slice(self.buffer, self.offset + offset, count)

    def __str__(self) -> str:
        return f"{self.buffer.value}[{self.offset}:{self.stop}]"


class CommRole(enum.Enum):
    """Which ranks of a cluster a vendor communicator spans."""

    HOME = "home"  # all of them
    BORDER = "border"  # the border ranks


@dataclass(frozen=True, slots=True)
class CommId:
    """Names one vendor communicator of the job."""

    cluster: str
    role: CommRole

    def __str__(self) -> str:
        return f"{self.role.value}:{self.cluster}"


class Scale(enum.Enum):
    """What a `Copy` multiplies by on its way."""

    FACTOR = "factor"  # this rank's factor of PREMUL_SUM
    AVERAGE = "average"  # one over the number of ranks of the collective


@dataclass(frozen=True, slots=True)
class Send:
    """Send `src` to `peer`. Messages of one (sender, receiver, channel) arrive in program order."""

    src: Slice
    peer: int
    channel: int = 0


@dataclass(frozen=True, slots=True)
class Recv:
    """Receive exactly `dst.count` elements from `peer`."""

    dst: Slice
    peer: int
    channel: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `src` to `dst`, scaled if asked; the two are equal or share no element."""

    src: Slice
    dst: Slice
    scale: Scale | None = None

    def __post_init__(self) -> None:
        if self.src.count != self.dst.count:
            raise ValueError(f"copy of {self.src} to {self.dst}: counts differ")
        if self.src != self.dst and self.src.overlaps(self.dst):
            raise ValueError(f"copy of {self.src} to {self.dst}: they overlap in part")


@dataclass(frozen=True, slots=True)
class Fill:
    """Set every element of `dst` to the identity of `op`."""

    dst: Slice
    op: ReduceKind


@dataclass(frozen=True, slots=True)
class Reduce:
    """Combine on this rank: `dst = dst op src`, element by element, in that order of operands."""

    src: Slice
    dst: Slice
    op: ReduceKind

    def __post_init__(self) -> None:
        if self.src.count != self.dst.count or self.src.overlaps(self.dst):
            raise ValueError(f"reduction of {self.src} into {self.dst}: counts differ or they overlap")


@dataclass(frozen=True, slots=True)
class VendorCall:
    """One collective of the vendor, over the communicator `comm`.

    `collective` is in terms of the communicator: its nranks and root count the communicator's own ranks, and its op is
    one a vendor knows (never `AVG` or `PREMUL_SUM`). `src` is None where this rank passes no input or the call is in
    place; `dst` is None where it gets no output. In place, `dst` is the one buffer.
    """

    comm: CommId
    collective: Collective
    src: Slice | None
    dst: Slice | None


Step = Send | Recv | Copy | Fill | Reduce | VendorCall


@dataclass(frozen=True, slots=True)
class Program:
    """What one rank does for one collective.

    Attributes:
        rank: Whose program it is.
        collective: What it is for.
        steps: In program order.
        scratch_count: Elements of `SCRATCH` it needs.
        algorithm: The planner's name for it, as `explain` shows it.
    """

    rank: int
    collective: Collective
    steps: tuple[Step, ...]
    scratch_count: int = 0
    algorithm: str = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The programs of all ranks for one collective, and the communicators their vendor calls name.

    Attributes:
        collective: What it is for; programs may differ from it in `in_place` only.
        programs: One for each rank, in rank order.
        communicators: The ranks of each vendor communicator, in the communicator's own order.
    """

    collective: Collective
    programs: tuple[Program, ...]
    communicators: Mapping[CommId, tuple[int, ...]]
