"""Which UCX this process uses: the one it already has, or the best one found.

Two UCX builds in one process crash, so the first rule is to adopt a `libucp` that is already mapped, whoever
loaded it. Otherwise that of `Config.ucx_home`, for whoever sets it means it (the wheel has no InfiniBand), else the
`libucx` wheel's, else the system's.

A library loaded by its path satisfies a later `import mpi4py` too, since MPI asks for the same soname. The
other way round the MPI's own UCX is there first, and is adopted.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hetcomm.errors import TransportError
from hetcomm.types import Config

__all__ = ["Library", "load_library", "mapped_libraries"]

Origin = Literal["adopted", "HETCOMM_UCX_HOME", "wheel", "system"]

# Also matches the names auditwheel gives to copies inside wheels, as libucp-1a2b3c4d.so.0.0.0.
_UCX_FILE = re.compile(r"lib(uc[pst])(-[0-9a-f]+)?\.so(\.[0-9.]+)?$")
_LOAD_ORDER = ("libucs", "libuct", "libucp")  # dependencies first: their folder need not be searched


@dataclass(frozen=True, slots=True)
class Library:
    """The libucp in use.

    Attributes:
        path: The file.
        version: Its version, as '1.22.0'.
        origin: Why this one: it was in the process already, or where it was found.
    """

    path: str
    version: str
    origin: Origin

    def __str__(self) -> str:
        return f"UCX {self.version} at {self.path} ({self.origin})"


def mapped_libraries(maps: Iterable[str] | None = None) -> dict[str, list[str]]:
    """The files of UCX mapped into this process, by 'ucp', 'ucs' and 'uct'; `maps` is /proc/self/maps unless given."""
    found: dict[str, list[str]] = {"ucp": [], "ucs": [], "uct": []}
    if maps is None:
        maps = Path("/proc/self/maps").read_text().splitlines()
    for line in maps:
        fields = line.split(maxsplit=5)
        path = fields[5].removesuffix(" (deleted)").strip() if len(fields) == 6 else ""
        match = _UCX_FILE.fullmatch(path.rpartition("/")[2])
        if match and path not in found[match[1]]:
            found[match[1]].append(path)
    return found


def load_library(config: Config | None = None) -> Library:
    """Find and load the libucp of this process; later calls find the same one.

    Raises:
        TransportError: None was found, the one found cannot be loaded, or two are in the process already. The message
            names the files and the remedy.
    """
    mapped = mapped_libraries()
    if len(mapped["ucp"]) > 1:
        raise TransportError(
            f"two UCX libraries are loaded in this process: {' and '.join(mapped['ucp'])}",
            remedy="Import hetcomm before the libraries that bring their own UCX, so that all share one.",
        )
    if mapped["ucp"]:
        return _opened(mapped["ucp"][0], "adopted")
    if mapped["ucs"]:  # half a UCX: only the libucp built with it can join
        path = Path(mapped["ucs"][0]).with_name("libucp.so.0")
        if not path.is_file():
            raise TransportError(
                f"another library has loaded {mapped['ucs'][0]}, which has no libucp.so.0 beside it",
                remedy="Import hetcomm first, so that it can load a whole UCX.",
            )
        return _opened(str(path), "adopted")
    return _find(config or Config())


def _find(config: Config) -> Library:
    """Load from the first place that has a libucp; a `ucx_home` without one is an error."""
    if config.ucx_home is not None:
        for name in ("lib", "lib64"):
            folder = Path(config.ucx_home, name)
            if (folder / "libucp.so.0").is_file():
                return _loaded_from(folder, "HETCOMM_UCX_HOME")
        raise TransportError(
            f"HETCOMM_UCX_HOME={config.ucx_home} holds no lib/libucp.so.0",
            remedy="Set it to the prefix UCX was installed to, or unset it.",
        )
    wheel = _wheel_folder()
    if wheel is not None:
        # The wheel has each file under three names, none of them a link. Its own loader takes these, and so does UCXX:
        # under another name they would be loaded a second time.
        return _loaded_from(wheel, "wheel", ".so" if (wheel / "libucp.so").is_file() else ".so.0")
    try:
        ctypes.CDLL("libucp.so.0", mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        raise TransportError(
            f"no UCX found: HETCOMM_UCX_HOME is not set, there is no libucx wheel, and the system has none ({error})",
            remedy="Run 'pip install libucx-cu12', or set HETCOMM_UCX_HOME to the prefix of an installed UCX.",
        ) from error
    return _opened(mapped_libraries()["ucp"][0], "system")


def _wheel_folder() -> Path | None:
    """Where the libucx wheel keeps its libraries, without importing it."""
    spec = importlib.util.find_spec("libucx")
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        if Path(location, "lib", "libucp.so.0").is_file():
            return Path(location, "lib")
    return None


def _loaded_from(folder: Path, origin: Origin, suffix: str = ".so.0") -> Library:
    for name in _LOAD_ORDER:
        if (folder / f"{name}{suffix}").is_file():
            _load(str(folder / f"{name}{suffix}"))
    return _opened(str(folder / f"libucp{suffix}"), origin)


def _load(path: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        others = [other for files in mapped_libraries().values() for other in files if not _beside(other, path)]
        if others:
            raise TransportError(
                f"{path} cannot be loaded: parts of another UCX are in this process: {', '.join(others)} ({error})",
                remedy="Import hetcomm before the library that brought that one.",
            ) from error
        raise TransportError(
            f"{path} cannot be loaded: {error}",
            remedy="Reinstall UCX: 'pip install --force-reinstall libucx-cu12' if it is the wheel's.",
        ) from error


def _opened(path: str, origin: Origin) -> Library:
    """The library at `path` with its version; it is loaded, or its dependencies are."""
    numbers = (ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint())
    library = _load(path)
    try:
        library.ucp_get_version(*map(ctypes.byref, numbers))
    except AttributeError as error:
        raise TransportError(f"{path} is no libucp: {error}") from error
    return Library(path, ".".join(str(number.value) for number in numbers), origin)


def _beside(one: str, other: str) -> bool:
    return os.path.realpath(os.path.dirname(one)) == os.path.realpath(os.path.dirname(other))
