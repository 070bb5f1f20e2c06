"""Readers of what comes from outside, fuzzed by coverage; nightly, for `FUZZ_SECONDS` each."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    command = [sys.executable, str(HARNESS), name, f"-max_total_time={SECONDS}", *LIMITS, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=SECONDS + 300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "number_of_executed_units" in done.stderr
