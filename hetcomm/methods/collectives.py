"""The collectives whose ranks all pass equally much."""

from __future__ import annotations

from typing import Any

from hetcomm.calls.spec import SPECS
from hetcomm.methods.base import Methods
from hetcomm.types import ArrayLike
from hetcomm.works.work import Work

__all__ = ["Collectives"]


def _key(name: str) -> int:
    key = SPECS[name].key
    assert key is not None  # only the vector forms have none
    return key


_ALL_REDUCE = _key("all_reduce")
_REDUCE = _key("reduce")
_BROADCAST = _key("broadcast")
_ALL_GATHER = _key("all_gather")
_REDUCE_SCATTER = _key("reduce_scatter")
_GATHER = _key("gather")
_SCATTER = _key("scatter")
_ALL_TO_ALL = _key("all_to_all")
_SCAN = _key("scan")
_EXSCAN = _key("exscan")
_BARRIER = _key("barrier")


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
            op: 'sum', 'prod', 'min', 'max', 'avg', `hetcomm.premul_sum(factor)`; of integers and bool 'band', 'bor',
                'bxor', 'land', 'lor', 'lxor'; or a `ReduceOp` or an mpi4py `Op`. `ReduceOp` says what they mean.
            stream: The stream that a device array is worked on, as an int, a CuPy or a PyTorch stream; the current one
                unless given. Ignored with host arrays.
            async_op: Return a `Work` at once; the call is complete when that is.
            timeout: Seconds a wait for this call may take; the communicator's unless given.

        Returns:
            None when the result is there, or with `async_op` a `Work`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._fast(_ALL_REDUCE, in_array, out_array, op, None):
            return None
        return self._collective("all_reduce", (in_array, out_array, op), stream, async_op, timeout)

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
        if timeout is None and async_op is False and self._fast(_REDUCE, in_array, out_array, root, op):
            return None
        return self._collective("reduce", (in_array, out_array, root, op), stream, async_op, timeout)

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
        if timeout is None and async_op is False and self._fast(_BROADCAST, in_out_array, None, root, None):
            return None
        return self._collective("broadcast", (in_out_array, root), stream, async_op, timeout)

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
        if timeout is None and async_op is False and self._fast(_ALL_GATHER, in_array, out_array, count, None):
            return None
        return self._collective("all_gather", (in_array, out_array, count), stream, async_op, timeout)

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
        if timeout is None and async_op is False and self._fast(_REDUCE_SCATTER, in_array, out_array, count, op):
            return None
        args = (in_array, out_array, count, op)
        return self._collective("reduce_scatter", args, stream, async_op, timeout)

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
        if timeout is None and async_op is False and self._fast(_GATHER, in_array, out_array, root, None):
            return None
        return self._collective("gather", (in_array, out_array, root), stream, async_op, timeout)

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
        if timeout is None and async_op is False and self._fast(_SCATTER, in_array, out_array, root, None):
            return None
        return self._collective("scatter", (in_array, out_array, root), stream, async_op, timeout)

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
        if timeout is None and async_op is False and self._fast(_ALL_TO_ALL, in_array, out_array, None, None):
            return None
        return self._collective("all_to_all", (in_array, out_array), stream, async_op, timeout)

    def scan(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Combine the `in_array` of ranks 0 to r element by element, for each rank r, which gets that. Collective.

        The order is that of the communicator's ranks, however the clusters lie in it. Where rounding matters, the
        additions are grouped as the plan says, so rank r's result need not have the bits of an all_reduce over ranks 0
        to r; equal calls give equal bits.

        Args:
            in_array: The input.
            out_array: As many elements of the same dtype; without it, or if it is `in_array`, the result replaces the
                input.
            op: 'sum', 'prod', 'min', 'max', `hetcomm.premul_sum(factor)` with each rank's own factor, a `ReduceOp`, or
                an mpi4py `Op`. There is no 'avg': each rank would divide by another number.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._fast(_SCAN, in_array, out_array, op, None):
            return None
        return self._collective("scan", (in_array, out_array, op), stream, async_op, timeout)

    def exscan(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
    ) -> Work | None:
        """Combine the `in_array` of ranks 0 to r - 1 element by element, for each rank r, which gets that. Collective.

        Rank 0, which has none before it, gets the op's identity: 0, for 'prod' 1, for 'min' the dtype's highest value
        and for 'max' its lowest, of floating types the infinities. (MPI leaves that output undefined.)

        Args:
            in_array: The input; that of the last rank does not count.
            out_array, op: As for `scan`.
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        if timeout is None and async_op is False and self._fast(_EXSCAN, in_array, out_array, op, None):
            return None
        return self._collective("exscan", (in_array, out_array, op), stream, async_op, timeout)

    def barrier(self, *, stream: Any = None, async_op: bool = False, timeout: float | None = None) -> Work | None:
        """Return when all ranks have called it. Collective.

        Args:
            stream, async_op, timeout: As for `all_reduce`.

        Raises:
            PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See `Communicator`.
        """
        token = self._token
        if timeout is None and async_op is False and self._fast(_BARRIER, token, None, "max", None):
            return None
        return self._collective("barrier", (token, None, "max"), stream, async_op, timeout)
