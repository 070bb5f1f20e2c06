"""Calibrations as data and as files, and the costs of a topology."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm.errors import TopologyError, UsageError
from hetcomm.schedule.collective import Collective, CollectiveKind
from hetcomm.schedule.simulate import Path, Port
from hetcomm.schedule.steps import Buffer, CommId, CommRole, Copy, Fill, Reduce, Slice
from hetcomm.topology.costs import DEFAULT, EAGER_BYTES, IDEAL, Calibration, CallCost, Line, costs_of, volume
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import DataType, ReduceKind

LEFT = Cluster("left", "mpi", range(4), (Uplink(0, 1e9, 2e9, 1e-6), Uplink(3, 3e9, 4e9, 2e-6)))
RIGHT = Cluster("right", "oneccl", (6, 4, 5), (Uplink(5, 5e9, 6e9, 9e-6),))
BOTH = Topology((LEFT, RIGHT))


def call(kind: CollectiveKind, nranks: int, count: int = 100) -> Collective:
    op = ReduceKind.SUM if kind.reduces else None
    return Collective(kind, nranks, count, DataType.FLOAT32, op, 0 if kind.has_root else None)


@pytest.mark.parametrize(
    ("kind", "nbytes"),
    [
        (CollectiveKind.ALL_REDUCE, 600),
        (CollectiveKind.REDUCE, 400),
        (CollectiveKind.BROADCAST, 400),
        (CollectiveKind.ALL_GATHER, 1200),
        (CollectiveKind.REDUCE_SCATTER, 1200),
    ],
)
def test_what_a_call_moves(kind: CollectiveKind, nbytes: int) -> None:
    assert volume(call(kind, 4)) == nbytes
    assert volume(call(kind, 1)) == 0


def test_what_a_call_costs() -> None:
    cost = CallCost("mpi", None, alpha=1.0, per_log2=10.0, per_rank=100.0, beta=1000.0)
    assert cost.seconds(call(CollectiveKind.ALL_REDUCE, 4)) == 1 + 20 + 300 + 600_000
    assert cost.seconds(call(CollectiveKind.ALL_REDUCE, 1)) == 1


def test_the_nearest_entry_counts() -> None:
    reduces = CollectiveKind.REDUCE
    entries = [
        CallCost(None, None, 1.0),
        CallCost(None, reduces, 2.0),
        CallCost("mpi", None, 3.0),
        CallCost("mpi", reduces, 4.0),
    ]
    calibration = replace(IDEAL, calls=tuple(entries))
    gathers = CollectiveKind.ALL_GATHER
    asked = [("gloo", gathers), ("gloo", reduces), ("mpi", gathers), ("mpi", reduces)]
    assert [calibration.call(vendor, call(kind, 1)) for vendor, kind in asked] == [1, 2, 3, 4]


def test_a_vendor_that_is_left_out() -> None:
    with pytest.raises(UsageError, match=r"no cost for reduce of vendor 'gloo'.*null"):
        replace(IDEAL, calls=(CallCost("mpi", None),)).call("gloo", call(CollectiveKind.REDUCE, 2))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "1", None, True, 10**400])
def test_numbers_that_cannot_be(bad: Any) -> None:
    with pytest.raises(UsageError, match="beta of a cost"):
        Line(0.0, bad)
    with pytest.raises(UsageError, match="per_rank of the cost of reduce of mpi"):
        CallCost("mpi", CollectiveKind.REDUCE, per_rank=bad)
    with pytest.raises(UsageError, match="overhead of the calibration"):
        replace(IDEAL, overhead=bad)


def test_one_entry_for_each() -> None:
    with pytest.raises(UsageError, match="two costs"):
        replace(IDEAL, calls=(CallCost("mpi", None), CallCost("mpi", None, 1.0)))


# ---- files

COSTS = st.floats(0, 1e3)
LINES = st.builds(Line, COSTS, COSTS)
CALLS = st.builds(
    CallCost,
    st.none() | st.sampled_from(["mpi", "gloo", "über"]),
    st.none() | st.sampled_from(CollectiveKind),
    COSTS,
    COSTS,
    COSTS,
    COSTS,
)
CALIBRATIONS = st.builds(
    Calibration,
    st.lists(CALLS, max_size=4, unique_by=lambda cost: (cost.vendor, cost.kind)).map(tuple),
    LINES,
    LINES,
    LINES,
    COSTS,
    st.text(max_size=5),
)


@given(calibration=CALIBRATIONS)
def test_there_and_back(calibration: Calibration) -> None:
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again == calibration
    assert again.fingerprint() == calibration.fingerprint()
    assert replace(calibration, overhead=calibration.overhead + 1).fingerprint() != calibration.fingerprint()


def test_equal_numbers_have_equal_fingerprints() -> None:
    assert replace(IDEAL, overhead=0).fingerprint() == IDEAL.fingerprint()


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a document is."""
    found = [path] if path else []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


WRONG = st.sampled_from([None, True, -1, "x", [], {}, [[]], {"a": 1}, math.nan, 10**400])


@given(data=st.data())
def test_a_spoilt_document_is_refused_or_still_valid(data: st.DataObject) -> None:
    document = copy.deepcopy(DEFAULT.to_json())
    *path, last = data.draw(st.sampled_from(places(document)))
    node = document
    for key in path:
        node = node[key]
    if data.draw(st.booleans()):
        del node[last]
    else:
        node[last] = data.draw(WRONG)
    with contextlib.suppress(UsageError):
        Calibration.from_json(document)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "other"}, "no document of format"),
        ({"version": 2}, "version 2 of hetcomm.calibration"),
        ({"version": True}, "version True"),
        ({"more": 1}, "instead of the keys"),
        ({"copy": {"alpha": 1}}, "copy has alpha instead of the keys alpha, beta"),
        ({"copy": {"alpha": 1, "beta": -1}}, "beta of a cost is -1"),
        ({"calls": {}}, "calls of the calibration"),
        ({"calls": [3]}, r"calls\[0\] has 3"),
        ({"machine": None}, "machine"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Calibration.from_json({**DEFAULT.to_json(), **change})


@pytest.mark.parametrize(("key", "bad"), [("kind", "sum"), ("kind", 3), ("vendor", 3)])
def test_what_is_wrong_with_a_call_is_named(key: str, bad: Any) -> None:
    document = DEFAULT.to_json()
    document["calls"][1][key] = bad
    with pytest.raises(UsageError, match=rf"{key} of calls\[1\]"):
        Calibration.from_json(document)


def test_files(tmp_path: File) -> None:
    path = tmp_path / "calibration.json"
    DEFAULT.save(path)
    assert Calibration.load(path) == DEFAULT
    path.write_text("{")
    with pytest.raises(UsageError, match=r"calibration\.json.*cannot be used"):
        Calibration.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(UsageError, match="cannot be used"):
        Calibration.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be used"):
        Calibration.load(path)
    with pytest.raises(UsageError, match="cannot be used"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be written"):
        DEFAULT.save(tmp_path / "none" / "calibration.json")


# ---- on a topology


def test_messages_between_clusters_pass_both_uplinks() -> None:
    costs = costs_of(BOTH)
    assert costs.path(3, 5) == Path(Port(("uplink", 3), 3e9), Port(("uplink", 5), 6e9), 9e-6, EAGER_BYTES)
    assert costs.path(5, 0) == Path(Port(("uplink", 5), 5e9), Port(("uplink", 0), 2e9), 9e-6, EAGER_BYTES)


def test_a_rank_without_an_uplink_uses_another_s() -> None:
    costs = costs_of(BOTH)
    assert [costs.path(rank, 6).out_port.key for rank in range(4)] == [("uplink", rank) for rank in (0, 0, 3, 3)]
    assert {costs.path(0, rank).in_port.key for rank in (4, 5, 6)} == {("uplink", 5)}


def test_messages_inside_a_cluster_pass_ports_of_the_ranks() -> None:
    calibration = replace(IDEAL, message=Line(3e-6, 1e-10))
    path = costs_of(BOTH, calibration).path(1, 2)
    assert path == Path(Port(("home", 1), 1e10), Port(("home", 2), 1e10), 3e-6, EAGER_BYTES)
    assert costs_of(BOTH, IDEAL).path(1, 2).out_port.bandwidth == math.inf


def test_calls_and_local_steps() -> None:
    calls = (CallCost("mpi", None, 1.0), CallCost("oneccl", None, 2.0))
    costs = costs_of(BOTH, Calibration(calls, Line(), Line(1.0, 10.0), Line(2.0, 20.0), 0.5))
    what = call(CollectiveKind.BROADCAST, 2)
    assert costs.vendor(CommId("left", CommRole.HOME), what) == 1
    assert costs.vendor(CommId("right", CommRole.BORDER), what) == 2
    part, other = Slice(Buffer.OUT, 0, 4), Slice(Buffer.OUT, 4, 4)
    assert costs.local(Copy(part, other), 4) == costs.local(Fill(part, ReduceKind.SUM), 4) == 41
    assert costs.local(Reduce(part, other, ReduceKind.SUM), 4) == 82
    assert costs.overhead == 0.5


def test_what_is_not_of_the_topology() -> None:
    costs = costs_of(BOTH)
    with pytest.raises(TopologyError, match="no cluster 'middle'"):
        costs.vendor(CommId("middle", CommRole.HOME), call(CollectiveKind.BROADCAST, 2))
    with pytest.raises(TopologyError, match="rank 7"):
        costs.path(0, 7)


def test_ideal_costs_nothing_but_uplinks() -> None:
    costs = costs_of(BOTH, IDEAL)
    assert costs.overhead == costs.vendor(LEFT.home_id, call(CollectiveKind.ALL_REDUCE, 4, 1 << 30)) == 0
    assert costs.local(Fill(Slice(Buffer.OUT, 0, 4), ReduceKind.SUM), 1 << 30) == 0
    assert costs.path(0, 1).latency == 0
    assert costs.path(0, 4).latency == 9e-6


@pytest.mark.parametrize(
    ("vendor", "nranks", "nbytes", "measured"),
    [
        ("mpi", 2, 1 << 26, 30e-3),
        ("mpi", 4, 1 << 18, 134e-6),
        ("oneccl", 2, 1 << 22, 0.45e-3),
        ("gloo", 4, 1 << 26, 0.101),
    ],
)
def test_the_defaults_are_of_the_right_size(vendor: str, nranks: int, nbytes: int, measured: float) -> None:
    priced = DEFAULT.call(vendor, call(CollectiveKind.ALL_REDUCE, nranks, nbytes // 4))
    assert measured / 2 <= priced <= measured * 2
