"""What ranks and the rendezvous of a job say to each other over TCP, and how each knows that the other has the key.

Each side sends a nonce, and shows an HMAC of both with the job's key. After that come frames: a kind (one byte), a
ticket, the length of the payload, and the payload.

=====  ==========================================================================================
`G`    a rank's part of an exchange: `members_and_serial`, then the payload
`A`    the answer with that ticket: everybody's payload, packed
`D`    the answer where the exchange cannot be completed: who has ended, as `pack_ended` writes it
`W`    a rank asks who is missing from the exchange with that ticket
`M`    the answer: ranks, as `pack_ranks` writes them
`E`    unasked for: ranks that have ended, as `pack_ended` writes them
=====  ==========================================================================================
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from hetcomm.errors import TransportError

__all__ = [
    "HELLO",
    "MAC",
    "NONCE",
    "WELCOME",
    "Ended",
    "Frames",
    "frame",
    "mac",
    "pack_ended",
    "pack_part",
    "pack_ranks",
    "received",
    "unpack_ended",
    "unpack_part",
    "unpack_ranks",
]

NONCE = 32  # bytes
MAC = 32  # bytes
HELLO = struct.Struct(f"<I{NONCE}s{MAC}s")
"""What a rank sends first, when it has read the rendezvous's nonce: its rank, its nonce, and its MAC."""
WELCOME = MAC
"""Bytes of what the rendezvous answers: its MAC."""

_HEADER = struct.Struct("<cQI")
_LIMIT = 64 << 20  # bytes of a payload


def mac(key: bytes, side: str, rank: int, theirs: bytes, mine: bytes) -> bytes:
    """What shows that `side`, 'rank' or 'rendezvous', has the key; the other's nonce comes first."""
    return hmac.digest(key, b"hetcomm 1 %s %d " % (side.encode(), rank) + theirs + mine, hashlib.sha256)


def frame(kind: bytes, ticket: int, payload: bytes = b"") -> bytes:
    """One frame.

    Raises:
        TransportError: The payload is longer than frames may be.
    """
    if len(payload) > _LIMIT:
        raise TransportError(f"a payload of {len(payload)} bytes is more than the bootstrap carries, {_LIMIT}")
    return _HEADER.pack(kind, ticket, len(payload)) + payload


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a rank.

    Attributes:
        fate: As a clause: 'ended before it had joined the job in hetcomm.init (exit status 0)'.
        because: The ranks that had ended before, of which it was told; empty where it ended of itself.
        again: Whether it is started again, and may come to a later meeting.
    """

    fate: str
    because: tuple[int, ...] = ()
    again: bool = False


class Frames:
    """Takes frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, int, bytes]]:
        """Kind, ticket and payload of each frame that `data` completes.

        Raises:
            TransportError: A frame is longer than frames may be.
        """
        self._data += data
        found = []
        while len(self._data) >= _HEADER.size:
            kind, ticket, nbytes = _HEADER.unpack_from(self._data)
            if nbytes > _LIMIT:
                raise TransportError(f"a bootstrap message says that it has {nbytes} bytes; {_LIMIT} are allowed")
            end = _HEADER.size + nbytes
            if len(self._data) < end:
                break
            found.append((kind, ticket, bytes(self._data[_HEADER.size : end])))
            del self._data[:end]
        return found


def received(connected: socket.socket) -> bytes | None:
    """What has come to a socket that does not block; None if nothing has, and b"" if nothing will."""
    try:
        return connected.recv(1 << 18)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def pack_ranks(ranks: Sequence[int]) -> bytes:
    """Some ranks of the job."""
    return struct.pack(f"<I{len(ranks)}I", len(ranks), *ranks)


def unpack_ranks(data: bytes) -> tuple[int, ...]:
    """What `pack_ranks` wrote, and bytes that may follow it.

    Raises:
        TransportError: It did not.
    """
    (count,) = struct.unpack_from("<I", data) if len(data) >= 4 else (0,)
    if len(data) < 4 + 4 * count:
        raise TransportError(f"{len(data)} bytes of a bootstrap message cannot name {count} ranks")
    return struct.unpack_from(f"<{count}I", data, 4)


def pack_part(members: Sequence[int], serial: int, payload: bytes) -> bytes:
    """A rank's part of an exchange: the `serial`-th one between these ranks of the job."""
    return struct.pack("<I", serial) + pack_ranks(members) + payload


def unpack_part(data: bytes) -> tuple[tuple[int, ...], int, bytes]:
    """Members, serial number and payload of what `pack_part` wrote.

    Raises:
        TransportError: It did not.
    """
    if len(data) < 8:
        raise TransportError(f"a part of an exchange cannot have {len(data)} bytes")
    (serial,) = struct.unpack_from("<I", data)
    members = unpack_ranks(data[4:])
    return members, serial, data[8 + 4 * len(members) :]


def pack_ended(ended: dict[int, Ended]) -> bytes:
    """What became of ranks of the job."""
    return json.dumps(
        [(rank, each.fate, list(each.because), each.again) for rank, each in sorted(ended.items())]
    ).encode()


def unpack_ended(data: bytes) -> dict[int, Ended]:
    """What `pack_ended` wrote.

    Raises:
        TransportError: It did not.
    """
    try:
        return {
            int(rank): Ended(str(fate), tuple(map(int, because)), bool(again))
            for rank, fate, because, again in json.loads(data)
        }
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise TransportError(f"a bootstrap message does not say which ranks have ended: {error}") from error
