"""What the ranks of the stream tests run; every function that is no helper is a target of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import hetcomm

from .arrays import fetch, settle

BUSY = 0.02  # seconds of work on a stream: long enough that nothing behind it has run when a call returns


def spinner() -> Callable[..., None]:
    """Keeps CuPy's current stream busy for so many seconds."""
    from benchmarks.gpu.spin import Spinner

    return Spinner()


def total(comm: hetcomm.Communicator, base: int) -> int:
    """The sum of rank + base over all ranks."""
    return sum(rank + base for rank in range(comm.nranks))


def cupy_streams() -> Iterator[tuple[str, Any]]:
    """Streams of CuPy, of every kind; each is to be made current."""
    import cupy

    yield "non-blocking", cupy.cuda.Stream(non_blocking=True)
    yield "blocking", cupy.cuda.Stream()
    yield "legacy default", cupy.cuda.Stream.null
    yield "per-thread default", cupy.cuda.Stream.ptds


def late_input_early_output(sizes: tuple[int, ...]) -> list[str]:
    """The input is written late on the user's stream, the result read right behind the call, and nobody waits."""
    import cupy

    wrong = []
    with hetcomm.init() as comm:
        spin = spinner()
        for name, stream in cupy_streams():
            with stream:
                for size in sizes:
                    array, seen = cupy.full(size, -1, cupy.float64), cupy.empty(size, cupy.float64)
                    for turn in range(3):
                        spin(BUSY)
                        array.fill(turn + comm.rank)
                        comm.all_reduce(array)
                        cupy.copyto(seen, array)
                        array.fill(-7)  # what comes after the call must not reach it either
                        due = total(comm, turn)
                        stream.synchronize()
                        if not bool((seen == due).all()):
                            wrong.append(f"{name}, {size} elements, turn {turn}: {seen[:3]} instead of {due}")
    return wrong


def every_call_in_stream_order() -> list[str]:
    """A chain of unlike calls, each on the result of the one before, in one go behind a busy stream."""
    import cupy

    with hetcomm.init() as comm, cupy.cuda.Stream(non_blocking=True) as stream:
        n, rank = comm.nranks, comm.rank
        right, left = (rank + 1) % n, (rank - 1) % n
        spin = spinner()
        array, blocks = cupy.zeros(30_000, cupy.int64), cupy.zeros((n, 30_000), cupy.int64)
        part, moved = cupy.zeros(30_000, cupy.int64), cupy.zeros(30_000, cupy.int64)
        wrong = []
        blocks += 1  # loads the code of what comes behind the calls
        settle()
        for turn in range(4):
            spin(BUSY)
            array.fill(rank + turn)
            comm.all_gather(array, blocks)  # row r holds r + turn
            blocks += 1
            comm.reduce_scatter(blocks, part)  # n * (rank + turn + 1)
            comm.send_recv(part, moved, right, left)
            comm.broadcast(moved, turn % n)
            comm.all_reduce(moved)
            got = moved.copy()
            stream.synchronize()
            due = n * n * ((turn % n - 1) % n + turn + 1)
            if not bool((got == due).all()):
                wrong.append(f"turn {turn}: {got[:3]} instead of {due}")
    return wrong


def streams_by_argument() -> list[str]:
    """`stream=` as an object of CuPy, of PyTorch, by `__cuda_stream__` and as an integer, with another one current."""
    import cupy
    import torch

    class Protocol:
        def __init__(self, handle: int) -> None:
            self._handle = handle

        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, self._handle

    wrong = []
    with hetcomm.init() as comm:
        spin = spinner()
        ours = cupy.cuda.Stream(non_blocking=True)
        theirs = torch.cuda.Stream()
        forms = {"CuPy": ours, "int": ours.ptr, "protocol": Protocol(ours.ptr), "PyTorch": theirs}
        for name, form in forms.items():
            stream = cupy.cuda.ExternalStream(theirs.cuda_stream) if name == "PyTorch" else ours
            with stream:
                array = cupy.full(100_000, -1.0)
                spin(BUSY)
                array.fill(comm.rank)
            comm.all_reduce(array, stream=form)
            with stream:
                seen = array.copy()
            stream.synchronize()
            if not bool((seen == total(comm, 0)).all()):
                wrong.append(f"{name}: {seen[:3]}")
    return wrong


def torch_streams() -> list[str]:
    """Tensors are worked on in PyTorch's current stream."""
    import torch

    wrong = []
    with hetcomm.init() as comm:
        for name, stream in {"default": torch.cuda.default_stream(), "side": torch.cuda.Stream()}.items():
            with torch.cuda.stream(stream):
                for dtype in (torch.float32, torch.bfloat16, torch.int32):
                    tensor = torch.full((200_000,), -1, dtype=dtype, device="cuda")
                    torch.cuda._sleep(20_000_000)  # ticks: some milliseconds
                    tensor.fill_(comm.rank + 1)
                    comm.all_reduce(tensor, op="max")
                    seen = tensor.clone()
                    stream.synchronize()
                    if not bool((seen == comm.nranks).all()):
                        wrong.append(f"{name} stream, {dtype}: {seen[:3]}")
    return wrong


def works() -> list[str]:
    """Works on device arrays: `wait` orders streams, `synchronize` blocks, `done` tells; several are under way."""
    import cupy

    wrong = []
    with hetcomm.init() as comm, cupy.cuda.Stream(non_blocking=True) as stream:
        spin = spinner()
        arrays = [cupy.full(50_000 * (1 + k % 3), -1.0) for k in range(9)]
        host = np.full(1000, comm.rank, np.float64)
        arrays[0] + 0  # loads the code of what comes behind the calls
        settle()
        spin(BUSY)
        for number, array in enumerate(arrays):
            array.fill(number + comm.rank)
        started = [comm.all_reduce(array, async_op=True) for array in arrays]
        comm.all_reduce(host)  # on the host, while the works are under way
        if not (host == total(comm, 0)).all():
            wrong.append(f"host array between works: {host[:3]}")
        other = cupy.cuda.Stream(non_blocking=True)
        for number in sorted(range(len(arrays)), key=lambda k: (k * 5 + comm.rank) % 9):
            work = started[number]
            assert work is not None
            due = total(comm, number)
            if number % 3 == 0:
                work.synchronize()
                if not work.done() or work.exception() is not None:
                    wrong.append(f"{work} after synchronize")
                seen = arrays[number]
            elif number % 3 == 1:
                work.wait()  # the current stream waits, so does what is queued on it
                seen = arrays[number] + 0
            else:
                with other:  # and so does another one that is current
                    work.wait()
                    seen = arrays[number] + 0
                other.synchronize()
            if not bool((seen == due).all()):
                wrong.append(f"work {number}: {seen[:3]} instead of {due}")
        stream.synchronize()
        dropped = cupy.ones(1 << 20)
        comm.all_reduce(dropped, async_op=True)
        del dropped
    return wrong


def mixed_libraries() -> list[str]:
    """Host and device arrays take turns on one communicator and on a part of it, and in one group."""
    import cupy

    wrong = []
    with hetcomm.init() as comm:
        part = comm.split(0, comm.nranks - comm.rank)
        assert part is not None
        right, left = (comm.rank + 1) % comm.nranks, (comm.rank - 1) % comm.nranks
        for turn in range(5):
            near, far = np.full(5000, comm.rank + turn), cupy.full(5000, comm.rank + turn)
            comm.all_reduce(near)
            part.all_reduce(far)
            came, here = cupy.zeros(5000, far.dtype), np.zeros(5000, near.dtype)
            with comm.group():
                comm.send(far, right, tag=1)
                comm.send(near, right, tag=2)
                comm.recv(here, left, tag=2)
                comm.recv(came, left, tag=1)
            due = total(comm, turn)
            for name, got in {"near": near, "far": fetch(far), "came": fetch(came), "here": here}.items():
                if not (got == due).all():
                    wrong.append(f"turn {turn}, {name}: {got[:3]} instead of {due}")
    return wrong


def captured() -> list[str]:
    """A call on a stream that is being captured is refused by name, on all ranks, and harms nothing."""
    import cupy
    import torch

    wrong = []
    with hetcomm.init() as comm:
        array = cupy.full(1000, comm.rank, cupy.float32)
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with stream:
            stream.begin_capture()
            try:
                with pytest.raises(hetcomm.UsageError, match="captured into a graph"):
                    comm.all_reduce(array)
            finally:
                stream.end_capture()
        tensor = torch.ones(1000, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            tensor.add_(1)
            with pytest.raises(hetcomm.UsageError, match="captured into a graph"):
                comm.all_reduce(tensor)
        comm.all_reduce(array)
        if not (fetch(array) == total(comm, 0)).all():
            wrong.append(f"after the capture: {fetch(array)[:3]}")
    return wrong


def to_the_host_right_behind(size: int) -> list[str]:
    """The result is copied to the host by the very next call, which blocks while messages are still to be moved."""
    import cupy

    wrong = []
    with hetcomm.init() as comm, cupy.cuda.Stream(non_blocking=True):
        spin = spinner()
        array = cupy.zeros(size)
        for turn in range(5):
            spin(BUSY)
            array.fill(comm.rank + turn)
            comm.all_reduce(array)
            got = array.get()
            if not (got == total(comm, turn)).all():
                wrong.append(f"turn {turn}: {got[:3]} instead of {total(comm, turn)}")
    return wrong


def code_loaded_right_behind(size: int) -> list[str]:
    """A kernel that was never used before is compiled, loaded and queued right behind a call."""
    import cupy

    wrong = []
    with hetcomm.init() as comm, cupy.cuda.Stream(non_blocking=True) as stream:
        spin = spinner()
        array = cupy.zeros(size)
        for turn in range(5):
            spin(BUSY)
            array.fill(comm.rank + turn)
            comm.all_reduce(array)
            new = cupy.ElementwiseKernel("float64 x", "float64 y", f"y = x + {turn}", f"never_used_{turn}")
            seen = new(array)
            stream.synchronize()
            due = total(comm, turn) + turn
            if not (fetch(seen) == due).all():
                wrong.append(f"turn {turn}: {fetch(seen)[:3]} instead of {due}")
    return wrong
