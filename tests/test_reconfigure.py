"""New processes take the seats of ranks that are killed: `Communicator.reconfigure` and `hetcomm run --restarts`."""

from __future__ import annotations

import pytest

import hetcomm

from .test_run import BARE, run
from .vendors.needs import require_all

STEPS = """
import os, signal, sys
import numpy as np
import hetcomm
from hetcomm import elastic

deaths = {tuple(map(int, each.split(":"))) for each in sys.argv[1].split(",")}  # rank, life, step
life = int(os.environ["HETCOMM_LIFE"])
with hetcomm.init() as comm:
    me = comm.rank
    state = elastic.State(step=0, total=np.zeros(20_000))

    def work(comm):
        while state.step < 12:
            array = np.full(20_000, 1.0 / comm.nranks)
            comm.all_reduce(array)
            state.total += array
            state.step += 1
            state.commit()
            if (me, life, state.step) in deaths:
                os.kill(os.getpid(), signal.SIGKILL)
        ids = np.empty(comm.nranks, np.int64)
        comm.all_gather(np.array([10 * me + life]), ids)
        return ids.tolist()

    ids = elastic.run(work, comm, state, replace=True)
    print(ids, round(state.total.sum() / 20_000, 6), flush=True)
"""


@pytest.mark.parametrize(
    ("vendors", "deaths"),
    [
        ("ucx", "1:0:4"),
        ("ucx", "0:0:3,2:0:3,0:1:6"),
        pytest.param("gloo", "1:0:4", marks=[pytest.mark.gloo, pytest.mark.slow]),
        pytest.param("ucx gloo", "0:0:4,1:0:7", marks=[pytest.mark.gloo, pytest.mark.slow]),
    ],
)
def test_new_processes_take_the_seats_of_the_dead(vendors: str, deaths: str) -> None:
    first, *rest = vendors.split()
    require_all((first, *rest))
    other = [":", "-n", "2", "--vendor", rest[0]] if rest else []
    nranks, lives = 3 + 2 * len(rest), [0] * (3 + 2 * len(rest))
    for death in deaths.split(","):
        lives[int(death[0])] += 1
    program = ["--", *("python", "-c", STEPS), deaths]
    done = run("--restarts", str(sum(lives)), "-n", "3", "--vendor", first, *other, *program)
    assert done.status == 0, done
    ids = [10 * rank + life for rank, life in enumerate(lives)]
    assert sorted(done.out) == [f"[{rank}] {ids} 12.0" for rank in range(nranks)], done
    assert sum("it is started again" in line for line in done.err) == sum(lives), done


def test_where_nobody_comes_the_others_shrink() -> None:
    done = run("--restarts", "1", "-n", "3", "--vendor", "ucx", "--", "python", "-c", STEPS, "1:0:4,1:1:7")
    assert done.status == 128 + 9, done
    assert sorted(done.out) == ["[0] [0, 20] 12.0", "[2] [0, 20] 12.0"], done


def test_a_seat_of_a_shrunk_job_can_be_taken() -> None:
    program = """
import os, signal
import numpy as np
import hetcomm

comm = hetcomm.init()
me, life = comm.rank, int(os.environ["HETCOMM_LIFE"])
if not life:
    part = comm.split(0)
    for _ in range(3):
        part.all_reduce(np.ones(10))
    if me == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            comm.all_reduce(np.ones(10))
    except hetcomm.PeerFailureError:
        small = comm.shrink()
    total = np.array([me + 1.0])
    small.all_reduce(total)
    assert total == 5 and small.nranks == 2, total
    comm = small.reconfigure()
    assert small.closed and part.closed
total = np.full(1000, me + 1.0)
comm.all_reduce(total)
assert (total == 6).all() and comm.rank == me, total
comm.close()
print("well", life)
"""
    done = run("--restarts", "1", "-n", "3", "--vendor", "ucx", "--", "python", "-c", program)
    assert done.status == 0, done
    assert sorted(done.out) == ["[0] well 1", "[1] well 0", "[2] well 0"], done


def test_a_rank_that_fails_before_it_joins_is_started_again() -> None:
    program = "import os, sys, hetcomm\nif os.environ['HETCOMM_LIFE'] == '0' and os.environ['HETCOMM_RANK'] == '1':"
    program += " sys.exit(3)\ncomm = hetcomm.init()\nprint(comm.nranks)\ncomm.barrier()\ncomm.close()"
    done = run("--restarts", "2", "-n", "2", "--vendor", "ucx", "--", "python", "-c", program)
    assert (done.status, sorted(done.out)) == (0, ["[0] 2", "[1] 2"]), done
    assert [line for line in done.err if line.startswith("[1]")] == ["[1] failed: exit status 3; it is started again"]


def test_restarts_end() -> None:
    done = run("--restarts", "2", "-n", "1", "--", *BARE, "import sys; print('begun'); sys.exit(5)")
    assert (done.status, done.out) == (5, ["[0] begun"] * 3), done
    assert done.err == ["[0] failed: exit status 5; it is started again"] * 2 + ["[0] failed: exit status 5"]


def test_what_cannot_be_reconfigured() -> None:
    comm = hetcomm.init(config=hetcomm.Config(vendor="ucx"))
    part = comm.split(0)
    assert part is not None
    with pytest.raises(hetcomm.UsageError, match=r"part of another"):
        part.reconfigure()
    with pytest.raises(hetcomm.UsageError, match=r"cannot meet again.*hetcomm run --restarts"):
        comm.reconfigure()
    comm.close()
    with pytest.raises(hetcomm.UsageError, match=r"is closed"):
        comm.reconfigure()
