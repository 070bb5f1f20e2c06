"""Both transports keep the promises of the protocol, and the suite that says so notices when one is broken."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import pytest

from hetcomm._conformance.transport import check_transport
from hetcomm.errors import TransportError
from hetcomm.transport.base import Request, Transport
from hetcomm.transport.inproc import InprocNetwork, InprocRequest, InprocTransport
from hetcomm.transport.ucx import UcxTransport


def ucx_transports(nranks: int) -> list[UcxTransport]:
    transports = [UcxTransport() for _ in range(nranks)]
    for transport in transports:
        for peer, other in enumerate(transports):
            transport.connect(peer, other.address)
    return transports


@pytest.mark.parametrize("nranks", [2, 3])
@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_inproc(nranks: int, seed: int | None) -> None:
    check_transport(lambda: InprocNetwork(nranks, seed=seed).transports)


@pytest.mark.parametrize("eager_nbytes", [0, 1 << 30])
def test_inproc_that_copies_nothing_or_everything(eager_nbytes: int) -> None:
    check_transport(lambda: InprocNetwork(2, seed=5, eager_nbytes=eager_nbytes).transports)


@pytest.mark.parametrize("nranks", [2, 3])
def test_ucx(nranks: int) -> None:
    check_transport(lambda: ucx_transports(nranks))


class IgnoresTags(InprocTransport):
    def send(self, address: int, nbytes: int, peer: int, tag: int) -> InprocRequest:
        return super().send(address, nbytes, peer, tag & 0xFFFFFFFF)

    def recv(self, address: int, nbytes: int, peer: int, tag: int) -> InprocRequest:
        return super().recv(address, nbytes, peer, tag & 0xFFFFFFFF)


class CutsLongMessages(InprocTransport):
    def recv(self, address: int, nbytes: int, peer: int, tag: int) -> InprocRequest:
        request = super().recv(address, nbytes, peer, tag)
        request.capacity = 1 << 40
        return request


class CompletesTooEarly(InprocTransport):
    def send(self, address: int, nbytes: int, peer: int, tag: int) -> InprocRequest:
        request = super().send(address, nbytes, peer, tag)
        request.done = True
        return request


class ReordersMessages(InprocTransport):
    def progress(self) -> bool:
        for channel in self._channels.values():
            channel.reverse()
        return super().progress()


class LosesEmptyMessages(InprocTransport):
    def send(self, address: int, nbytes: int, peer: int, tag: int) -> InprocRequest:
        if nbytes:
            return super().send(address, nbytes, peer, tag)
        request = InprocRequest(self, address, nbytes, peer, tag, is_recv=False)
        request.done = True
        return request


class FlipsABit(InprocTransport):
    def recv(self, address: int, nbytes: int, peer: int, tag: int) -> InprocRequest:
        if nbytes > 1 << 20:
            nbytes -= 1
            ctypes.memset(address + nbytes, 0, 1)
            request = super().recv(address, nbytes, peer, tag)
            request.capacity += 1
            return request
        return super().recv(address, nbytes, peer, tag)


class WorksAfterClose(InprocTransport):
    def _check_open(self) -> None:
        pass


class LeavesCancelledReceives(InprocTransport):
    def _withdraw(self, request: InprocRequest) -> None:
        pass


class WaitsWithoutCancelling(InprocTransport):
    def wait(self, requests: Sequence[Request], timeout: float) -> None:
        try:
            super().wait([_Uncancelled(request) for request in requests], timeout)
        except TransportError:
            raise


class _Uncancelled:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.peer = getattr(request, "peer", None)

    def test(self) -> bool:
        return self.request.test()

    def cancel(self) -> None:
        pass


BROKEN = [
    IgnoresTags,
    CutsLongMessages,
    CompletesTooEarly,
    ReordersMessages,
    LosesEmptyMessages,
    WorksAfterClose,
    LeavesCancelledReceives,
    WaitsWithoutCancelling,
]


def network_of(kind: type[InprocTransport]) -> Callable[[], Sequence[Transport]]:
    def make() -> Sequence[Transport]:
        network = InprocNetwork(2)
        for transport in network.transports:
            transport.__class__ = kind
        return network.transports

    return make


@pytest.mark.parametrize("kind", BROKEN)
def test_the_suite_notices_a_broken_transport(kind: type[InprocTransport], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetcomm._conformance.transport._PATIENCE", 0.5)
    with pytest.raises(AssertionError):
        check_transport(network_of(kind))
