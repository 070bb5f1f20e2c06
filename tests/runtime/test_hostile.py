"""Bytes from outside: any of them give a value or a typed error, and take no more memory than they are long."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hetcomm.agreement.control import Frame, Subject
from hetcomm.errors import HetcommError, TopologyError, TransportError, VendorError
from hetcomm.job import frames
from hetcomm.job.detect import Statement, exchange, parsed
from hetcomm.job.group import pack, unpack
from hetcomm.schedule import serial
from hetcomm.topology import toml
from hetcomm.topology.model import Topology

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def mutated(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` with something in it replaced by something else."""

    def change(places: tuple[int, int], new: bytes) -> bytes:
        start, stop = sorted(places)
        return whole[:start] + new + whole[stop:]

    place = st.integers(0, len(whole))
    return st.builds(change, st.tuples(place, place), st.binary(max_size=12))


class Group:
    """Rank 0 of a group whose other ranks say what was given."""

    rank = 0

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.nranks = 1 + len(answers)

    def all_gather(self, payload: bytes) -> Sequence[bytes]:
        return [payload, *self.answers]


# ---- as the ranks meet


@given(st.binary(max_size=64) | mutated(pack([b"", b"one", b"another"])))
@example(b"\xff\xff\xff\xff")
@example(struct.pack("<IQQ", 2, 1, 2**64 - 1) + b"x")
def test_payloads_are_taken_apart_or_refused(data: bytes) -> None:
    try:
        parts = unpack(data)
    except TransportError:
        return
    assert pack(parts) == data


ENDED = {2: frames.Ended("ended by SIGKILL"), 3: frames.Ended("ended (exit status 1)", (2,))}


@given(st.binary(max_size=64) | mutated(frames.pack_part([0, 2], 1, b"x")) | mutated(frames.pack_ended(ENDED)))
@example(b"\xff" * 8)
@example(b"[" * 100_000)
@example(b"[[0, 0, [1e999]]]")
def test_what_a_rendezvous_and_its_ranks_say_is_a_value_or_refused(data: bytes) -> None:
    for unpacked in (frames.unpack_ranks, frames.unpack_part, frames.unpack_ended, frames.Frames().feed):
        with suppress(TransportError):
            unpacked(data)
    assert frames.unpack_ended(frames.pack_ended(ENDED)) == ENDED
    assert frames.unpack_part(frames.pack_part([0, 2], 1, b"x")) == ((0, 2), 1, b"x")


STATEMENT = Statement("mpi", "left", "host:12345678", b"\1\2\3", "abc")


@given(st.binary(max_size=64) | mutated(STATEMENT.pack()) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(json.dumps({"vendor": 1, "label": "", "host": "", "address": "", "topology": ""}).encode())
@example(STATEMENT.pack().replace(b"010203", b"0102zz"))
@example(STATEMENT.pack().replace(b"010203", b"0102\xd9\xa3"))
def test_a_statement_is_one_or_refused(data: bytes) -> None:
    try:
        said = Statement.unpack(data)
    except TransportError:
        return
    assert Statement.unpack(said.pack()) == said


ERROR = json.dumps({"type": "VendorError", "message": "no", "remedy": None}).encode()


@given(st.binary(max_size=64) | mutated(b"-" + ERROR) | JSON.map(lambda value: b"-" + json.dumps(value).encode()))
@example(b"")
@example(b"-" + ERROR.replace(b"VendorError", b"numbers"))
@example(b"-" + ERROR.replace(b"VendorError", b"annotations"))
@example(b"-" + ERROR.replace(b"VendorError", b"__builtins__"))
@example(b"-" + ERROR.replace(b'"no"', b"{}"))
def test_what_a_rank_says_is_an_answer_or_a_typed_error(answer: bytes) -> None:
    try:
        answers = exchange(Group(answer), b"mine", None, "meeting")  # type: ignore[arg-type]
    except HetcommError:
        return
    assert answers == [b"mine", answer[1:]]


def test_errors_are_told_with_their_type() -> None:
    with pytest.raises(VendorError, match="meeting failed on rank 1: no"):
        exchange(Group(b"-" + ERROR), b"", None, "meeting")  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="no"):
        exchange(Group(b"-" + ERROR.replace(b"VendorError", b"FutureError")), b"", None, "meeting")  # type: ignore[arg-type]


# ---- files

TOML = Topology.from_toml(
    """
    [[cluster]]
    name = "left"
    vendor = "mpi"
    ranks = "0-1, 3"
    hosts = ["a", "b", "c"]
    site = "x/y"
    [[cluster.uplink]]
    rank = 0
    bandwidth = "10 Gbit/s"
    latency = "5 us"
    [[cluster]]
    vendor = "ucx"
    ranks = [2]
    [[cluster.uplink]]
    rank = 2
    """
).to_toml()


@given(st.text(max_size=40) | mutated(TOML.encode()).map(lambda data: data.decode(errors="replace")))
@example("x = " + "[" * 100_000)
@example("[[cluster]]\nvendor='a'\nranks=[" + "9" * 5000 + "]")
@example("[[cluster]]\nvendor='a'\nranks=[1979-05-27]")
@example("[[cluster]]\nvendor='a'\nranks=[0]\n[[cluster.uplink]]\nrank=0\nlatency=1e999")
@example("[[cluster]]\nvendor='a'\nranks=[0]\n[[cluster.uplink]]\nrank=0\nbandwidth='1e999 Gbit/s'")
def test_a_topology_is_one_or_refused(text: str) -> None:
    with suppress(TopologyError):
        Topology.from_toml(text)


SCHEDULE = json.dumps(
    {
        "format": serial.FORMAT,
        "version": serial.VERSION,
        "collective": {
            "kind": "broadcast",
            "nranks": 2,
            "count": 8,
            "dtype": "float32",
            "op": None,
            "root": 0,
            "in_place": False,
            "counts": None,
            "in_displs": None,
            "out_displs": None,
        },
        "communicators": {"home:left": [0, 1]},
        "programs": [
            {
                "rank": rank,
                "in_place": False,
                "in_displs": None,
                "out_displs": None,
                "scratch_count": 0,
                "algorithm": "a",
                "steps": [{"step": "send", "src": ["out", 0, 8], "peer": 1, "channel": 0}],
            }
            for rank in range(2)
        ],
    }
).encode()


@given(st.binary(max_size=40) | mutated(SCHEDULE))
@example(b"[" * 100_000)
@example(b'{"a": 1, ' + b", ".join(b'"k%d": 0' % number for number in range(20_000)) + b', "a": 2}')
def test_a_schedule_is_one_or_refused(data: bytes) -> None:
    with suppress(HetcommError):
        serial.loads(data)


# ---- memory

HUGE: dict[str, tuple[Callable[[Any], object], Any]] = {
    "parts": (unpack, b"\xff\xff\xff\xff" + bytes(100)),
    "length of a part": (unpack, struct.pack("<IQ", 1, 2**40) + bytes(100)),
    "ranks of a frame": (
        lambda data: Frame.unpack(data, 2**31),
        bytes(Frame(Subject.NOTE, 0, 0, ranks=frozenset({0})).pack()).replace(
            struct.pack("<II", 0, 0) + bytes(8), struct.pack("<II", 0, 2**31 - 1) + bytes(8), 1
        ),
    ),
    "ranks of a topology": (toml.loads, "[[cluster]]\nvendor='a'\nranks='0-999999999'"),
    "counts of a schedule": (serial.loads, SCHEDULE.replace(b'"nranks": 2', b'"nranks": 999999999999')),
    "numbers of JSON": (parsed, b"1" * 100_000),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_is_said_to_be_large_takes_no_memory(name: str) -> None:
    read, data = HUGE[name]
    tracemalloc.start()
    try:
        with suppress(HetcommError):
            read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(data) + (1 << 20)
