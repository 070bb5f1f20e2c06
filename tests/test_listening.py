"""What processes of a job on one host listen on, and what repeated starts leave behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import hetcomm
from hetcomm.testing import run_ranks
from hetcomm.vendors.registry import vendor as find

LISTENS = "0A"
QUIET_MPI = {"OMPI_MCA_btl": "^tcp", "HETCOMM_INLINE_BYTES": "0"}
Seen = tuple[list[str], list[str], list[tuple[int, int]]]


def listeners() -> list[str]:
    """The addresses on which sockets of this process wait for strangers: TCP's that listen, all of UDP."""
    own = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            own.add(os.readlink(f"/proc/self/fd/{name}").removeprefix("socket:[").removesuffix("]"))
    found = []
    for family in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/self/net", family)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            local, state = fields[1], fields[3]
            if fields[9] in own and (state == LISTENS or family.startswith("udp")):
                digits = local.partition(":")[0]
                words = np.frombuffer(bytes.fromhex(digits), ">u4").astype("=u4").tobytes()
                found.append(socket.inet_ntop(socket.AF_INET6 if len(words) > 4 else socket.AF_INET, words))
    return sorted(found)


def start_again(times: int) -> Seen:
    """What this rank listens on in a job and after it, and how many listeners and descriptors each start leaves."""
    inside: list[str] = []
    left = []
    for _ in range(times):
        with hetcomm.init() as comm:
            array = np.ones(1000)
            comm.all_reduce(array)
            assert np.all(array == comm.nranks)
            inside = listeners()
        left.append((len(listeners()), len(os.listdir("/proc/self/fd"))))
    return inside, listeners(), left


@pytest.mark.parametrize(
    ("vendor", "env", "expected"),
    [
        pytest.param("ucx", {}, set(), id="ucx"),
        pytest.param("mpi", {}, set(), id="mpi", marks=pytest.mark.slow),
        pytest.param("oneccl", {}, {"127.0.0.1"}, id="oneccl"),
        pytest.param("gloo", {}, {"127.0.0.1"}, id="gloo", marks=[pytest.mark.gloo, pytest.mark.slow]),
        pytest.param("ucx", {"UCX_NET_DEVICES": "lo"}, {"127.0.0.1"}, id="as the user says", marks=pytest.mark.slow),
    ],
)
def test_a_job_on_one_host_listens_to_no_other(vendor: str, env: Mapping[str, str], expected: set[str]) -> None:
    if not (state := find(vendor).availability()).usable:
        pytest.skip(f"{vendor}: {state.reason}")
    for inside, after, left in run_ranks(2, start_again, 4, vendors=[vendor] * 2, env={**QUIET_MPI, **env}, timeout=90):
        assert set(inside) == expected
        assert after == []
        assert left[1:] == left[1:2] * 3
