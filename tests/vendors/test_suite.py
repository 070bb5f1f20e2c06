"""The suite notices a vendor that does not keep its word."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from hetcomm._conformance.vendor import check_vendor
from hetcomm.errors import VendorError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.types import DataType, Memory, ReduceKind
from hetcomm.vendors.base import Operation
from hetcomm.vendors.host import Done, HostCommunicator
from hetcomm.vendors.mpi import MpiVendor

CAPABILITIES = replace(
    MpiVendor.capabilities, dtypes=frozenset({DataType.INT32, DataType.FLOAT64}), ops=frozenset({ReduceKind.MAX})
)
Call = tuple[Collective, Memory | None, Memory | None]


class Alone:
    """A group of one."""

    rank = 0
    nranks = 1

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        return [payload]

    def broadcast(self, payload: bytes | None, root: int = 0) -> bytes:
        return payload or b""

    def barrier(self) -> None:
        pass


class Sabotaged(HostCommunicator):
    """Does something more after each call."""

    def __init__(self, after: Callable[[Collective, Memory | None, Memory | None], None]) -> None:
        super().__init__("fake", CAPABILITIES, 0, 1, None)
        self._after = after

    def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
        operation = super().start(collective, in_memory, out_memory)
        self._after(collective, in_memory, out_memory)
        return operation


def flip(memory: Memory | None, element: int) -> None:
    if memory is not None:
        ctypes.c_char.from_address(memory.address + element * memory.dtype.itemsize).value = b"\x5a"


def wrong_value(collective: Collective, src: Memory | None, dst: Memory | None) -> None:
    if collective.kind is CollectiveKind.REDUCE_SCATTER and collective.count == 1000:
        flip(dst, 999)


def past_the_end(collective: Collective, src: Memory | None, dst: Memory | None) -> None:
    if collective.count == 5:
        flip(dst, 5)


def changed_input(collective: Collective, src: Memory | None, dst: Memory | None) -> None:
    flip(src, 0)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (wrong_value, r"reduce_scatter max of 1000 int32 on 1 ranks: element 999 on rank 0 is "),
        (past_the_end, r"of 5 int32 on 1 ranks.*wrote past the array"),
        (changed_input, r"changed its input"),
    ],
)
def test_data_that_is_wrong(after: Callable[..., None], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_vendor(lambda _: Sabotaged(after), Alone(), CAPABILITIES)


def test_an_honest_one_passes() -> None:
    assert check_vendor(lambda _: Sabotaged(lambda *_: None), Alone(), CAPABILITIES) > 100


def test_what_is_not_declared_must_be_refused() -> None:
    fewer = replace(CAPABILITIES, dtypes=frozenset({DataType.INT32}))
    with pytest.raises(
        AssertionError, match=r"of 3 float64 on 1 ranks.* must raise VendorError, since it is not among"
    ):
        check_vendor(lambda _: Sabotaged(lambda *_: None), Alone(), fewer)


def test_what_is_declared_must_be_done() -> None:
    more = replace(CAPABILITIES, dtypes=CAPABILITIES.dtypes | {DataType.INT8})
    with pytest.raises(VendorError, match="on int8 in host memory is not what it can do"):
        check_vendor(lambda _: Sabotaged(lambda *_: None), Alone(), more)


def test_a_closed_one_must_refuse() -> None:
    class Undead(Sabotaged):
        def close(self) -> None:
            pass

    with pytest.raises(AssertionError, match="must raise VendorError, since it is closed"):
        check_vendor(lambda _: Undead(lambda *_: None), Alone(), CAPABILITIES)


def test_an_operation_must_stay_complete() -> None:
    class Forgetful(Done):
        tested = 0

        def test(self) -> bool:
            self.tested += 1
            return self.tested == 1

    class Fickle(Sabotaged):
        def start(self, collective: Collective, in_memory: Memory | None, out_memory: Memory | None) -> Operation:
            super().start(collective, in_memory, out_memory)
            return Forgetful()

    with pytest.raises(AssertionError, match="a complete operation must stay complete"):
        check_vendor(lambda _: Fickle(lambda *_: None), Alone(), CAPABILITIES)
