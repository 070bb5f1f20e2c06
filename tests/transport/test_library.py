"""Which UCX is used: adoption, the wheel, what is said when there is none; and both import orders with MPI."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from hetcomm._ext import ucp
from hetcomm.errors import TransportError
from hetcomm.transport import library
from hetcomm.transport.library import Library, load_library, mapped_libraries
from hetcomm.types import Config

from ..scripts import python, run

MAPS = """\
7f00-7f01 r-xp 00000000 08:01 11 /usr/lib/libucs.so.0.0.0
7f01-7f02 r-xp 00000000 08:01 12 /usr/lib/libucp.so.0.0.0
7f02-7f03 r--p 00000000 08:01 12 /usr/lib/libucp.so.0.0.0
7f03-7f04 r-xp 00000000 08:01 13 /venv/mpich.libs/libucp-1a2b3c4d.so.0.0.0 (deleted)
7f04-7f05 r-xp 00000000 08:01 14 /venv/with space/libuct.so.0
7f05-7f06 r-xp 00000000 08:01 15 /usr/lib/libucp_extra.so.0
7f06-7f07 rw-p 00000000 00:00 0
"""


def in_process(code: str) -> str:
    """What a fresh interpreter prints, without UCX's remark on variables it does not know; its failure shows it all."""
    return python(code, UCX_WARN_UNUSED_ENV_VARS="n").stdout


def test_maps_are_read_with_mangled_names_and_spaces() -> None:
    assert mapped_libraries(MAPS.splitlines()) == {
        "ucp": ["/usr/lib/libucp.so.0.0.0", "/venv/mpich.libs/libucp-1a2b3c4d.so.0.0.0"],
        "ucs": ["/usr/lib/libucs.so.0.0.0"],
        "uct": ["/venv/with space/libuct.so.0"],
    }


def test_two_libraries_in_the_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "mapped_libraries", lambda: mapped_libraries(MAPS.splitlines()))
    with pytest.raises(TransportError, match=r"two UCX libraries.*libucp\.so\.0\.0\.0 and .*libucp-1a2b3c4d"):
        load_library()


def test_half_a_library_in_the_process_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    half = {"ucp": [], "ucs": [str(tmp_path / "libucs.so.0")], "uct": []}
    monkeypatch.setattr(library, "mapped_libraries", lambda: half)
    with pytest.raises(TransportError, match=r"libucs\.so\.0.*no libucp\.so\.0 beside it.*Import hetcomm first"):
        load_library()


def test_an_empty_home_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "mapped_libraries", lambda: {"ucp": [], "ucs": [], "uct": []})
    with pytest.raises(TransportError, match=r"HETCOMM_UCX_HOME=.* holds no lib/libucp\.so\.0"):
        load_library(Config(ucx_home=str(tmp_path)))


def test_no_library_at_all_names_the_remedy() -> None:
    printed = in_process(
        """
        import ctypes
        from hetcomm.errors import TransportError
        from hetcomm.transport import library
        library._wheel_folder = lambda: None
        def none(name, mode=0): raise OSError(f"{name}: not found")
        ctypes.CDLL = none
        try:
            library.load_library()
        except TransportError as error:
            print(error)
        """
    )
    assert "no UCX found" in printed
    assert "pip install libucx-cu12" in printed
    assert "HETCOMM_UCX_HOME" in printed


def test_a_library_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libucp.so.0").write_bytes(b"no library")
    monkeypatch.setattr(library, "mapped_libraries", lambda: {"ucp": [], "ucs": [], "uct": []})
    with pytest.raises(TransportError, match=r"libucp\.so\.0 cannot be loaded"):
        load_library(Config(ucx_home=str(tmp_path)))


def test_parts_of_another_library_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libucp.so.0").write_bytes(b"no library")
    found = {"ucp": [], "ucs": [], "uct": ["/elsewhere/libuct.so.0"]}
    monkeypatch.setattr(library, "mapped_libraries", lambda: found)
    monkeypatch.setattr(library, "_wheel_folder", lambda: tmp_path)
    with pytest.raises(TransportError, match=r"parts of another UCX.*/elsewhere/libuct\.so\.0.*Import hetcomm before"):
        load_library()


# What UCX 1.8 had of the functions hetcomm calls, up to the first one that it had not.
OLD_FUNCTIONS = [
    "ucp_init_version",
    "ucp_cleanup",
    *("ucp_config_read", "ucp_config_modify", "ucp_config_print", "ucp_config_release", "ucp_context_query"),
    *("ucp_worker_create", "ucp_worker_destroy", "ucp_worker_get_address", "ucp_worker_release_address"),
    *("ucp_worker_progress", "ucp_worker_get_efd", "ucp_worker_arm"),
]


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """The prefix of a UCX 1.8.3 that was never real; skips where there is no compiler."""
    (tmp_path / "lib").mkdir()
    source = "void ucp_get_version(unsigned *a, unsigned *b, unsigned *c) { *a = 1; *b = 8; *c = 3; }\n"
    source += "".join(f"void {name}(void) {{}}\n" for name in OLD_FUNCTIONS)
    (tmp_path / "old.c").write_text(source)
    try:
        run(["cc", "-w", "-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / "lib" / "libucp.so.0"])
    except FileNotFoundError:
        pytest.skip("no C compiler")
    return tmp_path


def test_an_explicit_home_wins_and_an_old_library_is_told_what_it_lacks(old_home: Path) -> None:
    printed = in_process(
        f"""
        from hetcomm.errors import TransportError
        from hetcomm.transport.library import load_library
        from hetcomm.transport.ucx import UcxTransport
        from hetcomm.types import Config
        config = Config.from_environ({{"HETCOMM_UCX_HOME": {str(old_home)!r}}})
        try:
            UcxTransport(config)
        except TransportError as error:
            print(error)
        print(load_library(config))
        """
    )
    file = old_home / "lib" / "libucp.so.0"
    assert f"UCX 1.8.3 at {file} lacks the function ucp_ep_flush_nbx" in printed
    assert "hetcomm needs UCX 1.10 or later: install libucx-cu12, or point HETCOMM_UCX_HOME to one" in printed
    assert f"UCX 1.8.3 at {file} (adopted)" in printed


def test_the_library_in_use_is_shown_and_another_refused() -> None:
    found = load_library()
    assert isinstance(found, Library)
    assert found.version.count(".") == 2
    assert found.version in str(found)
    ucp.resolve(found.path)
    with pytest.raises(TransportError, match="already uses"):
        ucp.resolve(found.path + ".other")


@pytest.mark.skipif(importlib.util.find_spec("libucx") is None, reason="needs the libucx wheel")
def test_the_wheel_is_loaded_without_importing_it() -> None:
    printed = in_process(
        """
        import sys
        from hetcomm.transport.ucx import UcxTransport
        transport = UcxTransport()
        print(transport.library.origin, "libucx" in sys.modules)
        """
    )
    assert printed.split() == ["wheel", "False"]


def test_the_extension_links_no_ucx() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    needed, symbols = (run(["readelf", what, ucp.__file__]) for what in ("-d", "-sW"))
    undefined = [line for line in symbols.stdout.splitlines() if " UND " in line]
    assert [line for line in undefined if " ucp_" in line or " ucs_" in line or " uct_" in line] == []
    assert "libuc" not in needed.stdout


MPI = "from mpi4py import MPI"
HETCOMM = "from hetcomm.transport.ucx import UcxTransport; transport = UcxTransport()"
ORDERS = {
    "MPI first": [MPI, HETCOMM],
    "hetcomm first": [HETCOMM, MPI],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("flavour", ["Open MPI", "MPICH"])
def test_both_import_orders_work(order: str, flavour: str) -> None:
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed")
    if flavour not in in_process("from mpi4py import MPI; print(MPI.Get_library_version())"):
        pytest.skip(f"{flavour} is not the MPI of this environment")
    rest = """
import numpy
from hetcomm.transport.library import mapped_libraries
transport.connect(0, transport.address)
source, target, summed = numpy.arange(200_000.0), numpy.zeros(200_000), numpy.zeros(200_000)
transport.wait([
    transport.send(source.ctypes.data, source.nbytes, 0, 1),
    transport.recv(target.ctypes.data, target.nbytes, 0, 1),
], 60.0)
MPI.COMM_WORLD.Allreduce(source, summed)
assert (target == source).all() and (summed == source).all()
assert len(mapped_libraries()["ucp"]) == 1
transport.close()
print(transport.library.origin)
"""
    printed = in_process("\n".join([*ORDERS[order], rest]))
    assert printed.split()[-1] in (("adopted",) if order == "MPI first" else ("wheel", "HETCOMM_UCX_HOME", "system"))


@pytest.mark.skipif(importlib.util.find_spec("ucxx") is None, reason="UCXX is not installed")
@pytest.mark.parametrize("order", ["hetcomm first", "UCXX first"])
def test_ucxx_may_come_before_or_after(order: str) -> None:
    ours, theirs = "import hetcomm; hetcomm.init().close()", "import ucxx"
    rest = """
import hetcomm
from hetcomm.transport.library import mapped_libraries
worker = ucxx.libucxx.UCXWorker(ucxx.libucxx.UCXContext())
with hetcomm.init(worker=worker) as comm:
    print({name: len(files) for name, files in mapped_libraries().items()})
"""
    printed = in_process("\n".join([*([ours, theirs] if order == "hetcomm first" else [theirs, ours]), rest]))
    assert printed.splitlines()[-1] == "{'ucp': 1, 'ucs': 1, 'uct': 1}"
