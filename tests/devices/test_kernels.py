"""The source of the kernels, compiled by the host's compiler, gives what NumPy gives, bit for bit.

That is the same text that devices compile: element functions, packs of 16 bytes, heads and tails, and the division of
a run between threads. What differs on a device is how float16 is widened and narrowed.
"""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetcomm._conformance.reference import numpy_dtype
from hetcomm.calls.buffers import memory
from hetcomm.devices import arithmetic
from hetcomm.execution import local
from hetcomm.types import COMBINING, DataType, Memory, Number, ReduceKind, has_meaning, identity

from ..scripts import run

COMPILER = shutil.which("g++") or shutil.which("clang++")
# A pack of 16 bytes that is not aligned is a fault on a device; here it is made one.
CHECKED = ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")
OPTIONS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w", *CHECKED)
NUMBERS = [dtype for dtype in DataType if dtype is not DataType.BOOL]
ALL = [
    *((dtype, "fill") for dtype in DataType),
    *((dtype, what) for dtype in NUMBERS for what in ("multiply", "average")),
    *((dtype, op.value) for dtype in DataType for op in COMBINING if has_meaning(op, dtype)),
]
# NumPy multiplies complex numbers with FMA where the processor has it, which is what the kernels do.
FMA = "fma" in Path("/proc/cpuinfo").read_text() or "asimd" in Path("/proc/cpuinfo").read_text()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if COMPILER is None:
        pytest.skip("no C++ compiler on this machine")
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(arithmetic.source(ALL))
    run([COMPILER, "-DHETCOMM_HOST", *OPTIONS, "-shared", "-fPIC", "-o", "k.so", "kernels.cpp"], cwd=folder)
    return ctypes.CDLL(str(folder / "k.so"))


def of(array: Any) -> Memory:
    return memory(array, argument="a", rank=0, writable=True)


def launch(library: ctypes.CDLL, dtype: DataType, what: str, dst: Any, src: Any, scalar: Any = None) -> None:
    """The kernel as five threads would run it."""
    function = library[arithmetic.kernel_name(dtype, what)]
    arguments: list[Any] = [
        ctypes.c_void_p(dst.ctypes.data),
        ctypes.c_void_p(src.ctypes.data),
        ctypes.c_int64(len(dst)),
    ]
    if scalar is not None:
        arguments.append(_by_value(dtype, what, scalar))
    threads = 5
    for thread in range(threads):
        ctypes.c_int64.in_dll(library, "hetcomm_first").value = thread
        ctypes.c_int64.in_dll(library, "hetcomm_stride").value = threads
        function(*arguments)


class _Bool(ctypes.Structure):
    _fields_ = (("bits", ctypes.c_uint8),)


class _Half(ctypes.Structure):
    _fields_ = (("bits", ctypes.c_uint16),)


class _Complex64(ctypes.Structure):
    _fields_ = (("re", ctypes.c_float), ("im", ctypes.c_float))


class _Complex128(ctypes.Structure):
    _fields_ = (("re", ctypes.c_double), ("im", ctypes.c_double))


_STRUCTURES: dict[DataType, Any] = {
    DataType.BOOL: _Bool,
    DataType.FLOAT16: _Half,
    DataType.BFLOAT16: _Half,
    DataType.COMPLEX64: _Complex64,
    DataType.COMPLEX128: _Complex128,
}


def _by_value(dtype: DataType, what: str, scalar: Any) -> Any:
    """The one element as C passes it by value."""
    if dtype in _STRUCTURES and what != "average":
        return _STRUCTURES[dtype].from_buffer_copy(scalar.tobytes())
    return np.ctypeslib.as_ctypes_type(scalar.dtype)(scalar[0])


def values(dtype: DataType, count: int, seed: int) -> Any:
    """Random bits, so every kind of NaN, subnormal and extreme, and numbers of ordinary size beside them."""
    random = np.random.default_rng(seed)
    kind = numpy_dtype(dtype)
    bits = np.frombuffer(random.bytes(count * dtype.itemsize), kind).copy()
    if dtype.is_inexact:
        with np.errstate(all="ignore"):
            parts = random.standard_normal((count, 2)) * 10.0 ** random.integers(-6, 6, (count, 1))
            ordinary = (parts[:, 0] + 1j * parts[:, 1] if dtype.is_complex else parts[:, 0]).astype(kind)
            special = random.choice(np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 6e-8, 65504.0]), count)
        which = random.integers(0, 4, count)
        bits[which >= 2] = ordinary[which >= 2]
        bits[which == 1] = special.astype(kind)[which == 1]
    return bits


def pairs(dtype: DataType) -> Any:
    """Two arrays; of a type of 8 or 16 bits, with some 65,536 pairs or more."""
    one, other = values(dtype, 20_000, 1), values(dtype, 20_000, 2)
    if dtype.itemsize == 1:
        one, other = np.arange(256, dtype="u1").repeat(256).view(one.dtype), np.tile(np.arange(256, dtype="u1"), 256)
        other = other.view(one.dtype)
    elif dtype.itemsize == 2:
        every = np.arange(65536, dtype="u2").view(one.dtype)
        one = np.concatenate([one, every, every])
        other = np.concatenate([other, values(dtype, 65536, 3), every[::-1]])
    return np.ascontiguousarray(one), np.ascontiguousarray(other)


def assert_equal_bits(found: Any, expected: Any) -> None:
    """Equal bit by bit, where neither is NaN."""
    if found.dtype.kind == "c":
        found, expected = found.view(found.real.dtype), expected.view(expected.real.dtype)
    bits = f"u{found.dtype.itemsize}"
    same = found.view(bits) == expected.view(bits)
    if found.dtype.kind not in "biu":
        with np.errstate(all="ignore"):
            same |= (found != found) & (expected != expected)
    wrong = np.flatnonzero(~same)
    assert not len(wrong), f"{len(wrong)} differ, first at {wrong[0]}: {found[wrong[0]]} for {expected[wrong[0]]}"


@pytest.mark.parametrize("op", COMBINING)
@pytest.mark.parametrize("dtype", DataType)
def test_reductions_are_those_of_numpy(library: ctypes.CDLL, dtype: DataType, op: ReduceKind) -> None:
    if (dtype, op.value) not in ALL:
        return
    if dtype.is_complex and op is ReduceKind.PROD and not FMA:
        pytest.skip("NumPy rounds complex products otherwise on a processor without FMA")
    dst, src = pairs(dtype)
    expected = dst.copy()
    local.reduce(of(src), of(expected), op)
    launch(library, dtype, op.value, dst, src)
    assert_equal_bits(dst, expected)


@pytest.mark.parametrize("nranks", [1, 2, 3, 7, 300, 100_000])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_averages_are_those_of_the_host(library: ctypes.CDLL, dtype: DataType, nranks: int) -> None:
    src, _ = pairs(dtype)
    dst, expected = np.empty_like(src), np.empty_like(src)
    local.average(of(src), of(expected), nranks)
    launch(library, dtype, "average", dst, src, arithmetic.divisor(dtype, nranks))
    assert_equal_bits(dst, expected)


@pytest.mark.parametrize("factor", [0, 1, -3, 1 << 40, 0.1, 1e-7, 1 - 2j])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_products_with_a_factor_are_those_of_the_host(library: ctypes.CDLL, dtype: DataType, factor: Number) -> None:
    if (dtype.is_integer and not isinstance(factor, int)) or (isinstance(factor, complex) and not dtype.is_complex):
        return
    if dtype.is_complex and not FMA:
        pytest.skip("NumPy rounds complex products otherwise on a processor without FMA")
    src, _ = pairs(dtype)
    dst, expected = np.empty_like(src), np.empty_like(src)
    local.multiply(of(src), of(expected), factor)
    launch(library, dtype, "multiply", dst, src, arithmetic.factor(dtype, factor))
    assert_equal_bits(dst, expected)


@pytest.mark.parametrize("op", COMBINING)
@pytest.mark.parametrize("dtype", DataType)
def test_fill_is_the_identity(library: ctypes.CDLL, dtype: DataType, op: ReduceKind) -> None:
    if (dtype, op.value) not in ALL:
        return
    dst, expected = values(dtype, 100, 1), values(dtype, 100, 2)
    local.fill(of(expected), op)
    launch(library, dtype, "fill", dst, dst, arithmetic.factor(dtype, identity(op, dtype)))
    assert dst.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DataType)
def test_any_alignment_and_length_and_nothing_beside_it(library: ctypes.CDLL, dtype: DataType) -> None:
    unit = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
    room = 16 * dtype.itemsize
    for count in (0, 1, 2, 3, 15, 16, 17, 40, 131):
        for left in range(0, 16, unit):
            for right in {left, 0, (left + unit) % 16}:
                to, at = (np.full(room + count * dtype.itemsize + 64, 0xA5, "u1") for _ in range(2))
                first = -to.ctypes.data % 16 + 16 + left
                second = -at.ctypes.data % 16 + 16 + right
                dst = to[first : first + count * dtype.itemsize].view(numpy_dtype(dtype))
                src = at[second : second + count * dtype.itemsize].view(numpy_dtype(dtype))
                dst[...], src[...] = np.arange(count), 2
                what = "lxor" if dtype is DataType.BOOL else "sum"
                expected = getattr(np, ReduceKind(what).ufunc)(dst, src)
                launch(library, dtype, what, dst, src)
                assert np.array_equal(dst.astype("c16"), expected.astype("c16"))
                assert (to[:first] == 0xA5).all()
                assert (to[first + count * dtype.itemsize :] == 0xA5).all()


def test_the_cuda_compiler_takes_them_and_loads_16_bytes_at_once(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    some = [each for each in ALL if each[1] in ("fill", "prod", "lxor")]
    (tmp_path / "kernels.cu").write_text(arithmetic.source(some) + arithmetic.HOLD_SOURCE)
    command = [nvcc, "-ptx", "-arch=compute_90", "-std=c++17", "--fmad=false", "-o", "kernels.ptx", "kernels.cu"]
    run(command, cwd=tmp_path)
    text = (tmp_path / "kernels.ptx").read_text()
    bodies = {part.split("(", 1)[0].strip(): part for part in text.split(".visible .entry")[1:]}
    assert set(bodies) == {arithmetic.kernel_name(*each) for each in some} | {arithmetic.HOLD_NAME}
    for dtype, what in some:
        body = bodies[arithmetic.kernel_name(dtype, what)]
        assert ".ftz" not in body
        assert "fma." not in body or (dtype.is_complex and what == "prod")
        if what == "fill":
            assert "ld.global" not in body
            assert "st.global.v" in body
        else:
            assert "ld.global.v" in body
