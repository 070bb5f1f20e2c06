"""What is unusable on one rank when a job begins is raised on all, by real ranks; and who is no rank of any job."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import hetcomm
from hetcomm.testing import run_ranks, this_rank
from hetcomm.types import Config

from .scripts import DEADLINE, python

PROMPT = 4.0  # seconds, on a busy machine; whoever is not told waits for TIMEOUT
TIMEOUT = 20.0


class Raising:
    def _raise(self, *_: object) -> Any:
        raise ZeroDivisionError("no business of a number's")

    __index__ = __float__ = __fspath__ = __repr__ = __len__ = __iter__ = _raise


class FailingWorker:
    @property
    def handle(self) -> int:
        raise RecursionError("deep")


def situations(folder: str) -> dict[str, tuple[Mapping[str, str], Mapping[str, Any], str]]:
    """What one rank has in its environment, and passes to init; and a part of what all ranks must read."""
    (Path(folder) / "bad.toml").write_bytes(b"\xff\xfe")
    return {
        "timeout": ({"HETCOMM_TIMEOUT": "abc"}, {}, "HETCOMM_TIMEOUT='abc'"),
        "negative": ({"HETCOMM_TIMEOUT": "-3"}, {}, "HETCOMM_TIMEOUT"),
        "inline bytes": ({"HETCOMM_INLINE_BYTES": "-1"}, {}, "HETCOMM_INLINE_BYTES"),
        "bootstrap": ({"HETCOMM_BOOTSTRAP": "smoke"}, {}, "smoke"),
        "vendor": ({"HETCOMM_VENDOR": "nonsense"}, {}, "nonsense"),
        "no topology": ({"HETCOMM_TOPOLOGY": f"{folder}/none.toml"}, {}, "none.toml"),
        "a folder": ({"HETCOMM_TOPOLOGY": folder}, {}, "cannot be read"),
        "no text": ({"HETCOMM_TOPOLOGY": f"{folder}/bad.toml"}, {}, "bad.toml"),
        "a name that is none": ({}, {"topology": "a\0b"}, "hetcomm.init failed on rank 1"),
        "argument timeout": ({}, {"timeout": -5}, "argument 'timeout' is -5"),
        "a timeout that raises": ({}, {"timeout": Raising()}, "argument 'timeout' is of type Raising"),
        "text": ({}, {"timeout": "60"}, "argument 'timeout' is '60'"),
        "config": ({}, {"config": {"timeout": 5}}, "argument 'config' is of type dict"),
        "bad config": ({}, {"config": Config(timeout=float("inf"))}, "Config.timeout"),
        "argument vendor": ({}, {"vendor": 3}, "vendor is 3"),
        "cluster": ({}, {"cluster": 0}, "cluster is 0"),
        "topology": ({}, {"topology": 3}, "argument 'topology' is of type int"),
        "a path that raises": ({}, {"topology": Raising()}, "ZeroDivisionError: no business"),
        "comm": ({}, {"comm": "world"}, "argument 'comm' is a str"),
        "worker": ({}, {"worker": FailingWorker()}, "hetcomm.init failed on rank 1"),
        "endpoints": ({}, {"endpoints": {0: 1}}, "endpoints"),
    }


def begin_wrongly(folder: str) -> list[str]:
    """Try all situations on rank 1, one after another; what was not as it should be."""
    wrong = []
    me, kept = this_rank(), dict(os.environ)
    for name, (environ, arguments, text) in situations(folder).items():
        mine = arguments if me.rank == 1 else {}
        if me.rank == 1:
            os.environ.update(environ)
        begun, error = time.monotonic(), None
        try:
            hetcomm.init(**mine)
        except Exception as caught:
            error = caught
        took = time.monotonic() - begun
        os.environ.clear()
        os.environ.update(kept)
        if not isinstance(error, hetcomm.HetcommError) or isinstance(error, hetcomm.CollectiveTimeoutError):
            wrong.append(f"{name}: {error!r}")
        elif text not in str(error) or (me.rank != 1 and "rank 1" not in str(error)):
            wrong.append(f"{name}: {error}")
        if took > PROMPT:
            wrong.append(f"{name}: took {took:.1f} s")
        me.all_gather(b"")
    with hetcomm.init() as comm:
        comm.barrier()
    return wrong


def test_what_is_unusable_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    env = {"HETCOMM_TIMEOUT": str(TIMEOUT)}
    found = run_ranks(3, begin_wrongly, str(tmp_path), vendors=["mpi", "mpi", "ucx"], env=env, timeout=DEADLINE)
    assert found == [[], [], []]


ALONE = """
import hetcomm
try:
    with hetcomm.init() as comm:
        print("a job of", comm.nranks)
except hetcomm.UsageError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "a job of 1"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "refused: [rank 1] torchrun started 2"),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "HETCOMM_BOOTSTRAP": "single"},
            "a job of 1",
        ),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, "a job of 1"),
    ],
    ids=["nothing", "torchrun", "torchrun and single", "a batch script"],
)
def test_a_process_that_has_others_is_no_job_of_one_rank(environ: dict[str, str], expected: str) -> None:
    done = python(ALONE, **environ)
    assert expected in done.stdout, done.stderr
