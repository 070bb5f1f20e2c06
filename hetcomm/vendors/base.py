"""What hetcomm asks of a vendor's collective library, and how it finds the libraries there are.

A vendor is one foreign library seen through one shape. It makes communicators over groups of ranks that all use
this vendor; a communicator starts collectives, each as a `Collective` in terms of its own ranks, and hands back an
`Operation` that is polled. Nothing here blocks for data, so the executor's deadline holds everywhere.

Other packages add vendors through the entry-point group `hetcomm.vendors`: name -> a callable without arguments that
returns a `Vendor`. `hetcomm.testing.check_vendor` is the conformance suite they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.structure import VENDOR_KINDS
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind

__all__ = [
    "COLLECTIVES",
    "Availability",
    "Capabilities",
    "Group",
    "Operation",
    "StreamCommunicator",
    "Vendor",
    "VendorCommunicator",
]


COLLECTIVES = VENDOR_KINDS
"""What hetcomm asks of vendors, in the uniform forms only: it moves everything else by messages of its own."""


class Group(Protocol):
    """A few ranks of the job that can exchange small messages before any transport exists (the bootstrap's view).

    Every method is collective over the group and obeys the job's deadline.
    """

    @property
    def rank(self) -> int:
        """This process's number in the group."""
        ...

    @property
    def nranks(self) -> int: ...

    @property
    def timeout(self) -> float:
        """Seconds that anything of the group may take."""
        ...

    def wait(self, test: Callable[[], bool], what: str) -> None:
        """Return when `test()` is true, and keep the process moving meanwhile; not an exchange.

        Raises:
            CollectiveTimeoutError: It is not within `timeout`; the message has `what` was waited for.
            PeerFailureError: Ranks of the group have died meanwhile; `ranks` names them.
        """
        ...

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        """Everybody's payload, in rank order; payloads may differ in length."""
        ...

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        """The payload of `root` (the others pass None)."""
        ...

    def barrier(self) -> None:
        """Return when every rank has called it."""
        ...


class Operation(Protocol):
    """Something under way that is polled."""

    def test(self) -> bool:
        """Move it along and say whether it is complete; never blocks.

        Raises:
            VendorError: The library reported a failure.
            PeerFailureError: A rank it needs is gone.
        """
        ...


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a vendor can be used in this process, and if not, why and what to do."""

    usable: bool
    version: str = ""
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a vendor's communicators take, natively or composed by the vendor's own file.

    Attributes:
        memory: Where the arrays may live.
        collectives: Kinds that `VendorCommunicator.start` takes. If there are none, no communicator is made: hetcomm
            writes all calls out as messages.
        dtypes: Element types.
        ops: Reductions; `AVG` and `PREMUL_SUM` are never among them, since hetcomm composes those.
        refused: (dtype, op) pairs out of those that it cannot do. Reductions that it lacks are made of messages.
        composed: (dtype, op) pairs it does by a detour, so that they are right but slow.
        nan_propagates: NaN comes through `MIN` and `MAX`.
        streams: Each of its communicators is a `StreamCommunicator`: it queues calls on device memory on a stream.
    """

    memory: frozenset[MemoryKind]
    collectives: frozenset[CollectiveKind]
    dtypes: frozenset[DataType]
    ops: frozenset[ReduceKind]
    refused: frozenset[tuple[DataType, ReduceKind]] = frozenset()
    composed: frozenset[tuple[DataType, ReduceKind]] = frozenset()
    nan_propagates: bool = True
    streams: bool = False

    def takes(self, collective: Collective, memory: MemoryKind = MemoryKind.HOST) -> bool:
        """Whether `start` accepts this collective."""
        if memory not in self.memory or collective.kind not in self.collectives or collective.dtype not in self.dtypes:
            return False
        if collective.counts is not None:
            return False
        return collective.op is None or self.reduces(collective.dtype, collective.op)

    def reduces(self, dtype: DataType, op: ReduceKind) -> bool:
        """Whether it has this reduction, which is a binary operation."""
        return op in self.ops and (dtype, op) not in self.refused

    def refusal(self, collective: Collective, memory: MemoryKind) -> str | None:
        """What a vendor says of a collective that `start` does not accept; None if it does."""
        if self.takes(collective, memory):
            return None
        op = f" of op '{collective.op.value}'" if collective.op is not None else ""
        what = f"{collective.kind.value}{op} on {collective.dtype.value} in {memory.value} memory"
        return f"{what} is not what it can do"


class VendorCommunicator(Protocol):
    """A vendor's communicator over one group of ranks. Calls must come in the same order on all its ranks."""

    @property
    def rank(self) -> int: ...

    @property
    def nranks(self) -> int: ...

    def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        """Start a collective; memory must stay alive and untouched until the operation is complete.

        `in_memory` holds `collective.in_count(rank)` elements, or is None where there are none or the call is in place;
        `out_memory` holds `collective.out_count(rank)` elements, in place `collective.buffer_count(rank)`, or is None.
        All ranks get bit-identical results.

        Raises:
            VendorError: The library refused it.
        """
        ...

    def progress(self) -> None:
        """Move along everything that other ranks need from this one; never blocks, does nothing once closed or aborted.

        Whoever waits calls this now and then, whatever is waited for: an operation that is not polled may need steps of
        this rank, and even for complete ones a library may hold back messages until it is called again.

        Raises:
            VendorError, PeerFailureError: As `Operation.test`.
        """
        ...

    def abort(self) -> None:
        """Give up on whatever is under way; returns at once and never raises. Only `drain` and `close` may follow.

        What the library was given stays alive, and may still be read and written until `drain` says otherwise.
        """
        ...

    def drain(self, seconds: float) -> bool:
        """After `abort`, make what is under way end, and wait at most `seconds` until it has; whether nothing is left.

        Not collective, and never raises what went wrong; other ranks may see their calls fail, so they are told before
        why. Where it is False the memory lives as long as the process, but
        the library may still write to it: no library for host memory can take back a collective. What they do:

        ==========  =============================================================================================
        `mpi`       Nothing is cancelled: a collective ends when all ranks make their part of it, and those that abort
                    while it runs do so in `drain`. What has not ended by then moves in later MPI calls only.
        `oneccl`    The same; it moves in later oneCCL calls only.
        `gloo`      The connections are shut down, so that calls end with an error at once, on all ranks.
        `nccl`      The library's own abort ends the kernels.
        `ucx`       Messages are cancelled by the executor that carries them.
        ==========  =============================================================================================
        """
        ...

    def close(self) -> None:
        """Release it; collective unless aborted; calling it again does nothing."""
        ...


class StreamCommunicator(VendorCommunicator, Protocol):
    """A communicator whose calls on device memory are done by the device, in the order of a stream."""

    def enqueue(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None, stream: int) -> None:
        """Queue a collective on a stream and return at once; otherwise as `start`.

        It is complete when the stream has passed it. The device may hold the stream until all ranks have queued the
        call, so ranks queue their calls in one order, over all communicators that they share. What goes wrong later is
        raised by `progress`.

        Raises:
            VendorError: The library refused it.
        """
        ...


class Vendor(Protocol):
    """One foreign collective library."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def availability(self) -> Availability:
        """Whether it can be used here; cheap, starts nothing, imports no more than it must."""
        ...

    def create(self, group: Group) -> VendorCommunicator:
        """A communicator over `group`; collective.

        Raises:
            VendorError: The library is missing or failed; the remedy says what to install or set.
        """
        ...
