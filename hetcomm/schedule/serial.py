"""A schedule as JSON, so that another program can replay, draw or store it.

The document, version 1. Counts and offsets are in elements, ranks are ranks of the collective::

    {
      "format": "hetcomm.schedule",
      "version": 1,
      "collective": {"kind": "all_reduce", "nranks": 4, "count": 1000, "dtype": "float32",
                     "op": "sum", "root": null, "in_place": false},
      "communicators": {"home:left": [0, 1], "border:left": [0, 1]},
      "programs": [
        {"rank": 0, "in_place": false, "scratch_count": 500, "algorithm": "hierarchical", "steps": [
          {"step": "send", "src": ["out", 0, 500], "peer": 2, "channel": 0},
          {"step": "recv", "dst": ["scratch", 0, 500], "peer": 2, "channel": 0},
          {"step": "copy", "src": ["in", 0, 500], "dst": ["out", 0, 500], "scale": null},
          {"step": "fill", "dst": ["out", 500, 500], "op": "sum"},
          {"step": "reduce", "src": ["scratch", 0, 500], "dst": ["out", 0, 500], "op": "sum"},
          {"step": "vendor_call", "comm": "border:left", "collective": {...}, "src": null, "dst": ["out", 0, 1000]}
        ]}
      ]
    }

* A slice is [buffer, offset, count]; the buffers are "in" (never written), "out" and "scratch". In place, "in" is
  not used: the one buffer is "out".
* `collective` is in terms of all ranks at the top, and in terms of the communicator's members in a vendor call. `op` is
  null where nothing is reduced, `root` where there is none.
* A communicator is named role:cluster, the role being "home" or "border"; its value lists its ranks in its order.
* `scale` is null, "factor" (this rank's factor of premul_sum) or "average" (divide by nranks).
* A receive takes the messages of one (sender, receiver, channel) in the order sent; the k-th call on a communicator
  meets the k-th of each other member. Steps of a program behave as if run one after another; whatever overlaps in
  time must not change that.
* Every key is there, no other is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

from hetcomm.errors import HetcommError, ScheduleError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.steps import (
    Buffer,
    CommId,
    CommRole,
    Copy,
    Fill,
    Program,
    Recv,
    Reduce,
    Scale,
    Schedule,
    Send,
    Slice,
    Step,
    VendorCall,
)
from hetcomm.types import DataType, ReduceKind

__all__ = ["FORMAT", "VERSION", "from_json", "to_json"]

FORMAT = "hetcomm.schedule"
VERSION = 1
E = TypeVar("E", bound=Enum)


def to_json(schedule: Schedule) -> dict[str, Any]:
    """The schedule as a document of dicts, lists, strings and integers that `json.dumps` takes.

    Raises:
        ScheduleError: A program's collective differs from the schedule's in more than `in_place`.
    """
    for program in schedule.programs:
        if program.collective.with_in_place(schedule.collective.in_place) != schedule.collective:
            raise ScheduleError("the program is for another collective than the schedule", rank=program.rank)
    return {
        "format": FORMAT,
        "version": VERSION,
        "collective": _collective_to(schedule.collective),
        "communicators": {str(comm): list(ranks) for comm, ranks in schedule.communicators.items()},
        "programs": [
            {
                "rank": program.rank,
                "in_place": program.collective.in_place,
                "scratch_count": program.scratch_count,
                "algorithm": program.algorithm,
                "steps": [_step_to(step) for step in program.steps],
            }
            for program in schedule.programs
        ],
    }


def _collective_to(collective: Collective) -> dict[str, Any]:
    return {
        "kind": collective.kind.value,
        "nranks": collective.nranks,
        "count": collective.count,
        "dtype": collective.dtype.value,
        "op": _value_to(collective.op),
        "root": collective.root,
        "in_place": collective.in_place,
    }


def _value_to(member: Enum | None) -> Any:
    return member.value if member is not None else None


def _slice_to(part: Slice | None) -> list[Any] | None:
    return [part.buffer.value, part.offset, part.count] if part is not None else None


def _step_to(step: Step) -> dict[str, Any]:
    match step:
        case Send():
            return {"step": "send", "src": _slice_to(step.src), "peer": step.peer, "channel": step.channel}
        case Recv():
            return {"step": "recv", "dst": _slice_to(step.dst), "peer": step.peer, "channel": step.channel}
        case Copy():
            ends = {"src": _slice_to(step.src), "dst": _slice_to(step.dst)}
            return {"step": "copy", **ends, "scale": _value_to(step.scale)}
        case Fill():
            return {"step": "fill", "dst": _slice_to(step.dst), "op": step.op.value}
        case Reduce():
            return {"step": "reduce", "src": _slice_to(step.src), "dst": _slice_to(step.dst), "op": step.op.value}
        case VendorCall():
            ends = {"src": _slice_to(step.src), "dst": _slice_to(step.dst)}
            collective = _collective_to(step.collective)
            return {"step": "vendor_call", "comm": str(step.comm), "collective": collective, **ends}


class _Malformed(Exception):
    """Something in the document is not what it should be; `from_json` adds where."""


def from_json(document: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_json` wrote. It is not verified: see `hetcomm.schedule.verify`.

    Raises:
        ScheduleError: Not such a document, of another version, or malformed; names the rank and step if there is one.
    """
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise ScheduleError(f"this is no document of format {FORMAT!r}")
    if document.get("version") != VERSION:
        raise ScheduleError(
            f"version {document.get('version')!r} of {FORMAT} is not known",
            remedy=f"Write the schedule again with a hetcomm that writes version {VERSION}.",
        )
    where: tuple[int | None, str | None] = (None, None)
    try:
        _check_keys(document, ("format", "version", "collective", "communicators", "programs"))
        collective = _collective_from(document["collective"])
        communicators = {
            _comm_from(name): tuple(_integer(rank) for rank in _list(ranks))
            for name, ranks in _mapping(document["communicators"]).items()
        }
        programs: list[Program] = []
        for number, entry in enumerate(_list(document["programs"])):
            where = (number, None)
            _check_keys(entry, ("rank", "in_place", "scratch_count", "algorithm", "steps"))
            steps: list[Step] = []
            for index, step in enumerate(_list(entry["steps"])):
                where = (number, str(index))
                steps.append(_step_from(step))
            where = (number, None)
            programs.append(
                Program(
                    rank=_integer(entry["rank"]),
                    collective=collective.with_in_place(_typed(entry["in_place"], bool)),
                    steps=tuple(steps),
                    scratch_count=_integer(entry["scratch_count"]),
                    algorithm=_typed(entry["algorithm"], str),
                )
            )
    except _Malformed as malformed:
        raise ScheduleError(f"malformed schedule: {malformed}", rank=where[0], step=where[1]) from None
    except (ValueError, HetcommError) as invalid:  # what the constructors refuse
        raise ScheduleError(f"invalid schedule: {invalid}", rank=where[0], step=where[1]) from invalid
    return Schedule(collective, tuple(programs), communicators)


def _typed(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise _Malformed(f"{value!r} is not of type {kind.__name__}")
    return value


def _integer(value: Any) -> int:
    number: int = _typed(value, int)
    return number


def _list(value: Any) -> list[Any]:
    items: list[Any] = _typed(value, list)
    return items


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _Malformed(f"{value!r} is not an object")
    return value


def _check_keys(entry: Any, keys: tuple[str, ...]) -> None:
    if set(_mapping(entry)) != set(keys):
        raise _Malformed(f"the keys are {', '.join(sorted(entry))} instead of {', '.join(sorted(keys))}")


def _member(kind: type[E], value: Any) -> E:
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(repr(member.value) for member in kind)
        raise _Malformed(f"{value!r} is none of {names}") from None


def _collective_from(entry: Any) -> Collective:
    _check_keys(entry, ("kind", "nranks", "count", "dtype", "op", "root", "in_place"))
    return Collective(
        kind=_member(CollectiveKind, entry["kind"]),
        nranks=_integer(entry["nranks"]),
        count=_integer(entry["count"]),
        dtype=_member(DataType, entry["dtype"]),
        op=_member(ReduceKind, entry["op"]) if entry["op"] is not None else None,
        root=_integer(entry["root"]) if entry["root"] is not None else None,
        in_place=_typed(entry["in_place"], bool),
    )


def _comm_from(name: Any) -> CommId:
    role, colon, cluster = _typed(name, str).partition(":")
    if not colon:
        raise _Malformed(f"communicator {name!r} is not named role:cluster")
    return CommId(cluster, _member(CommRole, role))


def _slice_from(entry: Any) -> Slice:
    if len(_list(entry)) != 3:
        raise _Malformed(f"slice {entry!r} is not [buffer, offset, count]")
    return Slice(_member(Buffer, entry[0]), _integer(entry[1]), _integer(entry[2]))


def _optional_slice_from(entry: Any) -> Slice | None:
    return _slice_from(entry) if entry is not None else None


def _vendor_call_from(entry: Any) -> VendorCall:
    return VendorCall(
        comm=_comm_from(entry["comm"]),
        collective=_collective_from(entry["collective"]),
        src=_optional_slice_from(entry["src"]),
        dst=_optional_slice_from(entry["dst"]),
    )


def _copy_from(entry: Any) -> Copy:
    scale = _member(Scale, entry["scale"]) if entry["scale"] is not None else None
    return Copy(_slice_from(entry["src"]), _slice_from(entry["dst"]), scale)


_READERS: dict[str, tuple[tuple[str, ...], Callable[[Any], Step]]] = {
    "send": (
        ("src", "peer", "channel"),
        lambda e: Send(_slice_from(e["src"]), _integer(e["peer"]), _integer(e["channel"])),
    ),
    "recv": (
        ("dst", "peer", "channel"),
        lambda e: Recv(_slice_from(e["dst"]), _integer(e["peer"]), _integer(e["channel"])),
    ),
    "copy": (("src", "dst", "scale"), _copy_from),
    "fill": (("dst", "op"), lambda e: Fill(_slice_from(e["dst"]), _member(ReduceKind, e["op"]))),
    "reduce": (
        ("src", "dst", "op"),
        lambda e: Reduce(_slice_from(e["src"]), _slice_from(e["dst"]), _member(ReduceKind, e["op"])),
    ),
    "vendor_call": (("comm", "collective", "src", "dst"), _vendor_call_from),
}


def _step_from(entry: Any) -> Step:
    name = _mapping(entry).get("step")
    if not isinstance(name, str) or name not in _READERS:
        raise _Malformed(f"{name!r} is no kind of step: use one of {', '.join(_READERS)}")
    keys, read = _READERS[name]
    _check_keys(entry, ("step", *keys))
    return read(entry)
