"""What is an array: from any array object to a `Memory`, without a copy and without importing its library.

The rules of this file:

* An array library is looked up in `sys.modules` at most: whoever passes a tensor has imported its library.
* Never a silent copy. What cannot be used in place is a `UsageError` with rank, argument and remedy.
* The common case, a NumPy array, takes well under two microseconds; every question about why an array is no good is
  asked only after it was found to be no good.

Order of the protocols: NumPy arrays, PyTorch tensors, `__cuda_array_interface__`, the buffer protocol, `__dlpack__`.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, NoReturn

import numpy

from hetcomm.calls import dlpack
from hetcomm.errors import UsageError
from hetcomm.types import DataType, Memory, MemoryKind

__all__ = ["carried", "memory", "numpy_type", "overlap", "view"]

_SUPPORTED = ", ".join(dtype.value for dtype in DataType)
_CONTIGUOUS = "Pass numpy.ascontiguousarray(array), or the array library's equivalent."
_CONTIGUOUS_OUT = "Pass a contiguous array, such as numpy.ascontiguousarray(array), and copy the result from it."
_BY_NUMPY: dict[Any, DataType] = {
    numpy.dtype(dtype.value): dtype for dtype in DataType if dtype is not DataType.BFLOAT16
}
_TO_NUMPY: dict[DataType, Any] = {dtype: key for key, dtype in _BY_NUMPY.items()}
_EXPORTED = frozenset(_BY_NUMPY)
_DATA_OFFSET = object.__basicsize__  # of the field `data` in NumPy's public C struct PyArrayObject_fields
_pointer_at = ctypes.c_void_p.from_address

carried = _EXPORTED.__contains__
"""Whether a `numpy.dtype` is one hetcomm carries and the buffer protocol exports (bfloat16 is not)."""


def memory(array: Any, *, argument: str, rank: int, writable: bool) -> Memory:
    """The memory of `array`, which stays alive as long as the result.

    Args:
        array: Anything with the buffer protocol, `__cuda_array_interface__` or `__dlpack__`; 0-d arrays count one.
        argument: The name the caller knows it by, for messages.
        rank: Of this process, for messages.
        writable: Whether it will be written.

    Raises:
        UsageError: No array, not C-contiguous, read-only though it will be written, or of a dtype that is not one of
            `DataType`.
    """
    if isinstance(array, numpy.ndarray):
        dtype = _BY_NUMPY.get(array.dtype)
        flags = array.flags
        if dtype is not None and flags.c_contiguous and (flags.writeable or not writable):
            address = _pointer_at(id(array) + _DATA_OFFSET).value or 0
            return Memory(address, array.size, dtype, MemoryKind.HOST, array)
        return _numpy(array, argument, rank, writable)
    return _foreign(array, argument, rank, writable)


def numpy_type(dtype: DataType) -> Any:
    """NumPy's type object; bfloat16 is that of `ml_dtypes`."""
    return _TO_NUMPY.get(dtype) or _bfloat16()


def view(memory: Memory) -> Any:
    """A NumPy array on host memory; it does not keep the memory alive."""
    dtype = numpy_type(memory.dtype)
    if memory.count == 0:
        return numpy.empty(0, dtype)
    raw: Any = (ctypes.c_char * memory.nbytes).from_address(memory.address)
    return numpy.frombuffer(raw, dtype)


def overlap(one: Memory, other: Memory) -> bool:
    """Whether they share a byte."""
    return (
        one.kind is other.kind
        and one.address < other.address + other.nbytes
        and other.address < one.address + one.nbytes
        and one.count > 0
        and other.count > 0
    )


def _numpy(array: Any, argument: str, rank: int, writable: bool) -> Memory:
    """The slow path of NumPy arrays: bfloat16 before it was first seen, or an error that says what is wrong."""
    if array.dtype.name == "bfloat16" and array.dtype.isbuiltin == 2 and array.dtype not in _BY_NUMPY:
        _BY_NUMPY[array.dtype] = DataType.BFLOAT16  # from then on it takes the fast path
        _TO_NUMPY[DataType.BFLOAT16] = array.dtype
        return memory(array, argument=argument, rank=rank, writable=writable)
    if array.dtype not in _BY_NUMPY:
        _refuse_dtype(array.dtype, argument, rank)
    if array.flags.c_contiguous:
        return _refuse_readonly(argument, rank)
    return _refuse_strides(argument, rank, writable, f"shape {array.shape}, strides {array.strides}")


def _foreign(array: Any, argument: str, rank: int, writable: bool) -> Memory:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _torch(array, torch, argument, rank, writable)
    device = getattr(array, "__cuda_array_interface__", None)
    if device is not None:
        return _device(array, device, argument, rank, writable)
    try:
        exported = memoryview(array)
    except (TypeError, ValueError, BufferError, NotImplementedError):
        if hasattr(array, "__dlpack__"):
            return _dlpack(array, argument, rank, writable)
        raise UsageError(
            f"argument {argument!r} is a {_name(array)}, which is no array",
            remedy="Pass a NumPy, CuPy or PyTorch array, or anything with the buffer protocol, "
            "__cuda_array_interface__ or __dlpack__.",
            rank=rank,
        ) from None
    try:
        as_array = numpy.asarray(exported)
    except (TypeError, ValueError) as error:  # a format that NumPy has no dtype for
        _refuse_dtype(f"of buffer format {exported.format!r} ({error})", argument, rank)
    found = memory(as_array, argument=argument, rank=rank, writable=writable)
    return Memory(found.address, found.count, found.dtype, found.kind, (array, as_array))


def _torch(tensor: Any, torch: Any, argument: str, rank: int, writable: bool) -> Memory:
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = _by_name(name)
    if dtype is None:
        _refuse_dtype(name, argument, rank)
    if tensor.layout is not torch.strided or not tensor.is_contiguous():
        _refuse_strides(argument, rank, writable, f"a {tensor.layout} tensor of shape {tuple(tensor.shape)}")
    if tensor.is_conj() or tensor.is_neg():
        _refuse_strides(argument, rank, writable, "a lazily conjugated or negated tensor")
    if tensor.device.type not in ("cpu", "cuda"):
        _refuse_device(f"PyTorch device {tensor.device}", argument, rank)
    kind = MemoryKind.HOST if tensor.device.type == "cpu" else _device_kind()
    return Memory(tensor.data_ptr(), tensor.numel(), dtype, kind, tensor)


def _device(array: Any, interface: Any, argument: str, rank: int, writable: bool) -> Memory:
    """An array in device memory, as `__cuda_array_interface__` describes it (ROCm's libraries use the same one)."""
    dtype = _by_typestr(interface["typestr"], array)
    if dtype is None:
        _refuse_dtype(interface["typestr"], argument, rank)
    count, dense = 1, []
    for extent in reversed(interface["shape"]):
        dense.append(count * dtype.itemsize)
        count *= extent
    strides = interface.get("strides")
    if strides is not None and count > 1:
        for extent, stride, wanted in zip(interface["shape"], strides, reversed(dense), strict=True):
            if extent > 1 and stride != wanted:
                _refuse_strides(argument, rank, writable, f"shape {interface['shape']}, strides {strides}")
    address, readonly = interface["data"]
    if readonly and writable:
        _refuse_readonly(argument, rank)
    return Memory(address, count, dtype, _device_kind(), array)


def _dlpack(array: Any, argument: str, rank: int, writable: bool) -> Memory:
    if writable and type(array).__module__.partition(".")[0] in ("jax", "jaxlib"):
        _refuse_readonly(argument, rank)  # JAX arrays never change, though its capsules do not say so
    try:
        tensor = dlpack.tensor(array)
    except (BufferError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"argument {argument!r}, a {_name(array)}, does not give its memory away: {error}",
            remedy="Pass an array whose memory DLPack can share.",
            rank=rank,
        ) from error
    dtype = _by_name(tensor.dtype)
    if dtype is None:
        _refuse_dtype(tensor.dtype, argument, rank)
    if tensor.kind is None:
        _refuse_device(f"DLPack device type {tensor.device_type}", argument, rank)
    if not tensor.contiguous:
        _refuse_strides(argument, rank, writable, f"a {_name(array)} with strides")
    if tensor.readonly and writable:
        _refuse_readonly(argument, rank)
    return Memory(tensor.address, tensor.count, dtype, tensor.kind, tensor.owner)


def _by_name(name: str) -> DataType | None:
    try:
        return DataType(name)
    except ValueError:
        return None


def _by_typestr(typestr: str, array: Any) -> DataType | None:
    if str(getattr(array, "dtype", "")) == "bfloat16":  # the interface has no code for it
        return DataType.BFLOAT16
    try:
        return _BY_NUMPY.get(numpy.dtype(typestr))
    except TypeError:
        return None


def _device_kind() -> MemoryKind:
    """CUDA or ROCm: a process has one of them, and the library the array is from knows which."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and torch.version.hip is not None:
        return MemoryKind.ROCM
    if cupy is not None and cupy.cuda.runtime.is_hip:
        return MemoryKind.ROCM
    return MemoryKind.CUDA


def _bfloat16() -> Any:
    """NumPy's dtype for bfloat16, which the package ml_dtypes adds."""
    import ml_dtypes

    _TO_NUMPY[DataType.BFLOAT16] = found = numpy.dtype(ml_dtypes.bfloat16)
    _BY_NUMPY[found] = DataType.BFLOAT16
    return found


def _name(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}".removeprefix("builtins.")


def _refuse_dtype(dtype: Any, argument: str, rank: int) -> NoReturn:
    remedy = f"Supported are {_SUPPORTED}."
    if isinstance(dtype, numpy.dtype):
        if not dtype.isnative and dtype.newbyteorder("=") in _BY_NUMPY:
            remedy = f"Convert it: array.astype(array.dtype.newbyteorder('=')). {remedy}"
        elif dtype.hasobject:
            remedy = f"Arrays of Python objects cannot be sent; convert it to numbers. {remedy}"
    described = f"of dtype {dtype}" if not str(dtype).startswith("of ") else str(dtype)
    if isinstance(dtype, numpy.dtype) and not dtype.isnative:
        described = f"of dtype {dtype.str} (byte-swapped)"
    raise UsageError(f"argument {argument!r} is {described}, which hetcomm does not carry", remedy=remedy, rank=rank)


def _refuse_strides(argument: str, rank: int, writable: bool, described: str) -> NoReturn:
    raise UsageError(
        f"argument {argument!r} is not C-contiguous ({described})",
        remedy=_CONTIGUOUS_OUT if writable else _CONTIGUOUS,
        rank=rank,
    )


def _refuse_readonly(argument: str, rank: int) -> NoReturn:
    raise UsageError(
        f"argument {argument!r} is read-only, but the result is written into it",
        remedy="Pass a writable array, for example a copy.",
        rank=rank,
    )


def _refuse_device(where: str, argument: str, rank: int) -> NoReturn:
    raise UsageError(
        f"argument {argument!r} lives on {where}, which hetcomm cannot reach",
        remedy="Pass an array in host, CUDA or ROCm memory.",
        rank=rank,
    )
