"""Arrays in memory that the other ranks on a host read without the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import index
from typing import Any

import numpy as np

from hetcomm.errors import UsageError
from hetcomm.transport.arena import share

__all__ = ["shared_empty"]


def shared_empty(shape: int | Sequence[int], dtype: Any = np.float64) -> np.ndarray[Any, Any]:
    """A NumPy array that collectives of ranks on one host move faster: an array like any other, in shared memory.

    Messages from such an array to ranks of the same host are read where they lie instead of being copied by the
    kernel. Nobody needs to know which arrays of other ranks are shared, and nothing else changes. Its memory is whole
    pages, and goes when neither the array nor a view of it is held. After `os.fork` it is common to both processes.

    Args:
        shape: Its shape.
        dtype: What NumPy takes for a dtype, without Python objects.

    Returns:
        A C-contiguous array of zeros, until it is written to.

    Raises:
        UsageError: `shape` or `dtype` is none, or has Python objects.
        MemoryError: There is not so much memory.
    """
    try:
        kind = np.dtype(dtype)
        sizes = tuple(map(index, shape)) if isinstance(shape, Sequence) else (index(shape),)
    except (TypeError, ValueError) as error:
        raise UsageError(f"no array has the shape {shape!r} and the dtype {dtype!r}: {error}") from error
    if kind.hasobject or min(sizes, default=0) < 0:
        what = f"dtype {kind}, which has Python objects" if kind.hasobject else f"negative shape {sizes}"
        raise UsageError(f"an array in shared memory was asked for with the {what}")
    nbytes = prod(sizes) * kind.itemsize
    if nbytes == 0:
        return np.empty(sizes, kind)
    return np.ndarray(sizes, kind, memoryview(share(nbytes)))
