"""A `cupy` with a NCCL that works on fake devices, for ranks of one process.

It is as strict as the real one: it knows NCCL's type and operation numbers only, matches calls by their order, loses
NaN in min and max, and does everything when its stream comes to it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hetcomm._conformance.fake_streams import Op
from hetcomm._conformance.hazards import accesses
from hetcomm.testing import FakeDevice
from hetcomm.types import DataType, Memory

TYPES = ["int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", ml_dtypes.bfloat16]
OPS: list[Any] = [np.add, np.multiply, np.fmax, np.fmin]
UNIQUE_ID_BYTES = 128
_DEADLINE = 20.0


class NcclError(RuntimeError):
    """As CuPy's."""

    def __init__(self, status: int) -> None:
        self.status = status
        names = {1: "UNHANDLED_CUDA_ERROR", 4: "INVALID_ARGUMENT", 5: "INVALID_USAGE", 6: "REMOTE_ERROR"}
        super().__init__(f"NCCL_ERROR_{names[status]}: as the library says")


class CudaRuntimeError(RuntimeError):
    """As CuPy's `CUDARuntimeError`."""


def view(address: int, count: int, dtype: Any) -> Any:
    """A device's memory as an array."""
    kind = np.dtype(dtype)
    return np.frombuffer((ctypes.c_char * (count * kind.itemsize)).from_address(address), kind)


@dataclass(frozen=True)
class Call:
    """One rank's call of a collective."""

    name: str
    src: int
    dst: int
    count: int
    dtype: int
    op: int = 0
    root: int = 0

    @property
    def agreed(self) -> tuple[str, int, int, int, int]:
        return self.name, self.count, self.dtype, self.op, self.root

    def lengths(self, rank: int, nranks: int) -> tuple[int, int]:
        """Elements read and written."""
        match self.name:
            case "all_gather":
                return self.count, nranks * self.count
            case "reduce_scatter":
                return nranks * self.count, self.count
            case "broadcast":
                return (self.count if rank == self.root else 0), self.count
            case "reduce":
                return self.count, (self.count if rank == self.root else 0)
        return self.count, self.count


class Clique:
    """What the members of one communicator share."""

    def __init__(self, nranks: int) -> None:
        self.nranks = nranks
        self.members: dict[int, Communicator] = {}
        self.failure = ""
        self._calls: dict[int, dict[int, Joined]] = defaultdict(dict)

    def join(self, joined: Joined) -> None:
        """A stream has come to a rank's call; the last one computes it for all."""
        calls = self._calls[joined.number]
        calls[joined.rank] = joined
        if len(calls) == self.nranks:
            del self._calls[joined.number]
            self._compute([calls[rank] for rank in range(self.nranks)])

    def _compute(self, members: Sequence[Joined]) -> None:
        call = members[0].call
        if any(member.call.agreed != call.agreed for member in members):
            self.failure = f"the ranks called {[member.call for member in members]}"
            return
        dtype = TYPES[call.dtype]
        inputs = []
        for rank, member in enumerate(members):
            reads, _ = call.lengths(rank, self.nranks)
            inputs.append(view(member.call.src, reads, dtype).copy())
        if call.name in ("all_gather", "broadcast"):
            result = np.concatenate(inputs)
        else:
            result = inputs[0]
            with np.errstate(all="ignore"):
                for other in inputs[1:]:
                    result = OPS[call.op](result, other)
        for rank, member in enumerate(members):
            _, writes = call.lengths(rank, self.nranks)
            first = rank * call.count if call.name == "reduce_scatter" else 0
            view(member.call.dst, writes, dtype)[:] = result[first : first + writes]
            member.over = True


class Joined(Op):
    """A call of a collective on a stream.

    A communicator does its calls in the order they were queued in, whatever their streams are.
    """

    def __init__(self, clique: Clique, number: int, rank: int, call: Call, before: Joined | None) -> None:
        itemsize = np.dtype(TYPES[call.dtype]).itemsize
        reads, writes = (count * itemsize for count in call.lengths(rank, clique.nranks))
        src, dst = (Memory(at, size, DataType.UINT8) for at, size in ((call.src, reads), (call.dst, writes)))
        super().__init__(f"NCCL's {call.name}", accesses(call.name, (src,), (dst,)))
        self.number, self.rank, self.call = number, rank, call
        self.over = False
        self._joined = False
        self._clique = clique
        self._before = before

    def look(self) -> bool:
        """Take part, if it does not yet; whether all have."""
        if self._before is not None and not self._before.over:
            return False
        self._before = None
        if not self._joined:
            self._joined = True
            self._clique.join(self)
        return self.over


class Communicator:
    """CuPy's `NcclCommunicator`."""

    def __init__(self, library: Library, nranks: int, unique_id: Any, rank: int) -> None:
        key = bytes(byte % 256 for byte in unique_id)
        assert len(key) == UNIQUE_ID_BYTES
        self.library, self.rank = library, rank
        with library.changed:
            self.clique = library.cliques.setdefault(key, Clique(nranks))
            assert self.clique.nranks == nranks
            assert rank not in self.clique.members
            self.clique.members[rank] = self
            library.changed.notify_all()
            assert library.changed.wait_for(lambda: len(self.clique.members) == nranks, _DEADLINE)
        self.device: FakeDevice = library.here.device
        self.calls = 0
        self.latest: Joined | None = None
        self.gone = ""

    def _join(self, stream: int, call: Call) -> None:
        if not 0 <= call.dtype < len(TYPES) or not 0 <= call.op < len(OPS) or self.gone:
            raise NcclError(4)
        self.library.log.append((self.rank, call))
        self.latest = Joined(self.clique, self.calls, self.rank, call, self.latest)
        self.calls += 1
        self.device.push(stream, self.latest)

    def allReduce(self, src: int, dst: int, count: int, dtype: int, op: int, stream: int) -> None:  # noqa: N802
        self._join(stream, Call("all_reduce", src, dst, count, dtype, op))

    def reduce(self, src: int, dst: int, count: int, dtype: int, op: int, root: int, stream: int) -> None:
        self._join(stream, Call("reduce", src, dst, count, dtype, op, root))

    def broadcast(self, src: int, dst: int, count: int, dtype: int, root: int, stream: int) -> None:
        self._join(stream, Call("broadcast", src, dst, count, dtype, 0, root))

    def allGather(self, src: int, dst: int, count: int, dtype: int, stream: int) -> None:  # noqa: N802
        self._join(stream, Call("all_gather", src, dst, count, dtype))

    def reduceScatter(self, src: int, dst: int, count: int, dtype: int, op: int, stream: int) -> None:  # noqa: N802
        self._join(stream, Call("reduce_scatter", src, dst, count, dtype, op))

    def check_async_error(self) -> None:
        self.library.polled += 1
        if self.library.async_error is not None:
            raise self.library.async_error
        assert not self.clique.failure, self.clique.failure

    def abort(self) -> None:
        if self.library.abort_blocks is not None:
            self.library.abort_blocks.wait(_DEADLINE)
        assert not self.gone
        self.gone = "aborted"

    def destroy(self) -> None:
        assert not self.gone
        self.gone = "destroyed"


class Library:
    """`cupy.cuda.nccl`, and what a test does to it.

    Attributes:
        here: What is this thread's: its `device`, and its `gpu` (where on the bus, and which).
        async_error: What `check_async_error` raises.
        abort_blocks: What `abort` waits for.
        log: The collectives called: (rank, call).
    """

    def __init__(self, version: int = 22703, cupy_version: str = "14.2.0") -> None:
        self.here: Any = threading.local()
        self.changed = threading.Condition()
        self.cliques: dict[bytes, Clique] = {}
        self.versions: dict[int, int] = {}
        self.version = version
        self.cupy_version = cupy_version
        self.async_error: Exception | None = None
        self.abort_blocks: threading.Event | None = None
        self.polled = 0
        self.log: list[tuple[int, Call]] = []
        self._ids = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it the `cupy` that is imported."""
        cupy, cuda, nccl, runtime = (
            ModuleType(name) for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl", "cupy.cuda.runtime")
        )
        contents: list[tuple[Any, dict[str, Any]]] = [
            (cupy, {"__version__": self.cupy_version, "cuda": cuda}),
            (cuda, {"nccl": nccl, "runtime": runtime}),
            (
                nccl,
                {
                    "available": True,
                    "NcclError": NcclError,
                    "get_version": lambda: self.version,
                    "get_unique_id": self._unique_id,
                    "NcclCommunicator": lambda *arguments: Communicator(self, *arguments),
                },
            ),
            (
                runtime,
                {
                    "CUDARuntimeError": CudaRuntimeError,
                    "getDevice": lambda: 0,
                    "deviceGetPCIBusId": lambda _: self.here.gpu[0],
                    "getDeviceProperties": lambda _: {"uuid": self.here.gpu[1]},
                },
            ),
        ]
        for module, attributes in contents:
            for name, value in attributes.items():
                setattr(module, name, value)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def _unique_id(self) -> bytes | tuple[int, ...]:
        self._ids += 1
        made = bytes([self._ids, 200]) + bytes(UNIQUE_ID_BYTES - 2)
        old = int(self.cupy_version.split(".", maxsplit=1)[0]) < 14
        return tuple(np.frombuffer(made, "i1").tolist()) if old else made


class ThreadGroup:
    """A `hetcomm.vendors.base.Group` whose ranks are threads."""

    def __init__(self, rank: int, nranks: int, barrier: threading.Barrier, board: dict[int, bytes]) -> None:
        self.rank, self.nranks = rank, nranks
        self._barrier, self._board = barrier, board

    def all_gather(self, payload: bytes) -> list[bytes]:
        self._board[self.rank] = payload
        self._barrier.wait(_DEADLINE)
        said = [self._board[rank] for rank in range(self.nranks)]
        self._barrier.wait(_DEADLINE)
        return said

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        return self.all_gather(payload or b"")[root]

    def barrier(self) -> None:
        self.all_gather(b"")


def on_threads(nranks: int, function: Callable[[ThreadGroup], Any]) -> list[Any]:
    """Call a function on a thread for each rank: what each returned, or the exception that it raised."""
    board: dict[int, bytes] = {}
    barrier = threading.Barrier(nranks)
    results: list[Any] = [None] * nranks

    def run(rank: int) -> None:
        try:
            results[rank] = function(ThreadGroup(rank, nranks, barrier, board))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(nranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * _DEADLINE)
        assert not thread.is_alive()
    return results
