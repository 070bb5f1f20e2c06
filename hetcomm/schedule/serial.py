"""A schedule as JSON, so that another program can replay, draw, write or store it.

The document, version 2. Counts and offsets are in elements, ranks are ranks of the collective::

    {
      "format": "hetcomm.schedule",
      "version": 2,
      "collective": {"kind": "all_reduce", "nranks": 4, "count": 1000, "dtype": "float32", "op": "sum", "root": null,
                     "in_place": false, "counts": null, "in_displs": null, "out_displs": null},
      "communicators": {"home:left": [0, 1], "border:left": [0, 1]},
      "programs": [
        {"rank": 0, "in_place": false, "in_displs": null, "out_displs": null, "scratch_count": 500,
         "algorithm": "hierarchical", "steps": [
          {"step": "send", "src": ["out", 0, 500], "peer": 2, "channel": 0},
          {"step": "recv", "dst": ["scratch", 0, 500], "peer": 2, "channel": 0},
          {"step": "copy", "src": ["in", 0, 500], "dst": ["out", 0, 500], "scale": null},
          {"step": "fill", "dst": ["out", 500, 500], "op": "sum"},
          {"step": "reduce", "src": ["scratch", 0, 500], "dst": ["out", 0, 500], "op": "sum"},
          {"step": "vendor_call", "comm": "border:left", "src": null, "dst": ["out", 0, 1000],
           "collective": {"kind": "all_reduce", "nranks": 2, "count": 1000, "dtype": "float32",
                          "op": "sum", "root": null, "in_place": true}}
        ]}
      ]
    }

* A slice is [buffer, offset, count]; the buffers are "in" (never written), "out" and "scratch". In place, "in" is
  not used: the one buffer is "out".
* `collective` is in terms of all ranks at the top, and in terms of the communicator's members in a vendor call. `op` is
  null where nothing is reduced, `root` where there is none.
* `counts` lists the elements of each block of a vector form (of an all_to_all: for each pair, at source * nranks +
  target), and `count` is then their sum. `in_displs` and `out_displs` say where each block begins in the buffer of one
  rank; null: one behind the other. They and `in_place` may differ between programs. No vendor call has these three.
* A communicator is named role:cluster, the role being "home" or "border"; its value lists its ranks in its order.
* `scale` is null, "factor" (this rank's factor of premul_sum) or "average" (divide by nranks).
* A receive takes the messages of one (sender, receiver, channel) in the order sent; the k-th call on a communicator
  meets the k-th of each other member. Steps of a program behave as if run one after another; whatever overlaps in
  time must not change that.
* Every key is there once, no other is. No number has 2^63 or more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from hetcomm.errors import HetcommError, ScheduleError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.fields import (
    Malformed,
    check_keys,
    integer,
    integers,
    items,
    mapping,
    member,
    natural,
    shown,
    typed,
)
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

__all__ = ["FORMAT", "VERSION", "dumps", "from_json", "loads", "to_json"]

FORMAT = "hetcomm.schedule"
VERSION = 2


def dumps(schedule: Schedule) -> str:
    """The schedule as text: JSON with a line for each step; errors as `to_json`."""
    document = to_json(schedule)
    programs = document.pop("programs")
    head = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    return "{\n" + head + ',\n"programs": [\n' + ",\n".join(map(_program_text, programs)) + "\n]\n}\n"


def _program_text(program: dict[str, Any]) -> str:
    steps = ",\n".join(json.dumps(step) for step in program["steps"])
    head = json.dumps({key: value for key, value in program.items() if key != "steps"})
    return f'{head[:-1]}, "steps": [\n{steps}\n]}}' if steps else f'{head[:-1]}, "steps": []}}'


def to_json(schedule: Schedule) -> dict[str, Any]:
    """The schedule as a document of dicts, lists, strings and integers that `json.dumps` takes.

    Raises:
        ScheduleError: A program's collective differs from the schedule's in more than `in_place` and displacements, or
            a vendor call has counts.
    """
    whole = schedule.collective
    for program in schedule.programs:
        if program.collective is not whole and program.collective.agreed() != whole.agreed():
            raise ScheduleError("the program is for another collective than the schedule", rank=program.rank)
        for index, step in enumerate(program.steps):
            if isinstance(step, VendorCall) and step.collective.counts is not None:
                raise ScheduleError("a vendor call has counts", rank=program.rank, step=str(index))
    return {
        "format": FORMAT,
        "version": VERSION,
        "collective": {**_collective_to(whole), "counts": _list_to(whole.counts), **_displs_to(whole)},
        "communicators": {str(comm): list(ranks) for comm, ranks in schedule.communicators.items()},
        "programs": [
            {
                "rank": program.rank,
                "in_place": program.collective.in_place,
                **_displs_to(program.collective),
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


def _displs_to(collective: Collective) -> dict[str, Any]:
    return {"in_displs": _list_to(collective.in_displs), "out_displs": _list_to(collective.out_displs)}


def _list_to(numbers: tuple[int, ...] | None) -> list[int] | None:
    return list(numbers) if numbers is not None else None


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


def loads(text: str | bytes) -> Schedule:
    """The schedule that `dumps` wrote; not verified, errors as `from_json`.

    Raises:
        ScheduleError: The text is no JSON, has a key twice in one object, or holds NaN or infinity; or as `from_json`.
    """
    try:
        document = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ScheduleError("malformed schedule: lists or objects are nested far too deep") from None
    except Malformed as malformed:
        raise ScheduleError(f"malformed schedule: {malformed}") from None
    except ValueError as invalid:
        raise ScheduleError(f"malformed schedule: this is no JSON: {invalid}") from None
    return from_json(document)


def _no_constant(name: str) -> Any:
    raise Malformed(f"{name} is no number of a schedule")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Malformed(f"an object has the key {shown(double)} twice")
    return found


def from_json(document: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_json` wrote. It is not verified: see `hetcomm.schedule.verify`.

    Raises:
        ScheduleError: Not such a document, of another version, or malformed; names the rank and step if there is one.
    """
    if not isinstance(document, Mapping) or shown(document.get("format")) != repr(FORMAT):
        raise ScheduleError(f"this is no document of format {FORMAT!r}")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise ScheduleError(
            f"version {shown(version)} of {FORMAT} is not known",
            remedy=f"Write the schedule again with a hetcomm that writes version {VERSION}.",
        )
    reader = _Reader()
    try:
        return reader.schedule(document)
    except Malformed as malformed:
        raise ScheduleError(f"malformed schedule: {malformed}", rank=reader.rank, step=reader.step) from None
    except (ValueError, HetcommError) as invalid:  # what the constructors refuse
        raise ScheduleError(f"invalid schedule: {invalid}", rank=reader.rank, step=reader.step) from invalid


class _Reader:
    """Reads a document, and knows where it is: in the program of `rank`, at `step`."""

    def __init__(self) -> None:
        self.rank: int | None = None
        self.step: str | None = None

    def schedule(self, document: Mapping[str, Any]) -> Schedule:
        check_keys(document, ("format", "version", "collective", "communicators", "programs"))
        collective = _whole_from(document["collective"])
        communicators = {
            _comm_from(name): tuple(integer(rank) for rank in items(ranks))
            for name, ranks in mapping(document["communicators"]).items()
        }
        programs: list[Program] = []
        for number, entry in enumerate(items(document["programs"])):
            self.rank = number
            programs.append(self.program(entry, collective))
        return Schedule(collective, tuple(programs), communicators)

    def program(self, entry: Any, collective: Collective) -> Program:
        check_keys(entry, ("rank", "in_place", "in_displs", "out_displs", "scratch_count", "algorithm", "steps"))
        places = _places_from(entry)
        if places != (collective.in_place, collective.in_displs, collective.out_displs):
            in_place, in_displs, out_displs = places
            collective = replace(collective, in_place=in_place, in_displs=in_displs, out_displs=out_displs)
        steps: list[Step] = []
        for index, step in enumerate(items(entry["steps"])):
            self.step = str(index)
            steps.append(_step_from(step))
        self.step = None
        return Program(
            rank=integer(entry["rank"]),
            collective=collective,
            steps=tuple(steps),
            scratch_count=natural(entry["scratch_count"]),
            algorithm=typed(entry["algorithm"], str),
        )


_COLLECTIVE = ("kind", "nranks", "count", "dtype", "op", "root", "in_place")


def _whole_from(entry: Any) -> Collective:
    """The collective at the top, which may be a vector form."""
    check_keys(entry, (*_COLLECTIVE, "counts", "in_displs", "out_displs"))
    _, in_displs, out_displs = _places_from(entry)
    return _collective_of(entry, integers(entry["counts"]), in_displs, out_displs)


def _collective_from(entry: Any) -> Collective:
    """The collective of a vendor call."""
    check_keys(entry, _COLLECTIVE)
    return _collective_of(entry)


def _places_from(entry: Any) -> tuple[bool, tuple[int, ...] | None, tuple[int, ...] | None]:
    """What of a collective is a rank's own."""
    return typed(entry["in_place"], bool), integers(entry["in_displs"]), integers(entry["out_displs"])


def _collective_of(
    entry: Any,
    counts: tuple[int, ...] | None = None,
    in_displs: tuple[int, ...] | None = None,
    out_displs: tuple[int, ...] | None = None,
) -> Collective:
    return Collective(
        kind=member(CollectiveKind, entry["kind"]),
        nranks=integer(entry["nranks"]),
        count=integer(entry["count"]),
        dtype=member(DataType, entry["dtype"]),
        op=member(ReduceKind, entry["op"]) if entry["op"] is not None else None,
        root=integer(entry["root"]) if entry["root"] is not None else None,
        in_place=typed(entry["in_place"], bool),
        counts=counts,
        in_displs=in_displs,
        out_displs=out_displs,
    )


def _comm_from(name: Any) -> CommId:
    role, colon, cluster = typed(name, str).partition(":")
    if not colon:
        raise Malformed(f"communicator {shown(name)} is not named role:cluster")
    return CommId(cluster, member(CommRole, role))


def _slice_from(entry: Any) -> Slice:
    if len(items(entry)) != 3:
        raise Malformed(f"a slice of {len(entry)} entries is not [buffer, offset, count]")
    return Slice(member(Buffer, entry[0]), integer(entry[1]), integer(entry[2]))


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
    scale = member(Scale, entry["scale"]) if entry["scale"] is not None else None
    return Copy(_slice_from(entry["src"]), _slice_from(entry["dst"]), scale)


_READERS: dict[str, tuple[tuple[str, ...], Callable[[Any], Step]]] = {
    "send": (
        ("src", "peer", "channel"),
        lambda e: Send(_slice_from(e["src"]), integer(e["peer"]), integer(e["channel"])),
    ),
    "recv": (
        ("dst", "peer", "channel"),
        lambda e: Recv(_slice_from(e["dst"]), integer(e["peer"]), integer(e["channel"])),
    ),
    "copy": (("src", "dst", "scale"), _copy_from),
    "fill": (("dst", "op"), lambda e: Fill(_slice_from(e["dst"]), member(ReduceKind, e["op"]))),
    "reduce": (
        ("src", "dst", "op"),
        lambda e: Reduce(_slice_from(e["src"]), _slice_from(e["dst"]), member(ReduceKind, e["op"])),
    ),
    "vendor_call": (("comm", "collective", "src", "dst"), _vendor_call_from),
}


def _step_from(entry: Any) -> Step:
    name = mapping(entry).get("step")
    if not isinstance(name, str) or name not in _READERS:
        raise Malformed(f"{shown(name)} is no kind of step: use one of {', '.join(_READERS)}")
    keys, read = _READERS[name]
    check_keys(entry, ("step", *keys))
    return read(entry)
