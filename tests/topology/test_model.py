"""Topologies: what they say about ranks, their text form, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcomm._conformance.strategies import topologies
from hetcomm.errors import TopologyError
from hetcomm.schedule.steps import CommId, CommRole
from hetcomm.topology.model import DEFAULT_BANDWIDTH, DEFAULT_LATENCY, Cluster, Topology, Uplink

TWO = """
[[cluster]]
name = "left"
vendor = "mpi"
ranks = "0-1, 4"
hosts = ["a", "a", "b"]
[[cluster.uplink]]
rank = 4
bandwidth = "10 Gbit/s"
latency = "3 us"
[[cluster.uplink]]
rank = 0
bandwidth_out = "2 GiB/s"
bandwidth_in = 5e8

[[cluster]]
vendor = "oneccl"
ranks = [3, 2]
[[cluster.uplink]]
rank = 2
"""


def test_text_is_read() -> None:
    topology = Topology.from_toml(TWO)
    left, right = topology.clusters
    assert (left.name, left.vendor, left.ranks, left.hosts) == ("left", "mpi", (0, 1, 4), ("a", "a", "b"))
    assert left.uplinks == (Uplink(0, 2.0 * 2**30, 5e8, DEFAULT_LATENCY), Uplink(4, 1.25e9, 1.25e9, 3e-6))
    assert (right.name, right.ranks) == ("cluster1", (3, 2))
    assert right.uplinks == (Uplink(2, DEFAULT_BANDWIDTH, DEFAULT_BANDWIDTH, DEFAULT_LATENCY),)
    assert topology.nranks == 5
    assert [topology.cluster_index(rank) for rank in range(5)] == [0, 0, 1, 1, 0]
    assert topology.cluster_of(3) is right
    assert left.border == (0, 4)
    assert topology.communicators() == {
        CommId("left", CommRole.HOME): (0, 1, 4),
        CommId("left", CommRole.BORDER): (0, 4),
        CommId("cluster1", CommRole.HOME): (3, 2),
    }


def test_a_lone_cluster_has_no_border_communicator() -> None:
    topology = Topology((Cluster("a", "mpi", range(2), (Uplink(0), Uplink(1))),))
    assert topology.communicators() == {CommId("a", CommRole.HOME): (0, 1)}


@given(topologies())
def test_text_and_pickles_come_back_equal(topology: Topology) -> None:
    for same in (Topology.from_toml(topology.to_toml()), pickle.loads(pickle.dumps(topology))):
        assert same == topology
        assert hash(same) == hash(topology)
        assert same.fingerprint() == topology.fingerprint()


def test_fingerprints_tell_topologies_apart() -> None:
    topology = Topology.from_toml(TWO)
    faster = Topology.from_toml(TWO.replace("10 Gbit/s", "11 Gbit/s"))
    assert topology.fingerprint() != faster.fingerprint()
    assert topology != faster


def test_consecutive_ranks_compare_equal_however_they_are_given() -> None:
    assert Cluster("a", "mpi", (0, 1, 2)) == Cluster("a", "mpi", range(3)) == Cluster("a", "mpi", [0, 1, 2])
    assert Cluster("a", "mpi", range(0, 4, 2)).ranks == (0, 2)


def test_a_hundred_thousand_ranks_stay_small() -> None:
    clusters = [Cluster(f"c{i}", "nccl", range(100 * i, 100 * i + 100), (Uplink(100 * i),)) for i in range(1000)]
    topology = Topology(tuple(clusters))
    assert topology.cluster_index(99_999) == 999
    assert len(topology.to_toml()) < 200_000
    assert len(pickle.dumps(topology)) < 1_500_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[3, 2]", "[3, 2, 4]", "rank 4 is in cluster 'left' and in cluster 'cluster1'"),
        ("[3, 2]", "[3, 3, 2]", "'cluster1' names rank 3 twice"),
        ("[3, 2]", "[5, 2]", "'cluster1' has rank 5, but the clusters have 5 ranks in all, and 3 missing"),
        ("[3, 2]", "[]", "'cluster1' has no ranks"),
        ("[3, 2]", "[3, -2]", "'cluster1' has rank -2|uplink to nowhere"),
        ("[3, 2]", "[3, 2.0]", "'cluster1' has rank 2.0"),
        ("[3, 2]", "[3, true]", "'cluster1' has rank True"),
        ("[3, 2]", "7", "ranks 7 is neither text nor a list"),
        ("0-1, 4", "1-0, 4", "'1-0' in its ranks is neither a rank nor a span"),
        ("0-1, 4", "0-1, x", "'x' in its ranks is neither a rank nor a span"),
        ("0-1, 4", "0-999999999", "more than 16777216 ranks"),
        ("rank = 2", "rank = 0", "'cluster1' has an uplink to nowhere: rank 0"),
        ("rank = 2", "", "an uplink of cluster 'cluster1' has no rank"),
        ("rank = 4", "rank = 0", "'left' has two uplinks of rank 0"),
        ("[[cluster.uplink]]\nrank = 2", "", "'cluster1' has no uplink"),
        ("10 Gbit/s", "-10 Gbit/s", "bandwidth_out -1250000000.0 is not a positive number"),
        ("10 Gbit/s", "10 parsec", "'10 parsec' cannot be read"),
        ("10 Gbit/s", "1e1e1 B/s", "'1e1e1 B/s' cannot be read"),
        ("5e8", "nan", "bandwidth_in nan is not a positive number"),
        pytest.param("5e8", "1" + "0" * 400, "is not a positive number", id="400 digits"),
        pytest.param("5e8", "1" + "0" * 5000, "is not TOML", id="5000 digits"),
        pytest.param("[3, 2]", "[" * 20000, "is not TOML", id="nested"),
        ("5e8", "0", "bandwidth_in 0 is not a positive number"),
        ("3 us", "-3 us", "latency -3e-06 is not a number from 0 on"),
        ("bandwidth_in = 5e8", "bandwidth = 5e8", "has bandwidth and also bandwidth_out or bandwidth_in"),
        ('vendor = "oneccl"', "", "cluster 'cluster1' has no vendor"),
        ('vendor = "oneccl"', "vendor = 3", "vendor 3 of a cluster cannot be used"),
        ('name = "left"', 'name = "cluster1"', "two clusters have the name 'cluster1'"),
        ('name = "left"', 'name = ""', "name '' of a cluster cannot be used"),
        ('name = "left"', 'nmae = "left"', "unknown key 'nmae'"),
        ("latency", "latnecy", "unknown key 'latnecy'"),
        ('["a", "a", "b"]', '["a", "a"]', "3 ranks but 2 hosts"),
        ('["a", "a", "b"]', "[1, 2, 3]", "is not a list of strings"),
        ("[[cluster]]\nname", "[[cluster]\nname", "is not TOML"),
    ],
)
def test_bad_text_is_refused(old: str, new: str, message: str) -> None:
    assert old in TWO
    with pytest.raises(TopologyError, match=message) as caught:
        Topology.from_toml(TWO.replace(old, new, 1))
    assert caught.value.remedy or "integer" in str(caught.value)


@given(st.data())
def test_damaged_text_is_read_or_refused(data: st.DataObject) -> None:
    lines = TWO.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        values = st.sampled_from(["''", "0", "-1", "1.5", "true", "[]", "[[]]", "{}", "[0, 0]", "inf", "2020-01-01"])
        key = lines[at].partition("=")[0]
        lines[at] = f"{key}={data.draw(values)}" if data.draw(st.booleans()) else data.draw(st.text(max_size=8))
    try:
        topology = Topology.from_toml("\n".join(lines))
    except TopologyError:
        return
    assert Topology.from_toml(topology.to_toml()) == topology


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no clusters"),
        ("cluster = 3", "cluster of the topology is not a list of tables"),
        ("name = 'x'", "the topology has the unknown key 'name'"),
    ],
)
def test_other_documents_are_refused(text: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        Topology.from_toml(text)


def test_files_are_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    with pytest.raises(TopologyError, match=r"job\.toml' cannot be read"):
        Topology.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TopologyError, match=r"job\.toml' cannot be read"):
        Topology.load(path)
    path.write_text(TWO.replace("oneccl", ""))
    with pytest.raises(TopologyError, match=r"job\.toml': vendor ''"):
        Topology.load(path)
    path.write_text(TWO)
    assert Topology.load(path) == Topology.from_toml(TWO)


@pytest.mark.parametrize("rank", [-1, 5, 100])
def test_ranks_outside_are_refused(rank: int) -> None:
    with pytest.raises(TopologyError, match=f"rank {rank} is not a rank of this topology"):
        Topology.from_toml(TWO).cluster_of(rank)
