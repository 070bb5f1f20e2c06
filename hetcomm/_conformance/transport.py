"""What every transport must do, as checks that any implementation can be put through.

Each check gets transports of its own. All of them live in this process and in this thread (but for one check), so every
one must be progressed by hand: `_drive` does. Nothing here is timed; deadlines only end what would hang.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence

from hetcomm.errors import CollectiveTimeoutError, HetcommError, TransportError
from hetcomm.transport.base import Request, Transport
from hetcomm.types import MemoryKind

__all__ = ["check_transport"]

Transports = Sequence[Transport]

_PATIENCE = 60.0  # seconds until something that should complete is held to hang
_SHORT = 0.05  # seconds given to something that must not complete
_BIG = 8 << 20  # bytes: beyond what any transport sends eagerly
_BLOCK = bytes((7 * index + (index >> 8)) & 0xFF for index in range(4099))  # of prime length


def check_transport(make: Callable[[], Transports]) -> None:
    """Put a transport through everything `hetcomm.transport.base.Transport` promises.

    Args:
        make: Gives two or more fresh transports in this process, each connected to all of them, itself included: number
            i of the sequence is peer i. Called once per check; the check closes them.

    Raises:
        AssertionError: A promise is broken; the message says which check, what was expected, and what happened.
    """
    for check in _CHECKS:
        transports = make()
        _expect(len(transports) >= 2, "make() must give two transports or more")
        try:
            check(transports)
        except AssertionError as error:
            raise AssertionError(f"{_title(check)}: {error}") from error
        except HetcommError as error:
            raise AssertionError(f"{_title(check)}: {type(error).__name__} was raised: {error}") from error
        finally:
            for transport in transports:
                transport.close()


def _title(check: Callable[[Transports], None]) -> str:
    return check.__name__.removeprefix("_").replace("_", " ")


class _Memory:
    """Some bytes with an address."""

    def __init__(self, content: bytes) -> None:
        self.content = ctypes.create_string_buffer(content, max(1, len(content)))
        self.address = ctypes.addressof(self.content)
        self.nbytes = len(content)

    def __bytes__(self) -> bytes:
        return self.content.raw[: self.nbytes]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes) and bytes(self) == other

    def __repr__(self) -> str:
        shown = bytes(self)[:16]
        return f"{shown!r}{'...' if self.nbytes > len(shown) else ''} ({self.nbytes} bytes)"


def _blank(nbytes: int) -> _Memory:
    return _Memory(b"\xee" * nbytes)


def _pattern(nbytes: int, seed: int) -> bytes:
    """`nbytes` bytes in which neither a shift nor another seed gives the same."""
    start = seed * 37 % len(_BLOCK)
    return (_BLOCK * (nbytes // len(_BLOCK) + 2))[start : start + nbytes]


def _send(transport: Transport, memory: _Memory, peer: int, tag: int) -> Request:
    return transport.send(memory.address, memory.nbytes, peer, tag)


def _recv(transport: Transport, memory: _Memory, peer: int, tag: int) -> Request:
    return transport.recv(memory.address, memory.nbytes, peer, tag)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _over(request: Request) -> bool:
    """Whether a request has ended, one way or the other."""
    try:
        return request.test()
    except HetcommError:
        return True


def _drive(transports: Transports, requests: Sequence[Request], what: str) -> None:
    """Progress all transports until all requests are over."""
    deadline = time.monotonic() + _PATIENCE
    while not all(_over(request) for request in requests):
        for transport in transports:
            transport.progress()
        _expect(time.monotonic() < deadline, f"{what} did not complete within {_PATIENCE:g} s")


def _finish(transports: Transports, requests: Sequence[Request], what: str) -> None:
    """Progress all transports until all requests are complete, without error."""
    _drive(transports, requests, what)
    for request in requests:
        _expect(request.test() is True, f"{what}: test() of a complete request is not True")


def _raises(kind: type[HetcommError], action: Callable[[], object], what: str) -> HetcommError:
    try:
        action()
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__} instead of {kind.__name__}: {error}") from error
    raise AssertionError(f"{what} did not raise {kind.__name__}")


def _host_memory_is_supported(transports: Transports) -> None:
    _expect(transports[0].supports(MemoryKind.HOST) is True, "supports(HOST) is not True")


def _messages_match_by_tag(transports: Transports) -> None:
    first, second = transports[:2]
    tags = [0, 1, 1 << 32, (1 << 64) - 1, (1 << 63) + 1]
    sent = [_Memory(_pattern(64, index)) for index in range(len(tags))]
    got = [_blank(64) for _ in tags]
    receives = [_recv(second, got[index], 0, tags[index]) for index in reversed(range(len(tags)))]
    sends = [_send(first, sent[index], 1, tags[index]) for index in range(len(tags))]
    _finish(transports, [*receives, *sends], "messages with different tags")
    for tag, memory, expected in zip(tags, got, sent, strict=True):
        _expect(memory == bytes(expected), f"tag {tag:#x} received {memory}, sent was {expected}")


def _messages_of_one_tag_keep_their_order(transports: Transports) -> None:
    first, second = transports[:2]
    sizes = [1, 70_000, 3, 0, 300_000, 8, 2_000, 5]
    sent = [_Memory(_pattern(nbytes, index)) for index, nbytes in enumerate(sizes)]
    got = [_blank(nbytes) for nbytes in sizes]
    sends = [_send(first, memory, 1, 5) for memory in sent]
    receives = [_recv(second, memory, 0, 5) for memory in got]
    _finish(transports, [*sends, *receives], "messages of one tag")
    for index, memory in enumerate(got):
        _expect(memory == bytes(sent[index]), f"receive {index} got {memory}, message {index} was {sent[index]}")


def _empty_messages_arrive(transports: Transports) -> None:
    first, second = transports[:2]
    room = _blank(16)
    requests = [second.recv(0, 0, 0, 1), _recv(second, room, 0, 2), first.send(0, 0, 1, 1), first.send(0, 0, 1, 2)]
    _finish(transports, requests, "a message of 0 bytes")
    _expect(room == b"\xee" * 16, f"a message of 0 bytes wrote to memory: {room}")


def _big_messages_arrive(transports: Transports) -> None:
    first, second = transports[:2]
    there, back = _Memory(_pattern(_BIG, 1)), _Memory(_pattern(_BIG, 2))
    got_there, got_back = _blank(_BIG), _blank(_BIG)
    requests = [
        _send(first, there, 1, 1),
        _send(second, back, 0, 2),
        _recv(first, got_back, 1, 2),
        _recv(second, got_there, 0, 1),
    ]
    _finish(transports, requests, f"{_BIG} bytes both ways")
    _expect(got_there == bytes(there), f"{_BIG} bytes arrived changed: {got_there}")
    _expect(got_back == bytes(back), f"{_BIG} bytes arrived changed: {got_back}")


def _messages_before_their_receive_are_kept(transports: Transports) -> None:
    first, second = transports[:2]
    for nbytes in (0, 1, 1000, 100_000, 1_000_000):
        sent, got = _Memory(_pattern(nbytes, 3)), _blank(nbytes)
        send = _send(first, sent, 1, nbytes)
        for _ in range(200):
            for transport in transports:
                transport.progress()
        receive = _recv(second, got, 0, nbytes)
        _finish(transports, [send, receive], f"an unexpected message of {nbytes} bytes")
        _expect(got == bytes(sent), f"an unexpected message of {nbytes} bytes arrived as {got}")


def _memory_of_a_complete_send_may_change(transports: Transports) -> None:
    first, second = transports[:2]
    for nbytes in (8, 5000, 500_000):
        sent, got = _Memory(_pattern(nbytes, 4)), _blank(nbytes)
        expected = bytes(sent)
        send = _send(first, sent, 1, 1)
        receive: Request | None = None
        for _ in range(100):
            if _over(send):
                break
            first.progress()
        else:  # it waits for its receive, which it may
            receive = _recv(second, got, 0, 1)
        _finish(transports, [send], f"a send of {nbytes} bytes")
        ctypes.memset(sent.address, 0, nbytes)
        receive = receive or _recv(second, got, 0, 1)
        _finish(transports, [receive], f"a receive of {nbytes} bytes")
        _expect(got == expected, f"memory of a complete send of {nbytes} bytes was read after it was complete")


def _many_messages_fly_at_once(transports: Transports) -> None:
    count = 400
    pairs = [(source, target) for source in range(len(transports)) for target in range(len(transports))]
    memories, requests = [], []
    for index in range(count):
        source, target = pairs[index % len(pairs)]
        sent, got = _Memory(_pattern(index * 37 % 9000, index)), _blank(index * 37 % 9000)
        requests.append(_recv(transports[target], got, source, index))
        requests.append(_send(transports[source], sent, target, index))
        memories.append((sent, got))
    _finish(transports, requests, f"{count} messages at once")
    for index, (sent, got) in enumerate(memories):
        _expect(got == bytes(sent), f"message {index} of {count} arrived as {got}, sent was {sent}")


def _shorter_messages_leave_the_rest_alone(transports: Transports) -> None:
    first, second = transports[:2]
    for nbytes in (5, 100_000):
        sent, got = _Memory(_pattern(nbytes, 5)), _blank(nbytes + 100)
        requests = [_recv(second, got, 0, 1), _send(first, sent, 1, 1)]
        _finish(transports, requests, "a message shorter than the memory given")
        _expect(got == bytes(sent) + b"\xee" * 100, "a message shorter than the memory given changed what lies behind")


def _longer_messages_are_an_error(transports: Transports) -> None:
    first, second = transports[:2]
    for nbytes in (32, 1_000_000):
        for expected in (True, False):
            sent, room = _Memory(_pattern(nbytes, 6)), _blank(nbytes)
            requests = [_send(first, sent, 1, 1)]
            if not expected:
                for _ in range(100):
                    first.progress()
                    second.progress()
            receive = second.recv(room.address, nbytes - 1, 0, 1)
            _drive(transports, [*requests, receive], "a message longer than the memory given")
            error = _raises(TransportError, receive.test, "a message longer than the memory given")
            _expect(error.peer == 0, f"the error does not name the peer: {error}")
            _expect(bytes(room)[-1:] == b"\xee", "a message longer than the memory given was written beyond it")


def _a_rank_sends_to_itself(transports: Transports) -> None:
    own = transports[1]
    for nbytes in (0, 8, 100_000, _BIG):
        sent, got = _Memory(_pattern(nbytes, 7)), _blank(nbytes)
        requests = [_send(own, sent, 1, 9), _recv(own, got, 1, 9)]
        own.wait(requests, _PATIENCE)
        _expect(got == bytes(sent), f"{nbytes} bytes to itself arrived as {got}")


def _waits_block_until_another_thread_acts(transports: Transports) -> None:
    first, second = transports[:2]
    rounds, nbytes = 50, 20_000
    there, back, failures = _Memory(_pattern(nbytes, 8)), _blank(nbytes), list[Exception]()

    def echo() -> None:
        memory = _blank(nbytes)
        try:
            for _ in range(rounds):
                second.wait([_recv(second, memory, 0, 1)], _PATIENCE)
                second.wait([_send(second, memory, 0, 2)], _PATIENCE)
        except (AssertionError, HetcommError) as error:
            failures.append(error)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    try:
        for index in range(rounds):
            ctypes.memset(there.address, index, 1)
            first.wait([_recv(first, back, 1, 2), _send(first, there, 1, 1)], _PATIENCE)
            _expect(back == bytes(there), f"round {index} came back as {back}, sent was {there}")
    finally:
        thread.join(_PATIENCE)
    _expect(not thread.is_alive(), "a wait did not end")
    _expect(not failures, f"the other thread failed: {failures}")


def _waits_end_at_their_timeout(transports: Transports) -> None:
    first, second = transports[:2]
    lost, came, sent = _blank(64), _blank(64), _Memory(_pattern(64, 9))
    send = _send(second, sent, 0, 2)
    pending, complete = _recv(first, lost, 1, 1), _recv(first, came, 1, 2)
    _finish(transports, [send, complete], "the message that came")
    error = _raises(CollectiveTimeoutError, lambda: first.wait([complete, pending], _SHORT), "a wait for nothing")
    _expect(error.peer == 1, f"the timeout does not name the peer waited for: {error}")
    _drive(transports, [pending], "a receive that timed out")
    late = _Memory(_pattern(64, 10))
    again = _blank(64)
    requests = [_send(second, late, 0, 1), _recv(first, again, 1, 1)]
    _finish(transports, requests, "a message after a timeout")
    _expect(lost == b"\xee" * 64, "a receive that had timed out was written to by a later message")
    _expect(again == bytes(late), f"the message after a timeout arrived as {again}")
    _raises(CollectiveTimeoutError, lambda: first.wait([_recv(first, lost, 1, 3)], 0.0), "a wait of 0 s for nothing")


def _receives_can_be_cancelled(transports: Transports) -> None:
    first, second = transports[:2]
    memory = _blank(32)
    request = _recv(first, memory, 1, 1)
    _expect(request.test() is False, "test() of a receive without a message is not False")
    request.cancel()
    _drive(transports, [request], "a cancelled receive")
    _raises(TransportError, request.test, "test() of a cancelled receive")
    request.cancel()
    sent, got = _Memory(_pattern(32, 11)), _blank(32)
    requests = [_send(second, sent, 0, 1), _recv(first, got, 1, 1)]
    _finish(transports, requests, "the message after a cancelled receive")
    _expect(got == bytes(sent) and memory == b"\xee" * 32, "a cancelled receive took a message")


def _flush_ends_when_all_is_sent(transports: Transports) -> None:
    first, second = transports[:2]
    first.flush(_PATIENCE)
    sent, got = _Memory(_pattern(100_000, 12)), _blank(100_000)
    requests = [_recv(second, got, 0, 1), _send(first, sent, 1, 1)]
    _finish(transports, requests, "a message")
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            second.progress()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        first.flush(_PATIENCE)
    finally:
        done.set()
        thread.join(_PATIENCE)
    _expect(got == bytes(sent), f"after flush the message arrived as {got}")


def _closed_transports_refuse(transports: Transports) -> None:
    first, second = transports[:2]
    memory = _blank(16)
    pending = _recv(first, memory, 1, 1)
    address = second.address
    first.close()
    first.close()
    _raises(TransportError, pending.test, "test() of a receive whose transport was closed")
    _raises(TransportError, lambda: _send(first, memory, 1, 1), "send() after close()")
    _raises(TransportError, lambda: _recv(first, memory, 1, 1), "recv() after close()")
    _raises(TransportError, first.progress, "progress() after close()")
    _raises(TransportError, lambda: first.wait([], 1.0), "wait() after close()")
    _raises(TransportError, lambda: first.flush(1.0), "flush() after close()")
    _raises(TransportError, lambda: first.connect(77, address), "connect() after close()")


_CHECKS: tuple[Callable[[Transports], None], ...] = (
    _host_memory_is_supported,
    _messages_match_by_tag,
    _messages_of_one_tag_keep_their_order,
    _empty_messages_arrive,
    _big_messages_arrive,
    _messages_before_their_receive_are_kept,
    _memory_of_a_complete_send_may_change,
    _many_messages_fly_at_once,
    _shorter_messages_leave_the_rest_alone,
    _longer_messages_are_an_error,
    _a_rank_sends_to_itself,
    _waits_block_until_another_thread_acts,
    _waits_end_at_their_timeout,
    _receives_can_be_cancelled,
    _flush_ends_when_all_is_sent,
    _closed_transports_refuse,
)
