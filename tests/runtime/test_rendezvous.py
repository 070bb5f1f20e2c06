"""The bootstrap over TCP: exchanges, who is named when one does not come, and who is let in."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, TransportError, UsageError
from hetcomm.job import frames
from hetcomm.job.bootstrap import TcpGroup, bootstrap, uses_mpi, uses_tcp
from hetcomm.job.launcher import Launcher, variables
from hetcomm.job.rendezvous import Rendezvous
from hetcomm.types import Config

from .strangers import Crowd, recorded

KEY = "ab" * 32
DEADLINE = 20.0
PROMPT = 1.0


class Served:
    """A rendezvous that a thread serves, as a launcher does."""

    def __init__(self, nranks: int) -> None:
        self.nranks = nranks
        self.selector = selectors.DefaultSelector()
        self.rendezvous = Rendezvous(nranks, bytes.fromhex(KEY), self.selector)
        self._asked: list[Callable[[], None]] = []
        self._joined: list[TcpGroup] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            for key, _ in self.selector.select(0.01):
                key.data()
            while self._asked:
                self._asked.pop(0)()
            self.rendezvous.look()
        self.rendezvous.close()
        assert not self.selector.get_map()
        self.selector.close()

    def ended(self, rank: int, how: str = "exit status 0", killed: bool = False, again: bool = False) -> None:
        self._asked.append(lambda: self.rendezvous.ended(rank, how, killed, again))

    def stop(self) -> None:
        self._over.set()
        self._thread.join(DEADLINE)

    def close(self) -> None:
        self.stop()
        for group in self._joined:
            group.close()

    def launcher(self, rank: int, key: str = KEY) -> Launcher:
        found = Launcher.from_environ(variables(rank, self.nranks, self.rendezvous.address, key))
        assert found is not None
        return found

    def join(self, rank: int, timeout: float = DEADLINE) -> TcpGroup:
        self._joined.append(TcpGroup.join(self.launcher(rank), timeout))
        return self._joined[-1]


@contextmanager
def served(nranks: int) -> Iterator[tuple[Served, ThreadPoolExecutor]]:
    place = Served(nranks)
    with ThreadPoolExecutor(nranks) as pool:
        try:
            yield place, pool
        finally:
            place.close()


def error_of(future: Future[Any]) -> BaseException:
    found = future.exception(DEADLINE)
    assert found is not None
    return found


def test_exchanges_of_the_job_and_of_parts_of_it() -> None:
    def rank(place: Served, me: int) -> tuple[Any, ...]:
        group = place.join(me)
        everybody = group.all_gather(bytes([me]) * me)
        spoken = group.broadcast(b"last" if me == 3 else None, root=3)
        part = group.subgroup([3, 1] if me % 2 else [0, 2])
        within = part.all_gather(b"%d" % me)
        again = group.subgroup([2, 0, 1]).all_gather(b"x%d" % me) if me < 3 else None
        group.barrier()
        return group.rank, group.nranks, everybody, spoken, part.rank, within, again

    with served(4) as (place, pool):
        found = [future.result(DEADLINE) for future in [pool.submit(rank, place, me) for me in range(4)]]
    everybody = [b"", b"\1", b"\2\2", b"\3\3\3"]
    odd, even, three = [b"3", b"1"], [b"0", b"2"], [b"x2", b"x0", b"x1"]
    assert found == [
        (0, 4, everybody, b"last", 0, even, three),
        (1, 4, everybody, b"last", 1, odd, three),
        (2, 4, everybody, b"last", 1, even, three),
        (3, 4, everybody, b"last", 0, odd, None),
    ]


def test_long_payloads_come_whole() -> None:
    with served(2) as (place, pool):
        groups = [place.join(me) for me in range(2)]
        sent = [bytes([7 + me]) * (5_000_000 + me) for me in range(2)]
        futures = [pool.submit(group.all_gather, payload) for group, payload in zip(groups, sent, strict=True)]
        assert [future.result(DEADLINE) for future in futures] == [sent, sent]


def test_each_init_of_the_ranks_is_a_meeting_of_its_own() -> None:
    with served(2) as (place, pool):
        first = [place.join(me) for me in range(2)]
        second = [place.join(me) for me in (1, 0)][::-1]
        futures = [pool.submit(group.all_gather, b"%d" % n) for n, group in enumerate([first[0], second[1]])]
        time.sleep(0.05)
        assert not any(future.done() for future in futures)
        assert first[1].all_gather(b"a") == futures[0].result(DEADLINE) == [b"0", b"a"]
        assert second[0].all_gather(b"b") == futures[1].result(DEADLINE) == [b"b", b"1"]


def test_a_rank_that_ends_before_it_has_joined_is_named_to_those_that_wait_and_those_that_come() -> None:
    with served(3) as (place, pool):
        waiting = pool.submit(place.join(0).all_gather, b"")
        begun = time.monotonic()
        place.ended(2)
        early = error_of(waiting)
        late = error_of(pool.submit(place.join(1).all_gather, b""))
        took = time.monotonic() - begun
    for rank, error in ((0, early), (1, late)):
        assert type(error) is PeerFailureError
        assert (error.rank, set(error.ranks), error.origin) == (rank, {2}, rank)
        assert "rank 2 ended before it had joined the job in hetcomm.init (exit status 0)" in str(error)
    assert took < PROMPT


def test_a_rank_that_ends_in_the_middle_is_named_in_terms_of_the_group() -> None:
    with served(3) as (place, pool):
        groups = [place.join(me) for me in range(3)]
        assert [future.result(DEADLINE) for future in [pool.submit(each.all_gather, b"") for each in groups]]
        waiting = pool.submit(groups[0].subgroup([2, 0]).all_gather, b"")
        place.ended(2, "killed by SIGKILL", killed=True)
        error = error_of(waiting)
    assert type(error) is PeerFailureError
    assert (error.rank, set(error.ranks)) == (1, {0})
    assert "rank 0 ended while a communicator was set up (killed by SIGKILL)" in str(error)


def test_who_gave_up_because_of_another_is_not_named_beside_it() -> None:
    with served(4) as (place, pool):
        groups = [place.join(me) for me in range(4)]
        place.ended(1, "killed by SIGKILL", killed=True)
        place.ended(0, "exit status 1")
        told = error_of(pool.submit(groups[3].all_gather, b""))
        alone = error_of(pool.submit(groups[2].subgroup([0, 2]).all_gather, b""))
    assert isinstance(told, PeerFailureError)
    assert set(told.ranks) == {1}
    assert "exit status" not in str(told)
    assert isinstance(alone, PeerFailureError)
    assert set(alone.ranks) == {0}


def test_who_only_waits_is_told_too() -> None:
    with served(2) as (place, pool):
        group = place.join(0)
        waiting = pool.submit(group.wait, lambda: False, "a library makes a communicator")
        place.ended(1, "killed by SIGSEGV", killed=True)
        error = error_of(waiting)
    assert type(error) is PeerFailureError
    assert set(error.ranks) == {1}
    assert "killed by SIGSEGV" in str(error)


def test_a_rank_that_leaves_while_its_process_lives_is_named() -> None:
    with served(2) as (place, pool):
        groups = [place.join(me) for me in range(2)]
        groups[1].close()
        error = error_of(pool.submit(groups[0].all_gather, b""))
    assert type(error) is PeerFailureError
    assert set(error.ranks) == {1}
    assert "has given up, or has closed its communicator" in str(error)


def test_ranks_that_do_not_come_in_time_are_named() -> None:
    with served(4) as (place, pool):
        groups = [place.join(me, timeout=0.2) for me in (0, 2)]
        errors = [error_of(future) for future in [pool.submit(group.all_gather, b"") for group in groups]]
    for error in errors:
        assert type(error) is CollectiveTimeoutError
        assert set(error.ranks) == {1, 3}
        assert "rank 1, 3 did not take part in setting up a communicator within 0.2 s" in str(error)


def test_without_the_launcher_nobody_waits() -> None:
    with served(2) as (place, pool):
        launcher = place.launcher(1)
        waiting = pool.submit(place.join(0).all_gather, b"")
        place.stop()
        assert type(error_of(waiting)) is TransportError
        with pytest.raises(TransportError, match="cannot be used"):
            TcpGroup.join(launcher, DEADLINE)


def test_only_who_has_the_key_takes_part() -> None:
    with served(2) as (place, pool):
        with pytest.raises(TransportError, match="it may have another key"):
            TcpGroup.join(place.launcher(1, "cd" * 32), DEADLINE)
        host, _, port = place.rendezvous.address.rpartition(":")
        assert host == "127.0.0.1"
        for said in (b"GET / HTTP/1.1\r\n\r\n" * 10, frames.HELLO.pack(1, b"n" * 32, b"m" * 32), b""):
            with socket.create_connection((host, int(port)), DEADLINE) as stranger:
                assert len(stranger.recv(frames.NONCE, socket.MSG_WAITALL)) == frames.NONCE
                stranger.sendall(said)
                if said:
                    assert stranger.recv(1) == b""
        futures = [pool.submit(place.join(me).all_gather, b"%d" % me) for me in range(2)]
        assert [future.result(DEADLINE) for future in futures] == [[b"0", b"1"]] * 2


def test_a_rendezvous_without_the_key_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def pretend() -> None:
            with listener.accept()[0] as connected:
                connected.sendall(b"n" * frames.NONCE)
                connected.recv(frames.HELLO.size, socket.MSG_WAITALL)
                connected.sendall(b"m" * frames.WELCOME)

        answering = pool.submit(pretend)
        found = Launcher.from_environ(variables(0, 1, f"127.0.0.1:{listener.getsockname()[1]}", KEY))
        assert found is not None
        with pytest.raises(TransportError, match="has not got the key"):
            TcpGroup.join(found, DEADLINE)
        answering.result(DEADLINE)


@pytest.mark.parametrize(("address", "key"), [("nowhere", KEY), ("127.0.0.1:http", KEY), ("127.0.0.1:9", "no key")])
def test_variables_that_cannot_be_used_are_named(address: str, key: str) -> None:
    found = Launcher.from_environ(variables(0, 2, address, key))
    assert found is not None
    assert key not in repr(found)
    with pytest.raises(UsageError, match="HETCOMM_ADDRESS and HETCOMM_KEY"):
        TcpGroup.join(found, DEADLINE)


def test_when_the_bootstrap_goes_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="hetcomm run"):
        bootstrap(Config(bootstrap="tcp"))
    for name, value in {**variables(1, 2, "127.0.0.1:9", KEY), "PMI_RANK": "0", "PMI_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert uses_tcp(Config())
    assert not uses_mpi(Config())
    assert not uses_tcp(Config(bootstrap="single"))
    assert not uses_tcp(Config(), comm=object())
    assert uses_mpi(Config(bootstrap="mpi"))
    monkeypatch.setenv("_HETCOMM_RANK", "1 127.0.0.1:9")
    with pytest.raises(UsageError, match=r"is a child of process 1, which is a rank of the job"):
        bootstrap(Config())


KILLED = "killed by SIGKILL"


def test_a_rank_that_is_started_again_may_come_to_the_next_meeting_and_not_to_the_last() -> None:
    with served(3) as (place, pool):
        first = [place.join(me) for me in range(3)]
        place.ended(1, KILLED, killed=True, again=True)
        told = [error_of(pool.submit(first[me].all_gather, b"")) for me in (0, 2)]
        assert all(isinstance(each, PeerFailureError) and not each.is_final for each in told)
        assert all("rank 1 ended while" in str(each) and "is started again" in str(each) for each in told)
        futures = [pool.submit(place.join(me).all_gather, b"%d" % me) for me in range(3)]
        assert [future.result(DEADLINE) for future in futures] == [[b"0", b"1", b"2"]] * 3


def test_who_fails_long_after_another_was_replaced_has_not_failed_because_of_that() -> None:
    with served(4) as (place, pool):
        [place.join(me) for me in range(4)]
        place.ended(1, KILLED, killed=True, again=True)
        groups = [place.join(me) for me in range(4)]
        place.ended(2, "exit status 1", again=True)
        told = [error_of(pool.submit(groups[me].all_gather, b"")) for me in (0, 1, 3)]
        for error in told:
            assert isinstance(error, PeerFailureError)
            assert set(error.ranks) == {2}, error
            assert not error.is_final


def test_a_replacement_that_fails_for_good_is_named_though_it_has_lived_before() -> None:
    with served(2) as (place, pool):
        [place.join(me) for me in range(2)]
        place.ended(1, KILLED, killed=True, again=True)
        waiting = pool.submit(place.join(0).all_gather, b"")
        place.ended(1, "exit status 7")
        error = error_of(waiting)
        assert isinstance(error, PeerFailureError)
        assert (set(error.ranks), error.is_final) == ({1}, True)
        assert "exit status 7" in str(error)


def test_who_comes_late_to_a_meeting_that_others_have_left_may_follow_them() -> None:
    with served(3) as (place, pool):
        left = [place.join(me) for me in (0, 1)]
        for group in left:
            group.close()
        late = place.join(2)
        error = error_of(pool.submit(late.all_gather, b""))
        assert isinstance(error, PeerFailureError)
        assert not error.is_final
        futures = [pool.submit(place.join(me).all_gather, b"") for me in range(3)]
        assert [len(future.result(DEADLINE)) for future in futures] == [3] * 3


def test_ranks_meet_in_a_crowd_of_a_thousand_strangers() -> None:
    with served(4) as (place, pool):
        host, port = place.rendezvous.address.rsplit(":", 1)
        crowd = Crowd((host, int(port)), 1000, recorded(bytes.fromhex(KEY)))
        try:
            while crowd.opened < 300:
                time.sleep(0.01)
            joining = [pool.submit(place.join, me) for me in range(4)]
            groups = [each.result(DEADLINE) for each in joining]
            while crowd.opened < 1000:
                time.sleep(0.01)
            futures = [pool.submit(group.all_gather, b"%d" % me) for me, group in enumerate(groups)]
            assert [future.result(DEADLINE) for future in futures] == [[b"0", b"1", b"2", b"3"]] * 4
        finally:
            crowd.close()
        assert crowd.answered == 0
