"""How many instructions rank 0 executes in one small all_reduce, so that later changes can be compared without noise.

    python benchmarks/callgrind.py --json benchmarks/results/callgrind.json

Two ranks in two clusters of the vendor `ucx` call all_reduce on 8 bytes. Rank 0 runs under valgrind's callgrind
(apt-get install valgrind), rank 1 does not. Rank 0 owns the sum: it needs what rank 1 sends at the beginning of its
call, which is there by the time that rank 0 has slept a little before each call; so rank 0 counts no waiting. Python's
collector is off and its hashes are fixed. The calls are made in blocks, at whose ends a function of the C library is
called at which callgrind writes down what it has counted; so neither start-up nor warm-up counts. The number is the
least of the blocks over their calls, since a busy machine can only add to it: rank 1 may be late after all. It repeats
to a few instructions, but depends on the compiler, on Python and on UCX, so numbers are to be compared on one machine.
Beside it stand the parts that belong to hetcomm's compiled binding, to UCX, and to everything else, which is mostly
Python.

`persistent` is start and wait of a persistent request; `nothing` is a call of an empty Python function. What the loop
and the sleep add is subtracted from all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy

import hetcomm
from hetcomm._ranks.launch import mpi_command
from hetcomm.transport.library import load_library

FORMAT = "hetcomm callgrind 1"
MARK = "ether_ntoa_r"  # a function of the C library that nobody calls
WARM_UP = 300
PAUSE = 3e-4  # seconds of sleep before each call
TIMEOUT = 500.0  # seconds; start-up under valgrind alone takes most of a minute


KINDS = ("loop", "nothing", "all_reduce", "persistent")


def nothing() -> None:
    """Do nothing."""


def kinds(comm: hetcomm.Communicator) -> dict[str, Callable[[], object] | None]:
    """What is counted, ready to be called; None: no call."""
    source = numpy.ones(2, numpy.float32)
    target = numpy.empty_like(source)
    request = comm.all_reduce_init(source, target)

    def persistent() -> None:
        request.start()
        request.wait()

    calls = (None, nothing, lambda: comm.all_reduce(source, target), persistent)
    return dict(zip(KINDS, calls, strict=True))


def rank(blocks: int, calls: int) -> None:
    """What both ranks do."""
    library, text = ctypes.CDLL(None), ctypes.create_string_buffer(16)
    with hetcomm.init(timeout=TIMEOUT) as comm:
        pause = PAUSE if comm.rank == 0 else 0
        for call in kinds(comm).values():
            for _ in range(WARM_UP):
                if call is not None:
                    call()
            gc.collect()
            gc.disable()
            for _ in range(blocks):
                library.ether_ntoa(text)
                for _ in range(calls):
                    time.sleep(pause)
                    if call is not None:
                        call()
            library.ether_ntoa(text)
            comm.barrier()
            gc.enable()


# ---- what callgrind has written


def by_object(file: Path) -> Counter[str]:
    """Instructions of one dump, by the file that has the code."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    here, inclusive = "", False
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("ob="):
                number, _, name = line[3:].strip().partition(" ")
                here = names.setdefault(number, Path(name).name)
            elif line.startswith("cob="):
                number, _, name = line[4:].strip().partition(" ")
                names.setdefault(number, Path(name).name)
            elif line.startswith("calls="):
                inclusive = True  # the next line counts what is called, which counts itself
            elif line[0] in "0123456789+-*":
                if not inclusive:
                    found[here] += int(line.split()[-1])
                inclusive = False
    return found


def part(name: str) -> str:
    """Which part of a call the code in a file is."""
    if name.startswith("ucp.") and ".so" in name:
        return "binding"
    return "ucx" if name.startswith(("libucp", "libuct", "libucs", "libucm")) else "python"


def counted(folder: Path, blocks: int, calls: int) -> dict[str, Any]:
    """The counts of each kind, out of the dumps in their order."""
    dumps = sorted(folder.glob("count.*"), key=lambda file: int(file.suffix[1:]))
    if len(dumps) != len(KINDS) * (blocks + 1):
        raise SystemExit(f"callgrind wrote {len(dumps)} dumps; this C library has no {MARK} that it sees")
    found: dict[str, Any] = {}
    loop = Counter[str]()
    for number, name in enumerate(KINDS):
        # The first dump of a kind is what came before its first block.
        mine = dumps[number * (blocks + 1) + 1 : (number + 1) * (blocks + 1)]
        split = [by_object(file) for file in mine]
        least = min(split, key=Counter.total).copy()
        if name == KINDS[0]:
            loop = least
            continue
        least.subtract(loop)
        parts = dict.fromkeys(("python", "binding", "ucx"), 0)
        for file, count in least.items():
            parts[part(file)] += count
        found[name] = {
            "instructions": round(least.total() / calls),
            "parts": {which: round(count / calls) for which, count in parts.items()},
            "blocks": sorted(round((block.total() - loop.total()) / calls) for block in split),
        }
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start the job and read what rank 0 has counted."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise SystemExit("there is no valgrind on the search path: apt-get install valgrind")
    script = [sys.executable, str(Path(__file__).resolve()), "--rank", str(options.blocks), str(options.calls)]
    with tempfile.TemporaryDirectory(prefix="hetcomm-") as name:
        count = [valgrind, "-q", "--tool=callgrind", f"--callgrind-out-file={name}/count", f"--dump-before={MARK}"]
        ranks = [
            ({"HETCOMM_VENDOR": "ucx", "HETCOMM_CLUSTER": "0"}, [*count, *script]),
            ({"HETCOMM_VENDOR": "ucx", "HETCOMM_CLUSTER": "1"}, script),
        ]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            mpi_command(ranks), env=env, timeout=TIMEOUT, check=False, capture_output=True, text=True, cwd=name
        )
        if done.returncode:
            raise SystemExit(f"the ranks failed:\n{done.stdout}{done.stderr}")
        return counted(Path(name), options.blocks, options.calls)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=30, help="of calls, for each kind (30)")
    parser.add_argument("--calls", type=int, default=40, help="in a block (40)")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--rank", nargs=2, type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.rank is not None:
        rank(*options.rank)
        return 0
    found = run(options)
    for name, count in found.items():
        middle = count["blocks"][len(count["blocks"]) // 2] / count["instructions"] - 1
        parts = ", ".join(f"{which} {value}" for which, value in count["parts"].items())
        print(f"{name:12}{count['instructions']:9} instructions a call ({parts}; the middle block {middle:+.2%})")
    if options.json is not None:
        command = ["python", "benchmarks/callgrind.py", *(sys.argv[1:] if arguments is None else arguments)]
        versions = {"python": platform.python_version(), "numpy": numpy.__version__, "ucx": load_library().version}
        about = {"format": FORMAT, "command": command, "versions": versions, "machine": platform.machine()}
        options.json.write_text(json.dumps({**about, "counts": found}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
