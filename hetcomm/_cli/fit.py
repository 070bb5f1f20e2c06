"""Straight lines through times that spread over orders of magnitude.

`fit` looks for the alpha, per_log2, per_rank and beta, none of them negative, that make the sum of the squares of the
*relative* errors least: a call of 64 bytes that takes 5 us counts as much as one of 4 MiB that takes 5 ms, so the small
sizes set alpha and the large ones beta. A time that is too long, however much, counts no more than one that is 0 by the
line: disturbances make times longer, never shorter. With so few coefficients the least squares under the condition that
none is negative are found by trying every choice of those that are not zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy

from hetcomm.errors import UsageError

__all__ = ["Fit", "Point", "fit", "point"]


@dataclass(frozen=True, slots=True)
class Point:
    """What one thing took: the median over repetitions.

    Attributes:
        nbytes: What beta counts.
        seconds: The median, more than 0.
        spread: The distance of the quartiles as a part of the median.
        nranks: How many ranks took part.
    """

    nbytes: float
    seconds: float
    spread: float = 0.0
    nranks: int = 1


@dataclass(frozen=True, slots=True)
class Fit:
    """`alpha + per_log2 log2(n) + per_rank (n-1) + beta nbytes` seconds, and how well that meets the points.

    Attributes:
        alpha, per_log2, per_rank, beta: From 0 on.
        spread: The median of the points' own.
        residual: The largest difference of line and point, as a part of the point.
    """

    alpha: float
    per_log2: float
    per_rank: float
    beta: float
    spread: float
    residual: float


def point(nbytes: float, times: Sequence[float], nranks: int = 1) -> Point:
    """The point of repeated times in seconds.

    Raises:
        UsageError: The median is not more than 0: the clock is too coarse for what was measured.
    """
    seconds = statistics.median(times)
    if not 0 < seconds < math.inf:
        raise UsageError(
            f"a measurement of {nbytes:g} bytes took {seconds!r} seconds", remedy="Measure on a machine with a clock."
        )
    spread = 0.0
    if len(times) > 1:
        lower, _, upper = statistics.quantiles(times, n=4, method="inclusive")
        spread = (upper - lower) / seconds
    return Point(nbytes, seconds, spread, nranks)


def fit(points: Sequence[Point]) -> Fit:
    """The line through `points`, as the module's text says.

    What ranks cost is told apart from alpha only where the points have several numbers of ranks: as per_log2 or as
    per_rank, whichever meets them better. Elsewhere alpha is that of the one number there is, and both are 0.

    Raises:
        UsageError: There are no points.
    """
    if not points:
        raise UsageError("there is nothing to fit a line to", remedy="Measure at least one size.")
    nbytes = [each.nbytes for each in points]
    ranks = [each.nranks for each in points]
    ones = [1.0] * len(points)
    shapes: list[tuple[list[float], list[float]]] = [([0.0] * len(points), [0.0] * len(points))]
    if len(set(ranks)) > 1:
        shapes = [([math.log2(n) for n in ranks], shapes[0][1]), (shapes[0][0], [n - 1.0 for n in ranks])]
    best: tuple[float, Any] | None = None
    seconds = numpy.array([each.seconds for each in points])
    for logs, others in shapes:
        rows = numpy.array([ones, logs, others, nbytes]).T / seconds[:, None]
        found = _least(rows)
        error = float(numpy.sum((rows @ found - 1) ** 2))
        if best is None or error < best[0] * (1 - 1e-9):
            best = error, (found, float(numpy.max(numpy.abs(rows @ found - 1))))
    assert best is not None  # there is at least one shape
    coefficients, residual = best[1]
    spread = statistics.median(each.spread for each in points)
    alpha, per_log2, per_rank, beta = map(float, coefficients)
    return Fit(alpha, per_log2, per_rank, beta, spread, residual)


def _least(rows: Any) -> Any:
    """The coefficients x from 0 on that bring `rows @ x` closest to ones; 0 for columns of zeros."""
    size = rows.shape[1]
    norms = numpy.linalg.norm(rows, axis=0)
    usable = [column for column in range(size) if norms[column] > 0]
    best, found = math.inf, numpy.zeros(size)
    for number in range(1, len(usable) + 1):
        for columns in map(list, combinations(usable, number)):
            scaled = rows[:, columns] / norms[columns]
            values, _, rank, _ = numpy.linalg.lstsq(scaled, numpy.ones(len(rows)), rcond=None)
            error = float(numpy.sum((scaled @ values - 1) ** 2))
            if rank == number and (values >= 0).all() and error < best:
                best, found = error, numpy.zeros(size)
                found[columns] = values / norms[columns]
    return found
