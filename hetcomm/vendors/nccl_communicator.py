"""A communicator of NCCL or RCCL: calls are checked and queued on streams, and their failures are raised."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from hetcomm.devices.base import Device, Event
from hetcomm.errors import VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind
from hetcomm.vendors import compose
from hetcomm.vendors.base import Capabilities, Operation
from hetcomm.vendors.nccl_binding import Binding, Connection
from hetcomm.vendors.nccl_detours import Detours

__all__ = ["OPS", "REDUCED_AS", "NcclCommunicator"]

_T = TypeVar("_T")

_ABORT_SECONDS = 2.0
_CLOSE_SECONDS = 1.0

# The libraries' own numbers, equal in nccl.h and rccl.h: as what an element is reduced, and how many of these it is.
REDUCED_AS = {
    DataType.INT8: (0, 1),
    DataType.UINT8: (1, 1),
    DataType.INT32: (2, 1),
    DataType.UINT32: (3, 1),
    DataType.INT64: (4, 1),
    DataType.UINT64: (5, 1),
    DataType.FLOAT16: (6, 1),
    DataType.FLOAT32: (7, 1),
    DataType.FLOAT64: (8, 1),
    DataType.BFLOAT16: (9, 1),
    DataType.COMPLEX64: (7, 2),
    DataType.COMPLEX128: (8, 2),
}
_BYTE, _ = REDUCED_AS[DataType.UINT8]
_TRUTH = ReduceKind.LOR  # x or x, which is 0 or 1: what a logical op gives a single rank
OPS = {ReduceKind.SUM: 0, ReduceKind.PROD: 1, ReduceKind.MAX: 2, ReduceKind.MIN: 3}

_UNFINISHED: list[object] = []
"""What a device may still write to after an abort: it must live as long as the process."""


class NcclCommunicator:
    """A `StreamCommunicator`.

    Args:
        vendor: Its vendor's name, for messages.
        capabilities: What the vendor declares; what it calls composed goes through `Detours`.
        device: The device that it works on.
        rank: This process's number in it.
        nranks: How many ranks it has.
        library: The wrapper and its communicator; None where there is one rank only.
    """

    def __init__(
        self,
        vendor: str,
        capabilities: Capabilities,
        device: Device,
        rank: int,
        nranks: int,
        library: tuple[Binding, Connection] | None,
    ) -> None:
        self._vendor = vendor
        self._capabilities = capabilities
        self._device = device
        self._rank = rank
        self._nranks = nranks
        self._library = library
        self._detours = Detours(device, library[1], rank, nranks) if library is not None else None
        self._prepared: set[tuple[DataType, ReduceKind | None]] = set()
        self._stream: int | None = None
        self._running: list[_Queued] = []
        self._left: list[_Queued] = []  # what an abort has left under way
        self._state = "open"

    @property
    def rank(self) -> int:
        """This process's number in it."""
        return self._rank

    @property
    def nranks(self) -> int:
        """How many ranks it has."""
        return self._nranks

    def __repr__(self) -> str:
        return f"<{self._vendor} communicator, rank {self._rank} of {self._nranks}, {self._state}>"

    def prepare(self, collective: Collective) -> None:
        """Make this rank's part of such collectives ready to be queued without blocking; may block.

        `enqueue` does it where it was not done: the first call of a composed reduction then makes the device's kernels.

        Raises:
            DeviceError: The device reported a failure.
        """
        op = collective.op
        if self._library is None:
            op = _TRUTH if op is not None and op.is_logical else None
        key = (collective.dtype, op)
        if key not in self._prepared and (self._library is None or key in self._capabilities.composed):
            self._device.prepare(*key)
            self._prepared.add(key)

    def enqueue(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None, stream: int) -> None:
        """Queue a collective on a stream: see `StreamCommunicator.enqueue`.

        Raises:
            VendorError: The communicator is closed or aborted, the vendor does not take this collective, a memory does
                not fit it, or the library reported a failure. Only after the last is it unusable, and aborted.
        """
        if self._state != "open":
            raise self._error(f"the communicator is {self._state}", "Make a new one.")
        self._check(collective, in_memory, out_memory)
        if not collective.count:
            return
        source = compose.input_of(collective, self._rank, in_memory, out_memory)
        target = compose.output_of(collective, self._rank, out_memory)
        if self._library is None:
            self.prepare(collective)
            if source is not None and target is not None and source.address != target.address:
                self._device.copy(source, target, stream)
            if collective.op is not None and collective.op.is_logical and target is not None:
                self._device.reduce(target, target, _TRUTH, stream)
            return
        if collective.op is not None and (collective.dtype, collective.op) in self._capabilities.composed:
            assert self._detours is not None  # there is a library
            assert source is not None  # every rank of a reduction has an input
            self.prepare(collective)
            detours, given = self._detours, source
            self._call(lambda: detours.queue(collective, given, target, stream), collective.kind.value)
            return
        _, connection = self._library
        self._call(lambda: _queue(connection, collective, source, target, stream), collective.kind.value)

    def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        """Start a collective on a stream of its own: see `VendorCommunicator.start`.

        What other streams do to the memory must be done before; what reads the output waits for the operation.
        """
        stream = self._own_stream()
        self.enqueue(collective, in_memory, out_memory, stream)
        queued = _Queued(self, self._device.record(stream), (in_memory, out_memory))
        self._running = [*(other for other in self._running if not other.over()), queued]
        return queued

    def progress(self) -> None:
        """Raise what the library has noticed since: see `VendorCommunicator.progress`.

        Raises:
            VendorError: The library reported a failure; the communicator is aborted.
        """
        library = self._library
        if library is not None and self._state == "open":
            self._call(library[1].check, "a collective")

    def abort(self) -> None:
        """Give up on what is under way: see `VendorCommunicator.abort`.

        The library's own abort may block, so it runs on a thread; after two seconds nobody waits for it any more.
        """
        if self._state != "open":
            return
        self._state = "aborted"
        _UNFINISHED.append((self._running, self._detours))
        self._left, self._running = self._running, []
        library, self._library = self._library, None
        if library is not None:
            _abort(library[1])

    def drain(self, seconds: float) -> bool:
        """Wait until the device has let go of the memory: see `VendorCommunicator.drain`."""
        end = time.monotonic() + seconds
        while not all(queued.over() for queued in self._left):
            if time.monotonic() > end:
                return False
            time.sleep(1e-4)
        return True

    def close(self) -> None:
        """Release it; collective, unless something is still under way or it was aborted. Again: does nothing.

        What is under way has a second to end.

        Raises:
            VendorError: The library reported a failure.
        """
        if self._state == "closed":
            return
        end = time.monotonic() + _CLOSE_SECONDS
        while not self._idle() and time.monotonic() < end:
            time.sleep(1e-4)
        if not self._idle():
            self.abort()
        was_open = self._state == "open"
        library = self._library
        if was_open and library is not None:
            self._call(library[1].destroy, "closing a communicator")
        self._state, self._library, self._detours = "closed", None, None
        if was_open and self._stream is not None:
            self._device.close_stream(self._stream)

    def _own_stream(self) -> int:
        if self._stream is None:
            self._stream = self._device.open_stream()
        return self._stream

    def _idle(self) -> bool:
        if self._state != "open":
            return True
        return all(queued.over() for queued in self._running) and (self._detours is None or self._detours.idle())

    def _check(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> None:
        if collective.nranks != self._nranks:
            raise self._error(f"a collective over {collective.nranks} ranks on a communicator of {self._nranks}")
        (own,) = self._capabilities.memory
        kind = next((memory.kind for memory in (in_memory, out_memory) if memory is not None), own)
        refusal = self._capabilities.refusal(collective, kind)
        if refusal is not None:
            raise self._error(refusal, self._remedy(kind))
        if collective.in_place:
            wanted = (0, collective.buffer_count(self._rank))
        else:
            wanted = (collective.in_count(self._rank), collective.out_count(self._rank))
        for name, memory, count in zip(("input", "output"), (in_memory, out_memory), wanted, strict=True):
            if count and (memory is None or memory.count != count or memory.dtype is not collective.dtype):
                got = "none" if memory is None else f"{memory.count} of {memory.dtype.value}"
                raise self._error(f"the {name} must be {count} elements of {collective.dtype.value}, not {got}")

    def _remedy(self, kind: MemoryKind) -> str:
        if kind in self._capabilities.memory:
            return "Use another vendor for these ranks."
        if kind is MemoryKind.HOST:
            return "Pass device arrays (CuPy, PyTorch), or set HETCOMM_VENDOR=mpi or ucx on the ranks with host arrays."
        return "Use the vendor of that GPU's maker for these ranks, or 'ucx'."

    def _call(self, function: Callable[[], _T], what: str) -> _T:
        """The function's result, the library's failures as `VendorError`; any failure aborts the communicator."""
        library = self._library
        assert library is not None  # nothing is asked of a library that is not there
        try:
            return function()
        except library[0].errors as error:
            text = library[0].explain(error)
            self.abort()
            raise self._error(f"{what} failed: {text}") from error
        except BaseException:
            self.abort()
            raise

    def _error(self, message: str, remedy: str | None = None) -> VendorError:
        return VendorError(f"vendor {self._vendor!r}: {message}", remedy=remedy, rank=self._rank)


class _Queued:
    """What `start` has queued, and the memory it works on."""

    def __init__(self, communicator: NcclCommunicator, event: Event, memories: tuple[Memory | None, ...]) -> None:
        self._communicator = communicator
        self._event: Event | None = event
        self._memories = memories

    def test(self) -> bool:
        """Whether the device has done it; see `Operation.test`."""
        if not self.over():
            self._communicator.progress()
        return self.over()

    def over(self) -> bool:
        """The same, without a look at the library's failures."""
        if self._event is not None and self._event.done():
            self._event = None
            self._memories = ()
        return self._event is None


def _queue(
    connection: Connection, collective: Collective, source: Memory | None, target: Memory | None, stream: int
) -> None:
    """Queue what the library has itself. It sees that a call is in place by the addresses.

    What is only moved travels as bytes; so any type can.
    """
    src = source.address if source is not None else 0
    dst = target.address if target is not None else 0
    root = collective.root if collective.root is not None else 0
    match collective.kind:
        case CollectiveKind.BROADCAST:
            nbytes = collective.count * collective.dtype.itemsize
            connection.queue("broadcast", src or dst, dst, nbytes, _BYTE, root, stream)
            return
        case CollectiveKind.ALL_GATHER:
            connection.queue("all_gather", src, dst, collective.count * collective.dtype.itemsize, _BYTE, stream)
            return
    assert collective.op is not None  # the others reduce
    dtype, each = REDUCED_AS[collective.dtype]
    op, count = OPS[collective.op], collective.count * each
    match collective.kind:
        case CollectiveKind.ALL_REDUCE:
            connection.queue("all_reduce", src, dst, count, dtype, op, stream)
        case CollectiveKind.REDUCE:
            connection.queue("reduce", src, dst, count, dtype, op, root, stream)
        case CollectiveKind.REDUCE_SCATTER:
            connection.queue("reduce_scatter", src, dst, count, dtype, op, stream)


def _abort(connection: Connection) -> None:
    """The library's abort, on a thread that nobody waits for longer than `_ABORT_SECONDS`."""

    def run() -> None:
        with suppress(Exception):  # there is nobody left to tell, and the communicator is lost anyway
            connection.abort()

    thread = threading.Thread(target=run, name="hetcomm-nccl-abort", daemon=True)
    with suppress(RuntimeError):  # the interpreter is ending and starts no more threads; so is the communicator
        thread.start()
        thread.join(_ABORT_SECONDS)
