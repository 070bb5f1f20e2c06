"""Scratch memory of runs, on the host and on devices, kept from one run to the next."""

from __future__ import annotations

import numpy

from hetcomm.devices import Devices
from hetcomm.types import DataType, Memory, MemoryKind

__all__ = ["ScratchPool", "kind_of"]

_KEPT = 2


class ScratchPool:
    """The scratch memory of one executor.

    Args:
        devices: Where it comes from, if not from the host.
    """

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._kept: list[Memory] = []

    def borrow(self, nbytes: int, kind: MemoryKind) -> Memory:
        """Aligned memory of at least that many bytes, which nothing works on any more."""
        for index, memory in enumerate(self._kept):
            if memory.kind is kind and memory.nbytes >= nbytes:
                return self._kept.pop(index)
        size: int = 1 << max(nbytes - 1, 63).bit_length()
        if kind is not MemoryKind.HOST:
            return self._devices.get(kind).allocate(size)
        buffer = numpy.empty(size, numpy.uint8)
        return Memory(buffer.ctypes.data, size, DataType.UINT8, owner=buffer)

    def give_back(self, memory: Memory) -> None:
        """Keep borrowed memory for the next borrower; the two largest are kept."""
        self._kept.append(memory)
        self._kept.sort(key=lambda kept: kept.nbytes)
        del self._kept[:-_KEPT]

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()


def kind_of(one: Memory | None, other: Memory | None) -> MemoryKind:
    """Where a run's memory is, of which one at least is there or nothing is done."""
    if one is not None:
        return one.kind
    return MemoryKind.HOST if other is None else other.kind
