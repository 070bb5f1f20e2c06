"""`hetcomm run`: what its command line means."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

import click

from hetcomm._ranks.local import Segment, run_job
from hetcomm.errors import UsageError
from hetcomm.job.launcher import Launcher
from hetcomm.vendors import registry

__all__ = ["run"]


class _Segments(click.Command):
    """A command whose arguments are several lists of arguments, with ':' between them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        parts: list[list[str]] = [[]]
        for arg in args:
            if arg == ":":
                parts.append([])
            else:
                parts[-1].append(arg)
        parsed = []
        for part in parts:
            with click.Context(self, parent=ctx.parent, info_name=ctx.info_name, **self.context_settings) as each:
                super().parse_args(each, part)
            parsed.append(each.params)
        ctx.params = {"segments": parsed}
        return []

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS] [: [OPTIONS]]...", "-- PROGRAM [ARGS]..."]


@click.command(cls=_Segments, context_settings={"allow_interspersed_args": False})
@click.option("-n", "--nranks", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks of the segment.")
@click.option("--vendor", help="Their vendor: HETCOMM_VENDOR.")
@click.option("--cluster", help="What tells their cluster from others of that vendor: HETCOMM_CLUSTER.")
@click.option("-x", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable for them; may be given again.")
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    help="How often, in all, ranks that fail are started again; 0 unless told.",
)
@click.option("--timeout", type=float, help="Seconds the whole job may take.")
@click.option("--prefix/--no-prefix", default=None, help="Begin lines of output with [rank]; on unless told.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
def run(segments: list[dict[str, Any]]) -> None:
    """Start the ranks of a job on this machine; they meet without MPI.

    Segments of ranks that are started differently have a ':' between them. One without a program runs that of the next
    one that has one. Ranks of the vendor mpi are started by mpirun, all others need none.

    \b
    Four ranks:
        hetcomm run -n 4 python app.py
    Two clusters, one program:
        hetcomm run -n 2 --vendor mpi : -n 2 --vendor ucx -- python app.py --steps 10
    Two clusters of one vendor, with variables:
        hetcomm run -n 2 --vendor ucx --cluster a -x LEVEL=1 : -n 2 --vendor ucx --cluster b -- python app.py
    Two programs:
        hetcomm run -n 1 -- python server.py : -n 3 -- python client.py

    A rank that fails does not end the others, which are told. Its error is shown in full, those of the others in a
    line. With --restarts it is started again, and may take its seat (Communicator.reconfigure); ranks of the vendor mpi
    are not. Ctrl-C and SIGTERM go to all ranks, once; what is left after 5 seconds, or at the second signal, is killed.

    The exit status is that of the first rank that failed (128 + signal for one that was killed), 124 where --timeout
    has passed, 2 where the job cannot be started.
    """
    launcher = Launcher.from_environ()
    if launcher is not None and launcher.nranks > 1:
        raise UsageError(
            f"'hetcomm run' is itself rank {launcher.rank} of {launcher.nranks} that {launcher.name} has started",
            remedy="Start it alone: it starts the ranks.",
        )
    limits = [each["timeout"] for each in segments if each["timeout"] is not None]
    if any(not limit > 0 for limit in limits):
        raise UsageError(f"--timeout {min(limits):g} is no time", remedy="Give a positive number of seconds.")
    status = run_job(
        _segments(segments),
        stdout=_writer(sys.stdout.buffer),
        stderr=_writer(sys.stderr.buffer),
        timeout=min(limits, default=None),
        restarts=max(each["restarts"] or 0 for each in segments),
        prefix=all(each["prefix"] is not False for each in segments),
    )
    sys.exit(status)


def _segments(given: Sequence[dict[str, Any]]) -> list[Segment]:
    """The segments as they were given, each with its program.

    Raises:
        UsageError: One has no program, or an option of it cannot be used.
    """
    found: list[Segment] = []
    program: Sequence[str] = ()
    for each in reversed(given):
        program = each["program"] or program
        if not program:
            raise UsageError("no program to run was given", remedy="End with one: ... -- python app.py")
        env = dict(map(_variable, each["env"]))
        if each["vendor"] is not None:
            if each["vendor"] not in registry.names():
                raise UsageError(
                    f"the vendor {each['vendor']!r} is not known", remedy=f"There are {', '.join(registry.names())}."
                )
            env["HETCOMM_VENDOR"] = each["vendor"]
        if each["cluster"] is not None:
            env["HETCOMM_CLUSTER"] = each["cluster"]
        found.insert(0, Segment(each["nranks"], program, env))
    return found


def _variable(text: str) -> tuple[str, str]:
    """Name and value of NAME=VALUE, or of NAME, which has its value here."""
    name, equals, value = text.partition("=")
    if not name or (not equals and name not in os.environ):
        raise UsageError(f"-x {text}: there is no such variable here", remedy="Write -x NAME=VALUE.")
    return name, value if equals else os.environ[name]


def _writer(file: BinaryIO) -> Any:
    def write(lines: bytes) -> None:
        file.write(lines)
        file.flush()

    return write
