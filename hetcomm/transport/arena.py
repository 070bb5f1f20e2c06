"""Memory of this process that the other processes of its machine may read: `share` hands out ranges of it.

All of it is one file without a name, as long as this machine has memory, mapped once. Pages come when they are written
to and go when their range is given back, so what is not in use costs nothing but addresses. The file is sealed: nobody
can make it shorter, which would end whoever reads behind its new end.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from collections import deque

from hetcomm._ext import ucp

__all__ = ["share"]

_PAGE = mmap.PAGESIZE
_MOST = 1 << 38  # bytes: many processes map those of each other
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL  # not against writing: pages are given back
_NORESERVE = 0x4000  # MAP_NORESERVE of Linux, which `mmap` does not name


class _Arena:
    """A file, mapped; ranges of whole pages are taken from it and given back."""

    def __init__(self) -> None:
        self._nbytes = min(os.sysconf("SC_PHYS_PAGES") * _PAGE, _MOST)
        self._descriptor = os.memfd_create("hetcomm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._descriptor, self._nbytes)
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
        self._mapped = mmap.mmap(self._descriptor, self._nbytes, mmap.MAP_SHARED | _NORESERVE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapped))
        self._holes = [(0, self._nbytes)]  # offset and length, by offset
        self._returned: deque[tuple[int, int]] = deque()  # the same, not yet among them
        self._lock = threading.Lock()
        ucp.share(self._address, self._nbytes, self._descriptor)

    def take(self, nbytes: int) -> ctypes.Array[ctypes.c_char]:
        """At least one byte, from the beginning of a page; given back when nobody holds it.

        Raises:
            MemoryError: So much is not left in one piece.
        """
        length = -(-nbytes // _PAGE) * _PAGE
        with self._lock:
            while self._returned:
                self._fill_in(*self._returned.popleft())
            offset = self._cut(length)
        block = (ctypes.c_char * nbytes).from_address(self._address + offset)
        weakref.finalize(block, self._give_back, offset, length, os.getpid()).atexit = False
        return block

    def _cut(self, length: int) -> int:
        for index, (offset, room) in enumerate(self._holes):
            if room >= length:
                self._holes[index : index + 1] = [(offset + length, room - length)] if room > length else []
                return offset
        raise MemoryError(f"{length} bytes are not left in one piece of the {self._nbytes} that can be shared")

    def _fill_in(self, offset: int, length: int) -> None:
        """Add a hole, and make one of those that touch."""
        self._holes.append((offset, length))
        self._holes.sort()
        merged: list[tuple[int, int]] = []
        for start, room in self._holes:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((start, room))
        self._holes = merged

    def _give_back(self, offset: int, length: int, owner: int) -> None:
        """Run by the garbage collector at any moment, in any thread: it takes no lock."""
        if os.getpid() == owner:  # else this is a child, and the memory its parent's
            self._mapped.madvise(mmap.MADV_REMOVE, offset, length)
            self._returned.append((offset, length))


_arenas: dict[int, _Arena] = {}  # by process: what a child has of its parent's is not its own
_making = threading.Lock()


def share(nbytes: int) -> ctypes.Array[ctypes.c_char]:
    """So many bytes, one at least, of zeros that the processes of this machine may read; for as long as it is held.

    Raises:
        MemoryError: So much is not left.
        OSError: The system refuses.
    """
    with _making:
        found = _arenas.get(os.getpid())
        if found is None:
            found = _arenas[os.getpid()] = _Arena()
    return found.take(nbytes)
