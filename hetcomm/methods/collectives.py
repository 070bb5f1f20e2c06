"""The collectives whose ranks all pass equally much."""

from __future__ import annotations

from typing import Any

from hetcomm.methods.base import Methods
from hetcomm.runtime import calls
from hetcomm.runtime.engine import KINDS
from hetcomm.runtime.work import Work
from hetcomm.types import ArrayLike

__all__ = ["Collectives"]

_ALL_REDUCE = KINDS["all_reduce"]
_REDUCE = KINDS["reduce"]
_BROADCAST = KINDS["broadcast"]
_ALL_GATHER = KINDS["all_gather"]
_REDUCE_SCATTER = KINDS["reduce_scatter"]
_GATHER = KINDS["gather"]
_SCATTER = KINDS["scatter"]
_ALL_TO_ALL = KINDS["all_to_all"]
_BARRIER = KINDS["barrier"]


class Collectives(Methods):
    """The collectives of a communicator; what they have in common is in the text of `hetcomm.communicator`."""

    def all_reduce(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Combine all ranks' `in_array` element by element; every rank gets the result. Collective.

        Args:
            in_array: The input.
            out_array: As many elements of the same dtype; without it, or if it is `in_array`, the result replaces the
                input.
            op: 'sum', 'prod', 'min', 'max', 'avg', `hetcomm.premul_sum(factor)`, a `ReduceOp`, or an mpi4py `Op`.
            stream: The stream that a device array is worked on, as an int, a CuPy or a PyTorch stream; the current one
                unless given. Ignored with host arrays.
            async_op: Return a `Work` at once; the call is complete when that is.
            timeout: Seconds a wait for this call may take; the communicator's unless given.

        Returns:
            None when the result is there, or with `async_op` a `Work`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._express(_ALL_REDUCE, in_array, out_array, op, None):
            return None
        return self._collective("all_reduce", calls.all_reduce, (in_array, out_array, op), stream, async_op, timeout)

    def reduce(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        root: int = 0,
        op: Any = "sum",
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Combine all ranks' `in_array` element by element; the root gets the result. Collective.

        Args:
            in_array: The input; it is not changed on the other ranks.
            out_array: At the root, as many elements of the same dtype; without it the result replaces the input there.
                Ignored on the other ranks.
            root: The rank that gets the result.
            op, stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._express(_REDUCE, in_array, out_array, root, op):
            return None
        return self._collective("reduce", calls.reduce, (in_array, out_array, root, op), stream, async_op, timeout)

    def broadcast(
        self,
        in_out_array: ArrayLike,
        root: int = 0,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Give the root's `in_out_array` to all ranks. Collective; always in place.

        Args:
            in_out_array: The input at the root, where it is only read; the output elsewhere. Equal counts and dtype on
                all.
            root: The rank that has the data.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._express(_BROADCAST, in_out_array, None, root, None):
            return None
        return self._collective("broadcast", calls.broadcast, (in_out_array, root), stream, async_op, timeout)

    def all_gather(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None = None,
        count: int | None = None,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Give every rank the `in_array` of all ranks, in rank order. Collective.

        Args:
            in_array: `count` elements. In place, that is without `out_array`, the array of `nranks * count` elements
                whose block number `rank` is the input.
            out_array: `nranks * count` elements. `in_array` may be its block number `rank`, or None, which is in place
                too.
            count: Elements of one rank; it follows from the arrays, and is checked if given.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._express(_ALL_GATHER, in_array, out_array, count, None):
            return None
        return self._collective("all_gather", calls.all_gather, (in_array, out_array, count), stream, async_op, timeout)

    def reduce_scatter(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        count: int | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Combine all ranks' `in_array` element by element; rank r gets block number r. Collective.

        Args:
            in_array: `nranks * count` elements.
            out_array: `count` elements, which may be block number `rank` of `in_array`. Without it the call is in
                place: that block is the output, and the rest of `in_array` is undefined afterwards.
            count: Elements of one block; it follows from the arrays, and is checked if given.
            op, stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._express(_REDUCE_SCATTER, in_array, out_array, count, op):
            return None
        args = (in_array, out_array, count, op)
        return self._collective("reduce_scatter", calls.reduce_scatter, args, stream, async_op, timeout)

    def gather(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None = None,
        root: int = 0,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Give the root the `in_array` of all ranks, in rank order. Collective.

        Args:
            in_array: `count` elements. At the root it may be None, or block number `root` of `out_array`: the call is
                in place there, and the root's input is that block.
            out_array: At the root, `nranks * count` elements. Ignored on the other ranks.
            root: The rank that gets the blocks.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._express(_GATHER, in_array, out_array, root, None):
            return None
        return self._collective("gather", calls.gather, (in_array, out_array, root), stream, async_op, timeout)

    def scatter(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None = None,
        root: int = 0,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Give rank r block number r of the root's `in_array`. Collective.

        Args:
            in_array: At the root, `nranks * count` elements, which are only read. Ignored on the other ranks.
            out_array: `count` elements. At the root it may be None, or block number `root` of `in_array`: the block
                stays where it is.
            root: The rank that has the blocks.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._express(_SCATTER, in_array, out_array, root, None):
            return None
        return self._collective("scatter", calls.scatter, (in_array, out_array, root), stream, async_op, timeout)

    def all_to_all(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Give rank r block number r of every rank's `in_array`, in rank order. Collective.

        Args:
            in_array: `nranks * count` elements: a block for each rank.
            out_array: As many elements of the same dtype: a block from each rank. Without it, or if it is `in_array`,
                the output replaces the input.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._express(_ALL_TO_ALL, in_array, out_array, None, None):
            return None
        return self._collective("all_to_all", calls.all_to_all, (in_array, out_array), stream, async_op, timeout)

    def barrier(self, *, stream: Any = None, async_op: bool = False, timeout: float | None = None) -> Work | None:
        """Return when all ranks have called it. Collective.

        Args:
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        token = self._token
        if timeout is None and async_op is False and self._express(_BARRIER, token, None, "max", None):
            return None
        return self._collective(
            "barrier", calls.all_reduce, (token, None, "max"), stream, async_op, timeout, control=True
        )
