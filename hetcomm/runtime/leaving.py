"""What happens to communicators that a script forgets: they are closed when the interpreter exits, and never hang it.

MPI is finalised after all handlers of `atexit`, since mpi4py registers with the interpreter itself. Handlers run in
reverse order, so ours is registered after those of the vendors, which must find their communicators closed.
"""

from __future__ import annotations

import atexit
import logging
import sys
from typing import Protocol

from hetcomm.errors import HetcommError

__all__ = ["close_at_exit", "closed"]

_log = logging.getLogger(__name__)

_GRACE = 10.0  # seconds to wait for the others at exit


class _Closable(Protocol):
    def _close(self, seconds: float) -> None: ...

    def _settle(self) -> None: ...

    def _abandon(self, why: str) -> None: ...


_open: list[_Closable] = []


def close_at_exit(communicator: _Closable) -> None:
    """Have it closed at exit, unless it is closed before."""
    atexit.unregister(_close_all)
    atexit.register(_close_all)
    _open.append(communicator)


def closed(communicator: object) -> None:
    """It needs nothing any more."""
    _open[:] = [other for other in _open if other is not communicator]


def _close_all() -> None:
    crashed = getattr(sys, "last_value", None)  # set for an exception that nobody caught
    for communicator in reversed(list(_open)):
        if crashed is not None:
            communicator._abandon(f"ended with {type(crashed).__name__}")
        else:
            communicator._close(_GRACE)
            try:
                communicator._settle()
            except HetcommError:
                _log.exception("a call failed after it had returned, and nobody has asked for it")
