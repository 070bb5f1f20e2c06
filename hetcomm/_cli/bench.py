"""`hetcomm bench`: the options, what they mean together, and what is done with the result.

Under a launcher every rank runs the command, and rank 0 prints and writes. Without one the ranks are started here.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from hetcomm._cli import bandwidths, baselines, calibrated, jobs, report
from hetcomm._cli.cases import NAMES, sizes
from hetcomm._cli.measure import Benchmark
from hetcomm.errors import UsageError
from hetcomm.job.launcher import Launcher
from hetcomm.types import DataType, ReduceKind
from hetcomm.vendors import registry

__all__ = ["bench", "parse_size"]

_OF_CALIBRATION = ("output", "topology_output", "quick")
_OF_BOTH = ("collective", "calibrate", "ranks", "vendors", "timeout")
_STDOUT = Path("-")


def parse_size(text: str) -> int:
    """The bytes that `text` means, as nccl-tests reads it: 8, 1K, 64M, 1G; K, M, G and T are powers of 1024.

    Raises:
        UsageError: It means none.
    """
    match = re.fullmatch(r"([0-9]{1,18})(?:([KMGT])(?:IB?)?)?", text.strip().upper())
    if match is None:
        raise UsageError(f"{text[:40]!r} is no size", remedy="Write bytes with or without a unit: 8, 1K, 64M, 1G.")
    return int(match[1]) * int(1024 ** (" KMGT".index(match[2]) if match[2] else 0))


def _size(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """An option that is a size."""
    return None if text is None else parse_size(text)


@click.command()
@click.argument("collective", required=False, type=click.Choice(NAMES))
@click.option(
    "-b", "--begin", callback=_size, metavar="SIZE", default="8", show_default=True, help="Smallest: 8, 1K, 64M."
)
@click.option("-e", "--end", callback=_size, metavar="SIZE", default="64M", show_default=True, help="Largest.")
@click.option("-f", "--factor", default=2, show_default=True, help="Each size is this many times the one before.")
@click.option("-i", "--step", callback=_size, metavar="SIZE", help="Each size is this much more, in place of --factor.")
@click.option(
    "-d", "--dtype", default="float32", show_default=True, type=click.Choice([dtype.value for dtype in DataType])
)
@click.option("-o", "--op", default="sum", show_default=True, type=click.Choice([kind.value for kind in ReduceKind]))
@click.option("-r", "--root", default=0, show_default=True, help="The root, where the collective has one.")
@click.option("--in-place", is_flag=True, help="Input and output are one buffer.")
@click.option("--check/--no-check", default=True, show_default=True, help="Whether every element is checked.")
@click.option("--shared", is_flag=True, help="The buffers are memory that the ranks of a host share.")
@click.option("--touched", is_flag=True, help="Before each call a rank writes its input and reads its output.")
@click.option("--ahead", is_flag=True, help="Ranks write their inputs before each call, and do not wait in between.")
@click.option("--iters", type=click.IntRange(1), default=20, show_default=True, help="Samples of each size.")
@click.option("-w", "--warmup", type=click.IntRange(0), default=5, show_default=True, help="Calls of a warm-up.")
@click.option("--vs", help=f"Baselines in the same run, out of {','.join(baselines.BASELINES)}.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the results to this file; -: print.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw them to this .svg or .png file.")
@click.option("--calibrate", is_flag=True, help="Measure what plans are priced by, and write it to a file.")
@click.option("--output", type=click.Path(path_type=Path), help="Of --calibrate; calibration.json unless given.")
@click.option("--topology-output", type=click.Path(path_type=Path), help="Of --calibrate: write the uplinks too.")
@click.option("--quick", is_flag=True, help="Of --calibrate: rough numbers in seconds.")
@click.option("-n", "--ranks", type=int, help="Ranks to start where no launcher has; 2 unless given (--calibrate: 4).")
@click.option("--vendors", help="Their vendors: one for each rank, or one for all (--calibrate: one for each cluster).")
@click.option("--clusters", type=int, help="Divide the ranks to start into this many clusters.")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds all of it may take.")
@click.pass_context
def bench(ctx: click.Context, /, **options: Any) -> None:
    """Measure COLLECTIVE in the manner of nccl-tests, or this machine with --calibrate.

    Run by mpirun on every rank it measures that job, and rank 0 prints and writes. Otherwise it starts ranks of its
    own. Exit status 1 means that hetcomm's results were wrong.
    """
    collective, calibrate, timeout = options["collective"], options["calibrate"], options["timeout"]
    if (collective is None) != calibrate:
        raise UsageError(
            "bench needs --calibrate or a collective, and not both", remedy=f"Name one of {', '.join(NAMES)}."
        )
    if not 0 < timeout < math.inf:
        raise UsageError(f"--timeout {timeout} is no time", remedy="Give a positive number of seconds.")
    _refuse_others(ctx, calibrate)
    files = ("output", "topology_output") if calibrate else ("json_file", "plot")
    for path in (options[name] for name in files):
        if path not in (None, _STDOUT) and (not path.absolute().parent.is_dir() or path.is_dir()):
            raise UsageError(f"{str(path)!r} cannot be written", remedy="Name a file in a folder that exists.")
    launched = Launcher.from_environ() is not None
    if launched and any(options[name] is not None for name in ("ranks", "vendors", "clusters")):
        raise UsageError(
            "--ranks, --vendors and --clusters are for ranks that this command starts", remedy="Tell the launcher."
        )
    if calibrate:
        _calibrate(options, launched)
    else:
        _measure(options, launched)


def _refuse_others(ctx: click.Context, calibrate: bool) -> None:
    """Refuse what is given and would be ignored."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in _OF_BOTH and (name in _OF_CALIBRATION) != calibrate:
            what = "the measurement of a collective" if name in _OF_CALIBRATION else "--calibrate"
            raise UsageError(f"{parameter.opts[-1]} has no meaning with {what}", remedy="Leave it out.")


def _calibrate(options: dict[str, Any], launched: bool) -> None:
    quick, timeout = options["quick"], options["timeout"]
    if launched:
        result = jobs.in_job(calibrated.Calibrating(quick), timeout)
    else:
        names = [name.strip() for name in (options["vendors"] or "mpi,ucx").split(",")]
        ranks = 4 if options["ranks"] is None else options["ranks"]
        result = calibrated.start_ranks(names, ranks, quick, timeout)
    if result is not None:
        console = Console(highlight=False, soft_wrap=True)
        calibrated.write(result, options["output"] or Path("calibration.json"), options["topology_output"], console)


def _measure(options: dict[str, Any], launched: bool) -> None:
    benchmark = Benchmark(
        options["collective"],
        tuple(sizes(options["begin"], options["end"], options["factor"], options["step"])),
        DataType(options["dtype"]),
        ReduceKind(options["op"]),
        options["root"],
        options["in_place"],
        baselines.parse(options["vs"]),
        options["iters"],
        options["warmup"],
        options["check"],
        options["shared"],
        options["touched"],
        options["ahead"],
    )
    if options["plot"] is not None:
        bandwidths.check(options["plot"])
    if launched:
        found = jobs.in_job(benchmark, options["timeout"])
    else:
        vendors, clusters = _ranks(options["ranks"], options["vendors"], options["clusters"])
        benchmark.case(len(vendors), benchmark.sizes[0])  # what is wrong with it is said before ranks are started
        found = jobs.start_ranks(benchmark, vendors, clusters, options["timeout"])
    if found is None:
        return
    command = ["hetcomm", *sys.argv[1:]]
    if options["json_file"] == _STDOUT:
        click.echo(json.dumps(report.as_json(found, command), indent=1))
    else:
        click.echo(report.table(found))
        if options["json_file"] is not None:
            report.save(found, command, options["json_file"])
    if options["plot"] is not None:
        bandwidths.draw(found, options["plot"])
    if found.wrong:
        sys.exit(1)


def _ranks(nranks: int | None, vendors: str | None, clusters: int | None) -> tuple[list[str | None], list[int] | None]:
    """Each rank's vendor (None: to be detected) and cluster (None: those follow from the vendors).

    Raises:
        UsageError: The numbers do not fit together, or a vendor is not known.
    """
    names = [name.strip() for name in vendors.split(",")] if vendors is not None else []
    for name in names:
        registry.vendor(name)  # raises
    count = nranks if nranks is not None else max(2, len(names))
    if count < 1:
        raise UsageError(f"--ranks {count} is less than one", remedy="Start one rank at least; two have to talk.")
    if len(names) not in (0, 1, count):
        raise UsageError(
            f"--vendors names {len(names)} vendors for {count} ranks", remedy="Name one for each rank, or one for all."
        )
    each: list[str | None] = [*(names if len(names) == count else names * count)] or [None] * count
    if clusters is None:
        return each, None
    if not 1 <= clusters <= count:
        raise UsageError(
            f"{count} ranks cannot be divided into --clusters {clusters}", remedy=f"Use a number from 1 to {count}."
        )
    return each, [rank * clusters // count for rank in range(count)]
