"""What holds without a calibration: which topologies are one host, and that its plans are right and move the least."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetcomm.errors import UsageError
from hetcomm.schedule.collective import CollectiveKind
from hetcomm.schedule.steps import Schedule, VendorCall
from hetcomm.schedule.verify import verify
from hetcomm.testing import strategies
from hetcomm.topology import bounds
from hetcomm.topology.inline import inline
from hetcomm.topology.model import Cluster, Topology, Uplink
from hetcomm.topology.select import schedule
from hetcomm.topology.tuning import ON_HOSTS, ON_ONE_HOST, RULES, Tuning, on

from .volume import wanted


def two_clusters(vendors: tuple[str, str] = ("mpi", "oneccl"), hosts: str = "aaaa", border: int = 2) -> Topology:
    return Topology(
        tuple(
            Cluster(
                f"c{number}",
                vendor,
                range(2 * number, 2 * number + 2),
                tuple(Uplink(2 * number + k) for k in range(border)),
                tuple(hosts[2 * number : 2 * number + 2]),
            )
            for number, vendor in enumerate(vendors)
        )
    )


def test_one_host_is_what_shares_memory_and_no_uplink() -> None:
    assert on(two_clusters()) is ON_ONE_HOST
    assert on(two_clusters(hosts="aabb")) is ON_HOSTS
    assert on(two_clusters(hosts="aaab")) is ON_HOSTS
    assert on(two_clusters(hosts="")) is ON_HOSTS
    assert on(two_clusters(border=1)) is ON_HOSTS
    assert on(two_clusters(vendors=("mpi", "nccl"))) is RULES
    assert on(Topology(two_clusters().clusters[:1])) is RULES


@pytest.mark.parametrize("inline_bytes", [0, RULES.inline_bytes, ON_ONE_HOST.inline_bytes])
def test_who_says_how_long_inlined_vectors_are_gets_just_that(inline_bytes: int) -> None:
    over_hosts, on_one_host = on(two_clusters(hosts="aabb"), inline_bytes), on(two_clusters(), inline_bytes)
    for found in (over_hosts, on_one_host):
        assert found.inline_bytes == inline_bytes
        assert not found.local_reduction
    assert over_hosts == replace(RULES, inline_bytes=inline_bytes)
    assert on(Topology(two_clusters().clusters[:1]), inline_bytes) == over_hosts


def test_a_tuning_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="chunk_bytes 0"):
        Tuning(chunk_bytes=0)


@pytest.mark.parametrize("kind", list(CollectiveKind), ids=lambda kind: kind.value)
@settings(max_examples=15)
@given(data=st.data())
def test_plans_for_one_host_are_proved_and_move_the_least(kind: CollectiveKind, data: st.DataObject) -> None:
    topology = data.draw(strategies.topologies(max_clusters=4, max_ranks=4))
    topology = Topology(
        tuple(replace(each, uplinks=tuple(Uplink(rank) for rank in each.ranks)) for each in topology.clusters)
    )
    collective = data.draw(strategies.collectives(topology.nranks, kind=kind))
    tuning = replace(ON_ONE_HOST, few_steps_bytes=64, chunk_bytes=256) if data.draw(st.booleans()) else ON_ONE_HOST
    whole = schedule(collective, topology, tuning)
    programs = tuple(
        program if len(topology.clusters) == 1 else inline(program, whole.communicators) for program in whole.programs
    )
    verify(Schedule(collective, programs, whole.communicators))
    if len(topology.clusters) > 1:
        assert not any(isinstance(step, VendorCall) for program in programs for step in program.steps)
        assert bounds.traffic(programs, topology).total == wanted(collective, topology, tuning)
