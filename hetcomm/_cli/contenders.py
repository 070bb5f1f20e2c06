"""Who takes part in a benchmark: hetcomm in its two forms here, the baselines in files of their own.

A contender binds one case to the buffers once and is then called again and again, as a program would call it: what is
timed is the call, from Python, until its result may be used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import hetcomm
from hetcomm._cli import patterns
from hetcomm._cli.cases import SEND_RECV, Arrays, Case
from hetcomm._cli.patterns import Array
from hetcomm.types import ReduceKind

__all__ = ["Bound", "Contender", "Hetcomm", "Persistent", "nothing"]


def nothing() -> None:
    """What there is to release, mostly."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A case that is ready to be called.

    Attributes:
        call: One blocking call.
        result: Where this rank's output then lies, packed; None where it has none.
        release: Called once, after the last call, by all ranks.
        refresh: Called when the buffers have been filled anew, before the next call.
        touched: The input and output that it works on, if they are not the case's buffers.
    """

    call: Callable[[], Any]
    result: Array | None
    release: Callable[[], None] = nothing
    refresh: Callable[[], None] = nothing
    touched: tuple[Array, Array] | None = None


class Contender(Protocol):
    """One way to do what is measured. All methods are collective, except `refusal`."""

    def refusal(self, case: Case) -> str | None:
        """Why it is no baseline for the case, whatever its count; None if it is one. The same on all ranks."""
        ...

    def bind(self, case: Case, arrays: Arrays) -> Bound:
        """Make the case ready."""
        ...

    def settle(self) -> None:
        """Wait until every rank has ended its last call; moves along whatever the others still need of this one."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


def output(case: Case, arrays: Arrays, rank: int) -> Array | None:
    """Where `rank` gets its output, where the library has it in the place that `Collective` says."""
    return arrays.output(case) if case.takes_part(rank)[1] else None


class Hetcomm:
    """The methods of the communicator."""

    def __init__(self, comm: hetcomm.Communicator) -> None:
        self._comm = comm

    def refusal(self, case: Case) -> str | None:
        """It does everything."""
        return None

    def bind(self, case: Case, arrays: Arrays) -> Bound:
        """The method with its arguments."""
        args, kwargs = _arguments(case, arrays, self._comm.rank)
        call = partial(getattr(self._comm, case.name), *args, **kwargs)
        return Bound(call, output(case, arrays, self._comm.rank))

    def settle(self) -> None:
        """A barrier."""
        self._comm.barrier()

    def close(self) -> None:
        """The communicator is the caller's."""


class Persistent(Hetcomm):
    """The persistent forms: made once, then started and waited for."""

    def refusal(self, case: Case) -> str | None:
        """Messages have no such form."""
        return "send_recv has no persistent form" if case.name == SEND_RECV else None

    def bind(self, case: Case, arrays: Arrays) -> Bound:
        """The request, and what starts it and waits for it."""
        args, kwargs = _arguments(case, arrays, self._comm.rank)
        request = getattr(self._comm, f"{case.name}_init")(*args, **kwargs)
        start, wait = request.start, request.wait

        def call() -> None:
            start()
            wait()

        return Bound(call, output(case, arrays, self._comm.rank), request.close)


def _arguments(case: Case, arrays: Arrays, rank: int) -> tuple[tuple[Array | int | None, ...], dict[str, Any]]:
    """What the communicator's method of that name takes on `rank`."""
    source, target = arrays.of(case)
    (reads, writes), here = case.takes_part(rank), rank == case.root
    args: tuple[Array | int | None, ...]
    if case.name == SEND_RECV:
        args = (source, target, (rank + 1) % case.nranks, (rank - 1) % case.nranks)
    elif not case.in_place:
        args = (source if reads else None, target if writes else None)
    elif case.name == "all_gather" or (case.name in ("gather", "scatter") and (case.name == "gather") == here):
        args = (None, target)
    else:
        args = (target,)
    kwargs: dict[str, Any] = {}
    if case.root is not None:
        kwargs["root"] = case.root
    if case.op is ReduceKind.PREMUL_SUM:
        kwargs["op"] = hetcomm.premul_sum(patterns.factor(rank))
    elif case.op is not None:
        kwargs["op"] = case.op.value
    return args, kwargs
