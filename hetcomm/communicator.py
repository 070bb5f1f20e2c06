"""The communicator: what a user of hetcomm holds.

`init` meets the other ranks and makes one over all of them, `Communicator.split` makes smaller ones. A communicator
belongs to one thread. What is common to all its methods:

* *Arrays* are anything with the buffer protocol, `__cuda_array_interface__` or `__dlpack__`, C-contiguous, of one of
  the dtypes of `hetcomm.DataType`; of any shape, since only the elements count. Nothing is copied behind the caller's
  back.
* *Collective* methods must be called by all ranks, in the same order, with equal counts, dtype, op and root. Calls
  return when the result is there. Every rank gets the bit-identical result.
* *Streams*: host arrays belong to no stream, so `stream` is ignored with them. No vendor takes device arrays yet.
* *Errors*: `UsageError` means an argument was refused, on this rank or on another one: it is raised on every rank,
  names rank, argument and remedy, and no array has changed; the communicator stays usable unless the message says that
  other ranks had begun. `VendorError` in the same way, where a vendor cannot do its part. `PlanMismatchError` is raised
  on every rank whose plan differs from another's, or that waits for one. After `CollectiveTimeoutError`,
  `PeerFailureError`, and any `VendorError` in the middle of a call, output arrays are undefined but no longer written
  to, and the communicator can only be closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any, NoReturn

import numpy

from hetcomm.errors import CollectiveTimeoutError, HetcommError, TransportError, UsageError
from hetcomm.runtime import calls, leaving, pointtopoint
from hetcomm.runtime.agreement import REFUSALS, Intent
from hetcomm.runtime.calls import Call
from hetcomm.runtime.detect import restrict
from hetcomm.runtime.executor import Execution
from hetcomm.runtime.explain import Explanation, explain
from hetcomm.runtime.job import open_job, settings
from hetcomm.runtime.waiting import wait
from hetcomm.runtime.wiring import Parts, wire
from hetcomm.schedule.timeline import Span, Timeline
from hetcomm.topology.model import Topology
from hetcomm.types import ArrayLike, Config
from hetcomm.vendors.base import Operation

__all__ = ["Communicator", "Explanation", "Statistics", "Trace", "init"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What one rank has done on one communicator so far.

    Attributes:
        calls: Collective calls completed.
        plans: Plans made.
        bytes_between_clusters: Bytes this rank has sent to ranks of other clusters.
    """

    calls: int
    plans: int
    bytes_between_clusters: int


class Trace:
    """What `Communicator.trace` records: the steps this rank has run."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    @property
    def timeline(self) -> Timeline:
        """The steps completed so far; times are those of `time.perf_counter`."""
        return Timeline(tuple(self._spans))


def init(
    *,
    comm: Any = None,
    topology: Topology | str | PathLike[str] | None = None,
    vendor: str | None = None,
    cluster: str | None = None,
    timeout: float | None = None,
    config: Config | None = None,
) -> Communicator:
    """Meet the other ranks of this job and return the communicator over all of them; collective.

    Under mpirun, mpiexec or srun these are the ranks of `MPI.COMM_WORLD`; without a launcher the job has one rank, and
    mpi4py is not imported. Each rank states its vendor and cluster; ranks of equal vendor and cluster form a cluster.

    Args:
        comm: An mpi4py communicator to use in place of `MPI.COMM_WORLD`.
        topology: A topology, or the path of a file with one, in place of the detected one; the same on all ranks.
        vendor: This rank's vendor, over `HETCOMM_VENDOR`; by default detected.
        cluster: Distinguishes clusters of one vendor, over `HETCOMM_CLUSTER`.
        timeout: Seconds any wait may take, over `HETCOMM_TIMEOUT`.
        config: All settings, in place of the environment's.

    Returns:
        A communicator that is best used as a context manager: leaving the block closes it.

    Raises:
        UsageError: On every rank, if an argument or variable is unusable on any, or a vendor is not known.
        TopologyError: On every rank, if the topology does not describe this job.
        VendorError: On every rank, if a vendor is not installed or does not start on any; or mpi4py's MPI is not the
            launcher's.
        TransportError: On every rank, if UCX is missing or unusable on any.
        CollectiveTimeoutError: Not all ranks called this in time.
    """
    job = open_job(settings(config, vendor, cluster, timeout), comm, topology)
    try:
        parts = wire(job, job.group, range(job.group.nranks), job.topology)
    except BaseException:
        job.transport.close()
        raise
    made = Communicator(parts, _token=_TOKEN)
    leaving.close_at_exit(made)
    return made


_TOKEN = object()


class Communicator:
    """Some ranks that communicate; made by `hetcomm.init` and `Communicator.split`.

    See the module's text for what all methods have in common. As a context manager it closes itself; when the block
    ends with an exception it tells the other ranks that this one has left, instead of waiting for them.
    """

    def __init__(self, parts: Parts, parent: Communicator | None = None, *, _token: object = None) -> None:
        if _token is not _TOKEN:
            raise UsageError(
                "a Communicator is not made directly", remedy="Call hetcomm.init() or Communicator.split()."
            )
        self._parts = parts
        self._parent = parent
        self._children: list[Communicator] = []
        self._rank, self._nranks = parts.group.rank, parts.group.nranks
        self._transport = parts.job.transport
        self._pump = parts.job.pump
        self._timeout = parts.job.config.timeout
        self._agreement = parts.agreement
        self._executor = parts.executors[0]
        self._plans = parts.plans
        self._closed = False
        self._unusable = False  # closed or broken: one look in the fast path
        self._calls = 0
        self._sent = 0
        self._token = numpy.zeros(1, numpy.uint8)  # what a barrier reduces
        self._points = pointtopoint.PointToPoint(
            self._transport, self._pump, parts.peers, self._rank, parts.context, self._timeout, parts.topology
        )

    # ---- what it is

    @property
    def rank(self) -> int:
        """This process's number in the communicator."""
        return self._rank

    @property
    def nranks(self) -> int:
        """How many ranks it has."""
        return self._nranks

    @property
    def topology(self) -> Topology:
        """Its clusters, in terms of its own ranks."""
        return self._parts.topology

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __repr__(self) -> str:
        clusters = ", ".join(f"{cluster.name}: {len(cluster)}" for cluster in self.topology.clusters)
        state = ", closed" if self._closed else ", broken" if self._agreement.broken else ""
        return f"<hetcomm.Communicator, rank {self._rank} of {self._nranks} ({clusters}){state}>"

    def statistics(self) -> Statistics:
        """What this rank has done so far."""
        return Statistics(self._calls, self._plans.made, self._sent + self._points.sent_between_clusters)

    # ---- collectives

    def all_reduce(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> None:
        """Combine all ranks' `in_array` element by element; every rank gets the result. Collective.

        Args:
            in_array: The input.
            out_array: As many elements of the same dtype; without it, or if it is `in_array`, the result replaces the
                input.
            op: 'sum', 'prod', 'min', 'max', 'avg', `hetcomm.premul_sum(factor)`, a `ReduceOp`, or an mpi4py `Op`.
            stream: Ignored with host arrays.
            timeout: Seconds this call may take; the communicator's unless given.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See the module's text.
        """
        self._collective("all_reduce", calls.all_reduce, (in_array, out_array, op), timeout)

    def reduce(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        root: int = 0,
        op: Any = "sum",
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> None:
        """Combine all ranks' `in_array` element by element; the root gets the result. Collective.

        Args:
            in_array: The input; it is not changed on the other ranks.
            out_array: At the root, as many elements of the same dtype; without it the result replaces the input there.
                Ignored on the other ranks.
            root: The rank that gets the result.
            op, stream, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See the module's text.
        """
        self._collective("reduce", calls.reduce, (in_array, out_array, root, op), timeout)

    def broadcast(
        self, in_out_array: ArrayLike, root: int = 0, *, stream: Any = None, timeout: float | None = None
    ) -> None:
        """Give the root's `in_out_array` to all ranks. Collective; always in place.

        Args:
            in_out_array: The input at the root, where it is only read; the output elsewhere. Equal counts and dtype on
                all.
            root: The rank that has the data.
            stream, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See the module's text.
        """
        self._collective("broadcast", calls.broadcast, (in_out_array, root), timeout)

    def all_gather(
        self,
        in_array: ArrayLike | None,
        out_array: ArrayLike | None = None,
        count: int | None = None,
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> None:
        """Give every rank the `in_array` of all ranks, in rank order. Collective.

        Args:
            in_array: `count` elements. In place, that is without `out_array`, the array of `nranks * count` elements
                whose block number `rank` is the input.
            out_array: `nranks * count` elements. `in_array` may be its block number `rank`, or None, which is in place
                too.
            count: Elements of one rank; it follows from the arrays, and is checked if given.
            stream, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See the module's text.
        """
        self._collective("all_gather", calls.all_gather, (in_array, out_array, count), timeout)

    def reduce_scatter(
        self,
        in_array: ArrayLike,
        out_array: ArrayLike | None = None,
        count: int | None = None,
        op: Any = "sum",
        *,
        stream: Any = None,
        timeout: float | None = None,
    ) -> None:
        """Combine all ranks' `in_array` element by element; rank r gets block number r. Collective.

        Args:
            in_array: `nranks * count` elements.
            out_array: `count` elements, which may be block number `rank` of `in_array`. Without it the call is in
                place: that block is the output, and the rest of `in_array` is undefined afterwards.
            count: Elements of one block; it follows from the arrays, and is checked if given.
            op, stream, timeout: As for `all_reduce`.

        Raises:
            UsageError, VendorError, PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See the module's text.
        """
        self._collective("reduce_scatter", calls.reduce_scatter, (in_array, out_array, count, op), timeout)

    def barrier(self, timeout: float | None = None) -> None:
        """Return when all ranks have called it. Collective.

        Raises:
            PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See the module's text.
        """
        self._collective("barrier", calls.all_reduce, (self._token, None, "max"), timeout)

    # ---- point to point

    def send(
        self, array: ArrayLike, peer: int, *, tag: int = 0, stream: Any = None, timeout: float | None = None
    ) -> None:
        """Send `array` to `peer`; returns when it may be changed again, which can be before it arrives.

        Messages of one (sender, receiver, tag) arrive in the order sent. A rank cannot send to itself: it would wait
        for its own receive.

        Args:
            array: Any number of elements; the dtype is not checked against the receiver's.
            peer: The receiver.
            tag: From 0 to 2**24 - 1; a receive takes messages of its own tag only.
            stream, timeout: As for `all_reduce`.

        Raises:
            UsageError: An argument cannot be used; nothing was sent, and only this rank knows.
            TransportError: UCX cannot send from that memory.
            CollectiveTimeoutError, PeerFailureError: The message may or may not arrive; the communicator can only be
                closed.
        """
        if timeout is None and not self._unusable:
            try:
                if self._points.try_send(array, peer, tag):
                    return
            except HetcommError as error:
                self._end_message(error, peer)
        self._slow_message(array, peer, tag, timeout, is_send=True)

    def recv(
        self, out_array: ArrayLike, peer: int, *, tag: int = 0, stream: Any = None, timeout: float | None = None
    ) -> None:
        """Receive from `peer` into `out_array`, which the message must fill; returns when it has arrived.

        Args:
            out_array: Exactly as many bytes as are sent.
            peer, tag, stream, timeout: As for `send`.

        Raises:
            UsageError: An argument cannot be used; nothing was received, and only this rank knows.
            TransportError: The message was longer or shorter; it is consumed, and the array undefined. The communicator
                stays usable.
            CollectiveTimeoutError, PeerFailureError: The array is undefined; the communicator can only be closed.
        """
        if timeout is None and not self._unusable:
            try:
                if self._points.try_recv(out_array, peer, tag):
                    return
            except HetcommError as error:
                self._end_message(error, peer)
        self._slow_message(out_array, peer, tag, timeout, is_send=False)

    # ---- other communicators

    def split(self, color: int | None, key: int | None = None) -> Communicator | None:
        """Divide the ranks into communicators of equal `color`, ordered by `key`, then by rank. Collective.

        Args:
            color: Which one this rank joins, any integer; None: none of them.
            key: An integer; this rank's number unless given.

        Returns:
            The new communicator; None with `color` None. Closing this communicator closes it too.

        Raises:
            UsageError: On every rank, if `color` or `key` is no integer on any.
            VendorError: On every rank of the new communicator, if a vendor failed; this one stays usable.
            PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See the module's text.
        """
        self._check_usable()
        try:
            color, key = _integer("color", color, self._rank), _integer("key", key, self._rank)
        except UsageError as error:
            self._agreement.refuse(error)
            raise
        try:
            self._agreement.begin(_SPLIT, time.monotonic() + self._timeout, always=True)
            said = f"{'' if color is None else color} {self._rank if key is None else key}"
            answers = self._parts.group.all_gather(said.encode())
        except BaseException as error:
            self._fail(error)
            raise
        chosen = sorted(
            (int(text.split(b" ")[1]), rank)
            for rank, text in enumerate(answers)
            if color is not None and text.split(b" ")[0] == str(color).encode()
        )
        if color is None:
            return None
        ranks = [rank for _, rank in chosen]
        job = self._parts.job
        parts = wire(
            job,
            self._parts.group.subgroup(ranks),
            [self._parts.peers[r] for r in ranks],
            restrict(self.topology, ranks),
        )
        child = Communicator(parts, self, _token=_TOKEN)
        self._children.append(child)
        return child

    # ---- looking inside

    def explain(self, name: str, *args: Any, **kwargs: Any) -> Explanation:
        """What a collective would do: `comm.explain("all_reduce", array)`. Not collective; moves nothing.

        Args:
            name: A collective's name.
            *args: What it would be called with.
            **kwargs: The same, by name.

        Raises:
            UsageError: There is no such collective, or it would refuse the arguments.
        """
        self._check_usable()
        order = _PARAMETERS.get(name)
        if order is None:
            raise UsageError(
                f"there is no collective {name!r} to explain",
                remedy=f"Use one of {', '.join(_PARAMETERS)}.",
                rank=self._rank,
            )
        function, defaults = order
        given = dict(zip(defaults, args, strict=False)) | kwargs
        unknown = [word for word in kwargs if word not in defaults and word not in ("stream", "timeout")]
        if unknown or len(args) > len(defaults):
            raise UsageError(f"{name} takes {', '.join(defaults)}", rank=self._rank)
        call = function(*({**defaults, **given}[word] for word in defaults), self._rank, self._nranks)
        self._plan(name, call)
        return explain(call, self.topology, self._rank)

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """Record the steps this rank runs inside the block: `with comm.trace() as trace: ...; print(trace.timeline)`.

        Not collective. Calls that would go straight to a vendor are recorded too, as the one step they are.

        Raises:
            UsageError: This communicator is recording already.
        """
        self._check_usable()
        if self._executor.spans is not None:
            raise UsageError("trace() is active already", remedy="Leave the inner block out.", rank=self._rank)
        trace = Trace()
        self._executor.spans = trace._spans
        try:
            yield trace
        finally:
            self._executor.spans = None

    # ---- the end

    def close(self) -> None:
        """Release everything; calling it again does nothing. Collective.

        Waits until all ranks have called it, at most the communicator's timeout. If one has left otherwise, or the
        communicator is broken, it does not wait. Never raises what went wrong on other ranks. Communicators split from
        this one are closed first.
        """
        self._close(self._timeout)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon(f"ended with {kind.__name__}")

    def _abandon(self, why: str) -> None:
        """Leave without waiting for the others, who are told."""
        if self._closed:
            return
        for child in self._children:
            child._abandon(why)
        self._break(f"this rank {why}", why, this_call=False)
        self._close(0.0)

    def _close(self, seconds: float) -> None:
        if self._closed:
            return
        for child in self._children:
            child._close(seconds)
        self._closed = self._unusable = True
        leaving.closed(self)
        healthy = self._agreement.broken is None and self._agreement.close(seconds)
        if not healthy:
            self._parts.abort()
            self._agreement.leave("closed it without waiting")
        self._parts.close()
        if self._parent is None:
            self._transport.close()

    # ---- how a call runs

    def _check_usable(self) -> None:
        if self._closed:
            raise UsageError(
                "this communicator is closed", remedy="Make a new one with hetcomm.init().", rank=self._rank
            )
        if self._agreement.broken is not None:
            raise TransportError(
                f"this communicator is unusable: {self._agreement.broken}",
                remedy="Close it and make a new one.",
                rank=self._rank,
            )

    def _plan(self, name: str, call: Call) -> Any:
        memory = call.out_memory if call.out_memory is not None else call.in_memory
        assert memory is not None  # every call has an array
        return self._plans.get(name, call.collective, memory.kind)

    def _collective(self, name: str, function: Callable[..., Call], args: Sequence[Any], timeout: float | None) -> None:
        self._check_usable()
        try:
            call = function(*args, self._rank, self._nranks)
            seconds = calls.check_timeout(timeout, self._timeout, self._rank)
            plan = self._plan(name, call)
        except REFUSALS as error:
            self._agreement.refuse(error)
            raise
        deadline = time.monotonic() + seconds
        operation: Operation | None = None
        try:
            number = self._agreement.begin(plan.intent, deadline)
            if plan.direct is not None and self._executor.spans is None:
                operation = plan.direct.start(call.collective, call.in_memory, call.out_memory)
            else:
                operation = self._executor.run(plan.bound, number, call.in_memory, call.out_memory, call.factor)
            if not wait(self._pump, operation.test, deadline, self._agreement.watch()):
                self._raise_late(name, number, seconds, operation)
        except HetcommError as error:
            self._parts.abort_executions()
            better = self._agreement.diagnose(error)
            self._fail(better)
            if better is not error:
                raise better from error
            raise
        except BaseException as error:
            self._fail(error)
            raise
        self._calls += 1
        self._sent += plan.sent

    def _raise_late(self, name: str, number: int, seconds: float, operation: Operation) -> NoReturn:
        step = operation.active_step if isinstance(operation, Execution) else "the vendor's call"
        what = operation.waiting_for() if isinstance(operation, Execution) else step
        raise CollectiveTimeoutError(
            f"{name} did not complete within {seconds:g} s; it waits for: {what}",
            rank=self._rank,
            collective=number,
            step=step,
            remedy="See whether all ranks live and make the same calls; HETCOMM_TIMEOUT or timeout= sets the limit.",
        )

    def _fail(self, error: BaseException) -> None:
        """A call failed: stop what is under way; unless all ranks agree that nothing had begun, that is the end."""
        if self._agreement.is_settling(error):
            if self._agreement.broken is not None:
                self._unusable = True
                self._parts.abort()
            return
        self._break(f"{type(error).__name__}: {error}", f"failed with {type(error).__name__}", this_call=True)

    def _break(self, reason: str, told: str, *, this_call: bool) -> None:
        self._unusable = True
        self._parts.abort()
        if self._agreement.broken is None:
            self._agreement.broken = reason
        self._agreement.leave(told, this_call=this_call)

    # ---- messages off the fast path

    def _slow_message(self, array: Any, peer: int, tag: int, timeout: float | None, *, is_send: bool) -> None:
        self._check_usable()
        seconds = calls.check_timeout(timeout, self._timeout, self._rank)
        memory = self._points.prepare(array, peer, tag, is_send=is_send)
        try:
            self._points.transfer(memory, peer, tag, seconds, is_send=is_send)
        except HetcommError as error:
            self._end_message(error, peer)

    def _end_message(self, error: HetcommError, peer: int) -> NoReturn:
        told = self._points.explain(error, peer)
        if self._points.is_fatal(error):
            self._fail(told)
        raise told from error


_SPLIT = Intent(b"split".ljust(16, b"\0"), "split")
_PARAMETERS: dict[str, tuple[Callable[..., Call], dict[str, Any]]] = {
    "all_reduce": (calls.all_reduce, {"in_array": None, "out_array": None, "op": "sum"}),
    "reduce": (calls.reduce, {"in_array": None, "out_array": None, "root": 0, "op": "sum"}),
    "broadcast": (calls.broadcast, {"in_out_array": None, "root": 0}),
    "all_gather": (calls.all_gather, {"in_array": None, "out_array": None, "count": None}),
    "reduce_scatter": (calls.reduce_scatter, {"in_array": None, "out_array": None, "count": None, "op": "sum"}),
}


def _integer(name: str, value: Any, rank: int) -> int | None:
    if value is None:
        return None
    try:
        return int(value.__index__())
    except AttributeError:
        raise UsageError(
            f"argument {name!r} is {value!r}, which is no integer", remedy="Pass an int or None.", rank=rank
        ) from None
