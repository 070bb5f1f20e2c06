"""The heartbeat between hosts, here between processes of one: who lives, is stopped, has left or has ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hetcomm._ext import heart
from hetcomm._ext.heart import Heart

KEY = bytes(range(16))
LATEST = 30.0  # seconds for what takes a tenth of one, or two at most

OTHER = """
import socket, sys
from hetcomm._ext.heart import Heart
own = socket.create_server(("127.0.0.1", int(sys.argv[2])))
own.setblocking(False)
partner = {int(sys.argv[4]): ("127.0.0.1", int(sys.argv[3]))}
heart = Heart(int(sys.argv[1]), 3, own.detach(), partner, bytes(range(16)), 60.0)
print("up", flush=True)
sys.stdin.read()
heart.close()
"""


def listener() -> tuple[socket.socket, int]:
    found = socket.create_server(("127.0.0.1", 0))
    found.setblocking(False)
    return found, found.getsockname()[1]


def until(test: Callable[[], bool], seconds: float = LATEST) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def other(rank: int, port: int, to: int, at: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(rank), str(port), str(at), str(to)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        try:
            yield process
        finally:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_the_seal_is_siphash() -> None:
    wanted = 0xA129CA6149BE45E5  # the example of the paper
    assert heart.mac(KEY, bytes(range(15))) == wanted
    with pytest.raises(ValueError, match="15 bytes"):
        heart.mac(KEY[:15], b"")


def test_who_leaves_is_no_dead() -> None:
    (mine, at), (theirs, there) = listener(), listener()
    one = Heart(0, 2, mine.detach(), {1: ("127.0.0.1", there)}, KEY, 1.5)
    two = Heart(1, 2, theirs.detach(), {0: ("127.0.0.1", at)}, KEY, 1.5)
    until(lambda: one.state(1) == two.state(0) == heart.ALIVE)
    two.close()
    two.close()
    until(lambda: one.state(1) == heart.LEFT)
    time.sleep(0.5)
    assert one.dead() == frozenset()
    assert two.state(0) == heart.UNMET
    one.close()


def test_stopped_is_not_dead_and_killed_is() -> None:
    mine, at = listener()
    port = free_port()
    with other(1, port, 0, at) as process:
        one = Heart(0, 3, mine.detach(), {1: ("127.0.0.1", port)}, KEY, 1.5)
        until(lambda: one.state(1) == heart.ALIVE)
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: one.state(1) == heart.QUIET)
        time.sleep(2.0)  # longer than the limit
        assert one.state(1) == heart.QUIET
        os.kill(process.pid, signal.SIGCONT)
        until(lambda: one.state(1) == heart.ALIVE)
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: one.dead() == {1})
        assert one.cause(1) == "its process has ended"
        one.close()


def test_all_partners_are_told_of_the_dead() -> None:
    """Rank 1 declares rank 2, to which only it has a heartbeat: rank 0 learns it."""
    (first, a), (second, b) = listener(), listener()
    port = free_port()
    with other(2, port, 1, b) as process:
        zero = Heart(0, 3, first.detach(), {1: ("127.0.0.1", b)}, KEY, 20.0)
        one = Heart(1, 3, second.detach(), {0: ("127.0.0.1", a), 2: ("127.0.0.1", port)}, KEY, 20.0)
        until(lambda: zero.state(1) == one.state(0) == one.state(2) == heart.ALIVE)
        process.kill()
        until(lambda: zero.dead() == one.dead() == {2})
        assert zero.cause(2) == "another rank has told so"
        assert zero.state(1) == one.state(0) == heart.ALIVE
        zero.close()
        one.close()


def test_strangers_are_nothing_to_it() -> None:
    (mine, at), (theirs, there) = listener(), listener()
    one = Heart(0, 2, mine.detach(), {1: ("127.0.0.1", there)}, KEY, 1.5)
    two = Heart(1, 2, theirs.detach(), {0: ("127.0.0.1", at)}, bytes(16), 1.5)  # another key
    strangers = [socket.create_connection(("127.0.0.1", at)) for _ in range(100)]
    for number, stranger in enumerate(strangers):
        if number % 2:
            stranger.settimeout(LATEST)
            stranger.sendall(os.urandom(200) if number % 3 else b"HCB1" + bytes(1000))
    time.sleep(0.5)
    assert one.state(1) == two.state(0) == heart.UNMET
    two.close()
    (again, _) = (socket.create_server(("127.0.0.1", there)), there)
    again.setblocking(False)
    two = Heart(1, 2, again.detach(), {0: ("127.0.0.1", at)}, KEY, 1.5)
    until(lambda: one.state(1) == two.state(0) == heart.ALIVE)
    assert not one.dead()
    for stranger in strangers:
        stranger.close()
    two.close()
    one.close()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="a key of 3 bytes"):
        Heart(0, 2, -1, {}, b"key", 1.0)
    with pytest.raises(ValueError, match="rank 2 at"):
        Heart(0, 2, -1, {2: ("127.0.0.1", 1)}, KEY, 1.0)
    with pytest.raises(ValueError, match="rank 1 at"):
        Heart(0, 2, -1, {1: ("no address", 1)}, KEY, 1.0)
