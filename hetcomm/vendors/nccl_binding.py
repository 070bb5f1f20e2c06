"""The wrappers through which NCCL and RCCL are called.

That is CuPy's `cupy.cuda.nccl`, which the ROCm build of CuPy has over RCCL with the same names. Where a CuPy for CUDA
was built without NCCL, it is nccl4py's, if installed. Both take addresses and streams as integers and counts as
`size_t`, so no call needs cutting. What nccl4py has beyond CuPy's (its own premul_sum, registered buffers, shrink) is
not used: hetcomm composes premul_sum for all vendors alike.
"""

from __future__ import annotations

import array
import ctypes
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from hetcomm.errors import VendorError
from hetcomm.types import MemoryKind
from hetcomm.vendors.nccl_library import Flavour, loaded

__all__ = ["Binding", "Connection", "open_binding", "place"]

_SHARED_BY_UUID = 23007  # before this version NCCL tells GPUs apart by their place on the bus


class Connection(Protocol):
    """One communicator of the library. Everything raises the binding's `errors`."""

    def queue(self, name: str, *arguments: int) -> None:
        """Call `name`: all_reduce, reduce, broadcast, all_gather or reduce_scatter.

        The arguments are the library's own, in its order, without the communicator; the last one is the stream.
        """
        ...

    def check(self) -> None:
        """Raise what the library has noticed since, on its own threads."""
        ...

    def abort(self) -> None:
        """End what is under way; may block."""
        ...

    def destroy(self) -> None:
        """Finalise and release it; waits for what is under way on all ranks."""
        ...


class Binding(Protocol):
    """A wrapper of the library, loaded."""

    errors: tuple[type[Exception], ...]

    def version(self) -> int:
        """The library's version, as 10000 major + 100 minor + patch."""
        ...

    def unique_id(self) -> bytes:
        """What the ranks of a new communicator meet by; the caller must be one of them."""
        ...

    def connect(self, nranks: int, unique_id: bytes, rank: int) -> Connection:
        """A communicator on the thread's current device; collective, blocks until all ranks have called."""
        ...

    def explain(self, error: Exception) -> str:
        """What an error says, and the last warning that the library has written, which mostly is about it."""
        ...


def open_binding(flavour: Flavour) -> Binding:
    """The library behind its wrapper, loaded.

    Raises:
        VendorError: It cannot be loaded; the remedy says what to do.
    """
    for name, value in flavour.settings:
        os.environ.setdefault(name, value)
    try:
        import cupy
        from cupy.cuda import nccl
    except ImportError as error:
        raise VendorError(f"CuPy could not be imported: {error}", remedy=flavour.install) from error
    if nccl.available:
        return _Cupy(flavour, nccl, returns_tuples=int(cupy.__version__.split(".")[0]) < 14)
    if flavour.memory is MemoryKind.CUDA and find_spec("nccl") is not None:
        try:
            from nccl.bindings import nccl as nccl4py
        except ImportError as error:
            raise VendorError(f"nccl4py could not be imported: {error}", remedy=flavour.install) from error
        return _Nccl4py(flavour, nccl4py)
    raise VendorError(
        f"CuPy {cupy.__version__} cannot load {flavour.title}",
        remedy=f"Look at 'python -c \"import cupy.cuda.nccl\"'; or: {flavour.install}",
    )


def place(version: int) -> str:
    """What is equal for two ranks exactly if the library would say that they share the current GPU.

    Raises:
        VendorError: The GPU does not say which one it is.
    """
    from cupy.cuda import runtime

    try:
        device = runtime.getDevice()
        gpu = runtime.deviceGetPCIBusId(device)
        if version >= _SHARED_BY_UUID:
            gpu = runtime.getDeviceProperties(device).get("uuid", gpu)
    except runtime.CUDARuntimeError as error:
        raise VendorError(f"the GPU does not say which one it is: {error}") from error
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    host = socket.gethostname() + (boot_id.read_text().strip() if boot_id.exists() else "")
    return f"{host} {gpu.hex() if isinstance(gpu, bytes) else gpu}"


def _last_word(flavour: Flavour) -> str:
    """What the loaded library says of its last failure; '' for nothing, or if it is older than 2.13."""
    path = next(loaded(flavour), None)
    function = getattr(ctypes.CDLL(path), "ncclGetLastError", None) if path is not None else None
    if function is None:
        return ""
    function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_char_p
    return (function(None) or b"").decode(errors="replace").strip()


def _explain(flavour: Flavour, error: Exception) -> str:
    # CuPy looks up the name of a result in a table that ends before the newest ones.
    said = f"result {error.args[0]} of the library" if isinstance(error, KeyError) else str(error)
    word = _last_word(flavour)
    return f"{said} (the library's last warning: {word})" if word else said


class _Cupy:
    """CuPy's wrapper. Its unique ids were tuples of signed bytes before version 14."""

    def __init__(self, flavour: Flavour, module: Any, *, returns_tuples: bool) -> None:
        self.errors: tuple[type[Exception], ...] = (module.NcclError, KeyError)
        self._flavour = flavour
        self._module = module
        self._tuples = returns_tuples

    def version(self) -> int:
        found: int = self._module.get_version()
        return found

    def unique_id(self) -> bytes:
        made = self._module.get_unique_id()
        return array.array("b", made).tobytes() if self._tuples else bytes(made)

    def connect(self, nranks: int, unique_id: bytes, rank: int) -> Connection:
        theirs = tuple(array.array("b", unique_id)) if self._tuples else unique_id
        return _CupyConnection(self._module.NcclCommunicator(nranks, theirs, rank))

    def explain(self, error: Exception) -> str:
        return _explain(self._flavour, error)


class _CupyConnection:
    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self._calls = {
            "all_reduce": communicator.allReduce,
            "reduce": communicator.reduce,
            "broadcast": communicator.broadcast,
            "all_gather": communicator.allGather,
            "reduce_scatter": communicator.reduceScatter,
        }

    def queue(self, name: str, *arguments: int) -> None:
        self._calls[name](*arguments)

    def check(self) -> None:
        self._communicator.check_async_error()

    def abort(self) -> None:
        self._communicator.abort()

    def destroy(self) -> None:
        self._communicator.destroy()


class _Nccl4py:
    """nccl4py's generated bindings, whose functions have the names of C in snake case."""

    def __init__(self, flavour: Flavour, module: Any) -> None:
        self.errors: tuple[type[Exception], ...] = (module.NCCLError,)
        self._flavour = flavour
        self._module = module

    def version(self) -> int:
        found: int = self._module.get_version()
        return found

    def unique_id(self) -> bytes:
        return ctypes.string_at(self._module.get_unique_id().ptr, 128)

    def connect(self, nranks: int, unique_id: bytes, rank: int) -> Connection:
        theirs = self._module.UniqueId.from_buffer(bytearray(unique_id))
        return _Nccl4pyConnection(self._module, self._module.comm_init_rank(nranks, theirs, rank))

    def explain(self, error: Exception) -> str:
        return _explain(self._flavour, error)


class _Nccl4pyConnection:
    def __init__(self, module: Any, communicator: Any) -> None:
        self._module = module
        self._communicator = communicator

    def queue(self, name: str, *arguments: int) -> None:
        *first, stream = arguments
        getattr(self._module, name)(*first, self._communicator, stream)

    def check(self) -> None:
        self._module.check_status(self._module.comm_get_async_error(self._communicator))

    def abort(self) -> None:
        self._module.comm_abort(self._communicator)

    def destroy(self) -> None:
        self._module.comm_destroy(self._communicator)
