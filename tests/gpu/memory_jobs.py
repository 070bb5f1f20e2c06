"""What the ranks of the memory tests run; every function is a target of a job."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm._conformance.reference import numpy_dtype

from .arrays import OnlyDlpack, OnlyInterface, fetch, put
from .stream_jobs import total


def array_kinds() -> dict[str, list[float]]:
    """An all_gather and an all_reduce of each kind of device array; what this rank has got."""
    import cupy
    import torch

    found = {}
    with hetcomm.init() as comm:

        def mine() -> Any:
            return cupy.full(1000, comm.rank + 1, cupy.float32)

        kinds: dict[str, Callable[[Any], Any]] = {
            "CuPy": lambda array: array,
            "PyTorch": lambda array: torch.from_dlpack(array),
            "interface": OnlyInterface,
            "DLPack": OnlyDlpack,
        }
        for name, wrap in kinds.items():
            array, gathered = mine(), cupy.zeros((comm.nranks, 1000), cupy.float32)
            cupy.cuda.get_current_stream().synchronize()  # the libraries' streams are not the same one
            comm.all_gather(wrap(array), wrap(gathered))
            comm.all_reduce(wrap(array))
            cupy.cuda.Device().synchronize()
            torch.cuda.synchronize()
            found[name] = [float(array.min()), float(array.max()), *gathered[:, 500].get().tolist()]
    return found


def shapes_and_refusals() -> list[str]:
    """Views, matrices, scalars and empty arrays work; what cannot be used is refused by name on every rank."""
    import cupy

    wrong = []
    with hetcomm.init() as comm:
        whole = cupy.arange(60, dtype=cupy.int64).reshape(3, 4, 5)
        comm.all_reduce(whole[1])  # a contiguous part in the middle
        twice = np.arange(60).reshape(3, 4, 5)
        twice[1] *= comm.nranks
        if not np.array_equal(fetch(whole), twice):
            wrong.append("a view in the middle of an array")
        scalar, nothing = cupy.array(comm.rank + 1.0), cupy.empty(0)
        comm.all_reduce(scalar)
        comm.all_reduce(nothing)
        if float(fetch(scalar)) != total(comm, 1):
            wrong.append(f"a 0-d array: {fetch(scalar)}")
        for what, array in {"not C-contiguous": whole[:, :, 1], "dtype": cupy.ones(4, bool)}.items():
            with pytest.raises(hetcomm.UsageError, match=what):
                comm.all_reduce(array)
        comm.all_reduce(scalar)  # it is still usable
        if float(fetch(scalar)) != comm.nranks * total(comm, 1):
            wrong.append(f"after refusals: {fetch(scalar)}")
    return wrong


def pool_reuse(rounds: int) -> list[str]:
    """Memory goes back to the driver and comes again, at other sizes and often at the same address."""
    import cupy

    wrong, addresses = [], set()
    pool = cupy.get_default_memory_pool()
    with hetcomm.init() as comm:
        for turn in range(rounds):
            size = (1 << 20) * (1 + turn % 3)
            array = cupy.full(size, turn + comm.rank, cupy.float32)
            addresses.add(array.data.ptr)
            comm.all_reduce(array)
            due = total(comm, turn)
            got = fetch(array)
            if not (got == due).all():
                wrong.append(f"turn {turn}: {got[:3]} instead of {due}")
            del array
            pool.free_all_blocks()
        array = cupy.full(1 << 20, comm.rank, cupy.float32)
        comm.all_reduce(array, async_op=True)
        del array  # freed while it is under way; hetcomm keeps it
        pool.free_all_blocks()
        comm.barrier()
    return wrong


def asynchronous_pool(rounds: int) -> list[str]:
    """Arrays of CUDA's stream-ordered allocator, whose memory no other process can map as it is."""
    import cupy

    wrong = []
    cupy.cuda.set_allocator(cupy.cuda.MemoryAsyncPool().malloc)
    try:
        with hetcomm.init() as comm, cupy.cuda.Stream(non_blocking=True) as stream:
            for turn in range(rounds):
                array = cupy.full((1 << 18) * (1 + turn % 3), turn + comm.rank, cupy.float32)
                comm.all_reduce(array)
                seen = array.copy()
                stream.synchronize()
                due = total(comm, turn)
                if not bool((seen == due).all()):
                    wrong.append(f"turn {turn}: {seen[:3]} instead of {due}")
                del array, seen
    finally:
        cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)
    return wrong


def lanes() -> tuple[str, list[str], float]:
    """The lanes to the other ranks, what was warned of or logged meanwhile, and a sum that shows that they work."""
    import cupy

    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                said.append(record.getMessage())

    with contextlib.ExitStack() as stack:
        heard = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        logging.getLogger("hetcomm").addHandler(Listener())
        with hetcomm.init() as comm:
            array = cupy.full(1 << 20, comm.rank + 1, cupy.float32)
            comm.all_reduce(array)
            comm.all_reduce(array)  # what is to be said is said once
            value = float(fetch(array)[0])
            transport: Any = comm._parts.job.transport
            names = transport.lanes()
    return names, said + [str(each.message) for each in heard], value


def there_and_back() -> list[str]:
    """Bits through `put` and `fetch` for each dtype; those that did not come back."""
    wrong = []
    for dtype in hetcomm.DataType:
        array = np.arange(24, dtype=np.uint8).repeat(16).view(numpy_dtype(dtype))
        if fetch(put(array)).tobytes() != array.tobytes():
            wrong.append(dtype.value)
    return wrong
