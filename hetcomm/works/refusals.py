"""What becomes of an exception that keeps a rank from a call: a typed error, and every rank is told.

Arguments are looked at through methods of their own (`__index__`, `__dlpack__`, `dtype`, ...), so checking them may
raise anything. What a collective call checks, it checks inside of `refusing`; what concerns its rank alone, inside of
`checking`.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from hetcomm.agreement.agreement import REFUSALS
from hetcomm.errors import HetcommError, UsageError

if TYPE_CHECKING:
    from hetcomm.works.engine import Engine

__all__ = ["checking", "refusal", "refusing", "typed"]


class checking:  # noqa: N801  # read as a statement: `with checking(...):`
    """What is raised inside and is not hetcomm's becomes a `UsageError` that it is the cause of.

    Args:
        name: Whose arguments are checked.
        rank: This process's.
    """

    __slots__ = ("_name", "_rank")

    def __init__(self, name: str, rank: int) -> None:
        self._name = name
        self._rank = rank

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, HetcommError):
            raise typed(error, f"checking the arguments of {self._name}", self._rank) from error


class refusing(checking):  # noqa: N801
    """The same for a collective call: all ranks are told that this one refuses it, and the call is counted.

    So they are when the check is interrupted, by Ctrl-C for example; the interruption goes on.

    Args:
        engine: The communicator's.
        name: The method.
    """

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(name, engine.rank)
        self._engine = engine

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        told = refusal(error, f"checking the arguments of {self._name}", self._rank)
        with self._engine.lock:
            self._engine.refuse(told)
        super().__exit__(kind, error, traceback)


def refusal(error: BaseException, what: str, rank: int) -> HetcommError:
    """What the other ranks are told of a call that `error` kept this one from; `what` as for `typed`."""
    if isinstance(error, HetcommError) and not isinstance(error, REFUSALS):  # an earlier call's, which this one met
        return UsageError(f"{what} raised {type(error).__name__}: {error.message}", remedy=error.remedy, rank=rank)
    return typed(error, what, rank)


def typed(
    error: BaseException, what: str, rank: int | None = None, kind: type[HetcommError] = UsageError
) -> HetcommError:
    """`error` itself if it is hetcomm's, else one of `kind` that tells of it.

    Args:
        error: What was raised.
        what: What was being done, as the beginning of a sentence.
        rank: This process's.
        kind: Whose fault an error of somebody else's is taken for.
    """
    if isinstance(error, HetcommError):
        return error
    made = kind(f"{what} raised {_described(error)}", rank=rank)
    made.__cause__ = error
    return made


def _described(error: BaseException) -> str:
    """Type and first line of an exception, whose own `__str__` may raise."""
    try:
        text = str(error).strip().partition("\n")[0]
    except Exception as worse:  # noqa: BLE001  # whatever it is, it is not the error that is to be told
        text = f"its __str__ raised {type(worse).__name__}"
    return f"{type(error).__name__}: {text}".removesuffix(": ")
