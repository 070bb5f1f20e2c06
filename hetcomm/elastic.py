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

from hetcomm.communicator import Communicator
from hetcomm.errors import PeerFailureError, UsageError, VendorError

__all__ = ["State", "run"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class State:
    """Arrays and plain values that all ranks have in common, as attributes.

    Args:
        values: By name. Arrays are whatever a communicator takes that has `copy` or `clone`, as those of NumPy, CuPy
            and PyTorch; they stay the same objects and are written in place. Everything else is what JSON can hold:
            numbers, text, None, and lists and dicts of them.

    Raises:
        UsageError: A value is neither.
    """

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)
        self._commits = 0
        self._saved: dict[str, Any] = {}
        self._save()

    @property
    def commits(self) -> int:
        """How often it was committed."""
        return self._commits

    def commit(self) -> None:
        """Keep a copy of all values, in place of the last; not collective, but all ranks must do it at one point.

        Raises:
            UsageError: A value is no array, and JSON cannot hold it.
        """
        self._save()
        self._commits += 1

    def restore(self) -> None:
        """Go back to what was committed last, or to the values that it began with."""
        for name, saved in self._saved.items():
            if _is_array(saved):
                getattr(self, name)[...] = saved
            else:
                setattr(self, name, json.loads(saved))

    def sync(self, comm: Communicator) -> None:
        """Give all ranks what was committed last, by any of them. Collective; the ranks need not have committed alike.

        Raises:
            PlanMismatchError: The ranks have arrays of different sizes or dtypes.
            HetcommError: As any collective.
        """
        commits = np.empty(comm.nranks, np.int64)
        comm.all_gather(np.array([self._commits]), commits)
        root = int(commits.argmax())
        self.restore()
        plain = {name: saved for name, saved in self._saved.items() if not _is_array(saved)}
        told = _broadcast(comm, json.dumps(plain) if comm.rank == root else "", root)
        for name, saved in json.loads(told).items():
            setattr(self, name, json.loads(saved))
        for name in sorted(self._saved):
            if _is_array(self._saved[name]):
                comm.broadcast(getattr(self, name), root=root)
        self._commits = int(commits[root])
        self._save()

    def _names(self) -> list[str]:
        return [name for name in vars(self) if not name.startswith("_")]

    def _save(self) -> None:
        for name in self._names():
            value = getattr(self, name)
            if _is_array(value):
                self._saved[name] = value.copy() if hasattr(value, "copy") else value.clone()
                continue
            try:
                self._saved[name] = json.dumps(value)
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"the value {name!r} of an elastic state is neither an array nor what JSON can hold: {error}",
                    remedy="Keep numbers, text, lists and dicts in it, or an array.",
                ) from error


def run(function: Callable[[Communicator], _T], comm: Communicator, state: State, *, replace: bool = False) -> _T:
    """Call `function(comm)`; whenever ranks are lost in it, shrink, go back to the last commit, and call it again.

    Collective. Leaving a `with` block of the communicator given here closes the one that has come of it.

    Args:
        function: Makes the same calls on all ranks, given the same state, whatever the number of ranks. It must use the
            communicator that it is given, and parts that it makes of that.
        comm: The first communicator.
        state: What all of them have in common.
        replace: Whether to wait for new processes in the seats of the lost (`Communicator.reconfigure`), and to shrink
            only where none comes. These call `run` too, with a state of the same names, and get that of the others: so
            no rank may make other calls on `comm` before this one.

    Returns:
        What the function returns.

    Raises:
        PeerFailureError: This rank is taken for lost by the others.
        CollectiveTimeoutError: A rank neither died nor came to go on.
        Exception: Whatever else the function raises.
    """
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


def _broadcast(comm: Communicator, text: str, root: int) -> str:
    data = np.frombuffer(text.encode(), np.uint8).copy()
    length = np.array([len(data)])
    comm.broadcast(length, root=root)
    if comm.rank != root:
        data = np.empty(int(length[0]), np.uint8)
    comm.broadcast(data, root=root)
    return data.tobytes().decode()
