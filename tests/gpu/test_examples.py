"""The numerical examples with CuPy on the ranks that have the GPU, and NumPy on the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetcomm.testing import run_ranks

from ..test_examples import run_both
from .test_matrix import Job, check_usable, environs, on_gpu

pytestmark = pytest.mark.gpu

JOBS = {
    "2+2": on_gpu(("ucx",) * 4, "aabb"),
    "1+2 mixed": Job(("nccl", "mpi", "mpi"), "abb", (True, False, False)),
}


@pytest.mark.parametrize("name", JOBS)
def test_heat_and_cg_compute_what_one_process_does(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = JOBS[name]
    check_usable(job)
    calls = [(f"{each}.py", ["--plot", str(tmp_path / f"{each}.png")]) for each in ("heat", "cg")]
    nranks = len(job.vendors)
    codes = run_ranks(nranks, run_both, calls, "", [], vendors=job.vendors, env=environs(job), timeout=150)
    output = capfd.readouterr().out
    assert codes == [[0, 0]] * nranks, output
    assert output.count("rank 0 computes with cupy") == 2, output
    assert "WRONG" not in output
    assert all((tmp_path / f"{each}.png").is_file() for each in ("heat", "cg"))
