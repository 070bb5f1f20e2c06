"""Reading a DLPack capsule: the C structs of dlpack.h, versions 0 and 1, through ctypes.

Only what `hetcomm.calls.buffers` asks of an array that has no other protocol.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from hetcomm.types import MemoryKind

__all__ = ["Tensor", "tensor"]

_HOST = (1, 3, 11)  # kDLCPU, kDLCUDAHost, kDLROCMHost
_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_ROCM = (10,)
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_READ_ONLY = 1


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a capsule says: `kind` is None for a device hetcomm does not know; `owner` keeps the memory alive."""

    address: int
    count: int
    dtype: str
    kind: MemoryKind | None
    device_type: int
    contiguous: bool
    readonly: bool
    owner: Any


def tensor(array: Any) -> Tensor:
    """The tensor that `array.__dlpack__` shares, without a copy.

    Raises:
        BufferError, TypeError, ValueError, RuntimeError: As the array's own `__dlpack__`.
    """
    try:
        capsule = array.__dlpack__(max_version=(1, 0))
    except TypeError:  # made before version 1
        capsule = array.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, (ctypes.py_object,)
    if name(capsule) == b"dltensor_versioned":
        versioned = _Versioned.from_address(pointer(capsule, b"dltensor_versioned"))
        if versioned.major != 1:
            raise BufferError(f"DLPack version {versioned.major} is unknown")
        found, readonly = versioned.tensor, bool(versioned.flags & _READ_ONLY)
    else:
        found, readonly = _Tensor.from_address(pointer(capsule, b"dltensor")), False
    shape = [found.shape[axis] for axis in range(found.ndim)]
    count, contiguous = 1, True
    for axis in reversed(range(found.ndim)):
        if found.strides and shape[axis] > 1 and found.strides[axis] != count:
            contiguous = False
        count *= shape[axis]
    bits = found.bits if found.lanes == 1 else 0
    base = _CODES.get(found.code, f"code{found.code}_")
    return Tensor(
        address=(found.data or 0) + found.byte_offset,
        count=count,
        dtype="bool" if base == "bool" else f"{base}{bits}",
        kind=_kind(found.device_type),
        device_type=found.device_type,
        contiguous=contiguous or count == 0,
        readonly=readonly,
        owner=(array, capsule),
    )


def _kind(device_type: int) -> MemoryKind | None:
    if device_type in _HOST:
        return MemoryKind.HOST
    if device_type in _CUDA:
        return MemoryKind.CUDA
    return MemoryKind.ROCM if device_type in _ROCM else None
