"""Jobs over two hosts whose link is cut in the middle of calls: what every rank is told, and when.

    HETCOMM_LAB=path/to/hosts.sh python -m tests.multihost.cuts --runs 3 --json figures.json

The ranks are plain processes that meet at a rendezvous, so that no launcher's own connections are cut with theirs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

MARK = "cut result "
TIMEOUT = 20.0  # seconds that a call may take
LIMIT = 120.0  # seconds of a run, beside what the case takes
ROOT = Path(__file__).resolve().parents[2]
NOBODY = "02:00:00:00:00:77"  # the hardware address of no interface

CASES = ("none 10", "0.5", "4", "30", "one-way 0.5", "one-way 4", "one-way 30", "stop 4", "kill")
"""What happens: nothing, a cut both ways or one way, so many seconds long; a rank of the other host is stopped, or
killed."""


# ---- what each rank does


def play(folder: str, count: int) -> dict[str, Any]:
    """A rank: call until a call fails, or the file `stop` is there."""
    import numpy as np

    import hetcomm

    told: dict[str, Any] = {"error": None, "wrong": 0, "turns": 0}
    comm = hetcomm.init(timeout=TIMEOUT)
    told["rank"] = comm.rank
    array, going = np.zeros(count, np.float32), np.zeros(1)
    try:
        for turn in range(1_000_000):
            array[:] = comm.rank + turn % 5
            comm.all_reduce(array)
            wanted = comm.nranks * (comm.nranks - 1) / 2 + comm.nranks * (turn % 5)
            told["wrong"] += not (array == wanted).all()
            told["turns"] = turn
            if turn == 3:
                Path(folder, f"ready{comm.rank}").write_text(str(os.getpid()))
            going[0] = comm.rank == 0 and Path(folder, "stop").exists()
            comm.all_reduce(going)
            if going[0]:
                break
    except hetcomm.HetcommError as error:
        told["at"] = time.monotonic()
        told["error"] = type(error).__name__, sorted(error.ranks), str(error)[:900]
        told["states"] = {each.rank: each.state for each in error.whereabouts}
        if isinstance(error, hetcomm.PeerFailureError):
            comm, told["left"] = go_on(comm, told["rank"], folder)
    comm.close()
    told["closed"] = time.monotonic()
    return told


def go_on(comm: Any, me: int, folder: str) -> tuple[Any, list[int]]:
    """Shrink, and call until the link has long been mended; the communicator, and its ranks by their old numbers."""
    import numpy as np

    small = comm.shrink(timeout=5)
    ids, over = np.empty(small.nranks, np.int64), np.zeros(1)
    small.all_gather(np.array([me]), ids)
    while not over[0]:
        for count in (1, 100_000):
            array = np.full(count, me + 1.0)
            small.all_reduce(array)
            assert (array == ids.sum() + small.nranks).all()
        over[0] = Path(folder, "stop").exists()
        small.broadcast(over)
    return small, ids.tolist()


# ---- two hosts


@dataclass
class Lab:
    """Two hosts that `script` has made; 10.77.0.1 and 10.77.0.2, or whatever their /etc/hosts says of h1 and h2."""

    script: str
    env: dict[str, str]

    def run(self, host: int, *command: str) -> list[str]:
        return [self.script, "run", str(host), *command]

    def call(self, *verb: str) -> None:
        subprocess.run([self.script, *verb], env=self.env, check=True, timeout=60)

    def address(self, host: int) -> str:
        done = subprocess.run(
            self.run(1, "getent", "ahostsv4", f"h{host}"),
            env=self.env,
            check=True,
            timeout=60,
            capture_output=True,
            text=True,
        )
        return done.stdout.split()[0]

    def cut(self, one_way: bool) -> None:
        """Let nothing of host 2 arrive any more, and with both ways nothing at it."""
        if one_way:
            self._neighbour("replace", "lladdr", NOBODY, "nud", "permanent")
        else:
            self.call("cut", "2")

    def mend(self, one_way: bool) -> None:
        if one_way:
            self._neighbour("del")
        else:
            self.call("mend", "2")

    def _neighbour(self, verb: str, *more: str) -> None:
        command = self.run(2, "ip", "neigh", verb, self.address(1), *more, "dev", "eth0")
        subprocess.run(command, env=self.env, check=True, timeout=60)


@contextlib.contextmanager
def lab(script: str) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="hetcomm-cuts-") as folder:
        env = {**os.environ, "HOSTS_DIR": os.path.join(folder, "state")}
        made = Lab(os.path.abspath(script), env)
        try:
            made.call("up", "2")
            yield made
        finally:
            made.call("down")


# ---- one run


@dataclass
class Outcome:
    """What came of a run: by rank what it was told; when the link was cut, and when mended."""

    case: str
    told: dict[int, dict[str, Any]]
    cut_at: float = 0.0
    output: str = ""
    seconds: list[float] = field(default_factory=list)

    def errors(self) -> dict[int, Any]:
        return {rank: told["error"] for rank, told in sorted(self.told.items())}


def run(at: Lab, case: str, per_host: Sequence[int] = (2, 2), count: int = 100_000, vendor: str = "ucx") -> Outcome:
    """Run a job during which something happens to the second host or its link."""
    one_way, seconds = case.startswith("one-way"), 0.0
    with contextlib.suppress(ValueError):
        seconds = float(case.rsplit(maxsplit=1)[-1])
    with tempfile.TemporaryDirectory(prefix="hetcomm-cut-") as folder, Rendezvous(at, sum(per_host)) as meeting:
        hosts = [host for host, ranks in enumerate(per_host, 1) for _ in range(ranks)]
        ranks = []
        for rank, host in enumerate(hosts):
            env = {**at.env, **meeting.variables(rank), "HETCOMM_VENDOR": vendor, "HETCOMM_CLUSTER": f"host{host}"}
            env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "UCX_LOG_LEVEL": "fatal"}
            command = at.run(
                host, sys.executable, "-m", "tests.multihost.cuts", "--rank", folder, str(count), str(seconds)
            )
            ranks.append(
                subprocess.Popen(
                    command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
        try:
            cut_at = _happen(at, case, seconds, one_way, folder, len(hosts))
            return _collect(case, ranks, cut_at)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
            if seconds and not case.startswith(("stop", "none")):
                with contextlib.suppress(subprocess.CalledProcessError):
                    at.mend(one_way)


def _happen(at: Lab, case: str, seconds: float, one_way: bool, folder: str, nranks: int) -> float:
    end = time.monotonic() + LIMIT
    files = [Path(folder, f"ready{rank}") for rank in range(nranks)]
    while not all(file.exists() and file.read_text() for file in files):
        if time.monotonic() > end:
            return 0.0
        time.sleep(0.05)
    time.sleep(1.0)  # the heartbeat of all has begun
    cut_at = time.monotonic()
    if case == "kill" or case.startswith("stop"):
        victim = int(files[-1].read_text())
        os.kill(victim, signal.SIGKILL if case == "kill" else signal.SIGSTOP)
        time.sleep(seconds)
        if case != "kill":
            os.kill(victim, signal.SIGCONT)
    elif case.startswith("none"):
        time.sleep(seconds)
    else:
        at.cut(one_way)
        cut_at = time.monotonic()
        time.sleep(seconds)
        at.mend(one_way)
    time.sleep(1.0)
    Path(folder, "stop").touch()
    return cut_at


def _collect(case: str, ranks: Sequence[subprocess.Popen[str]], cut_at: float) -> Outcome:
    outcome = Outcome(case, {}, cut_at)
    end = time.monotonic() + TIMEOUT + 20
    for process in ranks:
        try:
            text, _ = process.communicate(timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            text += "\n(it did not end)"
        for line in text.splitlines():
            if line.startswith(MARK):
                told = json.loads(line.removeprefix(MARK))
                outcome.told[told["rank"]] = told
                if told["error"]:
                    outcome.seconds.append(told["at"] - cut_at)
            else:
                outcome.output += f"| {line}\n"
    return outcome


class Rendezvous:
    """The meeting place of a job, on the first host, served by a process of its own."""

    def __init__(self, at: Lab, nranks: int) -> None:
        self._at, self._nranks = at, nranks
        self._key = os.urandom(32).hex()

    def __enter__(self) -> Rendezvous:
        command = self._at.run(1, sys.executable, "-m", "tests.multihost.cuts", "--serve", str(self._nranks))
        command += [self._key, self._at.address(1)]
        self._process = subprocess.Popen(
            command, env={**self._at.env, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._address = self._process.stdout.readline().strip()
        return self

    def variables(self, rank: int) -> dict[str, str]:
        from hetcomm.job.launcher import variables

        return variables(rank, self._nranks, self._address, self._key)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def serve(nranks: int, key: str, address: str) -> None:
    """Serve it until killed. `hetcomm run` is for one host; this one listens where the other host reaches it."""
    from hetcomm.job import rendezvous

    selector = selectors.DefaultSelector()
    create = rendezvous.socket.create_server
    with mock.patch.object(rendezvous.socket, "create_server", lambda _, **more: create((address, 0), **more)):
        place = rendezvous.Rendezvous(nranks, bytes.fromhex(key), selector)
    print(place.address, flush=True)
    while True:
        for found, _ in selector.select(0.05):
            found.data()
        place.look()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="of each case")
    parser.add_argument("--case", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--count", type=int, default=100_000, help="elements")
    parser.add_argument("--per-host", type=int, nargs=2, default=[2, 2], help="ranks of each host")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rank:
        threading.Timer(LIMIT + float(args.rank[2]), os._exit, (9,)).start()
        print(f"{MARK}{json.dumps(play(args.rank[0], int(args.rank[1])))}", flush=True)
        os._exit(0)
    if args.serve:
        serve(int(args.serve[0]), *args.serve[1:])
    figures: dict[str, Any] = {}
    with lab(os.environ["HETCOMM_LAB"]) as at:
        for case in args.case:
            for number in range(args.runs):
                outcome = run(at, case, args.per_host, args.count)
                row = figures.setdefault(case, {"runs": 0, "kinds": {}, "seconds": [], "wrong": 0, "told": []})
                row["runs"] += 1
                row["seconds"] += [round(each, 3) for each in outcome.seconds]
                row["wrong"] += sum(told["wrong"] for told in outcome.told.values())
                for rank, error in outcome.errors().items():
                    name = "none" if error is None else f"{error[0]} {error[1]}"
                    row["kinds"][f"rank {rank}: {name}"] = row["kinds"].get(f"rank {rank}: {name}", 0) + 1
                print(f"{case}, run {number}: {outcome.errors()} after {outcome.seconds}\n{outcome.output}", flush=True)
    print(json.dumps(figures, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
