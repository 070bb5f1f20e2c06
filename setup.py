"""Builds the compiled parts. Everything else about the package is in pyproject.toml.

Of UCX and oneCCL only headers are needed: no extension links the library it speaks to, which is chosen at run time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

OLDEST_UCX_HEADERS = (1, 14)


def ucx_include_candidates() -> Iterator[tuple[str, Path]]:
    """Where UCX's headers may be, with a name for each place, most explicit first."""
    home = os.environ.get("HETCOMM_UCX_HOME")
    if home:
        yield "HETCOMM_UCX_HOME", Path(home, "include")
    wheel = importlib.util.find_spec("libucx")
    for folder in (wheel.submodule_search_locations or []) if wheel is not None else []:
        yield "the libucx wheel", Path(folder, "include")
    try:
        flags = subprocess.run(
            ["pkg-config", "--variable=includedir", "ucx"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        flags = ""
    if flags:
        yield "pkg-config", Path(flags)
    for prefix in (sys.prefix, "/usr/local", "/usr"):
        yield prefix, Path(prefix, "include")


def ucx_version(include: Path) -> tuple[int, int] | None:
    """The API version of the UCX headers in `include`; None if there are none."""
    header = include / "ucp" / "api" / "ucp_version.h"
    if not header.is_file():
        return None
    numbers = re.findall(r"#define\s+UCP_API_(?:MAJOR|MINOR)\s+(\d+)", header.read_text())
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None


def find_ucx_include() -> Path:
    """The include directory of UCX; exits with the remedy if there is none that will do."""
    for place, include in ucx_include_candidates():
        version = ucx_version(include)
        if version is None:
            continue
        if version < OLDEST_UCX_HEADERS:
            print(f"hetcomm: UCX headers {version} in {include} are too old, looking on", file=sys.stderr)
            continue
        print(f"hetcomm: UCX headers {'.'.join(map(str, version))} from {place}: {include}", file=sys.stderr)
        return include
    raise SystemExit(
        f"hetcomm: no UCX headers of {'.'.join(map(str, OLDEST_UCX_HEADERS))} or later found. "
        "Run 'pip install libucx-cu12', or set HETCOMM_UCX_HOME to the prefix of an installed UCX."
    )


def find_oneccl_include() -> Path | None:
    """The include directory that holds oneapi/ccl.hpp, or None."""
    places = [
        *(Path(os.environ[name], "include") for name in ("HETCOMM_ONECCL_HOME", "CCL_ROOT") if os.environ.get(name)),
        Path(sys.prefix, "include"),
        Path("/opt/intel/oneapi/ccl/latest/include"),
    ]
    # In an isolated build sys.prefix is the user's environment but its site packages are hidden; the
    # header lies in the prefix, so it is found nevertheless.
    return next((place for place in places if (place / "oneapi" / "ccl.hpp").is_file()), None)


def extensions() -> list[Extension]:
    """The extensions that can be built here, saying in one line each why one is not."""
    folder = Path("hetcomm", "_ext")
    found = [
        Extension(
            "hetcomm._ext.ucp",
            [str(folder / "ucp.pyx")],
            include_dirs=[str(folder), str(find_ucx_include()), numpy.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
            depends=sorted(str(path) for kind in ("h", "pxd", "pxi") for path in folder.glob(f"ucp*.{kind}")),
            # Contraction would make other results of what NumPy rounds twice.
            extra_compile_args=["-O3", "-funroll-loops", "-ffp-contract=off", "-Wno-unused-function"],
            libraries=["dl"],
        ),
        Extension(
            "hetcomm._ext.heart",
            [str(folder / "heart.pyx")],
            include_dirs=[str(folder)],
            depends=[str(path) for path in folder.glob("heart*.h")],
            extra_compile_args=["-O2"],
            libraries=["pthread"],
        ),
    ]
    source = folder / "oneccl.pyx"
    include = find_oneccl_include()
    if not source.is_file():
        return found
    if include is None:
        print(
            "hetcomm: the oneCCL vendor is left out: no oneapi/ccl.hpp found "
            "(pip install --no-deps oneccl-cpu-devel, or set HETCOMM_ONECCL_HOME)",
            file=sys.stderr,
        )
        return found
    print(f"hetcomm: oneCCL headers from {include}", file=sys.stderr)
    found.append(
        Extension(
            "hetcomm._ext.oneccl",
            [str(source)],
            language="c++",
            include_dirs=[str(folder), str(include)],
            depends=[str(path) for path in folder.glob("oneccl*.h*")],
            extra_compile_args=["-O2", "-std=c++17"],
            # libccl's symbols are left undefined and bound lazily to the library loaded before.
            extra_link_args=["-Wl,-z,lazy", "-Wl,--unresolved-symbols=ignore-all"],
        )
    )
    return found


setup(ext_modules=cythonize(extensions(), language_level=3), options={"build_ext": {"parallel": 2}})
