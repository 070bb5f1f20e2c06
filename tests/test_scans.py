"""Scan and exscan in real processes, against NumPy: every form of call, clusters one after another and taking turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetcomm.testing import run_ranks
from hetcomm.topology.model import Cluster, Topology, Uplink

from .ranks import once, run_in_turn
from .scan_jobs import every_form, ops
from .scripts import DEADLINE, PATIENCE

JOBS = {
    "2+2": ("mpi", "mpi", "oneccl", "oneccl"),
    "1+3": ("mpi", "oneccl", "oneccl", "oneccl"),
    "2+1+1": ("mpi", "mpi", "oneccl", "ucx"),
    "taking turns": ("mpi", "ucx", "mpi", "ucx"),
    "one cluster": ("ucx", "ucx", "ucx"),
}


@once
def told(name: str) -> dict[str, list[list[str]]]:
    """What was wrong in a job, by target."""
    return run_in_turn(len(JOBS[name]), {"every form": every_form, "ops": ops}, vendors=JOBS[name], env=PATIENCE)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ("2+2", "1+3") else []) for name in JOBS]
)
def test_every_form_equals_numpy(name: str) -> None:
    assert told(name)["every form"] == [[]] * len(JOBS[name])


@pytest.mark.parametrize("name", ["2+1+1", "one cluster"])
def test_every_op_has_its_identity_and_averages_are_refused(name: str) -> None:
    assert told(name)["ops"] == [[]] * len(JOBS[name])


def test_border_ranks_pass_on_what_crosses(tmp_path: Path) -> None:
    ends = Cluster("ends", "mpi", (0, 3, 4), (Uplink(3),))
    middle = Cluster("middle", "ucx", (1, 2), (Uplink(1, 1e9, 3e9), Uplink(2, 2e9, 1e9)))
    file = tmp_path / "topology.toml"
    file.write_text(Topology((ends, middle)).to_toml(), encoding="utf-8")
    found = run_ranks(
        5,
        every_form,
        vendors=["mpi", "ucx", "ucx", "mpi", "mpi"],
        env=PATIENCE | {"HETCOMM_TOPOLOGY": str(file)},
        timeout=DEADLINE,
    )
    assert found == [[]] * 5
