"""Work of a chosen length on a CUDA stream: a kernel of one thread that does nothing but read the clock."""

from __future__ import annotations

_SOURCE = r"""
__device__ unsigned long long now() {
    unsigned long long nanoseconds;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(nanoseconds));
    return nanoseconds;
}

extern "C" __global__ void spin(long long nanoseconds) {
    const unsigned long long start = now();
    while (now() - start < (unsigned long long)nanoseconds) { }
}
"""


class Spinner:
    """Keeps streams busy; compiles its kernel when it is made."""

    def __init__(self) -> None:
        import cupy

        self._kernel = cupy.RawKernel(_SOURCE, "spin")
        self(0.0)
        cupy.cuda.get_current_stream().synchronize()

    def __call__(self, seconds: float) -> None:
        """Queue work of that length, as time passes for the GPU as a whole, on CuPy's current stream."""
        self._kernel((1,), (1,), (int(seconds * 1e9),))
