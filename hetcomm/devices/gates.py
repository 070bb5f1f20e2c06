"""Gates of words in host memory that the device reads: a stream waits until a word has come to a value.

A word only ever grows (modulo 2^32), and a gate waits for it to be *at least* the value that the gate will write. So a
word may serve the next gate as soon as the one before is open: a stream that comes late to the old gate finds the word
at its value or beyond. The word of a gate that is never opened is lost with it.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable

__all__ = ["Gates", "WordGate"]

_PAGE = 1 << 16
_WORD = 4
_MASK = 0xFFFFFFFF

Hold = Callable[[int, int, int], None]


class Gates:
    """The words of one device.

    Args:
        page: Gives the address of that many bytes, which host and device see at the same address and which are never
            freed: streams may wait on them until the process ends. Called again when all words are in use; may block.
        hold: Queues on a stream a wait until the word at an address is at least a value.
    """

    def __init__(self, page: Callable[[int], int], hold: Hold) -> None:
        self._page = page
        self._hold = hold
        self._free: deque[ctypes.c_uint32] = deque()
        self._add()

    def new(self) -> WordGate:
        """A closed gate."""
        if not self._free:
            self._add()
        return WordGate(self._free, self._hold)

    def _add(self) -> None:
        start = self._page(_PAGE)
        self._free.extend(ctypes.c_uint32.from_address(start + offset) for offset in range(0, _PAGE, _WORD))


class WordGate:
    """One gate; made by `Gates.new`."""

    __slots__ = ("_address", "_free", "_hold", "_value", "_word")

    def __init__(self, free: deque[ctypes.c_uint32], hold: Hold) -> None:
        word = free.popleft()
        self._free = free
        self._hold = hold
        self._word: ctypes.c_uint32 | None = word
        self._address = ctypes.addressof(word)
        self._value = word.value + 1 & _MASK

    def hold(self, stream: int) -> None:
        self._hold(stream, self._address, self._value)

    def open(self) -> None:
        word, self._word = self._word, None
        if word is not None:
            word.value = self._value
            self._free.append(word)
