"""Every collective, dtype and op on device arrays in one start of a job: what its ranks run."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import hetcomm
from hetcomm.testing import reference, this_rank
from hetcomm.types import ReduceKind

from ..runtime.invoke import equal, inputs_of, invocation
from ..test_mixed_vendors import as_passed, cases
from .arrays import Placed, fetch, put


def run_matrix(devices: Sequence[bool], seconds: float | None = None) -> tuple[int, list[str], dict[str, str]]:
    """All cases on one communicator: how many, what was wrong, and a digest of each result that all ranks share.

    Args:
        devices: Which ranks have their arrays on the device.
        seconds: After which no more cases are begun.
    """
    wrong: list[str] = []
    digests: dict[str, str] = {}
    done = 0
    with hetcomm.init() as comm:
        everything = list(enumerate(cases(comm.nranks)))
        random.Random(4).shuffle(everything)  # so that a run that is cut off has seen something of all
        factors = [rank % 2 + 1 for rank in range(comm.nranks)]
        begin = time.monotonic()
        for turn, collective in everything:
            if seconds is not None and done % 8 == 0 and over(begin + seconds):
                break
            inputs = inputs_of(collective, turn, nans=True)
            premul = collective.op is ReduceKind.PREMUL_SUM
            expected = reference(collective, inputs, factors if premul else None)[comm.rank]
            passed = as_passed(collective, comm.rank, (turn + comm.rank) % 4)
            mine = invocation(passed, comm.rank, inputs[comm.rank], factors[comm.rank])
            if devices[comm.rank]:
                placed = Placed.of(mine)
                getattr(comm, mine.name)(*placed.args)
                placed.fetch()
            else:
                getattr(comm, mine.name)(*mine.args)
            done += 1
            got, damage = mine.output(), mine.damage()
            if not equal(got, expected):
                wrong.append(f"{turn}: {passed}: {got} instead of {expected}")
            if damage is not None:
                wrong.append(f"{turn}: {passed}: {damage}")
            if collective.kind.is_same_everywhere and got is not None:
                digests[f"{turn}: {collective}"] = hashlib.sha256(got.tobytes()).hexdigest()
        digests |= random_sums(comm, devices[comm.rank])
    return done, wrong, digests


def over(end: float) -> bool:
    """Whether any rank's clock is past `end`; the same on all ranks."""
    late = time.monotonic() > end
    return b"late" in this_rank().all_gather(b"late" if late else b"")


def random_sums(comm: hetcomm.Communicator, device: bool) -> dict[str, str]:
    """Averages whose bits depend on the order of additions, which must be one order on all ranks."""
    found = {}
    for dtype in ("f2", "f4", "f8", "c8"):
        for count in (7, 10007, 3_000_001):
            array: Any = np.random.default_rng(comm.rank).standard_normal(count).astype(dtype)
            if device:
                there = put(array)
                comm.all_reduce(there, op="avg")
                array = fetch(there)
            else:
                comm.all_reduce(array, op="avg")
            found[f"random {dtype} {count}"] = hashlib.sha256(array.tobytes()).hexdigest()
    return found


def run_watched(devices: Sequence[bool], seconds: float) -> tuple[bool, int, list[str], dict[str, str]]:
    """The matrix, after looking whether compute-sanitizer is in this process."""
    with open("/proc/self/maps") as maps:
        watched = any("sanitizer" in line for line in maps)
    return watched, *run_matrix(devices, seconds)
