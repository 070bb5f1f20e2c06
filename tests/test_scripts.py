"""What becomes of commands that tests start themselves."""

from __future__ import annotations

import sys

import pytest

from .scripts import living, python, started

HANGS = """
import os, time
def stuck():
    print("here", flush=True)
    time.sleep(99)
if os.fork():
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
else:
    os.setsid()
stuck()
"""


def test_one_that_hangs_is_shown_and_ended() -> None:
    with started([sys.executable, "-c", HANGS]) as job:
        assert job.process.stdout is not None
        assert job.process.stdout.readline() == "here\n"
        with pytest.raises(AssertionError) as caught:
            job.finish(0.1)
        assert living(job.mark) == []
    text = str(caught.value)
    assert text.startswith("not ended within 0.1 s:\nprocess ")
    assert text.count(", rank -, S in ") == text.count("in stuck") == 2


def test_a_wrong_status_shows_all_that_was_written() -> None:
    with pytest.raises(AssertionError, match="exit status 3\nout\nerr\n"):
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
