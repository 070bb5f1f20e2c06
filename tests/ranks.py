"""Several targets of `run_ranks` in one start of the ranks, which is what costs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hetcomm.testing import run_ranks

from .scripts import DEADLINE

__all__ = ["once", "run_in_turn"]

T = TypeVar("T")


def run_in_turn(nranks: int, targets: Mapping[str, Callable[[], Any]], **options: Any) -> dict[str, list[Any]]:
    """What each target returns, by rank; each is a function of a module, or a `functools.partial` of one.

    Args:
        nranks: Number of ranks.
        targets: By name. One that leaves its rank unfit for others comes last.
        **options: Of `run_ranks`.

    Raises:
        RanksFailed: A target has raised; the traceback shows which.
    """
    told = run_ranks(nranks, _in_turn, dict(targets), timeout=DEADLINE, **options)
    return {name: [each[name] for each in told] for name in targets}


def _in_turn(targets: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    return {name: target() for name, target in targets.items()}


def once(start: Callable[..., T]) -> Callable[..., T]:
    """A function that several tests call and that runs once for the same arguments, if it raises, too."""

    @functools.cache
    def outcome(*args: Any) -> tuple[T | None, Exception | None]:
        try:
            return start(*args), None
        except Exception as error:
            return None, error

    @functools.wraps(start)
    def told(*args: Any) -> T:
        result, error = outcome(*args)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    return told
