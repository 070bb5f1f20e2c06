"""Every error hetcomm raises, as one tree that says whose fault it was.

=========================  ==============================================================
the caller's               `UsageError`, `TopologyError`, `CollectiveMismatchError`
the plan's                 `PlanMismatchError`, `ScheduleError`
the wire's or the peer's   `TransportError`, `PeerFailureError`, `CollectiveTimeoutError`
a foreign library's        `VendorError`, `DeviceError`
=========================  ==============================================================

A message says what happened, where (rank, peer, collective number, step), and what to do next.
After a `UsageError` no data has moved and the communicator is usable. After any error of the
wire, the peer, a vendor or a device, the communicator is unusable and must be closed.
"""

from __future__ import annotations

__all__ = [
    "CollectiveMismatchError",
    "CollectiveTimeoutError",
    "DeviceError",
    "HetcommError",
    "PeerFailureError",
    "PlanMismatchError",
    "ScheduleError",
    "TopologyError",
    "TransportError",
    "UsageError",
    "VendorError",
]


class HetcommError(Exception):
    """Base of all hetcomm errors; never raised itself.

    Args:
        message: What happened.
        remedy: What the reader can do about it; appended to the message.
        rank: The rank that raises, in the communicator concerned.
        peer: The other rank, where there is one.
        collective: The number of the call on its communicator, counted from 0.
        step: The step of the program, as text.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        rank: int | None = None,
        peer: int | None = None,
        collective: int | None = None,
        step: str | None = None,
    ) -> None:
        self.message = message
        self.remedy = remedy
        self.rank = rank
        self.peer = peer
        self.collective = collective
        self.step = step
        where = [
            f"{name} {value}"
            for name, value in (
                ("rank", rank),
                ("peer", peer),
                ("collective", collective),
                ("step", step),
            )
            if value is not None
        ]
        text = f"[{', '.join(where)}] {message}" if where else message
        if remedy:
            text = f"{text.rstrip('.')}. {remedy}"
        super().__init__(text)


class UsageError(HetcommError, ValueError):
    """An argument cannot be used: the message names the rank, the argument and the remedy."""


class TopologyError(HetcommError, ValueError):
    """A topology is contradictory, incomplete, or does not describe this job."""


class ScheduleError(HetcommError):
    """A schedule does not do what its collective means; carries the counterexample."""


class PlanMismatchError(HetcommError):
    """The ranks built different plans for one call; raised on each of them."""


class CollectiveMismatchError(HetcommError):
    """The ranks called different collectives, or the same with other arguments."""


class TransportError(HetcommError):
    """The transport between ranks failed, or lacks what was asked of it."""


class PeerFailureError(TransportError):
    """A peer has died or cannot be reached any more; `peer` names it."""


class CollectiveTimeoutError(TransportError):
    """A wait passed its deadline; the message says what was waited for."""


class VendorError(HetcommError):
    """A vendor's collective library is missing, cannot do what was asked, or reported a failure."""


class DeviceError(HetcommError):
    """A device, or the library that drives it, is missing, cannot do what was asked, or reported a failure."""
