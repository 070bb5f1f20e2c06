"""The vendors there are: the built-in ones and those that installed packages declare, by name.

Looking one up imports its file here, never the foreign library behind it: that happens in `Vendor.create`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from hetcomm.errors import UsageError, VendorError
from hetcomm.vendors.base import Vendor

__all__ = ["ENTRY_POINT_GROUP", "names", "usable_vendor", "vendor"]

ENTRY_POINT_GROUP = "hetcomm.vendors"

_BUILT_IN = {
    "mpi": ("hetcomm.vendors.mpi", "MpiVendor"),
    "oneccl": ("hetcomm.vendors.oneccl", "OneCclVendor"),
    "gloo": ("hetcomm.vendors.gloo", "GlooVendor"),
    "ucx": ("hetcomm.vendors.ucx", "UcxVendor"),
    "nccl": ("hetcomm.vendors.nccl", "NcclVendor"),
    "rccl": ("hetcomm.vendors.nccl", "RcclVendor"),
}


def names() -> tuple[str, ...]:
    """Every known vendor's name, usable here or not: the built-in ones first, then those of other packages."""
    return (*_BUILT_IN, *sorted(point.name for point in _entry_points() if point.name not in _BUILT_IN))


def vendor(name: str) -> Vendor:
    """The vendor called `name`, usable here or not (`Vendor.availability` says which).

    Raises:
        UsageError: There is none; the message lists those there are.
        VendorError: Another package declares it but cannot deliver it.
    """
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        made: Vendor = getattr(import_module(module), attribute)()
        return made
    for point in _entry_points():
        if point.name == name:
            return _from_entry_point(point)
    raise UsageError(
        f"vendor {name!r} is not known",
        remedy=f"Use one of {', '.join(names())}, or install the package that provides it.",
    )


def usable_vendor(name: str) -> Vendor:
    """The vendor called `name`, which can be used in this process.

    Raises:
        UsageError: There is none of that name; the message lists those there are.
        VendorError: It cannot be used here; the remedy says what to install or set.
    """
    found = vendor(name)
    state = found.availability()
    if not state.usable:
        raise VendorError(f"vendor {name!r} cannot be used here: {state.reason}", remedy=state.remedy or None)
    return found


def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _from_entry_point(point: EntryPoint) -> Vendor:
    package = point.dist.name if point.dist is not None else point.value
    try:
        factory: Callable[[], Vendor] = point.load()
        return factory()
    except Exception as error:
        raise VendorError(
            f"vendor {point.name!r} of the package {package} could not be loaded: {error}",
            remedy=f"Repair or remove {package}.",
        ) from error
