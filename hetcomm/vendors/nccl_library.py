"""Which NCCL or RCCL is here, and through whose wrapper it will be called, found out without loading any of it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from hetcomm.types import MemoryKind

__all__ = ["Flavour", "Found", "loaded", "look", "version_text"]

_CUPY = "https://docs.cupy.dev/en/stable/install.html"


@dataclass(frozen=True, slots=True)
class Flavour:
    """What tells NCCL and RCCL apart.

    Attributes:
        name: The vendor's name.
        title: The library's name.
        memory: Where its arrays live.
        library: The library's file.
        device_files: One of them exists where there is a GPU of that maker.
        container: Options of docker that make it exist in a container.
        packages: Packages that bring the library.
        folders: Where else it may lie, beside the linker's places.
        install: How to get CuPy with it.
        settings: Environment variables of the library that are set unless the user has.
        shared_from: The first version that lets ranks share a GPU, if the user asks for it; None: no version does.
    """

    name: str
    title: str
    memory: MemoryKind
    library: str
    device_files: tuple[str, ...]
    container: str
    packages: tuple[str, ...]
    folders: tuple[str, ...]
    install: str
    settings: tuple[tuple[str, str], ...]
    shared_from: int | None

    @property
    def stem(self) -> str:
        """The file's name without its version."""
        return self.library[: self.library.index(".so") + 3]


@dataclass(frozen=True, slots=True)
class Found:
    """What is installed, as far as it can be told without importing CuPy.

    Attributes:
        wrapper: Whose wrapper will be used, with its version; '' if there is none.
        path: Where the library lies; '' if it was not found.
        version: The library's version; '' if it cannot be told without loading it.
        reason: Why it cannot be used; '' if it can.
        remedy: What to do about that.
    """

    wrapper: str = ""
    path: str = ""
    version: str = ""
    reason: str = ""
    remedy: str = ""


def look(flavour: Flavour) -> Found:
    """What is installed of a library; imports neither CuPy nor the library, and makes no device context."""
    spec = find_spec("cupy")
    if spec is None or spec.origin is None:
        return Found(reason="CuPy is not installed", remedy=flavour.install)
    packages = Path(spec.origin).parent.parent
    cupy = f"CuPy {_cupy_version(packages)}".rstrip()
    linked = _linked_with(packages)
    wrapper = cupy
    if linked is None and flavour.memory is MemoryKind.CUDA and find_spec("nccl") is not None:
        wrapper, linked = _nccl4py(), flavour.stem
    if linked is None:
        remedy = f"{flavour.install}   (its wheels have it; see {_CUPY})"
        return Found(reason=f"{cupy} was built without {flavour.title}", remedy=remedy)
    if linked != flavour.stem:
        other = "NVIDIA's CUDA" if linked == "libnccl.so" else "AMD's ROCm"
        remedy = f"Uninstall it, then {flavour.install}."
        return Found(reason=f"{cupy} is the build for {other}", remedy=remedy)
    if not any(Path(file).exists() for file in flavour.device_files):
        reason = f"no GPU: there is no {' and no '.join(flavour.device_files)}"
        return Found(wrapper, reason=reason, remedy=f"In a container, pass it on: docker run {flavour.container}")
    path = next(_candidates(flavour), "")
    if not path:
        remedy = (
            f"pip install {' or '.join(flavour.packages)}" if flavour.packages else f"Install ROCm's {flavour.title}."
        )
        return Found(wrapper, reason=f"{flavour.library} was not found", remedy=remedy)
    return Found(wrapper, path, _version_of(flavour, path))


def version_text(version: int) -> str:
    """'2.27.3' for 22703."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def _cupy_version(packages: Path) -> str:
    file = packages / "cupy" / "_version.py"
    match = re.search(r"__version__ = '([^']+)'", file.read_text()) if file.is_file() else None
    return match.group(1) if match else ""


def _nccl4py() -> str:
    try:
        return f"nccl4py {distribution('nccl4py').version}"
    except PackageNotFoundError:
        return "nccl4py"


def _linked_with(packages: Path) -> str | None:
    """Which library CuPy's wrapper was linked with: 'libnccl.so', 'librccl.so', or None where it has no wrapper.

    The names that a shared object needs stand in it as they are.
    """
    for wrapper in sorted((packages / "cupy_backends" / "cuda" / "libs").glob("nccl.*so")):
        content = wrapper.read_bytes()
        return next((stem for stem in ("libnccl.so", "librccl.so") if stem.encode() in content), None)
    return None


def _candidates(flavour: Flavour) -> Iterator[str]:
    """Where the library is: loaded already, else where CuPy and the linker look for it, in their order."""
    yield from loaded(flavour)
    for package in flavour.packages:
        yield from _files(package, flavour)
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(":"), f"{sys.prefix}/lib", *flavour.folders]
    for folder in folders:
        path = Path(folder, flavour.library)
        if folder and path.exists():
            yield str(path.resolve())
    for path in sorted(Path.home().glob(f".cupy/cuda_lib/*/nccl/*/lib/{flavour.stem}*")):
        yield str(path)
    known = find_library(flavour.stem[3:-3])
    if known is not None:
        yield known


def loaded(flavour: Flavour) -> Iterator[str]:
    """The library's file in this process, if it is there."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        path = line.partition("/")
        if path[1] and Path(path[2]).name.startswith(flavour.stem):
            yield path[1] + path[2]
            return


def _version_of(flavour: Flavour, path: str) -> str:
    """A library's version, from its wrapper if that is loaded, its file's name, or its package."""
    module = sys.modules.get("cupy.cuda.nccl")
    if module is not None and getattr(module, "available", False) and any(loaded(flavour)):
        return version_text(module.get_version())
    match = re.search(r"\.so\.(\d+\.\d+\.\d+)$", str(Path(path).resolve()))
    if match:
        return match.group(1)
    owner = next((package for package in flavour.packages if path in _files(package, flavour)), None)
    return distribution(owner).version if owner is not None else ""


def _files(package: str, flavour: Flavour) -> list[str]:
    """Where a package has the library; nowhere if it is not installed."""
    try:
        files = distribution(package).files or ()
    except PackageNotFoundError:
        return []
    return [str(file.locate()) for file in files if file.name.startswith(flavour.stem)]
