"""Room for file descriptors: some libraries end the process when they get none, so they are counted before."""

from __future__ import annotations

import errno
import os
import resource

from hetcomm.errors import TransportError

__all__ = ["make_room"]


def make_room(count: int, what: str) -> None:
    """See that `count` more descriptors can be opened; where the hard limit allows it, the soft one is raised.

    Args:
        count: How many.
        what: What needs them, as the beginning of a sentence.

    Raises:
        TransportError: So many are not to be had.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    lacking = count - _free(soft)
    if lacking <= 0:
        return
    wanted = soft + lacking
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise TransportError(
            f"{what} needs {count} file descriptors, of which this process has {count - lacking} left: its limit is "
            f"{soft}, and {hard} at most",
            remedy=f"Close files, or set a limit of {wanted} or more (ulimit -n) before the start.",
        )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        raise TransportError(
            f"{what} needs {count} file descriptors, of which this process has {count - lacking} left, and its limit "
            f"of {soft} cannot be raised: {error}",
            remedy=f"Close files, or set a limit of {wanted} or more (ulimit -n) before the start.",
        ) from error


def _free(limit: int) -> int:
    """How many numbers below the limit are not in use."""
    try:
        numbers = os.listdir("/proc/self/fd")  # one of them is the listing's own
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return 0
        return limit  # no such file system: nothing is known
    return limit - sum(int(number) < limit for number in numbers) + 1
