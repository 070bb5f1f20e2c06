"""Readers of what comes from outside, fuzzed by coverage; nightly, for `FUZZ_SECONDS` each."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..scripts import run

HARNESS = Path(__file__).with_name("harness.py")
SECONDS = int(os.environ.get("FUZZ_SECONDS", "20"))
LIMITS = ["-rss_limit_mb=1024", "-timeout=20", "-max_len=4096", "-print_final_stats=1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frame", "payloads", "statement", "failure", "topology", "schedule"])
def test_mutated_bytes_give_a_value_or_a_typed_error(name: str, tmp_path: Path) -> None:
    if find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install atheris")
    folder = tmp_path / "corpus"
    folder.mkdir()
    command = [sys.executable, str(HARNESS), name, "seed", str(folder / "seed")]
    run(command)
    command = [sys.executable, str(HARNESS), name, f"-max_total_time={SECONDS}", *LIMITS, str(folder)]
    done = run(command, cwd=tmp_path, timeout=SECONDS + 300)
    assert "number_of_executed_units" in done.stderr
