"""Forked children of a rank: a communicator of their parent's refuses them, and their exit touches nothing of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hetcomm
from hetcomm.communicator import Communicator
from hetcomm.testing import run_ranks

from .scripts import DEADLINE, PATIENCE, outside, run

ENV = PATIENCE


def in_child(function: Callable[[], Any]) -> Any:
    """What a function returns in a forked child that ends by `os._exit`."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said: Any = "it ended with an error"
        try:
            said = function()
        finally:
            os.write(write, json.dumps(said).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def works(comm: Communicator) -> bool:
    array = np.full(20_000, comm.rank + 1.0)
    comm.all_reduce(array)
    return bool((array == comm.nranks * (comm.nranks + 1) / 2).all())


def refusals() -> tuple[dict[str, str], list[int]]:
    """Use everything of a communicator in a child; what was not refused as it should be, and what its parent thinks."""
    comm = hetcomm.init()
    part = comm.split(0)
    assert part is not None
    token = np.ones(8)
    for _ in range(3):
        comm.all_reduce(token)
        comm.barrier()  # known from now on
    idle, request = comm.all_reduce_init(token), comm.all_reduce_init(token.copy())
    request.start()
    work = comm.all_reduce(np.ones(8), async_op=True)
    message = comm.recv(np.ones(1), comm.rank, async_op=True)
    block = comm.group()
    parent = os.getpid()

    def with_block() -> None:
        with comm:
            pass

    def grouped() -> None:
        with block:
            comm.barrier()

    uses: dict[str, Callable[[], object]] = {
        "known": lambda: comm.all_reduce(token),
        "barrier": comm.barrier,
        "new": lambda: comm.broadcast(np.ones(3)),
        "vector": lambda: comm.all_to_all_v(np.ones(4), np.ones(4), [1] * 4, [1] * 4),
        "split": lambda: comm.split(0),
        "part": lambda: part.all_reduce(token),
        "send": lambda: comm.send(token, (comm.rank + 1) % comm.nranks),
        "recv": lambda: comm.recv(token, 0, timeout=1, async_op=True),
        "send_recv": lambda: comm.send_recv(token, token.copy(), 0),
        "make a request": lambda: comm.barrier_init(),
        "start": idle.start,
        "wait for a request": request.wait,
        "ask a request": request.done,
        "close a request": request.close,
        "wait": work.wait,
        "ask": work.done,
        "synchronize": work.synchronize,
        "wait for a message": message.wait,
        "group": grouped,
        "trace": lambda: comm.trace().__enter__(),
        "explain": lambda: comm.explain("all_reduce", token),
        "close": comm.close,
        "close the part": part.close,
        "leave the block": with_block,
    }

    def child() -> dict[str, str]:
        wrong = {}
        for name, use in uses.items():
            try:
                use()
            except hetcomm.UsageError as error:
                if (
                    str(parent) not in str(error)
                    or str(os.getpid()) not in str(error)
                    or "after the fork" not in str(error)
                ):
                    wrong[name] = str(error)
            except BaseException as error:
                wrong[name] = repr(error)
            else:
                wrong[name] = "nothing was raised"
        repr(comm), comm.rank, comm.nranks, comm.topology, comm.statistics()
        return wrong

    wrong = in_child(child)
    comm.send(np.full(1, 7.0), comm.rank, async_op=True)
    message.wait()
    request.wait()
    work.wait()
    good = [int(works(comm)), int(works(part))]
    idle.start()
    idle.wait()
    comm.close()
    return wrong, good


@pytest.mark.parametrize(
    "vendors",
    [
        pytest.param(["mpi", "mpi", "oneccl", "oneccl"], id="mpi+mpi+oneccl+oneccl"),
        pytest.param(["gloo", "gloo", "ucx"], id="gloo+gloo+ucx", marks=[pytest.mark.slow, pytest.mark.gloo]),
    ],
)
def test_a_child_has_no_communicator(vendors: list[str]) -> None:
    nranks = len(vendors)
    assert run_ranks(nranks, refusals, vendors=vendors, env=ENV, timeout=DEADLINE) == [({}, [1, 1])] * nranks


EXITS = """
import faulthandler, os, sys
from multiprocessing import get_context
import numpy as np
import hetcomm

faulthandler.enable(open(os.dup(2), "w"))  # what a hang shows, with standard error elsewhere, too
comm = hetcomm.init()
part = comm.split(0)
request = comm.all_reduce_init(np.ones(5))

def works():
    for each in (comm, part):
        array = np.full(20_000, comm.rank + 1.0)
        each.all_reduce(array)
        assert (array == comm.nranks * (comm.nranks + 1) / 2).all(), array
    request.start()
    request.wait()

def leave(how):
    global comm, part, request
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(3)
    if how == "an exception":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        raise RuntimeError("of the child")
    if how == "collected":
        import gc
        comm = part = request = None
        gc.collect()
        sys.exit(3)
    if how == "a block":
        with comm, request:
            sys.exit(3)

works()
for how in ("sys.exit", "os._exit", "an exception", "collected", "a block"):
    pid = os.fork()
    if pid == 0:
        leave(how)
    print("rank", comm.rank, "waits for", how, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (1 if how == "an exception" else 3), (how, status)
    works()
print("rank", comm.rank, "opens a pool", flush=True)
with get_context("fork").Pool(1) as pool:
    assert pool.map(abs, [-1, 2]) == [1, 2]
works()
print("rank", comm.rank, "starts a process", flush=True)
child = get_context("fork").Process(target=works)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
child.start()
child.join()
assert child.exitcode == 1
works()
comm.close()
print("rank", comm.rank, "went well")
"""


@pytest.mark.parametrize(
    "vendors",
    [
        pytest.param(("mpi", "oneccl"), id="mpi+oneccl"),
        pytest.param(("gloo", "ucx"), id="gloo+ucx", marks=[pytest.mark.slow, pytest.mark.gloo]),
    ],
)
def test_the_exit_of_a_child_touches_nothing(vendors: tuple[str, str], tmp_path: Path) -> None:
    """By scripts, since only these exit as scripts do."""
    from hetcomm._ranks.launch import mpi_command

    script = tmp_path / "exits.py"
    script.write_text(EXITS)
    path = {"PYTHONPATH": outside()["PYTHONPATH"]}
    ranks = [({"HETCOMM_VENDOR": vendor, **ENV, **path}, [sys.executable, str(script)]) for vendor in vendors * 2]
    done = run(mpi_command(ranks))
    assert done.stdout.count("went well") == 4


def begin_again() -> list[object]:
    """What `hetcomm.init` does in children of a rank: forked, and started afresh with the launcher's variables."""
    comm = hetcomm.init()

    def refused() -> str:
        try:
            hetcomm.init()
        except hetcomm.UsageError as error:
            return str(error)
        return "nothing was raised"

    def alone() -> list[float]:
        with hetcomm.init(config=hetcomm.Config(bootstrap="single", vendor="ucx")) as own:
            array = np.full(3, 5.0)
            own.all_reduce(array)
            part = own.split(0)
            part.all_reduce(array)
            work = own.send(array, 0, async_op=True)
            own.recv(array, 0, async_op=True).wait()
            work.wait()
            return [own.nranks, *array]

    texts = [in_child(refused)]
    fresh = "import hetcomm\ntry:\n    hetcomm.init()\nexcept hetcomm.UsageError as error:\n    print(error)"
    texts.append(run([sys.executable, "-c", fresh]).stdout)
    found = in_child(alone)
    good = works(comm)
    comm.close()
    pid = str(os.getpid())
    return [all(pid in text and "HETCOMM_BOOTSTRAP=single" in text for text in texts) or texts, found, good]


def test_a_child_may_be_a_job_of_its_own() -> None:
    assert (
        run_ranks(2, begin_again, vendors=["mpi", "ucx"], env=ENV, timeout=DEADLINE)
        == [[True, [1, 5.0, 5.0, 5.0], True]] * 2
    )
