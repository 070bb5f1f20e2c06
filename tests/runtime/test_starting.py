"""Who started this process, what the ranks say about themselves, and the topology that follows."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hetcomm.errors import TopologyError, UsageError, VendorError
from hetcomm.execution import tags
from hetcomm.job.bootstrap import SoloGroup, bootstrap, uses_mpi
from hetcomm.job.detect import Statement, build_topology, check_hosts, choose_vendor, exchange, restrict
from hetcomm.job.group import pack, unpack
from hetcomm.job.launcher import Launcher, variables
from hetcomm.job.settings import settings
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
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, ("MVAPICH's launcher", 1, 2)),
        ({"PMIX_NAMESPACE": "prte-1", "PMIX_RANK": "1"}, ("a PMIx launcher", 1, 0)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, ("srun", 1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "4294967291"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEPID": "4294967290"}, None),
        ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}, ("torchrun", 1, 4)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, None),
        ({"RANK": "one", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}, None),
        (
            {
                "RANK": "1",
                "WORLD_SIZE": "4",
                "MASTER_ADDR": "host",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
            },
            ("Open MPI's mpirun", 1, 2),
        ),
        (
            {**variables(5, 6, "127.0.0.1:7", "ab"), "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
            ("hetcomm run", 5, 6),
        ),
    ],
    ids=[
        "none",
        "openmpi",
        "hydra",
        "sbatch",
        "srun",
        "mpiexec inside slurm",
        "mvapich",
        "prun",
        "srun that names its step",
        "batch step",
        "interactive step",
        "torchrun",
        "no torchrun",
        "no number",
        "torchrun's variables under mpirun",
        "hetcomm run with an mpirun",
    ],
)
def test_launchers(environ: dict[str, str], expected: tuple[str, int, int] | None) -> None:
    found = Launcher.from_environ(environ)
    assert (found and (found.name, found.rank, found.nranks)) == expected


def test_bootstrap_alone() -> None:
    assert isinstance(bootstrap(Config(bootstrap="single")), SoloGroup)
    assert uses_mpi(Config(bootstrap="mpi"))
    group = SoloGroup()
    assert (group.all_gather(b"x"), group.broadcast(b"y"), group.subgroup([0])) == ([b"x"], b"y", group)


@pytest.mark.parametrize("size", ["1", "2"])
def test_processes_of_torchrun_are_not_jobs_of_one_rank(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert isinstance(bootstrap(Config(bootstrap="single")), SoloGroup)
    if size == "1":
        assert isinstance(bootstrap(Config()), SoloGroup)
        return
    with pytest.raises(UsageError, match=r"torchrun started 2 processes.*mpirun -n.*HETCOMM_BOOTSTRAP=single"):
        bootstrap(Config())


@pytest.mark.parametrize("parts", [[], [b""], [b"a", b"", b"ccc"]])
def test_packing(parts: list[bytes]) -> None:
    assert unpack(pack(parts)) == parts


def test_settings() -> None:
    made, failure = settings(Config(vendor="mpi", timeout=3), vendor="ucx", cluster=None, timeout=None)
    assert (made.vendor, made.cluster, made.timeout, failure) == ("ucx", None, 3.0, None)
    paths = Config(topology=Path("a.toml"), calibration=Path("b.json"), timeout=np.float64(2), inline_bytes=np.int64(7))  # type: ignore[arg-type]
    made, failure = settings(paths, None, None, None)
    assert failure is None
    assert (made.topology, made.calibration, made.timeout, made.inline_bytes) == ("a.toml", "b.json", 2.0, 7)
    assert (type(made.timeout), type(made.inline_bytes)) == (float, int)


class Raising:
    def __index__(self) -> int:
        raise RecursionError("deep")


@pytest.mark.parametrize(
    ("arguments", "environ", "text"),
    [
        ({"timeout": -1}, {}, "argument 'timeout' is -1"),
        ({"timeout": "60"}, {}, "argument 'timeout' is '60'"),
        ({"timeout": float("nan")}, {}, "argument 'timeout' is nan"),
        ({"timeout": 10**400}, {}, "argument 'timeout' is of type int"),
        ({"timeout": Raising()}, {}, "argument 'timeout'"),
        ({"config": {"timeout": 3}}, {}, "argument 'config' is of type dict"),
        ({"config": Config}, {}, "argument 'config' is of type type"),
        ({"config": Config(timeout="3")}, {}, "Config.timeout is '3'"),  # type: ignore[arg-type]
        ({"config": Config(inline_bytes=-1)}, {}, "Config.inline_bytes is -1"),
        ({"config": Config(inline_bytes=1.5)}, {}, "'Config.inline_bytes' is 1.5"),  # type: ignore[arg-type]
        ({"config": Config(inline_bytes=Raising())}, {}, "RecursionError: deep"),  # type: ignore[arg-type]
        ({"config": Config(bootstrap="smoke")}, {}, "HETCOMM_BOOTSTRAP='smoke'"),
        ({"config": Config(topology=3)}, {}, "topology is 3"),  # type: ignore[arg-type]
        ({"vendor": 3}, {}, "vendor is 3"),
        ({"cluster": Path("left")}, {}, "cluster is"),
        ({}, {"HETCOMM_TIMEOUT": "abc"}, "HETCOMM_TIMEOUT='abc'"),
        ({}, {"HETCOMM_TIMEOUT": "nan"}, "HETCOMM_TIMEOUT='nan'"),
        ({}, {"HETCOMM_INLINE_BYTES": "-1"}, "HETCOMM_INLINE_BYTES='-1'"),
        ({}, {"HETCOMM_INLINE_BYTES": "9" * 5000}, "HETCOMM_INLINE_BYTES"),
        ({}, {"HETCOMM_BOOTSTRAP": "smoke"}, "HETCOMM_BOOTSTRAP='smoke'"),
    ],
)
def test_settings_that_cannot_be_used_are_enough_to_tell_the_others(
    arguments: dict[str, object], environ: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HETCOMM_TIMEOUT", "HETCOMM_INLINE_BYTES", "HETCOMM_BOOTSTRAP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    made, failure = settings(*(arguments.get(name) for name in ("config", "vendor", "cluster", "timeout")))
    assert type(failure) is UsageError
    assert text in str(failure)
    assert made == Config()


def test_what_can_be_used_of_bad_settings_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TIMEOUT": "12", "INLINE_BYTES": "x", "BOOTSTRAP": "single", "VENDOR": "mpi"}.items():
        monkeypatch.setenv(f"HETCOMM_{name}", value)
    assert settings(None, None, None, None)[0] == Config(timeout=12.0, bootstrap="single")
    assert settings(None, None, None, 4)[0] == Config(timeout=4.0, bootstrap="single")
    assert settings(None, None, None, -4)[0] == Config(timeout=12.0, bootstrap="single")
    monkeypatch.setenv("HETCOMM_TIMEOUT", "0")
    assert settings(None, None, None, None)[0] == Config(bootstrap="single")
    assert settings(Config(timeout=7, vendor=3), None, None, None)[0] == Config(timeout=7)  # type: ignore[arg-type]


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
