"""The `hetcomm` command: `hetcomm doctor`, `hetcomm plan`, `hetcomm bench` and `hetcomm run`.

Errors of hetcomm's own tree end as one line on stderr and exit status 2, without a traceback.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from hetcomm._cli import doctor as _doctor
from hetcomm._cli import plan as _plan
from hetcomm._cli.bench import bench as _bench
from hetcomm._cli.run import run as _run
from hetcomm._cli.units import parse_nbytes
from hetcomm.errors import HetcommError, UsageError
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.types import Config, DataType, ReduceKind

__all__ = ["main"]

_MARKS = {"ok": "[green]ok[/]", "missing": "[yellow]--[/]", "problem": "[red bold]!![/]"}


class _Commands(click.Group):
    """Shows hetcomm's errors as messages."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except HetcommError as error:
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red bold]error:[/] {escape(str(error))}")
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hetcomm")
def main() -> None:
    """Collectives over arrays of any vendor's device."""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report for programs.")
@click.option("--self-test/--no-self-test", default=True, help="Start processes and measure; on unless told.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds each self-test may take.")
def doctor(as_json: bool, self_test: bool, timeout: float) -> None:
    """Say what hetcomm finds here, what it lacks, and what to do about it.

    Exit status 0 means that hetcomm is usable, 1 that a problem was found.
    """
    config = Config.from_environ()
    console = Console(highlight=False, soft_wrap=True, quiet=as_json)
    findings: list[_doctor.Finding] = []
    section = ""
    with console.status("looking") as status:
        for finding in _doctor.examine(config, self_test, timeout):
            findings.append(finding)
            if finding.section != section:
                section = finding.section
                console.print(f"[bold]{section}[/]")
            status.update(f"looking at {section}")
            console.print(f"  {_MARKS[finding.status]} {escape(finding.name)}: {escape(finding.detail)}")
            if finding.remedy:
                console.print(f"     [dim]{escape(finding.remedy)}[/]")
    good = _doctor.usable(findings)
    console.print("[green bold]hetcomm is usable here[/]" if good else "[red bold]hetcomm has problems here[/]")
    if as_json:
        click.echo(json.dumps(_doctor.as_json(findings), indent=2))
    sys.exit(0 if good else 1)


@main.command()
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("collective", type=click.Choice([kind.value for kind in CollectiveKind]))
@click.option("--bytes", "size", help="Size of the vector: 4096, 64MiB, 1.5GB, ...")
@click.option("--counts", help="Elements of each rank's block, for a vector form: 3,0,5,... in place of --bytes.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice([dtype.value for dtype in DataType]))
@click.option("--op", default="sum", show_default=True, type=click.Choice([kind.value for kind in ReduceKind]))
@click.option("--root", default=0, show_default=True, help="The root, where the collective has one.")
@click.option("--in-place", is_flag=True, help="Input and output are one buffer.")
@click.option("--rank", "ranks", multiple=True, type=int, help="Show all steps of this rank; may be given again.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Choose and price the plan by this file.")
@click.option("--draw", "picture", type=click.Path(path_type=Path), help="Draw it to this .svg or .png file.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write the simulation to this file, for Perfetto.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole schedule, to be replayed by a program.")
def plan(
    topology: Path,
    collective: str,
    size: str | None,
    counts: str | None,
    dtype: str,
    op: str,
    root: int,
    in_place: bool,
    ranks: tuple[int, ...],
    calibration: Path | None,
    picture: Path | None,
    trace: Path | None,
    as_json: bool,
) -> None:
    """Plan, verify, price and draw COLLECTIVE for the job that the file TOPOLOGY describes; no job need run.

    The size is that of the vector of each rank; of each rank's input for reduce_scatter and all_to_all; and of all
    blocks together for all_gather, gather and scatter.
    """
    if (size is None) == (counts is None):
        raise UsageError("a plan needs --bytes or --counts, and not both", remedy="Give the size of the vector.")
    blocks = None if counts is None else _plan.parse_counts(counts)
    request = _plan.Request(
        topology,
        CollectiveKind(collective),
        0 if size is None else parse_nbytes(size),
        DataType(dtype),
        ReduceKind(op),
        root,
        in_place,
        blocks,
        calibration,
    )
    result = _plan.make(request, ranks)
    if picture is not None:
        _plan.draw_to(result, picture)
    if trace is not None:
        _plan.trace_to(result, trace)
    if as_json:
        click.echo(_plan.as_json(result))
    else:
        _plan.show(result, Console(highlight=False, soft_wrap=True), ranks)


main.add_command(_bench)
main.add_command(_run)
