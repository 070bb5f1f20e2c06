"""A UCP worker that another library runs: how its address is found, and what can be seen of it without using it.

UCXX and ucx-py give the address of a worker as a number, under several names. A wrong number ends the process as soon
as UCX is given it, so everything that can be told beforehand is.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hetcomm.errors import UsageError
from hetcomm.transport.library import mapped_libraries

__all__ = ["endpoint_of", "handle_of", "still_runs"]

_REMEDY = (
    "Pass a worker of UCXX or ucx-py, one of their endpoints, or the address of a ucp_worker_h as an integer; "
    "leave the argument out for a worker of hetcomm's own."
)


def handle_of(worker: object) -> int:
    """The address of the `ucp_worker_h` to share.

    Args:
        worker: An object with the address under `handle` (a worker of UCXX or ucx-py), an endpoint of theirs, which
            stands for the worker it belongs to, or the address itself.

    Raises:
        UsageError: None of these, or the address is not one of memory that a worker could be in.
    """
    try:
        handle = _found(worker)
    except AssertionError as error:  # how ucx-py refuses
        raise _unusable(worker, "is closed") from error
    if isinstance(handle, bool) or not isinstance(handle, int):
        raise _unusable(worker, "is no UCP worker")
    if not mapped_libraries()["ucp"]:
        raise _unusable(worker, "cannot be a UCP worker, for this process has no UCX")
    if handle <= 0 or handle % 8 or not _writable(handle):
        raise _unusable(worker, f"has the address {handle:#x}, where no UCP worker can be")
    return handle


def endpoint_of(peer: int, endpoint: object, worker: int) -> int:
    """The address of the `ucp_ep_h` to send to `peer` over.

    Args:
        peer: Its number, for the message.
        endpoint: An endpoint of UCXX or ucx-py, or the address itself.
        worker: The address of the worker it must belong to, as far as it tells.

    Raises:
        UsageError: It is no endpoint, or one of another worker.
    """
    what = f"argument 'endpoints' has a {type(endpoint).__name__} for rank {peer}, which"
    handle: object = endpoint
    for name in ("get_ucp_endpoint", "ucp_endpoint", "handle"):
        if hasattr(endpoint, name):
            found = getattr(endpoint, name)
            handle = found() if callable(found) else found
            if _found(endpoint) != worker:
                raise UsageError(f"{what} is none of 'worker'", remedy="Pass endpoints of that worker.", peer=peer)
            break
    if isinstance(handle, bool) or not isinstance(handle, int) or handle <= 0 or handle % 8 or not _writable(handle):
        raise UsageError(
            f"{what} is no endpoint",
            remedy="Pass endpoints of UCXX or ucx-py, or addresses of ucp_ep_h as integers.",
            peer=peer,
        )
    return handle


def still_runs(worker: object, handle: int) -> bool:
    """Whether the worker whose address was `handle` is, as far as it tells, still there; a number tells nothing."""
    try:
        return _found(worker) == handle
    except AssertionError:
        return False


def _found(worker: object) -> object:
    """What `worker` says the address is; None if it is of no known kind."""
    if hasattr(worker, "worker_handle"):  # an endpoint of UCXX
        return worker.worker_handle
    if hasattr(worker, "get_ucp_worker"):  # an endpoint of ucx-py's asyncio interface; the modules ucxx and ucp
        return worker.get_ucp_worker()
    if hasattr(worker, "ucp_worker"):  # an endpoint of UCXX's asyncio interface
        return worker.ucp_worker
    if hasattr(worker, "worker"):  # an endpoint of ucx-py
        return _found(worker.worker)
    if hasattr(worker, "cuda_support"):  # a context: its handle is none of a worker
        return None
    return getattr(worker, "handle", worker)


def _writable(address: int, maps: Iterable[str] | None = None) -> bool:
    """Whether the byte at `address` may be written to; `maps` is /proc/self/maps unless given."""
    lines = Path("/proc/self/maps").read_text().splitlines() if maps is None else maps
    for line in lines:
        span, rights, *_ = line.split(maxsplit=2)
        first, _, end = span.partition("-")
        if int(first, 16) <= address < int(end, 16):
            return rights.startswith("rw")
    return False


def _unusable(worker: object, reason: str) -> UsageError:
    return UsageError(f"argument 'worker' ({type(worker).__name__}) {reason}", remedy=_REMEDY)
