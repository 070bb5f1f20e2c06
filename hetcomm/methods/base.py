"""How every method that communicates is made: check the arguments, find the plan, hand it to the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy

from hetcomm.errors import UsageError
from hetcomm.runtime import calls
from hetcomm.runtime.agreement import REFUSALS, Intent
from hetcomm.runtime.calls import Call
from hetcomm.runtime.engine import Engine
from hetcomm.runtime.persistent import Request
from hetcomm.runtime.plans import Plan, Plans
from hetcomm.runtime.work import CollectiveWork, ExchangeWork, Work

__all__ = ["Methods"]


class Methods:
    """What all methods of a communicator build upon."""

    _engine: Engine
    _plans: Plans
    _rank: int
    _nranks: int

    def _plan(self, name: str, call: Call) -> Plan:
        memory = call.out_memory if call.out_memory is not None else call.in_memory
        assert memory is not None  # every call has an array
        return self._plans.get(name, call.collective, memory.kind)

    def _collective(
        self, name: str, function: Callable[..., Call], args: Sequence[Any], async_op: bool, timeout: float | None
    ) -> Work | None:
        """Make a collective call: `function` checks `args`."""
        engine = self._engine
        engine.check_usable()
        try:
            call = function(*args, self._rank, self._nranks)
            seconds = engine.seconds(timeout)
            plan = self._plan(name, call)
        except REFUSALS as error:
            engine.refuse(error)
            raise
        return engine.launch(CollectiveWork(engine, name, plan, call, seconds), plan.intent, async_op=async_op)

    def _persistent(
        self, name: str, function: Callable[..., Call], args: Sequence[Any], timeout: float | None
    ) -> Request:
        """Make the persistent form of a collective."""
        engine = self._engine
        engine.check_usable()
        try:
            self._refuse_in_group(f"{name}_init")
            call = function(*args, self._rank, self._nranks)
            seconds = engine.seconds(timeout)
            plan = self._plan(name, call)
        except REFUSALS as error:
            engine.refuse(error)
            raise
        return self._request(name, plan, call, seconds)

    def _exchange(self, args: Sequence[Any], async_op: bool, timeout: float | None) -> Work | None:
        """Make an all_to_all_v, whose counts no rank knows alone."""
        engine, name = self._engine, "all_to_all_v"
        engine.check_usable()
        try:
            seconds = engine.seconds(timeout)
            gathered, plan, call, intent = self._gathering(name, *args)
        except REFUSALS as error:
            engine.refuse(error)
            raise

        def then() -> tuple[Plan, Call]:
            return self._exchange_plan(gathered, *args)

        return engine.launch(ExchangeWork(engine, name, plan, call, then, seconds), intent, async_op=async_op)

    def _persistent_exchange(self, args: Sequence[Any], timeout: float | None) -> Request:
        """Make the persistent form of an all_to_all_v: the counts are gathered once."""
        engine, name = self._engine, "all_to_all_v_init"
        engine.check_usable()
        try:
            self._refuse_in_group(name)
            seconds = engine.seconds(timeout)
            gathered, plan, call, intent = self._gathering(name, *args)
        except REFUSALS as error:
            engine.refuse(error)
            raise
        engine.launch(CollectiveWork(engine, name, plan, call, seconds), intent, async_op=False)
        plan, call = self._exchange_plan(gathered, *args)
        return self._request("all_to_all_v", plan, call, seconds)

    def _gathering(
        self,
        name: str,
        in_array: Any,
        out_array: Any,
        in_counts: Any,
        out_counts: Any,
        in_displs: Any,
        out_displs: Any,
    ) -> tuple[Any, Plan, Call, Intent]:
        """The call in which all ranks tell one another their counts: where they will be, its plan, itself, and what the
        ranks compare."""
        rank, nranks = self._rank, self._nranks
        said = calls.splits(in_counts, out_counts, rank, nranks)
        one = calls.exchange_arrays(in_array, out_array, said, in_displs, out_displs, rank, nranks)[2]
        gathered = numpy.empty((nranks, 2 * nranks), numpy.int64)
        call = calls.all_gather(numpy.array(said, numpy.int64), gathered, None, rank, nranks)
        plan = self._plan("all_gather", call)
        return gathered, plan, call, Intent.of(f"{name} {one.dtype.value}", plan.intent)

    def _exchange_plan(
        self,
        gathered: Any,
        in_array: Any,
        out_array: Any,
        in_counts: Any,
        out_counts: Any,
        in_displs: Any,
        out_displs: Any,
    ) -> tuple[Plan, Call]:
        """Plan and call of an all_to_all_v once all counts are known."""
        rank, nranks = self._rank, self._nranks
        call = calls.all_to_all_v(in_array, out_array, gathered.tolist(), in_displs, out_displs, rank, nranks)
        return self._plan("all_to_all_v", call), call

    def _request(self, name: str, plan: Plan, call: Call, seconds: float) -> Request:
        """A persistent request that all ranks have agreed upon."""
        engine = self._engine
        engine.agree(Intent.of(f"{name}_init: {plan.intent.text}", plan.intent))
        engine.agreement.trust(plan.intent)
        return Request(engine, name, plan, call, seconds)

    def _refuse_in_group(self, name: str) -> None:
        """Refuse a call that cannot be queued."""
        if self._engine.group is not None:
            raise UsageError(
                f"{name} cannot be part of a group", remedy="Call it before the group's block.", rank=self._rank
            )
