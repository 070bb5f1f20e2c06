"""Connections of strangers to a rendezvous: silent, slow, random, huge, replayed, and with a wrong key."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from contextlib import suppress

from hetcomm.job import frames

__all__ = ["KINDS", "Crowd", "recorded"]

KINDS = ("silent", "slow", "random", "huge", "replayed", "wrong key", "closed")


class Crowd:
    """Opens connections one after the other, of all kinds in turn, and keeps those open that are not closed for it.

    Args:
        address: Host and port.
        count: How many there are in all.
        recorded: A greeting of a rank that was overheard.
    """

    def __init__(self, address: tuple[str, int], count: int, recorded: bytes) -> None:
        self.opened = 0
        self.answered = 0  # those to which more than the nonce has come
        self._address, self._count, self._recorded = address, count, recorded
        self._sockets: list[socket.socket] = []
        self._draw = random.Random(count)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for number in range(self._count):
            if self._over.is_set():
                break
            with suppress(OSError):
                self._open(KINDS[number % len(KINDS)])
        while not self._over.wait(0.02):  # the slow ones go on
            for each in self._sockets[1 :: len(KINDS)]:
                with suppress(OSError):
                    each.send(b"\0")

    def _open(self, kind: str) -> None:
        connected = socket.create_connection(self._address, 5)
        self.opened += 1
        self._sockets.append(connected)
        match kind:
            case "random":
                connected.sendall(self._draw.randbytes(self._draw.randint(1, 500)))
            case "huge":
                connected.sendall(struct.pack("<cQI", b"G", 1, 0xFFFFFFFF) * 30)
            case "replayed":
                connected.sendall(self._recorded)
            case "wrong key":
                connected.settimeout(0.2)
                theirs, mine = connected.recv(frames.NONCE), os.urandom(frames.NONCE)
                shown = frames.mac(b"another key", "rank", 0, theirs, mine)
                connected.sendall(frames.HELLO.pack(0, mine, shown))
            case "closed":
                connected.close()

    def close(self) -> None:
        """Look at what was answered, and leave."""
        self._over.set()
        self._thread.join(30)
        for each in self._sockets:
            with each, suppress(OSError):
                each.settimeout(0.0)
                self.answered += len(each.recv(1 << 16)) > frames.NONCE
        self._sockets.clear()


def recorded(key: bytes) -> bytes:
    """A rank's greeting of another job's beginning, which had the same key."""
    theirs, mine = os.urandom(frames.NONCE), os.urandom(frames.NONCE)
    return frames.HELLO.pack(1, mine, frames.mac(key, "rank", 1, theirs, mine))
