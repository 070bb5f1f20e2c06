"""The vector forms: collectives whose blocks differ in length from rank to rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hetcomm.methods.base import Methods
from hetcomm.types import ArrayLike
from hetcomm.works.work import Work

__all__ = ["VectorCollectives"]


class VectorCollectives(Methods):
    """The vector forms of a communicator's collectives.

    `counts` are the elements of each rank's block, the same on all ranks, zeros included. `displs` say where in this
    rank's array the block of each rank begins, in elements: blocks that are written must not overlap, what lies between
    them is left alone, and the array may be longer than they reach. Without `displs` the blocks lie one behind the
    other, and the array has exactly as many elements. An array of no element may be None if the rank passes another.
    """

    def all_gather_v(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None,
        counts: Sequence[int],
        displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Give every rank the `in_array` of all ranks, whose lengths differ. Collective.

        Args:
            in_array: `counts[rank]` elements. It may be None, or this rank's block of `out_array`: in place.
            out_array: The blocks of all ranks.
            counts: Elements of each rank, the same on all.
            displs: Where each block begins in `out_array`; each rank its own.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        args = (in_array, out_array, counts, displs)
        return self._collective("all_gather_v", args, stream, async_op, timeout)

    def reduce_scatter_v(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None,
        counts: Sequence[int],
        op: Any = "sum",
        displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Combine all ranks' `in_array` element by element; rank r gets block number r, of its own length. Collective.

        Args:
            in_array: The blocks of all ranks.
            out_array: `counts[rank]` elements, which may be this rank's block of `in_array`. None is in place: that
                block is the output, and the rest of `in_array` is undefined afterwards.
            counts: Elements of each block, the same on all ranks.
            op: As for `all_reduce`.
            displs: Where each block begins in `in_array`; each rank its own.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        args = (in_array, out_array, counts, op, displs)
        return self._collective("reduce_scatter_v", args, stream, async_op, timeout)

    def gather_v(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None,
        counts: Sequence[int],
        root: int = 0,
        displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Give the root the `in_array` of all ranks, whose lengths differ. Collective.

        Args:
            in_array: `counts[rank]` elements. At the root it may be None, or its block of `out_array`: in place.
            out_array: At the root, the blocks of all ranks. Ignored on the other ranks.
            counts: Elements of each rank, the same on all.
            root: The rank that gets the blocks.
            displs: At the root, where each block begins in `out_array`. Ignored on the other ranks.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        args = (in_array, out_array, counts, root, displs)
        return self._collective("gather_v", args, stream, async_op, timeout)

    def scatter_v(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None,
        counts: Sequence[int],
        root: int = 0,
        displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Give rank r block number r, of its own length, of the root's `in_array`. Collective.

        Args:
            in_array: At the root, the blocks of all ranks, which are only read. Ignored on the other ranks.
            out_array: `counts[rank]` elements. At the root it may be None, or its block of `in_array`: the block stays
                where it is.
            counts: Elements of each rank, the same on all.
            root: The rank that has the blocks.
            displs: At the root, where each block begins in `in_array`. Ignored on the other ranks.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        args = (in_array, out_array, counts, root, displs)
        return self._collective("scatter_v", args, stream, async_op, timeout)

    def all_to_all_v(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None,
        in_counts: Sequence[int],
        out_counts: Sequence[int],
        in_displs: Sequence[int] | None = None,
        out_displs: Sequence[int] | None = None,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Give every rank what each rank has for it, in any lengths. Collective; there is no in-place form.

        The ranks first tell one another their counts, so two ranks that contradict each other are found before data
        moves; that takes an all_gather of `2 * nranks` integers. `all_to_all_v_init` does it once for many runs.

        Args:
            in_array: A block for each rank.
            out_array: A block from each rank.
            in_counts: Elements this rank has for each rank.
            out_counts: Elements it gets from each rank: what that rank has in its `in_counts` for this one.
            in_displs: Where each block begins in `in_array`.
            out_displs: Where each block begins in `out_array`.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError: Two ranks contradict each other: raised on every rank, with one text that names both and their
                counts; no array has changed, and the communicator is usable. Else see `Communicator`.
            VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        args = (in_array, out_array, in_counts, out_counts, in_displs, out_displs)
        return self._exchange(args, stream, async_op, timeout)
