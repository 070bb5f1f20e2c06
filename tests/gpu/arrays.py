"""Device arrays for tests: put there and fetched as raw bytes, and objects that show one protocol of theirs only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runtime.invoke import Invocation


def put(array: Any) -> Any:
    """A CuPy array of the same elements, of any dtype that NumPy has or `ml_dtypes` adds."""
    import cupy

    raw = cupy.asarray(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return cupy.ndarray(array.shape, array.dtype, raw.data)


def settle() -> None:
    """Wait for CuPy's current stream.

    What a call has queued must be over before code is loaded or copied to the host, lest a test that is about
    something else depends on what the driver can do at the same time.
    """
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def fetch(array: Any) -> Any:
    """The NumPy array of the same elements; waits for CuPy's current stream, and for no other."""
    import cupy

    settle()
    raw = cupy.ndarray((array.nbytes,), np.uint8, array.data)
    return raw.get().view(array.dtype).reshape(array.shape)


@dataclass(frozen=True)
class Placed:
    """An invocation whose arrays are on the device."""

    mine: Invocation
    source: Any
    target: Any

    @classmethod
    def of(cls, mine: Invocation) -> Placed:
        source = put(mine.source)
        return cls(mine, source, source if mine.target is mine.source else put(mine.target))

    @property
    def args(self) -> Sequence[Any]:
        """What the method is called with."""
        here = {id(self.mine.source): self.source, id(self.mine.target): self.target}
        return [here.get(id(each), each) for each in self.mine.args]

    def fetch(self) -> Invocation:
        """The invocation with what the device's arrays hold now."""
        self.mine.source[...] = fetch(self.source)
        self.mine.target[...] = fetch(self.target)
        return self.mine


class OnlyInterface:
    """An array that shows its `__cuda_array_interface__` and nothing else."""

    def __init__(self, array: Any) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self._array = array


class OnlyDlpack:
    """An array that shows DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)
