"""Room for file descriptors: found, made, or refused by name."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

import hetcomm
from hetcomm.errors import TransportError
from hetcomm.testing import run_ranks, this_rank
from hetcomm.transport.descriptors import make_room

from ..scripts import PATIENCE, python


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    found = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield found
    resource.setrlimit(resource.RLIMIT_NOFILE, found)


def use_up(but: int) -> list[int]:
    """Lower the limit to what is open, and leave `but` descriptors."""
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        for number in taken[len(taken) - but :]:
            os.close(number)
        return taken[: len(taken) - but]


@pytest.mark.parametrize("but", [0, 1, 5])
def test_the_soft_limit_is_raised_by_what_is_lacking(but: int, limits: tuple[int, int]) -> None:
    taken = use_up(but)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        make_room(but, "testing")
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft, "that many are left"
        make_room(10, "testing")
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft + 10 - but, limits[1])
        more = [os.dup(0) for _ in range(10)]
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        for number in more:
            os.close(number)
    finally:
        for number in taken:
            os.close(number)


def test_the_hard_limit_is_an_error_that_says_what_is_needed() -> None:
    code = """
        import resource
        from hetcomm.errors import TransportError
        from hetcomm.transport.descriptors import make_room
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 30))
        make_room(12, "testing")
        try:
            make_room(500, "testing")
        except TransportError as error:
            print(error)
    """
    done = python(code)
    assert "testing needs 500 file descriptors" in done.stdout
    assert "30 at most" in done.stdout
    assert "ulimit -n" in done.stdout


def begin_with_few() -> list[str]:
    """Begin with ever more room on rank 1, then below a hard limit; what was wrong."""
    wrong = []
    with hetcomm.init() as comm:
        comm.barrier()
    me, kept = this_rank(), resource.getrlimit(resource.RLIMIT_NOFILE)
    for room in (0, 3, 9, 20):
        taken = use_up(room) if me.rank == 1 else []
        try:
            with hetcomm.init() as comm:
                comm.barrier()
        except hetcomm.HetcommError as error:
            wrong.append(f"room for {room}: {error}")
        for number in taken:
            os.close(number)
        me.all_gather(b"")
    if me.rank == 1:
        use_up(2)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
    try:
        hetcomm.init()
    except TransportError as error:
        if "file descriptors" not in str(error) or "failed on rank 1" not in str(error):
            wrong.append(str(error))
    else:
        wrong.append(f"there was no room below the hard limit, of {kept}")
    return wrong


def test_a_job_begins_with_few_descriptors_or_says_on_all_ranks_who_lacks_some() -> None:
    assert run_ranks(2, begin_with_few, vendors=["mpi", "ucx"], env=PATIENCE) == [[], []]
