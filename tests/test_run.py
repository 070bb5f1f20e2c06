"""`hetcomm run`: right jobs, statuses, ranks that end at any time, signals; and no process is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner

from hetcomm._ranks import mpirun
from hetcomm._ranks.launch import find_launcher
from hetcomm.cli import main

from . import scripts
from .scripts import living

GRACE = 60  # seconds that a job gets to end after a signal
COMMAND = [
    *(sys.executable, "-c"),
    "from hetcomm._ranks import local; from hetcomm.cli import main; "
    f"local.run_job.__kwdefaults__['grace'] = {GRACE}; main(prog_name='hetcomm')",
    "run",
]
PYTHON = (sys.executable, "-c")
BARE = (sys.executable, "-I", "-S", "-c")  # starts at once


@dataclass(frozen=True)
class Done:
    """How a job ended, and what it wrote, without what UCX says of ranks that end in the middle."""

    status: int
    out: list[str]
    err: list[str]

    @classmethod
    def of(cls, status: int, out: str, err: str) -> Done:
        return cls(status, *([line for line in text.splitlines() if "UCX  WARN" not in line] for text in (out, err)))

    def by(self, rank: int) -> list[str]:
        return [line for line in self.out if line.startswith(f"[{rank}] ")]


def environment() -> dict[str, str]:
    quiet = {"UCX_LOG_LEVEL": "fatal"}  # it logs to standard output that others have ended
    return {"PYTHONPATH": scripts.outside()["PYTHONPATH"], "NO_COLOR": "1", **scripts.PATIENCE, **quiet}


def run(*args: str, **env: str) -> Done:
    """The command, in this process, which is the launcher then."""
    mark = uuid4().hex
    limit = () if "--timeout" in args else ("--timeout", str(scripts.DEADLINE))
    result = CliRunner().invoke(
        main, ["run", *limit, *args], env={**environment(), scripts.MARK: mark, **env}, prog_name="hetcomm"
    )
    assert living(mark) == []
    return Done.of(result.exit_code, result.stdout, result.stderr)


def started(*args: str) -> AbstractContextManager[scripts.Started]:
    """The command in a process of its own."""
    return scripts.started([*COMMAND, *args], env=os.environ | environment())


def finish(job: scripts.Started) -> Done:
    done = job.finish()
    assert living(job.mark) == []
    return Done.of(done.returncode, done.stdout, done.stderr)


# ---- what needs no communicator


def test_programs_and_variables_by_segment_and_lines_by_rank() -> None:
    first = (
        "import os; print(*(os.environ[n] for n in ('COLOUR', 'HETCOMM_CLUSTER', 'HETCOMM_RANK', 'HETCOMM_NRANKS')))"
    )
    second = (
        "import os, sys; print(sys.argv[1:], os.environ.get('COLOUR'), os.environ['HETCOMM_VENDOR']); "
        "sys.stderr.write('x\\ny')"
    )
    done = run(
        *("-n", "2", "-x", "COLOUR=red=blue", "--cluster", "left", "--", *BARE, first),
        *(":", "--vendor", "ucx", "-x", "INHERITED", "--", *BARE, second, "--", "-n", "5"),
        INHERITED="yes",
    )
    assert (done.status, sorted(done.out)) == (
        0,
        ["[0] red=blue left 0 3", "[1] red=blue left 1 3", "[2] ['--', '-n', '5'] None ucx"],
    )
    assert done.err == ["[2] x", "[2] y"]


@pytest.mark.parametrize(
    ("programs", "status", "said"),
    [
        (["pass", "import sys; sys.exit(7)"], 7, "[1] failed: exit status 7"),
        (["import os; os.kill(os.getpid(), 9)", "pass"], 137, "[0] failed: killed by SIGKILL"),
        (["import time; time.sleep(0.5); exit(3)", "import os; os.abort()"], 134, "[1] failed: killed by SIGABRT"),
    ],
    ids=["status", "killed", "the first that fails"],
)
def test_the_exit_status_is_that_of_the_first_rank_that_failed(programs: list[str], status: int, said: str) -> None:
    done = run("--", *BARE, programs[0], ":", "--", *BARE, programs[1])
    assert done.status == status
    assert done.err[0] == said


def test_long_output_of_many_ranks_comes_whole_and_without_prefix_where_that_is_asked_for() -> None:
    program = "import os; r = os.environ['HETCOMM_RANK']\nfor n in range(2000): print(r, n, 'x' * 200)"
    done = run("-n", "3", "--no-prefix", "--", *BARE, program)
    assert done.status == 0
    for rank in range(3):
        mine = [line for line in done.out if line.startswith(f"{rank} ")]
        assert mine == [f"{rank} {number} {'x' * 200}" for number in range(2000)]
    assert len(done.out) == 6000


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["-n", "2"], "no program to run was given"),
        (["--vendor", "nonsense", "--", "true"], "the vendor 'nonsense' is not known"),
        (["-x", "NO_SUCH_VARIABLE", "--", "true"], "there is no such variable here"),
        (["--timeout", "0", "--", "true"], "--timeout 0 is no time"),
        (["-n", "1", "--", "true", ":", "--", "/no/such/program"], "/no/such/program cannot be started"),
    ],
)
def test_what_cannot_be_started_is_said_in_a_line(args: list[str], text: str) -> None:
    done = run(*args)
    assert (done.status, done.out, len(done.err)) == (2, [], 1)
    assert text in done.err[0]


def test_a_rank_of_another_launcher_starts_none() -> None:
    done = run("--", "true", PMI_RANK="1", PMI_SIZE="2")
    assert done.status == 2
    assert "is itself rank 1 of 2 that MPICH's mpiexec has started" in done.err[0]


WAITING = """
import os, signal, subprocess, sys, time
stubborn = os.environ["HETCOMM_RANK"] == sys.argv[1]
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN if stubborn else lambda number, frame: (print("got", number), sys.exit(4)))
subprocess.Popen(["sh", "-c", "trap '' INT TERM; sleep 99"], stdin=subprocess.DEVNULL)
print("ready", flush=True)
time.sleep(99)
"""


@pytest.mark.parametrize(
    ("number", "stubborn"),
    [(signal.SIGINT, None), pytest.param(signal.SIGTERM, None, marks=pytest.mark.slow), (signal.SIGINT, 1)],
    ids=str,
)
def test_signals_reach_the_ranks_once_and_leave_nothing(number: int, stubborn: int | None) -> None:
    with started("-n", "3", "--", *BARE, WAITING, str(stubborn)) as job:
        assert job.process.stdout is not None
        assert sorted(job.process.stdout.readline() for _ in range(3)) == [f"[{rank}] ready\n" for rank in range(3)]
        begun = time.monotonic()
        job.process.send_signal(number)
        ending = [rank for rank in range(3) if rank != stubborn]
        assert sorted(job.process.stdout.readline() for _ in ending) == [f"[{rank}] got {number}\n" for rank in ending]
        if stubborn is not None:
            while sum("print" in each for each in living(job.mark)) > 2:  # it, and the launcher
                time.sleep(0.01)
            job.process.send_signal(number)
        done = finish(job)
    assert time.monotonic() - begun < GRACE / 2
    assert (done.status, done.out) == (4, [])
    said = {rank: "killed by SIGKILL" if rank == stubborn else "exit status 4" for rank in range(3)}
    assert sorted(done.err) == [f"[{rank}] failed: {text}" for rank, text in said.items()]


def test_a_job_that_does_not_end_in_time_is_ended() -> None:
    done = run("-n", "2", "--timeout", "1", "--", *BARE, "import time; time.sleep(99)")
    assert done.status == 124
    assert done.err[0] == "hetcomm run: the job has not ended within 1 s"
    assert sorted(done.err[1:]) == [f"[{rank}] failed: killed by SIGTERM" for rank in range(2)]


@pytest.mark.parametrize(
    ("command", "args", "status", "said"),
    [
        (["sleep", "99"], ["--timeout", "0.5"], 124, ["hetcomm run: the job has not ended within 0.5 s"]),
        (["sh", "-c", "echo no slots >&2; exit 3"], [], 3, ["[mpirun] no slots"]),
    ],
    ids=["hangs", "fails"],
)
def test_an_mpirun_that_starts_nothing(
    command: list[str], args: list[str], status: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpirun, "mpi_command", lambda *_, **__: command)
    done = run(*args, "-n", "2", "--vendor", "mpi", "--", "true", ":", "--", "true")
    assert done.status == status
    how = "killed by SIGTERM" if status == 124 else "exit status 3"
    assert sorted(done.err) == sorted([*said, *(f"[{rank}] failed: {how}" for rank in range(2))])


def test_the_ranks_end_with_the_launcher() -> None:
    with started("-n", "2", "--", *BARE, "import time; print(1, flush=True); time.sleep(99)") as job:
        assert job.process.stdout is not None
        assert [job.process.stdout.readline() for _ in range(2)]
        job.process.kill()
        end = time.monotonic() + scripts.DEADLINE
        while living(job.mark) and time.monotonic() < end:
            time.sleep(0.01)
        assert living(job.mark) == []


# ---- communicators

RIGHT = """
import os, sys
from pathlib import Path
import numpy as np
import hetcomm

def shown():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.environ["HETCOMM_KEY"].encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False

assert not shown()
with hetcomm.init() as comm:
    inputs = [np.random.default_rng(rank).integers(-99, 99, 5000).astype(np.float64) for rank in range(comm.nranks)]
    x = inputs[comm.rank].copy()
    comm.all_reduce(x)
    assert np.array_equal(x, sum(inputs))
    gathered = np.empty((comm.nranks, 5000))
    comm.all_gather(inputs[comm.rank], gathered)
    assert np.array_equal(gathered, inputs)
    part = comm.split(comm.rank % 2, -comm.rank)
    ranks = [rank for rank in reversed(range(comm.nranks)) if rank % 2 == comm.rank % 2]
    y = np.array([comm.rank])
    all_of_part = np.empty(len(ranks), y.dtype)
    part.all_gather(y, all_of_part)
    assert list(all_of_part) == ranks
    print(comm.rank, "of", comm.nranks, *(c.name for c in comm.topology.clusters), "mpi4py" in sys.modules)
with hetcomm.init() as comm:
    comm.barrier()
"""


def test_a_right_job_without_mpi(tmp_path: Path) -> None:
    segments = ("-n", "2", "--vendor", "ucx", "--cluster", "a", ":", "-n", "1", "--vendor", "ucx", "--cluster", "b")
    done = run(*segments, "--", *PYTHON, RIGHT, PATH=str(tmp_path))
    assert (done.status, done.err) == (0, [])
    assert sorted(done.out) == [f"[{rank}] {rank} of 3 ucx/a ucx/b False" for rank in range(3)]


@pytest.mark.skipif(find_spec("mpi4py") is None or find_launcher() is None, reason="there is no MPI")
def test_a_right_job_over_two_vendors() -> None:
    done = run("-n", "2", "--vendor", "mpi", ":", "-n", "2", "--vendor", "ucx", "--", *PYTHON, RIGHT)
    assert (done.status, done.err) == (0, [])
    assert sorted(done.out) == [f"[{rank}] {rank} of 4 mpi ucx {rank < 2}" for rank in range(4)]


# A rank says what it was told, and how many seconds after another one had ended, or it had come to the meeting itself.
TOLD = """
import os, signal, sys, time
from pathlib import Path
import hetcomm
import hetcomm.job.job as job
from hetcomm.job.tcp import TcpGroup

rank, victim, point, mark = int(os.environ["HETCOMM_RANK"]), int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

def end():
    if rank == victim:
        mark.write_text(str(time.monotonic()))
        if point == "leave":
            sys.exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

exchanged, meet, met, calls = TcpGroup.all_gather, job.bootstrap, [0.0], [0]

def all_gather(self, payload):
    if str(calls[0]) == point:
        end()
    calls[0] += 1
    return exchanged(self, payload)

def bootstrap(*args):
    if point == "meeting":
        end()
    met[0] = time.monotonic()
    return meet(*args)

TcpGroup.all_gather, job.bootstrap = all_gather, bootstrap
if point == "leave":
    end()
try:
    import numpy as np
    with hetcomm.init() as comm:
        x = np.ones(70000)
        for number in range(100000):
            if point == "call" and number == 5:
                end()
            comm.all_reduce(x, op="max")
except hetcomm.HetcommError as error:
    took = time.monotonic() - max(met[0], float(mark.read_text()))
    print(type(error).__name__, sorted(error.ranks), took < 30, str(error), flush=True)
time.sleep(0.3)  # a rank whose error is handled goes on
print("the end")
"""


def told(point: str, tmp_path: Path, *segments: str) -> Done:
    return run(*segments, "--", *PYTHON, TOLD, "1", point, str(tmp_path / "mark"))


@pytest.mark.parametrize(
    ("point", "text"),
    [
        ("leave", "rank 1 ended before it had joined the job in hetcomm.init (exit status 0)"),
        pytest.param(
            "meeting",
            "rank 1 ended before it had joined the job in hetcomm.init (killed by SIGKILL)",
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(str(number), "rank 1 ended while a communicator was set up (killed by SIGKILL)", marks=marks)
            for number, marks in [(0, pytest.mark.slow), (1, ()), (2, pytest.mark.slow), (3, pytest.mark.slow)]
        ),
        ("call", ""),
    ],
)
def test_a_rank_that_ends_is_named_by_the_others_which_go_on(point: str, text: str, tmp_path: Path) -> None:
    done = told(point, tmp_path, "-n", "3", "--vendor", "ucx")
    assert done.status == (0 if point == "leave" else 137), done
    for rank in (0, 2):
        error, end = done.by(rank)
        assert error.startswith(f"[{rank}] PeerFailureError [1] True "), done
        assert text in error
        assert end == f"[{rank}] the end"
    assert done.err == ([] if point == "leave" else ["[1] failed: killed by SIGKILL"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mpi4py") is None or find_launcher() is None, reason="there is no MPI")
@pytest.mark.parametrize("point", ["meeting", "2", "call"])
def test_a_rank_that_mpirun_has_started_is_named_too(point: str, tmp_path: Path) -> None:
    done = told(point, tmp_path, "-n", "2", "--vendor", "mpi", ":", "-n", "1", "--vendor", "ucx")
    assert done.status == 137, done
    for rank in (0, 2):
        error, end = done.by(rank)
        assert error.startswith(f"[{rank}] PeerFailureError [1] True "), done
        assert end == f"[{rank}] the end"


FAILING = """
import numpy as np, hetcomm
with hetcomm.init() as comm:
    for number in range(10):
        if (comm.rank, number) == (1, 3):
            raise ValueError("this is the reason")
        comm.all_reduce(np.ones(100))
"""


def test_the_error_of_the_rank_that_failed_first_is_shown_once() -> None:
    done = run("-n", "4", "--vendor", "ucx", "--", *PYTHON, FAILING)
    assert (done.status, done.out) == (1, [])
    lines = done.err
    assert lines[0] == "[1] Traceback (most recent call last):"
    assert "[1] ValueError: this is the reason" in lines
    others = lines[lines.index("[1] ValueError: this is the reason") + 1 :]
    assert sorted(line.partition(" [")[0] for line in others) == [
        f"[{rank}] failed: PeerFailureError:" for rank in (0, 2, 3)
    ]
