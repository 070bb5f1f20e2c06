"""What processes of a job on one host listen on, and what repeated starts leave behind."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import hetcomm
from hetcomm.testing import run_ranks
from hetcomm.vendors.registry import vendor as find

from .scripts import DEADLINE

LISTENS = "0A"
QUIET_MPI = {"OMPI_MCA_btl": "^tcp,ofi", "HETCOMM_INLINE_BYTES": "0"}
Address = tuple[str, int]
Seen = tuple[list[Address], list[Address], list[tuple[int, int]]]


def listeners() -> list[Address]:
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
                digits, _, port = local.partition(":")
                words = np.frombuffer(bytes.fromhex(digits), ">u4").astype("=u4").tobytes()
                address = socket.inet_ntop(socket.AF_INET6 if len(words) > 4 else socket.AF_INET, words)
                found.append((address, int(port, 16)))
    return sorted(found)


def start_again(times: int) -> Seen:
    """What this rank listens on in a job and after it, and how many listeners and descriptors each start leaves."""
    inside: list[Address] = []
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
    for inside, after, left in run_ranks(
        2, start_again, 4, vendors=[vendor] * 2, env={**QUIET_MPI, **env}, timeout=DEADLINE
    ):
        assert {address for address, _ in inside} == expected
        assert after == []
        assert left[1:] == left[1:2] * 3


STRANGERS = 340  # for each rank


def start_among_strangers() -> tuple[int, bool]:
    """How many strangers have come to this rank's ports meanwhile, and whether all sums were right."""
    over, came, kept = threading.Event(), 0, []
    said = [b"", b"\xff" * 64, b"\0", os.urandom(200), b"GET / HTTP/1.1\r\n\r\n"]

    def come() -> None:
        nonlocal came
        while not over.is_set() and came < STRANGERS:
            for address in listeners():
                with suppress(OSError):
                    stranger = socket.create_connection(address, timeout=1)
                    stranger.sendall(said[came % len(said)])
                    came += 1
                    if came % 3:
                        kept.append(stranger)
                    else:
                        stranger.close()
            over.wait(1e-4)

    strangers = threading.Thread(target=come)
    strangers.start()
    right = True
    with hetcomm.init() as comm:
        while True:
            array = np.full(1000, comm.rank + 1.0)
            comm.all_reduce(array)
            right &= bool(np.all(array == comm.nranks * (comm.nranks + 1) / 2))
            done = np.array([came >= STRANGERS], np.int64)
            comm.all_reduce(done, op="min")
            if done[0]:
                break
    over.set()
    strangers.join()
    for stranger in kept:
        stranger.close()
    return came, right


@pytest.mark.slow
def test_strangers_do_not_keep_a_job_from_starting_nor_change_what_it_computes() -> None:
    """Three ranks that talk over TCP, to whose ports some thousand connections come that say nothing, or nonsense."""
    env = {**QUIET_MPI, "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}
    for came, right in run_ranks(3, start_among_strangers, vendors=["ucx"] * 3, env=env, timeout=DEADLINE):
        assert came >= STRANGERS
        assert right
