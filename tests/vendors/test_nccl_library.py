"""Which NCCL or RCCL is here and how it is called, as far as that shows without a GPU."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hetcomm.errors import VendorError
from hetcomm.vendors import nccl_library, registry
from hetcomm.vendors.nccl import NcclVendor, RcclVendor
from hetcomm.vendors.nccl_binding import open_binding
from hetcomm.vendors.nccl_library import version_text

from ..scripts import python

# What hetcomm passes to CuPy's communicator, as its compiled file documents it.
CALLS = {
    "allReduce": "intptr_t sendbuf, intptr_t recvbuf, size_t count, int datatype, int op, intptr_t stream",
    "reduce": "intptr_t sendbuf, intptr_t recvbuf, size_t count, int datatype, int op, int root, intptr_t stream",
    "broadcast": "intptr_t sendbuff, intptr_t recvbuff, size_t count, int datatype, int root, intptr_t stream",
    "allGather": "intptr_t sendbuf, intptr_t recvbuf, size_t count, int datatype, intptr_t stream",
    "reduceScatter": "intptr_t sendbuf, intptr_t recvbuf, size_t recvcount, int datatype, int op, intptr_t stream",
    "check_async_error": "",
    "abort": "",
    "destroy": "",
}
SYMBOLS = [
    *("ncclAllGather", "ncclAllReduce", "ncclBroadcast", "ncclReduce", "ncclReduceScatter"),
    *("ncclGetUniqueId", "ncclGetVersion", "ncclGetErrorString"),
    *("ncclCommAbort", "ncclCommDestroy", "ncclCommGetAsyncError"),
]


# ---- what is installed


class Site:
    """A folder of packages as CuPy's wheels lay them out, first on the path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, vendor: type[NcclVendor]) -> None:
        self.folder = folder
        self.vendor = vendor
        (folder / "cupy").mkdir(parents=True)
        (folder / "cupy" / "__init__.py").write_text("raise RuntimeError('only looked at')\n")
        (folder / "cupy" / "_version.py").write_text("__version__ = '14.2.0'\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(nccl_library, "loaded", lambda _: iter(()))
        monkeypatch.setattr(nccl_library, "find_library", lambda _: None)
        monkeypatch.setenv("LD_LIBRARY_PATH", "")
        monkeypatch.setenv("HOME", str(folder))
        changed = replace(vendor._flavour, device_files=(str(folder / "gpu"),), packages=(), folders=(str(folder),))
        monkeypatch.setattr(vendor, "_flavour", changed)

    def wrapper(self, library: str) -> None:
        """Add CuPy's wrapper, linked with that library."""
        libs = self.folder / "cupy_backends" / "cuda" / "libs"
        libs.mkdir(parents=True)
        (libs / "nccl.cpython-311-x86_64-linux-gnu.so").write_bytes(b"\x7fELF...\0" + library.encode() + b"\0")

    def gpu(self) -> None:
        """Add the GPU's device file."""
        (self.folder / "gpu").touch()


@pytest.mark.parametrize("vendor", [NcclVendor, RcclVendor])
def test_each_thing_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: type[NcclVendor]
) -> None:
    site = Site(tmp_path / "site", monkeypatch, vendor)
    title, library = vendor._flavour.title, vendor._flavour.library

    def state() -> Any:
        return vendor().availability()

    monkeypatch.setattr(nccl_library, "find_spec", lambda _: None)
    assert state().reason == "CuPy is not installed"
    assert "pip install 'hetcomm[" in state().remedy
    monkeypatch.setattr(nccl_library, "find_spec", lambda name: None if name == "nccl" else find_spec(name))
    assert state().reason == f"CuPy 14.2.0 was built without {title}"
    site.wrapper(library)
    assert state().reason == f"no GPU: there is no {site.folder}/gpu"
    assert "docker run --" in state().remedy
    site.gpu()
    assert state().reason == f"{library} was not found"
    (site.folder / f"{library}.27.3").touch()
    (site.folder / library).symlink_to(f"{library}.27.3")
    assert state().usable
    expected = {"libnccl.so.2": "NCCL 2.27.3", "librccl.so.1": "RCCL 1.27.3"}[library]
    assert state().version == f"{expected} through CuPy 14.2.0 ({site.folder}/{library}.27.3)"


@pytest.mark.parametrize(
    ("vendor", "library", "other"),
    [(NcclVendor, "librccl.so.1", "AMD's ROCm"), (RcclVendor, "libnccl.so.2", "NVIDIA's")],
)
def test_the_cupy_for_other_hardware_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: type[NcclVendor], library: str, other: str
) -> None:
    Site(tmp_path / "site", monkeypatch, vendor).wrapper(library)
    state = vendor().availability()
    assert not state.usable
    assert state.reason.startswith(f"CuPy 14.2.0 is the build for {other}")
    with pytest.raises(VendorError, match=f"vendor '{vendor.name}' cannot be used here: CuPy 14.2.0 is the build"):
        registry.usable_vendor(vendor.name)


def test_nccl4py_serves_a_cupy_without_nccl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path / "site", monkeypatch, NcclVendor)
    site.gpu()
    (site.folder / "nccl").mkdir()
    (site.folder / "nccl" / "__init__.py").touch()
    (site.folder / "libnccl.so.2").touch()
    assert NcclVendor().availability().version.startswith("NCCL through nccl4py")


def test_looking_imports_nothing() -> None:
    program = (
        "import sys\n"
        "from hetcomm.vendors.nccl import NcclVendor, RcclVendor\n"
        "NcclVendor().availability(), RcclVendor().availability()\n"
        "maps = open('/proc/self/maps').read()\n"
        "print('cupy' in sys.modules, 'libnccl.so' in maps, 'libcuda' in maps)\n"
    )
    assert python(program).stdout.split() == ["False"] * 3


def test_versions_are_written_as_the_library_does() -> None:
    assert [version_text(number) for number in (22703, 23003, 21805)] == ["2.27.3", "2.30.3", "2.18.5"]


# ---- loading


def fake_cupy(monkeypatch: pytest.MonkeyPatch, *, available: bool) -> None:
    cupy, cuda, nccl = (ModuleType(name) for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl"))
    cupy.__version__, nccl.available = "14.2.0", available  # type: ignore[attr-defined]
    cuda.nccl = nccl  # type: ignore[attr-defined]
    for module in (cupy, cuda, nccl):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_what_cannot_be_loaded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(VendorError, match=r"CuPy could not be imported: .*pip install 'hetcomm\[rocm\]'"):
        open_binding(RcclVendor._flavour)
    fake_cupy(monkeypatch, available=False)
    with pytest.raises(VendorError, match=r"CuPy 14\.2\.0 cannot load RCCL"):
        open_binding(RcclVendor._flavour)


def test_the_library_is_told_to_connect_at_once_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, wanted in ((None, "0"), ("1", "1")):
        if given is None:
            monkeypatch.delenv("NCCL_RUNTIME_CONNECT", raising=False)
        else:
            monkeypatch.setenv("NCCL_RUNTIME_CONNECT", given)
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(VendorError):
            open_binding(NcclVendor._flavour)
        assert os.environ["NCCL_RUNTIME_CONNECT"] == wanted
    monkeypatch.delenv("NCCL_RUNTIME_CONNECT")


# ---- the wrappers as they are built


def compiled_wrappers() -> Iterator[tuple[str, bytes]]:
    """(library, content) of each compiled `cupy.cuda.nccl` that can be had: installed, or in a folder of wheels."""
    spec = find_spec("cupy")
    if spec is not None and spec.origin is not None:
        for path in Path(spec.origin).parents[1].glob("cupy_backends/cuda/libs/nccl.*so"):
            yield "librccl.so" if b"librccl.so" in path.read_bytes() else "libnccl.so", path.read_bytes()
    for wheel in sorted(Path(os.environ.get("HETCOMM_CUPY_WHEELS", "/nowhere")).glob("cupy_*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if re.fullmatch(r"cupy_backends/cuda/libs/nccl\..*so", name):
                    yield "librccl.so" if "rocm" in wheel.name else "libnccl.so", archive.read(name)


@pytest.mark.parametrize("vendor", [NcclVendor, RcclVendor])
def test_the_compiled_wrapper_has_what_is_called(vendor: type[NcclVendor]) -> None:
    found = [content for library, content in compiled_wrappers() if library == vendor._flavour.stem]
    if not found:
        pytest.skip(
            f"no CuPy with {vendor._flavour.title} is installed, and HETCOMM_CUPY_WHEELS names no folder with its wheel"
        )
    for content in found:
        assert vendor._flavour.library.encode() in content
        for name, parameters in CALLS.items():
            signature = f"NcclCommunicator.{name}(self{', ' if parameters else ''}{parameters})"
            assert signature.encode() in content, f"no {signature}"
        for symbol in SYMBOLS:
            assert b"\0" + symbol.encode() + b"\0" in content, f"it does not call {symbol}"
        for name in (b"get_unique_id", b"get_version", b"NcclError"):
            assert name in content


def test_nccl4py_has_what_is_called() -> None:
    nccl4py = pytest.importorskip("nccl.bindings.nccl", reason="nccl4py is not installed")
    for name, parameters in (
        (
            "all_reduce",
            "intptr_t sendbuff, intptr_t recvbuff, size_t count, int datatype, int op, comm, intptr_t stream",
        ),
        ("all_gather", "intptr_t sendbuff, intptr_t recvbuff, size_t sendcount, int datatype, comm, intptr_t stream"),
        ("comm_init_rank", "int nranks, comm_id, int rank"),
        ("comm_get_async_error", "comm"),
        ("comm_abort", "comm"),
        ("comm_destroy", "comm"),
        ("check_status", "int status"),
    ):
        assert getattr(nccl4py, name).__doc__.startswith(f"{name}({parameters})")
    assert {"broadcast", "reduce", "reduce_scatter", "get_version", "get_unique_id", "NCCLError"} <= set(dir(nccl4py))
    assert hasattr(nccl4py.UniqueId, "from_buffer")
