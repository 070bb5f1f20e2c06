"""Memory is found in any array, never copied, and what cannot be used is refused with a remedy."""

from __future__ import annotations

import array
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hetcomm.calls.buffers import memory, overlap, view
from hetcomm.errors import UsageError
from hetcomm.types import DataType, Memory, MemoryKind


def of(value: Any, writable: bool = False) -> Memory:
    return memory(value, argument="x", rank=3, writable=writable)


@pytest.mark.parametrize("dtype", DataType)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (4, 1, 2)], ids=str)
def test_numpy_arrays_share_their_memory(dtype: DataType, shape: tuple[int, ...]) -> None:
    name: Any = ml_dtypes.bfloat16 if dtype is DataType.BFLOAT16 else dtype.value
    value = np.zeros(shape, name)
    found = of(value, writable=True)
    assert (found.count, found.dtype, found.kind) == (value.size, dtype, MemoryKind.HOST)
    assert found.address == value.__array_interface__["data"][0] or value.size == 0
    view(found)[...] = 1
    assert (value == 1).all()


@pytest.mark.parametrize(
    ("value", "dtype", "count"),
    [
        (bytearray(6), DataType.UINT8, 6),
        (array.array("d", [1, 2]), DataType.FLOAT64, 2),
        (memoryview(bytearray(8)).cast("i"), DataType.INT32, 2),
        (np.arange(4, dtype="f4").data, DataType.FLOAT32, 4),
        (memoryview(bytearray(3)).cast("?"), DataType.BOOL, 3),
    ],
    ids=["bytearray", "array.array", "memoryview", "numpy buffer", "bool"],
)
def test_other_buffers_share_their_memory(value: Any, dtype: DataType, count: int) -> None:
    found = of(value, writable=True)
    assert (found.count, found.dtype) == (count, dtype)
    view(found)[0] = 1
    assert memoryview(value)[0] == 1


def test_read_only_memory_can_be_read() -> None:
    assert of(b"abc").count == 3
    with pytest.raises(UsageError, match="'x' is read-only.*writable"):
        of(b"abc", writable=True)


class OnlyDlpack:
    """An array that offers nothing but DLPack, as NumPy makes it."""

    def __init__(self, values: Any, old: bool = False) -> None:
        self._values, self._old = values, old

    def __dlpack__(self, **options: Any) -> Any:
        if self._old and options:
            raise TypeError("unexpected keyword argument")
        return self._values.__dlpack__(**options)


@pytest.mark.parametrize("old", [False, True], ids=["version 1", "version 0"])
def test_dlpack(old: bool) -> None:
    value = np.arange(6, dtype="i2").reshape(2, 3)
    found = of(OnlyDlpack(value, old), writable=True)
    assert (found.address, found.count, found.dtype) == (value.ctypes.data, 6, DataType.INT16)
    with pytest.raises(UsageError, match="not C-contiguous"):
        of(OnlyDlpack(value[:, ::2], old))
    flags = value > 1
    found = of(OnlyDlpack(flags, old), writable=True)
    assert (found.address, found.count, found.dtype) == (flags.ctypes.data, 6, DataType.BOOL)
    with pytest.raises(UsageError, match="float128|longdouble|complex256"):
        of(OnlyDlpack(np.zeros(2, "g"), old))


def test_read_only_dlpack() -> None:
    value = np.arange(3)
    value.flags.writeable = False
    assert of(OnlyDlpack(value)).count == 3
    with pytest.raises(UsageError, match="read-only"):
        of(OnlyDlpack(value), writable=True)


class OnDevice:
    """What a CUDA array looks like from outside."""

    def __init__(self, **interface: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3, **interface
        }  # fmt: skip


def test_device_arrays() -> None:
    found = of(OnDevice(), writable=True)
    assert found == Memory(4096, 6, DataType.FLOAT32, MemoryKind.CUDA, found.owner)
    assert of(OnDevice(strides=(12, 4))).count == 6
    assert of(OnDevice(shape=(1, 3), strides=(999, 4))).count == 3, "the stride of an axis of length one is no matter"
    with pytest.raises(UsageError, match="not C-contiguous"):
        of(OnDevice(strides=(24, 8)))
    with pytest.raises(UsageError, match="read-only"):
        of(OnDevice(data=(4096, True)), writable=True)
    assert of(OnDevice(typestr="|b1")).dtype is DataType.BOOL
    with pytest.raises(UsageError, match=r"\|S1"):
        of(OnDevice(typestr="|S1"))


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    for name in ("float32", "bfloat16", "int64", "complex64", "bool"):
        tensor = torch.ones(3, dtype=getattr(torch, name))
        found = of(tensor, writable=True)
        assert (found.address, found.count, found.dtype.value) == (tensor.data_ptr(), 3, name)
    with pytest.raises(UsageError, match="contiguous"):
        of(torch.ones(4, 4).t())
    with pytest.raises(UsageError, match="float8_e4m3fn"):
        of(torch.ones(4).to(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((4, 4))[:, :2], ["not C-contiguous", "ascontiguousarray"]),
        (np.zeros((4, 4), order="F"), ["not C-contiguous"]),
        (np.zeros(2, object), ["dtype object", "Python objects"]),
        (np.zeros(2, ">i4"), ["byte-swapped", "newbyteorder"]),
        (np.zeros(2, "U3"), ["dtype <U3", "Supported are bool, int8"]),
        (np.zeros(2, [("a", "f4")]), ["Supported are bool, int8"]),
        (np.zeros(2, "g"), ["Supported are bool, int8"]),
        (np.zeros(2, "M8[s]"), ["Supported are bool, int8"]),
        ([1.0], ["list", "no array"]),
        (None, ["NoneType", "no array"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(getattr(value, "dtype", value)),
)
def test_what_cannot_be_used_is_refused(value: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        of(value)
    assert caught.value.rank == 3
    for word in ["'x'", *words]:
        assert word in str(caught.value)


def test_overlap() -> None:
    values = np.zeros(10)
    assert overlap(of(values[:6]), of(values[5:]))
    assert not overlap(of(values[:5]), of(values[5:]))
    assert not overlap(of(values[:0]), of(values))
