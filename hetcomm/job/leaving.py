"""What happens to communicators that a script forgets: they are closed when the interpreter exits, and never hang it.

And to those that a forked child inherits: they refuse everything, and stay as they are until the child ends. Foreign
libraries release what their objects stand for as these are collected, which in a child would be the parent's; so
nothing of such a communicator is ever collected.

MPI is finalised after all handlers of `atexit`, since mpi4py registers with the interpreter itself. Handlers run in
reverse order, so ours is registered after those of the vendors, which must find their communicators closed.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import sys
from typing import Protocol

from hetcomm.errors import HetcommError
from hetcomm.waiting import waiting

__all__ = ["close_at_exit", "closed", "end_postponed", "others", "parent_with_mpi", "postpone"]

_log = logging.getLogger(__name__)

_GRACE = 10.0  # seconds to wait for the others at exit


class _Closable(Protocol):
    def _close(self, seconds: float) -> None: ...

    def _settle(self) -> None: ...

    def _abandon(self, error: BaseException) -> None: ...

    def _end_later(self, seconds: float) -> None: ...

    def _disown(self) -> None: ...


_open: list[_Closable] = []
_postponed: list[_Closable] = []  # closed, while others were open: other ranks may have closed those first
_parents_with_mpi: list[int] = []


def close_at_exit(communicator: _Closable) -> None:
    """Have it closed at exit, unless it is closed before."""
    atexit.unregister(_close_all)
    atexit.register(_close_all)
    _open.append(communicator)


def closed(communicator: object) -> None:
    """It needs nothing any more."""
    _open[:] = [other for other in _open if other is not communicator]


def others() -> bool:
    """Whether any is open."""
    return bool(_open)


def postpone(communicator: _Closable) -> None:
    """It is closed here, but not on all ranks."""
    _postponed.append(communicator)


def end_postponed(seconds: float) -> None:
    """End what was postponed; no communicator is open any more, so that nobody waits for this process."""
    while _postponed:
        _postponed.pop(0)._end_later(seconds)


def _close_all() -> None:
    crashed = getattr(sys, "last_value", None)  # set for an exception that nobody caught
    for communicator in reversed(list(_open)):
        if crashed is not None:
            communicator._abandon(crashed)
        else:
            communicator._close(_GRACE)
            try:
                communicator._settle()
            except HetcommError:
                _log.exception("a call failed after it had returned, and nobody has asked for it")
    end_postponed(0.0 if crashed is not None else _GRACE)


def parent_with_mpi() -> int | None:
    """The process that this one was forked from while MPI ran in it, if it was: a child cannot use that MPI."""
    return _parents_with_mpi[-1] if _parents_with_mpi else None


def _in_child() -> None:
    """Run by `os.fork` and what is made of it, first thing in the child."""
    for communicator in (*_open, *_postponed):
        communicator._disown()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(communicator))
    _open.clear()
    _postponed.clear()
    waiting.start_anew()
    atexit.unregister(_close_all)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized():
        _parents_with_mpi.append(os.getppid())


os.register_at_fork(after_in_child=_in_child)  # here, since MPI may run in a process that has no communicator yet
