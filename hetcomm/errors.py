"""Every error hetcomm raises, as one tree that says whose fault it was.

=========================  ==============================================================
the caller's               `UsageError`, `TopologyError`
the plan's                 `PlanMismatchError`, `ScheduleError`
the wire's or the peer's   `TransportError`, `PeerFailureError`, `CollectiveTimeoutError`
a foreign library's        `VendorError`, `DeviceError`
=========================  ==============================================================

A message says what happened, where (rank, peer, collective number, step), and what to do next.
After a `UsageError` no data has moved and the communicator is usable. After any error of the
wire, the peer, a vendor or a device, the communicator is unusable and must be closed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

    from hetcomm.health.whereabouts import Whereabouts

__all__ = [
    "CollectiveTimeoutError",
    "DepartedError",
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
        peer: The other rank, where there is one: short for `ranks` of one.
        ranks: The other ranks it is about: those that have failed, that are missing, or whose call differs.
        origin: The rank that found out first, where that is known; another rank may have been told by it.
        collective: The number of the call on its communicator, counted from 0.
        step: The step of the program, as text.
        whereabouts: What is known of `ranks`: where they are, and which calls they have come to.

    Attributes:
        message: As given, and so are `remedy`, `rank`, `origin`, `collective` and `step`.
        whereabouts: As given, as a tuple: a `hetcomm.health.whereabouts.Whereabouts` of each rank of which anything is
            known.
        ranks: As given, as a frozen set.
        peer: The only one of `ranks`; None if there are none or several.
    """

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        rank: int | None = None,
        peer: int | None = None,
        ranks: Iterable[int] | None = None,
        origin: int | None = None,
        collective: int | None = None,
        step: str | None = None,
        whereabouts: Iterable[Whereabouts] = (),
    ) -> None:
        self.message = message
        self.remedy = remedy
        self.rank = rank
        self.ranks = frozenset(ranks if ranks is not None else () if peer is None else (peer,))
        self.peer = next(iter(self.ranks)) if len(self.ranks) == 1 else None
        self.origin = origin
        self.collective = collective
        self.step = step
        self.whereabouts = tuple(whereabouts)
        where = [
            f"{name} {value}"
            for name, value in (
                ("rank", rank),
                ("peer" if self.peer is not None else "peers", numbers(self.ranks) or None),
                ("collective", collective),
                ("step", step),
            )
            if value is not None
        ]
        text = f"[{', '.join(where)}] {message}" if where else message
        if remedy:
            text = f"{text.rstrip('.')}. {remedy}"
        super().__init__(text)

    def again(self, **changes: Any) -> Self:
        """The same error as an exception of its own, with some arguments of its constructor changed."""
        names = ("remedy", "rank", "ranks", "origin", "collective", "step", "whereabouts")
        given = {name: getattr(self, name) for name in names}
        if "peer" in changes:
            del given["ranks"]
        given |= changes
        return type(self)(given.pop("message", self.message), **given)


def numbers(ranks: Iterable[int], most: int = 16) -> str:
    """Some ranks as text: '0, 3, 4', and not more than `most` of them."""
    listed = sorted(ranks)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(map(str, listed[:most])) + more


class UsageError(HetcommError, ValueError):
    """An argument cannot be used: the message names the rank, the argument and the remedy."""


class TopologyError(HetcommError, ValueError):
    """A topology is contradictory, incomplete, or does not describe this job."""


class ScheduleError(HetcommError):
    """A schedule does not do what its collective means; carries the counterexample."""


class PlanMismatchError(HetcommError):
    """The ranks have called different things; raised on each of them, with both sides named.

    It is raised by the call itself, or where a rank had nothing to wait for in it, by a later one or by closing.
    """


class TransportError(HetcommError):
    """The transport between ranks failed, or lacks what was asked of it."""


class PeerFailureError(TransportError):
    """Ranks have died, left or cannot be reached any more; `ranks` names all that are known, and nobody else.

    Who only gave up because of them is not among them. `origin` is the rank that found out first. `whereabouts` has
    their hosts, and the last calls that they are known to have made.

    Attributes:
        is_final: Whether the launcher has said that it will not start all of them again.
    """

    is_final: bool = False


class DepartedError(PlanMismatchError, PeerFailureError):
    """A rank has closed the communicator, and another one goes on calling: `ranks` are those that have closed it."""


class CollectiveTimeoutError(TransportError):
    """A wait passed its deadline; the message says what was waited for.

    `ranks` are those that have not come to the call, or cannot be asked since they are stopped or cut off, as far as
    the others know; `whereabouts` says of each where it is, and the last call that it has made.
    """


class VendorError(HetcommError):
    """A vendor's collective library is missing, cannot do what was asked, or reported a failure."""


class DeviceError(HetcommError):
    """A device, or the library that drives it, is missing, cannot do what was asked, or reported a failure."""
