"""The arithmetic of a device as text: one C++ source for CUDA, ROCm and, in tests, the host's own compiler.

Every kernel is `dst[i] = f(dst[i], src[i])` over a run of elements, read and written 16 bytes at a time where both runs
are aligned alike. The values are those that NumPy gives in `hetcomm.execution.local`, so the source says how each type
is computed instead of leaving it to a library: integers wrap around; 16-bit floats are computed in float32 and rounded
once; of two equal numbers (zeros of either sign) min and max give the one that NumPy gives; a product of complex
numbers has one fused multiplication in each part, as NumPy's has on every processor with FMA. It needs no header, and
must be compiled without contraction of other multiplications and without flushing subnormal numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy

from hetcomm.types import DataType, Number, ReduceKind

__all__ = ["HOLD_NAME", "HOLD_SOURCE", "divisor", "factor", "kernel_name", "kernels_of", "source"]

_CTYPES = {
    DataType.BOOL: "Bool",
    DataType.INT8: "signed char",
    DataType.INT16: "short",
    DataType.INT32: "int",
    DataType.INT64: "long long",
    DataType.UINT8: "unsigned char",
    DataType.UINT16: "unsigned short",
    DataType.UINT32: "unsigned",
    DataType.UINT64: "unsigned long long",
    DataType.FLOAT16: "Float16",
    DataType.BFLOAT16: "Bfloat16",
    DataType.FLOAT32: "float",
    DataType.FLOAT64: "double",
    DataType.COMPLEX64: "Complex<float>",
    DataType.COMPLEX128: "Complex<double>",
}
_SCALED = ("fill", "multiply", "average")


def kernels_of(op: ReduceKind) -> tuple[str, ...]:
    """What arithmetic a collective with that op needs."""
    extra = {ReduceKind.AVG: ("average",), ReduceKind.PREMUL_SUM: ("multiply",)}.get(op, ())
    return ("fill", op.combining.value, *extra)


def source(kernels: Iterable[tuple[DataType, str]]) -> str:
    """C++ with the kernels `kernel_name(dtype, what)`.

    Args:
        kernels: Each once: a type, and 'fill', 'multiply', 'average' or the value of a `ReduceKind` that has a meaning
            for it.
    """
    lines = [
        f"HETCOMM_{'SCALED' if what in _SCALED else 'REDUCED'}({dtype.value}, {what}, {_CTYPES[dtype]})"
        for dtype, what in kernels
    ]
    return "\n".join([_SOURCE, *lines, "}\n"])


def kernel_name(dtype: DataType, what: str) -> str:
    """The name of a kernel `(dst, src, count)`, with a scalar behind it for those that are no reduction.

    The scalar is a `divisor` for 'average', else a `factor`. Fill reads no `src`.
    """
    return f"hetcomm_{dtype.value}_{what}"


def factor(dtype: DataType, value: Number) -> Any:
    """`value` as one element, a NumPy array of one; integers wrap around, whatever the sign."""
    if dtype is DataType.BOOL:
        return numpy.array([value != 0], "uint8")
    with numpy.errstate(all="ignore"):
        if dtype.is_integer:
            bits = 8 * dtype.itemsize
            return numpy.array([int(value.real) & (1 << bits) - 1], f"uint{bits}")
        wide = numpy.array([value], "complex128" if dtype.is_complex else "float64")
        if dtype is DataType.BFLOAT16:
            import ml_dtypes

            return wide.astype(ml_dtypes.bfloat16).view("uint16")
        return wide.astype(dtype.value)


def divisor(dtype: DataType, nranks: int) -> Any:
    """`nranks`, below 2^31, as `average` divides by it, a NumPy array of one: 16-bit floats by a float32, complex
    numbers by a real one, integers by one of at least 32 bits."""
    if dtype.is_integer:
        sign = "int" if dtype.is_signed else "uint"
        return numpy.array([nranks], f"{sign}{max(32, 8 * dtype.itemsize)}")
    double = dtype in (DataType.FLOAT64, DataType.COMPLEX128)
    return numpy.array([nranks], "float64" if double else "float32")


_SOURCE = r"""
#ifdef HETCOMM_HOST
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define KERNEL extern "C" void
extern "C" { long long hetcomm_first = 0, hetcomm_stride = 1; }
#define FIRST hetcomm_first
#define STRIDE hetcomm_stride
#else
#define DEVICE __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define FIRST (blockIdx.x * (long long)blockDim.x + threadIdx.x)
#define STRIDE (gridDim.x * (long long)blockDim.x)
#endif

namespace hetcomm {

typedef unsigned long long u64;
struct Bool { unsigned char bits; };
struct Float16 { unsigned short bits; };
struct Bfloat16 { unsigned short bits; };
template <typename T> struct Complex { T re, im; };

// ---- 16-bit floats

union Word { float number; unsigned bits; };
DEVICE unsigned bits_of(float number) { Word word; word.number = number; return word.bits; }
DEVICE float number_of(unsigned bits) { Word word; word.bits = bits; return word.number; }

DEVICE float widen(Bfloat16 x) { return number_of((unsigned)x.bits << 16); }

DEVICE void narrow(float x, Bfloat16 &to) {
    unsigned bits = bits_of(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to.bits = (unsigned short)(nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#if defined(__CUDA_ARCH__)
DEVICE float widen(Float16 x) { float to; asm("cvt.f32.f16 %0, %1;" : "=f"(to) : "h"(x.bits)); return to; }
DEVICE void narrow(float x, Float16 &to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
#elif defined(__HIP__) || defined(HETCOMM_NATIVE_FLOAT16)
union Half { _Float16 number; unsigned short bits; };
DEVICE float widen(Float16 x) { Half half; half.bits = x.bits; return (float)half.number; }
DEVICE void narrow(float x, Float16 &to) { Half half; half.number = (_Float16)x; to.bits = half.bits; }
#else
DEVICE float widen(Float16 x) {
    unsigned sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31u, mantissa = x.bits & 0x3ffu;
    if (exponent == 0) return number_of(sign | bits_of((float)mantissa * (1.0f / 16777216.0f)));
    return number_of(sign | (exponent == 31u ? 0x7f800000u : (exponent + 112u) << 23) | mantissa << 13);
}
DEVICE void narrow(float x, Float16 &to) {
    unsigned bits = bits_of(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu, result;
    if (size > 0x7f800000u) result = 0x7e00u;
    else if (size >= 0x477ff000u) result = 0x7c00u;
    else if (size < 0x38800000u) result = bits_of(number_of(size) + 0.5f) - 0x3f000000u;  // subnormal: rounded at 2^-24
    else result = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
    to.bits = (unsigned short)(sign | result);
}
#endif

// ---- sum and prod

template <int size> struct Unsigned { typedef unsigned type; };
template <> struct Unsigned<8> { typedef u64 type; };

template <typename T> DEVICE T sum(T a, T b) {
    typedef typename Unsigned<sizeof(T)>::type Wide;
    return (T)((Wide)a + (Wide)b);
}
template <typename T> DEVICE T prod(T a, T b) {
    typedef typename Unsigned<sizeof(T)>::type Wide;
    return (T)((Wide)a * (Wide)b);
}
DEVICE float sum(float a, float b) { return a + b; }
DEVICE double sum(double a, double b) { return a + b; }
DEVICE float prod(float a, float b) { return a * b; }
DEVICE double prod(double a, double b) { return a * b; }
DEVICE Float16 sum(Float16 a, Float16 b) { Float16 to; narrow(widen(a) + widen(b), to); return to; }
DEVICE Float16 prod(Float16 a, Float16 b) { Float16 to; narrow(widen(a) * widen(b), to); return to; }
DEVICE Bfloat16 sum(Bfloat16 a, Bfloat16 b) { Bfloat16 to; narrow(widen(a) + widen(b), to); return to; }
DEVICE Bfloat16 prod(Bfloat16 a, Bfloat16 b) { Bfloat16 to; narrow(widen(a) * widen(b), to); return to; }

#if defined(__CUDA_ARCH__)
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif
template <typename T> DEVICE Complex<T> sum(Complex<T> a, Complex<T> b) {
    Complex<T> to = {a.re + b.re, a.im + b.im};
    return to;
}
template <typename T> DEVICE Complex<T> prod(Complex<T> a, Complex<T> b) {
    Complex<T> to = {fused(a.re, b.re, -(a.im * b.im)), fused(a.re, b.im, a.im * b.re)};
    return to;
}

// ---- min and max: NaN of either side comes through; of equals the second, but the first of two float16

template <typename T> DEVICE T min(T a, T b) { return a < b || a != a ? a : b; }
template <typename T> DEVICE T max(T a, T b) { return a > b || a != a ? a : b; }
DEVICE Bfloat16 min(Bfloat16 a, Bfloat16 b) { float x = widen(a), y = widen(b); return x < y || x != x ? a : b; }
DEVICE Bfloat16 max(Bfloat16 a, Bfloat16 b) { float x = widen(a), y = widen(b); return x > y || x != x ? a : b; }
DEVICE Float16 min(Float16 a, Float16 b) { float x = widen(a), y = widen(b); return x <= y || x != x ? a : b; }
DEVICE Float16 max(Float16 a, Float16 b) { float x = widen(a), y = widen(b); return x >= y || x != x ? a : b; }

// ---- bitwise and logical; of bool any byte but 0 is true, and all ops are logical ones

template <typename T> DEVICE T band(T a, T b) { return (T)(a & b); }
template <typename T> DEVICE T bor(T a, T b) { return (T)(a | b); }
template <typename T> DEVICE T bxor(T a, T b) { return (T)(a ^ b); }
template <typename T> DEVICE T land(T a, T b) { return (T)((a != 0) & (b != 0)); }
template <typename T> DEVICE T lor(T a, T b) { return (T)((a | b) != 0); }
template <typename T> DEVICE T lxor(T a, T b) { return (T)((a != 0) ^ (b != 0)); }
DEVICE Bool land(Bool a, Bool b) { Bool to = {land(a.bits, b.bits)}; return to; }
DEVICE Bool lor(Bool a, Bool b) { Bool to = {lor(a.bits, b.bits)}; return to; }
DEVICE Bool lxor(Bool a, Bool b) { Bool to = {lxor(a.bits, b.bits)}; return to; }
DEVICE Bool min(Bool a, Bool b) { return land(a, b); }
DEVICE Bool max(Bool a, Bool b) { return lor(a, b); }
DEVICE Bool band(Bool a, Bool b) { return land(a, b); }
DEVICE Bool bor(Bool a, Bool b) { return lor(a, b); }
DEVICE Bool bxor(Bool a, Bool b) { return lxor(a, b); }

// ---- average

template <typename T> struct Divisor { typedef int type; };
template <> struct Divisor<unsigned char> { typedef unsigned type; };
template <> struct Divisor<unsigned short> { typedef unsigned type; };
template <> struct Divisor<unsigned> { typedef unsigned type; };
template <> struct Divisor<long long> { typedef long long type; };
template <> struct Divisor<u64> { typedef u64 type; };
template <> struct Divisor<Float16> { typedef float type; };
template <> struct Divisor<Bfloat16> { typedef float type; };
template <> struct Divisor<float> { typedef float type; };
template <> struct Divisor<double> { typedef double type; };
template <typename T> struct Divisor<Complex<T> > { typedef T type; };

template <typename T> DEVICE T quotient(T a, typename Divisor<T>::type by) { return (T)(a / by); }
DEVICE Float16 quotient(Float16 a, float by) { Float16 to; narrow(widen(a) / by, to); return to; }
DEVICE Bfloat16 quotient(Bfloat16 a, float by) { Bfloat16 to; narrow(widen(a) / by, to); return to; }
template <typename T> DEVICE Complex<T> quotient(Complex<T> a, T by) {
    Complex<T> to = {a.re / by, a.im / by};
    return to;
}

// ---- the loop over a run of elements

template <typename T> struct alignas(16) Pack { T element[16 / sizeof(T)]; };

template <typename T, typename F> DEVICE void each(T *dst, const T *src, long long count, F f) {
    const long long width = 16 / sizeof(T);
    const u64 skew = (u64)dst & 15;
    long long head = count;  // elements before the first pack: all, unless dst and src come to one together
    if (skew == ((u64)src & 15) && skew % sizeof(T) == 0) {
        head = (long long)((16 - skew) % 16 / sizeof(T));
        head = head < count ? head : count;
    }
    const long long packs = (count - head) / width;
    Pack<T> *to = (Pack<T> *)(dst + head);
    const Pack<T> *from = (const Pack<T> *)(src + head);
    for (long long i = FIRST; i < packs; i += STRIDE) {
        Pack<T> a = to[i];
        const Pack<T> b = from[i];
        for (int j = 0; j < width; ++j) a.element[j] = f(a.element[j], b.element[j]);
        to[i] = a;
    }
    #pragma unroll 1
    for (long long i = FIRST; i < head; i += STRIDE) dst[i] = f(dst[i], src[i]);
    #pragma unroll 1
    for (long long i = head + packs * width + FIRST; i < count; i += STRIDE) dst[i] = f(dst[i], src[i]);
}

template <typename T> struct Op_fill {
    typedef T Scalar;
    Scalar value;
    DEVICE_MEMBER T operator()(T, T) const { return value; }
};
template <typename T> struct Op_multiply {
    typedef T Scalar;
    Scalar by;
    DEVICE_MEMBER T operator()(T, T b) const { return prod(b, by); }
};
template <typename T> struct Op_average {
    typedef typename Divisor<T>::type Scalar;
    Scalar by;
    DEVICE_MEMBER T operator()(T, T b) const { return quotient(b, by); }
};

#define HETCOMM_SCALED(name, op, type) \
    KERNEL hetcomm_##name##_##op(type *dst, const type *src, long long count, Op_##op<type>::Scalar scalar) { \
        Op_##op<type> f = {scalar}; \
        each(dst, src, count, f); \
    }
#define HETCOMM_REDUCED(name, op, type) \
    struct Op_##name##_##op { DEVICE_MEMBER type operator()(type a, type b) const { return hetcomm::op(a, b); } }; \
    KERNEL hetcomm_##name##_##op(type *dst, const type *src, long long count) { \
        each(dst, src, count, Op_##name##_##op()); \
    }
"""

HOLD_NAME = "hetcomm_hold"
HOLD_SOURCE = r"""
extern "C" __global__ void hetcomm_hold(const volatile unsigned *word, unsigned value) {
    while ((int)(*word - value) < 0) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
        __nanosleep(500);
#elif defined(__HIP__)
        __builtin_amdgcn_s_sleep(16);
#endif
    }
    __threadfence_system();
}
"""
"""A kernel of one thread that waits until the word, in mapped host memory, is at least `value` (modulo 2^32)."""
