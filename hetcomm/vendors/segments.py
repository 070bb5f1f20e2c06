"""The shared memory that libfabric leaves in /dev/shm when its process is killed, and who may remove it.

libfabric names a segment after its process, as in '1234:0:0', and removes the name only as it closes it. Whoever has
mapped it keeps it. A number tells little of a process: it is used again, and means others in other containers, which
may share /dev/shm. So a name is removed

* by its own process, at its exit;
* by a rank of its job that has seen the very file while that process lived, once it is dead;
* at the next start, if no process of this machine has that number, in whatever container, where all can be seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["here", "remember", "remove_of_dead", "remove_own", "sweep"]

_FOLDER = Path("/dev/shm")
_NAME = re.compile(r"([1-9][0-9]{0,8}):[0-9]+:[0-9]+")
_ALL_PROCESSES = "pid:[4026531836]"  # the namespace that the kernel starts with

_seen: dict[Path, tuple[int, int]] = {}  # those of other ranks: their process and their inode


def here() -> tuple[str, int]:
    """Where the number of this process means this process, and the number."""
    return f"{_boot()} {_namespace()}", os.getpid()


def remember(pids: Iterable[int]) -> None:
    """Note the segments of other ranks, which live; `pids` are their processes here."""
    others = set(pids) - {os.getpid()}
    for path, pid in _segments():
        if pid in others:
            with suppress(OSError):
                _seen[path] = pid, path.stat().st_ino


def remove_own() -> None:
    """Remove what this process has not closed, and what the dead among the other ranks have not."""
    for path, pid in _segments():
        if pid == os.getpid():
            path.unlink(missing_ok=True)
    remove_of_dead()


def remove_of_dead() -> None:
    """Remove what was noted of processes that have died since."""
    for path, (pid, inode) in list(_seen.items()):
        if _lives(pid):
            continue
        del _seen[path]
        with suppress(OSError):
            if path.stat().st_ino == inode:
                path.unlink()


def sweep() -> None:
    """Remove what killed processes of this user have left; nothing where not all processes can be seen."""
    if _namespace() != _ALL_PROCESSES:
        return
    found = list(_segments())  # before the processes: who has made one of these is among them, or dead
    living = _numbers() if found else set()
    for path, pid in found:
        if pid not in living:
            path.unlink(missing_ok=True)


def _segments() -> Iterator[tuple[Path, int]]:
    """Those of this user, with the number in their name."""
    with suppress(OSError):
        for entry in os.scandir(_FOLDER):
            name = _NAME.fullmatch(entry.name)
            with suppress(OSError):
                if name and entry.is_file(follow_symlinks=False) and entry.stat().st_uid == os.geteuid():
                    yield Path(entry.path), int(name[1])


def _numbers() -> set[int]:
    """Those of all processes, here and, of those in containers, there."""
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        found.add(int(folder.name))
        with suppress(OSError):  # it has ended meanwhile
            for line in (folder / "status").read_text(errors="replace").splitlines():
                if line.startswith("NSpid:"):
                    found.update(map(int, line.split()[1:]))
    return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's by now
        return True
    with suppress(OSError, IndexError):  # one that nobody has waited for yet
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
