"""A map from positions to values that is constant over runs.

The one data structure below `dataflow` and `verify`: what costs time there is the number of runs, never the
number of elements.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Generic, TypeVar

__all__ = ["IntervalMap", "Run"]

T = TypeVar("T")
Run = tuple[int, int, T]
"""(start, stop, value): the positions from `start` to before `stop` hold `value`."""


class IntervalMap(Generic[T]):
    """The positions from 0 to before `stop`, each with a value; all begin with the same one.

    Starts and stops passed to the methods must lie in that range and be at least one apart.
    """

    __slots__ = ("_bounds", "_values")

    def __init__(self, stop: int, value: T) -> None:
        # Run i holds _values[i] and spans _bounds[i] to _bounds[i + 1].
        self._bounds = [0, stop]
        self._values = [value]

    def runs(self, start: int, stop: int) -> list[Run[T]]:
        """The runs between `start` and `stop`, in ascending order, cut off at both ends."""
        bounds, values = self._bounds, self._values
        i = bisect_right(bounds, start) - 1
        if bounds[i + 1] >= stop:
            return [(start, stop, values[i])]
        found = [(start, bounds[i + 1], values[i])]
        i += 1
        while bounds[i + 1] < stop:
            found.append((bounds[i], bounds[i + 1], values[i]))
            i += 1
        found.append((bounds[i], stop, values[i]))
        return found

    def assign(self, start: int, stop: int, value: T) -> None:
        """Make everything between `start` and `stop` hold `value`."""
        bounds = self._bounds
        i = bisect_right(bounds, start) - 1
        if bounds[i] == start and bounds[i + 1] == stop:
            self._values[i] = value
        else:
            self.paste([(start, stop, value)])

    def paste(self, runs: Iterable[Run[T]]) -> None:
        """Write ascending runs that lie end to end; equal neighbours are joined."""
        new_bounds: list[int] = []
        new_values: list[T] = []
        stop = 0
        for run_start, run_stop, value in runs:
            if not new_values or new_values[-1] != value:
                new_bounds.append(run_start)
                new_values.append(value)
            stop = run_stop
        if not new_values:
            return
        bounds, values = self._bounds, self._values
        start = new_bounds[0]
        first = bisect_right(bounds, start) - 1
        last = bisect_right(bounds, stop - 1, first) - 1
        if bounds[first] < start:
            new_bounds.insert(0, bounds[first])
            new_values.insert(0, values[first])
        if bounds[last + 1] > stop:
            new_bounds.append(stop)
            new_values.append(values[last])
        bounds[first : last + 1] = new_bounds
        values[first : last + 1] = new_values
