"""What mpirun starts in the place of a rank: it starts the rank as `hetcomm run` says, and tells how that has ended.

Run as a file, with nothing but the standard library, so that it starts at once. It keeps mpirun from seeing a rank
fail, since mpirun would end the others.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys

_LENGTH = struct.Struct("<I")


def main(path: str, rank: int) -> None:
    """Start rank `rank` of the launcher whose socket is at `path`, and stay until the launcher has no more need."""
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(path)
    channel.sendall(_LENGTH.pack(rank))
    header, (stdout, stderr), _, _ = socket.recv_fds(channel, _LENGTH.size, 2)
    asked = json.loads(_read(channel, _LENGTH.unpack(header)[0]))
    try:
        process = subprocess.Popen(
            asked["command"],
            env={**os.environ, **asked["environ"]},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  # there is one thread
        )
    except OSError as error:
        os.write(stderr, f"{asked['command'][0]} cannot be started: {error.strerror}\n".encode())
        _tell(channel, {"returncode": 127})
    else:
        os.close(stdout)
        os.close(stderr)
        _tell(channel, {"pid": process.pid})
        ended = os.pidfd_open(process.pid)
        select.select([channel.fileno(), ended], [], [])  # the launcher says nothing more: what comes is its end
        os.killpg(process.pid, signal.SIGKILL)
        _tell(channel, {"returncode": process.wait()})
    channel.recv(1)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _read(channel: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        piece = channel.recv(nbytes - len(data))
        if not piece:
            raise EOFError("the launcher has closed the socket")
        data += piece
    return data


def _tell(channel: socket.socket, said: dict[str, int]) -> None:
    try:
        channel.sendall(json.dumps(said).encode() + b"\n")
    except ConnectionError:  # the launcher is gone
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
