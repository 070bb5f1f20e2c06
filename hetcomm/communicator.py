"""The communicator: what a user of hetcomm holds.

`init` meets the other ranks and makes one over all of them, `Communicator.split` makes smaller ones. A communicator
belongs to one thread. What is common to all its methods:

* *Arrays* are anything with the buffer protocol, `__cuda_array_interface__` or `__dlpack__`, C-contiguous, of one of
  the dtypes of `hetcomm.DataType`; of any shape, since only the elements count. Nothing is copied behind the caller's
  back.
* *Collective* methods must be called by all ranks, in the same order, with equal counts, dtype, op and root. Calls
  return when the result is there. Every rank gets the bit-identical result.
* With *async_op* a call returns a `hetcomm.Work` at once, whatever the other ranks do, and its arrays must be left
  alone until that is over. Any number of works may be under way, mixed with blocking calls. The order of the calls must
  be the same on all ranks, not the order in which works are waited for.
* *Streams*: host arrays belong to no stream, so `stream` is ignored with them. A call on device arrays returns at once:
  it comes after what was queued on its stream (`stream`, else the current one of the arrays' library), and what is
  queued there later comes after it. Nothing of it blocks the host, and no array passes through host memory unless the
  UCX in use has no other way. Ranks with device arrays and ranks with host arrays may share a job. All device arrays
  of a rank are on one device. Calls are refused on a stream that is being captured into a graph.
* *Forks*: a communicator belongs to the process that made it. A forked child has none: whatever it does with its
  parent's raises `UsageError`, and neither its exit nor its garbage collector touches anything of the parent's. It may
  call `hetcomm.init` itself, but where its parent runs MPI only for a job of one rank (`HETCOMM_BOOTSTRAP=single`).
* *Errors*: `UsageError` means an argument was refused, on this rank or on another one: it is raised on every rank,
  names rank, argument and remedy, and no array has changed; the communicator stays usable unless the message says that
  other ranks had begun. `VendorError` in the same way, where a vendor cannot do its part. `PlanMismatchError` is raised
  on every rank whose plan differs from another's, or that waits for one. After `CollectiveTimeoutError`,
  `PeerFailureError`, and any `VendorError` in the middle of a call, output arrays are undefined but no longer written
  to, and the communicator can only be closed, or shrunk; works that were under way fail with it. (Where a vendor's
  library cannot take back a call that other ranks do not end, a warning in the log says that it may still write.) This
  rank's own arguments are refused by the call itself, all other errors of a call with `async_op` are raised by
  `Work.wait`. What goes wrong with a call on device arrays after it has returned is raised by the next call, or by
  `Work.synchronize`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any

import numpy

from hetcomm.agreement.closing import Parting
from hetcomm.agreement.tickets import Intent
from hetcomm.calls.arguments import check_integer
from hetcomm.calls.spec import EXPLAINED, SPECS
from hetcomm.errors import HetcommError, PeerFailureError, UsageError
from hetcomm.execution.streams import Streams
from hetcomm.job import leaving
from hetcomm.job.detect import restrict
from hetcomm.job.job import Job, open_job
from hetcomm.job.launcher import Launcher
from hetcomm.job.settings import settings
from hetcomm.job.survivors import rewire
from hetcomm.job.wiring import Parts, wire
from hetcomm.methods.collectives import Collectives
from hetcomm.methods.messages import Messages
from hetcomm.methods.persistent import PersistentCollectives
from hetcomm.methods.vectors import VectorCollectives
from hetcomm.plans.explain import Explanation, explain
from hetcomm.schedule.steps import Schedule
from hetcomm.schedule.timeline import Span, Timeline
from hetcomm.topology.model import Topology
from hetcomm.types import Config
from hetcomm.works import grouping, pointtopoint
from hetcomm.works.engine import Engine
from hetcomm.works.persistent import Request
from hetcomm.works.refusals import checking, refusing
from hetcomm.works.work import Work

__all__ = ["Communicator", "Explanation", "Request", "Statistics", "Trace", "Work", "init"]


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
    worker: Any = None,
    endpoints: Mapping[int, Any] | None = None,
) -> Communicator:
    """Meet the other ranks of this job and return the communicator over all of them; collective.

    Under `hetcomm run` these are the ranks that it has started; under mpirun, mpiexec or srun those of
    `MPI.COMM_WORLD`; without a launcher the job has one rank. mpi4py is imported under MPI's launchers, and by the
    vendor `mpi`, only. Each rank states its vendor and cluster; ranks of equal vendor and cluster form a cluster.

    Args:
        comm: An mpi4py communicator to use in place of `MPI.COMM_WORLD`.
        topology: A topology, or the path of a file with one, in place of the detected one; the same on all ranks.
        vendor: This rank's vendor, over `HETCOMM_VENDOR`; by default detected.
        cluster: Distinguishes clusters of one vendor, over `HETCOMM_CLUSTER`.
        timeout: Seconds any wait may take, over `HETCOMM_TIMEOUT`.
        config: All settings, in place of the environment's.
        worker: A running worker of UCXX or ucx-py to send and receive with, in place of one of hetcomm's own: the
            object, an endpoint of it, or the address of its `ucp_worker_h`. Each rank decides for itself. It must stay
            until the communicator is closed, and goes on running then.
        endpoints: By rank, endpoints of `worker` that lead there, to use in place of new ones; they are not closed.

    Returns:
        A communicator that is best used as a context manager: leaving the block closes it.

    Raises:
        UsageError: On every rank, if an argument or variable is unusable on any, or a vendor is not known.
        TopologyError: On every rank, if the topology does not describe this job: its number of ranks, or its hosts.
        VendorError: On every rank, if a vendor is not installed or does not start on any; or mpi4py's MPI is not the
            launcher's.
        TransportError: On every rank, if UCX is missing or unusable on any.
        PeerFailureError: Under `hetcomm run`, at once, if a rank ended before it had joined, or while it did; `ranks`
            names it, and the message says how it ended.
        CollectiveTimeoutError: Not all ranks called this in time.
    """
    found, failure = settings(config, vendor, cluster, timeout)
    return _meet(partial(open_job, found, comm, topology, worker, endpoints, failure), found.timeout)


def _meet(open_: Callable[[], Job], seconds: float) -> Communicator:
    """Meet the other ranks; again, where some are lost meanwhile that the launcher starts again, for so long."""
    launcher = Launcher.from_environ()
    until = time.monotonic() + (seconds if launcher is not None and launcher.restarts else 0.0)
    while True:
        try:
            job = open_()
            try:
                parts = wire(job, job.group, range(job.group.nranks), job.topology)
            except BaseException:
                job.close()
                raise
        except PeerFailureError as error:
            if error.is_final or time.monotonic() > until:
                raise
        else:
            made = Communicator(parts, _token=_TOKEN)
            leaving.close_at_exit(made)
            return made


_TOKEN = object()


class Communicator(Collectives, VectorCollectives, PersistentCollectives, Messages):
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
        self._children: dict[Communicator, None] = {}  # those that are open, in the order of their making
        self._rank, self._nranks = parts.group.rank, parts.group.nranks
        self._plans = parts.plans
        self._streams = Streams(parts.job.devices, parts.job.serve, parts.executor.open, self._rank)
        self._closed = False
        self._successor: Communicator | None = None  # what came of it when it was shrunk or reconfigured
        self._shrinks = False
        self._engine = Engine(parts)
        self._ledger = parts.ledger
        self._fast = self._engine.fast_path.call if self._engine.fast_path is not None else _no_fast_path
        self._token = numpy.zeros(1, numpy.uint8)
        self._active = parts.job.pump.active
        self._points = pointtopoint.PointToPoint(
            parts.job.transport, parts.peers, self._rank, parts.context, parts.job.config.timeout, parts.topology
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

    @property
    def successor(self) -> Communicator | None:
        """What has come of it by `shrink` or `reconfigure`, in the end; None: it was never either."""
        last = self._successor
        while last is not None and last._successor is not None:
            last = last._successor
        return last

    def __repr__(self) -> str:
        clusters = ", ".join(f"{cluster.name}: {len(cluster)}" for cluster in self.topology.clusters)
        state = ", closed" if self._closed else ", broken" if self._parts.agreement.broken else ""
        return f"<hetcomm.Communicator, rank {self._rank} of {self._nranks} ({clusters}){state}>"

    def statistics(self) -> Statistics:
        """What this rank has done so far."""
        ledger = self._ledger
        return Statistics(ledger.calls, self._plans.made, ledger.sent + self._points.sent_between_clusters)

    # ---- several calls at once

    def group(self) -> AbstractContextManager[None]:
        """Start the calls of a block together when it ends: `with comm.group(): comm.send(...); comm.recv(...)`.

        Inside the block calls only check their arguments: collectives, messages, and `Request.start`. They return None,
        or with `async_op` a `Work`. At its end everything is started and waited for, except what was called with
        `async_op` or is a request; so messages may be given in any order, to this rank itself too. Collectives begin in
        the order of their calls. A block inside the block of the same communicator is part of it.

        A group that holds collectives is one collective call: all ranks must group the same collectives, and its
        messages start when all ranks have come to it. If it is refused on one rank, by an argument or because an
        exception leaves the block, no part of it starts on any rank. A group of messages alone concerns its rank alone.

        Raises:
            UsageError, TransportError: The communicator is closed or broken.
            HetcommError: At the end of the block, what the first call that went wrong would raise.
        """
        return grouping.group(self._engine)

    # ---- other communicators

    def split(self, color: int | None, key: int | None = None, *, timeout: float | None = None) -> Communicator | None:
        """Divide the ranks into communicators of equal `color`, ordered by `key`, then by rank. Collective.

        There may be 21,845 communicators at once. One that broke, or of whose messages some were never received, counts
        even when it is closed.

        Args:
            color: Which one this rank joins, any integer; None: none of them.
            key: An integer; this rank's number unless given.
            timeout: Seconds until all ranks must have come to this call; the communicator's unless given. What follows
                may take as long as `hetcomm.init` may.

        Returns:
            The new communicator; None with `color` None. Closing this communicator closes it too.

        Raises:
            UsageError: On every rank, if `color` or `key` is no integer on any.
            VendorError: On every rank of the new communicator, if a vendor failed; this one stays usable.
            PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See the module's text.
        """
        engine = self._engine
        engine.enter()
        with engine.lock:
            return self._split(engine, color, key, timeout)

    def _split(self, engine: Engine, color: int | None, key: int | None, timeout: float | None) -> Communicator | None:
        with refusing(engine, "split"):
            engine.settle()
            seconds = engine.seconds(timeout)
            self._refuse_in_group("split")
            mine = _in_hex("color", color, self._rank)
            said = f"{mine} {_in_hex('key', self._rank if key is None else key, self._rank)}"
        engine.agree(_SPLIT, always=True, seconds=seconds)
        try:
            answers = self._parts.group.all_gather(said.encode())
        except HetcommError as error:
            raise engine.lose(error) from error
        except BaseException as error:
            engine.give_up(error)
            raise
        chosen = sorted(
            (int(text.split(b" ")[1], 16), rank)
            for rank, text in enumerate(answers)
            if mine and text.split(b" ")[0] == mine.encode()
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
        self._children[child] = None
        return child

    def shrink(self, timeout: float | None = None) -> Communicator:
        """Make a communicator of the ranks that are left, and close this one. Collective over those ranks.

        For after a `PeerFailureError`: whoever lives calls this, and all get the same communicator, in which they are
        numbered in the order that they had. Ranks are left out that have died, cannot be reached any more, have closed
        this communicator without calling this, or do not come in time, as one that is stopped; those that live are
        told. If one more dies meanwhile, it is left out, too. Whatever is still under way here fails; what ranks that
        are left out have sent meets nothing in the new communicator. Parts made by `split` stay: those that have lost a
        rank can be shrunk by themselves.

        The end of a `with` block of this communicator closes the one that has come of it.

        Args:
            timeout: Seconds that the ranks which are left may take to come; the communicator's unless given.

        Raises:
            UsageError: This communicator is closed, or could not be shrunk before, or `timeout` is no time.
            PeerFailureError: The others have left this rank out.
            VendorError: On every rank that is left, if a vendor failed on any.
        """
        engine = self._engine
        engine.check_owner()
        engine.refuse_in_between()
        if self._closed or self._shrinks:
            problem = "is closed" if self._closed else "could not be shrunk"
            raise UsageError(
                f"this communicator {problem}",
                remedy="Shrink it before it is closed." if self._closed else "Close it.",
                rank=self._rank,
            )
        seconds = engine.seconds(timeout)
        with engine.lock:
            engine.abandon("shrinks it")
            self._shrinks = True  # ranks that have given up take no part in a second time
            parts = rewire(self._parts, engine.ended, seconds)
            return self._become(Communicator(parts, self._parent, _token=_TOKEN))

    def reconfigure(self) -> Communicator:
        """Meet again, with new processes in the seats of ranks that are lost, and close this communicator. Collective.

        For jobs of `hetcomm run --restarts N`, which starts ranks again that fail: those that are left call this, the
        new processes `hetcomm.init`. All get a communicator of all ranks of the job, each with the number it has always
        had, also where this one has been shrunk. The new communicator shares nothing with this one, so nothing that was
        on its way reaches it; parts made by `split` are closed with this one, whose settings it has.

        Should ranks be lost meanwhile that are started again, all meet once more.

        Returns:
            The new communicator. The end of a `with` block of this one closes that.

        Raises:
            UsageError: This communicator is closed, or not that of all ranks of a job; or they met over MPI, or share
                a worker, so that they cannot meet again.
            VendorError: On every rank, if a vendor lets no new process in, or failed otherwise.
            PeerFailureError: On every rank that is left, if a rank has ended for good. This communicator is not closed
                then: the others may `shrink` it.
            CollectiveTimeoutError: Some ranks did not come in time; `ranks` names them. This communicator is not
                closed.
        """
        engine = self._engine
        engine.check_owner()
        engine.refuse_in_between()
        job = self._parts.job
        problem, remedy = "", "Go on with those that are left: shrink."
        if self._closed:
            problem, remedy = "this communicator is closed", "Call this before it is closed."
        elif self._parent is not None:
            problem, remedy = "this communicator is a part of another", "Call this of that which hetcomm.init has made."
        elif job.again is None:
            problem = "the ranks of this job cannot meet again: they met over MPI, or share a worker with its owner"
            remedy = f"Start it with 'hetcomm run --restarts N'. {remedy}"
        if problem or job.again is None:
            raise UsageError(problem, remedy=remedy, rank=self._rank)
        with engine.lock:
            engine.abandon("reconfigures it")
        successor = _meet(job.again, job.config.timeout)
        self._close(0.0)
        return self._replaced_by(successor)

    def _replaced_by(self, successor: Communicator) -> Communicator:
        self._successor = successor
        self._engine.instead = "Use its successor."
        return successor

    def _become(self, successor: Communicator) -> Communicator:
        """Close this communicator, whose place another one takes."""
        self._closed = True
        self._engine.close(0.0, 0.0)
        self._parts.abort(0.0)
        self._parts.release()
        self._parts.job.unreleased.append(self._parts)  # what others still say of the end must come to its mailbox
        for child in self._children:
            child._parent = successor
            successor._children[child] = None
        self._children.clear()
        if self._parent is None:
            leaving.close_at_exit(successor)
            leaving.closed(self)
        else:
            self._parent._children.pop(self, None)
            self._parent._children[successor] = None
        return self._replaced_by(successor)

    # ---- schedules of the user's own

    def use_schedule(self, schedule: Schedule | str | PathLike[str], *, timeout: float | None = None) -> None:
        """Run `schedule` for its collective from now on. Collective.

        It is read and verified on every rank first. Calls of that collective, with its count, counts, dtype, op and
        root, and in place or not as the rank's program is, then run it; all others run hetcomm's plans. A later
        schedule for the same collective replaces it. `explain` shows the bytes between clusters of hetcomm's plan.

        Args:
            schedule: A schedule, or the path of a file that `hetcomm.schedule.serial.dumps` wrote; the same on all
                ranks.
            timeout: Seconds until all ranks must have come to this call; the communicator's unless given.

        Raises:
            ScheduleError: On every rank, if on any the file is unreadable, malformed or of another version, the
                schedule does not verify (the message has the element, what it holds and what it should hold, and the
                step), or its communicators are not the job's. Nothing has been run, and the communicator stays usable.
            UsageError, VendorError: In the same way, if a vendor cannot do its part.
            PlanMismatchError, CollectiveTimeoutError, PeerFailureError: See the module's text; the first, if ranks
                bring different schedules.
        """
        engine = self._engine
        engine.enter()
        with engine.lock:
            with refusing(engine, "use_schedule"):
                engine.settle()
                self._refuse_in_group("use_schedule")
                seconds = engine.seconds(timeout)
                imported = self._plans.examine(schedule)
            intent = Intent(imported.digest, f"use_schedule of {imported.program.algorithm}")
            engine.agree(intent, always=True, seconds=seconds)
            self._plans.use(imported)
            engine.forget()

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
        self._engine.enter()
        if name not in EXPLAINED:
            raise UsageError(
                f"there is no collective {name!r} to explain"
                if name != "all_to_all_v"
                else "all_to_all_v cannot be explained by one rank, which does not know the counts of the others",
                remedy=f"Use one of {', '.join(EXPLAINED)}.",
                rank=self._rank,
            )
        parameters = [
            parameter
            for parameter in inspect.signature(getattr(self, name)).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        names = [parameter.name for parameter in parameters]
        unknown = [word for word in kwargs if word not in names and word not in ("stream", "async_op", "timeout")]
        if unknown or len(args) > len(names):
            raise UsageError(f"{name} takes {', '.join(names)}", rank=self._rank)
        given = dict(zip(names, args, strict=False)) | kwargs
        missing = [each.name for each in parameters if each.default is each.empty and each.name not in given]
        if missing:
            raise UsageError(f"{name} needs {', '.join(missing)}", rank=self._rank)
        values = (given.get(each.name, each.default) for each in parameters)
        with checking(name, self._rank):
            call = SPECS[name].check(*values, self._rank, self._nranks)
        self._plan(name, call)
        program, tuning = self._plans.program(call.collective), self._plans.tuning(call.collective)
        return explain(call, self.topology, program, tuning)

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """Record the steps this rank runs inside the block: `with comm.trace() as trace: ...; print(trace.timeline)`.

        Not collective. Calls that would go straight to a vendor are recorded too, as the one step they are.

        Raises:
            UsageError: This communicator is recording already.
        """
        self._engine.enter()
        executor = self._parts.executor
        if executor.spans is not None:
            raise UsageError("trace() is active already", remedy="Leave the inner block out.", rank=self._rank)
        trace = Trace()
        executor.spans, self._ledger.is_traced = trace._spans, True
        try:
            yield trace
        finally:
            executor.spans, self._ledger.is_traced = None, False

    # ---- the end

    def close(self, timeout: float | None = None) -> None:
        """Release everything; calling it again does nothing. Collective.

        Waits until the works under way are over and all ranks have called it, at most `timeout` seconds, which are the
        communicator's unless given; messages that no rank takes any more are given up. If a rank has left otherwise, or
        the communicator is broken, it does not wait. Communicators split from this one are closed first.

        Raises:
            UsageError: `timeout` is no time; nothing is closed.
            PlanMismatchError: The ranks have called different things, and no call has said so on this rank. The
                communicator is closed all the same.
            HetcommError: What went wrong with calls on device arrays that nobody has been told of.
        """
        self._engine.check_owner()
        self._close(self._engine.seconds(timeout))
        self._settle()

    def abort(self) -> None:
        """Leave at once, from whatever thread; calling it again, or after `close`, does nothing. Not collective.

        Whatever is under way here ends with a `TransportError` within some milliseconds, also a call that another
        thread is blocked in, and nothing writes to its arrays afterwards. The calls of the other ranks fail with a
        `PeerFailureError` that names this one. Communicators split from this one are aborted with it. What remains is
        to `close` it, which does not wait.

        Raises:
            UsageError: It interrupts a call of hetcomm's, as from a signal handler: let the handler raise instead. Or
                this is a forked child.
        """
        self._engine.check_owner()
        if self._closed:
            return
        self._engine.refuse_in_between()
        self._leave("aborted it")

    def _settle(self) -> None:
        """Raise what nobody has been told of."""
        self._engine.settle()
        self._engine.tell()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._successor is not None:
            self._successor.__exit__(kind, error, traceback)
        elif error is None:
            self.close()
        elif not self._engine.is_foreign:  # what ends the block of a forked child is not to be hidden
            self._abandon(error)

    def _disown(self) -> None:
        """This process is a forked child."""
        self._engine.disown()
        for child in self._children:
            child._disown()

    def _abandon(self, error: BaseException) -> None:
        """Leave without waiting for the others, who are told."""
        self._leave("ended", error)
        self._close(0.0)

    def _leave(self, how: str, error: BaseException | None = None) -> None:
        """Stop everything here and in the parts of this communicator that are open, and tell the others."""
        if self._closed:
            return
        for child in tuple(self._children):
            child._leave(how, error)
        with self._engine.lock:
            self._engine.abandon(how, error)

    def _close(self, seconds: float) -> None:
        if self._closed:
            return
        for child in tuple(self._children):
            child._close(seconds)
            self._engine.unraised = self._engine.unraised or child._engine.unraised
        self._closed = True
        leaving.closed(self)
        deadline = time.monotonic() + seconds
        waits = self._parent is None and not leaving.others()
        parting = Parting.LOST
        try:
            with self._engine.lock:
                patience = seconds if waits else min(seconds, _PATIENCE)
                parting = self._engine.close(seconds, patience, lambda: self._points.outstanding)
        finally:
            if parting is Parting.LOST:
                self._parts.agreement.survival.stay_out()
            if parting is Parting.LATER:
                self._parts.job.pump.parting.append(self._poll)
                if self._parent is None:
                    leaving.postpone(self)
            elif self._parent is None:
                self._end(parting, deadline)
            elif parting is Parting.APART:
                self._end_apart()
            else:
                with self._engine.lock:
                    self._parts.close()
            if self._parent is not None and parting is not Parting.LATER and not self._children:
                self._parent._children.pop(self, None)  # else the end of some part of it is LATER
        if waits:
            leaving.end_postponed(max(0.0, deadline - time.monotonic()))

    def _poll(self) -> None:
        """Look at what the others say of the end, while it is LATER."""
        try:
            with self._engine.lock:
                self._parts.agreement.poll()
        except HetcommError:  # whoever ends it comes upon the same
            self._stop_looking()

    def _end_later(self, seconds: float) -> None:
        """End a communicator over all ranks whose end was LATER."""
        deadline = time.monotonic() + seconds
        parting = Parting.LOST
        try:
            with self._engine.lock:
                parting = self._engine.end_later(deadline)
        finally:
            self._end(parting, deadline)

    def _end_apart(self) -> None:
        """End a part that some ranks have closed later than others: all but what is collective of that."""
        with self._engine.lock:
            self._parts.mailbox.close(1.0)
        self._parts.job.unreleased.append(self._parts)

    def _end(self, parting: Parting, deadline: float) -> None:
        """Release everything of the job, this communicator being that of all its ranks.

        What is collective of it takes place if all ranks are here, in one order on all of them.
        """
        job = self._parts.job
        try:
            for part in self._later():
                with self._engine.lock:
                    if parting is not Parting.TOGETHER:
                        part._engine.abandon("closed it without waiting")
                    part._engine.end_later(deadline)
                cause = part._parts.agreement.cause
                if cause is not None and not part._engine.told:
                    self._engine.unraised = self._engine.unraised or cause.again()
                part._end_apart()
            with self._engine.lock:
                for parts in sorted(job.unreleased, key=lambda each: each.context):
                    if parting is not Parting.TOGETHER:
                        parts.abort(0.0)
                    parts.close()
                if parting is not Parting.TOGETHER:
                    self._parts.abort(0.0)
                self._parts.close()
        finally:
            self._stop_looking()
            job.close()

    def _later(self) -> list[Communicator]:
        """The parts of this one, and theirs, whose end was LATER; it is no more."""
        later = [each for child in self._children for each in child._later()]
        if self._parent is not None and self._stop_looking():
            later.append(self)
        return later

    def _stop_looking(self) -> bool:
        """Look no more at what the others say of the end; whether this did."""
        parting = self._parts.job.pump.parting
        looked = self._poll in parting
        if looked:
            parting.remove(self._poll)
        return looked


_PATIENCE = 0.5  # seconds that a close waits for ranks that may wait for this one in another
_SPLIT = Intent.of("split")


def _no_fast_path(*_: object) -> bool:
    return False


def _in_hex(name: str, value: Any, rank: int) -> str:
    """An integer of any size as text; '' for None."""
    return "" if value is None else f"{check_integer(name, value, rank):x}"
