"""The persistent forms of all collectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from hetcomm.methods.base import Methods
from hetcomm.types import ArrayLike
from hetcomm.works.persistent import Request

__all__ = ["PersistentCollectives"]


class PersistentCollectives(Methods):
    """For each collective, `<name>_init` with the same arguments: it checks them, plans, and has all ranks agree, once.

    The `Request` it returns then runs the collective on these arrays as often as it is started, which costs less than
    calling the collective. Each of these methods is collective itself, waits until all ranks have called it, and moves
    no data. `timeout` is what that, and each later wait for a run, may take. They raise what the collective raises, and
    cannot be part of a group, where `Request.start` can.
    """

    def all_reduce_init(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `all_reduce`, with its arguments. Collective."""
        return self._persistent("all_reduce", (in_array, out_array, op), stream, timeout)

    def reduce_init(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        root: int = 0,
        op: Any = "sum",
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `reduce`, with its arguments. Collective."""
        return self._persistent("reduce", (in_array, out_array, root, op), stream, timeout)

    def broadcast_init(
        self,
        in_out_array: ArrayLike,
        root: int = 0,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `broadcast`, with its arguments. Collective."""
        return self._persistent("broadcast", (in_out_array, root), stream, timeout)

    def all_gather_init(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None = None,
        count: int | None = None,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `all_gather`, with its arguments. Collective."""
        return self._persistent("all_gather", (in_array, out_array, count), stream, timeout)

    def reduce_scatter_init(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        count: int | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `reduce_scatter`, with its arguments. Collective."""
        return self._persistent("reduce_scatter", (in_array, out_array, count, op), stream, timeout)

    def gather_init(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None = None,
        root: int = 0,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `gather`, with its arguments. Collective."""
        return self._persistent("gather", (in_array, out_array, root), stream, timeout)

    def scatter_init(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None = None,
        root: int = 0,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `scatter`, with its arguments. Collective."""
        return self._persistent("scatter", (in_array, out_array, root), stream, timeout)

    def all_to_all_init(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `all_to_all`, with its arguments. Collective."""
        return self._persistent("all_to_all", (in_array, out_array), stream, timeout)

    def scan_init(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `scan`, with its arguments. Collective."""
        return self._persistent("scan", (in_array, out_array, op), stream, timeout)

    def exscan_init(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `exscan`, with its arguments. Collective."""
        return self._persistent("exscan", (in_array, out_array, op), stream, timeout)

    def all_gather_v_init(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None,
        counts: Sequence[int],
        displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `all_gather_v`, with its arguments. Collective."""
        return self._persistent("all_gather_v", (in_array, out_array, counts, displs), stream, timeout)

    def reduce_scatter_v_init(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None,
        counts: Sequence[int],
        op: Any = "sum",
        displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `reduce_scatter_v`, with its arguments. Collective."""
        return self._persistent("reduce_scatter_v", (in_array, out_array, counts, op, displs), stream, timeout)

    def gather_v_init(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None,
        counts: Sequence[int],
        root: int = 0,
        displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `gather_v`, with its arguments. Collective."""
        return self._persistent("gather_v", (in_array, out_array, counts, root, displs), stream, timeout)

    def scatter_v_init(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None,
        counts: Sequence[int],
        root: int = 0,
        displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `scatter_v`, with its arguments. Collective."""
        return self._persistent("scatter_v", (in_array, out_array, counts, root, displs), stream, timeout)

    def all_to_all_v_init(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None,
        in_counts: Sequence[int],
        out_counts: Sequence[int],
        in_displs: Sequence[int] | None = None,
        out_displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> Request:
        """Make a persistent `all_to_all_v`, with its arguments. The counts are compared once. Collective."""
        return self._persistent_exchange(
            (in_array, out_array, in_counts, out_counts, in_displs, out_displs), stream, timeout
        )

    def barrier_init(self, *, stream: Any = None, timeout: float | None = None) -> Request:
        """Make a persistent `barrier`. Collective."""
        token = numpy.zeros(1, numpy.uint8)
        return self._persistent("barrier", (token, None, "max"), stream, timeout)
