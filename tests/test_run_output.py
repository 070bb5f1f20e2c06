"""What `hetcomm run` makes of what ranks write: whole lines, and one error in full."""

from __future__ import annotations

import pytest

from hetcomm._ranks import output
from hetcomm._ranks.output import Report, how

HEADER = b"Traceback (most recent call last):\n"
OWN = HEADER + b'  File "app.py", line 3, in <module>\n    fail()\nValueError: two\nlines\n'
PEER = (
    HEADER + b'  File "app.py", line 5, in <module>\nhetcomm.errors.PeerFailureError: [rank 0, peer 1] rank 1 is gone\n'
)
CHAINED = (
    b"hetcomm.errors.PeerFailureError: rank 1 has ended\n\n"
    b"The above exception was the direct cause of the following exception:\n\n"
    + HEADER
    + b'  File "app.py", line 5, in <module>\n\nDuring handling of the above exception, another exception occurred:\n\n'
    + HEADER
    + b'  File "app.py", line 7, in <module>\nhetcomm.errors.DepartedError: rank 1 has closed it\n'
)


class Written:
    def __init__(self, nranks: int, prefix: bool = True) -> None:
        self.out = b""
        self.err = b""
        self.report = Report(nranks, self._out, self._err, prefix)

    def _out(self, lines: bytes) -> None:
        assert lines.endswith(b"\n")
        self.out += lines

    def _err(self, lines: bytes) -> None:
        assert lines.endswith(b"\n")
        self.err += lines

    def fail(self, rank: int, text: bytes, returncode: int = 1) -> None:
        self.report.err(rank, text)
        self.report.ended(rank, returncode)


def prefixed(rank: int, text: bytes) -> bytes:
    return b"".join(b"[%d] %s" % (rank, line) for line in text.splitlines(keepends=True))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is shown because time has passed."""
    monkeypatch.setattr(output, "_HOLDING", 1e9)
    monkeypatch.setattr(output, "_PATIENCE", 1e9)


def test_lines_are_written_whole_and_in_order_with_their_rank() -> None:
    written = Written(2)
    for rank, data in ((0, b"ab"), (1, b"x\ny"), (0, b"c\n\nd\n"), (1, b"z\nlast")):
        written.report.out(rank, data)
    assert written.out == b"[1] x\n[0] abc\n[0] \n[0] d\n[1] yz\n"
    written.report.err(0, b"a warning\n")
    for rank in (0, 1):
        written.report.ended(rank, 0)
    assert written.out.endswith(b"[1] yz\n[1] last\n")
    assert written.err == b"[0] a warning\n"
    assert written.report.failure is None


def test_without_prefix_lines_are_as_they_were() -> None:
    written = Written(2, prefix=False)
    written.report.out(1, b"one\nt")
    written.report.out(0, b"zero\n")
    written.report.out(1, b"wo\n")
    assert written.out == b"one\nzero\ntwo\n"


@pytest.mark.usefixtures("patient")
def test_the_error_of_the_rank_that_failed_first_is_shown_and_the_others_in_a_line() -> None:
    written = Written(4)
    written.fail(0, PEER)
    written.fail(3, CHAINED)
    assert written.err == b""
    written.fail(1, b"before\n" + OWN)
    written.fail(2, OWN.replace(b"two", b"three"))
    assert written.err.decode().splitlines() == [
        "[1] before",
        *prefixed(1, OWN).decode().splitlines(),
        "[0] failed: PeerFailureError: [rank 0, peer 1] rank 1 is gone",
        "[3] failed: DepartedError: rank 1 has closed it",
        "[2] failed: ValueError: three",
    ]
    assert written.report.failure == (1, 1)


@pytest.mark.usefixtures("patient")
def test_where_all_only_tell_of_others_the_first_is_shown() -> None:
    written = Written(3)
    written.report.ended(1, 0)
    written.fail(2, CHAINED)
    written.fail(0, PEER)
    written.report.finish()
    assert written.err == prefixed(2, CHAINED) + b"[0] failed: PeerFailureError: [rank 0, peer 1] rank 1 is gone\n"
    assert written.report.failure == (2, 1)


@pytest.mark.usefixtures("patient")
def test_a_rank_that_was_killed_or_says_nothing_has_its_line() -> None:
    written = Written(4)
    written.fail(2, b"", -9)
    written.fail(0, PEER)
    written.fail(1, b"SomeError: no traceback\n", 3)
    written.fail(3, OWN, -6)
    assert written.err.decode().splitlines() == [
        "[2] failed: killed by SIGKILL",
        "[0] failed: PeerFailureError: [rank 0, peer 1] rank 1 is gone",
        "[1] SomeError: no traceback",
        "[1] failed: exit status 3",
        "[3] failed: killed by SIGABRT after ValueError: two",
    ]
    assert written.report.failure == (2, -9)


def test_a_rank_that_failed_because_of_another_is_shown_if_no_better_reason_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output, "_PATIENCE", -1.0)
    written = Written(3)
    written.fail(0, PEER)
    assert written.err == prefixed(0, PEER)
    written.fail(1, OWN)  # the reason, late
    written.fail(2, PEER)
    assert written.err == prefixed(0, PEER) + prefixed(1, OWN) + (
        b"[2] failed: PeerFailureError: [rank 0, peer 1] rank 1 is gone\n"
    )
    assert written.report.failure == (1, 1)


def test_a_traceback_of_a_rank_that_goes_on_is_shown_with_all_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written(2)
    written.report.err(0, OWN + b"and on it goes\n")
    assert written.err == b""
    written.report.ended(0, 0)
    assert written.err == prefixed(0, OWN) + b"[0] and on it goes\n"
    monkeypatch.setattr(output, "_HOLDING", -1.0)
    written.report.err(1, OWN)
    written.report.look()
    assert written.err.endswith(prefixed(1, OWN))
    shown = len(written.err)
    written.report.err(1, b"more\n")
    written.report.ended(1, 1)
    assert written.err[shown:] == b"[1] more\n"


def test_a_line_that_does_not_end_is_not_kept_for_ever() -> None:
    written = Written(1)
    for _ in range(40):
        written.report.out(0, b"x" * 100_000)
    assert len(written.out) > 2_000_000


@pytest.mark.parametrize(
    ("returncode", "text"), [(0, "exit status 0"), (7, "exit status 7"), (-9, "killed by SIGKILL"), (-64, "SIGRTMAX")]
)
def test_how_a_process_ended(returncode: int, text: str) -> None:
    assert how(returncode).endswith(text)
