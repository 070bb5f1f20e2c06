"""One run of a program on host memory that the transport's binding runs, without Python but for the calls of vendors.

Programs are handed to the transport as a script: the same order as `hetcomm.execution.binding` derives for
`hetcomm.execution.execution`, and the same values, at a tenth of the cost.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hetcomm.errors import TransportError, UsageError
from hetcomm.execution.binding import BoundProgram
from hetcomm.execution.execution import Execution, collect, listed
from hetcomm.execution.local import element
from hetcomm.schedule.dataflow import consumers
from hetcomm.schedule.steps import Buffer, CommId, Fill, Recv, Reduce, Scale, Send, Slice, VendorCall
from hetcomm.schedule.timeline import Span
from hetcomm.transport.base import Script, ScriptRun, Transport
from hetcomm.types import Memory, Number, identity
from hetcomm.vendors.base import VendorCommunicator

if TYPE_CHECKING:
    from hetcomm.execution.executor import Executor

__all__ = ["NativeExecution", "script_of"]

_BUFFERS = {Buffer.IN: 0, Buffer.OUT: 1, Buffer.SCRATCH: 2}


_UNFINISHED: list[object] = []
"""What a vendor may still write to after an abort: it must live as long as the process."""


def script_of(
    bound: BoundProgram, transport: Transport, peers: Any, communicators: Mapping[CommId, VendorCommunicator]
) -> Script | None:
    """`bound` as a script of the transport's, whose vendor calls go to `communicators`; None if it has none."""
    make = getattr(transport, "script", None)
    if make is None:
        return None
    described = [_described(bound, index, peers, communicators) for index in range(len(bound.steps))]
    for index, reduction in consumers(bound.program).items():
        described[index]["taken_by"] = reduction
    made: Script = make(described, Memory, bound.dtype)
    return made


def _described(
    bound: BoundProgram, index: int, peers: Any, communicators: Mapping[CommId, VendorCommunicator]
) -> dict[str, object]:
    """One step, as the binding takes it: places and lengths of messages and copies in bytes, other lengths in elements.

    What a local step needs beside its arrays is its `value`: the number of ranks of an average, or an element.
    """
    one = bound.steps[index]
    step, dtype = one.step, bound.dtype
    said: dict[str, object] = {"waits": bound.waits[index], "starts": one.start_unlocks, "ends": one.end_unlocks}
    if isinstance(step, (Send, Recv)):
        said["do"] = "send" if isinstance(step, Send) else "recv"
        said |= {
            "at": (_BUFFERS[one.buffer], one.offset),
            "nbytes": one.nbytes,
            "tag": one.tag,
            "peer": peers[one.peer],
            "token": one.is_token,
        }
        return said
    if isinstance(step, VendorCall):
        places = (_part(step.src, dtype.itemsize), _part(step.dst, dtype.itemsize))
        return said | {"do": "call", "call": (communicators[step.comm].start, step.collective, *places)}
    said |= {"at": _place(step.dst, dtype.itemsize), "count": step.dst.count, "dtype": dtype.value}
    if isinstance(step, Fill):
        said |= {"do": "fill", "value": element(identity(step.op, dtype), dtype).tobytes()}
        return said
    said["source"] = _place(step.src, dtype.itemsize)
    if isinstance(step, Reduce):
        said["do"] = step.op.value
    elif step.scale is Scale.FACTOR:
        said["do"] = "multiply"
    elif step.scale is Scale.AVERAGE:
        said |= {"do": "average", "value": bound.program.collective.nranks.to_bytes(8, sys.byteorder)}
    else:
        said |= {"do": "copy", "nbytes": 0 if step.src == step.dst else step.dst.count * dtype.itemsize}
    return said


def _place(slice_: Slice, size: int) -> tuple[int, int]:
    return _BUFFERS[slice_.buffer], slice_.offset * size


def _part(slice_: Slice | None, size: int) -> tuple[int, int, int] | None:
    return None if slice_ is None else (*_place(slice_, size), slice_.count)


class NativeExecution(Execution):
    """One run of a script; with `run` it goes on with one that has begun, on `scratch`."""

    def __init__(
        self,
        executor: Executor,
        bound: BoundProgram,
        script: Script,
        number: int,
        check: int,
        in_memory: Memory | None,
        out_memory: Memory | None,
        factor: Number | None,
        call: int | None,
        run: ScriptRun | None = None,
        scratch: Memory | None = None,
    ) -> None:
        for buffer, memory in ((Buffer.IN, in_memory), (Buffer.OUT, out_memory)):  # a script does not look
            if (0 if memory is None else memory.count) < bound.ends[buffer]:
                raise UsageError(
                    f"the program needs a buffer that was not passed, or not as long: {buffer.value}",
                    rank=executor.rank,
                )
        multiplier = element(1 if factor is None else factor, bound.dtype).tobytes() if bound.scales else b""
        super().__init__(executor, bound, number, check, in_memory, out_memory, factor, call, scratch)
        self._recorded = executor.spans
        if run is not None:
            self._run: ScriptRun = run
            self.calls_left -= run.ncalled
            return
        source, target, spare = (0 if each is None else each.address for each in self._memories.values())
        self._run = script.start(source, target, spare, self._tag, multiplier)
        if self._recorded is not None:
            self._run.record()

    def test(self) -> bool:
        """Move it along; whether all is done. Errors as for every run."""
        return self._test(False)

    def press(self) -> bool:
        """The same for whoever waits for nothing else: it takes some microseconds."""
        return self._test(True)

    def _test(self, patient: bool) -> bool:
        if self._over:
            if self._error is not None:
                raise self._error
            return True
        run = self._run
        try:
            done = run.test(patient)
            while run.due and self._executor.may_call(self):
                self.calls_left -= run.start_calls()
                if not self.calls_left:
                    self._executor.has_called()
                done = run.test(patient)
        except BaseException as error:
            self._error = error
            if isinstance(error, TransportError) and run.length_mismatch is not None:
                self._error = self._unexpected(*run.length_mismatch)
            self.abort()
            if self._error is not error:
                raise self._error from None
            raise
        if done:
            self._record()
            run.release()
            self._end()
        return done

    def _record(self) -> None:
        """Hand over when its steps were started and complete, if somebody asks."""
        if self._recorded is not None:
            self._recorded.extend(
                Span(self._executor.rank, index, self.bound.label(index), start, end)
                for index, start, end in self._run.spans()
                if not self.bound.steps[index].is_token
            )

    def abort(self) -> None:
        """Cancel what is under way and collect it."""
        if self._over:
            return
        self._over = True
        self._executor.forget(self)
        self._record()
        for index, operation in self._run.in_vendors:
            step = self.bound.steps[index].step
            assert isinstance(step, VendorCall)  # or it would not be in a vendor
            self._communicators[step.comm].abort()
            _UNFINISHED.append((operation, self._memories))
        pending = self._run.detach()
        if not collect(self._executor.transport, pending):
            self._executor.keep_until_close(pending, self._memories)

    def peers(self) -> set[int]:
        """The ranks with whom messages are under way."""
        active = [] if self._over else self._run.under_way()
        return {self.bound.steps[index].peer for index in active} - {-1}

    def waiting_for(self) -> str:
        """The steps under way, as text for errors."""
        held = self._run.waits_for_turn()
        return listed(
            [self.bound.label(index) for index in self._run.under_way()]
            + [f"{self.bound.label(index)} (which comes after those of earlier calls)" for index in held]
        )

    def contradiction(self) -> tuple[int, int] | None:
        """The rank that has sent a message for another plan of this run, and that message's check bits, if there is."""
        found = self._run.contradiction()
        return None if found is None else (self.bound.steps[found[0]].peer, found[1])

    @property
    def active_step(self) -> str | None:
        """The first of the steps under way."""
        active = [] if self._over else self._run.under_way()
        return self.bound.label(active[0]) if active else None
