"""Values at positions, constant over runs: a map, and functions on lists of runs.

The one data structure below `dataflow` and `verify`: what costs time there is the number of runs, never the
number of elements. Moving many runs at once copies two lists and looks at none of the runs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

__all__ = ["IntervalMap", "Runs", "cut", "joined", "pairs", "zipped"]

T = TypeVar("T")
U = TypeVar("U")
Runs = tuple[list[int], list[T]]
"""(bounds, values): positions from `bounds[i]` to before `bounds[i + 1]` hold `values[i]`. Never changed in place."""


class IntervalMap(Generic[T]):
    """The positions from 0 to before `stop`, each with a value; all begin with the same one.

    Neighbouring runs of equal values are one run. Starts and stops passed to the methods must lie in the range of the
    map and be at least one apart.
    """

    __slots__ = ("_bounds", "_values")

    def __init__(self, stop: int, value: T) -> None:
        self._bounds = [0, stop]
        self._values = [value]

    def runs(self, start: int, stop: int) -> Runs[T]:
        """The runs between `start` and `stop`, in ascending order, cut off at both ends."""
        bounds, values = self._bounds, self._values
        first = bisect_right(bounds, start) - 1
        if bounds[first + 1] >= stop:
            return [start, stop], [values[first]]
        last = bisect_left(bounds, stop, first + 1)
        found = bounds[first : last + 1]
        found[0], found[-1] = start, stop
        return found, values[first:last]

    def assign(self, start: int, stop: int, value: T) -> None:
        """Make everything between `start` and `stop` hold `value`."""
        self.paste(([start, stop], [value]))

    def paste(self, runs: Runs[T]) -> None:
        """Write runs, no two neighbours of which are equal, over what lies there."""
        bounds, values = self._bounds, self._values
        new_bounds, new_values = runs
        start, stop = new_bounds[0], new_bounds[-1]
        i = bisect_right(bounds, start) - 1
        j = bisect_left(bounds, stop, i + 1)
        # Runs before i and from j on stay; one that is cut by `start` is run i - 1, one that is cut by `stop` is run j.
        inside = False
        if bounds[i] < start:
            i += 1
        if bounds[j] > stop:
            j -= 1
            inside = i > j
        joins_left = i > 0 and values[i - 1] == new_values[0]
        joins_right = j < len(values) and values[j] == new_values[-1]
        if joins_left:
            i -= 1
            new_bounds = [bounds[i], *new_bounds[1:]]
        if joins_right:
            j += 1
            new_bounds = [*new_bounds[:-1], bounds[j]]
        elif inside and not joins_left:
            # Both cuts are in one run, of which a part stays on either side.
            new_values = [*new_values, values[j]]
            j += 1
            new_bounds = [*new_bounds, bounds[j]]
        bounds[i : j + 1] = new_bounds
        values[i:j] = new_values


def joined(bounds: list[int], values: list[T]) -> Runs[T]:
    """The same runs, equal neighbours made one."""
    keep = [number for number in range(1, len(values)) if values[number] != values[number - 1]]
    if len(keep) + 1 >= len(values):
        return bounds, values
    starts = [bounds[0], *[bounds[number] for number in keep], bounds[-1]]
    return starts, [values[0], *[values[number] for number in keep]]


def cut(runs: Runs[T], start: int, stop: int) -> Runs[T]:
    """The part of `runs` between two positions that they span, at least one apart."""
    bounds, values = runs
    if bounds[0] == start and bounds[-1] == stop:
        return runs
    first = bisect_right(bounds, start) - 1
    last = bisect_left(bounds, stop, first + 1)
    return [start, *bounds[first + 1 : last], stop], values[first:last]


def pairs(one: Runs[T], other: Runs[U]) -> Iterator[tuple[int, T, U]]:
    """(start, value, other value) for each run on which both are constant; both span the same positions."""
    bounds, values = one
    other_bounds, other_values = other
    i = j = 0
    while i < len(values) and j < len(other_values):
        yield max(bounds[i], other_bounds[j]), values[i], other_values[j]
        stop, other_stop = bounds[i + 1], other_bounds[j + 1]
        i += stop <= other_stop
        j += other_stop <= stop


def zipped(operands: Sequence[Runs[T]], combine: Callable[[Sequence[T]], T]) -> Runs[T]:
    """Combine run by run what lies at the same positions; all operands span the same ones."""
    first = operands[0][0]
    if all(bounds == first for bounds, _ in operands):
        columns = [values for _, values in operands]
    else:
        first = sorted(set().union(*(bounds for bounds, _ in operands)))
        columns = [_expanded(runs, first) for runs in operands]
    # Neighbours may come out equal: as identities, for one.
    return joined(first, [combine(values) for values in zip(*columns, strict=True)])


def _expanded(runs: Runs[T], starts: list[int]) -> list[T]:
    """The value at each of `starts` but the last."""
    bounds, values = runs
    if len(values) == 1:
        return values * (len(starts) - 1)
    found: list[T] = []
    i = 0
    for start in starts[:-1]:
        i += bounds[i + 1] <= start
        found.append(values[i])
    return found
