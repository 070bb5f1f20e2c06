"""Which segments in /dev/shm are removed: those of dead processes, and never another's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hetcomm.vendors import segments


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(segments, "_FOLDER", tmp_path)
    monkeypatch.setattr(segments, "_ALL_PROCESSES", segments._namespace())
    segments._seen.clear()
    yield tmp_path
    segments._seen.clear()


def made(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(b"")
    return path


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def dead() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait(60)
    return child.pid


def test_the_next_start_removes_what_the_dead_have_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = dead()
    left = made(folder, f"{gone}:0:0")
    kept = [made(folder, f"{os.getpid()}:0:0"), made(folder, f"{gone}:0"), made(folder, f"a{gone}:0:0")]
    link = folder / f"{gone}:0:2"
    link.symlink_to(kept[0])
    with monkeypatch.context() as patch:
        patch.setattr(segments, "_ALL_PROCESSES", "pid:[0]")
        segments.sweep()
        assert left.exists()  # it may be a process's that cannot be seen
    with monkeypatch.context() as patch:
        patch.setattr(segments, "_numbers", lambda: {gone, os.getpid()})
        segments.sweep()
        assert left.exists()  # the number is that of a process in a container
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345678)
        segments.sweep()
        assert left.exists()  # it is another user's
    segments.sweep()
    assert not left.exists()
    assert all(path.exists() for path in kept)
    assert link.is_symlink()


def test_processes_are_known_by_their_numbers(process: subprocess.Popen[bytes]) -> None:
    assert {1, os.getpid(), process.pid} <= segments._numbers()


def test_survivors_remove_what_a_dead_rank_has_left(folder: Path, process: subprocess.Popen[bytes]) -> None:
    gone, other = made(folder, f"{process.pid}:0:0"), made(folder, f"{process.pid}:0:1")
    strange = made(folder, f"{dead()}:0:0")
    segments.remember([process.pid])
    late = made(folder, f"{process.pid}:0:2")
    segments.remove_of_dead()
    assert gone.exists()
    process.kill()  # and nobody has waited for it: it is a zombie
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    other.unlink()
    keeper = open(made(folder, f"{process.pid}:0:1"), "rb")  # noqa: SIM115  # another file of the same name
    segments._seen[other] = process.pid, os.fstat(keeper.fileno()).st_ino + 1
    segments.remove_of_dead()
    keeper.close()
    assert not gone.exists()
    assert other.exists()
    assert late.exists()
    assert strange.exists()


def test_a_process_removes_its_own(folder: Path) -> None:
    own, other = made(folder, f"{os.getpid()}:0:0"), made(folder, "1:0:0")
    segments.remove_own()
    assert not own.exists()
    assert other.exists()
