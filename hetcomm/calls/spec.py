"""One row for each method that is a collective: what it takes, how that is checked, and what it is on the fast path.

The methods themselves are written out in `hetcomm.methods`, since their signatures and docstrings are contracts. What a
collective means, and which planners it has, is in the row of its kind: `hetcomm.schedule.spec`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hetcomm.calls import calls
from hetcomm.calls.calls import Call
from hetcomm.schedule.collective import CollectiveKind

__all__ = ["EXPLAINED", "SPECS", "CollectiveSpec"]


@dataclass(frozen=True, slots=True)
class CollectiveSpec:
    """What there is to know about a method of `Communicator` that is a collective.

    Attributes:
        name: The method's; its persistent form is `<name>_init`.
        kind: What it means.
        check: From its arguments, this rank and the number of ranks to the call.
        arrays: The arguments that are arrays, in the method's order, before all others.
        agreed: The others that must be equal on all ranks.
        own: The last ones, in which ranks may differ.
        key: What the fast path calls it; None: it does not take that.
        control: Its arrays are hetcomm's own, on the host whatever memory the vendor takes.
    """

    name: str
    kind: CollectiveKind
    check: Callable[..., Call]
    arrays: tuple[str, ...]
    agreed: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    key: int | None = None
    control: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """Its arguments, in order, without those that all methods have."""
        return *self.arrays, *self.agreed, *self.own

    def fast(self, args: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """Its arguments as the fast path knows them: two arrays and two others, None where there are fewer."""
        first, second = (*args[: len(self.arrays)], None)[:2]
        return (first, second, *(*args[len(self.arrays) :], None, None)[:2])


_BOTH = ("in_array", "out_array")
_KIND = CollectiveKind

SPECS = {
    spec.name: spec
    for spec in (
        CollectiveSpec("all_reduce", _KIND.ALL_REDUCE, calls.all_reduce, _BOTH, ("op",), key=0),
        CollectiveSpec("reduce", _KIND.REDUCE, calls.reduce, _BOTH, ("root", "op"), key=1),
        CollectiveSpec("broadcast", _KIND.BROADCAST, calls.broadcast, ("in_out_array",), ("root",), key=2),
        CollectiveSpec("all_gather", _KIND.ALL_GATHER, calls.all_gather, _BOTH, ("count",), key=3),
        CollectiveSpec("reduce_scatter", _KIND.REDUCE_SCATTER, calls.reduce_scatter, _BOTH, ("count", "op"), key=4),
        CollectiveSpec("gather", _KIND.GATHER, calls.gather, _BOTH, ("root",), key=5),
        CollectiveSpec("scatter", _KIND.SCATTER, calls.scatter, _BOTH, ("root",), key=6),
        CollectiveSpec("all_to_all", _KIND.ALL_TO_ALL, calls.all_to_all, _BOTH, key=7),
        CollectiveSpec("barrier", _KIND.ALL_REDUCE, calls.all_reduce, _BOTH, ("op",), key=8, control=True),
        CollectiveSpec("scan", _KIND.SCAN, calls.scan, _BOTH, ("op",), key=9),
        CollectiveSpec("exscan", _KIND.EXSCAN, calls.exscan, _BOTH, ("op",), key=10),
        CollectiveSpec("all_gather_v", _KIND.ALL_GATHER, calls.all_gather_v, _BOTH, ("counts",), ("displs",)),
        CollectiveSpec(
            "reduce_scatter_v", _KIND.REDUCE_SCATTER, calls.reduce_scatter_v, _BOTH, ("counts", "op"), ("displs",)
        ),
        CollectiveSpec("gather_v", _KIND.GATHER, calls.gather_v, _BOTH, ("counts", "root"), ("displs",)),
        CollectiveSpec("scatter_v", _KIND.SCATTER, calls.scatter_v, _BOTH, ("counts", "root"), ("displs",)),
        CollectiveSpec(
            "all_to_all_v",
            _KIND.ALL_TO_ALL,
            calls.all_to_all_v,
            _BOTH,
            own=("in_counts", "out_counts", "in_displs", "out_displs"),
        ),
    )
}
"""The rows, by name."""

EXPLAINED = tuple(name for name in SPECS if name not in ("barrier", "all_to_all_v"))
"""What one rank can explain: a barrier is an all_reduce, and no rank knows the counts of an all_to_all_v alone."""
