"""Making a library's communicator under a deadline, though the library blocks until all ranks have come or for ever.

The call runs on a thread of its own, while the group waits and keeps the process moving. If the wait ends first, by the
deadline, a rank that died or an interruption, the thread and whatever it still makes are left to the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from hetcomm.vendors.base import Group

__all__ = ["apart"]

_T = TypeVar("_T")


def apart(group: Group, function: Callable[[], _T], what: str) -> _T:
    """The function's result, or what it raises.

    Args:
        group: The ranks that all make this call.
        function: May block, without the GIL.
        what: What it does, for errors.

    Raises:
        CollectiveTimeoutError, PeerFailureError: As `Group.wait`.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  # raised where it was asked for
            errors.append(error)

    thread = threading.Thread(target=run, name=f"hetcomm: {what}", daemon=True)
    thread.start()
    group.wait(lambda: not thread.is_alive(), what)
    if errors:
        raise errors[0]
    return results[0]
