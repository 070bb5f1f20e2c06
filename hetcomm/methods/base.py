"""How every method that communicates is made: check the arguments, find the plan, hand it to the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy

from hetcomm.agreement.tickets import Intent
from hetcomm.calls import calls
from hetcomm.calls.calls import Call
from hetcomm.calls.spec import SPECS
from hetcomm.errors import UsageError
from hetcomm.execution.scratch import kind_of
from hetcomm.execution.streams import Ordering, Streams
from hetcomm.plans.plans import Plan, Plans
from hetcomm.types import Memory, MemoryKind, ReduceKind
from hetcomm.works.engine import Engine
from hetcomm.works.persistent import Request
from hetcomm.works.refusals import refusing
from hetcomm.works.work import CollectiveWork, ExchangeWork, Work

__all__ = ["Methods"]


class Methods:
    """What all methods of a communicator build upon.

    What a call does to the engine, it does under the engine's lock.
    """

    _engine: Engine
    _fast: Callable[[int, Any, Any, Any, Any], bool]
    _plans: Plans
    _streams: Streams
    _rank: int
    _nranks: int
    _token: Any  # what a barrier's ranks pass round

    def _plan(self, name: str, call: Call, *, control: bool = False) -> Plan:
        return self._plans.get(name, call.collective, kind_of(call.out_memory, call.in_memory), control=control)

    def _order(self, memories: Sequence[Memory | None], op: ReduceKind | None, stream: Any) -> Ordering | None:
        """The place of a call in the order of its stream; None for host arrays.

        It makes the device ready, which may block until calls under way are over, so the lock is free meanwhile.
        """
        if all(memory is None or memory.kind is MemoryKind.HOST for memory in memories):
            return None
        self._streams.prepare(memories, op)
        with self._engine.lock:
            return self._streams.order(memories, stream)

    def _collective(
        self,
        name: str,
        args: Sequence[Any],
        stream: Any,
        async_op: bool,
        timeout: float | None,
    ) -> Work | None:
        """Make a collective call of the method `name`."""
        engine, spec = self._engine, SPECS[name]
        engine.enter()
        with refusing(engine, name):
            if engine.unraised is not None:
                engine.settle()
            call = spec.check(*args, self._rank, self._nranks)
            kind = kind_of(call.out_memory, call.in_memory)
            with engine.lock:
                seconds = engine.seconds(timeout)
                plan = self._plans.get(name, call.collective, kind, control=spec.control)
            order = None
            if kind is not MemoryKind.HOST:
                order = self._order((call.out_memory, call.in_memory), call.collective.op, stream)
            async_op = bool(async_op)
        with engine.lock:
            work = CollectiveWork(engine, name, plan, call, seconds, order)
            # Each rank brings a factor of its own: that its plan is known does not say that all of them can be used.
            found = engine.launch(work, plan.intent, async_op=async_op, always=call.factor is not None)
            if work.over and spec.key is not None:
                engine.learn(spec.key, plan, call, spec.fast(args))
            return found

    def _persistent(
        self,
        name: str,
        args: Sequence[Any],
        stream: Any,
        timeout: float | None,
    ) -> Request:
        """Make the persistent form of the collective `name`."""
        engine, spec = self._engine, SPECS[name]
        engine.enter()
        with refusing(engine, f"{name}_init"):
            self._refuse_in_group(f"{name}_init")
            if engine.unraised is not None:
                engine.settle()
            call = spec.check(*args, self._rank, self._nranks)
            with engine.lock:
                seconds = engine.seconds(timeout)
                plan = self._plan(name, call, control=spec.control)
        return self._request(name, plan, call, stream, seconds)

    def _exchange(self, args: Sequence[Any], stream: Any, async_op: bool, timeout: float | None) -> Work | None:
        """Make an all_to_all_v, whose counts no rank knows alone."""
        engine, name = self._engine, "all_to_all_v"
        engine.enter()
        with refusing(engine, name):
            engine.settle()
            with engine.lock:
                seconds = engine.seconds(timeout)
                gathered, plan, call, intent, arrays = self._gathering(name, *args)
            order = self._order((arrays.target, arrays.source), None, stream)
            async_op = bool(async_op)

        def then() -> tuple[Plan, Call]:
            return self._exchange_plan(gathered, arrays)

        with engine.lock:
            work = ExchangeWork(engine, name, plan, call, then, seconds, order)
            return engine.launch(work, intent, async_op=async_op)

    def _persistent_exchange(self, args: Sequence[Any], stream: Any, timeout: float | None) -> Request:
        """Make the persistent form of an all_to_all_v: the counts are gathered once."""
        engine, name = self._engine, "all_to_all_v_init"
        engine.enter()
        with refusing(engine, name):
            self._refuse_in_group(name)
            engine.settle()
            with engine.lock:
                seconds = engine.seconds(timeout)
                gathered, plan, call, intent, arrays = self._gathering(name, *args)
        with engine.lock:
            engine.launch(CollectiveWork(engine, name, plan, call, seconds), intent, async_op=False)
            plan, call = self._exchange_plan(gathered, arrays)
        return self._request("all_to_all_v", plan, call, stream, seconds)

    def _gathering(
        self,
        name: str,
        in_array: Any,
        out_array: Any,
        in_counts: Any,
        out_counts: Any,
        in_displs: Any,
        out_displs: Any,
    ) -> tuple[Any, Plan, Call, Intent, calls.ExchangeArrays]:
        """The call in which all ranks tell one another their counts: where they will be, its plan, itself, what the
        ranks compare, and the arrays of the exchange, which are not looked at again."""
        rank, nranks = self._rank, self._nranks
        said = calls.splits(in_counts, out_counts, rank, nranks)
        arrays = calls.exchange_arrays(in_array, out_array, said, in_displs, out_displs, rank, nranks)
        gathered = numpy.empty((nranks, 2 * nranks), numpy.int64)
        call = calls.all_gather(numpy.array(said, numpy.int64), gathered, None, rank, nranks)
        plan = self._plan("all_gather", call, control=True)
        return gathered, plan, call, Intent.of(f"{name} {arrays.dtype.value}", plan.intent), arrays

    def _exchange_plan(self, gathered: Any, arrays: calls.ExchangeArrays) -> tuple[Plan, Call]:
        """Plan and call of an all_to_all_v once all counts are known."""
        call = calls.all_to_all_v(arrays, gathered.tolist(), self._rank, self._nranks)
        return self._plan("all_to_all_v", call), call

    def _request(self, name: str, plan: Plan, call: Call, stream: Any, seconds: float) -> Request:
        """A persistent request that all ranks have agreed upon."""
        engine = self._engine
        with engine.lock:
            engine.agree(Intent.of(f"{name}_init: {plan.intent.text}", plan.intent), seconds=seconds)
            engine.agreement.trust(plan.intent)
        memories, op = (call.out_memory, call.in_memory), call.collective.op
        if kind_of(*memories) is MemoryKind.HOST:
            return Request(engine, name, plan, call, None, seconds, engine.pin(plan, call))
        return Request(engine, name, plan, call, lambda: self._order(memories, op, stream), seconds)

    def _refuse_in_group(self, name: str) -> None:
        """Refuse a call that cannot be queued."""
        if self._engine.group is not None:
            raise UsageError(
                f"{name} cannot be part of a group", remedy="Call it before the group's block.", rank=self._rank
            )
