"""One run of a program on host memory that the transport's binding runs without Python.

Programs of messages and local work, with no vendor call, are handed to the transport as a script: the same order as
`hetcomm.runtime.binding` derives for `hetcomm.runtime.execution`, and the same values, at a tenth of the cost.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hetcomm.runtime.binding import BoundProgram
from hetcomm.runtime.execution import Execution, collect, listed
from hetcomm.runtime.local import element
from hetcomm.schedule.dataflow import consumers
from hetcomm.schedule.steps import Buffer, Copy, Fill, Recv, Reduce, Scale, Send, Slice
from hetcomm.transport.base import Script, ScriptRun, Transport
from hetcomm.types import Memory, Number, identity

if TYPE_CHECKING:
    from hetcomm.runtime.executor import Executor

__all__ = ["NativeExecution", "fits", "script_of"]

_BUFFERS = {Buffer.IN: 0, Buffer.OUT: 1, Buffer.SCRATCH: 2}


def script_of(bound: BoundProgram, transport: Transport, peers: Any) -> Script | None:
    """`bound` as a script of the transport's; None if the transport has none, or the program calls a vendor."""
    make = getattr(transport, "script", None)
    if make is None or bound.vendor_calls:
        return None
    described = [_described(bound, index, peers) for index in range(len(bound.steps))]
    for index, reduction in consumers(bound.program).items():
        described[index]["taken_by"] = reduction
    made: Script = make(described)
    return made


def fits(bound: BoundProgram, in_memory: Memory | None, out_memory: Memory | None) -> bool:
    """Whether the memories are there, and as long as the program takes them to be: a script does not look."""
    ends = bound.ends
    return (0 if in_memory is None else in_memory.count) >= ends[Buffer.IN] and (
        0 if out_memory is None else out_memory.count
    ) >= ends[Buffer.OUT]


def _described(bound: BoundProgram, index: int, peers: Any) -> dict[str, object]:
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
        }
        return said
    assert isinstance(step, (Copy, Fill, Reduce))  # programs with vendor calls do not come here
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


class NativeExecution(Execution):
    """One run of a script; with `run` it goes on with one that has begun, on `scratch`."""

    def __init__(
        self,
        executor: Executor,
        bound: BoundProgram,
        script: Script,
        number: int,
        in_memory: Memory | None,
        out_memory: Memory | None,
        factor: Number | None,
        call: int | None,
        run: ScriptRun | None = None,
        scratch: Memory | None = None,
    ) -> None:
        multiplier = element(1 if factor is None else factor, bound.dtype).tobytes() if bound.scales else b""
        super().__init__(executor, bound, number, in_memory, out_memory, factor, call, scratch)
        if run is not None:
            self._run: ScriptRun = run
            return
        source, target, spare = (0 if each is None else each.address for each in self._memories.values())
        self._run = script.start(source, target, spare, self._tag, multiplier)

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
        try:
            done = self._run.test(patient)
        except BaseException as error:
            self._error = error
            if self._run.misfit is not None:
                self._error = self._unexpected(*self._run.misfit)
            self.abort()
            if self._error is not error:
                raise self._error from None
            raise
        if done:
            self._run.release()
            self._end()
        return done

    def abort(self) -> None:
        """Cancel what is under way and collect it."""
        if self._over:
            return
        self._over = True
        self._executor.forget(self)
        pending = self._run.detach()
        if not collect(self._executor.transport, pending):
            self._executor.entomb(pending, self._memories)

    def waiting_for(self) -> str:
        """The steps under way, as text for errors."""
        return listed([self.bound.label(index) for index in self._run.under_way()])

    @property
    def active_step(self) -> str | None:
        """The first of the steps under way."""
        active = [] if self._over else self._run.under_way()
        return self.bound.label(active[0]) if active else None
