"""How mpi4py is imported: such that MPI is finalised by the process that started it, and by no forked child of it.

mpi4py registers with the interpreter itself, whose exit in a forked child then waits in `MPI_Finalize` for ever. So
where hetcomm is the first to import it, hetcomm finalises MPI; but not under `python -m mpi4py`, which aborts the job
instead where a rank fails. Where a rank has died, MPI_Finalize may wait for it for ever, and is left out.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from typing import Any

__all__ = ["forgo_finalize", "load"]

_log = logging.getLogger(__name__)

_lost: list[str] = []  # why MPI is not finalised, if it is not


def load() -> Any:
    """The module `mpi4py.MPI`; MPI starts when it is first imported.

    Raises:
        ImportError, RuntimeError, OSError: It cannot be imported; the second, where there is no MPI library.
    """
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        if mpi4py.rc.finalize is None and "mpi4py.run" not in sys.modules:
            mpi4py.rc.finalize = False
            from mpi4py import MPI

            atexit.register(_finalize, MPI, os.getpid())
    from mpi4py import MPI

    return MPI


def forgo_finalize(why: str) -> None:
    """A process of this MPI job has died; where hetcomm finalises MPI, it will not."""
    _lost.append(why)


def _finalize(mpi: Any, owner: int) -> None:
    """Run after the handlers of hetcomm's communicators, which are registered later."""
    if _lost:
        _log.debug("MPI is not finalised: %s", _lost[0])
    elif os.getpid() == owner and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
