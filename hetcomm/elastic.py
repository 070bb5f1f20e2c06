"""Go on from the last commit when ranks are lost: what a long computation needs beside `Communicator.shrink`::

    state = elastic.State(weights=weights, speed=speed, epoch=0)

    def train(comm):
        while state.epoch < 100:
            step(comm, state.weights, state.speed)
            state.epoch += 1
            state.commit()
        return state.weights

    with hetcomm.init() as comm:
        weights = elastic.run(train, comm, state)

A `State` holds what all ranks have in common. `commit` keeps a copy of it on each rank; when ranks are lost, those that
are left get back what was committed last, and the function is called again with their communicator. Nothing is written
to a disk: if all ranks are lost, so is the state.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from hetcomm.agreement.tickets import Intent
from hetcomm.communicator import Communicator
from hetcomm.errors import PeerFailureError, UsageError, VendorError

__all__ = ["State", "run"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class State:
    """Arrays and plain values that all ranks have in common, as attributes.

    Args:
        values: By name, which must not begin with '_' or be that of a method. Arrays are whatever a communicator takes
            that has `copy` or `clone`, as those of NumPy, CuPy and PyTorch (of tensors that take part in autograd the
            data counts); they are written in place. Everything else is what JSON gives back as it was: numbers, text,
            None, and lists of them, and dicts by text. NumPy's scalars become Python's when they are restored.

    Raises:
        UsageError: A name or a value cannot be used.
    """

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name.startswith("_") or hasattr(type(self), name):
                raise UsageError(
                    f"{name!r} cannot be the name of a value of an elastic state", remedy="Give it another one."
                )
        vars(self).update(values)
        self._commits = 0
        self._saved = self._copies()

    @property
    def commits(self) -> int:
        """How often it was committed."""
        return self._commits

    def commit(self) -> None:
        """Keep a copy of all values, in place of the last; not collective, but all ranks must do it at one point.

        Raises:
            UsageError: A value cannot be kept; what was committed last stays.
        """
        self._saved = self._copies()
        self._commits += 1

    def restore(self) -> None:
        """Go back to what was committed last, or to the values that it began with.

        An attribute that is another array by now, of another size or dtype, becomes a copy of the one committed.
        """
        for name, saved in self._saved.items():
            if not _is_array(saved):
                setattr(self, name, json.loads(saved))
            elif _kind(getattr(self, name, None)) == _kind(saved):
                _data(getattr(self, name))[...] = saved
            else:
                setattr(self, name, _copy(saved))

    def sync(self, comm: Communicator) -> None:
        """Give all ranks what was committed last, by any of them. Collective; the ranks need not have committed alike.

        Raises:
            UsageError: On every rank, if some have other names, or arrays of other sizes or dtypes, than others.
            HetcommError: As any collective.
        """
        kinds = sorted((name, _kind(saved)) for name, saved in self._saved.items())
        digest = np.frombuffer(Intent.of(str(kinds)).fingerprint, np.uint8)
        digests, commits = np.empty((comm.nranks, 16), np.uint8), np.empty(comm.nranks, np.int64)
        comm.all_gather(digest.copy(), digests)
        different = np.flatnonzero((digests != digests[0]).any(axis=1))
        if len(different):
            raise UsageError(
                f"the elastic states of rank 0 and rank {different[0]} have other names, or arrays of other sizes or "
                "dtypes",
                remedy="Make the state alike on all ranks.",
                rank=comm.rank,
            )
        comm.all_gather(np.array([self._commits]), commits)
        root = int(commits.argmax())
        self.restore()
        plain = {name: saved for name, saved in self._saved.items() if not _is_array(saved)}
        told = _broadcast(comm, json.dumps(plain) if comm.rank == root else "", root)
        for name, saved in json.loads(told).items():
            setattr(self, name, json.loads(saved))
        for name in sorted(self._saved):
            if _is_array(self._saved[name]):
                comm.broadcast(_data(getattr(self, name)), root=root)
        self._saved, self._commits = self._copies(), int(commits[root])

    def _copies(self) -> dict[str, Any]:
        return {name: _kept(name, value) for name, value in vars(self).items() if not name.startswith("_")}


def _kept(name: str, value: Any) -> Any:
    """A copy of an array, or what stands for a plain value."""
    if _is_array(value):
        if getattr(getattr(value, "flags", None), "writeable", True):
            return _copy(value)
        problem = "is an array that cannot be written"
    else:
        plain = value.item() if isinstance(value, np.generic) else value
        try:
            text = json.dumps(plain)
            problem = "is not the same when it has been JSON" if _differs(json.loads(text), plain) else ""
        except (TypeError, ValueError, RecursionError) as error:
            problem = f"is neither an array nor what JSON can hold: {error}"
        if not problem:
            return text
    raise UsageError(
        f"the value {name!r} of an elastic state {problem}",
        remedy="Keep numbers, text, lists, and dicts by text in it, or an array.",
    )


def _differs(one: Any, other: Any) -> bool:
    """Whether values differ, or parts of them; NaN is equal to itself."""
    if type(one) is not type(other):
        return True
    if isinstance(one, dict):
        return list(one) != list(other) or any(_differs(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) != len(other) or any(map(_differs, one, other))
    return bool(one != other and one == one)


def run(function: Callable[[Communicator], _T], comm: Communicator, state: State, *, replace: bool = False) -> _T:
    """Call `function(comm)`; whenever ranks are lost in it, shrink, go back to the last commit, and call it again.

    Collective. Afterwards `comm.successor` is what has come of the communicator given here, if ranks were lost; leaving
    a `with` block of that one closes it.

    Args:
        function: Makes the same calls on all ranks, given the same state, whatever the number of ranks. It must use the
            communicator that it is given, and parts that it makes of that.
        comm: The first communicator, or one that has a successor.
        state: What all of them have in common.
        replace: Whether to wait for new processes in the seats of the lost (`Communicator.reconfigure`), and to shrink
            only where none comes. These call `run` too, with a state of the same names, and get that of the others: so
            no rank may make other calls on `comm` before this one.

    Returns:
        What the function returns.

    Raises:
        PeerFailureError: This rank is taken for lost by the others.
        CollectiveTimeoutError: With `replace`, a rank neither ended nor came in time.
        Exception: Whatever else the function raises.
    """
    comm = comm.successor or comm
    while True:
        try:
            state.sync(comm)
            return function(comm)
        except PeerFailureError as error:
            _log.warning("[rank %d] going on without those that were lost: %s", comm.rank, error)
            comm = _renewed(comm, replace)


def _renewed(comm: Communicator, replace: bool) -> Communicator:
    if replace:
        try:
            return comm.reconfigure()
        except (PeerFailureError, VendorError) as error:
            _log.warning("[rank %d] nobody takes the seats of those: %s", comm.rank, error)
    return comm.shrink()


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "__setitem__")


def _data(array: Any) -> Any:
    """The array, or the data of a tensor that takes part in autograd."""
    return array.detach() if hasattr(array, "detach") else array


def _copy(array: Any) -> Any:
    data = _data(array)
    return data.copy() if hasattr(data, "copy") else data.clone()


def _kind(value: Any) -> str:
    """What must be equal where one array is written over another."""
    return f"{value.dtype} {tuple(value.shape)}" if _is_array(value) else "plain"


def _broadcast(comm: Communicator, text: str, root: int) -> str:
    data = np.frombuffer(text.encode(), np.uint8).copy()
    length = np.array([len(data)])
    comm.broadcast(length, root=root)
    if comm.rank != root:
        data = np.empty(int(length[0]), np.uint8)
    comm.broadcast(data, root=root)
    return data.tobytes().decode()
