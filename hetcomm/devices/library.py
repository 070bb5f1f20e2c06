"""The CuPy of a kind of device: finding it, what differs between CUDA's and ROCm's, and what its errors mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hetcomm.errors import DeviceError
from hetcomm.types import MemoryKind

__all__ = ["DIFFERENCES", "Differences", "cupy_kind", "described", "load_cupy"]


@dataclass(frozen=True, slots=True)
class Differences:
    """What CUDA and ROCm do not have in common.

    Attributes:
        install: What installs CuPy for it.
        options: For the compiler: no fused multiplications, subnormal numbers kept.
        pinned: Flags of host memory that is mapped into the device and coherent with it, for all devices.
    """

    install: str
    options: tuple[str, ...]
    pinned: int


DIFFERENCES = {
    MemoryKind.CUDA: Differences(
        "pip install 'hetcomm[cuda12]' or 'hetcomm[cuda13]'",
        ("-std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true"),
        0x1 | 0x2,
    ),
    MemoryKind.ROCM: Differences(
        "pip install 'hetcomm[rocm]'",
        ("-std=c++17", "-ffp-contract=off", "-fno-gpu-flush-denormals-to-zero"),
        0x1 | 0x2 | 0x40000000,
    ),
}


def cupy_kind() -> MemoryKind | None:
    """What the installed CuPy drives, or None if there is none or no device for it; imports it.

    Raises:
        DeviceError: CuPy is there but cannot be imported.
    """
    try:
        import cupy
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        raise DeviceError(f"CuPy cannot be imported: {error}", remedy="Install the CuPy of this driver.") from error
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError:
        return None
    if not count:
        return None
    return MemoryKind.ROCM if runtime.is_hip else MemoryKind.CUDA


def described(error: BaseException, name: str) -> DeviceError:
    """What CuPy raised on the device called `name`, with what to do about it."""
    if isinstance(error, MemoryError):
        remedy = "Use smaller arrays, or give back what CuPy keeps: cupy.get_default_memory_pool().free_all_blocks()."
    elif "nvrtc" in (text := f"{type(error).__name__} {error}".lower()) or "hiprtc" in text or "compile" in text:
        remedy = "CuPy needs its compiler: pip install 'cupy-cuda12x[ctk]', or a CUDA or ROCm toolkit on this machine."
    else:
        remedy = "If an earlier kernel went wrong, the process must end; compute-sanitizer finds out which."
    return DeviceError(f"{name}: {type(error).__name__}: {error}", remedy=remedy)


def load_cupy(kind: MemoryKind) -> Any:
    """The module that drives devices of that kind.

    Raises:
        DeviceError: It is not installed, is made for the other kind, or finds no device.
    """
    install = DIFFERENCES[kind].install
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"arrays in {kind.value} memory need CuPy ({error})", remedy=install) from error
    runtime = cupy.cuda.runtime
    made_for = MemoryKind.ROCM if runtime.is_hip else MemoryKind.CUDA
    if made_for is not kind:
        raise DeviceError(
            f"arrays are in {kind.value} memory, but the installed CuPy is made for {made_for.value}",
            remedy=f"Uninstall that CuPy, then {install}.",
        )
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"CuPy finds no {kind.value} device ({error})",
            remedy="Look at 'hetcomm doctor' and at the driver; in a container, pass the devices in.",
        ) from error
    if not count:
        raise DeviceError(f"CuPy finds no {kind.value} device", remedy="Look at CUDA_VISIBLE_DEVICES.")
    return cupy
