"""The vendors `nccl` and `rccl`: NVIDIA's NCCL and AMD's RCCL, which is made after it, on device memory.

One class serves both; `Flavour` holds what differs. Calls are queued on streams, so a communicator never waits. What
is not left to the libraries, after the sources of NCCL 2.30 and RCCL 2.21 (src/device/reduce_kernel.h, src/init.cc):

* min and max of floats: they are fminf and the like, which lose NaN.
* int16, uint16 and bool, bitwise and logical operations, and products of complex numbers: there are none. Sums of
  complex numbers are sums of twice as many reals. These and the former are composed in `hetcomm.vendors.nccl_detours`,
  on the device.
* Everything that is only moved travels as bytes.
* Ranks that share a GPU: only the two ranks concerned fail, and only after all have met, while the others wait for
  ever. So the ranks compare their GPUs first.
* Connections made at the first call of an algorithm: the host would wait for the other ranks, and for memory, in a call
  that must return at once. They are made with the communicator (`NCCL_RUNTIME_CONNECT=0`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

from hetcomm.devices import open_device
from hetcomm.devices.base import Device
from hetcomm.errors import HetcommError, VendorError
from hetcomm.types import COMBINING, DataType, MemoryKind, ReduceKind, has_meaning
from hetcomm.vendors.base import (
    COLLECTIVES,
    Availability,
    Capabilities,
    Group,
    VendorCommunicator,
)
from hetcomm.vendors.nccl_binding import Binding, open_binding, place
from hetcomm.vendors.nccl_communicator import OPS, REDUCED_AS, NcclCommunicator
from hetcomm.vendors.nccl_library import Flavour, look, version_text

__all__ = ["NcclVendor", "RcclVendor"]

_NCCL = Flavour(
    name="nccl",
    title="NCCL",
    memory=MemoryKind.CUDA,
    library="libnccl.so.2",
    device_files=("/dev/nvidiactl", "/dev/dxg"),
    container="--gpus all",
    packages=("nvidia-nccl-cu12", "nvidia-nccl-cu13"),
    folders=("/usr/local/cuda/lib64",),
    install="pip install 'hetcomm[cuda12]' or 'hetcomm[cuda13]'",
    settings=(("NCCL_RUNTIME_CONNECT", "0"),),
    shared_from=23003,
)
_RCCL = Flavour(
    name="rccl",
    title="RCCL",
    memory=MemoryKind.ROCM,
    library="librccl.so.1",
    device_files=("/dev/kfd",),
    container="--device /dev/kfd --device /dev/dri",
    packages=(),
    folders=("/opt/rocm/lib",),
    install="pip install 'hetcomm[rocm]', beside the ROCm of the system",
    settings=(("RCCL_MSCCLPP_ENABLE", "0"),),  # its all_reduce of short vectors begins with each rank's own input
    shared_from=None,
)

_SHARE = "NCCL_MULTI_RANK_GPU_ENABLE"


def _is_native(dtype: DataType, op: ReduceKind) -> bool:
    """Whether the libraries do it, and do it right."""
    if dtype not in REDUCED_AS or op not in OPS:
        return False
    return not dtype.is_inexact or op is ReduceKind.SUM or (op is ReduceKind.PROD and not dtype.is_complex)


def _capabilities(memory: MemoryKind) -> Capabilities:
    return Capabilities(
        memory=frozenset({memory}),
        collectives=COLLECTIVES,
        dtypes=frozenset(DataType),
        ops=frozenset(COMBINING),
        composed=frozenset(
            (dtype, op)
            for dtype in DataType
            for op in COMBINING
            if has_meaning(op, dtype) and not _is_native(dtype, op)
        ),
        streams=True,
    )


@dataclass(frozen=True, slots=True)
class _Statement:
    """What a rank says before a communicator is made.

    Attributes:
        problem: Why it cannot take part; '' if it can.
        version: Its library's.
        place: Its GPU, as `nccl_binding.place` tells it.
        shares: Whether the user lets ranks share a GPU there.
        unique_id: In hexadecimal; of rank 0 only.
    """

    problem: str = ""
    version: int = 0
    place: str = ""
    shares: bool = False
    unique_id: str = ""


class NcclVendor:
    """Makes NCCL communicators; needs no MPI, only the group.

    Args:
        opener: Opens the calling thread's device of a kind.
    """

    name = _NCCL.name
    capabilities = _capabilities(_NCCL.memory)
    _flavour = _NCCL

    def __init__(self, opener: Callable[[MemoryKind], Device] = open_device) -> None:
        self._opener = opener

    def availability(self) -> Availability:
        """Whether CuPy, a wrapper, the library and a GPU are there; loads none of them and makes no device context."""
        found = look(self._flavour)
        if found.reason:
            return Availability(False, reason=found.reason, remedy=found.remedy)
        version = f"{self._flavour.title} {found.version}".rstrip()
        return Availability(True, version=f"{version} through {found.wrapper} ({found.path})")

    def create(self, group: Group) -> VendorCommunicator:
        """A communicator over `group`, on each thread's current device; collective.

        Sets those of the library's environment variables that hetcomm needs and the user has not set.

        Raises:
            VendorError: On each rank alike where CuPy or the library is missing on one of them, their versions
                differ, or two of them share a GPU and the library does not let them; on each rank for itself where
                the library cannot connect them.
        """
        if group.nranks == 1:
            device = self._opener(self._flavour.memory)
            return NcclCommunicator(self.name, self.capabilities, device, 0, 1, None)
        opened, binding, statement = None, None, _Statement()
        try:
            opened = self._opener(self._flavour.memory)
            binding = open_binding(self._flavour)
            statement = self._state(binding, first=group.rank == 0)
        except HetcommError as error:
            statement = _Statement(problem=str(error))
        said = json.dumps(astuple(statement)).encode()
        statements = [_Statement(*json.loads(answer)) for answer in group.all_gather(said)]
        self._agree(statements, group.rank)
        assert opened is not None  # there was no problem
        assert binding is not None
        try:
            connection = binding.connect(group.nranks, bytes.fromhex(statements[0].unique_id), group.rank)
        except binding.errors as error:
            text = f"vendor {self.name!r}: creating a communicator failed: {binding.explain(error)}"
            raise VendorError(text, remedy="NCCL_DEBUG=INFO lets the library say more.", rank=group.rank) from error
        return NcclCommunicator(self.name, self.capabilities, opened, group.rank, group.nranks, (binding, connection))

    def _state(self, binding: Binding, *, first: bool) -> _Statement:
        try:
            version = binding.version()
            unique_id = binding.unique_id().hex() if first else ""
        except binding.errors as error:
            raise VendorError(f"{self._flavour.title} does not start: {binding.explain(error)}") from error
        shares = os.environ.get(_SHARE, "0") not in ("", "0")  # the library's own variable, as it will read it
        return _Statement("", version, place(version), shares, unique_id)

    def _agree(self, statements: Sequence[_Statement], rank: int) -> None:
        """Raise on all ranks what keeps any of them from taking part."""
        title, first = self._flavour.title, statements[0]
        seen: dict[str, int] = {}
        for number, statement in enumerate(statements):
            where = f"vendor {self.name!r} failed on rank {number} of its cluster"
            if statement.problem:
                raise VendorError(f"{where}: {statement.problem}", rank=rank)
            if statement.version != first.version:
                versions = f"{version_text(statement.version)}, and rank 0 has {version_text(first.version)}"
                remedy = f"Install one {title} on all of them, or tell the hosts apart with HETCOMM_CLUSTER."
                raise VendorError(f"{where}: it has {title} {versions}", remedy=remedy, rank=rank)
            other = seen.setdefault(statement.place, number)
            if other != number and not self._may_share(first.version, statements):
                raise VendorError(
                    f"{where}: it shares a GPU with rank {other}, which {title} {version_text(first.version)} refuses",
                    remedy=self._how_to_share(first.version),
                    rank=rank,
                )

    def _may_share(self, version: int, statements: Sequence[_Statement]) -> bool:
        since = self._flavour.shared_from
        return since is not None and version >= since and all(statement.shares for statement in statements)

    def _how_to_share(self, version: int) -> str:
        elsewhere = "Give each rank a GPU of its own, or set HETCOMM_VENDOR=ucx on these ranks"
        since = self._flavour.shared_from
        if since is None:
            return f"{elsewhere}."
        newer = "" if version >= since else f"install {self._flavour.title} {version_text(since)} or later and "
        return f"{elsewhere}; or {newer}set {_SHARE}=1 on all of them."


class RcclVendor(NcclVendor):
    """Makes RCCL communicators, as `NcclVendor` makes NCCL's."""

    name = _RCCL.name
    capabilities = _capabilities(_RCCL.memory)
    _flavour = _RCCL
