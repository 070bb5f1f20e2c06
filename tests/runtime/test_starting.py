"""Who started this process, what the ranks say about themselves, and the topology that follows."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

import pytest

from hetcomm.errors import TopologyError, UsageError, VendorError
from hetcomm.runtime import tags
from hetcomm.runtime.bootstrap import SoloGroup, _pack, _unpack, bootstrap, uses_mpi
from hetcomm.runtime.detect import Statement, build_topology, check_hosts, choose_vendor, exchange, restrict
from hetcomm.runtime.job import settings
from hetcomm.runtime.launcher import Launcher
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.types import Config

from .threads import Meeting, ThreadGroup


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, ("Open MPI's mpirun", 3, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, ("MPICH's mpiexec", 0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script, in no step
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, ("srun", 5, 8)),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "2", "PMI_SIZE": "6"},
            ("MPICH's mpiexec", 2, 6),
        ),
    ],
    ids=["none", "openmpi", "hydra", "sbatch", "srun", "mpiexec inside slurm"],
)
def test_launchers(environ: dict[str, str], expected: tuple[str, int, int] | None) -> None:
    found = Launcher.from_environ(environ)
    assert (found and (found.name, found.rank, found.nranks)) == expected


def test_bootstrap_alone() -> None:
    assert isinstance(bootstrap(Config(bootstrap="single")), SoloGroup)
    assert uses_mpi(Config(bootstrap="mpi"))
    with pytest.raises(UsageError, match="HETCOMM_BOOTSTRAP='tcp'"):
        bootstrap(Config(bootstrap="tcp"))
    group = SoloGroup()
    assert (group.all_gather(b"x"), group.broadcast(b"y"), group.subgroup([0])) == ([b"x"], b"y", group)


@pytest.mark.parametrize("parts", [[], [b""], [b"a", b"", b"ccc"]])
def test_packing(parts: list[bytes]) -> None:
    assert _unpack(_pack(parts)) == parts


def test_settings() -> None:
    made = settings(Config(vendor="mpi", timeout=3), vendor="ucx", cluster=None, timeout=None)
    assert (made.vendor, made.cluster, made.timeout) == ("ucx", None, 3)
    with pytest.raises(UsageError, match="'timeout'"):
        settings(None, None, None, -1)


def test_vendor_choice() -> None:
    assert choose_vendor(Config(), over_mpi=False) == "ucx"
    assert choose_vendor(Config(vendor="ucx"), over_mpi=True) == "ucx"
    assert choose_vendor(Config(), over_mpi=False, from_topology="ucx") == "ucx"
    with pytest.raises(UsageError, match="'nvlink' is not known"):
        choose_vendor(Config(vendor="nvlink"), over_mpi=False)
    with pytest.raises(TopologyError, match="HETCOMM_VENDOR is 'mpi'"):
        choose_vendor(Config(vendor="mpi"), over_mpi=True, from_topology="ucx")


def test_clusters_are_vendors_and_labels() -> None:
    said = [Statement(vendor, label, f"h{rank}") for rank, (vendor, label) in enumerate(
        [("mpi", ""), ("ucx", "b"), ("mpi", ""), ("ucx", ""), ("ucx", "b")]
    )]  # fmt: skip
    topology = build_topology([Statement.unpack(statement.pack()) for statement in said])
    assert [(c.name, c.vendor, tuple(c.ranks), c.border, c.hosts) for c in topology.clusters] == [
        ("mpi", "mpi", (0, 2), (0, 2), ("h0", "h2")),
        ("ucx/b", "ucx", (1, 4), (1, 4), ("h1", "h4")),
        ("ucx", "ucx", (3,), (3,), ("h3",)),
    ]


def test_a_part_of_a_topology() -> None:
    whole = Topology(
        (
            Cluster("a", "mpi", (0, 1, 2), (Uplink(1, 5.0, 6.0, 7.0),), ("x", "y", "z")),
            Cluster("b", "ucx", (3, 4), (Uplink(4),)),
            Cluster("c", "ucx", (5,), (Uplink(5),)),
        )
    )
    part = restrict(whole, [4, 3, 2, 1])
    assert [(c.name, tuple(c.ranks), c.border, c.hosts) for c in part.clusters] == [
        ("a", (2, 3), (3,), ("z", "y")),
        ("b", (0, 1), (0,), ()),
    ]
    assert part.clusters[0].uplinks == (Uplink(3, 5.0, 6.0, 7.0),)
    assert restrict(whole, [2, 5]).clusters[0].border == (0,), "without its border rank, all ranks become border ranks"


def test_an_error_of_one_rank_is_raised_on_all() -> None:
    meeting, caught = Meeting(), dict[int, VendorError]()

    def body(rank: int) -> None:
        group = ThreadGroup(meeting, (0, 1, 2), rank, defaultdict(int))
        assert exchange(group, b"%d" % rank, None, "testing") == [b"0", b"1", b"2"]
        mine = VendorError("it is not installed", remedy="Install it.") if rank == 1 else None
        try:
            exchange(group, b"", mine, "testing")
        except VendorError as error:
            caught[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(caught) == [0, 1, 2]
    for rank, error in caught.items():
        assert error.rank == rank
        assert "testing failed on rank 1: it is not installed. Install it." in str(error)


def test_tags_do_not_meet() -> None:
    made = {
        tags.collective(context, source, channel) | tags.run(number, check)
        for context in (0, 1, tags.MAX_CONTEXT)
        for source in (0, 1, tags.MAX_RANKS - 1)
        for channel in (0, 1, tags.MAX_CHANNEL, tags.TOKENS, tags.TOKENS + 1)
        for number in (0, 1, 2 * tags.WINDOW - 1)
        for check in (0, 1, tags.MAX_PLANS)
    }
    made |= {
        tags.point_to_point(context, source, tag)
        for context in (0, 1, tags.MAX_CONTEXT)
        for source in (0, 1, tags.MAX_RANKS - 1)
        for tag in (0, 1, tags.MAX_USER_TAG)
    }
    made |= {tags.control(context, serial) for context in (0, 1, tags.MAX_CONTEXT) for serial in (0, 1, 1 << 40)}
    assert len(made) == 405 + 27 + 9
    assert all(0 <= tag < 1 << 64 for tag in made)


def two_hosts(*hosts: str) -> Topology:
    half = len(hosts) // 2
    parts = (range(half), range(half, len(hosts)))
    return Topology(
        tuple(
            Cluster(name, "ucx", part, (Uplink(part[0]),), tuple(hosts[rank] for rank in part))
            for name, part in zip("ab", parts, strict=True)
        )
    )


RUNNING = ["x:1", "x:1", "y.site.org:2", "y.site.org:2"]


def test_a_topology_may_name_the_hosts_of_the_job_or_none() -> None:
    for hosts in (["x", "x", "y", "y"], ["x.site.org", "x.site.org", "y.site.org", "y.site.org"], RUNNING):
        check_hosts(two_hosts(*hosts), RUNNING, 0)
    check_hosts(build_topology([Statement("ucx") for _ in RUNNING]), RUNNING, 0)


@pytest.mark.parametrize(
    ("hosts", "running", "message", "ranks"),
    [
        ("xxyz", RUNNING, "puts rank 3 on host 'z', but it runs on 'y.site.org'", {3}),
        ("axyy", RUNNING, "puts rank 0 on host 'a', but it runs on 'x'", {0}),
        ("xxxx", ["x:1", "x:1", "x:2", "x:2"], "puts ranks 0 and 2 on hosts 'x' and 'x', but they run on", {0, 2}),
        (
            ["x", "x.org", "y", "y"],
            ["x:1", "x:1", "y:2", "y:2"],
            "puts ranks 0 and 1 on hosts 'x' and 'x.org', but they run on 'x:1' and 'x:1'",
            {0, 1},
        ),
    ],
)
def test_a_topology_of_other_hosts_is_refused(
    hosts: Sequence[str], running: list[str], message: str, ranks: set[int]
) -> None:
    with pytest.raises(TopologyError, match=message) as caught:
        check_hosts(two_hosts(*hosts), running, 1)
    assert caught.value.ranks == ranks
    assert caught.value.rank == 1
