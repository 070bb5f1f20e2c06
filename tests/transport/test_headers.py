"""The C that is written by hand compiles without a warning, each header on its own."""

from __future__ import annotations

import shlex
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..scripts import run

FOLDER = Path(__file__).parents[2] / "hetcomm" / "_ext"
HEADERS = sorted(path.name for path in FOLDER.glob("*.h") if path.name != "ucp_loops.h")  # a part of ucp_local.h
# Functions of headers are static, so that each file that includes one may leave some unused.
FLAGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-O2", "-ffp-contract=off"]


def test_there_are_headers() -> None:
    assert {"ucp_local.h", "ucp_shared.h", "ucp_table.h", "ucp_wait.h"} <= set(HEADERS)


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_compiles_without_warnings(header: str, tmp_path: Path) -> None:
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    wheel = find_spec("libucx")
    if shutil.which(compiler[0]) is None or wheel is None or not wheel.submodule_search_locations:
        pytest.skip("there is no C compiler, or no libucx wheel with UCX's headers")
    foreign = Path(wheel.submodule_search_locations[0], "include")
    source = tmp_path / "alone.c"
    source.write_text(f'#include "{header}"\nint main(void) {{ return 0; }}\n')
    command = [*compiler, *FLAGS, "-I", str(FOLDER), "-isystem", str(foreign), "-c", str(source), "-o", "/dev/null"]
    run(command)
