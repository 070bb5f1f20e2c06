"""The main job on real processes, real vendors and real data; it checks itself and returns 0 if all its proofs held."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hetcomm.testing import run_ranks

DIGITS = Path(__file__).parent.parent / "examples" / "digits.py"


def digits(path: str) -> int:
    code: int = runpy.run_path(path, run_name="digits")["main"]()
    return code


@pytest.mark.parametrize(
    "vendors",
    [
        pytest.param(["mpi"] * 2 + ["oneccl"] * 2, id="2+2"),
        pytest.param(["oneccl"] + ["mpi"] * 3, id="1+3"),
        pytest.param(["mpi"] * 3 + ["oneccl"] + ["ucx"] * 2, id="3+1+2"),
    ],
)
def test_digits_trains_as_one_process_does(vendors: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    codes = run_ranks(len(vendors), digits, str(DIGITS), vendors=vendors, env={"TERM": "dumb"}, timeout=240.0)
    output = capfd.readouterr().out
    assert codes == [0] * len(vendors), output
    assert output.count(" ok ") == 5, output
    assert "WRONG" not in output


def test_digits_runs_without_a_launcher() -> None:
    done = subprocess.run([sys.executable, str(DIGITS)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 ranks in 1 clusters" in done.stdout
    assert done.stdout.count(" ok ") == 5
