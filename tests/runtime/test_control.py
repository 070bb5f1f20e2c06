"""Frames: what one says arrives, and what is no frame is refused with a typed error."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hetcomm.agreement.control import Frame, Subject
from hetcomm.errors import TransportError

NRANKS = 300

frames = st.builds(
    Frame,
    st.sampled_from(Subject),
    st.integers(0, NRANKS - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 255),
    st.binary(min_size=16, max_size=16),
    st.text(max_size=200),
    st.frozensets(st.integers(0, NRANKS - 1), max_size=32),
    st.none() | st.integers(0, NRANKS - 1),
    st.integers(-(2**63), 2**63 - 1),
)


@given(frames)
@example(Frame(Subject.GONE, 1, 2, text="é" * 300, ranks=frozenset(range(0, 64, 2)), origin=0, number=-1))
def test_what_is_packed_is_unpacked(frame: Frame) -> None:
    try:
        frame.text.encode()
    except UnicodeEncodeError:  # half a surrogate pair travels as its number
        assert "\\ud" in Frame.unpack(frame.pack(), NRANKS).text
        return
    assert Frame.unpack(frame.pack(), NRANKS) == frame


def test_what_is_too_long_is_cut_to_something_true() -> None:
    ranks = frozenset(range(0, NRANKS, 2))
    found = Frame.unpack(Frame(Subject.GONE, 0, 0, text="ö" * 2000, ranks=ranks).pack(), NRANKS)
    assert found.text.endswith("ö...")
    assert set(found.text[:-3]) == {"ö"}
    assert found.ranks == frozenset(range(0, 64, 2))
    whole = Frame(Subject.GONE, 0, 0, ranks=frozenset(range(NRANKS)))
    assert Frame.unpack(whole.pack(), NRANKS) == whole


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 99, "99 is not a valid Subject"),
        (2, 123, "123 spans"),
        (2, 32, "names a rank"),
        (3, 7, "names a rank that the communicator of 4"),
        (7, 4, "names a rank"),
        (7, 0xFE, "names a rank"),
        (44, 0xFF, "bytes of text"),
        (45 + 4, 9, "names a rank"),
        (45 + 8, 0xFF, "codec can't decode"),
    ],
)
def test_what_no_rank_writes_is_refused(at: int, value: int, message: str) -> None:
    data = Frame(Subject.NOTE, 3, 1, text="hello", ranks=frozenset({0})).pack()
    assert Frame.unpack(data, 4).text == "hello"
    data[45 + 13 : 45 + 20] = b"\xff" * 7  # behind the text, where nothing is read unless a length is wrong
    data[at] = value
    with pytest.raises(TransportError, match=message):
        Frame.unpack(data, 4)


def test_another_length_is_refused() -> None:
    with pytest.raises(TransportError, match="it has 1000 bytes, not 1024"):
        Frame.unpack(Frame(Subject.NOTE, 0, 1).pack()[:1000], 4)


@given(st.binary(min_size=1024, max_size=1024), st.integers(1, 2**20))
def test_any_bytes_are_a_frame_or_refused(data: bytes, nranks: int) -> None:
    try:
        frame = Frame.unpack(data, nranks)
    except TransportError:
        return
    assert frame.source < nranks
    assert all(rank < nranks for rank in frame.ranks)
